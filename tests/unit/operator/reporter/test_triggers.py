"""The activities of a firing, against a cluster in memory. The workflow is tested on a real Temporal (tests/workflow)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from dalang_api.contract import CreatedRun, RunIdentity, scheduled_run_name, trigger_workflow_id
from dalang_operator.kube.errors import ApiError, Forbidden, Invalid, Terminating, Unavailable
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, uid_of
from dalang_operator.reporter.triggers import RunCreator
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tests.build import INSTALLATION, NOW, run, schedule
from tests.memory_cluster import MemoryCluster

ID = f"{INSTALLATION}.shop.nightly.uid-nightly"
FIRING = trigger_workflow_id(ID, NOW)
RUN = scheduled_run_name("nightly", "uid-nightly", NOW)


@dataclass
class FakeSchedules:
    deleted: list[str] = field(default_factory=list)

    async def delete(self, id_: str) -> bool:
        self.deleted.append(id_)
        return True


@dataclass
class World:
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    schedules: FakeSchedules = field(default_factory=FakeSchedules)
    namespaces: frozenset[str] = frozenset()

    async def call(self, name: str, *arguments: Any, **info: Any) -> Any:
        creator = RunCreator(
            INSTALLATION,
            self.namespaces,
            self.cluster,  # type: ignore[arg-type]
            self.schedules,  # type: ignore[arg-type]
            lambda: NOW,
        )
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, **{"workflow_id": FIRING, "workflow_type": "TriggerRun", **info})
        activity: Callable[..., Awaitable[Any]] = getattr(creator, name)
        return await environment.run(activity, *arguments)

    async def create(self, **info: Any) -> CreatedRun:
        created: CreatedRun = await self.call("create", **info)
        return created


def world(**spec: Any) -> World:
    made = World()
    made.cluster.put(AGENT_SCHEDULES, schedule(**spec))
    return made


async def test_a_run_is_created_once_whoever_asks_again() -> None:
    made = world()
    first = await made.create()
    assert first.run is not None
    assert first.run.name == RUN
    assert await made.create() == first
    assert made.cluster.writes == [f"create AgentRun {RUN}"]


async def test_a_run_of_somebody_else_is_not_taken_for_ours() -> None:
    made = world()
    made.cluster.put(AGENT_RUNS, run(RUN))
    created = await made.create()
    assert created.run is None
    assert "already exists" in (created.problem or "")
    assert [event["reason"] for event in made.cluster.events] == ["RunRefused"]


@pytest.mark.parametrize("error", [Invalid("input: Too long", 422), Forbidden("exceeded quota", 403)])
async def test_what_the_api_server_refuses_is_told_and_not_tried_again(error: ApiError) -> None:
    made = world()
    made.cluster.refusals = [error]
    created = await made.create()
    assert created.problem == f"AgentRun {RUN} cannot be created: {error}"
    [event] = made.cluster.events
    assert event["note"] == f"There is no run for 2026-11-20T12:00:00Z. {created.problem}"


@pytest.mark.parametrize("error", [Unavailable("away"), Terminating("the namespace goes", 403)])
async def test_an_outage_is_waited_for(error: ApiError) -> None:
    made = world()
    made.cluster.refusals = [error]
    with pytest.raises(ApplicationError):
        await made.create()
    assert (await made.create()).run is not None


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(None, id="deleted"),
        pytest.param({"uid": "another"}, id="made anew"),
        pytest.param({"deletionTimestamp": "2026-11-20T12:00:00Z"}, id="about to be deleted"),
    ],
)
async def test_without_its_schedule_there_is_no_run_and_no_further_time(metadata: dict[str, str] | None) -> None:
    made = World()
    if metadata:
        made.cluster.put(AGENT_SCHEDULES, schedule(metadata=metadata))
    assert await made.create() == CreatedRun()
    assert made.schedules.deleted == [ID]
    assert made.cluster.all(AGENT_RUNS) == []


@pytest.mark.parametrize(
    ("info", "namespaces"),
    [
        pytest.param({"workflow_id": trigger_workflow_id(f"x{ID}", NOW)}, [], id="of another installation"),
        pytest.param({"workflow_id": ID}, [], id="of no time"),
        pytest.param({"workflow_type": "AgentRun"}, [], id="of another type"),
        pytest.param({}, ["elsewhere"], id="in a namespace that is not watched"),
    ],
)
async def test_other_workflows_create_nothing(info: dict[str, str], namespaces: list[str]) -> None:
    made = world()
    made.namespaces = frozenset(namespaces)
    assert (await made.create(**info)).problem
    assert made.cluster.writes == []
    assert made.schedules.deleted == []


async def test_a_run_is_cancelled_unless_it_is_another_or_gone() -> None:
    made = world()
    created = await made.create()
    assert created.run is not None
    await made.call("cancel", RunIdentity(name=RUN, uid="another"))
    stranger = made.cluster.put(AGENT_RUNS, run("stranger"))
    await made.call("cancel", RunIdentity(name="stranger", uid=uid_of(stranger)))
    await made.call("cancel", RunIdentity(name="nobody", uid="u"))
    assert made.cluster.writes == [f"create AgentRun {RUN}"]
    await made.call("cancel", created.run)
    [cancelled] = [each for each in made.cluster.all(AGENT_RUNS) if each["metadata"]["name"] == RUN]
    assert cancelled["spec"]["cancel"] is True
