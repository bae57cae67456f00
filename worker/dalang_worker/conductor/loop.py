"""The agent loop: model call → tool calls → … → answer. Runs inside the workflow, so it decides by recorded facts only."""

import asyncio

from dalang_api import contract
from dalang_api.contract import AgentSnapshot, ModelCall, ModelReply
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.conductor.asking import approve_answer
from dalang_worker.conductor.budget import LimitReached, RunFailed
from dalang_worker.conductor.calls import Turn, call_tools
from dalang_worker.conductor.state import Answer, Conversation, Ports, RunState

FALLBACK_REASONS = frozenset(
    {
        Reason.MODEL_FAILED,
        Reason.MODEL_REFUSED,
        Reason.CONTENT_FILTER,
        Reason.CONTEXT_LENGTH,
        Reason.SECRET_NOT_FOUND,
    }
)
"""What the next model may do better."""
BEFORE_THE_CALL = frozenset(
    {Reason.INVALID_INSTRUCTIONS, Reason.INVALID_OUTPUT, Reason.PRICE_UNKNOWN, Reason.SECRET_NOT_FOUND}
)
"""What fails before the model is called, so that there was no turn."""

JUDGED_REPLIES = "judged-replies"
"""The change since when a reply of a worker that knows of no approvals is not acted on, where the agent asks for any."""
JUDGED_AGAIN_MAX_SECONDS = 60
"""The longest time between two calls while there are only such workers: each is paid for."""


async def converse(state: RunState, conversation: Conversation, ports: Ports) -> Answer:
    """Carry a conversation on until its agent answers.

    Raises:
        RunFailed: A limit was reached, or the model or a tool failed for good.
    """
    thread, paused, last_answer = conversation.thread, 0, ""
    while True:
        agent = state.snapshot.agent(conversation.agent)
        try:
            turn, reply = await _call_model(state, agent, conversation, ports)
        except LimitReached as reached:
            if not last_answer:
                raise
            words = f"{reached.message}. The last answer {last_answer}"
            raise LimitReached(reached.budget, reached.reason, words) from None
        last_answer = ""
        paused = paused + 1 if reply.call_again else 0
        if paused > contract.CALL_AGAIN_MAX:
            raise RunFailed(Reason.MODEL_FAILED, f"The model paused {paused} times in a row without going on")
        if reply.correction is not None:
            fault = "was not taken" if agent.output_schema is None else "did not fit output.schema"
            last_answer = f"{fault}: {reply.correction}"
            thread.tell(reply.correction)
        elif reply.message.tool_calls():
            await call_tools(Turn(state, agent, conversation, turn, ports, converse), reply)
        elif not paused:
            answer = Answer(reply.message.text(), reply.structured_output)
            approved = await approve_answer(state, agent, thread, turn, answer, reply.approval, ports)
            if isinstance(approved, Answer):
                return approved
            last_answer = f"did not count, and no turn is left for another: {approved.why.removesuffix('.')}"
        ports.turn_done()


