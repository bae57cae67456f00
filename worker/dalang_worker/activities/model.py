"""The activity `model`: one model call.

It does everything about a turn that a later release might do otherwise (find the tools' schemas, parse arguments), and
returns what it found, so that the workflow decides by recorded facts only.
"""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

from cachetools import TTLCache
from dalang.tools import ArgumentsError, ToolFunction, registered_tools
from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    CallVerdict,
    Message,
    ModelCall,
    ModelReply,
    Retrying,
    TextPart,
    ToolCallPart,
)
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, TemporalError

from dalang_worker import providers
from dalang_worker.activities.failures import final, interrupted, retryable
from dalang_worker.activities.heartbeat import beating
from dalang_worker.metrics import MODEL_CALL_TIME, MODEL_CALLS, TOKENS, measured
from dalang_worker.providers import ModelAnswer, ModelCallError, ModelRequest, Provider, ToolSpec, Verdict
from dalang_worker.secrets import SecretNotFoundError, read_key
from dalang_worker.text import clean, cut
from dalang_worker.transcripts import Snapshots, Transcripts

log = logging.getLogger(__name__)

TELL_FROM_ATTEMPT = 3
"""The attempt whose failure the run's condition first tells; earlier ones are the usual noise of networks."""
TELL_LONG_WAIT_SECONDS = 5.0
"""A longer wait that the endpoint asks for is told whatever the attempt."""
TELL_INTERVAL_SECONDS = 30.0
"""A call's failures are told at most this often; each is a signal in the run's history."""
ARGUMENTS_ERROR_MAX_BYTES = 2048
TOOL_NAME_MAX_CHARS = 128


class ModelActivity:
    """Makes model calls for every run of this worker."""

    def __init__(self, client: Client, secrets_path: Path, transcript_cache_bytes: int) -> None:
        self._client = client
        self._secrets_path = secrets_path
        self._transcripts = Transcripts(client, transcript_cache_bytes)
        self._snapshots = Snapshots(client)
        self._providers: dict[str, Provider] = {}
        self._told: TTLCache[tuple[str, str, str], None] = TTLCache(maxsize=10_000, ttl=TELL_INTERVAL_SECONDS)

    @activity.defn(name=contract.MODEL_ACTIVITY)
    async def model(self, call: ModelCall) -> ModelReply:
        """Make one model call and return the reply with a verdict on each tool call it asks for."""
        async with beating():
            try:
                return await self._complete(call)
            except ApplicationError as error:
                await self._tell(error)
                raise
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except Exception as error:  # a bug here; without this the run would say Running until its timeout
                log.exception("%s: model call failed", activity.info().workflow_id)
                told = retryable(Reason.MODEL_RETRYING, f"{type(error).__name__} in the worker; see its log")
                await self._tell(told)
                raise told from None

    async def _complete(self, call: ModelCall) -> ModelReply:
        info = activity.info()
        run = (info.workflow_id or "", info.workflow_run_id or "")
        snapshot = await self._snapshots.get(run, call.snapshot)
        agent = snapshot.agent(call.agent)
        tools = _offered_tools(agent)
        model = snapshot.model(agent.model)
        try:
            api_key = read_key(self._secrets_path, model.api_key) if model.api_key else None
        except SecretNotFoundError as error:
            raise retryable(Reason.SECRET_NOT_FOUND, str(error)) from None
        request = ModelRequest(
            model=model,
            api_key=api_key,
            instructions=agent.instructions,
            messages=await self._transcripts.messages(run, call),
            tools=[ToolSpec(name, tool.description, tool.schema) for name, tool in tools.items()],
            temperature=float(agent.temperature) if agent.temperature else None,
            max_output_tokens=agent.max_output_tokens,
        )
        provider = await self._provider(model.provider)
        try:
            with measured(MODEL_CALLS, MODEL_CALL_TIME, model.model):
                answer = await provider.complete(request)
        except ModelCallError as error:
            # From None: Temporal records causes too, and the SDK's error holds the body, and that perhaps the key.
            raise _application_error(error) from None
        TOKENS.labels(model.model, "input").inc(answer.input_tokens)
        TOKENS.labels(model.model, "output").inc(answer.output_tokens)
        reply = make_reply(call, agent.name, answer, tools)
        self._transcripts.said(run, call.thread, reply.message)
        return reply

    async def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            loaded = await providers.load(name)
            if self._providers.setdefault(name, loaded) is not loaded:
                await loaded.close()
        return self._providers[name]

    async def close(self) -> None:
        """Close the connections to the models."""
        for provider in self._providers.values():
            await provider.close()

    async def _tell(self, error: ApplicationError) -> None:
        """Signal the run's workflow that this call fails; a workflow cannot see its activities' attempts."""
        info = activity.info()
        log.warning("%s: model call failed (attempt %d): %s", info.workflow_id, info.attempt, error.message)
        call = (info.workflow_id or "", info.workflow_run_id or "", info.activity_id)
        if error.non_retryable or call in self._told or not is_worth_telling(info.attempt, error.next_retry_delay):
            return
        self._told[call] = None
        handle = self._client.get_workflow_handle(call[0], run_id=call[1])
        reason = Reason.parse(error.type) or Reason.MODEL_RETRYING
        retrying = Retrying(reason=reason, message=f"{error.message} (attempt {info.attempt})")
        try:
            await handle.signal(contract.RETRYING_SIGNAL, retrying)
        except (TemporalError, TimeoutError) as unsent:
            log.warning("%s could not be told of it: %s", info.workflow_id, unsent)


