"""What authors of tools import: `from dalang import tool`. Small and stable; everything else is Dalang's own."""

from dalang.tools import ToolFunction, tool

__all__ = ["ToolFunction", "tool"]
