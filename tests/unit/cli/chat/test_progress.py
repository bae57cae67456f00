"""What is new in a run between two looks."""

from typing import Any

import pytest
from dalang_cli.chat.progress import Line, Progress, Shown, added, own_messages

Json = dict[str, Any]
AT = "2026-01-02T03:04:06Z"


def said(role: str, content: str, sender: str = "") -> Json:
    return {"role": role, "content": content, **({"sender": sender} if sender else {})}


ASKED = said("User", "Where is it?")
CALL = said("Assistant", "→ track({})", "support")
RESULT = said("Tool", "in Ubud", "track")
ANSWER = said("Assistant", "In Ubud.", "support")
CORRECTION = said("User", "Answer again.", "dalang")


def run(phase: str = "Running", reason: str = "Running", text: str = "", seq: int = 1, **status: Any) -> Json:
    outcome = {"Succeeded": "True", "Failed": "False"}.get(phase, "Unknown")
    condition = {"type": "Succeeded", "status": outcome, "reason": reason, "message": text}
    ended = {"finishedAt": AT} if outcome != "Unknown" else {}
    whole = {
        "phase": phase,
        "observedGeneration": 1,
        "conditions": [condition],
        "workflow": {"reportSeq": seq},
        "turns": 1,
    }
    return {"status": {"agent": "support", **whole, **ended, **status}}


@pytest.mark.parametrize(
    ("messages", "own"),
    [
        pytest.param([], [], id="none yet"),
        pytest.param([said("User", "Hi"), said("Assistant", "Hello", "support"), ASKED], [], id="only asked"),
        pytest.param([said("User", "Hi"), ASKED, CALL], [CALL], id="after the last thing the user said"),
        pytest.param(
            [ASKED, ANSWER, CORRECTION], [ANSWER, CORRECTION], id="what Dalang tells the model is the run's own"
        ),
        pytest.param([CALL, RESULT], [CALL, RESULT], id="what was asked is no longer among the last"),
    ],
)
def test_own_messages(messages: list[Json], own: list[Json]) -> None:
    assert own_messages(run(messages=messages)) == own


def test_what_was_said_before_the_first_turn_is_not_its_own() -> None:
    """A run that was queued reports that it begins: its input does not stand among the messages then."""
    begins = run(messages=[said("User", "Hi"), said("Assistant", "Hello", "support")], turns=0)
    assert own_messages(begins) == []


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        pytest.param([], [CALL], [CALL], id="the first"),
        pytest.param([CALL], [CALL], [], id="nothing"),
        pytest.param([CALL], [CALL, RESULT], [RESULT], id="one more"),
        pytest.param([CALL, RESULT, CALL], [RESULT, CALL, ANSWER], [ANSWER], id="the oldest have gone"),
        pytest.param([CALL], [RESULT, ANSWER], [RESULT, ANSWER], id="all that was shown has gone"),
        pytest.param([CALL, RESULT], [CALL, RESULT, CALL, RESULT], [CALL, RESULT], id="the same once more"),
    ],
)
def test_added(before: list[Json], now: list[Json], new: list[Json]) -> None:
    assert added(before, now) == new


def test_a_run_from_its_creation_to_its_answer() -> None:
    """Each is shown once, whatever of it is repeated; the answer whole, and not among the messages."""
    progress = Progress("support")
    default = {"status": {"phase": "Pending", "observedGeneration": -1, "conditions": [{"type": "Succeeded"}]}}
    assert progress.update(default) == []
    waits = run("Pending", "AgentNotFound", "There is no Agent support", seq=0, agent=None)
    assert progress.update(waits) == [Line(Shown.WAIT, "AgentNotFound: There is no Agent support")]
    assert progress.update(waits) == []
    assert progress.update(run(messages=[ASKED, CALL])) == [Line(Shown.TOOL, "→ track({})", "support")]
    handed_over = run(messages=[ASKED, CALL, RESULT], agent="sales")
    assert progress.update(handed_over) == [
        Line(Shown.TOOL, "← track: in Ubud"),
        Line(Shown.AGENT, "support → sales"),
    ]
    usage = {"totalTokens": 15, "costUSD": "0.1"}
    ended = run(
        "Succeeded", "Answered", agent="sales", messages=[RESULT, ANSWER], output="In Ubud.", usage=usage, turns=1
    )
    assert progress.update(ended) == [
        Line(Shown.ANSWER, "In Ubud.", "sales"),
        Line(Shown.USAGE, "15 tokens, $0.1, 1 turn"),
    ]
    assert progress.agent == "sales"


def test_with_whom_the_controller_believes_it_begins_is_not_shown() -> None:
    assert Progress("sales").update(run(seq=0, agent="support")) == []


def test_an_answer_that_was_cut() -> None:
    long = said("Assistant", "In Ubud…", "support")
    ended = run("Succeeded", "Answered", messages=[ASKED, long], output="In Ubud and", outputTruncated=True)
    cut = "In Ubud and\n[cut: `dalang transcript` has all of it]"
    assert Progress(None).update(ended) == [Line(Shown.ANSWER, cut, "support")]


def test_a_run_that_fails() -> None:
    assert Progress(None).update(run("Failed", "ModelFailed", "401", messages=[ASKED])) == [
        Line(Shown.FAILED, "ModelFailed: 401")
    ]


def test_a_workflow_whose_code_fails() -> None:
    stalled = run()
    stalled["status"]["conditions"].append(
        {"type": "Stalled", "reason": "WorkflowTaskFailing", "message": "See the log"}
    )
    assert Progress(None).update(stalled) == [Line(Shown.WAIT, "WorkflowTaskFailing: See the log")]
