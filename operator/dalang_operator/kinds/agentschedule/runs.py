"""The AgentRuns of a schedule: how one is made, whose one is, and what became of one."""

import hashlib
import json
from datetime import UTC, datetime
from typing import NamedTuple

from dalang_api.contract import RunEnded, scheduled_run_name, scheduled_run_time
from dalang_api.v1alpha1.conditions import ConditionType, Phase

from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, key_of, uid_of
from dalang_operator.kube.status import find_condition, timestamp
from dalang_operator.runtime.references import schedule_of

SCHEDULE_LABEL = "dalang.dev/schedule"
SCHEDULED_AT = "dalang.dev/scheduled-at"
"""Annotation of the time a run was created for."""
DRY_RUN_AT = datetime.fromtimestamp(0, UTC)
"""The time of the run that is only asked for: no run is created for it."""
_CREATED_BY = "dalang.dev/created-by"
_MUTABLE = frozenset({"cancel", "ttlAfterFinished"})
"""Fields of an AgentRun's spec that may be changed later."""


class Firing(NamedTuple):
    """A time at which a schedule created a run, or is about to."""

    uid: str
    """Of the AgentSchedule."""
    scheduled_at: datetime
    has_created: bool = False
    """Whether its run was seen to leave the watch, so that it was created, though Temporal may not have been told yet."""


def make_run(schedule: Json, scheduled_at: datetime) -> Json:
    """Return the AgentRun of a time: the same whoever asks."""
    template = schedule["spec"]["runTemplate"]
    metadata = template.get("metadata", {})
    name = schedule["metadata"]["name"]
    owner = {
        "apiVersion": AGENT_SCHEDULES.api_version,
        "kind": AGENT_SCHEDULES.kind,
        "name": name,
        "uid": uid_of(schedule),
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": AGENT_RUNS.api_version,
        "kind": AGENT_RUNS.kind,
        "metadata": {
            "name": scheduled_run_name(name, uid_of(schedule), scheduled_at),
            "namespace": key_of(schedule).namespace,
            "labels": {**metadata.get("labels", {}), SCHEDULE_LABEL: name},
            "annotations": {**metadata.get("annotations", {}), SCHEDULED_AT: timestamp(scheduled_at)},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


def firing_of(run: Json) -> tuple[ObjectKey, Firing] | None:
    """Return the schedule that created a run, and when for; None of a run that none did.

    By the run's name, since annotations may be changed.
    """
    owner = schedule_of(run)
    if owner is None:
        return None
    scheduled_at = scheduled_run_time(owner[0].name, key_of(run).name)
    return (owner[0], Firing(owner[1], scheduled_at)) if scheduled_at else None


def is_run_of(schedule: Json, run: Json, user: str | None) -> bool:
    """Return whether the operator created this run for this schedule: its owner alone anybody may have written.

    Args:
        schedule: The AgentSchedule.
        run: An AgentRun of its namespace.
        user: As whom the operator creates runs; None: unknown. It counts where the API server notes who created a run.
    """
    found, key, uid = firing_of(run), key_of(schedule), uid_of(schedule)
    if found is None or schedule_of(run) != (key, uid):
        return False
    return key_of(run).name == scheduled_run_name(key.name, uid, found[1].scheduled_at) and is_created_by(run, user)


def is_created_by(run: Json, user: str | None) -> bool:
    """Return whether nothing says that another user created the run."""
    return user is None or creator_of(run) in {None, user}


def creator_of(run: Json) -> str | None:
    """Return who created the run, where an admission policy noted it."""
    creator: str | None = run["metadata"].get("annotations", {}).get(_CREATED_BY)
    return creator


def lasting_digest(spec: Json) -> str:
    """Return a digest of what never changes in an AgentRun's spec."""
    lasting = {name: value for name, value in spec.items() if name not in _MUTABLE}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def run_ended(run: Json) -> RunEnded:
    """Return what is to be told of a run that has ended."""
    succeeded = find_condition(run, ConditionType.SUCCEEDED) or {}
    words = ": ".join(filter(None, (succeeded.get("reason"), succeeded.get("message"))))
    return RunEnded(run_uid=uid_of(run), phase=run["status"]["phase"], message=words)


def gone_run_ended(uid: str, view: WorkflowView) -> RunEnded | None:
    """Return what is to be told of a run that is gone; None while its workflow may yet say how it ends.

    One that ended and was deleted before it was told counts as what it came to; one of a session, which has no workflow of
    its own, as deleted. Its `ttlAfterFinished` deletes none before it was told.
    """
    report = view.report
    if view.state is WorkflowState.OPEN:
        return None
    if report is not None and report.phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}:
        return RunEnded.model_validate({"run_uid": uid, "phase": report.phase, "message": report.message})
    return RunEnded(run_uid=uid, phase="Deleted", message="the AgentRun was deleted")
