"""What authors of tools import: `from dalang import Context, tool`. Small and stable; everything else is Dalang's own."""

from dalang.approval import Approval
from dalang.context import Context
from dalang.prompts import InstructionsFunction, instructions
from dalang.results import Handoff, ToolError, ToolResult
from dalang.tools import ToolFunction, tool

__all__ = [
    "Approval",
    "Context",
    "Handoff",
    "InstructionsFunction",
    "ToolError",
    "ToolFunction",
    "ToolResult",
    "instructions",
    "tool",
]
