"""Whether a human is asked, what, and about what exactly: who may ask, how they combine, and that nothing is cut."""

import json
from dataclasses import replace
from typing import Any

import pytest
from dalang import Approval, ToolFunction, tool
from dalang_api.canonical import canonical, digest
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalFloor,
    ApprovalNeeded,
    ApprovalPolicy,
    ApprovalTarget,
    HandoffBinding,
    ToolCall,
)
from dalang_worker.approvals import (
    ARGUMENTS_MAX_BYTES,
    QUESTION_MAX_CHARS,
    CalledTool,
    Circumstances,
    UnshowableError,
    ask_again,
    for_answer,
    for_call,
)
from dalang_worker.mcp import McpTool
from dalang_worker.tools.offer import AgentOffer, HandoffOffer

PAY = CalledTool("pay", "function", "process_payment", {"type": "object"})
AROUND = Circumstances("support", "r1", "shop", {"vip": True})
AGENT = AgentSnapshot(name="support", uid="a", generation=1, queue="i.shop.default", model="gpt")
ARGUMENTS = '{"amount": 120, "currency": "EUR"}'
SHOWN = '{"amount":120,"currency":"EUR"}'


def policy(**more: Any) -> ApprovalPolicy:
    return ApprovalPolicy.model_validate(more)


def floor(*tools: str, **more: Any) -> ApprovalFloor:
    return ApprovalFloor.model_validate({"tools": list(tools), **more})


def needed(**more: Any) -> ApprovalNeeded:
    asked = {
        "question": "Agent support wants to call pay (function process_payment). Approve?",
        "arguments": SHOWN,
        "digest": PAY.digest(SHOWN),
        "target": ApprovalTarget(kind="Function", name="process_payment"),
    }
    return ApprovalNeeded.model_validate({**asked, **more})


def test_nobody_asks() -> None:
    assert for_call(PAY, ARGUMENTS, AROUND) is None


def test_a_policy_without_an_expression_always_asks() -> None:
    assert for_call(PAY, ARGUMENTS, AROUND, [policy()]) == needed()


@pytest.mark.parametrize(
    ("when", "asks"),
    [
        ("args.amount > 100", True),
        ("args.amount > 120.5", False),
        ("context.vip", True),
        ("!context.vip", False),
        ("agent.name == 'support' && run.name == 'r1' && run.namespace == 'shop'", True),
        ("tool.name == 'pay' && tool.kind == 'function' && tool.server == ''", True),
        ("tool.readOnly || !tool.destructive || tool.idempotent", False),
        pytest.param("args.missing > 1", True, id="an expression that fails asks"),
        pytest.param("args.amount", True, id="one that is neither true nor false asks"),
        pytest.param("amount > ", True, id="one that does not compile asks"),
        pytest.param("output == ''", True, id="there is no output"),
    ],
)
def test_an_expression_decides(when: str, asks: bool) -> None:
    assert for_call(PAY, ARGUMENTS, AROUND, [policy(when=when)]) == (needed() if asks else None)


@pytest.mark.parametrize("when", ["has(context.flagged)", "!context.vip", "context == {}"])
def test_context_variables_that_are_not_known_ask(when: str) -> None:
    unknown = replace(AROUND, context=None)
    assert for_call(PAY, ARGUMENTS, unknown, [policy(when=when)]) == needed()
    assert for_call(PAY, ARGUMENTS, unknown, [policy(when=f"args.amount > 200 && {when}")]) is None


@pytest.mark.parametrize(
    ("pattern", "asks"),
    [
        ("pay", True),
        ("p*", True),
        ("pa?", True),
        ("*", True),
        ("process_*", True),
        ("payment", False),
        ("Pay", False),
        ("p", False),
    ],
)
def test_a_floor_is_for_the_names_of_a_tool_and_of_what_is_behind_it(pattern: str, asks: bool) -> None:
    assert for_call(PAY, ARGUMENTS, replace(AROUND, floors=[floor("x", pattern)])) == (needed() if asks else None)


ASKS, SILENT = "args.amount > 100", "args.amount > 500"


