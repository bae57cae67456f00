"""Finished runs: which are deleted, when, and what a name means that is used again."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop, System

pytestmark = pytest.mark.timeout(90)


def test_only_a_run_that_asks_for_it_is_deleted_soon(mall: "Shop", system: "System") -> None:
    mall.model("brief", {"text": "Done."})
    mall.agent("brief")
    kept = [
        mall.run("named", agent="brief"),
        mall.run("", agent="brief", metadata={"generateName": "generated-"}),
        mall.run("long", agent="brief", ttlAfterFinished="1h"),
    ]
    brief = mall.run("brief", ttlAfterFinished="2s")
    at_once = mall.run("at-once", agent="brief", ttlAfterFinished="0s")
    for run in kept:
        run.answered()
    for run in (brief, at_once):
        system.wait_for(f"{run.name} is deleted", lambda run=run: mall.find("AgentRun", run.name) is None)  # type: ignore[misc]
        assert system.temporal.state(run.workflow_id) == "COMPLETED"
    for run in kept:
        assert run.status["phase"] == "Succeeded"


def test_a_run_that_is_recreated_under_its_name_is_a_new_run(mall: "Shop", system: "System") -> None:
    first = mall.task(
        "again", {"toolCalls": [{"name": "hold", "arguments": {"key": "again"}}]}, {"text": "Done."}, tools=("hold",)
    )
    system.wait_for("it is under way", lambda: mall.is_called("again"))
    mall.let_go("again")
    first.delete()
    second = mall.run("again")
    second.answered()
    assert second.uid != first.uid
    wanted = {first.workflow_id: "TERMINATED", second.workflow_id: "COMPLETED"}
    system.temporal.become(f"{system.installation}.{mall.namespace}.again.", wanted)
    second.delete()
    mall.run("again").answered()
    assert system.temporal.state(second.workflow_id) == "COMPLETED"


def test_a_namespace_that_is_deleted_leaves_no_workflow_open(shop: "Shop", system: "System") -> None:
    """Without pods: Kubernetes deletes those first, and waits for them."""
    labels = {"matchLabels": {"app": "stranger"}}
    template = {"metadata": {"labels": labels["matchLabels"]}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    shop.create("Deployment", "dalang-default", {"replicas": 0, "selector": labels, "template": template})
    run = shop.task("alone", {"text": "no"})
    system.wait_for("its workflow is open", lambda: system.temporal.of(run.workflow_id))
    system.request("DELETE", "Namespace", None, shop.namespace)
    system.temporal.become(run.workflow_id, {run.workflow_id: "TERMINATED"})
