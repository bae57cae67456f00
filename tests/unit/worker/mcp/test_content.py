"""Results of tools, as text."""

import pytest
from dalang_api.contract import TOOL_OUTPUT_MAX_BYTES, ToolOutcome
from dalang_worker.mcp.content import failed, make_outcome
from mcp_types import CallToolResult, EmbeddedResource, ImageContent, TextContent, TextResourceContents


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        pytest.param(CallToolResult(content=[]), ToolOutcome(output=""), id="nothing"),
        pytest.param(
            CallToolResult(content=[TextContent(text="a"), TextContent(text="b")]),
            ToolOutcome(output="a\nb"),
            id="texts are lines",
        ),
        pytest.param(
            CallToolResult(content=[TextContent(text='{"a":1}')], structured_content={"a": 1}),
            ToolOutcome(output='{"a":1}'),
            id="an object that the text repeats",
        ),
        pytest.param(
            CallToolResult(content=[], structured_content={"ü": [None, True]}),
            ToolOutcome(output='{"ü":[null,true]}'),
            id="an object alone",
        ),
        pytest.param(
            CallToolResult(content=[TextContent(text="")], structured_content={}),
            ToolOutcome(output="{}\n"),
            id="an empty text says nothing",
        ),
        pytest.param(
            CallToolResult(content=[TextContent(text="no")], is_error=True),
            ToolOutcome(output="no", is_error=True),
            id="an error",
        ),
        pytest.param(
            CallToolResult(content=[ImageContent(data="", mime_type="image/png")]),
            ToolOutcome(output="[image image/png, 0 bytes: not shown]"),
            id="an empty image",
        ),
        pytest.param(
            CallToolResult(
                content=[EmbeddedResource(resource=TextResourceContents(uri="a:b", text="the key is hunter22"))]
            ),
            ToolOutcome(output="the key is [secret]"),
            id="a secret that comes back",
        ),
    ],
)
def test_outcome(result: CallToolResult, outcome: ToolOutcome) -> None:
    assert make_outcome(result, lambda text: text.replace("hunter22", "[secret]")) == outcome


def test_errors_are_cut_too() -> None:
    assert len(failed("x" * 50_000).output.encode()) <= TOOL_OUTPUT_MAX_BYTES