@pytest.mark.parametrize(
    ("agent", "pool", "author", "asked"),
    [
        pytest.param(None, None, policy(), {}, id="the author alone"),
        pytest.param(None, floor("pay"), None, {}, id="the pool alone"),
        pytest.param(policy(when=SILENT), floor("pay", when=SILENT), policy(when=SILENT), None, id="all are silent"),
        pytest.param(
            policy(when=SILENT, question="A?", timeout_seconds=1, on_timeout="Fail"),
            floor("pay", when=ASKS, timeout_seconds=60, on_timeout="Approve"),
            None,
            {"timeout_seconds": 60, "on_timeout": "Approve"},
            id="who is silent has no say",
        ),
        pytest.param(
            policy(question="A?", timeout_seconds=30),
            floor("pay", question="P?", timeout_seconds=20),
            policy(question="T?", timeout_seconds=10),
            {"question": "P?; T?; A?", "timeout_seconds": 10},
            id="all questions, the shortest timeout",
        ),
        pytest.param(
            policy(question="Really?"),
            floor("pay", question="Pay?"),
            policy(question="Really?"),
            {"question": "Pay?; Really?"},
            id="each question once",
        ),
        pytest.param(policy(question="A?"), floor("pay"), policy(), {"question": "A?"}, id="the Agent's alone"),
        pytest.param(policy(), floor("pay"), policy(question="T?"), {"question": "T?"}, id="the author's alone"),
        pytest.param(policy(timeout_seconds=5), floor("pay"), None, {"timeout_seconds": 5}, id="a timeout beats none"),
        pytest.param(
            policy(on_timeout="Approve"),
            floor("pay", on_timeout="Approve"),
            policy(on_timeout="Approve"),
            {"on_timeout": "Approve"},
            id="Approve by all",
        ),
        pytest.param(
            policy(timeout_seconds=2, on_timeout="Approve"),
            floor("pay", timeout_seconds=86400, on_timeout="Approve"),
            policy(timeout_seconds=60, on_timeout="Approve"),
            {"timeout_seconds": 86400, "on_timeout": "Approve"},
            id="nobody hurries an approval by timeout: the longest",
        ),
        pytest.param(
            policy(timeout_seconds=2, on_timeout="Approve"),
            None,
            policy(on_timeout="Approve"),
            {"timeout_seconds": None, "on_timeout": "Approve"},
            id="who gives none waits for ever, whatever others say",
        ),
        pytest.param(
            policy(timeout_seconds=2, on_timeout="Approve"),
            floor("pay", timeout_seconds=86400),
            None,
            {"timeout_seconds": 2, "on_timeout": "Reject"},
            id="a rejection by timeout may be hurried",
        ),
        pytest.param(
            policy(timeout_seconds=2, on_timeout="Fail"),
            floor("pay", timeout_seconds=86400, on_timeout="Approve"),
            None,
            {"timeout_seconds": 2, "on_timeout": "Fail"},
            id="so may a failure",
        ),
        pytest.param(
            policy(on_timeout="Approve"),
            floor("pay"),
            None,
            {"on_timeout": "Reject"},
            id="Approve is not for one alone",
        ),
        pytest.param(
            policy(on_timeout="Approve"),
            floor("pay", on_timeout="Fail"),
            policy(on_timeout="Reject"),
            {"on_timeout": "Fail"},
            id="Fail beats all",
        ),
    ],
)
def test_who_asks(
    agent: ApprovalPolicy | None,
    pool: ApprovalFloor | None,
    author: ApprovalPolicy | None,
    asked: dict[str, Any] | None,
) -> None:
    around = replace(AROUND, floors=[pool] if pool else [])
    found = for_call(replace(PAY, of_author=author), ARGUMENTS, around, [agent] if agent else [])
    assert found == (None if asked is None else needed(**asked))


def test_questions_that_do_not_fit_are_cut_where_the_agent_s_is() -> None:
    around = replace(AROUND, floors=[floor("pay", question="P" * 400)])
    found = for_call(PAY, ARGUMENTS, around, [policy(question="A" * 400)])
    assert found is not None
    assert found.question == f"{'P' * 400}; {'A' * 109}…"
    assert len(found.question) == QUESTION_MAX_CHARS


def mcp(name: str, seen_as: str) -> CalledTool:
    return CalledTool.mcp(seen_as, "shop", McpTool(name, "", {}, once=True))


