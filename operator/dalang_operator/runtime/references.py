"""What an object names: one small function per kind of reference, read by the cache's indexes and by the reconciles."""

from collections.abc import Iterator
from typing import NamedTuple

from dalang_operator.kube.resources import AGENT_SCHEDULES, Json, ObjectKey, key_of

DEFAULT_POOL = "default"


class ConfigMapKey(NamedTuple):
    """A key of a ConfigMap."""

    name: str
    key: str


def schedule_of(run: Json) -> tuple[ObjectKey, str] | None:
    """Return key and uid of the AgentSchedule that controls a run, or None."""
    for owner in run["metadata"].get("ownerReferences", ()):
        if owner.get("controller") and owner.get("kind") == AGENT_SCHEDULES.kind:
            return ObjectKey(key_of(run).namespace, owner["name"]), owner["uid"]
    return None


def pool_of(agent: Json) -> str:
    """Return the name of the pool an Agent runs in."""
    name: str = agent["spec"].get("poolRef", {}).get("name", DEFAULT_POOL)
    return name


def models_of(agent: Json) -> list[str]:
    """Return the names of the AgentModels an Agent names, in the order in which they are called, each once."""
    spec = agent["spec"]
    named = [spec["modelRef"], *spec.get("fallbackModelRefs", ())]
    return list(dict.fromkeys(reference["name"] for reference in named))


def agents_of(agent: Json) -> list[str]:
    """Return the names of the Agents an Agent calls as tools or hands over to, each once."""
    spec = agent["spec"]
    named = [tool["agentRef"] for tool in spec.get("tools", ()) if "agentRef" in tool]
    named += [handoff["agentRef"] for handoff in spec.get("handoffs", ())]
    return list(dict.fromkeys(reference["name"] for reference in named))


def session_of(run: Json) -> str | None:
    """Return the name of the AgentSession a run belongs to, or None where it is a run of an Agent."""
    name: str | None = run["spec"].get("sessionRef", {}).get("name")
    return name


def session_agent_of(session: Json) -> str:
    """Return the name of the Agent an AgentSession names."""
    name: str = session["spec"]["agentRef"]["name"]
    return name


def summary_model_of(session: Json) -> str | None:
    """Return the name of the AgentModel that writes an AgentSession's summary, where it names one."""
    summary = session["spec"].get("summary", {})
    name: str | None = summary.get("modelRef", {}).get("name")
    return name if summary.get("enabled", True) else None


def servers_of(agent: Json) -> list[str]:
    """Return the names of the MCP servers an Agent has tools of, each once."""
    return list(dict.fromkeys(tool["mcp"]["server"] for tool in agent["spec"].get("tools", ()) if "mcp" in tool))


def functions_of(agent: Json) -> list[str]:
    """Return the names of the Python functions that are an Agent's tools."""
    tools = [tool for tool in agent["spec"].get("tools", ()) if "function" in tool]
    return [tool["function"].get("name") or tool["name"] for tool in tools]


def retriever_of(agent: Json) -> str | None:
    """Return the name of the retriever an Agent uses, or None."""
    name: str | None = agent["spec"].get("retrieval", {}).get("retriever")
    return name


def instructions_key_of(agent: Json) -> ConfigMapKey | None:
    """Return the ConfigMap's key that holds an Agent's instructions, or None where they stand elsewhere."""
    reference = agent["spec"].get("instructionsFrom", {}).get("configMapKeyRef")
    return ConfigMapKey(reference["name"], reference["key"]) if reference else None


def instruction_function_of(agent: Json) -> str | None:
    """Return the name of the Python function that returns an Agent's instructions, or None."""
    name: str | None = agent["spec"].get("instructionsFrom", {}).get("function", {}).get("name")
    return name


def retrievers_of(pool: Json) -> dict[str, Json]:
    """Return a pool's retrievers by name."""
    return {retriever["name"]: retriever for retriever in pool.get("spec", {}).get("retrievers", ())}


def embedding_model_of(retriever: Json) -> str:
    """Return the name of the AgentModel whose endpoint makes a retriever's vectors."""
    name: str = retriever["qdrant"]["embedding"]["modelRef"]["name"]
    return name


def embedding_models_of(pool: Json) -> list[str]:
    """Return the names of the AgentModels that a pool's retrievers name, each once."""
    return list(dict.fromkeys(map(embedding_model_of, retrievers_of(pool).values())))


def tools_sources_of(pool: Json) -> list[str]:
    """Return the names of the ConfigMaps with a pool's Python modules."""
    return [source["configMapRef"]["name"] for source in pool.get("spec", {}).get("toolsFrom", ())]


def base_url_of(model: Json) -> str | None:
    """Return the root of the API that an AgentModel names; None: the provider's own."""
    spec = model["spec"]
    member = spec.get(
        {"AzureOpenAI": "azureOpenAI", "Anthropic": "anthropic", "Bedrock": "bedrock"}.get(spec["provider"], "openAI"),
        {},
    )
    url: str | None = member.get("endpoint") or member.get("baseURL")
    return url


def model_secret_of(model: Json) -> Json | None:
    """Return the Secret's key that holds an AgentModel's API key, or None."""
    reference: Json | None = model["spec"].get("auth", {}).get("apiKey", {}).get("secretKeyRef")
    return reference


def audience_of(model: Json) -> str | None:
    """Return the audience of the token an AgentModel is called with, or None."""
    audience: str | None = model["spec"].get("auth", {}).get("workloadIdentity", {}).get("audience")
    return audience


def pool_secrets_of(pool: Json) -> Iterator[str]:
    """Yield the names of the Secrets that a pool's MCP servers and retrievers name themselves."""
    spec = pool.get("spec", {})
    for server in spec.get("mcpServers", ()):
        transport = server.get("streamableHTTP") or server.get("sse") or server.get("stdio") or {}
        sources = [named.get("valueFrom") for named in (*transport.get("headers", ()), *transport.get("env", ()))]
        for source in (*sources, transport.get("bearerToken")):
            if source:
                yield source["secretKeyRef"]["name"]
    for retriever in spec.get("retrievers", ()):
        if key := retriever["qdrant"].get("apiKey"):
            yield key["secretKeyRef"]["name"]
