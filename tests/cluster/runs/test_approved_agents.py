"""Approved calls of agents, and answers without a schema, on real servers: what a human may say instead, and when it is applied."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(150)

Object = dict[str, Any]


@pytest.fixture(scope="module")
def office(system: "System", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Shop]":
    """A namespace with a worker that stays, in which bob may approve everything."""
    shop = system.open_shop(tmp_path_factory.mktemp("approved-agents"))
    shop.allow("bob", {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["approve"]})
    shop.pool(scaling={"minReplicas": 1})
    yield shop
    shop.close()


def message_of(approval: Object) -> str:
    """Return what an AgentApproval says of itself."""
    (ready,) = [each for each in approval["status"]["conditions"] if each["type"] == "Ready"]
    return str(ready["message"])


def ask_anew(run: "Run", before: str) -> str:
    """Wait until a run waits for another AgentApproval than before; return its name."""

    def name() -> str:
        (found,) = run.asks()
        return "" if found == before else found

    return run.shop.system.wait_for("it is asked anew", name)


def test_a_call_of_an_agent_is_applied_while_that_agent_waits_for_a_human_itself(office: "Shop") -> None:
    pays = {"toolCalls": [{"name": "pay", "arguments": {"key": "clerk", "amount": 120}}]}
    office.model("clerk", pays, {"text": "{{last_tool}}"})
    pay = {"name": "pay", "function": {}, "approval": {"question": "Pay?"}}
    office.create("Agent", "clerk", {"modelRef": {"name": "clerk"}, "tools": [pay]})
    calls = {"toolCalls": [{"name": "clerk", "arguments": {"message": "Pay all."}}]}
    office.model("front", calls, {"text": "{{last_tool}}"})
    clerk = {"name": "clerk", "agentRef": {"name": "clerk"}, "approval": {"question": "Ask the clerk?"}}
    office.create("Agent", "front", {"modelRef": {"name": "front"}, "tools": [clerk]})

    run = office.run("front")
    first = run.ask()
    office.decide(first, override={"message": "Pay 120.", "extra": 1})
    unfit = office.becomes(first, "Superseded")
    assert 'The changed arguments cannot be used: exactly {"message": "…"} is expected' in message_of(unfit)

    second = ask_anew(run, first)
    office.decide(second, override={"message": "Pay 120."})
    office.becomes(second, "Applied")
    third = ask_anew(run, second)
    assert office.get("AgentApproval", third)["spec"]["agent"] == "clerk"
    (asked,) = office.system.model.requests(office.model_name("clerk"))
    assert asked["body"]["messages"][-1]["content"] == "Pay 120."
    office.decide(third)
    assert "paid 120 for clerk" in run.answered()["output"]


def test_an_answer_without_a_schema_is_changed_by_its_text(office: "Shop") -> None:
    office.model("planner", {"text": "The plan is B."})
    office.create("Agent", "planner", {"modelRef": {"name": "planner"}, "output": {"approval": {}}})
    run = office.run("planner")
    first = run.ask()
    office.decide(first, override={"plan": "C"})
    unfit = office.becomes(first, "Superseded")
    assert 'The changed answer cannot be used: exactly {"text": "…"} is expected' in message_of(unfit)
    office.decide(ask_anew(run, first), override={"text": "The plan is C."})
    status = run.answered()
    assert (status["output"], status["turns"]) == ("The plan is C.", 1)