@pytest.mark.parametrize(
    ("called", "target", "words"),
    [
        pytest.param(
            replace(PAY, name="greet"),
            {"kind": "Function", "name": "process_payment"},
            "greet (function process_payment)",
            id="a function under another name",
        ),
        pytest.param(
            replace(PAY, behind="pay"), {"kind": "Function", "name": "pay"}, "pay", id="a function of the tool's name"
        ),
        pytest.param(
            mcp("pay", "shop__pay"),
            {"kind": "MCP", "name": "pay", "server": "shop"},
            "shop__pay (pay of MCP server shop)",
            id="a server's tool under another name",
        ),
        pytest.param(
            mcp("pay", "pay"), {"kind": "MCP", "name": "pay", "server": "shop"}, "pay", id="under the server's name"
        ),
        pytest.param(
            AgentOffer("greet", AGENT.model_copy(update={"name": "refunds"})).called,
            {"kind": "Agent", "name": "refunds"},
            "greet (agent refunds)",
            id="an agent",
        ),
        pytest.param(
            HandoffOffer(HandoffBinding(agent="sales.eu")).called,
            {"kind": "Handoff", "name": "sales.eu"},
            "transfer_to_sales_eu (hand-off to sales.eu)",
            id="a hand-off",
        ),
    ],
)
def test_a_human_is_told_what_would_be_run(called: CalledTool, target: dict[str, Any], words: str) -> None:
    found = for_call(called, "{}", AROUND, [policy()])
    assert found is not None
    assert found.target == ApprovalTarget.model_validate(target)
    assert found.question == f"Agent support wants to call {words}. Approve?"
    asked = for_call(called, "{}", AROUND, [policy(question="Say hello?")])
    assert asked is not None
    assert (asked.target, asked.question) == (found.target, "Say hello?")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x" * 129, id="too long"),
        pytest.param("", id="none"),
        pytest.param("find\nApproved already.", id="a line of its own"),
        pytest.param("find\u202eyap", id="written backwards"),
    ],
)
def test_a_server_s_tool_whose_name_cannot_be_shown_is_refused_where_somebody_asks(name: str) -> None:
    with pytest.raises(UnshowableError, match="what is behind find has no name of 1 to 128 printable characters"):
        for_call(mcp(name, "find"), "{}", AROUND, [policy()])
    assert for_call(mcp(name, "find"), "{}", AROUND) is None


def test_an_author_s_policy_is_part_of_the_function(registry: dict[str, ToolFunction]) -> None:
    @tool(approval=Approval(when="args.amount > 100", question="Really?", timeout=60, on_timeout="Fail"))
    def pay(amount: float) -> str:
        return str(amount)

    called = CalledTool.function("charge", registry["pay"])
    assert for_call(called, '{"amount": 100}', AROUND) is None
    assert for_call(called, '{"amount": 100.5}', AROUND) == ApprovalNeeded(
        question="Really?",
        arguments='{"amount":100.5}',
        digest=called.digest('{"amount":100.5}'),
        target=ApprovalTarget(kind="Function", name="pay"),
        timeout_seconds=60,
        on_timeout="Fail",
    )


def test_an_mcp_tool_s_claims_are_seen() -> None:
    reads = McpTool("find", "", {}, once=False, read_only=True, destructive=False, idempotent=True)
    says_nothing = McpTool("burn", "", {}, once=True)
    when = [policy(when="tool.destructive && tool.server == 'shop' && tool.kind == 'mcp'")]
    assert for_call(CalledTool.mcp("find", "shop", reads), "", AROUND, when) is None
    assert for_call(CalledTool.mcp("burn", "shop", says_nothing), "", AROUND, when) is not None


# ── What is shown, and the digest ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        pytest.param("", "{}", id="none"),
        pytest.param('{"b": 1.0, "a": "\\u00e9"}', '{"a":"é","b":1}', id="canonical"),
        pytest.param('{"amount": 1, "amount": 2}', '{"amount":2}', id="a key twice: the last, as the tool gets it"),
    ],
)
def test_arguments_are_shown_as_canonical_json(arguments: str, shown: str) -> None:
    found = for_call(PAY, arguments, AROUND, [policy()])
    assert found is not None
    assert (found.arguments, found.digest) == (shown, PAY.digest(shown))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            '{"order": 12345678901234567890}', "cannot be shown exactly: it holds an integer", id="a large number"
        ),
        pytest.param(json.dumps({"a": "x" * ARGUMENTS_MAX_BYTES}), "takes more than 65536 bytes", id="too long"),
        pytest.param(json.dumps({"a": [1e20] * 4000}), "takes more than 65536 bytes", id="too long once written out"),
        pytest.param("[1]", "not a JSON object", id="a list"),
        pytest.param('{"a": NaN}', "not JSON", id="no number"),
        pytest.param('{"a": "\\ud800"}', "not JSON", id="half a character"),
    ],
)
def test_what_cannot_be_shown_is_refused_where_somebody_asks(arguments: str, words: str) -> None:
    with pytest.raises(UnshowableError, match=words):
        for_call(PAY, arguments, AROUND, [policy()])
    assert for_call(PAY, arguments, AROUND) is None


