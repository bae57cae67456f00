"""What waits for humans in a run, and what came of it. Who was first, a decision or the timeout, is decided here alone."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dalang_api import contract
from dalang_api.contract import ApprovalEnd, ApprovalRequest, Decision

ENDED_MAX = 64
"""How many ended approvals one report tells at the most; while no report comes through, there may be more to tell."""
ENDED_SHOWN = 16
"""How many of those every report tells that another has told already: as many as a run's status shows."""


@dataclass
class Pending:
    """One request. A decision counts only with the uid of the AgentApproval that stands for it, and its digest."""

    request: ApprovalRequest
    decided: "asyncio.Future[Decision]"
    uid: str | None = None
    was_made: bool = False
    """There was an AgentApproval, so that somebody could decide."""
    offered: list[Decision] = field(default_factory=list)
    """Decisions that came; the first may be here before the report has told the uid."""


class Approvals:
    """The requests of one run."""

    def __init__(self, run_uid: str) -> None:
        self._run_uid = run_uid
        self.changed: Callable[[], None] = lambda: None
        """Called when something is asked, and when it no longer is."""
        self.pending: dict[str, Pending] = {}
        self.ended: list[ApprovalEnd] = []
        """What has not been told yet, and the last `ENDED_MAX`, which may have to be told once more."""
        self._told: set[str] = set()
        """Names of those in `ended` that have."""

    def ask(self, request: ApprovalRequest) -> Pending:
        """Add a request."""
        pending = Pending(request, asyncio.get_running_loop().create_future())
        self.pending[request.name] = pending
        self.changed()
        return pending

    def learn(self, uids: dict[str, str]) -> None:
        """Take note of the uids of the AgentApprovals. One that was made anew has another, and is undecided."""
        for name, uid in uids.items():
            if (pending := self.pending.get(name)) is not None:
                pending.uid, pending.was_made = uid, True
                self._match(pending)

    def forget_what_was_told(self) -> None:
        """An AgentApproval may have been deleted, or may not say what came of it.

        Decisions count again when the next report has told which there are.
        """
        self._told.clear()
        for pending in self.pending.values():
            pending.uid = None

    def decide(self, decision: Decision) -> None:
        """Take a decision; one that is late, repeated, or of something else changes nothing."""
        pending = self.pending.get(decision.name)
        if pending is None or decision.run_uid != self._run_uid:
            return
        pending.offered.append(decision)
        self._match(pending)

    def take(self, pending: Pending) -> Decision | None:
        """Ask no more, and return what was decided, if anybody did."""
        del self.pending[pending.request.name]
        self.changed()
        return pending.decided.result() if pending.decided.done() else None

    def end(self, pending: Pending, state: str, decision: Decision | None = None, note: str | None = None) -> None:
        """Note what came of a request that is asked no more."""
        end = ApprovalEnd.model_validate(
            {
                "name": pending.request.name,
                "uid": pending.uid,
                "tool": pending.request.tool,
                "target": pending.request.target,
                "state": state,
                "decision": decision.decision if decision else None,
                "decided_by": decision.decided_by if decision else None,
                "note": _cut(note) if note else None,
            }
        )
        self.ended.append(end)

    def to_tell(self) -> list[ApprovalEnd]:
        """Return what the next report tells of approvals that have come to an end."""
        shown_from = len(self.ended) - ENDED_SHOWN
        to_tell = [end for place, end in enumerate(self.ended) if place >= shown_from or end.name not in self._told]
        return to_tell[-ENDED_MAX:]

    def were_told(self, ends: Iterable[ApprovalEnd]) -> None:
        """Take note that a report has come through that told these."""
        self._told.update(end.name for end in ends)
        kept_from = len(self.ended) - ENDED_MAX
        self.ended = [end for place, end in enumerate(self.ended) if place >= kept_from or end.name not in self._told]
        self._told &= {end.name for end in self.ended}

    def that_fit(self) -> list[ApprovalRequest]:
        """Return the pending requests that fit a report, those asked first before all others.

        So what was asked once stays asked: an AgentApproval that is left out would look as if it were no more wanted.
        """
        requests: list[ApprovalRequest] = []
        left = contract.PENDING_APPROVALS_MAX_BYTES
        for pending in self.pending.values():
            left -= len(pending.request.model_dump_json(exclude_none=True).encode())
            if left < 0:
                break
            requests.append(pending.request)
        return requests

    def _match(self, pending: Pending) -> None:
        for decision in pending.offered:
            fits = decision.uid == pending.uid and decision.digest == pending.request.digest
            if fits and not pending.decided.done():
                pending.decided.set_result(decision)


def _cut(note: str) -> str:
    most = contract.APPROVAL_NOTE_MAX_CHARS
    return note if len(note) <= most else f"{note[: most - 1]}…"
