"""Which reports are written, and onto what."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from dalang_api.contract import ApprovalRequest, ReportResult, RunReport, WorkflowTarget
from dalang_api.v1alpha1.conditions import ConditionType
from dalang_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound, Unavailable
from dalang_operator.kube.resources import AGENT_APPROVALS, AGENT_RUNS, Json, ObjectKey, Resource
from dalang_operator.kube.status import find_condition
from dalang_operator.reporter.approvals import ApprovalWriter
from dalang_operator.reporter.report import RunReporter, refusal
from dalang_operator.reporter.session import SessionReporter
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tests.build import INSTALLATION, NOW, approval, at, finished_run, run, started_run

TARGET = WorkflowTarget(INSTALLATION, "shop", "r1", "uid-r1")


def report(seq: int = 1, **fields: Any) -> RunReport:
    defaults: dict[str, Any] = {
        "run_id": "run-1",
        "task_queue": "q",
        "phase": "Succeeded",
        "reason": "Answered",
        "message": "",
        "agent": "helper",
        "agents": [],
        "started_at": at(),
        "finished_at": at(),
    }
    return RunReport(seq=seq, **{**defaults, **fields})


@pytest.mark.parametrize(
    ("obj", "seq", "why_not"),
    [
        pytest.param(started_run(), 1, None, id="the first report of a run that was started"),
        pytest.param(run(), 1, None, id="a report may come before the start was noted"),
        pytest.param(started_run(seq=1), 2, None, id="a later one"),
        pytest.param(started_run(seq=2), 2, "older", id="the same once more"),
        pytest.param(started_run(seq=3), 2, "older", id="an older one"),
        pytest.param(finished_run(), 9, "finished", id="nothing is written after the end"),
        pytest.param(run(metadata={"uid": "new"}), 1, "another_uid", id="the object was made anew"),
        pytest.param(None, 1, "deleted", id="the object is gone"),
    ],
)
def test_refusal(obj: Json | None, seq: int, why_not: str | None) -> None:
    assert refusal(report(seq), obj, TARGET) == why_not


@dataclass
class FakeKube:
    live: Json | None
    failures: list[ApiError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    overtaken_by: Json | None = None
    """The run as a newer report leaves it, while this one makes what it asks for."""
    stranger: Json | None = None
    """What has the name of the AgentApproval."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.calls.append("get" if resource is AGENT_RUNS else f"get {resource.kind}")
        if resource is AGENT_APPROVALS:
            assert self.stranger is not None, "it was found"
            return self.stranger
        if self.live is None:
            raise NotFound("gone")
        return self.live

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        self.calls.append(f"create {resource.kind}")
        if self.failures:
            raise self.failures.pop(0)
        if resource is AGENT_APPROVALS and self.stranger is not None:
            raise AlreadyExists("taken")
        self.live = self.overtaken_by or self.live
        return {**body, "metadata": {**body["metadata"], "uid": "uid-r1-a", "resourceVersion": "10"}}

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        self.calls.append(f"delete {name} {uid} {resource_version}")

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, subresource: str | None = None
    ) -> Json:
        self.calls.append(f"patch {body['metadata']['resourceVersion']}")
        if self.failures:
            raise self.failures.pop(0)
        if self.live is None:
            raise NotFound("gone")
        if body["metadata"]["resourceVersion"] != self.live["metadata"]["resourceVersion"]:
            raise Conflict("another version")
        self.live = {**self.live, "status": {**self.live["status"], **body["status"]}}
        return self.live


@dataclass
class FakeLocal:
    """A controller beside the reporter, and what it was told."""

    run: Json | None
    session: Json | None = None
    told: list[Any] = field(default_factory=list)

    def cached(self, key: ObjectKey) -> Json | None:
        return self.run

    def cached_approval(self, key: ObjectKey) -> Json | None:
        return None

    def cached_session(self, key: ObjectKey) -> Json | None:
        return self.session

    def ending(self, uid: str) -> None:
        self.told.append("ending")

    def ended(self, uid: str, run: Json | None) -> None:
        self.told.append(run and run["status"]["phase"])


async def send(kube: FakeKube, cached: Json | None, *, seq: int = 1, **info: Any) -> FakeLocal:
    local = FakeLocal(cached)
    await write(kube, local, report(seq), **info)
    return local


async def write(kube: FakeKube, local: FakeLocal, sent: RunReport, **info: Any) -> ReportResult:
    approvals = ApprovalWriter(kube, local, lambda: NOW)  # type: ignore[arg-type]
    sessions = SessionReporter(INSTALLATION, frozenset(), kube, local, lambda: NOW)  # type: ignore[arg-type]
    reporter = RunReporter(INSTALLATION, frozenset(), kube, local, approvals, sessions, lambda: NOW)  # type: ignore[arg-type]
    environment = ActivityEnvironment()
    described = {"workflow_id": f"{INSTALLATION}.shop.r1.uid-r1", "workflow_type": "AgentRun", **info}
    environment.info = replace(ActivityEnvironment.default_info(), **described)
    activity: Callable[[RunReport], Awaitable[ReportResult]] = reporter.report
    return await environment.run(activity, sent)


async def test_the_cached_object_saves_the_read() -> None:
    kube = FakeKube(started_run())
    local = await send(kube, started_run())
    assert kube.calls == ["patch 10"]
    assert local.told == ["ending", "Succeeded"]


