"""Deleting a run, cancelling it, and its timeout: each stops the model call in flight, whatever the workers do."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(120)

STOP_SECONDS = 10.0
STOPS: dict[str, Callable[["Run"], None]] = {
    "deleted": lambda run: run.delete(),
    "cancelled": lambda run: run.cancel(),
    "timed out": lambda run: None,
}


@pytest.mark.parametrize("at_zero", [False, True], ids=["with its worker", "scaled to zero by hand just before"])
def test_a_run_that_is_stopped_ends_its_model_call_and_its_workflow(shop: "Shop", at_zero: bool) -> None:
    system = shop.system
    shop.pool()
    runs: dict[str, Run] = {}
    for stop in STOPS:
        name = stop.replace(" ", "-")
        shop.model(name, {"text": "too late"}, latencySeconds=60)
        shop.agent(name)
    shop.run("warm-up", agent="deleted", limits={"timeout": "1ms"}).ended()
    for stop in STOPS:
        runs[stop] = shop.run(stop.replace(" ", "-"), limits={"timeout": "5s" if stop == "timed out" else "1h"})
    for run in runs.values():
        system.wait_for("the model is called", lambda run=run: run.asked)  # type: ignore[misc]
    if at_zero:
        shop.scale(0)
    started = {stop: time.monotonic() for stop in STOPS}
    for stop, run in runs.items():
        STOPS[stop](run)
    started["timed out"] += 5
    took: dict[str, float] = {}

    def all_are_aborted() -> bool:
        for stop, run in runs.items():
            if stop not in took and all(request["aborted"] for request in run.asked):
                took[stop] = time.monotonic() - started[stop]
        return len(took) == len(runs)

    system.wait_for("every call is aborted", all_are_aborted, 30)
    assert {stop: seconds for stop, seconds in took.items() if seconds > STOP_SECONDS} == {}

    ended = {stop: (run.ended()["phase"], run.succeeded["reason"]) for stop, run in runs.items() if stop != "deleted"}
    assert ended == {"cancelled": ("Cancelled", "Cancelled"), "timed out": ("Failed", "Timeout")}
    assert {condition["type"]: condition["status"] for condition in runs["cancelled"].status["conditions"]} == {
        "Ready": "False",
        "Succeeded": "False",
        "Stalled": "True",
    }
    assert runs["cancelled"].succeeded["observedGeneration"] == 2

    def states() -> dict[str, str]:
        return {stop: system.temporal.state(run.workflow_id) for stop, run in runs.items()}

    wanted = {"deleted": "TERMINATED", "cancelled": "CANCELED", "timed out": "FAILED"}
    system.wait_for("no workflow is open", lambda: states() == wanted)


def test_a_run_that_is_cancelled_in_its_tool_ends_the_tool(mall: "Shop", system: "System") -> None:
    turn = {"toolCalls": [{"name": "hold", "arguments": {"key": "cancelled"}}]}
    run = mall.task("cancelled-in-tool", turn, tools=("hold",))
    system.wait_for("the tool is called", lambda: mall.is_called("cancelled"))
    run.cancel()
    assert run.ended(STOP_SECONDS)["phase"] == "Cancelled"
    assert "tool hold" in run.succeeded["message"]


def test_a_run_that_is_cancelled_before_it_starts_never_starts(mall: "Shop", system: "System") -> None:
    mall.model("unborn", {"text": "no"})
    waiting = mall.run("waiting-unborn", agent="unborn")
    waiting.waits("AgentNotFound")
    waiting.cancel()
    waiting.ended()
    mall.agent("unborn")
    created_so = mall.run("unborn", cancel=True)
    mall.run("unborn-2", agent="unborn").answered()
    for run in (waiting, created_so):
        assert run.ended()["phase"] == "Cancelled"
        assert system.temporal.of(run.workflow_id) == {}


class TestFinishedRuns:
    """Whatever is done to a finished run, its workflow is never asked for anything."""

    @pytest.fixture
    def run(self, mall: "Shop") -> "Run":
        name = f"finished-{len(mall.runs)}"
        run = mall.task(name, {"text": "Done."})
        run.answered()
        return run

    def test_cannot_be_cancelled(self, run: "Run", mall: "Shop") -> None:
        refusal = mall.kubectl(
            "patch", "agentrun", run.name, "--type=merge", "-p", '{"spec":{"cancel":true}}', check=False
        )
        assert "the run has finished: it can no longer be cancelled" in refusal
        assert run.status["phase"] == "Succeeded"

    def test_can_be_deleted_and_leave_their_history_as_it_was(self, run: "Run", mall: "Shop", system: "System") -> None:
        system.wait_for("the workflow ends", lambda: system.temporal.state(run.workflow_id) == "COMPLETED")
        before = run.events
        run.delete()
        system.wait_for("it is gone", lambda: mall.find("AgentRun", run.name) is None)
        after = mall.run(run.name)
        after.answered()
        assert run.events == before


def test_no_history_of_a_finished_run_holds_a_cancel(mall: "Shop", system: "System") -> None:
    """Those of all tests before this one, but for the runs that were cancelled."""
    finished = system.temporal.workflows("ExecutionStatus = 'Completed' AND WorkflowType = 'AgentRun'")
    assert finished
    with_cancel = [
        workflow_id
        for workflow_id in finished
        if any(
            event.HasField("workflow_execution_cancel_requested_event_attributes")
            for event in system.temporal.history(workflow_id)
        )
    ]
    assert with_cancel == []
