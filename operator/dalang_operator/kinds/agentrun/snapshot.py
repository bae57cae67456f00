"""What a run starts with, by itself or in its session: task, limits, and a snapshot of all agents and models in reach. Pure.

What is not set is left out: the snapshot stands in the history of every run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from dalang_api import contract
from dalang_api.v1alpha1.schema import seconds
from pydantic_core import to_json

from dalang_operator.kinds.instructions import ConfigMaps, text_of
from dalang_operator.kinds.reach import Reach
from dalang_operator.kube.resources import Json, uid_of
from dalang_operator.runtime.references import (
    agents_of,
    audience_of,
    base_url_of,
    instruction_function_of,
    model_secret_of,
    models_of,
    pool_of,
    retriever_of,
)


@dataclass(frozen=True)
class EffectiveLimits:
    """A run's limits: the lowest of the agent's, its session's and its own, else the defaults."""

    max_turns: int
    timeout: timedelta
    max_tokens: int | None = None
    max_cost_usd: str | None = None


def limits(agent: Json | None, run: Json, session: Json | None = None) -> EffectiveLimits:
    """Return the limits of a run of an agent, perhaps in a session; what is gone sets none."""
    specs = [(source or {}).get("spec", {}) for source in (agent, session, run)]
    sources = [spec.get("limits", {}) for spec in specs]
    turns = [source["maxTurns"] for source in sources if "maxTurns" in source]
    timeouts = [seconds(source["timeout"]) for source in sources if "timeout" in source]
    return EffectiveLimits(
        min(turns, default=contract.DEFAULT_MAX_TURNS),
        timedelta(seconds=min(timeouts, default=contract.DEFAULT_TIMEOUT_SECONDS)),
        min((source["maxTokens"] for source in sources if "maxTokens" in source), default=None),
        min((source["maxCostUSD"] for source in sources if "maxCostUSD" in source), key=Decimal, default=None),
    )


def make_run_input(run: Json, reach: Reach, config_maps: ConfigMaps, installation: str) -> contract.RunInput:
    """Return the workflow's input; the ConfigMaps the agents name are there."""
    bounds = limits(reach.agents[0], run)
    return contract.RunInput(
        agent=reach.agents[0]["metadata"]["name"],
        messages=_messages(run),
        max_turns=bounds.max_turns,
        timeout_seconds=bounds.timeout.total_seconds(),
        max_tokens=bounds.max_tokens,
        max_cost_usd=bounds.max_cost_usd,
        context=context_of(run),
        snapshot=make_snapshot(reach, config_maps, installation, run["metadata"]["namespace"]),
    )


def make_exchange(run: Json, session: Json, agent: Json, snapshot_digest: str) -> contract.Exchange:
    """Return what the workflow of its session is told of a run, without the snapshot."""
    bounds = limits(agent, run, session)
    return contract.Exchange(
        run=contract.RunIdentity(name=run["metadata"]["name"], uid=uid_of(run)),
        agent=agent["metadata"]["name"],
        messages=_messages(run),
        max_turns=bounds.max_turns,
        timeout_seconds=bounds.timeout.total_seconds(),
        max_tokens=bounds.max_tokens,
        max_cost_usd=bounds.max_cost_usd,
        context=context_of(run),
        snapshot_digest=snapshot_digest,
    )


def exchange_size(run: Json) -> int:
    """Return about how many bytes a run weighs in the queue of its session."""
    return len(to_json({"messages": _messages(run), "context": context_of(run)}))


def make_snapshot(reach: Reach, config_maps: ConfigMaps, installation: str, namespace: str) -> contract.Snapshot:
    """Return every agent and model in reach as it is now; the ConfigMaps the agents name are there."""
    called = {name for agent in reach.agents for name in agents_of(agent)}
    return contract.Snapshot(
        agents=[
            _agent_snapshot(
                agent,
                config_maps,
                queue=contract.pool_queue(installation, namespace, pool_of(agent)),
                is_called=agent["metadata"]["name"] in called,
            )
            for agent in reach.agents
        ],
        models=[model_snapshot(model) for model in reach.models],
    )


def agent_versions(agents: Iterable[Json]) -> list[contract.AgentVersion]:
    """Return which versions of agents a run uses, in their order."""
    return [
        contract.AgentVersion(
            name=agent["metadata"]["name"],
            uid=uid_of(agent),
            generation=agent["metadata"]["generation"],
            pool=pool_of(agent),
        )
        for agent in agents
    ]


def context_of(obj: Json) -> dict[str, Any] | None:
    """Return the context variables that a run or a session begins with, or None without any."""
    variables = obj["spec"].get("context", {})
    return {name: contract.context_value(text) for name, text in variables.items()} or None


