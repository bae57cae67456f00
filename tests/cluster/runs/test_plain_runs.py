"""A run that meets nothing unusual: what the user sees, and what it costs the API server and Temporal."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop, System

pytestmark = pytest.mark.timeout(180)

WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION")


def test_the_quickstart_answers_with_what_its_tool_said(system: "System", request: pytest.FixtureRequest) -> None:
    folder = str(request.config.rootpath / "examples" / "quickstart")
    system.kubectl("apply", "-f", folder)
    try:
        system.kubectl("wait", "agentrun/hello", "--for=jsonpath={.status.finishedAt}", "--timeout=60s")
        columns = [line.split() for line in system.kubectl("get", "agentrun", "hello").splitlines()]
        assert columns[0] == ["NAME", "AGENT", "PHASE", "REASON", "TURNS", "TOKENS", "COST", "AGE"]
        assert columns[1][:5] == ["hello", "forecaster", "Succeeded", "Answered", "2"]
        assert "31 °C" in system.kubectl("get", "agentrun", "hello", "-o", "jsonpath={.status.output}")
        ready = ["agent/forecaster", "agentmodel/gpt", "agentpool/default"]
        system.kubectl("wait", *ready, "--for=condition=Ready", "--timeout=30s")
    finally:
        system.kubectl("delete", "-f", folder)


def test_the_status_tells_what_happened(mall: "Shop") -> None:
    call = {"toolCalls": [{"name": "stamp", "arguments": {"key": "report"}}]}
    run = mall.task("clerk", call, {"text": "Tool said: {{last_tool}}"}, tools=("stamp",))
    status = run.answered()
    agent = mall.get("Agent", "clerk")["metadata"]
    assert status["output"] == "Tool said: stamped report"
    assert status["agent"] == "clerk"
    version = {"name": "clerk", "uid": agent["uid"], "generation": agent["generation"]}
    assert status["agents"] == [{**version, "pool": "default"}]
    assert [(message["role"], message.get("sender"), message["content"]) for message in status["messages"]] == [
        ("User", None, "Do it."),
        ("Assistant", "clerk", '→ stamp({"key": "report"})'),
        ("Tool", "stamp", "stamped report"),
        ("Assistant", "clerk", "Tool said: stamped report"),
    ]
    assert status["turns"] == 2
    assert status["usage"]["totalTokens"] == status["usage"]["inputTokens"] + status["usage"]["outputTokens"]
    assert status["workflow"]["id"] == run.workflow_id
    assert status["startedAt"] <= status["finishedAt"]
    assert run.succeeded["reason"] == "Answered"


def test_a_run_costs_two_writes_and_one_workflow_and_then_nothing(neighbour: "System", annex: "Shop") -> None:
    def status_writes() -> int:
        return neighbour.api_requests(verbs=WRITES, resource="agentruns", subresource="status")

    def resyncs() -> int:
        return neighbour.api_requests(verbs=("LIST",), resource="agentmodels")

    call = {"toolCalls": [{"name": "stamp", "arguments": {"key": "letter"}}]}
    runs = [annex.task("clerk", call, {"text": "Done."}, tools=("stamp",))]
    runs[0].answered()
    annex.waits("Agent", "clerk", "Resolved")
    annex.waits("AgentPool", "default", "Available")
    before = status_writes()
    runs += [annex.run(f"clerk.{number}", agent="clerk") for number in range(20)]
    for run in runs:
        run.answered()
    assert status_writes() - before == 2 * 20
    wanted = {run.workflow_id: "COMPLETED" for run in runs}
    neighbour.temporal.become(f"{neighbour.installation}.mall.clerk.", wanted)
    before, seen = neighbour.api_requests(verbs=WRITES), resyncs()
    neighbour.wait_for("two resyncs", lambda: resyncs() >= seen + 2)
    assert neighbour.api_requests(verbs=WRITES) == before


def test_an_agent_and_its_run_may_be_applied_in_any_order(shop: "Shop") -> None:
    """`default` makes itself, and the run waits for its agent, its model and its pool."""
    run = shop.run("early")
    assert "Agent early" in run.waits("AgentNotFound")
    shop.agent("early")
    assert "AgentModel early" in run.waits("ModelNotFound")
    assert "AgentModel early" in shop.waits("Agent", "early", "ModelNotFound")
    shop.model("early", {"text": "Here."})
    assert run.answered()["output"] == "Here."
    assert shop.get("AgentPool", "default").get("spec", {}) == {}
    assert shop.waits("Agent", "early", "Resolved")


def test_a_run_of_a_pool_that_is_missing_waits_for_it(mall: "Shop") -> None:
    mall.model("printing", {"text": "Here."})
    mall.agent("printing", pool="printers")
    run = mall.run("printing")
    assert "AgentPool printers" in run.waits("PoolNotFound")
    assert "AgentPool printers" in mall.waits("Agent", "printing", "PoolNotFound")
    mall.pool("printers")
    run.waits("Running")
    run.delete()


def test_kubectl_tells_what_a_run_waits_for(mall: "Shop") -> None:
    run = mall.run("waiting-for-nobody")
    run.waits("AgentNotFound")
    assert "Pending" in mall.kubectl("get", "agentrun", run.name)
    assert "There is no Agent waiting-for-nobody" in mall.kubectl("describe", "agentrun", run.name)


def test_names_may_hold_dots(mall: "Shop", system: "System") -> None:
    run = mall.task("v1.2.clerk", {"text": "Done."})
    assert run.answered()["workflow"]["id"] == run.workflow_id
    held = mall.task("v1.2.held", {"text": "no", "latencySeconds": 30})
    system.wait_for("it is under way", lambda: held.asked)
    held.delete()
    system.temporal.become(held.workflow_id, {held.workflow_id: "TERMINATED"})