async def test_a_cache_that_lags_costs_a_read_and_is_never_believed() -> None:
    kube = FakeKube(started_run(metadata={"resourceVersion": "11"}))
    await send(kube, run())
    assert kube.calls == ["patch 10", "get", "patch 11"]


async def test_before_a_report_is_dropped_the_live_object_is_read() -> None:
    kube = FakeKube(started_run())
    await send(kube, run(metadata={"uid": "of another"}))
    assert kube.calls == ["get", "patch 10"]


async def test_a_deleted_object_ends_the_report_quietly() -> None:
    kube = FakeKube(None)
    local = await send(kube, started_run())
    assert kube.calls == ["patch 10"]
    assert local.told == ["ending", None]


async def test_a_server_that_is_away_is_temporals_to_retry() -> None:
    kube = FakeKube(started_run(), failures=[Unavailable("the API server cannot be reached: refused")])
    with pytest.raises(ApplicationError, match="cannot be reached") as raised:
        await send(kube, started_run())
    assert not raised.value.non_retryable


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({"workflow_id": "other.shop.r1.uid-r1"}, id="of another installation"),
        pytest.param({"workflow_id": "by-hand"}, id="with an id of its own"),
        pytest.param({"workflow_type": "Forged"}, id="of another type"),
    ],
)
async def test_a_workflow_that_is_not_ours_writes_nothing(info: dict[str, Any]) -> None:
    kube = FakeKube(started_run())
    await send(kube, started_run(), **info)
    assert kube.calls == []


ASKS = ApprovalRequest(
    name="r1-a", subject="ToolCall", agent="helper", question="?", arguments="{}", digest="sha256:0", requested_at=at()
)


def asking(seq: int = 1) -> RunReport:
    return report(seq, phase="AwaitingApproval", finished_at=None, pending_approvals=[ASKS])


async def test_approvals_come_before_the_status_and_their_uids_go_back() -> None:
    kube = FakeKube(started_run())
    result = await write(kube, FakeLocal(started_run()), asking())
    assert kube.calls == ["get", "create AgentApproval", "create Event", "patch 10"]
    assert result == ReportResult(approvals={"r1-a": "uid-r1-a"})


async def test_a_report_whose_answer_got_lost_gives_it_again() -> None:
    kube = FakeKube(started_run(seq=1))
    result = await write(kube, FakeLocal(None), asking())
    assert kube.calls == ["get", "create AgentApproval", "create Event"]
    assert result.approvals == {"r1-a": "uid-r1-a"}


@pytest.mark.parametrize(
    "live",
    [
        pytest.param(started_run(seq=2), id="a newer report was quicker, which the cache need not know yet"),
        pytest.param(finished_run(), id="the run has ended"),
        pytest.param(None, id="the run is gone"),
        pytest.param(run(metadata={"uid": "new"}), id="the run was made anew"),
    ],
)
async def test_a_late_report_asks_nobody(live: Json | None) -> None:
    kube = FakeKube(live)
    assert await write(kube, FakeLocal(started_run()), asking()) == ReportResult()
    assert kube.calls == ["get"]


async def test_a_report_that_is_overtaken_while_it_asks_takes_it_back() -> None:
    newer = started_run(seq=2, metadata={"resourceVersion": "11"})
    kube = FakeKube(started_run(), overtaken_by=newer)
    assert await write(kube, FakeLocal(started_run()), asking()) == ReportResult(), "the newer one tells the uids"
    assert kube.calls == [
        "get",
        "create AgentApproval",
        "create Event",
        "patch 10",
        "get",
        "delete r1-a uid-r1-a 10",
    ]
    assert kube.live == newer


async def test_a_run_says_that_somebody_has_the_name_of_what_it_asks() -> None:
    kube = FakeKube(started_run(), stranger=approval("r1-a", metadata={"ownerReferences": []}))
    for _ in range(2):
        with pytest.raises(ApplicationError, match="nobody is asked until it is gone"):
            await write(kube, FakeLocal(started_run()), asking())
    assert kube.calls.count("patch 10") == 1
    assert kube.live is not None
    for type_ in (ConditionType.SUCCEEDED, ConditionType.READY):
        said = find_condition(kube.live, type_)
        assert said is not None
        assert said["reason"] == "NameConflict"
        assert "kubectl delete agentapproval r1-a -n shop" in said["message"]
    status = kube.live["status"]
    assert (status["phase"], status["workflow"]["reportSeq"]) == ("Running", 0)
    kube.stranger = None
    await write(kube, FakeLocal(started_run()), asking())
    written: Json = kube.live["status"]
    assert (written["phase"], written["workflow"]["reportSeq"]) == ("AwaitingApproval", 1)


async def test_a_status_that_has_to_be_written_again_asks_once() -> None:
    kube = FakeKube(started_run(), overtaken_by=started_run(metadata={"resourceVersion": "11"}))
    result = await write(kube, FakeLocal(started_run()), asking())
    assert kube.calls == ["get", "create AgentApproval", "create Event", "patch 10", "get", "patch 11"]
    assert result.approvals == {"r1-a": "uid-r1-a"}


async def test_no_status_names_an_approval_that_could_not_be_created() -> None:
    kube = FakeKube(started_run(), failures=[Unavailable("the API server cannot be reached: refused")])
    with pytest.raises(ApplicationError):
        await write(kube, FakeLocal(started_run()), asking())
    assert kube.calls == ["get", "create AgentApproval"]
