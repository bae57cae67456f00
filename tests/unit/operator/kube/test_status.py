"""Conditions and the patch that writes a status."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from dalang_api.v1alpha1.conditions import ConditionType, Reason
from dalang_operator.kube import status as kube_status
from dalang_operator.kube.resources import AGENT_RUNS, Json, PatchBody, Resource
from dalang_operator.kube.status import clip, merge_patch, with_conditions, write_status

from tests.build import LONG_AGO, NOW, at, condition, pending_conditions, run


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        pytest.param({"a": 1}, {"a": 1}, {}, id="equal: nothing"),
        pytest.param({"a": 1, "b": 2}, {"a": 1}, {"b": None}, id="a field that is gone is null"),
        pytest.param(
            {"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "z": 3}}, {"a": {"y": None, "z": 3}}, id="objects by field"
        ),
        pytest.param({"a": [1, 2]}, {"a": [2]}, {"a": [2]}, id="lists whole"),
        pytest.param({}, {"a": {"x": 1}}, {"a": {"x": 1}}, id="a new object whole"),
        pytest.param({"a": {"x": 1}}, {"a": "text"}, {"a": "text"}, id="another type"),
    ],
)
def test_merge_patch(before: Json, after: Json, patch: Json) -> None:
    assert merge_patch(before, after) == patch


def fresh(status: Any = "True", reason: Reason = Reason.ACCEPTED, message: str = "") -> Json:
    return kube_status.condition(ConditionType.READY, status, reason, message)


@pytest.mark.parametrize(
    ("current", "new", "since"),
    [
        pytest.param([], fresh(), at(), id="new: now"),
        pytest.param(
            [condition("Ready", "True", "Other")], fresh(), LONG_AGO, id="the reason changed, the status did not"
        ),
        pytest.param([condition("Ready", "False", "Accepted")], fresh(), at(), id="the status changed"),
        pytest.param(pending_conditions("Ready"), fresh("False"), at(), id="the schema default's time is no time"),
    ],
)
def test_transition_times(current: list[Json], new: Json, since: str) -> None:
    [found] = with_conditions(current, [new], 4, NOW)
    assert found["lastTransitionTime"] == since
    assert found["observedGeneration"] == 4


def test_other_writers_conditions_are_kept_and_the_order_is_stable() -> None:
    others = [condition("ToolsLoaded", "True", "Loaded"), condition("Mine", "True", "Yes")]
    merged = with_conditions(others, [fresh()], 1, NOW)
    assert [found["type"] for found in merged] == ["Mine", "Ready", "ToolsLoaded"]
    assert with_conditions(merged, [fresh()], 1, NOW + timedelta(days=1)) == merged


def test_long_messages_are_cut_with_a_mark() -> None:
    assert clip("x" * 1024) == "x" * 1024
    assert clip("x" * 1025) == "x" * 1023 + "…"


@dataclass
class Recorder:
    bodies: list[PatchBody] = field(default_factory=list)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json:
        assert (resource, namespace, name, subresource) == (AGENT_RUNS, "shop", "r1", "status")
        self.bodies.append(body)
        return {}


async def test_a_write_is_bound_to_what_was_read_and_left_out_when_equal() -> None:
    port = Recorder()
    obj = run()
    assert await write_status(port, AGENT_RUNS, obj, obj["status"], "controller") is None
    await write_status(port, AGENT_RUNS, obj, {**obj["status"], "phase": "Running"}, "controller")
    assert port.bodies == [{"metadata": {"uid": "uid-r1", "resourceVersion": "10"}, "status": {"phase": "Running"}}]


async def test_a_null_in_an_answer_is_kept_though_a_merge_patch_would_remove_it() -> None:
    port = Recorder()
    obj = run()
    status = {**obj["status"], "structuredOutput": {"note": None, "lines": [{"price": None}]}}
    await write_status(port, AGENT_RUNS, obj, status, "reporter")
    assert port.bodies == [
        [
            {"op": "add", "path": "/metadata/uid", "value": "uid-r1"},
            {"op": "add", "path": "/metadata/resourceVersion", "value": "10"},
            {"op": "add", "path": "/status", "value": status},
        ]
    ]
    assert await write_status(port, AGENT_RUNS, {**obj, "status": status}, status, "reporter") is None
