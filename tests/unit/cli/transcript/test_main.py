"""What a transcript tells where there is no history to read."""

from typing import Any

import pytest
from dalang_api.v1alpha1 import AgentRun
from dalang_cli.transcript.entries import Kind
from dalang_cli.transcript.main import Subject, status_entries


def test_a_run_that_was_refused_says_how_it_ended() -> None:
    conditions = [{"type": "Succeeded", "reason": "SessionClosed", "message": "AgentSession ada is closed"}]
    status = {"phase": "Failed", "finishedAt": "2026-11-20T12:00:00Z", "conditions": conditions}
    spec = {"sessionRef": {"name": "ada"}, "input": "Are you still there?"}
    run = {"metadata": {"name": "ada-5", "uid": "1"}, "spec": spec, "status": status}
    asked, end = status_entries(Subject(AgentRun, run))
    assert (asked.kind, asked.text) == (Kind.USER, "Are you still there?")
    assert (end.kind, end.text, end.is_error) == (
        Kind.END,
        "Failed, SessionClosed: AgentSession ada is closed",
        True,
    )


@pytest.mark.parametrize(
    ("usage", "figures"),
    [
        ({"inputTokens": 20, "outputTokens": 10, "totalTokens": 30, "costUSD": "0.002"}, " (30 tokens, $0.002)"),
        ({"inputTokens": 20, "outputTokens": 10, "totalTokens": 30}, " (30 tokens)"),
        (None, ""),
    ],
)
def test_a_run_that_ended_says_what_it_used(usage: dict[str, Any] | None, figures: str) -> None:
    """As its end in the history does."""
    conditions = [{"type": "Succeeded", "reason": "Answered", "message": "desk answered after 1 turn"}]
    status = {"phase": "Succeeded", "finishedAt": "2026-11-20T12:00:00Z", "conditions": conditions, "usage": usage}
    run = {"metadata": {"name": "ada-5", "uid": "1"}, "spec": {"input": "Hello"}, "status": status}
    *_, end = status_entries(Subject(AgentRun, run))
    assert end.text == f"Succeeded, Answered: desk answered after 1 turn{figures}"
