"""AgentApprovals as reports make them: created once, never adopted from a stranger, told once what came of them."""

import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api.contract import ApprovalEnd, ApprovalRequest, RunReport, WorkflowTarget
from dalang_operator.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from dalang_operator.kube.resources import Json, ObjectKey, Resource
from dalang_operator.reporter.approvals import ApprovalWriter, make_approval

from tests.build import INSTALLATION, LONG_AGO, NOW, approval, at

TARGET = WorkflowTarget(INSTALLATION, "shop", "r1", "uid-r1")
ID = f"{INSTALLATION}.shop.r1.uid-r1"
REQUEST = ApprovalRequest(
    name="r1-a",
    subject="ToolCall",
    agent="helper",
    tool="pay",
    question="Charge?",
    arguments='{"amount":120}',
    digest="sha256:0",
    requested_at=LONG_AGO,
)


@dataclass
class FakeKube:
    """Approvals by name; every call is kept."""

    objects: dict[str, Json] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    conflicts: int = 0
    takes_events: bool = True

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.calls.append(f"get {name}")
        try:
            return self.objects[name]
        except KeyError:
            raise NotFound(name) from None

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        if resource.kind == "Event":
            if not self.takes_events:
                raise Unavailable("no events today")
            self.events.append(body)
            return body
        name = body["metadata"]["name"]
        self.calls.append(f"create {name}")
        if name in self.objects:
            raise AlreadyExists(name)
        self.objects[name] = {**body, "metadata": {**body["metadata"], "uid": f"made-{len(self.calls)}"}}
        return self.objects[name]

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, subresource: str | None = None
    ) -> Json:
        self.calls.append(f"{subresource} {name} {body['status']['state']}")
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("another version")
        current = self.objects[name]
        self.objects[name] = {**current, "status": {**current["status"], **body["status"]}}
        return self.objects[name]


@dataclass
class FakeLocal:
    approvals: dict[str, Json] = field(default_factory=dict)

    def cached_approval(self, key: ObjectKey) -> Json | None:
        return self.approvals.get(key.name)


def report(**fields: Any) -> RunReport:
    return RunReport(
        seq=1,
        run_id="run-1",
        task_queue="q",
        phase="AwaitingApproval",
        reason="AwaitingApproval",
        message="",
        agent="helper",
        agents=[],
        started_at=at(),
        **fields,
    )


def writer(kube: FakeKube, local: FakeLocal | None = None) -> ApprovalWriter:
    return ApprovalWriter(kube, local or FakeLocal(), lambda: NOW)  # type: ignore[arg-type]


async def ask(write: ApprovalWriter, *requests: ApprovalRequest) -> dict[str, str] | None:
    return await write.write(report(pending_approvals=list(requests)), TARGET, ID)


async def settle(write: ApprovalWriter, **fields: Any) -> None:
    end = ApprovalEnd(**{"name": "r1-a", "uid": "uid-r1-a", "tool": "pay", "state": "Applied", **fields})
    await write.write(report(ended_approvals=[end]), TARGET, ID)


async def test_a_request_becomes_an_object_of_the_run() -> None:
    kube = FakeKube()
    assert await ask(writer(kube), REQUEST) == {"r1-a": "made-1"}
    made = kube.objects["r1-a"]
    assert made["spec"] == {
        "subject": "ToolCall",
        "runRef": {"name": "r1"},
        "workflowId": ID,
        "agent": "helper",
        "tool": "pay",
        "question": "Charge?",
        "arguments": '{"amount":120}',
        "digest": "sha256:0",
        "requestedAt": LONG_AGO,
    }
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-r1", True, False)
    [event] = kube.events
    assert (event["type"], event["reason"], event["regarding"]["uid"]) == ("Normal", "AwaitingApproval", "uid-r1")
    assert "kubectl patch agentapproval r1-a -n shop --type merge" in event["note"]


async def test_a_retry_after_any_write_finds_what_is_there() -> None:
    kube = FakeKube()
    first = await ask(writer(kube), REQUEST)
    assert await ask(writer(kube), REQUEST) == first
    assert kube.calls == ["create r1-a", "create r1-a", "get r1-a"]
    assert len(kube.events) == 1


