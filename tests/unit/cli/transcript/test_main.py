"""What a transcript tells where there is no history to read."""

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
