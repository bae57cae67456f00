"""AgentApprovals as reports make them: created once, never adopted from a stranger, told once what came of them."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api.contract import ApprovalEnd, ApprovalRequest, ApprovalTarget, RunReport, WorkflowTarget
from dalang_operator.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from dalang_operator.kube.resources import Json, ObjectKey, Resource
from dalang_operator.reporter.approvals import ApprovalWriter, NameTaken, make_approval

from tests.build import INSTALLATION, LONG_AGO, NOW, approval, at, awaiting_run, started_run

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
            if body["metadata"]["name"] in [event["metadata"]["name"] for event in self.events]:
                raise AlreadyExists("it is told")
            self.events.append(body)
            return body
        name = body["metadata"]["name"]
        self.calls.append(f"create {name}")
        if name in self.objects:
            raise AlreadyExists(name)
        metadata = {**body["metadata"], "uid": f"made-{len(self.calls)}", "resourceVersion": "10"}
        self.objects[name] = {**body, "metadata": metadata, "status": {"state": "Pending"}}
        return self.objects[name]

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        self.calls.append(f"delete {name}")
        if name not in self.objects:
            raise NotFound(name)
        found = self.objects[name]["metadata"]
        if (found["uid"], found["resourceVersion"]) != (uid, resource_version):
            raise Conflict("another version")
        del self.objects[name]

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
    asked = await write.write(report(pending_approvals=list(requests)), TARGET, ID)
    return asked.uids if asked else None


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
    assert event["note"].startswith("Charge? Decide with: kubectl patch agentapproval r1-a -n shop --type merge")


@pytest.mark.parametrize(
    "target",
    [{"kind": "Function", "name": "charge"}, {"kind": "MCP", "name": "charge", "server": "shop"}],
    ids=lambda target: target["kind"],
)
async def test_the_object_says_what_the_call_would_run(target: Json) -> None:
    request = REQUEST.model_copy(update={"target": ApprovalTarget.model_validate(target)})
    kube = FakeKube()
    first = await ask(writer(kube), request)
    assert kube.objects["r1-a"]["spec"]["target"] == target
    assert await ask(writer(kube), request) == first
    del kube.objects["r1-a"]["spec"]["target"]
    assert await ask(writer(kube), request) == first, "an operator from before there were targets made it"
    for other in ({**target, "name": "greet"}, {**target, "server": "bank"}):
        kube.objects["r1-a"]["spec"]["target"] = other
        with pytest.raises(NameTaken):
            await ask(writer(kube), request)
    with pytest.raises(NameTaken):
        await ask(writer(kube), REQUEST)


async def test_the_event_says_what_is_behind_the_tool() -> None:
    kube = FakeKube()
    await ask(writer(kube), REQUEST.model_copy(update={"target": ApprovalTarget(kind="Function", name="charge")}))
    [event] = kube.events
    assert event["note"].startswith("Charge? Behind it: function charge. Decide with: kubectl patch agentapproval r1-a")


@pytest.mark.parametrize(
    ("question", "begins"),
    [
        pytest.param(
            "Pay?\nSucceeded: True \u202e", "Pay?\\nSucceeded: True \\u202e Decide with: kubectl ", id="tricks"
        ),
        pytest.param("\u202e" * 512, "\\u202e" * 99, id="written out it would take the command's place"),
    ],
)
async def test_the_event_is_one_line_with_the_command_whatever_is_asked(question: str, begins: str) -> None:
    kube = FakeKube()
    await ask(writer(kube), REQUEST.model_copy(update={"question": question}))
    [event] = kube.events
    assert event["note"].startswith(begins)
    assert event["note"].endswith("""--type merge -p '{"spec":{"decision":"Approve"}}'""")
    assert event["note"].isprintable()


async def test_a_retry_after_any_write_finds_what_is_there() -> None:
    kube = FakeKube()
    first = await ask(writer(kube), REQUEST)
    assert await ask(writer(kube), REQUEST) == first
    assert kube.calls == ["create r1-a", "create r1-a", "get r1-a"]
    assert len(kube.events) == 1


async def test_an_event_that_was_not_told_before_its_writer_died_is_told_by_the_next() -> None:
    kube = FakeKube()
    await ask(writer(kube), REQUEST)
    told, kube.events = kube.events, []
    await ask(writer(kube), REQUEST)
    assert kube.events == told
    kube.events = []
    kube.objects["r1-a"]["spec"] |= {"decision": "Reject", "decidedBy": "ada"}
    await ask(writer(kube), REQUEST)
    assert kube.events == [], "nobody need decide"


async def test_a_request_that_was_decided_meanwhile_is_still_the_same() -> None:
    kube = FakeKube()
    first = await ask(writer(kube), REQUEST)
    kube.objects["r1-a"]["spec"] |= {"decision": "Reject", "reason": "no", "decidedBy": "ada"}
    assert await ask(writer(kube), REQUEST) == first


@pytest.mark.parametrize(
    ("found", "says_so"),
    [
        pytest.param(
            {"spec": {"arguments": '{"amount":1}'}}, True, id="harmless arguments in the place of ours, which says so"
        ),
        pytest.param({"spec": {"digest": "sha256:1", "decision": "Approve"}}, True, id="another digest, decided"),
        pytest.param({"spec": {"workflowId": "x.shop.r1.uid"}}, True, id="another workflow"),
        pytest.param({"metadata": {"ownerReferences": []}}, False, id="nobody's, thus not ours to write to"),
        pytest.param(
            {"metadata": {"ownerReferences": [{"uid": "uid-old", "controller": True}]}}, False, id="of an earlier run"
        ),
    ],
)
async def test_a_strangers_object_is_never_adopted(found: Json, says_so: bool) -> None:
    ours = make_approval(REQUEST, TARGET, ID)
    metadata = {**ours["metadata"], "uid": "theirs", "resourceVersion": "1", **found.get("metadata", {})}
    spec = {**ours["spec"], **found.get("spec", {})}
    kube = FakeKube({"r1-a": {"metadata": metadata, "spec": spec, "status": {"state": "Pending"}}})
    write = writer(kube)
    for _ in range(2):
        with pytest.raises(NameTaken, match="gone: kubectl delete agentapproval r1-a -n shop"):
            await ask(write, REQUEST)
    assert kube.calls.count("status r1-a Expired") == says_so
    if says_so:
        [ready] = kube.objects["r1-a"]["status"]["conditions"]
        assert (ready["status"], ready["reason"]) == ("False", "UnknownRequest")
        assert "kubectl delete agentapproval r1-a -n shop" in ready["message"]
    assert kube.events == []
    del kube.objects["r1-a"]
    made = await ask(write, REQUEST)
    assert made is not None
    assert made["r1-a"].startswith("made-")


async def test_one_that_is_kept_from_going_is_not_adopted_and_no_delete_helps() -> None:
    ours = make_approval(REQUEST, TARGET, ID)
    metadata = {"uid": "ours", "resourceVersion": "1", "deletionTimestamp": at(), "finalizers": ["x.io/y"]}
    kube = FakeKube({"r1-a": {**ours, "metadata": {**ours["metadata"], **metadata}, "status": {"state": "Pending"}}})
    with pytest.raises(NameTaken, match=r"gone: kubectl patch agentapproval r1-a -n shop --type merge -p .*finalizers"):
        await ask(writer(kube), REQUEST)
    [ready] = kube.objects["r1-a"]["status"]["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "UnknownRequest")


@pytest.mark.parametrize(
    ("run", "there", "is_left"),
    [
        pytest.param(started_run(seq=2), {}, False, id="the newer report does not ask for it"),
        pytest.param(awaiting_run("r1", "r1-b"), {}, False, id="it asks for another"),
        pytest.param(awaiting_run("r1", "r1-a"), {}, True, id="it asks for it as well"),
        pytest.param(started_run(seq=2), {"resourceVersion": "11"}, True, id="somebody has decided meanwhile"),
        pytest.param(started_run(seq=2), {"uid": "another"}, True, id="it was made anew meanwhile"),
    ],
)
async def test_what_an_older_report_has_made_is_withdrawn(run: Json, there: Json, is_left: bool) -> None:
    kube = FakeKube()
    write = writer(kube)
    asked = await write.write(report(pending_approvals=[REQUEST]), TARGET, ID)
    assert asked is not None
    kube.objects["r1-a"] = {**kube.objects["r1-a"], "metadata": {**kube.objects["r1-a"]["metadata"], **there}}
    await write.withdraw(asked.made, run)
    assert ("r1-a" in kube.objects) is is_left


async def test_what_is_found_is_not_withdrawn() -> None:
    kube = FakeKube()
    await ask(writer(kube), REQUEST)
    asked = await writer(kube).write(report(pending_approvals=[REQUEST]), TARGET, ID)
    assert asked is not None
    assert (asked.uids, asked.made) == ({"r1-a": "made-1"}, ())


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
    theirs["metadata"] |= {"uid": "theirs", "resourceVersion": "1"}
    kube = FakeKube({"r1-a": {**theirs, "spec": {**theirs["spec"], "arguments": "{}"}, "status": {}}})
    with pytest.raises(NameTaken):
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
    said = {name: getattr(line, name) for name in ("run", "approval", "tool", "target", "decision", "decided_by")}
    assert said == {
        "run": "r1",
        "approval": "r1-a",
        "tool": "pay",
        "target": None,
        "decision": "Approve",
        "decided_by": "ada",
    }


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        pytest.param(
            {"decision": "Approve", "decided_by": "ada"},
            "AgentApproval shop/r1-a: Applied Approve by ada; tool pay of AgentRun r1",
            id="by a worker from before there were targets",
        ),
        pytest.param(
            {"decision": "Approve", "decided_by": "ada", "target": ApprovalTarget(kind="Function", name="charge")},
            "AgentApproval shop/r1-a: Applied Approve by ada; tool pay (function charge) of AgentRun r1",
            id="with what is behind the tool",
        ),
        pytest.param(
            {"decision": "Reject", "tool": None},
            "AgentApproval shop/r1-a: Applied Reject by nobody; the answer of AgentRun r1",
            id="an answer, rejected by nobody who is proven",
        ),
        pytest.param({"state": "Expired"}, "AgentApproval shop/r1-a: Expired; tool pay of AgentRun r1", id="expired"),
        pytest.param(
            {"target": ApprovalTarget(kind="MCP", name="a\nAgentApproval b", server="files")},
            "AgentApproval shop/r1-a: Applied; tool pay (a\\nAgentApproval b of MCP server files) of AgentRun r1",
            id="a server's tool whose name would be a line of its own",
        ),
    ],
)
async def test_the_line_of_the_log(fields: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await settle(writer(FakeKube({"r1-a": approval()})), **fields)
    assert caplog.messages == [line]


@dataclass
class Unwritable(FakeKube):
    """An API server that goes away before a status is written."""

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, subresource: str | None = None
    ) -> Json:
        raise Unavailable("away")


@pytest.mark.parametrize(
    "kube",
    [
        pytest.param(FakeKube(), id="somebody deleted it while the call was made"),
        pytest.param(FakeKube({"r1-a": approval(metadata={"uid": "new"})}), id="and it was made anew"),
        pytest.param(
            FakeKube({"r1-a": approval(metadata={"uid": "new"}, status={"state": "Expired"})}),
            id="and that is settled",
        ),
        pytest.param(
            FakeKube({"r1-a": approval(metadata={"ownerReferences": [{"uid": "uid-old", "controller": True}]})}),
            id="another run's is in its place",
        ),
        pytest.param(Unwritable({"r1-a": approval()}), id="it cannot be written"),
    ],
)
async def test_what_the_run_acted_on_is_logged_once_whatever_becomes_of_the_object(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    write = writer(kube)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with suppress(Unavailable):
                await settle(write, decision="Approve", decided_by="ada")
    assert caplog.messages == ["AgentApproval shop/r1-a: Applied Approve by ada; tool pay of AgentRun r1"]


async def test_what_another_process_has_written_it_has_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await settle(writer(FakeKube({"r1-a": approval(status={"state": "Applied"})})), decision="Approve")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("there", "calls"),
    [
        pytest.param(None, ["get r1-a"], id="it is gone"),
        pytest.param(
            approval(metadata={"uid": "new"}),
            ["get r1-a", "status r1-a Expired"],
            id="it was made anew: what it asks has ended all the same",
        ),
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


async def test_what_was_not_there_yet_is_told_by_the_next_report() -> None:
    """Its own report may come later than the one that tells of its end."""
    kube = FakeKube()
    write = writer(kube)
    await settle(write)
    kube.objects["r1-a"] = approval()
    await settle(write)
    await settle(write)
    assert kube.calls == ["get r1-a", "get r1-a", "status r1-a Applied"]


async def test_a_cached_approval_saves_the_read_and_is_not_believed() -> None:
    kube = FakeKube({"r1-a": approval(metadata={"resourceVersion": "12"})}, conflicts=1)
    await settle(writer(kube, FakeLocal({"r1-a": approval()})), state="Superseded")
    assert kube.calls == ["status r1-a Superseded", "get r1-a", "status r1-a Superseded"]


async def test_an_end_without_uid_is_the_runs_own() -> None:
    kube = FakeKube({"r1-a": approval()})
    await settle(writer(kube), uid=None, state="Expired")
    assert kube.objects["r1-a"]["status"]["state"] == "Expired"
