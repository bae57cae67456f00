"""A pool's MCP servers, retrievers and approvals as its workers are told of them: Secrets by name, never a value. Pure."""

from dalang_api import contract
from dalang_api.v1alpha1.schema import seconds

from dalang_operator.kube.resources import Json

DEFAULT_LIMIT = 5


def mcp_servers(pool: Json) -> list[contract.McpServerSettings]:
    """Return the pool's MCP servers."""
    return [_server(server) for server in pool.get("spec", {}).get("mcpServers", ())]


def retrievers(pool: Json) -> list[contract.RetrieverSettings]:
    """Return the pool's retrievers."""
    return [
        _retriever(retriever["name"], retriever["qdrant"]) for retriever in pool.get("spec", {}).get("retrievers", ())
    ]


def approval_floors(pool: Json) -> list[contract.ApprovalFloor]:
    """Return the approvals that the pool asks for, whatever its Agents say."""
    return [
        contract.ApprovalFloor(
            tools=floor["tools"],
            when=floor.get("when"),
            question=floor.get("question"),
            timeout_seconds=seconds(floor["timeout"]) if "timeout" in floor else None,
            on_timeout=floor.get("onTimeout", "Reject"),
        )
        for floor in pool.get("spec", {}).get("approvals", ())
    ]


def _server(server: Json) -> contract.McpServerSettings:
    if "stdio" in server:
        stdio = server["stdio"]
        return contract.McpServerSettings(
            name=server["name"],
            transport="stdio",
            command=stdio["command"],
            args=stdio.get("args", []),
            env=_named_values(stdio.get("env", [])),
        )
    http = server.get("streamableHTTP") or server["sse"]
    return contract.McpServerSettings(
        name=server["name"],
        transport="streamableHTTP" if "streamableHTTP" in server else "sse",
        url=http["url"],
        headers=_named_values(http.get("headers", [])),
        bearer_token=_secret(http.get("bearerToken")),
    )


def _retriever(name: str, qdrant: Json) -> contract.RetrieverSettings:
    return contract.RetrieverSettings(
        name=name,
        url=qdrant.get("url"),
        path=qdrant.get("path"),
        collection=qdrant["collection"],
        limit=qdrant.get("limit", DEFAULT_LIMIT),
        api_key=_secret(qdrant.get("apiKey")),
        embedding_model=qdrant["embedding"]["modelRef"]["name"],
        embedding_name=qdrant["embedding"].get("name"),
    )


def _named_values(values: list[Json]) -> list[contract.NamedValue]:
    return [
        contract.NamedValue(name=named["name"], value=named.get("value"), secret=_secret(named.get("valueFrom")))
        for named in values
    ]


def _secret(source: Json | None) -> contract.SecretKey | None:
    """Return the Secret's key of a `valueFrom`, a `bearerToken` or an `apiKey`."""
    if source is None:
        return None
    reference = source["secretKeyRef"]
    return contract.SecretKey(name=reference["name"], key=reference["key"])
