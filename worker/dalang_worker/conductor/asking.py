"""Asking a human, about a call or an answer, and what the decision leads to."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from dalang_api import contract
from dalang_api.contract import AgentSnapshot, ApprovalNeeded, Decision, ToolOutcome
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.conductor.approvals import Pending
from dalang_worker.conductor.budget import RunFailed
from dalang_worker.conductor.state import A_DECISION, Answer, Ports, Question, RunState
from dalang_worker.conductor.thread import Thread

BOUNDED_OVERRIDES = "bounded-overrides"
"""The change since when a decision with too large an override is not acted on."""
FITTING_OVERRIDES = "fitting-overrides"
"""The change since when an override that is a single text, of an answer without a schema or of an agent's call, is read as
that, and not acted on where it is anything else."""


async def ask(
    state: RunState, agent: AgentSnapshot, question: Question, ports: Ports
) -> tuple[Pending, Decision | None]:
    """Wait for a human's decision; None where nobody made it in time. A decision that came first counts, even late."""
    pending = ports.ask(agent, question)
    try:
        with ports.awaiting(f"decision {pending.request.name}", A_DECISION), state.clock.asking():
            async with asyncio.timeout(question.needed.timeout_seconds):
                await asyncio.shield(pending.decided)
    except TimeoutError:
        pass  # a decision that came first is there all the same
    except asyncio.CancelledError:
        state.approvals.take(pending)
        state.approvals.end(pending, "Expired", note=_STOPPED)
        raise
    decision = state.approvals.take(pending)
    if decision is None:
        state.approvals.end(pending, "Expired", note=_expired(question.needed, pending))
        if question.needed.on_timeout == "Fail":
            raise RunFailed(Reason.APPROVAL_EXPIRED, f"Nobody decided in time: {question.needed.question}")
    return pending, decision


_STOPPED = "The run, or the agent that asked, was stopped before it had a decision, so it was not approved"


def _expired(needed: ApprovalNeeded, pending: Pending) -> str:
    if needed.on_timeout != "Approve":
        return f"Nobody decided in time, so it was not approved: onTimeout is {needed.on_timeout}"
    if pending.was_made:
        return "Nobody decided in time, which approves it: onTimeout is Approve"
    return "Nobody could decide in time, so it was not approved, although onTimeout is Approve"


def applied(state: RunState, pending: Pending, decision: Decision | None, note: str | None = None) -> None:
    """Note that the run has acted on a decision, if there was one: where nobody decided, that has been noted."""
    if decision is not None:
        state.approvals.end(pending, "Applied", decision, note)


def refusal_of(needed: ApprovalNeeded, pending: Pending, decision: Decision | None) -> str | None:
    """Return why it may not go on, whole sentences for the model; None where it may.

    `onTimeout: Approve` holds only where somebody could have decided: there was an AgentApproval.
    """
    if decision is not None:
        if decision.decision == "Approve":
            return None
        return f"a human rejected it. {_sentence(decision.reason or 'No reason was given')}"
    return None if needed.on_timeout == "Approve" and pending.was_made else "nobody approved it in time."


def _sentence(words: str) -> str:
    words = words.rstrip()
    return words if words.endswith((".", "!", "?", "…")) else f"{words}."


@dataclass(frozen=True)
class Refused:
    """An answer that does not count, as the agent was told."""

    why: str


async def approve_answer(
    state: RunState,
    agent: AgentSnapshot,
    thread: Thread,
    turn: int,
    answer: Answer,
    needed: ApprovalNeeded | None,
    ports: Ports,
) -> Answer | Refused:
    """Return the answer as a human approved it; where it was rejected the agent is told to answer again."""
    asked, problem = 0, ""
    while needed is not None:
        question = Question(f"{thread.name}/{turn}/answer/{asked}", None, noting(needed, problem))
        pending, decision = await ask(state, agent, question, ports)
        refusal = refusal_of(needed, pending, decision)
        override = decision.override if decision else None
        problem = await _problem_of_answer(state, agent, override, ports) if refusal is None else ""
        if problem:
            state.approvals.end(pending, "Superseded", decision, problem)
            asked += 1
            continue
        applied(state, pending, decision)
        if refusal is not None:
            thread.tell(f"Your answer does not count: {refusal} Answer again.")
            return Refused(refusal)
        if override is None:
            return answer
        changed = _changed_answer(agent, override, ports)
        thread.tell(f"A human approved your answer with changes. It is now: {changed.text}")
        return changed
    return answer


async def _problem_of_answer(
    state: RunState, agent: AgentSnapshot, override: dict[str, Any] | None, ports: Ports
) -> str:
    problem = override_problem("answer", override, ports)
    if problem or override is None:
        return problem
    if agent.output_schema is None:
        return text_problem("answer", "text", override, ports)
    with state.clock.working():
        found = await ports.check_answer(agent, override)
    return f"The changed answer did not fit: {found}" if found else ""


def _changed_answer(agent: AgentSnapshot, override: dict[str, Any], ports: Ports) -> Answer:
    if agent.output_schema is not None:
        return Answer(as_json(override), override)
    return Answer(override["text"] if ports.patched(FITTING_OVERRIDES) else as_json(override))


def text_problem(what: str, member: str, override: dict[str, Any], ports: Ports) -> str:
    """Return why a text that an approver changed cannot be used; empty where it is there, and nothing else is."""
    text = override.get(member)
    if isinstance(text, str) and text and len(override) == 1:
        return ""
    if not ports.patched(FITTING_OVERRIDES):
        return ""
    return f'The changed {what} cannot be used: exactly {{"{member}": "…"}} is expected'


def override_problem(what: str, override: dict[str, Any] | None, ports: Ports) -> str:
    """Return why what an approver changed cannot be used, whatever it is for; empty where it can.

    Nothing before it says no: what the API server takes may weigh twice as much as JSON within JSON, and a payload over
    2 MiB would hold the run up for ever.
    """
    if override is None or len(as_json(override).encode()) <= contract.MESSAGE_MAX_BYTES:
        return ""
    if not ports.patched(BOUNDED_OVERRIDES):
        return ""
    return f"The changed {what} cannot be used: more than {contract.MESSAGE_MAX_BYTES} bytes"


def noting(needed: ApprovalNeeded, problem: str) -> ApprovalNeeded:
    """Return what is asked anew, with what was wrong with the decision before."""
    if not problem:
        return needed
    return needed.model_copy(update={"question": f"{needed.question} ({problem})"[:512]})


def with_override(outcome: ToolOutcome, override: dict[str, Any] | None) -> ToolOutcome:
    """Return what the model is told of a call that was made with an approver's arguments."""
    if override is None:
        return outcome
    told = f"[A human approved the call with other arguments: {as_json(override)}]"
    return outcome.model_copy(update={"output": f"{told}\n{outcome.output}"})


def as_json(value: dict[str, Any]) -> str:
    """Return what an approver has changed as the model reads it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
