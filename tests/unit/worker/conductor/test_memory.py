"""What a session remembers: which messages it gives up for a summary, and what a failed run leaves."""

from decimal import Decimal

import pytest
from dalang_api import contract
from dalang_api.contract import (
    Message,
    SessionInput,
    SessionSettings,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from dalang_worker.conductor.budget import Budget
from dalang_worker.conductor.memory import Memory, state_of, summary_message, too_many
from dalang_worker.conductor.thread import Thread

KIB = 1024


def message(letter: str, size: int = 1) -> Message:
    """Of the letters: u user, a answer, c tool calls, r their results, d what the run itself tells, s a summary."""
    match letter:
        case "u":
            return Message(role="user", parts=[TextPart(text="x" * size)])
        case "a":
            return Message(role="assistant", parts=[TextPart(text="x" * size)], sender="support")
        case "c":
            call = ToolCallPart(call_id="1", tool="look", arguments="{}")
            return Message(role="assistant", parts=[call], sender="support")
        case "r":
            result = ToolResultPart(call_id="1", tool="look", output="x" * size)
            return Message(role="tool", parts=[result], sender="support")
        case "d":
            return Message(role="user", parts=[TextPart(text="again")], sender="dalang")
    return summary_message("x" * size)


def thread(letters: str, size: int = 1) -> Thread:
    return Thread("s1", [message(letter, size) for letter in letters])


@pytest.mark.parametrize(
    ("letters", "size", "history_size", "given_up"),
    [
        pytest.param("", 1, 4, 0, id="nothing was said"),
        pytest.param("uaua", 1, 4, 0, id="as many as may be"),
        pytest.param("uauaua", 1, 4, 4, id="one more: half is kept"),
        pytest.param("uauauauaua", 1, 8, 6, id="half of eight"),
        pytest.param("uaucrcrauaua", 1, 8, 8, id="never begins with a call or its result"),
        pytest.param("uaucrcrcra", 1, 8, 2, id="the last run alone is more than half: it is kept whole"),
        pytest.param("ucrcrcra", 1, 4, 8, id="one run, more than may be kept by number: nothing of it is kept"),
        pytest.param("sucrcrcra", 1, 4, 0, id="a summary and one run: nothing to give up"),
        pytest.param("uaudaua", 1, 5, 5, id="what the run itself tells is no beginning"),
        pytest.param("suauaua", 1, 6, 5, id="an earlier summary goes into the next"),
        pytest.param("ua" * 9, 32 * KIB, 100, 12, id="too many bytes"),
        pytest.param("uau" + "r" * 20, 32 * KIB, 100, 23, id="a run of more bytes than may be kept"),
        pytest.param("uau" + "r" * 12, 32 * KIB, 10, 2, id="a run of more than half the bytes"),
    ],
)
def test_what_is_given_up(letters: str, size: int, history_size: int, given_up: int) -> None:
    assert too_many(thread(letters, size), SessionSettings(history_size=history_size)) == given_up


@pytest.mark.parametrize("history_size", range(4, 40, 5))
def test_what_is_kept_is_short_enough_for_runs_to_come(history_size: int) -> None:
    """However many short runs there were, what is kept is at most half, and begins with the user's words."""
    for runs in range(1, 60):
        said = thread("ua" * runs)
        given_up = too_many(said, SessionSettings(history_size=history_size))
        if 2 * runs <= history_size:
            assert given_up == 0
        else:
            kept = said.messages[given_up:]
            assert 0 < len(kept) <= max(2, history_size // 2)
            assert kept[0].role == "user"


def memory() -> Memory:
    made = Memory.of(SessionInput(agent="support", settings=SessionSettings(), context={"plan": "gold"}))
    for letter in "uaua":
        made.thread.append(message(letter))
    return made


def test_a_failed_run_is_given_up_in_a_thread_anew() -> None:
    made = memory()
    found = made.checkpoint()
    made.context = {}
    for letter in "ua":
        made.thread.append(message(letter))
    made.shorten(2, "They met.")
    said = made.thread
    made.restore(found)
    assert (len(made.thread.messages), len(said.messages)) == (4, 5)
    assert (made.summary, made.context) == (None, {"plan": "gold"})
    assert made.thread.name != said.name
    assert made.thread.digest(4) == found.thread.digest(4)


def test_a_run_that_said_nothing_leaves_the_thread() -> None:
    made = memory()
    said = made.thread
    made.restore(made.checkpoint())
    assert made.thread is said


def test_a_summary_stands_before_what_is_kept() -> None:
    made = memory()
    made.shorten(2, "They met.")
    assert [each.text() for each in made.thread.messages] == [f"{contract.SUMMARY_HEADING}\nThey met.", "x", "x"]
    assert (made.summary, made.thread.messages[0].sender) == ("They met.", "dalang")
    made.shorten(3, None)
    assert made.thread.messages == []


def test_what_is_carried_comes_back() -> None:
    made = memory()
    made.shorten(2, "They met.")
    made.summary_problem = "no answer"
    made.budget.add(
        Budget(contract.LimitSettings(), input_tokens=7, output_tokens=3, cost_usd=Decimal("0.002"), is_priced=False)
    )
    state = state_of(made, started_at="2026-01-01T00:00:00Z", seq=4, queue=[], snapshots={}, seen=["one"], runs=2)
    settings = SessionSettings()
    carried = SessionInput(agent="sales", settings=settings, context=made.context, state=state)
    back = Memory.of(SessionInput.model_validate_json(carried.model_dump_json(exclude_none=True)))
    assert (back.agent, back.context, back.summary) == ("sales", {"plan": "gold"}, "They met.")
    assert back.summary_problem == "no answer"
    assert (back.budget.tokens(), back.budget.cost_usd, back.budget.is_priced) == (10, Decimal("0.002"), False)
    assert back.thread.messages == made.thread.messages
    assert back.thread.name not in {"s1", made.thread.name}
