"""AgentApproval: observe one approval, plan, execute."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from dalang_api.contract import DECIDE_SIGNAL, REPORT_AGAIN_SIGNAL, Decision
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentapproval.plan import (
    SETTLED,
    Action,
    AskAgain,
    DeleteApproval,
    Observed,
    Proof,
    Settings,
    SignalDecision,
    WakeRun,
    needs_proof,
    plan,
    sent_status,
    state_of,
    undelivered_status,
    waits_for,
)
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.events import tell_event
from dalang_operator.kube.resources import (
    AGENT_APPROVALS,
    AGENT_RUNS,
    Json,
    ObjectKey,
    PatchBody,
    Resource,
    controller_uid,
    key_of,
    uid_of,
)
from dalang_operator.kube.status import write_status
from dalang_operator.runtime.cache import Cache, report_seq
from dalang_operator.temporal.errors import TemporalError, WorkflowNotFound

logger = logging.getLogger(__name__)


class KubePort(Protocol):
    """What the reconcile needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json: ...

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json: ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None: ...


class SignalPort(Protocol):
    """What the reconcile needs of Temporal."""

    async def signal(self, workflow_id: str, name: str, value: Decision | None, request_id: str) -> None: ...


class ProofPort(Protocol):
    """Where the reconcile learns whether admission proves who decides."""

    async def read(self) -> Proof: ...


@dataclass
class ApprovalFacts:
    """What is known of approvals beside their objects. All of it is safe to lose: runs list what they wait for."""

    gone: dict[ObjectKey, ObjectKey] = field(default_factory=dict)
    """AgentApprovals that left the watch, settled or deleted, and were not looked after yet; with the key of their run."""
    asked_again: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    """Uid of a run → the number of its last report when it was told to report again, and when that was."""


