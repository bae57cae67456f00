"""What an MCP tool returned, as the text the model reads: text as it is, everything else as a line that says what it was."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dalang_api import contract
from dalang_api.contract import ToolOutcome
from pydantic_core import to_json

from dalang_worker.text import cut

if TYPE_CHECKING:
    from mcp_types import CallToolResult, ContentBlock


def make_outcome(result: "CallToolResult", redact: Callable[[str], str]) -> ToolOutcome:
    """Return a tool's result within bounds. An object stands in for text only where there is none: it repeats it."""
    parts = [_text(block) for block in result.content]
    has_text = any(block.type == "text" and block.text for block in result.content)
    if result.structured_content is not None and not has_text:
        parts.insert(0, to_json(result.structured_content).decode())
    return failed(redact("\n".join(parts))) if result.is_error else _said(redact("\n".join(parts)))


def failed(message: str) -> ToolOutcome:
    """Return the outcome that tells the model what went wrong."""
    return ToolOutcome(output=cut(message, contract.TOOL_OUTPUT_MAX_BYTES), is_error=True)


def _said(text: str) -> ToolOutcome:
    return ToolOutcome(output=cut(text, contract.TOOL_OUTPUT_MAX_BYTES))


def _text(block: "ContentBlock") -> str:
    match block.type:
        case "text":
            return block.text
        case "image" | "audio":
            return f"[{block.type} {block.mime_type}, {_size(block.data)} bytes: not shown]"
        case "resource_link":
            kind = f", {block.mime_type}" if block.mime_type else ""
            return f"[resource {block.uri} ({block.title or block.name}{kind}): not read]"
        case "resource":
            resource = block.resource
            if hasattr(resource, "text"):
                return resource.text
            return f"[resource {resource.uri} {resource.mime_type or ''}, {_size(resource.blob)} bytes: not shown]"


def _size(base64: str) -> int:
    """Return how many bytes a base64 text stands for."""
    return len(base64) * 3 // 4 - base64[-2:].count("=")
