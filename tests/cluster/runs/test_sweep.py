"""The sweep repairs what no event told, and never stops what is not ours. On the control plane that sweeps every second."""

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from dalang_api.contract import RUN_WORKFLOW
from temporalio.client import Client

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(120)


def held(annex: "Shop", name: str) -> "Run":
    """Return a run whose tool is called and does not end."""
    run = annex.task(
        name, {"toolCalls": [{"name": "hold", "arguments": {"key": name}}]}, {"text": "Done."}, tools=("hold",)
    )
    annex.system.wait_for("it is under way", lambda: annex.is_called(name))
    return run


def test_a_workflow_that_was_terminated_by_hand_ends_its_run(annex: "Shop", neighbour: "System") -> None:
    run = held(annex, "terminated")
    neighbour.temporal.terminate(run.workflow_id)
    status = run.ended(15)
    assert (status["phase"], run.succeeded["reason"]) == ("Failed", "Terminated")
    assert status["agents"][0]["name"] == run.name


def test_a_run_that_was_deleted_while_the_operator_was_away_leaves_no_workflow(
    annex: "Shop", neighbour: "System"
) -> None:
    run = held(annex, "deleted-meanwhile")
    neighbour.signal("operator", signal.SIGSTOP)
    run.delete()
    killed = neighbour.kill("operator")
    neighbour.wait_for("it is back", lambda: neighbour.is_back("operator", killed))
    neighbour.temporal.become(run.workflow_id, {run.workflow_id: "TERMINATED"})


def test_only_workflows_of_ours_whose_run_is_gone_are_terminated(annex: "Shop", neighbour: "System") -> None:
    """All are of type AgentRun but one, and open, and nobody serves their queue."""
    ours, namespace = neighbour.installation, annex.namespace
    run = held(annex, "beside-orphans")
    uid = "00000000-0000-4000-8000-000000000000"
    orphan = f"{ours}.{namespace}.orphan.{uid}"
    strange = f"{ours}.{namespace}.Möbius & sons/?#%.{uid}"
    foreign = {
        "of another installation": f"dalang-00000000.{namespace}.orphan.{uid}",
        "of an installation whose name begins like ours": f"{ours}-2.{namespace}.orphan.{uid}",
        "with an id that only begins like ours": f"{ours}.something",
        "with too few parts": f"{ours}.{namespace}.{uid}",
        "with empty parts": f"{ours}...",
        "without our prefix": f"x-{orphan}",
    }

    async def start(client: Client, workflow_id: str, kind: str = RUN_WORKFLOW) -> None:
        await client.start_workflow(kind, id=workflow_id, task_queue="nobody")

    async def start_all(client: Client) -> None:
        await asyncio.gather(*(start(client, each) for each in [orphan, strange, *foreign.values()]))
        await start(client, f"{ours}.{namespace}.other-kind.{uid}", "SomethingElse")

    temporal = neighbour.temporal
    temporal.do(start_all(temporal.client))
    foreign["of another type"] = f"{ours}.{namespace}.other-kind.{uid}"
    try:
        neighbour.wait_for("the orphan is terminated", lambda: temporal.state(orphan) == "TERMINATED", 60)
        sweeps = neighbour.metric("dalang_sweeps_total", result="success")
        neighbour.wait_for(
            "more sweeps", lambda: neighbour.metric("dalang_sweeps_total", result="success") >= sweeps + 5
        )
        assert {why: temporal.state(workflow_id) for why, workflow_id in foreign.items()} == dict.fromkeys(
            foreign, "RUNNING"
        )
        assert temporal.state(run.workflow_id) == "RUNNING"
    finally:
        for workflow_id in foreign.values():
            temporal.terminate(workflow_id)
    annex.let_go(run.name)
    run.answered()
