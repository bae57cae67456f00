"""How a schedule's run is made, whose one is, and what is told of its end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import (
    RunReport,
    parse_trigger_id,
    schedule_id,
    scheduled_run_name,
    scheduled_run_time,
    trigger_workflow_id,
)
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_operator.kinds.agentschedule.runs import (
    Firing,
    firing_of,
    gone_run_ended,
    is_run_of,
    make_run,
    run_ended,
)
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import ObjectKey

from tests.build import INSTALLATION, NOW, condition, finished_run, run, schedule

UID = "7f0c1d9e-5a41-4c52-9d3a-2b1f0e6c8a90"


def test_a_run_has_the_template_and_names_its_schedule() -> None:
    template = {
        "metadata": {"labels": {"team": "ops"}, "annotations": {"why": "nightly"}},
        "spec": {"agentRef": {"name": "helper"}, "input": "Look."},
    }
    made = make_run(schedule(metadata={"uid": UID}, runTemplate=template), NOW)
    name = scheduled_run_name("nightly", UID, NOW)
    assert made["metadata"] == {
        "name": name,
        "namespace": "shop",
        "labels": {"team": "ops", "dalang.dev/schedule": "nightly"},
        "annotations": {"why": "nightly", "dalang.dev/scheduled-at": "2026-11-20T12:00:00Z"},
        "ownerReferences": [
            {
                "apiVersion": "dalang.dev/v1alpha1",
                "kind": "AgentSchedule",
                "name": "nightly",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
    AgentRun.model_validate(made)
    assert firing_of(made) == (ObjectKey("shop", "nightly"), Firing(UID, NOW))


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(run(), id="of nobody"),
        pytest.param(
            run("nightly-0tnz3a0abc", metadata={"ownerReferences": [{"kind": "AgentSchedule", "name": "nightly"}]}),
            id="of an owner that does not control it",
        ),
        pytest.param(
            run(
                "mine",
                metadata={"ownerReferences": [{"kind": "AgentSchedule", "name": "n", "uid": "u", "controller": True}]},
            ),
            id="with a name of its own",
        ),
    ],
)
def test_other_runs_are_of_no_firing(obj: dict[str, object]) -> None:
    assert firing_of(obj) is None


def run_by(user: str | None = None, *, name: str = "", uid: str = UID) -> dict[str, Any]:
    made = make_run(schedule(metadata={"uid": uid}), NOW)
    made["metadata"]["name"] = name or made["metadata"]["name"]
    if user:
        made["metadata"]["annotations"]["dalang.dev/created-by"] = user
    return made


@pytest.mark.parametrize(
    ("obj", "user", "expected"),
    [
        pytest.param(run_by(), "operator", True, id="nobody noted who created it"),
        pytest.param(run_by("operator"), "operator", True, id="by the operator"),
        pytest.param(run_by("eve"), "operator", False, id="by somebody else"),
        pytest.param(run_by("operator"), None, True, id="we do not know who we are"),
        pytest.param(run_by("operator", uid="another"), "operator", False, id="of another schedule of that name"),
        pytest.param(run_by("operator", name="mine"), "operator", False, id="of a name of its own"),
        pytest.param(run_by(name="nightly-0tnz3a0abc"), "operator", False, id="named for the time of another schedule"),
        pytest.param(run(), "operator", False, id="of nobody"),
    ],
)
def test_whose_a_run_is(obj: dict[str, Any], user: str | None, expected: bool) -> None:
    assert is_run_of(schedule(metadata={"uid": UID}), obj, user) == expected


@pytest.mark.parametrize("name", ["nightly", "n" * 52, "a.b-c"])
@pytest.mark.parametrize("time", [NOW, NOW + timedelta(seconds=1), datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_names_can_be_read_back(name: str, time: datetime) -> None:
    made = scheduled_run_name(name, UID, time)
    assert len(made) <= 63
    assert scheduled_run_time(name, made) == time
    workflow_id = trigger_workflow_id(schedule_id(INSTALLATION, "shop", name, UID), time)
    target, scheduled_at = parse_trigger_id(workflow_id)
    assert (target.namespace, target.name, target.suffix, scheduled_at) == ("shop", name, UID, time)


@pytest.mark.parametrize(
    "workflow_id",
    ["inst.shop.nightly.uid", f"inst.shop.nightly.{UID}", "inst.shop.nightly.-2026-11-20T12:00:00Z", "x", ""],
)
def test_other_ids_are_of_no_firing(workflow_id: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 whatever is wrong with it
        parse_trigger_id(workflow_id)


def test_what_became_of_a_run_is_told_with_reason_and_words() -> None:
    ended = finished_run()
    ended["status"] |= {"phase": "Failed", "conditions": [condition("Succeeded", "False", "Timeout", "too slow")]}
    told = run_ended(ended)
    assert (told.run_uid, told.phase, told.message) == ("uid-r1", "Failed", "Timeout: too slow")


def report(phase: str) -> RunReport:
    return RunReport.model_validate(
        {
            "seq": 1,
            "run_id": "r",
            "task_queue": "q",
            "phase": phase,
            "reason": "x",
            "message": "words",
            "agent": "a",
            "agents": [],
            "started_at": "",
        }
    )


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(WorkflowView(WorkflowState.OPEN), None, id="it may yet end by itself"),
        pytest.param(WorkflowView(WorkflowState.MISSING), "Deleted", id="it was never started"),
        pytest.param(WorkflowView(WorkflowState.TERMINATED), "Deleted", id="it was deleted"),
        pytest.param(
            WorkflowView(WorkflowState.FAILED, report=report("Failed")),
            "Failed",
            id="it failed and was deleted at once",
        ),
        pytest.param(WorkflowView(WorkflowState.COMPLETED, report=report("Succeeded")), "Succeeded", id="it succeeded"),
    ],
)
def test_what_became_of_a_run_that_is_gone(view: WorkflowView, expected: str | None) -> None:
    told = gone_run_ended("u", view)
    assert (told.phase if told else None) == expected