@dataclass(frozen=True)
class ApprovalReconciler:
    """Brings decisions to the runs that wait for them."""

    kube: KubePort
    workflows: SignalPort
    proof: ProofPort
    cache: Cache
    facts: ApprovalFacts
    settings: Settings
    wake_pool: Callable[[ObjectKey], None]
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one approval; returns after how many seconds to look again, or None."""
        gone_from = self.facts.gone.get(key)
        approval = self.cache.approvals.get(key)
        if approval is None:
            run_key = self._run_that_waits(key, gone_from)
            approval = await self._read(AGENT_APPROVALS, key) if run_key else None
            if approval is not None and state_of(approval) not in SETTLED:
                self.cache.approvals.put(approval)
        else:
            run_key = ObjectKey(key.namespace, approval["spec"]["runRef"]["name"])
        requeue_after = None
        if run_key is not None:
            observed = await self._observe(key, approval, run_key)
            requeue_after = await self._carry_out(run_key, replace(observed, was_replaced=gone_from is not None))
        if self.facts.gone.get(key) == gone_from:
            self.facts.gone.pop(key, None)
        return requeue_after

    def _run_that_waits(self, key: ObjectKey, gone_from: ObjectKey | None) -> ObjectKey | None:
        """Return the run that says it waits for an approval that the cache does not have."""
        listed = self.cache.runs.by("approval", key.namespace, key.name)
        for run_key in [*listed, *([gone_from] if gone_from else [])]:
            run = self.cache.runs.get(run_key)
            if run is not None and waits_for(run, key.name):
                return run_key
        return None

    async def _observe(self, key: ObjectKey, approval: Json | None, run_key: ObjectKey) -> Observed:
        observed = Observed(key=key, settings=self.settings, now=self.now(), approval=approval, run=None)
        if approval is not None and state_of(approval) in SETTLED:
            return observed
        run = self.cache.runs.get(run_key)
        if run is None or approval is None or uid_of(run) != controller_uid(approval):
            # It may have finished; and of a deleted run the garbage collector deletes the approvals.
            run = await self._read(AGENT_RUNS, run_key)
        observed = replace(observed, run=run)
        if run is not None:
            seq, at = self.facts.asked_again.get(uid_of(run), (None, None))
            observed = replace(
                observed,
                asked_again=at if seq == report_seq(run) else None,
                last_asked=at,
                has_worker=self.cache.has_worker(key.namespace, run),
            )
        if needs_proof(self.settings, approval):
            observed = replace(observed, proof=await self.proof.read())
        return observed

    async def _read(self, resource: Resource, key: ObjectKey) -> Json | None:
        try:
            return await self.kube.get(resource, key.namespace, key.name)
        except NotFound:
            return None

    async def _carry_out(self, run_key: ObjectKey, observed: Observed) -> float | None:
        steps = plan(observed)
        for action in steps.actions:
            try:
                await self._execute(run_key, observed, action)
            except WorkflowNotFound:
                if observed.has_no_workflow:
                    raise
                return await self._carry_out(run_key, replace(observed, has_no_workflow=True))
        return steps.requeue_after

    async def _execute(self, run_key: ObjectKey, observed: Observed, action: Action) -> None:
        approval, run = observed.approval, observed.run
        match action:
            case SignalDecision(workflow_id, decision):
                assert approval is not None, "a decision stands in an object"
                await self._decide(approval, workflow_id, decision, observed.now)
            case AskAgain(workflow_id):
                assert run is not None, "it is asked of a run"
                await self._ask_again(observed.key, run, workflow_id, observed.now)
            case WakeRun(pools):
                assert run is not None, "it is a run that is woken"
                self.cache.note_awake(run_key, self.cache.runs.get(run_key) or run, observed.now)
                for pool in pools:
                    self.wake_pool(pool)
            case WriteStatus(status):
                assert approval is not None, "a status is planned for an object"
                await self._write(approval, status)
            case DeleteApproval():
                assert run is not None, "an approval is deleted so that its run asks anew"
                await self._delete(observed, run, action)

    async def _decide(self, approval: Json, workflow_id: str, decision: Decision, now: datetime) -> None:
        try:
            await self.workflows.signal(workflow_id, DECIDE_SIGNAL, decision, decision.uid)
        except WorkflowNotFound:
            raise
        except TemporalError as error:
            await self._write(approval, undelivered_status(approval, decision, str(error), now))
            raise
        logger.info("AgentApproval %s: %s sent", key_of(approval), decision.decision)

    async def _ask_again(self, key: ObjectKey, run: Json, workflow_id: str, now: datetime) -> None:
        seq = report_seq(run)
        request_id = f"{REPORT_AGAIN_SIGNAL} {seq} {now.timestamp():.0f}"
        try:
            await self.workflows.signal(workflow_id, REPORT_AGAIN_SIGNAL, None, request_id)
        except WorkflowNotFound:
            return  # it has just ended; nobody waits
        self.facts.asked_again[uid_of(run)] = (seq, now)
        logger.info("AgentApproval %s: its run is asked to report again", key)

    async def _write(self, approval: Json, status: Json) -> None:
        try:
            written = await write_status(self.kube, AGENT_APPROVALS, approval, status, "controller")
        except NotFound:
            self.cache.approvals.drop(approval)
            raise
        except Conflict:
            if status["state"] == "Delivered":
                await self._write_late(approval, status)
            raise
        if written is None:
            return
        if state_of(written) in SETTLED:
            self.cache.approvals.drop(written)
        else:
            self.cache.approvals.put(written)

    async def _write_late(self, approval: Json, status: Json) -> None:
        """Say when a decision was sent, and that it is proven, where the run was quicker to say what came of it."""
        found = await self._read(AGENT_APPROVALS, key_of(approval))
        if found is not None and uid_of(found) == uid_of(approval) and state_of(found) in SETTLED:
            await write_status(self.kube, AGENT_APPROVALS, found, sent_status(found, status, self.now()), "controller")

    async def _delete(self, observed: Observed, run: Json, deletion: DeleteApproval) -> None:
        key = observed.key
        note = f"AgentApproval {key.name}: {deletion.note}"
        about = {"apiVersion": AGENT_RUNS.api_version, "kind": AGENT_RUNS.kind, "metadata": run["metadata"]}
        await tell_event(
            self.kube,
            about,
            name=f"{key.name}.unproven.{deletion.uid[:8]}",
            kind="Warning",
            reason=Reason.POLICY_MISSING,
            action="AskAgain",
            note=note,
            now=observed.now,
        )
        try:
            await self.kube.delete(
                AGENT_APPROVALS, key.namespace, key.name, uid=deletion.uid, resource_version=deletion.resource_version
            )
        except NotFound:
            return
        logger.warning("%s", note)