async def test_a_request_that_was_decided_meanwhile_is_still_the_same() -> None:
    kube = FakeKube()
    first = await ask(writer(kube), REQUEST)
    kube.objects["r1-a"]["spec"] |= {"decision": "Reject", "reason": "no", "decidedBy": "ada"}
    assert await ask(writer(kube), REQUEST) == first


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({"spec": {"arguments": '{"amount":1}'}}, id="harmless arguments in the place of ours"),
        pytest.param({"spec": {"digest": "sha256:1"}}, id="another digest"),
        pytest.param({"spec": {"workflowId": "x.shop.r1.uid"}}, id="another workflow"),
        pytest.param({"metadata": {"ownerReferences": []}}, id="nobody's"),
        pytest.param({"metadata": {"deletionTimestamp": at()}}, id="about to go"),
        pytest.param(
            {"metadata": {"ownerReferences": [{"uid": "uid-old", "controller": True}]}}, id="of an earlier run"
        ),
    ],
)
async def test_a_strangers_object_is_never_adopted(found: Json) -> None:
    ours = make_approval(REQUEST, TARGET, ID)
    metadata = {**ours["metadata"], "uid": "theirs", **found.get("metadata", {})}
    kube = FakeKube({"r1-a": {"metadata": metadata, "spec": {**ours["spec"], **found.get("spec", {})}}})
    write = writer(kube)
    with pytest.raises(Conflict, match="nobody is asked until it is gone"):
        await ask(write, REQUEST)
    del kube.objects["r1-a"]
    assert await ask(write, REQUEST) == {"r1-a": "made-3"}


async def test_what_this_process_has_seen_and_the_cache_still_has_costs_no_call() -> None:
    kube, local = FakeKube(), FakeLocal()
    write = writer(kube, local)
    first = await ask(write, REQUEST)
    local.approvals = dict(kube.objects)
    assert await ask(write, REQUEST) == first
    assert kube.calls == ["create r1-a"]


async def test_the_cache_alone_proves_nothing() -> None:
    """It keeps no arguments, so a stranger's object could be taken for ours."""
    theirs = make_approval(REQUEST, TARGET, ID)
    theirs["metadata"]["uid"] = "theirs"
    kube = FakeKube({"r1-a": {**theirs, "spec": {**theirs["spec"], "arguments": "{}"}}})
    with pytest.raises(Conflict):
        await ask(writer(kube, FakeLocal({"r1-a": theirs})), REQUEST)


async def test_an_approval_that_was_deleted_is_made_anew() -> None:
    kube = FakeKube()
    write = writer(kube)
    first = await ask(write, REQUEST)
    del kube.objects["r1-a"]
    assert await ask(write, REQUEST) != first


async def test_several_are_asked_at_once_and_an_event_that_is_refused_stops_none() -> None:
    kube = FakeKube(takes_events=False)
    names = [f"r1-{number}" for number in range(20)]
    made = await ask(writer(kube), *(REQUEST.model_copy(update={"name": name}) for name in names))
    assert made is not None
    assert list(made) == names


async def test_what_came_of_it_is_written_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    kube = FakeKube({"r1-a": approval(decision="Approve", decidedBy="ada")})
    write = writer(kube)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            await settle(write, decision="Approve", decided_by="ada")
    assert kube.calls == ["get r1-a", "status r1-a Applied"]
    [line] = [record for record in caplog.records if hasattr(record, "decided_by")]
    said = {name: getattr(line, name) for name in ("run", "approval", "tool", "decision", "decided_by")}
    assert said == {"run": "r1", "approval": "r1-a", "tool": "pay", "decision": "Approve", "decided_by": "ada"}


@pytest.mark.parametrize(
    ("there", "calls"),
    [
        pytest.param(None, ["get r1-a"], id="it is gone"),
        pytest.param(approval(metadata={"uid": "new"}), ["get r1-a"], id="it was made anew"),
        pytest.param(
            approval(metadata={"ownerReferences": [{"uid": "uid-old", "controller": True}]}),
            ["get r1-a"],
            id="another run owns it",
        ),
        pytest.param(approval(status={"state": "Expired"}), ["get r1-a"], id="it says something final already"),
        pytest.param(
            approval(status={"state": "Delivered"}), ["get r1-a", "status r1-a Applied"], id="it was delivered"
        ),
    ],
)
async def test_whom_it_is_written_to(there: Json | None, calls: list[str]) -> None:
    kube = FakeKube({"r1-a": there} if there else {})
    await settle(writer(kube))
    assert kube.calls == calls


async def test_a_cached_approval_saves_the_read_and_is_not_believed() -> None:
    kube = FakeKube({"r1-a": approval(metadata={"resourceVersion": "12"})}, conflicts=1)
    await settle(writer(kube, FakeLocal({"r1-a": approval()})), state="Superseded")
    assert kube.calls == ["status r1-a Superseded", "get r1-a", "status r1-a Superseded"]


async def test_an_end_without_uid_is_the_runs_own() -> None:
    kube = FakeKube({"r1-a": approval()})
    await settle(writer(kube), uid=None, state="Expired")
    assert kube.objects["r1-a"]["status"]["state"] == "Expired"
