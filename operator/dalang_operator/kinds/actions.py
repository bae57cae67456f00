"""What the plans of several kinds do."""

from dataclasses import dataclass

from dalang_operator.kube.resources import Json, ObjectKey


@dataclass(frozen=True)
class WriteStatus:
    """Write the object's status, if it is still the one observed."""

    status: Json


@dataclass(frozen=True)
class WakePool:
    """See that the pool has a worker."""

    pool: ObjectKey


@dataclass(frozen=True)
class TerminateWorkflow:
    """Stop the workflow where it stands; harmless when it has ended."""

    workflow_id: str
    reason: str
