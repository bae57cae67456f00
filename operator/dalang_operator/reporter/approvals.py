"""What a report says of approvals becomes AgentApprovals: asked ones are created, ended ones told what came of them.

All of it may be done twice, since the activity is retried after any write. An object of the name that is not exactly this
request by exactly this run is never adopted: it may be an earlier run's, about to be collected, or a stranger's, put
there to be approved in place of ours. The run says so, and so does the object if it claims to be this run's: a workflow
writes to nobody else's.

Reports may overtake each other, in this process or in another. What one has made that turns out to be older is withdrawn.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from dalang_api.contract import ApprovalEnd, ApprovalRequest, RunReport, WorkflowTarget
from dalang_api.printable import printable
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.agentapproval.plan import (
    SETTLED,
    removal_of,
    settled_status,
    state_of,
    unknown_status,
    waits_for,
)
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import AlreadyExists, Conflict, NotFound
from dalang_operator.kube.events import tell_event
from dalang_operator.kube.resources import AGENT_APPROVALS, AGENT_RUNS, Json, ObjectKey, controller_uid, uid_of
from dalang_operator.kube.status import MESSAGE_MAX, clip, write_status
from dalang_operator.reporter.local import LocalRuns

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Objects of one report that are created at the same time; its attempt ends after 10 s."""
ATTEMPTS = 5
_REMEMBERED = 8192
_DECISION = frozenset({"decision", "reason", "override", "decidedBy"})
RUN_LABEL = "dalang.dev/run"


class NameTaken(Conflict):
    """An AgentApproval that the run did not ask for has the name of one that it asks for."""


@dataclass(frozen=True)
class Asked:
    """The AgentApprovals that a report asks for."""

    uids: dict[str, str]
    """By name, of those that are there now."""
    made: tuple[Json, ...]
    """Those that this attempt has created."""


class Remembered:
    """The last few thousand objects of which something is known, by uid or key."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, one: str) -> bool:
        return one in self._known

    def add(self, one: str) -> None:
        """Remember one, and forget the oldest."""
        self._known[one] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


@dataclass(frozen=True)
class ApprovalWriter:
    """Writes what reports say of approvals."""

    kube: KubeClient
    local: LocalRuns
    now: Callable[[], datetime]
    verified: Remembered = field(default_factory=Remembered)
    """Uids of approvals that are as they were asked for: a request is immutable, so one look is enough."""
    settled: Remembered = field(default_factory=Remembered)
    """Keys of approvals that say what came of them: each report tells of the last few again. A name is never used for a
    second question: it is made of the run's uid and the place of what is asked."""
    logged: Remembered = field(default_factory=Remembered)
    """Keys and uids of approvals whose end this process has logged."""

    async def write(self, report: RunReport, target: WorkflowTarget, workflow_id: str) -> Asked | None:
        """Do what the report asks for; returns the pending AgentApprovals, None if there are none.

        Raises:
            NameTaken: Nobody can be asked about one of them; the report is to be tried again.
            ApiError: The API server refused or did not answer; likewise.
        """
        for end in report.ended_approvals or ():
            await self._settle(end, target)
        if not report.pending_approvals:
            return None
        slots = asyncio.Semaphore(AT_ONCE)
        made: list[Json] = []

        async def ask(request: ApprovalRequest) -> tuple[str, str]:
            async with slots:
                return request.name, await self._ask(request, target, workflow_id, made)

        uids = dict(await asyncio.gather(*map(ask, report.pending_approvals)))
        return Asked(uids, tuple(made))

    async def withdraw(self, made: tuple[Json, ...], run: Json) -> None:
        """Delete what an older report has made, unless a newer one asks for it too, or somebody has touched it.

        Nothing is lost by it: an object that its run waits for after all is asked for again.

        Raises:
            ApiError: The API server refused or did not answer.
        """
        for approval in made:
            metadata = approval["metadata"]
            if waits_for(run, metadata["name"]):
                continue
            with suppress(NotFound, Conflict):
                await self.kube.delete(
                    AGENT_APPROVALS,
                    metadata["namespace"],
                    metadata["name"],
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                )

    async def _ask(self, request: ApprovalRequest, target: WorkflowTarget, workflow_id: str, made: list[Json]) -> str:
        """Return the uid of the AgentApproval of a request, which is created, and noted as made, where there is none."""
        key = ObjectKey(target.namespace, request.name)
        cached = self.local.cached_approval(key)
        if cached is not None and uid_of(cached) in self.verified and not cached["metadata"].get("deletionTimestamp"):
            return uid_of(cached)
        body = make_approval(request, target, workflow_id)
        try:
            created = await self.kube.create(AGENT_APPROVALS, key.namespace, body)
        except AlreadyExists:
            found = await self._adopt(key, body)
        else:
            made.append(created)
            found = created
        uid = uid_of(found)
        if uid not in self.verified and not found["spec"].get("decision"):
            # Also of what was found: who made it may have died before it told.
            await self._tell(request, target, uid)
        self.verified.add(uid)
        return uid

    async def _adopt(self, key: ObjectKey, body: Json) -> Json:
        """Return the object there is, if it is what an earlier attempt of this report created."""
        found = await self.kube.get(AGENT_APPROVALS, key.namespace, key.name)
        if is_same_request(found, body):
            return found
        remedy = f"nobody is asked until it is gone: {removal_of(found)}"
        [owner] = body["metadata"]["ownerReferences"]
        if controller_uid(found) == owner["uid"] and state_of(found) not in SETTLED:
            status = unknown_status(found, "It is not what its run asks", f"There, {remedy}", self.now())
            with suppress(NotFound, Conflict):  # the next attempt looks again
                await write_status(self.kube, AGENT_APPROVALS, found, status, "reporter")
        raise NameTaken(f"AgentApproval {key.name} is not what this run asks: {remedy}")

    async def _tell(self, request: ApprovalRequest, target: WorkflowTarget, uid: str) -> None:
        run = {
            "apiVersion": AGENT_RUNS.api_version,
            "kind": AGENT_RUNS.kind,
            "metadata": {"namespace": target.namespace, "name": target.name, "uid": target.suffix},
        }
        patch = '{"spec":{"decision":"Approve"}}'
        command = f"kubectl patch agentapproval {request.name} -n {target.namespace} --type merge -p '{patch}'"
        behind = f" Behind it: {printable(request.target.words)}." if request.target else ""
        remedy = f"{behind} Decide with: {command}"
        await tell_event(
            self.kube,
            run,
            name=f"{request.name}.{uid[:8]}",
            kind="Normal",
            reason=Reason.AWAITING_APPROVAL,
            action="Ask",
            note=clip(printable(request.question), max(1, MESSAGE_MAX - len(remedy))) + remedy,
            now=self.now(),
        )

    async def _settle(self, end: ApprovalEnd, target: WorkflowTarget) -> None:
        """Write what has become of an approval, unless it says so, is gone, or is another run's by now.

        It is logged before, and also where there is no object to write to: who may delete one could else have what was done
        in somebody's name done without a trace. A process that is restarted in between logs it once more.
        """
        key = ObjectKey(target.namespace, end.name)
        if str(key) in self.settled:
            return
        approval = self.local.cached_approval(key)
        for attempt in range(ATTEMPTS):
            try:
                if attempt or approval is None:
                    approval = await self.kube.get(AGENT_APPROVALS, key.namespace, key.name)
                is_the_runs = controller_uid(approval) == target.suffix
                is_settled = state_of(approval) in SETTLED
                if not (is_the_runs and is_settled and end.uid in {None, uid_of(approval)}):
                    self._log(end, key, target)
                if not is_the_runs:
                    return
                if not is_settled:
                    status = settled_status(approval, end, self.now())
                    await write_status(self.kube, AGENT_APPROVALS, approval, status, "reporter")
            except Conflict:
                continue
            except NotFound:
                self._log(end, key, target)
                return  # not for good: an older report may be about to make it
            self.settled.add(str(key))
            return
        raise Conflict(f"AgentApproval {key} changed under {ATTEMPTS} attempts")

    def _log(self, end: ApprovalEnd, key: ObjectKey, target: WorkflowTarget) -> None:
        """Log what has become of an approval, once in this process."""
        if (once := f"{key} {end.uid}") in self.logged:
            return
        self.logged.add(once)
        logger.info(
            "AgentApproval %s: %s; %s of AgentRun %s",
            key,
            _outcome(end),
            _subject(end),
            target.name,
            extra={
                "namespace": target.namespace,
                "run": target.name,
                "approval": end.name,
                "tool": end.tool,
                "target": end.target.model_dump(exclude_none=True) if end.target else None,
                "decision": end.decision or end.state,
                "decided_by": end.decided_by,
            },
        )


