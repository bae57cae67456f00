"""What the reporter and the controller of one process spare each other: reads of the API server.

Nothing depends on it. A cached object that is too old is refused by the server, and a run nobody noted is read.
"""

from dataclasses import dataclass
from typing import Protocol

from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.runtime.cache import Cache


class LocalRuns(Protocol):
    """The controller beside the reporter. Called from the reporter's thread."""

    def cached(self, key: ObjectKey) -> Json | None:
        """Return the run as the controller knows it, perhaps a moment old."""
        ...

    def cached_approval(self, key: ObjectKey) -> Json | None:
        """Return the AgentApproval as the controller knows it, perhaps a moment old and without its arguments."""
        ...

    def cached_session(self, key: ObjectKey) -> Json | None:
        """Return the AgentSession as the controller knows it, perhaps a moment old."""
        ...

    def ending(self, uid: str) -> None:
        """The run's last status is about to be written."""
        ...

    def ended(self, uid: str, run: Json | None) -> None:
        """The write is over; `run` is the ended run, or None when it was not written."""
        ...


@dataclass(frozen=True)
class ControllersRuns:
    """The runs of a controller in this process."""

    cache: Cache
    facts: RunFacts

    def cached(self, key: ObjectKey) -> Json | None:
        return self.cache.runs.get(key)

    def cached_approval(self, key: ObjectKey) -> Json | None:
        return self.cache.approvals.get(key)

    def cached_session(self, key: ObjectKey) -> Json | None:
        return self.cache.sessions.get(key)

    def ending(self, uid: str) -> None:
        self.facts.ending.add(uid)

    def ended(self, uid: str, run: Json | None) -> None:
        if run is not None:
            self.facts.end(run)
        self.facts.ending.discard(uid)


class NoRuns:
    """There is no controller in this process."""

    def cached(self, key: ObjectKey) -> Json | None:
        return None

    def cached_approval(self, key: ObjectKey) -> Json | None:
        return None

    def cached_session(self, key: ObjectKey) -> Json | None:
        return None

    def ending(self, uid: str) -> None:
        return None

    def ended(self, uid: str, run: Json | None) -> None:
        return None