# ── The model ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _call_model(
    state: RunState, agent: AgentSnapshot, conversation: Conversation, ports: Ports
) -> tuple[int, ModelReply]:
    """Make a model call, with the agent's next model where one fails for good or refuses; return turn and reply."""
    names = agent.models()
    if ports.history_is_full():
        raise RunFailed(Reason.HISTORY_LIMIT, "The run came near Temporal's history limit; split the task into runs")
    conversation.budget.begin_turn()
    turn = state.budget.turns  # read before anything is awaited: other threads of the run go on meanwhile
    failures: list[str] = []
    unjudged = 0
    while True:
        place = state.models.get(agent.name, 0)
        has_next = place + 1 < len(names)
        if failures or unjudged:
            conversation.budget.check_spending()
        model = names[place] if place else None
        call = _model_call(state, agent, conversation, turn, model, has_next=has_next)
        try:
            with state.clock.working():
                reply = await ports.model(agent, call, _attempts(agent, has_next=has_next))
        except RunFailed as failed:
            if failed.reason in BEFORE_THE_CALL and not has_next:
                conversation.budget.take_back_turn()
            if has_next and failed.reason in FALLBACK_REASONS:
                failures.append(_fall_back(state, agent, place, failed.reason, failed.message))
                continue
            if failures:
                raise RunFailed(failed.reason, "; before it ".join([failed.message, *failures])) from failed
            raise
        conversation.budget.charge(reply)
        _note(state.retrieval_failures, agent, reply.retrieval_failure)
        _note(state.tools_failures, agent, reply.tools_failure)
        if _may_run_unasked(agent, reply) and ports.patched(JUDGED_REPLIES):
            unjudged += 1
            await _wait_for_a_judge(state, agent, call, unjudged, ports)
            continue
        failure = reply.failure
        if failure and has_next and failure.reason in FALLBACK_REASONS:
            # What it said while refusing is nobody's answer.
            failures.append(_fall_back(state, agent, place, failure.reason, failure.message))
            continue
        conversation.thread.append_reply(reply.message)
        if failure:
            raise RunFailed(Reason.parse(failure.reason) or Reason.MODEL_FAILED, failure.message)
        return turn, reply


def _may_run_unasked(agent: AgentSnapshot, reply: ModelReply) -> bool:
    """Return whether a call or an answer would get past the agent's policies: its pool has a worker that knows of none.

    What pools and tools' authors ask for is known to workers only, and cannot be missed here.
    """
    asks = agent.output_approval is not None or any(tool.approval is not None for tool in agent.tools)
    return asks and not reply.judged


async def _wait_for_a_judge(state: RunState, agent: AgentSnapshot, call: ModelCall, times: int, ports: Ports) -> None:
    """Leave time for a rollout to bring a present worker; the run's timeout is the limit."""
    pool = contract.pool_of_queue(agent.queue)
    ports.model_call_is_made_again(call, f"A worker of pool {pool} is of a version before approvals: update the pool")
    awaiting = ports.awaiting(f"worker {call.thread}", f"a worker of pool {pool} that knows of approvals")
    with state.clock.working(), awaiting:
        await asyncio.sleep(min(2 ** (times - 1), JUDGED_AGAIN_MAX_SECONDS))


def _fall_back(state: RunState, agent: AgentSnapshot, place: int, reason: str, message: str) -> str:
    """Go over to the agent's next model; never back to one that another thread has given up already."""
    state.models[agent.name] = max(place + 1, state.models.get(agent.name, 0))
    return f"AgentModel {agent.models()[place]}: {reason}: {message}"


def _note(failures: dict[str, str], agent: AgentSnapshot, failure: str | None) -> None:
    if failure is None:
        failures.pop(agent.name, None)
    else:
        failures[agent.name] = failure


def _attempts(agent: AgentSnapshot, *, has_next: bool) -> int:
    """Return how often a model is tried; 0: until the run's timeout."""
    asked = agent.retry.maximum_attempts if agent.retry else None
    return asked if asked is not None else contract.FALLBACK_ATTEMPTS if has_next else 0


def _model_call(
    state: RunState, agent: AgentSnapshot, conversation: Conversation, turn: int, model: str | None, *, has_next: bool
) -> ModelCall:
    count, digest, tail = conversation.thread.prefix()
    cost_left = conversation.budget.cost_left()
    return ModelCall(
        agent=agent.name,
        snapshot=state.snapshot_digest,
        thread=conversation.thread.name,
        turn=turn,
        count=count,
        digest=digest,
        tail=tail,
        model=model,
        context=conversation.context if conversation.context and agent.reads_context() else None,
        max_output_tokens=conversation.budget.tokens_left(),
        max_cost_usd=None if cost_left is None else f"{cost_left:f}",
        has_next=has_next or None,
        run=state.identity,
    )
