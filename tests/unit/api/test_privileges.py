"""Who may write Agents and their runs, sessions and schedules, but neither AgentModels nor AgentPools, names no Secret.

Nor an address or a command. So whatever a field of theirs is called, it must not be one through which a Secret gets to a server of the author's own, or
a process is started. The words are looked for in every field's name; a field that has one all the same stands in ALLOWED,
with the reason.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Schema = dict[str, Any]

CRDS = Path(__file__).parents[3] / "crds"
AUTHORS = ("agents", "agentruns", "agentsessions", "agentschedules")
"""Kinds that authors write."""
PLATFORMS = ("agentmodels", "agentpools")
"""Kinds that hold credentials and code."""

WORDS = frozenset(
    {"secret", "secrets", "credential", "credentials", "auth", "authorization", "token", "password", "identity", "key"}
    | {"audience", "certificate", "ca", "tls", "account"}
    | {"url", "uri", "endpoint", "address", "host", "hostname", "port", "server", "proxy", "region", "webhook", "http"}
    | {"command", "cmd", "args", "exec", "script", "code", "module", "modules", "entrypoint", "shell", "stdio"}
    | {"path", "file", "files", "dir", "directory", "folder", "mount", "mounts", "volume", "volumes"}
    | {"image", "images", "template", "container", "containers", "env", "environment", "header", "headers", "from"}
)
"""Words of a field's name by which it may hold or name a Secret, an address, a program or a file."""

ALLOWED = {
    "agents": {
        ".spec.instructionsFrom": "of a ConfigMap or a function of the pool",
        ".spec.instructionsFrom.configMapKeyRef": "a ConfigMap, which holds no Secret",
        ".spec.instructionsFrom.configMapKeyRef.key": "of that ConfigMap",
        ".spec.tools[].mcp.server": "the name of one of the pool's servers; no address fits its pattern",
    },
    "agentruns": {},
    "agentsessions": {},
    "agentschedules": {".spec.runTemplate": "of an AgentRun: its spec has an author's fields only"},
}
"""Fields of a spec that have such a word and are harmless, each with why."""

REFERENCES = {
    "agents": {
        ".spec.fallbackModelRefs[]",
        ".spec.handoffs[].agentRef",
        ".spec.instructionsFrom.configMapKeyRef",
        ".spec.modelRef",
        ".spec.poolRef",
        ".spec.tools[].agentRef",
    },
    "agentruns": {".spec.agentRef", ".spec.sessionRef"},
    "agentsessions": {".spec.agentRef", ".spec.summary.modelRef"},
    "agentschedules": {".spec.runTemplate.spec.agentRef", ".spec.runTemplate.spec.sessionRef"},
}
"""All that a spec refers to: by name, in its own namespace."""

FREE = {
    "agents": {".spec.output.schema"},
    "agentruns": {".spec.context"},
    "agentsessions": {".spec.context"},
    "agentschedules": {
        ".spec.runTemplate.metadata.annotations",
        ".spec.runTemplate.metadata.labels",
        ".spec.runTemplate.spec.context",
    },
}
"""Objects whose fields are the author's own."""


def spec_of(plural: str) -> Schema:
    definition = yaml.safe_load((CRDS / f"dalang.dev_{plural}.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    spec: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def fields(schema: Schema, path: str = ".spec") -> Iterator[tuple[str, Schema]]:
    """Yield path and schema of every field."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from fields(field, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")
    if isinstance(values := schema.get("additionalProperties"), dict):
        yield from fields(values, f"{path}[*]")


def words(path: str) -> set[str]:
    """Return the words of a field's own name, in lower case: those of `maxCostUSD` are max, cost and usd."""
    name = path.rpartition(".")[2].strip("[]*")
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def telling(spec: Schema) -> list[str]:
    return sorted({path.rstrip("[]*") for path, _ in fields(spec) if words(path) & WORDS})


@pytest.mark.parametrize("plural", AUTHORS)
def test_an_author_names_no_secret_address_or_command(plural: str) -> None:
    assert telling(spec_of(plural)) == sorted(ALLOWED[plural])


@pytest.mark.parametrize("plural", AUTHORS)
def test_an_author_refers_to_objects_of_his_namespace_only_and_to_no_secret(plural: str) -> None:
    found = dict(fields(spec_of(plural)))
    references = {path for path in found if re.search(r"Refs?(\[\])?$", path) and found[path]["type"] == "object"}
    assert references == REFERENCES[plural]
    for path in references:
        assert set(found[path]["properties"]) <= {"name", "key"}


@pytest.mark.parametrize("plural", AUTHORS)
def test_an_author_has_no_field_that_takes_anything(plural: str) -> None:
    """What the API server does not know it drops, but for the fields of these."""
    found = dict(fields(spec_of(plural)))
    open_ended = ("x-kubernetes-preserve-unknown-fields", "additionalProperties", "x-kubernetes-embedded-resource")
    assert {path for path, schema in found.items() if any(schema.get(word) for word in open_ended)} == FREE[plural]


def test_no_address_and_no_path_fits_the_name_of_a_server_or_a_function() -> None:
    found = dict(fields(spec_of("agents")))
    names = [
        ".spec.tools[].mcp.server",
        ".spec.retrieval.retriever",
        ".spec.tools[].function.name",
        ".spec.instructionsFrom.function.name",
        ".spec.tools[].name",
        ".spec.instructionsFrom.configMapKeyRef.key",
    ]
    for path in names:
        for address in ("http://evil.example", "127.0.0.1:80", "/etc/passwd", "../../secrets/openai", "a b", "$(id)"):
            assert not re.search(found[path]["pattern"], address), path


@pytest.mark.parametrize(
    ("plural", "some"),
    [
        pytest.param("agentmodels", ".spec.auth.apiKey.secretKeyRef", id="an AgentModel's key"),
        pytest.param("agentmodels", ".spec.openAI.baseURL", id="an AgentModel's address"),
        pytest.param("agentmodels", ".spec.bedrock.region", id="an AgentModel's region"),
        pytest.param("agentpools", ".spec.image", id="a pool's image"),
        pytest.param("agentpools", ".spec.mcpServers[].stdio.command", id="a command"),
        pytest.param("agentpools", ".spec.mcpServers[].stdio.env", id="an environment"),
        pytest.param("agentpools", ".spec.mcpServers[].streamableHTTP.headers", id="headers"),
        pytest.param("agentpools", ".spec.mcpServers[].streamableHTTP.bearerToken", id="a token"),
        pytest.param("agentpools", ".spec.retrievers[].qdrant.path", id="a folder"),
        pytest.param("agentpools", ".spec.toolsFrom", id="the source of code"),
    ],
)
def test_the_words_find_such_fields_where_they_are(plural: str, some: str) -> None:
    assert plural in PLATFORMS
    assert some in telling(spec_of(plural))
