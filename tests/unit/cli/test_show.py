"""What a human sees: all of it, and nothing that plays tricks on the terminal."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from dalang_api.canonical import canonical
from dalang_cli.approvals import show
from rich.console import Console

NOW = datetime(2026, 1, 2, 3, 9, 5, tzinfo=UTC)


UNPROVEN = {
    "state": "Pending",
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "PolicyMissing", "message": "It is missing"},
        {"type": "Proven", "status": "False", "reason": "PolicyMissing", "message": "It is missing"},
    ],
}
AWAY = {
    "state": "Pending",
    "conditions": [{"type": "Ready", "status": "False", "reason": "Pending", "message": "Temporal is away"}],
}


def approval(*, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    request = {
        "subject": "ToolCall",
        "runRef": {"name": "refund"},
        "agent": "support",
        "tool": "refund",
        "question": "Pay it back?",
        "arguments": '{"amount":120,"order":"A-7"}',
        "requestedAt": "2026-01-02T03:04:05Z",
    }
    metadata = {"name": "x", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z"}
    return {
        "metadata": metadata,
        "spec": {name: value for name, value in {**request, **spec}.items() if value is not None},
        "status": status,
    }


def test_a_request_with_changes() -> None:
    asked = approval(expiresAt="2026-01-02T06:09:06Z")
    changed = {"amount": {"value": 12}, "order": "A-7"}
    assert show.request(asked, NOW, changed, "Known\ncustomer").plain == (
        "AgentApproval shop/x\n"
        "Run           refund\n"
        "Agent         support\n"
        "Tool          refund\n"
        "Question      Pay it back?\n"
        "Asked         2026-01-02T03:04:05Z (5m ago)\n"
        "Expires       2026-01-02T06:09:06Z (in 3h)\n"
        "Arguments\n"
        "  {\n"
        '    "amount": 120,\n'
        '    "order": "A-7"\n'
        "  }\n"
        "Changes\n"
        "  - amount: 120\n"
        "  + amount: {\n"
        '  +   "value": 12\n'
        "  + }\n"
        "Reason\n"
        "  Known\n"
        "  customer"
    )


def test_an_answer_that_is_text() -> None:
    asked = approval(subject="Output", tool=None, arguments=canonical("Dear customer,\n\nyes.\x1b[2J\nTool  none"))
    shown = show.request(asked, NOW).plain
    assert shown.endswith("Answer\n  | Dear customer,\n  | \n  | yes.\\u001b[2J\n  | Tool  none")
    assert "\nTool" not in shown


@pytest.mark.parametrize(
    "arguments",
    ['{"a": 1}', '{"a":1,"a":2}', "no JSON", '{"a":NaN}', '{"a":9007199254740993}', '{"a":1.0}', "[" * 65536],
)
def test_what_is_not_canonical_is_shown_as_it_stands(arguments: str) -> None:
    assert show.arguments_lines(arguments) == [arguments]


def test_nothing_is_cut_or_wrapped() -> None:
    """64 KiB, markup and narrow terminals included."""
    long = {"bold": "[bold]not markup[/bold] :pizza: ", "line": "x y " * 15_000, "list": list(range(500))}
    out = io.StringIO()
    Console(file=out, width=40, highlight=False, markup=False, emoji=False).print(
        show.request(approval(arguments=canonical(long)), NOW), soft_wrap=True
    )
    assert json.loads(out.getvalue().partition("Arguments\n")[2]) == long
    assert json.dumps(long["line"]) in out.getvalue()


def test_the_table() -> None:
    table = show.Table(with_namespace=True, with_state=True)
    open_one = approval(expiresAt="2026-01-02T03:10:05Z")
    decided = approval(decision="Approve", decidedBy="ada", tool=None, status={"state": "Applied", "decidedBy": "ada"})
    assert [line.plain for line in table.lines([open_one, decided], NOW)] == [
        "NAMESPACE  NAME  RUN     AGENT    TOOL      STATE            BY   EXPIRES  AGE  QUESTION",
        "shop       x     refund  support  refund    Pending          -    in 60s   5m   Pay it back?",
        "shop       x     refund  support  (answer)  Applied,Approve  ada  never    5m   Pay it back?",
    ]
    assert [line.plain for line in table.lines([open_one], NOW)] == [
        "shop       x     refund  support  refund    Pending          -    in 60s   5m   Pay it back?",
    ]
    assert "red" in [span.style for span in next(iter(table.lines([open_one], NOW))).spans]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        pytest.param(approval(), "-", id="nobody"),
        pytest.param(approval(decidedBy="bob"), "bob (not yet proven)", id="claimed, and nobody has looked"),
        pytest.param(
            approval(decidedBy="bob", status=UNPROVEN), "bob (not proven)", id="claimed, and nothing proves it"
        ),
        pytest.param(approval(decidedBy="bob", status={"state": "Applied"}), "bob (not proven)", id="an unproven veto"),
        pytest.param(approval(decidedBy="ada", status={"decidedBy": "ada"}), "ada", id="as the run was told"),
        pytest.param(approval(decidedBy="bob", status={"decidedBy": "ada"}), "ada", id="which is what counts"),
    ],
)
def test_who_decided(asked: dict[str, Any], words: str) -> None:
    assert show.by(asked) == words


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        pytest.param(approval(decision="Approve", status=UNPROVEN), "PolicyMissing. It is missing", id="no policy"),
        pytest.param(approval(decision="Approve", status=AWAY), None, id="tried again by itself"),
        pytest.param(approval(decision="Approve"), None, id="nobody has looked yet"),
        pytest.param(approval(status=UNPROVEN), None, id="undecided"),
        pytest.param(
            approval(decision="Reject", status={**UNPROVEN, "state": "Delivered"}), None, id="delivered all the same"
        ),
    ],
)
def test_why_a_decision_is_held_back(asked: dict[str, Any], why: str | None) -> None:
    assert show.held_back(asked) == why
    _, line = show.Table(with_namespace=False, with_state=False).lines([asked], NOW)
    assert line.plain.endswith(f"  Approve is not delivered: {why}" if why else "  Pay it back?")


@pytest.mark.parametrize(
    ("tool", "target", "in_full", "in_the_list"),
    [
        ("refund", None, "refund", "refund"),
        ("refund", {"kind": "Function", "name": "refund"}, "refund (function refund)", "refund"),
        ("greet", {"kind": "Function", "name": "pay"}, "greet (function pay)", "greet (function pay)"),
        ("read", {"kind": "MCP", "name": "read", "server": "files"}, "read (read of MCP server files)", "read"),
        (
            "transfer_to_sales",
            {"kind": "Handoff", "name": "sales"},
            "transfer_to_sales (hand-off to sales)",
            "transfer_to_sales (hand-off to sales)",
        ),
        ("a", {"kind": "Agent", "name": "b\x1b[2J"}, "a (agent b\\u001b[2J)", "a (agent b\\u001b[2J)"),
    ],
)
def test_what_is_behind_a_tool(tool: str, target: dict[str, str] | None, in_full: str, in_the_list: str) -> None:
    asked = approval(tool=tool, target=target, question="Q")
    assert f"\nTool          {in_full}\n" in show.request(asked, NOW).plain
    _, line = show.Table(with_namespace=False, with_state=False).lines([asked], NOW)
    assert f" support  {in_the_list}  " in line.plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (119.9, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_799, "47h"), (172_800, "2d")],
)
def test_durations(seconds: float, words: str) -> None:
    assert show.duration(seconds) == words