def _outcome(end: ApprovalEnd) -> str:
    if end.decision is None:
        return end.state
    return f"{end.state} {end.decision} by {_plain(end.decided_by or 'nobody')}"


def _subject(end: ApprovalEnd) -> str:
    if end.tool is None:
        return "the answer"
    return f"tool {end.tool} ({_plain(end.target.words)})" if end.target else f"tool {end.tool}"


def _plain(text: str) -> str:
    """Return a text that begins no line of its own: names of MCP servers' tools are whatever these say."""
    return ascii(text)[1:-1]


def make_approval(request: ApprovalRequest, target: WorkflowTarget, workflow_id: str) -> Json:
    """Return the AgentApproval of a request, undecided."""
    spec: Json = {
        "subject": request.subject,
        "runRef": {"name": target.name},
        "workflowId": workflow_id,
        "agent": request.agent,
        "tool": request.tool,
        "target": request.target.model_dump(exclude_none=True) if request.target else None,
        "question": request.question,
        "arguments": request.arguments,
        "digest": request.digest,
        "requestedAt": request.requested_at,
        "expiresAt": request.expires_at,
    }
    owner = {
        "apiVersion": AGENT_RUNS.api_version,
        "kind": AGENT_RUNS.kind,
        "name": target.name,
        "uid": target.suffix,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    labels = {
        RUN_LABEL: target.name,
        "app.kubernetes.io/part-of": "dalang",
        "app.kubernetes.io/managed-by": "dalang",
    }
    return {
        "apiVersion": AGENT_APPROVALS.api_version,
        "kind": AGENT_APPROVALS.kind,
        "metadata": {
            "name": request.name,
            "namespace": target.namespace,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def is_same_request(found: Json, wanted: Json) -> bool:
    """Return whether an object is what we would create, decided or not.

    One that lacks `target` was created by an operator from before there was that; the digest covers it.
    """
    request = {name: value for name, value in found["spec"].items() if name not in _DECISION}
    [owner] = wanted["metadata"]["ownerReferences"]
    return (
        controller_uid(found) == owner["uid"]
        and {"target": wanted["spec"].get("target"), **request} == {"target": None, **wanted["spec"]}
        and not found["metadata"].get("deletionTimestamp")
    )
