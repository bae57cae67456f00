"""The activities of a firing, against a cluster in memory. The workflow is tested on a real Temporal (tests/workflow)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from dalang_api.contract import CreatedRun, RunIdentity, scheduled_run_name, trigger_workflow_id
from dalang_operator.kinds.agentschedule.runs import lasting_digest, make_run
from dalang_operator.kube.errors import ApiError, Forbidden, Invalid, QuotaExceeded, Terminating, Unavailable
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, ObjectKey, uid_of
from dalang_operator.reporter.triggers import RunCreator
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tests.build import INSTALLATION, NOW, at, run, schedule
from tests.memory_cluster import OPERATOR, MemoryCluster

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
    noted: tuple[str, ...] = ()
    """What the last attempt has left with Temporal."""

    async def call(self, name: str, *arguments: Any, **info: Any) -> Any:
        creator = RunCreator(
            INSTALLATION,
            self.namespaces,
            self.cluster,  # type: ignore[arg-type]
            self.schedules,  # type: ignore[arg-type]
            lambda: NOW,
        )
        environment = ActivityEnvironment()
        given = {"workflow_id": FIRING, "workflow_type": "TriggerRun", "heartbeat_details": self.noted, **info}
        environment.info = replace(environment.info, **given)
        environment.on_heartbeat = self._note
        activity: Callable[..., Awaitable[Any]] = getattr(creator, name)
        return await environment.run(activity, *arguments)

    def _note(self, *details: str) -> None:
        self.noted = details

    def has_run(
        self, *, spec: dict[str, Any] | None = None, created_by: str | None = None, owner_uid: str = ""
    ) -> None:
        """There is a run of the firing's name already."""
        made = make_run(self.cluster.objects[AGENT_SCHEDULES.kind, ObjectKey("shop", "nightly")], NOW)
        metadata = made["metadata"]
        if created_by:
            metadata["annotations"]["dalang.dev/created-by"] = created_by
        if owner_uid:
            metadata["ownerReferences"][0]["uid"] = owner_uid
        self.cluster.put(AGENT_RUNS, {**made, "spec": {**made["spec"], **(spec or {})}})

    def edit(self, **template: Any) -> None:
        """Change the schedule's template."""
        self.cluster.put(AGENT_SCHEDULES, schedule(runTemplate={"spec": {"agentRef": {"name": "helper"}, **template}}))

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


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        pytest.param({"owner_uid": "another"}, "which is not owned by the schedule", id="of nobody we know"),
        pytest.param({"created_by": "eve"}, "created by eve", id="by somebody else, whatever it says"),
        pytest.param(
            {"spec": {"input": "All is well."}}, "whose spec is not that of spec.runTemplate", id="of other words"
        ),
        pytest.param(
            {"spec": {"input": "All is well."}, "created_by": OPERATOR},
            "whose spec is not that of spec.runTemplate",
            id="of other words, where anybody may write who created it",
        ),
    ],
)
async def test_a_run_of_somebody_else_is_not_taken_for_ours(strange: dict[str, Any], words: str) -> None:
    made = world()
    made.has_run(**strange)
    created = await made.create()
    assert created.run is None
    assert f"AgentRun {RUN} cannot be created: there is one of that name already, {words}. Delete" in str(
        created.problem
    )
    [event] = made.cluster.events
    assert event["reason"] == "RunRefused"
    assert str(created.problem) in event["note"]
    assert "annotation dalang.dev/trigger" in event["note"]
    assert made.cluster.writes == []


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({}, id="where nobody notes who created it"),
        pytest.param({"created_by": OPERATOR}, id="where it is noted"),
        pytest.param(
            {"spec": {"cancel": True, "ttlAfterFinished": "5m"}}, id="changed since, as far as that is allowed"
        ),
    ],
)
async def test_a_run_of_an_earlier_attempt_is_ours(own: dict[str, Any]) -> None:
    made = world()
    made.has_run(**own)
    created = await made.create()
    assert created.run is not None
    assert created.run.name == RUN


async def test_a_run_of_an_earlier_attempt_is_ours_though_the_template_was_edited_since() -> None:
    made = world()
    made.cluster.refusals = [Unavailable("away")]
    with pytest.raises(ApplicationError):
        await made.create()
    made.has_run()
    made.edit(input="Look again.")
    assert (await made.create()).run is not None
    assert len(made.noted) == 2
    made.noted = ()
    assert (await made.create()).problem