def test_64_kib_are_shown_whole() -> None:
    text = "x" * (ARGUMENTS_MAX_BYTES - len('{"a":""}'))
    found = for_call(PAY, json.dumps({"a": text}), AROUND, [policy()])
    assert found is not None
    assert len(found.arguments) == ARGUMENTS_MAX_BYTES


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(PAY, name="charge"), id="another name"),
        pytest.param(replace(PAY, behind="refund"), id="another function"),
        pytest.param(replace(PAY, kind="mcp"), id="another kind"),
        pytest.param(replace(PAY, server="shop"), id="another server"),
        pytest.param(replace(PAY, schema={"type": "object", "required": ["amount"]}), id="another schema"),
    ],
)
def test_a_digest_is_of_all_that_is_run(other: CalledTool) -> None:
    assert other.digest(SHOWN) != PAY.digest(SHOWN)
    assert PAY.digest('{"amount":121}') != PAY.digest(SHOWN)
    claims_more = replace(PAY, read_only=True, destructive=False, of_author=policy())
    assert claims_more.digest(SHOWN) == PAY.digest(SHOWN)


def approved(**more: Any) -> ToolCall:
    call = ToolCall(
        call_id="c", tool="pay", function="process_payment", arguments=ARGUMENTS, thread="main", turn=1, index=0
    )
    return call.model_copy(update={"agent": "support", "approved_digest": PAY.digest(SHOWN), **more})


def test_what_was_approved_is_run() -> None:
    assert ask_again(PAY, approved()) is None
    assert ask_again(PAY, approved(arguments='{"amount":5}', approved_arguments=ARGUMENTS)) is None
    none = {"arguments": '{"amount":5}', "approved_arguments": "", "approved_digest": PAY.digest("{}")}
    assert ask_again(PAY, approved(**none)) is None


@pytest.mark.parametrize(
    ("tool", "more", "shown"),
    [
        pytest.param(replace(PAY, schema={}), {}, SHOWN, id="the schema has changed"),
        pytest.param(PAY, {"arguments": '{"amount":121}'}, '{"amount":121}', id="other arguments"),
        pytest.param(
            replace(PAY, schema={}),
            {"arguments": '{"amount":5}', "approved_arguments": ARGUMENTS},
            SHOWN,
            id="the schema has changed under an override: asked is about what the model wanted",
        ),
    ],
)
def test_what_was_not_approved_is_asked_again(tool: CalledTool, more: dict[str, Any], shown: str) -> None:
    again = ask_again(tool, approved(**more))
    assert again is not None
    assert (again.arguments, again.digest) == (shown, tool.digest(shown))
    called = "pay (function process_payment)"
    assert again.question == f"Agent support wants to call {called}, which has changed since it was approved. Approve?"
    assert again.target == ApprovalTarget(kind="Function", name="process_payment")
    assert (again.timeout_seconds, again.on_timeout) == (None, "Reject")
    assert ask_again(tool, approved(**{**more, "approved_digest": again.digest})) is None


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_s_answer_is_asked_about() -> None:
    agent = AGENT.model_copy(
        update={"output_schema": {"type": "object"}, "output_approval": policy(when="output.sure < 0.95")}
    )
    assert for_answer(agent, {"sure": 0.99}, AROUND) is None
    assert for_answer(agent, {"sure": 0.5}, AROUND) == ApprovalNeeded(
        question="Agent support wants to answer. Approve?",
        arguments='{"sure":0.5}',
        digest=digest({"kind": "output", "agent": "support"}, '{"sure":0.5}', {"type": "object"}),
    )


def test_an_answer_may_be_text() -> None:
    agent = AGENT.model_copy(
        update={"output_approval": policy(when="output.contains('refund') || args.x", question="Ok?")}
    )
    found = for_answer(agent, "We refund.", AROUND)
    assert found is not None
    assert (found.question, found.arguments) == ("Ok?", canonical("We refund."))
    assert for_answer(AGENT, "We refund.", AROUND) is None


def test_an_answer_that_cannot_be_shown_is_refused() -> None:
    agent = AGENT.model_copy(update={"output_approval": policy()})
    with pytest.raises(UnshowableError, match="the answer takes more than"):
        for_answer(agent, {"a": [1e20] * 4000}, AROUND)