def _messages(run: Json) -> list[contract.Message]:
    spec = run["spec"]
    said = spec.get("messages") or [{"role": "User", "content": spec.get("input", "")}]
    return [
        contract.Message(role=message["role"].lower(), parts=[contract.TextPart(text=message["content"])])
        for message in said
    ]


def _agent_snapshot(agent: Json, config_maps: ConfigMaps, *, queue: str, is_called: bool) -> contract.AgentSnapshot:
    """Return an agent as it is now; description and limits only where another agent has a use for them."""
    spec = agent["spec"]
    model, *fallbacks = models_of(agent)
    parameters = spec.get("parameters", {})
    return contract.AgentSnapshot(
        name=agent["metadata"]["name"],
        uid=uid_of(agent),
        generation=agent["metadata"]["generation"],
        queue=queue,
        model=model,
        fallbacks=fallbacks or None,
        description=spec.get("description") if is_called else None,
        instructions=text_of(agent, config_maps),
        instructions_function=instruction_function_of(agent),
        tools=[_tool(tool) for tool in spec.get("tools", ())],
        handoffs=[_handoff(handoff) for handoff in spec.get("handoffs", ())] or None,
        tool_choice=contract.ToolChoice(**spec["toolChoice"]) if "toolChoice" in spec else None,
        parallel_tool_calls=spec.get("parallelToolCalls"),
        retriever=retriever_of(agent),
        output_schema=spec.get("output", {}).get("schema"),
        output_approval=approval_policy(spec.get("output", {}).get("approval")),
        temperature=parameters.get("temperature"),
        max_output_tokens=parameters.get("maxOutputTokens"),
        retry=_retry(spec.get("retry", {})),
        limits=_limits(spec.get("limits", {})) if is_called else None,
    )


def model_snapshot(model: Json) -> contract.ModelSnapshot:
    """Return a model as it is now."""
    spec = model["spec"]
    secret = model_secret_of(model)
    azure = spec.get("azureOpenAI", {})
    parameters = spec.get("parameters", {})
    return contract.ModelSnapshot(
        name=model["metadata"]["name"],
        uid=uid_of(model),
        generation=model["metadata"]["generation"],
        provider=spec["provider"],
        model=spec["name"],
        base_url=base_url_of(model),
        api_key=contract.SecretKey(name=secret["name"], key=secret["key"]) if secret else None,
        identity=_identity(model),
        api_version=azure.get("apiVersion"),
        deployment=azure.get("deployment"),
        region=spec.get("bedrock", {}).get("region"),
        temperature=parameters.get("temperature"),
        max_output_tokens=parameters.get("maxOutputTokens"),
    )


def _tool(tool: Json) -> contract.ToolBinding:
    name, approval = tool["name"], approval_policy(tool.get("approval"))
    if "mcp" in tool:
        mcp = contract.McpBinding(server=tool["mcp"]["server"], tools=tool["mcp"].get("tools"))
        return contract.ToolBinding(name=name, mcp=mcp, approval=approval)
    if "agentRef" in tool:
        return contract.ToolBinding(name=name, agent=tool["agentRef"]["name"], approval=approval)
    return contract.ToolBinding(name=name, function=tool["function"].get("name") or name, approval=approval)


def approval_policy(approval: Json | None) -> contract.ApprovalPolicy | None:
    """Return when a human decides first; `{}` means always, which is not the same as absent."""
    if approval is None:
        return None
    return contract.ApprovalPolicy(
        when=approval.get("when"),
        question=approval.get("question"),
        timeout_seconds=_seconds(approval.get("timeout")),
        on_timeout=approval.get("onTimeout", "Reject"),
    )


def _handoff(handoff: Json) -> contract.HandoffBinding:
    return contract.HandoffBinding(agent=handoff["agentRef"]["name"], description=handoff.get("description"))


def _retry(retry: Json) -> contract.RetrySettings | None:
    if not retry:
        return None
    return contract.RetrySettings(
        timeout_seconds=_seconds(retry.get("timeout")),
        maximum_attempts=retry.get("maximumAttempts"),
        initial_seconds=_seconds(retry.get("initialInterval")),
        maximum_seconds=_seconds(retry.get("maximumInterval")),
    )


def _limits(limits: Json) -> contract.LimitSettings | None:
    if not limits:
        return None
    return contract.LimitSettings(
        max_turns=limits.get("maxTurns"),
        max_tokens=limits.get("maxTokens"),
        max_cost_usd=limits.get("maxCostUSD"),
        timeout_seconds=_seconds(limits.get("timeout")),
    )


def _seconds(duration: str | None) -> float | None:
    return None if duration is None else seconds(duration)


def _identity(model: Json) -> contract.IdentitySnapshot | None:
    audience = audience_of(model)
    if audience is None:
        return None
    identity = model["spec"]["auth"]["workloadIdentity"]
    return contract.IdentitySnapshot(
        audience=audience, parameters=identity.get("openAI") or identity.get("anthropic") or {}
    )
