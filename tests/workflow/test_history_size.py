"""A history grows with what was said, not with its square."""

from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import ToolResultPart, TranscriptPage, TranscriptRequest

if TYPE_CHECKING:
    from tests.workflow.conftest import World

Json = dict[str, Any]

ALLOWED_PER_ACTIVITY_BYTES = 2048
ALLOWED_PER_WORD = 1.5


@pytest.mark.parametrize("turns", [10, 40])
async def test_a_history_grows_with_what_was_said(world: "World", turns: int) -> None:
    city = "x" * 1024
    call: Json = {"toolCalls": [{"name": "weather", "arguments": {"city": city}}]}
    async with world.serving():
        run = await world.start(*[call] * (turns - 1), {"text": city}, tools=["weather"], max_turns=turns)
        ended = await run.end()
        whole = TranscriptRequest(thread="main", start=0, count=1000)
        page = await run.handle.query(contract.TRANSCRIPT_QUERY, whole, result_type=TranscriptPage)
    info = (await run.handle.describe()).raw_description.workflow_execution_info
    activities = len(await run.attempts("model")) + len(await run.attempts("tool")) + len(run.reports)
    said = 0
    for message in page.messages:
        said += len(message.text())
        said += sum(len(call.arguments) for call in message.tool_calls())
        said += sum(len(part.output) for part in message.parts if isinstance(part, ToolResultPart))
    allowed = ALLOWED_PER_WORD * said + ALLOWED_PER_ACTIVITY_BYTES * activities
    print(  # noqa: T201
        f"{turns} turns: {info.history_length} events, {info.history_size_bytes} bytes of history, {said} bytes said, "
        f"{activities} activities: {info.history_size_bytes / allowed:.2f} of what is allowed"
    )
    assert (ended.outcome, ended.report.turns, activities) == ("Succeeded", turns, 2 * turns)
    assert info.history_size_bytes <= allowed
