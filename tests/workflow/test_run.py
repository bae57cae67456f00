"""A run's ordinary course: an answer, tools, what the model is told when it asks for something impossible, the limits."""

from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract

if TYPE_CHECKING:
    from tests.workflow.conftest import World

Json = dict[str, Any]

CUT = "\n… [cut: 5000000 bytes in all]"


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


async def test_a_run_answers_with_one_model_call_and_one_report(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "It is on its way.", "usage": {"prompt_tokens": 31, "completion_tokens": 7}})
        ended = await run.end()

    info = await run.handle.describe()
    assert ended.outcome == "Succeeded"
    assert ended.report.model_dump(exclude={"started_at", "finished_at"}) == {
        "seq": 1,
        "run_id": info.run_id,
        "task_queue": f"{world.installation}.shop.default",
        "phase": "Succeeded",
        "reason": "Answered",
        "message": "support answered after 1 turn",
        "agent": "support",
        "agents": [{"name": "support", "uid": "support-uid", "generation": 2, "pool": "default"}],
        "output": "It is on its way.",
        "output_truncated": None,
        "messages": [
            {"role": "User", "content": "Where is order 42?", "sender": None},
            {"role": "Assistant", "content": "It is on its way.", "sender": "support"},
        ],
        "turns": 1,
        "input_tokens": 31,
        "output_tokens": 7,
        "cost_usd": None,
        "structured_output": None,
        "context": None,
        "retrieval_failure": None,
        "tools_failure": None,
        "pending_approvals": None,
        "ended_approvals": None,
        "run": None,
        "session": None,
    }
    assert run.reports == [ended.report]
    assert await run.conversations() == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is order 42?"}]
    ]


async def test_tools_sync_and_async_run_and_their_results_are_sent_in_the_order_of_the_calls(world: "World") -> None:
    slow = world.path / "slow"
    async with world.serving():
        run = await world.start(
            calls(
                ("wait_for", {"file": str(slow), "started": str(world.path / "started")}),
                ("weather", {"city": "Ubud"}),
                ("note", {"file": str(slow), "line": "the quick one is done"}),
            ),
            calls(("time_of", {"city": "Ubud"})),
            {"text": "Sunny at {{last_tool}}"},
            tools=["wait_for", "weather", "note", "time_of"],
        )
        ended = await run.end()

    time = '{"city":"Ubud","time":"12:00"}'
    assert (ended.outcome, ended.report.output, ended.report.turns) == ("Succeeded", f"Sunny at {time}", 3)
    *_, (_, _, assistant, *results, second, told) = await run.conversations()
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_1_0", "call_1_1", "call_1_2"]
    assert [(result["role"], result["tool_call_id"], result["content"]) for result in results] == [
        ("tool", "call_1_0", "waited"),
        ("tool", "call_1_1", "sunny in Ubud"),
        ("tool", "call_1_2", "noted the quick one is done"),
    ]
    assert [call["function"]["name"] for call in second["tool_calls"]] == ["time_of"]
    assert told == {"role": "tool", "tool_call_id": "call_2_0", "content": time}


async def test_the_model_is_sent_the_schema_of_its_tools(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "hi"}, tools=["weather"])
        await run.end()
    (request,) = await run.asked()
    assert request["body"]["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tell the weather.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "title": "City", "description": "The city to tell it of."}
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
    ]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        pytest.param(
            ("wether", {"city": "Ubud"}),
            "There is no tool 'wether'. The tools are: fail, leave, rubbish, say, weather.",
            id="an unknown tool",
        ),
        pytest.param(
            ("weather", '{"city": "Ubud'),
            "The arguments do not fit tool weather: arguments: Invalid JSON: EOF while parsing a string at line 1 column 14."
            " Call it again with arguments that match its schema.",
            id="arguments that are no JSON",
        ),
        pytest.param(
            ("weather", {"town": "Ubud"}),
            "The arguments do not fit tool weather: city: Field required; town: Extra inputs are not permitted."
            " Call it again with arguments that match its schema.",
            id="arguments that do not fit the schema",
        ),
        pytest.param(("fail", {"words": "no such order"}), "LookupError: no such order", id="what a tool raised"),
        pytest.param(("leave", {}), "SystemExit: 3", id="that a tool wanted to leave"),
        pytest.param(
            ("say", {"size": 5_000_000}),
            "x" * (contract.TOOL_OUTPUT_MAX_BYTES - len(CUT.encode())) + CUT,
            id="the beginning of 5 MB",
        ),
        pytest.param(
            ("rubbish", {"size": 4}),
            "[not UTF-8: what cannot be read is shown as \N{REPLACEMENT CHARACTER}]\n"
            + "\N{REPLACEMENT CHARACTER}" * 4,
            id="that the output is no UTF-8",
        ),
    ],
)
async def test_the_model_is_told(world: "World", call: tuple[str, Any], told: str) -> None:
    async with world.serving():
        run = await world.start(calls(call), {"text": "I see."}, tools=["weather", "fail", "leave", "say", "rubbish"])
        ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "I see.")
    *_, conversation = await run.conversations()
    assert conversation[-1] == {"role": "tool", "tool_call_id": "call_1_0", "content": told}


async def test_of_too_many_calls_the_first_are_run_and_the_model_is_told_of_the_others(world: "World") -> None:
    notes = world.path / "notes"
    async with world.serving():
        wanted = [("note", {"file": str(notes), "line": str(number)}) for number in range(100)]
        run = await world.start(calls(*wanted), {"text": "I see."}, tools=["note"])
        await run.end()
    *_, (_, _, _, *results) = await run.conversations()
    assert sorted(map(int, notes.read_text().split())) == list(range(contract.TURN_MAX_CALLS))
    assert [result["content"] for result in results] == [
        *(f"noted {number}" for number in range(contract.TURN_MAX_CALLS)),
        "Not run: 100 calls in one turn, of which the first 32 were run. Ask again for the rest.",
    ]


async def test_the_limit_of_turns_ends_a_run(world: "World") -> None:
    async with world.serving():
        again = calls(("weather", {"city": "Ubud"}))
        run = await world.start(again, loop=True, tools=["weather"], max_turns=3)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.turns) == ("Failed", "MaxTurns", 3)
    assert ended.report.message == (
        "No answer after limits.maxTurns = 3 model calls; raise the limit or narrow the task"
    )
    assert len(await run.asked()) == 3


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        pytest.param({"text": "Once upon a", "finishReason": "length"}, "OutputTruncated", id="its output limit"),
        pytest.param({"text": "Once", "finishReason": "content_filter"}, "ContentFilter", id="a content filter"),
        pytest.param(
            {**calls(("weather", {"city": "Ubud"})), "text": "Let me see", "finishReason": "length"},
            "OutputTruncated",
            id="its output limit, in the middle of a tool call",
        ),
    ],
)
async def test_a_model_that_stopped_for_good_fails_the_run_and_what_it_said_is_kept(
    world: "World", response: Json, reason: str
) -> None:
    async with world.serving():
        run = await world.start(response, tools=["weather"])
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.output) == ("Failed", reason, None)
    assert ended.report.messages[-1].content == response["text"]
    assert len(await run.asked()) == 1


async def test_a_long_answer_is_cut_in_the_status(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "ü" * 9000})
        ended = await run.end()
    assert (ended.report.output, ended.report.output_truncated) == ("ü" * (contract.OUTPUT_MAX_BYTES // 2), True)
