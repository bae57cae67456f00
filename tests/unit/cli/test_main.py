"""The command line: which words it takes, and how it ends. What it does is in tests/cluster/test_approval_commands.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from dalang_cli import main as dalang
from dalang_cli.approvals import main
from dalang_cli.cluster import ClusterError

ASKED: dict[str, Any] = {
    "metadata": {"name": "x", "namespace": "shop", "uid": "1"},
    "spec": {
        "subject": "ToolCall",
        "runRef": {"name": "refund"},
        "agent": "support",
        "tool": "refund",
        "question": "Pay it back?",
        "arguments": '{"amount":120}',
        "requestedAt": "2026-01-02T03:04:05Z",
    },
}
DECIDED = {**ASKED, "spec": {**ASKED["spec"], "decision": "Reject", "decidedBy": "bob"}}


class FakeCluster:
    """Somebody else may decide, or the server refuse, while the caller does."""

    namespace = "shop"

    def __init__(
        self, refusal: ClusterError | None = None, then: dict[str, Any] | ClusterError = ASKED, user: str | None = "ada"
    ) -> None:
        self.refusal = refusal
        self.found: list[dict[str, Any] | ClusterError] = [ASKED, then]
        self.user = user
        self.written: list[dict[str, Any]] = []

    def get(self, name: str) -> dict[str, Any]:
        found = self.found.pop(0)
        if isinstance(found, ClusterError):
            raise found
        return found

    def who_am_i(self) -> str | None:
        return self.user

    def decide(self, asked: dict[str, Any], decision: dict[str, Any]) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        self.written.append(decision)
        return {**asked, "spec": {**asked["spec"], **decision}}

    def close(self) -> None:
        pass


def use(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(main, "Cluster", lambda *_: cluster)
    return cluster


@pytest.mark.parametrize(
    ("argv", "written"),
    [
        (["approve", "x"], {"decision": "Approve", "decidedBy": "ada"}),
        (["approve", "x", "--reason", "ok"], {"decision": "Approve", "reason": "ok", "decidedBy": "ada"}),
        (["approve", "x", "--set", "amount=1"], {"decision": "Approve", "override": {"amount": 1}, "decidedBy": "ada"}),
        (["reject", "x", "--reason", "no"], {"decision": "Reject", "reason": "no", "decidedBy": "ada"}),
    ],
)
def test_what_is_written(argv: list[str], written: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = use(FakeCluster(), monkeypatch)
    assert dalang.main([*argv, "--yes", "--wait", "0"]) == 0
    assert cluster.written == [written]


def test_a_server_that_does_not_say_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = use(FakeCluster(user=None), monkeypatch)
    assert dalang.main(["approve", "x", "--yes", "--wait", "0"]) == 0
    assert cluster.written == [{"decision": "Approve"}]


@pytest.mark.parametrize(
    ("refusal", "then", "code", "complaint"),
    [
        pytest.param(ClusterError(422, "denied: eve needs …"), ASKED, 1, "denied: eve needs …", id="refused"),
        pytest.param(
            ClusterError(422, "final"), DECIDED, 3, "decided already: Reject by bob", id="somebody was faster"
        ),
        pytest.param(
            ClusterError(422, "test failed"),
            {**ASKED, "metadata": {**ASKED["metadata"], "uid": "2"}},
            3,
            "asked anew",
            id="another object by now",
        ),
        pytest.param(ClusterError(0, "no answer"), ASKED, 1, "no answer. It may have been decided", id="no answer"),
        pytest.param(
            ClusterError(404, "x not found"), ClusterError(404, "x not found"), 2, "x not found", id="deleted"
        ),
    ],
)
def test_refused(
    refusal: ClusterError,
    then: dict[str, Any] | ClusterError,
    code: int,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(FakeCluster(refusal, then), monkeypatch)
    assert dalang.main(["approve", "x", "--yes"]) == code
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["approve"],
        ["reject", "x"],
        ["reject", "x", "--reason", "no", "--set", "a=1"],
        ["approve", "x", "--decision", "Approve"],
        ["approvals", "x"],
        ["approvals", "-o", "yaml"],
        ["chat"],
        ["chat", "x", "y"],
        ["transcript"],
        ["transcript", "x", "-o", "yaml"],
    ],
)
def test_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dalang.main(argv)
    assert ended.value.code == 2


def test_a_set_that_does_not_fit_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = use(FakeCluster(), monkeypatch)
    assert dalang.main(["approve", "x", "--yes", "--set", "amount.x=1"]) == 2
    assert cluster.written == []
    assert capsys.readouterr().err == "error: --set amount.x=1: amount has no members\n"


@pytest.mark.parametrize("command", ["approvals", "approve x", "reject x --reason no", "chat x", "transcript x"])
def test_without_a_kubeconfig(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert dalang.main(command.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: kubeconfig {tmp_path / 'none'}: ")


def test_a_kubeconfig_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").write_text("contexts: [")
    for name in ("none", "broken"):
        assert dalang.main(["approvals", "--kubeconfig", str(tmp_path / name)]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"error: kubeconfig {tmp_path / name}: ")
        assert complaint.count("\n") == 1


def test_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "config").write_text(json.dumps(kubeconfig))
    assert dalang.main(["approvals", "--kubeconfig", str(tmp_path / "config")]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: the API server could not be reached: ")
    assert complaint.count("\n") == 1


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert dalang.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("approvals", "approve", "reject", "chat", "transcript"):
        assert f"\n  {command} " in text
