"""Reports: the whole state of a run, cut to what fits a status."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    AgentVersion,
    Message,
    RecentMessage,
    RunInput,
    RunReport,
    Snapshot,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from dalang_worker.conductor.report import make_report, recent_messages, timestamp
from dalang_worker.conductor.state import Answer, RunState
from dalang_worker.conductor.thread import Thread

STARTED = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
LIMIT = contract.RECENT_MESSAGE_MAX_BYTES


def user(text: str) -> Message:
    return Message(role="user", parts=[TextPart(text=text)])


def assistant(*parts: contract.Part) -> Message:
    return Message(role="assistant", parts=list(parts), sender="support")


def call(arguments: str = "{}") -> ToolCallPart:
    return ToolCallPart(call_id="call_1_0", tool="weather", arguments=arguments)


def results(*outputs: str) -> Message:
    return Message(
        role="tool", parts=[ToolResultPart(call_id="call_1_0", tool="weather", output=output) for output in outputs]
    )


def state(*messages: Message) -> RunState:
    agent = AgentSnapshot(name="support", uid="u1", generation=3, queue="i.shop.default", model="gpt")
    snapshot = Snapshot(agents=[agent], models=[])
    made = RunState(
        RunInput(agent="support", messages=list(messages), max_turns=9, timeout_seconds=60, snapshot=snapshot)
    )
    made.budget.turns, made.budget.input_tokens, made.budget.output_tokens = 2, 30, 40
    made.budget.is_priced = False
    return made


def report(
    run: RunState, answer: Answer | str | None = None, finished_at: datetime | None = None, text: str = ""
) -> RunReport:
    return make_report(
        run,
        seq=7,
        run_id="r1",
        task_queue="i.shop.default",
        phase="Running" if finished_at is None else "Succeeded",
        reason="Running",
        message=text,
        started_at=STARTED,
        finished_at=finished_at,
        answer=Answer(answer) if isinstance(answer, str) else answer,
    )


def test_a_report_of_a_running_run() -> None:
    assert report(state(user("hello")), text="Turn 2") == RunReport(
        seq=7,
        run_id="r1",
        task_queue="i.shop.default",
        phase="Running",
        reason="Running",
        message="Turn 2",
        agent="support",
        agents=[AgentVersion(name="support", uid="u1", generation=3, pool="default")],
        started_at="2026-03-01T12:00:00Z",
        messages=[RecentMessage(role="User", content="hello")],
        turns=2,
        input_tokens=30,
        output_tokens=40,
    )


@pytest.mark.parametrize(
    ("output", "told", "truncated"),
    [
        pytest.param("done", "done", None, id="short"),
        pytest.param("", "", None, id="empty"),
        pytest.param("x" * contract.OUTPUT_MAX_BYTES, "x" * contract.OUTPUT_MAX_BYTES, None, id="just fitting"),
        pytest.param("ü" * 9000, "ü" * (contract.OUTPUT_MAX_BYTES // 2), True, id="too long"),
    ],
)
def test_a_report_of_a_finished_run_has_its_output(output: str, told: str, truncated: bool | None) -> None:
    made = report(state(), output, finished_at=STARTED + timedelta(seconds=5))
    assert (made.output, made.output_truncated, made.finished_at) == (told, truncated, "2026-03-01T12:00:05Z")


def test_a_report_has_what_the_calls_cost_where_every_price_is_known() -> None:
    run = state()
    run.budget.cost_usd, run.budget.is_priced = Decimal("0.0000125"), True
    assert report(run).cost_usd == "0.0000125"
    run.budget.is_priced = False
    assert report(run).cost_usd is None


def test_a_report_has_no_cost_before_a_call_was_counted() -> None:
    """Whether the price of the one that is under way is known, its reply tells."""
    run = state()
    run.budget.turns, run.budget.input_tokens, run.budget.output_tokens, run.budget.is_priced = 1, 0, 0, True
    assert report(run).cost_usd is None


def test_a_report_has_the_context_variables_as_manifests_write_them() -> None:
    run = state()
    run.main.context = {"name": "Ada", "order": "42", "count": 3, "items": ["a"]}
    assert report(run).context == {"name": "Ada", "order": '"42"', "count": "3", "items": '["a"]'}


@pytest.mark.parametrize(
    ("structured", "told"),
    [
        pytest.param({"city": "Ubud"}, {"city": "Ubud"}, id="small"),
        pytest.param({"city": "x" * contract.STRUCTURED_OUTPUT_MAX_BYTES}, None, id="too large for a status"),
    ],
)
def test_a_report_has_the_answer_as_an_object(structured: dict[str, str], told: dict[str, str] | None) -> None:
    assert report(state(), Answer("{}", structured), finished_at=STARTED).structured_output == told


def test_a_report_says_what_the_model_had_to_do_without() -> None:
    run = state()
    run.retrieval_failures = {"support": "refused"}
    run.tools_failures = {"support": "no tool", "archive": "refused"}
    made = report(run)
    assert made.retrieval_failure == "Agent support: refused"
    assert made.tools_failure == "Agent support: no tool; Agent archive: refused"


def test_a_long_message_is_cut() -> None:
    assert report(state(), text="x" * 5000).message == "x" * 1024


def test_a_report_before_the_first_turn_has_no_messages() -> None:
    run = state()
    assert report(run).messages == []


def test_times_are_told_in_utc() -> None:
    assert timestamp(datetime(2026, 3, 1, 14, 0, 0, tzinfo=timezone(timedelta(hours=2)))) == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param(user("hello"), [("User", "hello", None)], id="the user's words"),
        pytest.param(assistant(TextPart(text="hi")), [("Assistant", "hi", "support")], id="the agent's words"),
        pytest.param(
            assistant(TextPart(text="Let me see."), call('{"city":"Ubud"}'), call("oops")),
            [("Assistant", 'Let me see.\n→ weather({"city":"Ubud"})\n→ weather(oops)', "support")],
            id="words and calls",
        ),
        pytest.param(assistant(call()), [("Assistant", "→ weather({})", "support")], id="a call alone"),
        pytest.param(assistant(TextPart(text="")), [("Assistant", "", "support")], id="nothing at all"),
        pytest.param(
            results("sunny", "rain"),
            [("Tool", "sunny", "weather"), ("Tool", "rain", "weather")],
            id="an entry for each result",
        ),
        pytest.param(user("x" * LIMIT), [("User", "x" * LIMIT, None)], id="just fitting"),
        pytest.param(user("x" * (LIMIT + 1)), [("User", "x" * (LIMIT - 3) + "…", None)], id="cut with a mark"),
    ],
)
def test_recent_messages(said: Message, told: list[tuple[str, str, str | None]]) -> None:
    entries = recent_messages(Thread("main", [said]))
    assert [(entry.role, entry.content, entry.sender) for entry in entries] == told


def test_recent_messages_are_the_last_few() -> None:
    said = [user("the first"), *(user(str(number)) for number in range(9)), results("a", "b")]
    entries = recent_messages(Thread("main", said))
    assert [entry.content for entry in entries] == ["5", "6", "7", "8", "a", "b"]