async def test_a_run_that_admission_has_changed_is_ours() -> None:
    made = world()
    made.has_run(spec={"priority": "low"})
    admit = made.cluster.create

    async def create(*arguments: Any, dry_run: bool = False) -> Any:
        created = await admit(*arguments, dry_run=dry_run)
        return {**created, "spec": {**created["spec"], "priority": "low"}} if dry_run else created

    made.cluster.create = create  # type: ignore[method-assign,assignment]
    assert (await made.create()).run is not None


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize(
    ("attempt", "phase", "is_awaited"),
    [
        pytest.param(1, "Running", True, id="under way"),
        pytest.param(1, "Succeeded", False, id="of an earlier firing, which was told"),
        pytest.param(1, "Failed", False, id="likewise, and nothing is to be paused for it again"),
        pytest.param(2, "Succeeded", False, id="perhaps of an earlier attempt, whose answer was lost"),
        pytest.param(2, "Failed", True, id="likewise, and the schedule may have to be paused"),
        pytest.param(2, "Cancelled", True, id="likewise"),
    ],
)
async def test_a_run_that_has_ended_before_is_not_waited_for(
    suspend: bool, attempt: int, phase: str, is_awaited: bool
) -> None:
    made = world(suspend=suspend)
    made.has_run()
    if phase != "Running":
        made.cluster.finish(RUN, phase)
    created = await made.create(attempt=attempt)
    assert ((created.run is not None), created.problem) == (is_awaited, None)
    assert made.cluster.writes == []


def test_what_may_be_changed_later_does_not_count() -> None:
    spec = {"agentRef": {"name": "helper"}, "input": "Look."}
    assert lasting_digest(spec) == lasting_digest({"cancel": True, "ttlAfterFinished": "1s", **spec})
    assert lasting_digest(spec) != lasting_digest({**spec, "input": "Look!"})


def order(begin: str, end: str) -> dict[str, Any]:
    entry = {"type": "Backfill", "value": "v", "orderedAt": begin, "begin": begin, "end": end}
    return {"orders": [entry]}


@pytest.mark.parametrize(
    ("status", "has_run"),
    [
        pytest.param({}, False, id="a time of the schedule"),
        pytest.param(order(at(), at()), True, id="triggered"),
        pytest.param(order(at(-timedelta(hours=1)), at()), True, id="backfilled"),
        pytest.param(order(at(-timedelta(hours=1)), at(-timedelta(seconds=1))), False, id="beside a backfill"),
    ],
)
async def test_while_it_is_suspended_only_what_was_ordered_has_its_run(status: dict[str, Any], has_run: bool) -> None:
    made = World()
    made.cluster.put(AGENT_SCHEDULES, schedule(suspend=True, status=status))
    created = await made.create()
    assert ((created.run is not None), created.problem) == (has_run, None)
    assert len(made.cluster.all(AGENT_RUNS)) == has_run
    assert made.cluster.events == []


async def test_a_run_that_was_created_before_the_schedule_was_suspended_is_known() -> None:
    made = world()
    first = await made.create()
    made.cluster.put(AGENT_SCHEDULES, schedule(suspend=True))
    assert await made.create() == first
    made.has_run(owner_uid="another")
    assert await made.create() == CreatedRun(), "a stranger's is not, and that is no failure either"
    assert made.cluster.events == []


FULL = QuotaExceeded(f'agentruns.dalang.dev "{RUN}" is forbidden: exceeded quota: few, used: 3, limited: 3', 403)


async def test_a_full_quota_is_waited_for_and_told_once() -> None:
    made = world()
    made.cluster.refusals = [FULL, FULL]
    for _ in range(2):
        with pytest.raises(ApplicationError):
            await made.create()
    assert {(event["metadata"]["name"], event["reason"]) for event in made.cluster.events} == {
        (f"{RUN}.quota", "QuotaExceeded")
    }
    note = made.cluster.events[0]["note"]
    assert note == f"The run of 2026-11-20T12:00:00Z is created when the quota allows it; it is tried again. {FULL}"
    assert (await made.create()).run is not None


async def test_a_run_that_fills_the_quota_itself_is_found() -> None:
    made = world()
    first = await made.create()
    made.cluster.refusals = [FULL]
    assert await made.create() == first
    assert made.cluster.events == []


async def test_a_run_of_an_earlier_attempt_is_found_though_its_like_is_refused_by_now() -> None:
    made = world()
    first = await made.create()
    made.cluster.refusals = [Forbidden("policy says no", 403)]
    assert await made.create() == first
    made.noted = ()
    made.edit(input="Look again.")
    made.cluster.refusals = [Forbidden("policy says no", 403)] * 2
    assert "whose spec is not that of" in str((await made.create()).problem)


@pytest.mark.parametrize("error", [Invalid("input: Too long", 422), Forbidden("policy says no", 403)])
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
