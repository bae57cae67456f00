"""Which reports of a session and its runs are written, and onto what."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.contract import ReportResult, RunIdentity, RunReport, SessionReport, WorkflowTarget
from dalang_api.v1alpha1.agentsession import AgentSessionStatus
from dalang_operator.kinds.agentsession.status import session_status
from dalang_operator.kube.errors import ApiError, Conflict, NotFound, Unavailable
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SESSIONS, Json, ObjectKey, Resource
from dalang_operator.reporter.approvals import ApprovalWriter
from dalang_operator.reporter.report import RunReporter
from dalang_operator.reporter.session import SessionReporter, refusal
from pydantic_core import to_json
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tests.build import (
    INSTALLATION,
    NOW,
    at,
    condition,
    exchange,
    finished_run,
    open_session,
    sent_exchange,
    session,
    started_run,
)

TARGET = WorkflowTarget(INSTALLATION, "shop", "chat", "uid-chat")
ID = f"{INSTALLATION}.shop.chat.uid-chat"


def of_session(seq: int = 2, **fields: Any) -> SessionReport:
    return SessionReport(
        **{"seq": seq, "run_id": "run-1", "task_queue": "q", "agent": "sales", "started_at": at(), **fields}
    )


def of_run(seq: int = 2, **fields: Any) -> RunReport:
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
        "run": RunIdentity(name="r1", uid="uid-r1"),
        "session": of_session(seq),
    }
    return RunReport(seq=seq, **{**defaults, **fields})


@dataclass
class FakeKube:
    """A run and a session; every call is kept."""

    run: Json | None = None
    session: Json | None = None
    failures: list[ApiError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.calls.append(f"get {resource.kind}")
        live = self.run if resource is AGENT_RUNS else self.session
        if live is None:
            raise NotFound("gone")
        return live

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, subresource: str | None = None
    ) -> Json:
        self.calls.append(f"patch {resource.kind}")
        if self.failures:
            raise self.failures.pop(0)
        live = self.run if resource is AGENT_RUNS else self.session
        if live is None:
            raise NotFound("gone")
        if body["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise Conflict("another version")
        written = {**live, "status": {**live["status"], **body["status"]}}
        if resource is AGENT_SESSIONS:
            self.session = written
        else:
            self.run = written
        return written


@dataclass
class FakeLocal:
    """A controller beside the reporter."""

    session: Json | None = None
    told: list[Any] = field(default_factory=list)

    def cached(self, key: ObjectKey) -> Json | None:
        return None

    def cached_approval(self, key: ObjectKey) -> Json | None:
        return None

    def cached_session(self, key: ObjectKey) -> Json | None:
        return self.session

    def ending(self, uid: str) -> None:
        self.told.append(("ending", uid))

    def ended(self, uid: str, run: Json | None) -> None:
        self.told.append(("ended", uid))


async def send(kube: FakeKube, report: RunReport | SessionReport, local: FakeLocal | None = None, **info: Any) -> Any:
    local = local or FakeLocal()
    approvals = ApprovalWriter(kube, local, lambda: NOW)  # type: ignore[arg-type]
    sessions = SessionReporter(INSTALLATION, frozenset(), kube, local, lambda: NOW)  # type: ignore[arg-type]
    runs = RunReporter(INSTALLATION, frozenset(), kube, local, approvals, sessions, lambda: NOW)  # type: ignore[arg-type]
    environment = ActivityEnvironment()
    described = {"workflow_id": ID, "workflow_type": "AgentSession", **info}
    environment.info = replace(ActivityEnvironment.default_info(), **described)
    activity: Callable[[Any], Awaitable[Any]] = runs.report if isinstance(report, RunReport) else sessions.report
    return await environment.run(activity, report)


@pytest.mark.parametrize(
    ("obj", "seq", "why_not"),
    [
        pytest.param(open_session(), 2, None, id="a later one"),
        pytest.param(session(), 1, None, id="a report may come before the start was noted"),
        pytest.param(open_session(seq=2), 2, "older", id="the same once more"),
        pytest.param(open_session(seq=3), 2, "older", id="an older one"),
        pytest.param(session(metadata={"uid": "new"}), 1, "another_uid", id="the object was made anew"),
        pytest.param(None, 1, "deleted", id="the object is gone"),
    ],
)
def test_refusal(obj: Json | None, seq: int, why_not: str | None) -> None:
    assert refusal(of_session(seq), obj, TARGET) == why_not


async def test_one_report_is_written_onto_the_run_and_its_session() -> None:
    kube, local = FakeKube(sent_exchange(), open_session()), FakeLocal(open_session())
    assert await send(kube, of_run(), local) == ReportResult()
    assert kube.calls == ["get AgentRun", "patch AgentRun", "patch AgentSession"]
    assert local.told == [("ending", "uid-r1"), ("ended", "uid-r1")]
    assert kube.run is not None
    assert kube.session is not None
    assert (kube.run["status"]["phase"], kube.session["status"]["agent"]) == ("Succeeded", "sales")


async def test_a_report_whose_second_half_failed_is_written_on_the_second_attempt() -> None:
    kube = FakeKube(sent_exchange(), open_session())
    kube.failures = []
    await send(kube, of_run())
    kube.session = open_session()  # as if the write had failed
    kube.calls.clear()
    await send(kube, of_run())
    assert kube.calls == ["get AgentRun", "get AgentSession", "patch AgentSession"]


@pytest.mark.parametrize(
    ("live", "result"),
    [
        pytest.param(None, ReportResult(gone=True), id="the run was deleted: nobody waits"),
        pytest.param(
            exchange(metadata={"uid": "new"}),
            ReportResult(gone=True),
            id="it was made anew: nobody waits for the old one",
        ),
        pytest.param(sent_exchange(session="other"), ReportResult(), id="the run belongs to another session"),
        pytest.param(started_run(), ReportResult(), id="the run belongs to none"),
        pytest.param(finished_run(), ReportResult(), id="the run has ended"),
        pytest.param(sent_exchange(seq=2), ReportResult(), id="an older report"),
    ],
)
async def test_what_is_not_the_sessions_to_write_is_left(live: Json | None, result: ReportResult) -> None:
    kube = FakeKube(live, open_session())
    assert await send(kube, of_run()) == result
    assert kube.calls == ["get AgentRun", "get AgentSession", "patch AgentSession"], "the session itself is told"


def ended_by_controller(seq: int) -> Json:
    """A run that was under way, until the controller ended it."""
    run = sent_exchange(seq=seq)
    run["status"] |= {"phase": "Failed", "finishedAt": at()}
    return run


@pytest.mark.parametrize(
    ("live", "report", "is_gone"),
    [
        pytest.param(
            ended_by_controller(2), of_run(3, phase="Running", finished_at=None), True, id="it goes on, for nobody"
        ),
        pytest.param(
            ended_by_controller(3),
            of_run(3, phase="Running", finished_at=None),
            True,
            id="likewise, the same once more",
        ),
        pytest.param(ended_by_controller(2), of_run(3), None, id="it has ended by itself"),
        pytest.param(
            ended_by_controller(4),
            of_run(3, phase="Running", finished_at=None),
            None,
            id="a word from before the last report",
        ),
    ],
)
async def test_a_session_that_goes_on_with_a_run_the_controller_has_ended_is_told(
    live: Json, report: RunReport, is_gone: bool | None
) -> None:
    kube = FakeKube(live, open_session())
    assert await send(kube, report) == ReportResult(gone=is_gone)
    assert "patch AgentRun" not in kube.calls


async def test_the_run_of_an_earlier_session_of_the_name_is_that_ones() -> None:
    run = sent_exchange()
    run["status"]["workflow"]["id"] = f"{INSTALLATION}.shop.chat.uid-old"
    kube = FakeKube(run, open_session())
    await send(kube, of_run(), workflow_id=f"{INSTALLATION}.shop.chat.uid-new")
    assert kube.calls == ["get AgentRun", "get AgentSession"]
    await send(kube, of_run(), workflow_id=f"{INSTALLATION}.shop.chat.uid-old")
    assert kube.calls[2:] == ["get AgentRun", "patch AgentRun", "get AgentSession"], "whose session is gone"


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({"workflow_id": "other.shop.chat.uid-chat"}, id="of another installation"),
        pytest.param({"workflow_type": "Forged"}, id="of another type"),
        pytest.param({"workflow_type": "AgentRun"}, id="a run's workflow writes about no other run, and no session"),
    ],
)
@pytest.mark.parametrize("report", [of_run(run=RunIdentity(name="r2", uid="uid-r2")), of_session()])
async def test_a_workflow_that_is_not_ours_writes_nothing(
    info: dict[str, Any], report: RunReport | SessionReport
) -> None:
    kube = FakeKube(None, open_session())
    await send(kube, report, **info)
    assert "patch" not in " ".join(kube.calls)


async def test_a_report_without_its_run_is_not_one() -> None:
    kube = FakeKube(sent_exchange(), open_session())
    await send(kube, of_run(run=None))
    assert kube.calls == []


async def test_a_session_reports_of_itself() -> None:
    kube = FakeKube(None, open_session())
    await send(kube, of_session(closed_at=at(), closed_message="Idle for 30 days"))
    assert kube.calls == ["get AgentSession", "patch AgentSession"]
    assert kube.session is not None
    [ready] = kube.session["status"]["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", "Closed", "Idle for 30 days")


async def test_a_cache_that_lags_costs_a_read() -> None:
    kube = FakeKube(None, open_session(metadata={"resourceVersion": "11"}))
    await send(kube, of_session(), FakeLocal(open_session()))
    assert kube.calls == ["patch AgentSession", "get AgentSession", "patch AgentSession"]


async def test_a_server_that_is_away_is_temporals_to_retry() -> None:
    kube = FakeKube(sent_exchange(), open_session())
    kube.failures = [Unavailable("the API server cannot be reached: refused")]
    with pytest.raises(ApplicationError, match="cannot be reached"):
        await send(kube, of_session())


def test_a_report_is_the_whole_state_but_for_what_the_controller_writes() -> None:
    before = open_session()
    before["status"] |= {"summary": "old", "lastRun": {"name": "r0"}}
    report = of_session(
        runs=3,
        queued_runs=1,
        last_run=contract.LastRun(name="r3", phase="Failed", finished_at=at()),
        messages=[contract.RecentMessage(role="User", content="hello")],
        context={"order": "42"},
        input_tokens=10,
        output_tokens=5,
        cost_usd="0.0123456789123",
    )
    assert session_status(report, before, ID, NOW) == {
        "conditions": before["status"]["conditions"],
        "observedGeneration": 1,
        "agent": "sales",
        "runs": 3,
        "queuedRuns": 1,
        "lastRun": {"name": "r3", "phase": "Failed", "finishedAt": at()},
        "messages": [{"role": "User", "content": "hello"}],
        "context": {"order": "42"},
        "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "costUSD": "0.012345679"},
        "startedAt": at(),
        "workflow": {"id": ID, "runId": "run-1", "taskQueue": "q", "reportSeq": 2},
    }


def test_a_summary_that_failed_is_said_until_one_is_written() -> None:
    before = open_session()
    failed = session_status(of_session(summary_problem="The model is away"), before, ID, NOW)
    ready, summarised = failed["conditions"]
    assert ready == before["status"]["conditions"][0]
    assert (summarised["type"], summarised["status"], summarised["message"]) == (
        "Summarised",
        "False",
        "The model is away",
    )
    status = session_status(of_session(3), {**before, "status": failed}, ID, NOW)
    assert status["conditions"] == before["status"]["conditions"]


def test_a_session_that_closes_stalls_no_more_and_is_seen_as_it_is() -> None:
    stalled = open_session(metadata={"generation": 2})
    stalled["status"]["conditions"] += [condition("Stalled", "True", "WorkflowTaskFailing")]
    status = session_status(of_session(closed_at=at()), stalled, ID, NOW)
    assert [each["type"] for each in status["conditions"]] == ["Ready"]
    assert (status["observedGeneration"], status["closedAt"]) == (2, at())


def test_the_largest_status_fits_and_its_schema_takes_it() -> None:
    report = of_session(
        summary='"' * 5000,
        messages=[contract.RecentMessage(role="User", content='"' * 1000)] * 8,
        context={f"v{number}": '"' * 1000 for number in range(8)},
    )
    status = session_status(report, open_session(), ID, NOW)
    assert len(to_json(status)) <= 32 * 1024
    AgentSessionStatus.model_validate(status)