def is_worth_telling(attempt: int, wait: timedelta | None) -> bool:
    """Return whether the run should hear of this attempt: from the third on, or when the next is long in coming."""
    return attempt >= TELL_FROM_ATTEMPT or (wait is not None and wait.total_seconds() > TELL_LONG_WAIT_SECONDS)


def make_reply(call: ModelCall, agent: str, answer: ModelAnswer, tools: dict[str, ToolFunction]) -> ModelReply:
    """Return the reply as it is recorded: bounded in size, call ids replaced by ours, a verdict on each call.

    Of the calls beyond `TURN_MAX_CALLS` one is kept, to tell the model of all of them: some models repeat themselves
    until their output limit.
    """
    parts: list[contract.Part] = []
    verdicts: list[CallVerdict] = []
    if answer.text or not answer.calls:
        parts.append(TextPart(text=cut(answer.text, contract.MESSAGE_MAX_BYTES)))
    for index, requested in enumerate(answer.calls[: contract.TURN_MAX_CALLS + 1]):
        call_id = f"call_{call.turn}_{index}"
        name, arguments = clean(requested.tool)[:TOOL_NAME_MAX_CHARS], clean(requested.arguments)
        if index < contract.TURN_MAX_CALLS:
            verdicts.append(judge(call_id, name, arguments, tools))
        else:
            verdicts.append(_too_many(call_id, len(answer.calls)))
        # Arguments that do not fit our bounds are not kept: cut JSON is no JSON.
        parts.append(ToolCallPart(call_id=call_id, tool=name, arguments=arguments if _is_small(arguments) else "{}"))
    return ModelReply(
        message=Message(role="assistant", parts=parts, sender=agent),
        calls=verdicts or None,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        failure=answer.failure,
    )


def judge(call_id: str, tool: str, arguments: str, tools: dict[str, ToolFunction]) -> CallVerdict:
    """Return whether a call can be run, and if not, what the model is told."""
    function = tools.get(tool)
    if function is None:
        known = ", ".join(sorted(tools)) or "none"
        return CallVerdict(call_id=call_id, error=f"There is no tool {tool!r}. The tools are: {known}.")
    if not _is_small(arguments):
        limit = contract.TOOL_OUTPUT_MAX_BYTES
        return CallVerdict(call_id=call_id, error=f"Not run: the arguments are longer than {limit} bytes.")
    try:
        function.parse(arguments)
    except ArgumentsError as error:
        return CallVerdict(call_id=call_id, error=cut(str(error), ARGUMENTS_ERROR_MAX_BYTES))
    return CallVerdict(call_id=call_id, function=function.name)


def _too_many(call_id: str, asked: int) -> CallVerdict:
    limit = contract.TURN_MAX_CALLS
    error = f"Not run: {asked} calls in one turn, of which the first {limit} were run. Ask again for the rest."
    return CallVerdict(call_id=call_id, error=error)


def _is_small(arguments: str) -> bool:
    return len(arguments.encode()) <= contract.TOOL_OUTPUT_MAX_BYTES


def _offered_tools(agent: AgentSnapshot) -> dict[str, ToolFunction]:
    """Return the agent's tools, by the name the model sees.

    Raises:
        ApplicationError: This worker does not have one of them; another, or the next build, may.
    """
    registered = registered_tools()
    functions = {binding.name: binding.function for binding in agent.tools if binding.function}
    missing = sorted(function for function in functions.values() if function not in registered)
    if missing:
        have = ", ".join(sorted(registered)) or "none"
        message = f"The pool's modules register no function {', '.join(missing)} (they register: {have})"
        raise retryable(Reason.TOOL_NOT_FOUND, message[:700])
    return {name: registered[function] for name, function in functions.items()}


def _application_error(error: ModelCallError) -> ApplicationError:
    if error.failure.verdict is Verdict.FINAL:
        return final(error.failure.reason, str(error))
    return retryable(error.failure.reason, str(error), error.failure.after_seconds)
