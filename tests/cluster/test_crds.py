"""The CRDs on a real API server: what it takes, what it refuses and with which words, and what kubectl shows."""

import contextlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import crdgen
from dalang_api.v1alpha1 import Agent, AgentApproval, AgentModel, AgentPool, AgentRun, AgentSchedule, AgentSession
from dalang_api.v1alpha1.schema import Resource
from kubernetes import client

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane, Objects

NOT_CHECKED = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
"""What the API server adds when it did not get as far as our CEL rules."""

NAME = r"'^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'"
IMMUTABLE = "spec: Forbidden: a run's spec is immutable but for cancel and ttlAfterFinished; create another run"

MODEL = {"provider": "OpenAI", "name": "gpt-5"}
AGENT = {"modelRef": {"name": "gpt-5"}}
RUN = {"agentRef": {"name": "support"}, "input": "Where is order 42?"}
SESSION = {"agentRef": {"name": "support"}}
SCHEDULE = {"schedule": {"cron": ["0 9 * * 1-5"]}, "runTemplate": {"spec": RUN}}
APPROVAL = {
    "subject": "ToolCall",
    "runRef": {"name": "refund"},
    "workflowId": "dalang.shop.refund.1",
    "agent": "support",
    "tool": "refund",
    "question": "May support call refund?",
    "arguments": '{"amount":120}',
    "digest": f"sha256:{'0' * 64}",
    "requestedAt": "2026-01-02T03:04:05Z",
}
USER = {"role": "User", "content": "Where is order 42?"}
ASSISTANT = {"role": "Assistant", "content": "On its way."}


def at(**times: Any) -> dict[str, Any]:
    """A schedule with these times."""
    return {**SCHEDULE, "schedule": times}


def template(spec: object = RUN, **metadata: dict[str, str]) -> dict[str, Any]:
    """A schedule with this template."""
    return {**SCHEDULE, "runTemplate": {"metadata": metadata, "spec": spec}}


def tool(name: str, /, **function: str) -> dict[str, Any]:
    return {"name": name, "function": function}


def auth(**member: Any) -> dict[str, Any]:
    return {"auth": member}


def identity(**member: dict[str, str]) -> dict[str, Any]:
    return auth(workloadIdentity={"audience": "https://api.example.com", **member})


KEY = {"secretKeyRef": {"name": "keys", "key": "api-key"}}
OF_OPENAI = {"openAI": {"identityProviderID": "idp_1", "serviceAccountID": "sa_1"}}
OF_ANTHROPIC = {"anthropic": {"federationRuleID": "fr_1", "organizationID": "org_1"}}
AZURE = {
    "provider": "AzureOpenAI",
    "name": "gpt-5",
    "azureOpenAI": {"endpoint": "https://shop.openai.azure.com", "apiVersion": "2025-04-01-preview", "deployment": "d"},
}
ANTHROPIC = {"provider": "Anthropic", "name": "claude-opus-4-8"}
BEDROCK = {"provider": "Bedrock", "name": "anthropic.claude-opus-4-8-v1:0", "bedrock": {"region": "eu-central-1"}}
FROM_KEY = {"secretKeyRef": {"name": "keys", "key": "token"}}


WRONG_IDENTITY = (
    "workloadIdentity is for provider OpenAI with its member openAI, and Anthropic with its member anthropic; "
    "use apiKey for the others"
)


def http(*headers: dict[str, Any]) -> dict[str, Any]:
    return {"url": "http://weather.tools:8080/mcp?team=shop", "headers": list(headers)}


def qdrant(**more: Any) -> dict[str, Any]:
    return {"collection": "handbook", "embedding": {"modelRef": {"name": "gpt-5"}}, **more}


def retriever(**more: Any) -> dict[str, Any]:
    return {"retrievers": [{"name": "handbook", "qdrant": qdrant(**more)}]}


def pool_of_server(**transport: Any) -> dict[str, Any]:
    return {"mcpServers": [{"name": "weather", **transport}]}


SCHEMA = {
    "type": "object",
    "required": ["note"],
    "properties": {"note": {"type": ["string", "null"], "default": None}, "lines": {"items": {"enum": [1, None]}}},
}


# ── The definitions ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", crdgen.KINDS, ids=lambda kind: kind.KIND)
def test_the_api_server_keeps_all_of_a_definition(kind: type[Resource], api_client: client.ApiClient) -> None:
    """It drops what it does not know without a word, and reports a schema that is not structural as a condition."""
    definition = crdgen.custom_resource_definition(kind)
    name = definition["metadata"]["name"]
    stored = client.CustomObjectsApi(api_client).get_cluster_custom_object(
        "apiextensions.k8s.io", "v1", "customresourcedefinitions", name
    )
    assert isinstance(stored, dict)
    assert {c["type"]: c["status"] for c in stored["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert stored["metadata"]["labels"] == definition["metadata"]["labels"]
    assert stored["spec"] == {**definition["spec"], "conversion": {"strategy": "None"}}


# ── What is taken and what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        pytest.param(AgentModel, MODEL, id="a model with neither key nor endpoint"),
        pytest.param(
            AgentModel,
            {**MODEL, "openAI": {"baseURL": "http://ollama.models:11434/v1"}},
            id="a model at an endpoint of one's own",
        ),
        pytest.param(AgentModel, {**MODEL, "parameters": {"temperature": "0"}}, id="a temperature without decimals"),
        pytest.param(AgentModel, {**MODEL, **identity(**OF_OPENAI)}, id="OpenAI by the pod's identity"),
        pytest.param(AgentModel, {**AZURE, **auth(apiKey=KEY)}, id="AzureOpenAI"),
        pytest.param(AgentModel, ANTHROPIC, id="Anthropic"),
        pytest.param(
            AgentModel,
            {
                **ANTHROPIC,
                **identity(**OF_ANTHROPIC),
                "anthropic": {"baseURL": "https://gateway.example.com/anthropic"},
            },
            id="Anthropic behind a gateway, by the pod's identity",
        ),
        pytest.param(AgentModel, {**ANTHROPIC, "parameters": {"maxOutputTokens": 9}}, id="Anthropic with a limit"),
        pytest.param(AgentModel, BEDROCK, id="Bedrock with what AWS gives the pod"),
        pytest.param(AgentModel, {**BEDROCK, **auth(apiKey=KEY)}, id="Bedrock with a key"),
        pytest.param(
            AgentPool,
            pool_of_server(streamableHTTP={**http({"name": "X-Key", "valueFrom": FROM_KEY}), "bearerToken": FROM_KEY}),
            id="an MCP server behind HTTP",
        ),
        pytest.param(AgentPool, pool_of_server(sse=http()), id="one that speaks the older transport"),
        pytest.param(
            AgentPool,
            pool_of_server(stdio={"command": "python", "args": ["-m", ""], "env": [{"name": "A_B", "value": ""}]}),
            id="one that each worker starts",
        ),
        pytest.param(AgentPool, retriever(url="http://qdrant.search:6333", apiKey=KEY, limit=50), id="a retriever"),
        pytest.param(AgentPool, retriever(path="/data/qdrant"), id="a retriever without a server"),
        pytest.param(
            Agent,
            {
                **AGENT,
                "tools": [
                    tool("weather"),
                    {"name": "maps", "mcp": {"server": "maps", "tools": ["find"]}},
                    {"name": "refunds", "agentRef": {"name": "refunds"}},
                ],
            },
            id="a function, MCP tools and an agent",
        ),
        pytest.param(
            Agent,
            {**AGENT, "handoffs": [{"agentRef": {"name": f"a{number}"}} for number in range(32)]},
            id="as many hand-offs as there may be",
        ),
        pytest.param(
            Agent,
            {**AGENT, "instructionsFrom": {"configMapKeyRef": {"name": "prompts", "key": "support.md"}}},
            id="instructions from a ConfigMap",
        ),
        pytest.param(
            Agent,
            {**AGENT, "instructionsFrom": {"function": {"name": "shop.greet"}}},
            id="instructions from a function",
        ),
        pytest.param(Agent, {**AGENT, "toolChoice": {"mode": "Tool", "tool": "weather"}}, id="a tool to begin with"),
        pytest.param(Agent, {**AGENT, "toolChoice": {"mode": "Required"}}, id="some tool to begin with"),
        pytest.param(Agent, {**AGENT, "output": {"schema": SCHEMA}}, id="a schema is kept as it is, nulls included"),
        pytest.param(
            Agent,
            {
                **AGENT,
                "fallbackModelRefs": [{"name": "claude"}],
                "retrieval": {"retriever": "handbook"},
                "retry": {"maximumAttempts": 0, "initialInterval": "500ms"},
                "limits": {"maxCostUSD": "0.50", "maxTokens": 100000},
            },
            id="an agent with fallbacks, retrieval, retries and budgets",
        ),
        pytest.param(AgentPool, None, id="a pool without spec"),
        pytest.param(AgentPool, {}, id="a pool with an empty spec"),
        pytest.param(Agent, AGENT, id="an agent that only names a model"),
        pytest.param(Agent, {"modelRef": {"name": "gpt-5.1"}}, id="a reference to a name with a dot"),
        pytest.param(Agent, {**AGENT, "tools": [tool("weather"), tool("rain", name="weather")]}, id="a function twice"),
        pytest.param(AgentRun, RUN, id="a run with an input"),
        pytest.param(AgentRun, {"agentRef": {"name": "a"}, "messages": [USER]}, id="a run with one message"),
        pytest.param(
            AgentRun, {"agentRef": {"name": "a"}, "messages": [USER, ASSISTANT, USER]}, id="a run with a conversation"
        ),
        pytest.param(AgentRun, {**RUN, "cancel": True}, id="a run that is cancelled from the start"),
        pytest.param(AgentRun, {**RUN, "context": {}}, id="a run with no context variables"),
        pytest.param(
            AgentRun,
            {**RUN, "context": {"user_name": "Ada", "_n": "3", "A" * 64: ""}},
            id="a run with context variables",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "context": {f"v{number:02}": "ä" * 62 for number in range(64)}},
            id="as many as there may be",
        ),
        pytest.param(AgentRun, {**RUN, "limits": {"maxTokens": 1, "maxCostUSD": "0.01"}}, id="a run with budgets"),
        pytest.param(AgentApproval, APPROVAL, id="an approval of a call"),
        pytest.param(
            AgentApproval,
            {
                **APPROVAL,
                "subject": "Output",
                "arguments": '"' + "ä" * 65534 + '"',
                "expiresAt": "2026-01-03T03:04:05Z",
            },
            id="an approval of the longest answer",
        ),
        pytest.param(
            Agent, {**AGENT, "tools": [{**tool("refund"), "approval": {}}]}, id="a tool that is always asked for"
        ),
        pytest.param(
            Agent,
            {
                **AGENT,
                "tools": [
                    {
                        **tool("refund"),
                        "approval": {
                            "when": "args.amount > 100",
                            "question": "Refund?",
                            "timeout": "12h",
                            "onTimeout": "Approve",
                        },
                    }
                ],
            },
            id="a tool that is asked for now and then",
        ),
        pytest.param(Agent, {**AGENT, "output": {"approval": {}}}, id="an answer that needs approval"),
        pytest.param(AgentPool, {"approvals": [{"tools": ["process_*"]}]}, id="a pool that asks"),
        pytest.param(
            AgentPool,
            {"approvals": [{"tools": ["p"], "timeout": "1ms"}, *[{"tools": ["p"], "timeout": "24h"}] * 31]},
            id="a pool that asks as often as it may, and not for ever",
        ),
        pytest.param(AgentRun, {**RUN, "input": "ä" * 32768}, id="a maximum counts characters, not bytes"),
        pytest.param(AgentRun, {"sessionRef": {"name": "ada"}, "input": "And then?"}, id="a run of a session"),
        pytest.param(AgentSession, SESSION, id="a session that only names its agent"),
        pytest.param(
            AgentSession,
            {
                **SESSION,
                "context": {"user_name": "Ada"},
                "historySize": 4,
                "summary": {"enabled": True, "modelRef": {"name": "small"}},
                "limits": {"maxTurns": 5},
                "idleTimeout": "1s",
                "closed": True,
            },
            id="a session that says everything",
        ),
        pytest.param(AgentSession, {**SESSION, "summary": {"enabled": False}}, id="a session that forgets"),
        *(
            pytest.param(AgentSchedule, at(cron=[entry]), id=f"cron: {entry}")
            for entry in ("0 9 * * 1-5", "*/5 8-18  * JAN,feb Mon-Fri", "@daily", "@hourly")
        ),
        pytest.param(AgentSchedule, at(cron=["0 9 * * *"] * 16), id="sixteen of them"),
        pytest.param(AgentSchedule, at(intervals=[{"every": "1s"}]), id="every second"),
        pytest.param(
            AgentSchedule,
            at(intervals=[{"every": "1h30m", "offset": "1h29m59s999ms"}]),
            id="an interval with an offset",
        ),
        pytest.param(AgentSchedule, at(calendars=[{"second": "0"}]), id="a calendar, for every midnight"),
        pytest.param(
            AgentSchedule,
            at(
                calendars=[
                    {"minute": "*/15", "hour": "9-17", "dayOfMonth": "1,15", "month": "Jan", "year": "2027-2030/2"},
                    {"dayOfWeek": "MON-FRI", "comment": "Working days."},
                ]
            ),
            id="calendars with everything",
        ),
        *(
            pytest.param(AgentSchedule, at(cron=["@daily"], timeZone=zone), id=f"time zone {zone}")
            for zone in (
                "UTC",
                "Europe/Berlin",
                "America/Argentina/Buenos_Aires",
                "Etc/GMT+1",
                "America/Port-au-Prince",
            )
        ),
        pytest.param(
            AgentSchedule,
            at(cron=["@daily"], startAt="2026-12-31T23:59:59Z", endAt="2027-01-01T01:00:00+01:00", jitter="30s"),
            id="from then to then, in two time zones",
        ),
        pytest.param(
            AgentSchedule,
            {
                **SCHEDULE,
                "concurrencyPolicy": "QueueAll",
                "catchUpWindow": "10s",
                "pauseOnFailure": True,
                "suspend": True,
                "runHistory": {"succeeded": 0, "failed": 100},
            },
            id="a schedule that says everything",
        ),
        pytest.param(
            AgentSchedule,
            template(
                labels={"team": "shop", "example.com/tier.of_it": ""}, annotations={"example.com/why": "As asked."}
            ),
            id="a template with labels and annotations",
        ),
        pytest.param(
            AgentSchedule,
            template({"sessionRef": {"name": "ada"}, "input": "Good morning.", "ttlAfterFinished": "1h"}),
            id="a schedule for a session",
        ),
    ],
)
def test_taken(kind: type[Resource], spec: object, objects: "Objects") -> None:
    created = objects.create(kind, spec)
    assert created.get("spec") == spec


@pytest.mark.parametrize(
    ("kind", "spec", "causes"),
    [
        pytest.param(
            AgentModel,
            {**MODEL, "provider": "Google"},
            [
                'spec.provider: Unsupported value: "Google": supported values: '
                '"OpenAI", "AzureOpenAI", "Anthropic", "Bedrock"',
                NOT_CHECKED,
            ],
            id="a provider that there is none of",
        ),
        pytest.param(
            AgentModel,
            {**MODEL, "openAI": {}},
            ["spec.openAI.baseURL: Required value", NOT_CHECKED],
            id="settings of a provider that say nothing",
        ),
        pytest.param(
            AgentModel,
            {**MODEL, "openAI": {"baseURL": "https://user:key@models.example.com/v1"}},
            [
                'spec.openAI.baseURL: Invalid value: "https://user:key@models.example.com/v1": '
                r"spec.openAI.baseURL in body should match '^https?://[^\s/?#@]+(/[^\s?#]*)?$'"
            ],
            id="credentials in an endpoint",
        ),
        pytest.param(
            AgentModel,
            {**MODEL, "parameters": {"temperature": 0.2}},
            [
                'spec.parameters.temperature: Invalid value: "number": '
                'spec.parameters.temperature in body must be of type string: "number"',
                NOT_CHECKED,
            ],
            id="a temperature that is a number",
        ),
        pytest.param(
            AgentModel,
            {**ANTHROPIC, "openAI": {"baseURL": "https://example.com"}},
            ["spec: Invalid value: openAI goes with provider: OpenAI"],
            id="settings of another provider: openAI",
        ),
        pytest.param(
            AgentModel,
            {**MODEL, "anthropic": {"baseURL": "https://example.com"}},
            ["spec: Invalid value: anthropic goes with provider: Anthropic"],
            id="settings of another provider: anthropic",
        ),
        *(
            pytest.param(
                AgentModel,
                spec,
                [
                    "spec: Invalid value: provider: AzureOpenAI needs azureOpenAI with endpoint, apiVersion and deployment, "
                    "and no other takes it"
                ],
                id=f"azureOpenAI and provider: {spec['provider']}",
            )
            for spec in ({**MODEL, "azureOpenAI": AZURE["azureOpenAI"]}, {"provider": "AzureOpenAI", "name": "gpt-5"})
        ),
        *(
            pytest.param(
                kind,
                spec,
                [f"spec.{where}.timeout: Invalid value: timeout must be longer than 0s"],
                id=f"no time to decide in {where}",
            )
            for kind, spec, where in (
                (
                    Agent,
                    {**AGENT, "tools": [{**tool("refund"), "approval": {"timeout": "0s"}}]},
                    "tools[0].approval",
                ),
                (Agent, {**AGENT, "output": {"approval": {"timeout": "0h0m"}}}, "output.approval"),
                (AgentPool, {"approvals": [{"tools": ["p"]}, {"tools": ["p"], "timeout": "0ms"}]}, "approvals[1]"),
            )
        ),
        *(
            pytest.param(
                AgentModel,
                spec,
                ["spec: Invalid value: provider: Bedrock needs bedrock with its region, and no other takes it"],
                id=f"bedrock and provider: {spec['provider']}",
            )
            for spec in ({**ANTHROPIC, "bedrock": BEDROCK["bedrock"]}, {"provider": "Bedrock", "name": "claude"})
        ),
        *(
            pytest.param(
                AgentModel,
                {**MODEL, **auth(**members)},
                ["spec.auth: Invalid value: set exactly one of apiKey and workloadIdentity"],
                id=f"auth with {len(members)} members",
            )
            for members in ({}, {"apiKey": KEY, **identity(**OF_OPENAI)["auth"]})
        ),
        *(
            pytest.param(
                AgentModel,
                {**MODEL, **identity(**members)},
                [*more, "spec.auth.workloadIdentity: Invalid value: set exactly one of openAI and anthropic"],
                id=f"an identity with {len(members)} members",
            )
            for members, more in (({}, [f"spec: Invalid value: {WRONG_IDENTITY}"]), ({**OF_OPENAI, **OF_ANTHROPIC}, []))
        ),
        *(
            pytest.param(
                AgentModel,
                {**model, **identity(**member)},
                [f"spec: Invalid value: {WRONG_IDENTITY}"],
                id=f"{model['provider']} by the identity of {next(iter(member))}",
            )
            for model, member in (
                (MODEL, OF_ANTHROPIC),
                (ANTHROPIC, OF_OPENAI),
                (AZURE, OF_OPENAI),
                (BEDROCK, OF_ANTHROPIC),
            )
        ),
        *(
            pytest.param(
                AgentModel,
                {**model, "parameters": {"temperature": "0.2"}},
                [
                    "spec: Invalid value: the provider's API has no temperature any more; "
                    "leave parameters.temperature out"
                ],
                id=f"{model['provider']} with a temperature",
            )
            for model in (ANTHROPIC, BEDROCK)
        ),
        *(
            pytest.param(
                AgentPool,
                pool_of_server(**transports),
                [
                    "spec.mcpServers[0]: Invalid value: set exactly one of streamableHTTP, sse and stdio",
                ],
                id=f"an MCP server with {len(transports)} transports",
            )
            for transports in ({}, {"sse": http(), "streamableHTTP": http()})
        ),
        pytest.param(
            AgentPool,
            {"mcpServers": [{"name": "a", "sse": http()}, {"name": "a", "sse": http()}]},
            ['spec.mcpServers[1]: Duplicate value: {"name":"a"}'],
            id="two MCP servers of one name",
        ),
        *(
            pytest.param(
                AgentPool,
                pool_of_server(streamableHTTP=http({"name": "X-Key", **sources})),
                ["spec.mcpServers[0].streamableHTTP.headers[0]: Invalid value: set exactly one of value and valueFrom"],
                id=f"a header with {len(sources)} values",
            )
            for sources in ({}, {"value": "a", "valueFrom": FROM_KEY})
        ),
        pytest.param(
            AgentPool,
            pool_of_server(stdio={"command": "c", "env": [{"name": "A"}]}),
            ["spec.mcpServers[0].stdio.env[0]: Invalid value: set exactly one of value and valueFrom"],
            id="a variable without value",
        ),
        pytest.param(
            AgentPool,
            pool_of_server(sse={"url": "http://user:key@weather.tools/mcp"}),
            [
                'spec.mcpServers[0].sse.url: Invalid value: "http://user:key@weather.tools/mcp": '
                r"spec.mcpServers[0].sse.url in body should match '^https?://[^\s/?#@]+(/[^\s#]*)?$'"
            ],
            id="credentials in a server's address",
        ),
        *(
            pytest.param(
                AgentPool,
                retriever(**places),
                ["spec.retrievers[0].qdrant: Invalid value: set exactly one of url and path"],
                id=f"a retriever in {len(places)} places",
            )
            for places in ({}, {"url": "http://qdrant.search:6333", "path": "/data"})
        ),
        pytest.param(
            Agent,
            {**AGENT, "tools": [{**tool("weather"), "agentRef": {"name": "weather"}}]},
            ["spec.tools[0]: Invalid value: set exactly one of function, mcp and agentRef"],
            id="a tool with two things behind it",
        ),
        pytest.param(
            Agent,
            {**AGENT, "instructions": "Be kind.", "instructionsFrom": {"function": {"name": "greet"}}},
            ["spec: Invalid value: set at most one of instructions and instructionsFrom"],
            id="instructions twice",
        ),
        *(
            pytest.param(
                Agent,
                {**AGENT, "instructionsFrom": members},
                ["spec.instructionsFrom: Invalid value: set exactly one of configMapKeyRef and function"],
                id=f"instructions from {len(members)} places",
            )
            for members in ({}, {"function": {"name": "greet"}, "configMapKeyRef": {"name": "a", "key": "b"}})
        ),
        *(
            pytest.param(
                Agent,
                {**AGENT, "toolChoice": choice},
                ["spec.toolChoice: Invalid value: mode: Tool needs tool, and no other mode takes it"],
                id=f"mode {choice['mode']} {'with' if 'tool' in choice else 'without'} a tool",
            )
            for choice in ({"mode": "Tool"}, {"mode": "Required", "tool": "weather"})
        ),
        pytest.param(
            Agent,
            {**AGENT, "handoffs": [{"agentRef": {"name": "a"}}, {"agentRef": {"name": "a"}, "description": "Again."}]},
            ["spec: Invalid value: handoffs name each agent once"],
            id="an agent handed over to twice",
        ),
        pytest.param(
            Agent,
            {**AGENT, "output": {"schema": "object"}},
            [
                'spec.output.schema: Invalid value: "string": '
                'spec.output.schema in body must be of type object: "string"',
                NOT_CHECKED,
            ],
            id="a schema that is no object",
        ),
        *(
            pytest.param(
                AgentRun,
                {**RUN, "context": {name: "x"}},
                [
                    "spec.context: Invalid value: names in context begin with a letter or _ and have at most "
                    "64 letters, digits and _"
                ],
                id=f"a context variable called {what}",
            )
            for name, what in (("user-name", "user-name"), ("3d", "3d"), ("", "nothing"), ("a" * 65, "too long a name"))
        ),
        pytest.param(
            AgentRun,
            {**RUN, "context": {"a": "漢" * 2731}},
            ["spec.context: Invalid value: context may have at most 8192 bytes together"],
            id="context variables that would not fit a status",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "context": {"count": 3}},
            [
                'spec.context.count: Invalid value: "integer": '
                'spec.context.count in body must be of type string: "integer"',
                NOT_CHECKED,
            ],
            id="a context variable that is a number",
        ),
        pytest.param(
            AgentPool,
            {"tools": ["shop.tools", "shop.tools"]},
            ['spec.tools[1]: Duplicate value: "shop.tools"'],
            id="a module twice",
        ),
        pytest.param(
            AgentPool,
            {"tools": ["shop-tools"]},
            [
                'spec.tools[0]: Invalid value: "shop-tools": spec.tools[0] in body should match '
                r"'^[a-zA-Z_][a-zA-Z0-9_]*(\.[a-zA-Z_][a-zA-Z0-9_]*)*$'"
            ],
            id="a module that Python cannot import",
        ),
        pytest.param(Agent, None, ["spec: Required value", NOT_CHECKED], id="an agent without spec"),
        pytest.param(Agent, {}, ["spec.modelRef: Required value", NOT_CHECKED], id="an agent without model"),
        pytest.param(
            Agent,
            {**AGENT, "tools": [tool("weather"), tool("weather", name="rain")]},
            ['spec.tools[1]: Duplicate value: {"name":"weather"}'],
            id="two tools of one name",
        ),
        pytest.param(
            Agent,
            {**AGENT, "tools": [{"name": "weather"}]},
            ["spec.tools[0]: Invalid value: set exactly one of function, mcp and agentRef"],
            id="a tool with nothing behind it",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "agentRef": {"name": "Support"}},
            [f'spec.agentRef.name: Invalid value: "Support": spec.agentRef.name in body should match {NAME}'],
            id="a reference to what cannot be a name",
        ),
        pytest.param(
            AgentRun,
            {"agentRef": {"name": "a"}},
            ["spec: Invalid value: exactly one of input and messages must be set"],
            id="a run without task",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "messages": [USER]},
            ["spec: Invalid value: exactly one of input and messages must be set"],
            id="a run with input and messages",
        ),
        pytest.param(
            AgentRun,
            {"agentRef": {"name": "a"}, "messages": [USER, ASSISTANT]},
            ["spec: Invalid value: the last of messages must have role User"],
            id="a conversation in which the user does not speak last",
        ),
        pytest.param(
            AgentRun,
            {"agentRef": {"name": "a"}, "messages": []},
            ["spec.messages: Invalid value: 0: spec.messages in body should have at least 1 items"],
            id="a conversation in which nobody has spoken",
        ),
        pytest.param(
            AgentRun,
            {"agentRef": {"name": "a"}, "messages": [*[{"role": "Assistant", "content": "a" * 32768}] * 4, USER]},
            ["spec: Invalid value: messages may have at most 131072 characters together"],
            id="a conversation that Temporal would not take",
        ),
        pytest.param(
            Agent,
            {**AGENT, "output": {}},
            ["spec.output: Invalid value: set schema, approval or both"],
            id="an output that says nothing",
        ),
        *(
            pytest.param(
                AgentApproval,
                {**APPROVAL, name: value},
                ["spec: Invalid value: reason, override and decidedBy are set together with decision"],
                id=f"{name} without a decision",
            )
            for name, value in (("reason", "No."), ("override", {}), ("decidedBy", "ada"))
        ),
        pytest.param(
            AgentApproval,
            {**APPROVAL, "decision": "Reject", "override": {"amount": 1}},
            ["spec.override: Invalid value: override goes with decision: Approve"],
            id="a rejection with other arguments",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "limits": {"timeout": "1d"}},
            [
                'spec.limits.timeout: Invalid value: "1d": '
                "spec.limits.timeout in body should match '^([0-9]{1,5}(h|m|s|ms)){1,4}$'"
            ],
            id="a duration in days",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "limits": {"timeout": "0h0s"}},
            ["spec.limits.timeout: Invalid value: timeout must be longer than 0s"],
            id="no time at all",
        ),
        pytest.param(
            AgentRun,
            {**RUN, "limits": {"maxCostUSD": "0.00"}},
            ["spec.limits.maxCostUSD: Invalid value: maxCostUSD must be more than 0"],
            id="no money at all",
        ),
        pytest.param(
            Agent,
            {**AGENT, "handoffs": [{"agentRef": {"name": "x"}}]},
            ["spec.handoffs: Invalid value: an agent cannot hand over to itself"],
            id="a hand-off to itself",
        ),
        pytest.param(
            Agent,
            {**AGENT, "fallbackModelRefs": [AGENT["modelRef"]]},
            [
                "spec.fallbackModelRefs: Invalid value: "
                "fallbackModelRefs names the agent's own modelRef; name other models"
            ],
            id="its own model as the next",
        ),
        *(
            pytest.param(
                AgentRun,
                {"input": "hi", **who},
                ["spec: Invalid value: exactly one of agentRef and sessionRef must be set"],
                id=f"a run for {len(who)} of agent and session",
            )
            for who in ({}, {"agentRef": {"name": "support"}, "sessionRef": {"name": "ada"}})
        ),
        pytest.param(AgentSession, {}, ["spec.agentRef: Required value", NOT_CHECKED], id="a session with nobody"),
        pytest.param(
            AgentSession,
            {**SESSION, "idleTimeout": "999ms"},
            ["spec.idleTimeout: Invalid value: idleTimeout must be at least 1s"],
            id="a session that closes at once",
        ),
        pytest.param(
            AgentSession,
            {**SESSION, "context": {"user-name": "Ada"}},
            [
                "spec.context: Invalid value: names in context begin with a letter or _ and have at most "
                "64 letters, digits and _"
            ],
            id="a session's context variable called user-name",
        ),
        pytest.param(
            AgentSession,
            {**SESSION, "context": {"a": "漢" * 2731}},
            ["spec.context: Invalid value: context may have at most 8192 bytes together"],
            id="a session's context variables that would not fit a status",
        ),
        pytest.param(
            AgentSession,
            {**SESSION, "limits": {"timeout": "0s"}},
            ["spec.limits.timeout: Invalid value: timeout must be longer than 0s"],
            id="a session's runs with no time at all",
        ),
        pytest.param(
            AgentSchedule,
            at(timeZone="UTC"),
            ["spec.schedule: Invalid value: at least one of cron, intervals and calendars must be set"],
            id="a schedule without times",
        ),
        pytest.param(
            AgentSchedule,
            at(cron=[]),
            ["spec.schedule.cron: Invalid value: 0: spec.schedule.cron in body should have at least 1 items"],
            id="a cron without entries",
        ),
        *(
            pytest.param(
                AgentSchedule,
                at(cron=["@daily", entry]),
                [
                    "spec.schedule.cron: Invalid value: an entry of cron has five fields, such as 0 9 * * 1-5, or is one of "
                    "@hourly, @daily, @weekly, @monthly and @yearly; intervals has every so often, calendars has seconds "
                    "and years"
                ],
                id=f"cron: {entry}",
            )
            for entry in ("0 9 * *", "0 0 9 * * 1-5", "@every 5m", "@reboot", "daily", " ")
        ),
        *(
            pytest.param(
                AgentSchedule,
                at(cron=[entry]),
                ["spec.schedule.cron: Invalid value: a time zone goes into timeZone, not into cron"],
                id=f"cron: {entry}",
            )
            for entry in ("CRON_TZ=Europe/Berlin 0 9 * * *", "TZ=UTC @daily")
        ),
        pytest.param(
            AgentSchedule,
            at(cron=["0 2 * * MON#1"]),
            [
                "spec.schedule.cron: Invalid value: cron knows no #; the first Monday of a month is dayOfMonth 1-7 and "
                "dayOfWeek 1 in calendars"
            ],
            id="the first Monday in cron, which Temporal would take for every Monday",
        ),
        pytest.param(
            AgentSchedule,
            at(intervals=[{"every": "999ms"}]),
            ["spec.schedule.intervals[0].every: Invalid value: every must be at least 1s"],
            id="more often than every second",
        ),
        pytest.param(
            AgentSchedule,
            at(intervals=[{"every": "1h", "offset": "60m"}]),
            ["spec.schedule.intervals[0].offset: Invalid value: offset must be shorter than every"],
            id="an offset as long as the interval",
        ),
        pytest.param(
            AgentSchedule,
            at(intervals=[{"offset": "60m"}]),
            ["spec.schedule.intervals[0].every: Required value", NOT_CHECKED],
            id="an interval of no length",
        ),
        *(
            pytest.param(
                AgentSchedule,
                at(calendars=[{"hour": "9"}, calendar]),
                [
                    "spec.schedule.calendars[1]: Invalid value: set at least one of second, minute, hour, dayOfMonth, month, "
                    "year and dayOfWeek"
                ],
                id=f"a calendar with {len(calendar)} comments and nothing else",
            )
            for calendar in ({}, {"comment": "Midnight?"})
        ),
        pytest.param(
            AgentSchedule,
            at(calendars=[{"hour": "9 or 10"}]),
            [
                'spec.schedule.calendars[0].hour: Invalid value: "9 or 10": '
                "spec.schedule.calendars[0].hour in body should match '^[0-9A-Za-z*,/-]+$'"
            ],
            id="a calendar in prose",
        ),
        *(
            pytest.param(
                AgentSchedule,
                at(cron=["@daily"], timeZone=zone),
                [
                    f'spec.schedule.timeZone: Invalid value: "{zone}": spec.schedule.timeZone in body should match '
                    "'^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$'"
                ],
                id=f"time zone {zone}",
            )
            for zone in ("../etc/passwd", "/etc/localtime", "Europe/", "+01:00", "Europe/Berlin ")
        ),
        pytest.param(
            AgentSchedule,
            at(cron=["@daily"], timeZone="Local"),
            [
                "spec.schedule.timeZone: Invalid value: timeZone is a name of the IANA database, such as Europe/Berlin; "
                "Local is nowhere"
            ],
            id="the time zone of wherever Temporal runs",
        ),
        pytest.param(
            AgentSchedule,
            at(cron=["@daily"], startAt="2027-01-01T00:00:00Z", endAt="2027-01-01T01:00:00+01:00"),
            ["spec.schedule.endAt: Invalid value: endAt must be after startAt"],
            id="an end at the start",
        ),
        pytest.param(
            AgentSchedule,
            at(cron=["@daily"], startAt="tomorrow"),
            [
                'spec.schedule.startAt: Invalid value: "tomorrow": '
                'spec.schedule.startAt in body must be of type date-time: "tomorrow"',
                NOT_CHECKED,
            ],
            id="a start in prose",
        ),
        pytest.param(
            AgentSchedule,
            {**SCHEDULE, "catchUpWindow": "9s999ms"},
            ["spec.catchUpWindow: Invalid value: catchUpWindow must be at least 10s"],
            id="a window that Temporal would make longer",
        ),
        pytest.param(
            AgentSchedule,
            {**SCHEDULE, "concurrencyPolicy": "Skip"},
            [
                'spec.concurrencyPolicy: Unsupported value: "Skip": supported values: '
                '"Forbid", "Allow", "Replace", "Queue", "QueueAll"',
                NOT_CHECKED,
            ],
            id="a policy that there is none of",
        ),
        *(
            pytest.param(
                AgentSchedule,
                template(**{field: {key: ""}}),
                [
                    f"spec.runTemplate.metadata.{field}: Invalid value: a key of {field} is a name of at most 63 letters, "
                    "digits and -_., with a DNS prefix and / before it if wanted"
                ],
                id=f"{field} with the key {key[:16]}",
            )
            for field in ("labels", "annotations")
            for key in ("", "my team", "Example.com/x", "example.com/", "a/b/c", "x" * 64)
        ),
        *(
            pytest.param(
                AgentSchedule,
                template(**{field: {"dalang.dev/x": ""}}),
                [
                    f"spec.runTemplate.metadata.{field}: Invalid value: {field} that begin with dalang.dev/ are written by "
                    "Dalang itself"
                ],
                id=f"{field} of Dalang's own",
            )
            for field in ("labels", "annotations")
        ),
        *(
            pytest.param(
                AgentSchedule,
                template(labels={"team": value}),
                [
                    "spec.runTemplate.metadata.labels: Invalid value: a label's value has letters, digits and -_., and begins "
                    "and ends with a letter or digit"
                ],
                id=f"a label that says {value}",
            )
            for value in ("the shop", "-shop", "shop.")
        ),
        *(
            pytest.param(
                AgentSchedule,
                template(spec),
                [f"spec.runTemplate.spec: Invalid value: exactly one of {what} must be set"],
                id=f"a template with not one of {what}",
            )
            for spec, what in (
                ({"agentRef": {"name": "support"}}, "input and messages"),
                ({"input": "hi"}, "agentRef and sessionRef"),
            )
        ),
        *(
            pytest.param(
                AgentSchedule, template(spec), [f"spec.runTemplate.spec{cause}"], id=f"a template in which {what}"
            )
            for what, spec, cause in (
                (
                    "the user does not speak last",
                    {"agentRef": {"name": "a"}, "messages": [USER, ASSISTANT]},
                    ": Invalid value: the last of messages must have role User",
                ),
                (
                    "a variable has no good name",
                    {**RUN, "context": {"user-name": "Ada"}},
                    ".context: Invalid value: names in context begin with a letter or _ and have at most 64 letters, "
                    "digits and _",
                ),
                (
                    "there is no time",
                    {**RUN, "limits": {"timeout": "0s"}},
                    ".limits.timeout: Invalid value: timeout must be longer than 0s",
                ),
            )
        ),
    ],
)
def test_refused(kind: type[Resource], spec: object, causes: list[str], objects: "Objects") -> None:
    with pytest.raises(objects.refused) as refusal:
        objects.create(kind, spec)
    assert refusal.value.causes == causes


SPECS: dict[type[Resource], dict[str, Any]] = {
    Agent: AGENT,
    AgentModel: MODEL,
    AgentPool: {},
    AgentRun: RUN,
    AgentApproval: APPROVAL,
    AgentSession: SESSION,
    AgentSchedule: SCHEDULE,
}


@pytest.mark.parametrize("kind", crdgen.KINDS, ids=lambda kind: kind.KIND)
def test_the_length_of_a_name_is_limited(kind: type[Resource], objects: "Objects") -> None:
    spec = SPECS[kind]
    objects.create(kind, spec, name="n" * kind.NAME_MAX)
    with pytest.raises(objects.refused) as refusal:
        objects.create(kind, spec, name="n" * (kind.NAME_MAX + 1))
    ours = f"metadata.name: Invalid value: {kind.KIND} names may have at most {kind.NAME_MAX} characters"
    assert refusal.value.causes[-1] == ours
    assert len(refusal.value.causes) == 1 or kind.NAME_MAX == 253, "the API server has a maximum of its own"


def test_an_unknown_field_is_refused(objects: "Objects") -> None:
    with pytest.raises(objects.refused, match=r'strict decoding error: unknown field "spec\.model"'):
        objects.create(Agent, {**AGENT, "model": "gpt-5"})


def test_a_template_does_not_cancel_its_runs(objects: "Objects") -> None:
    with pytest.raises(objects.refused, match=r'unknown field "spec\.runTemplate\.spec\.cancel"'):
        objects.create(AgentSchedule, template({**RUN, "cancel": True}))


# ── The life of a run ──────────────────────────────────────────────────────────────────────────────────────────────


def waiting(condition_type: str, status: str, message: str = "Waiting for the controller") -> dict[str, str]:
    return {
        "type": condition_type,
        "status": status,
        "reason": "Pending",
        "message": message,
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("kind", "spec", "status"),
    [
        pytest.param(
            AgentModel, MODEL, {"observedGeneration": -1, "conditions": [waiting("Ready", "False")]}, id="model"
        ),
        pytest.param(AgentPool, None, {"observedGeneration": -1, "conditions": [waiting("Ready", "False")]}, id="pool"),
        pytest.param(Agent, AGENT, {"observedGeneration": -1, "conditions": [waiting("Ready", "False")]}, id="agent"),
        pytest.param(
            AgentRun,
            RUN,
            {
                "phase": "Pending",
                "observedGeneration": -1,
                "conditions": [waiting("Ready", "False"), waiting("Succeeded", "Unknown")],
            },
            id="run",
        ),
        pytest.param(
            AgentApproval,
            APPROVAL,
            {
                "state": "Pending",
                "conditions": [
                    waiting("Ready", "False", "Waits for a human to set spec.decision, then for the controller")
                ],
            },
            id="approval",
        ),
        pytest.param(
            AgentSession, SESSION, {"observedGeneration": -1, "conditions": [waiting("Ready", "False")]}, id="session"
        ),
        pytest.param(
            AgentSchedule,
            SCHEDULE,
            {"observedGeneration": -1, "conditions": [waiting("Ready", "False")]},
            id="schedule",
        ),
    ],
)
def test_an_object_is_born_pending(kind: type[Resource], spec: object, status: object, objects: "Objects") -> None:
    created = objects.create(kind, spec, status={"conditions": []})
    assert created["status"] == status, "the user's own status counts"
    assert objects.get(kind) == created, "it took a write"


def finish(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "status": {**run["status"], "phase": "Succeeded", "finishedAt": "2026-01-02T03:04:05Z"}}


def test_field_selectors_find_runs(objects: "Objects") -> None:
    objects.create(AgentRun, RUN, name="waiting")
    objects.create(AgentRun, {**RUN, "agentRef": {"name": "sales"}}, name="of-sales")
    objects.replace_status(AgentRun, finish(objects.create(AgentRun, RUN, name="finished")))

    assert objects.select(AgentRun, "status.finishedAt=") == ["of-sales", "waiting"]
    assert objects.select(AgentRun, "status.finishedAt!=") == ["finished"]
    assert objects.select(AgentRun, "status.phase=Pending") == ["of-sales", "waiting"]
    assert objects.select(AgentRun, "status.phase=Succeeded") == ["finished"]
    assert objects.select(AgentRun, "spec.agentRef.name=sales") == ["of-sales"]
    assert objects.select(AgentRun, "spec.agentRef.name=support,status.finishedAt=") == ["waiting"]

    objects.create(AgentRun, {"sessionRef": {"name": "ada"}, "input": "hi"}, name="in-a-session")
    assert objects.select(AgentRun, "spec.sessionRef.name=ada") == ["in-a-session"]
    assert objects.select(AgentRun, "spec.agentRef.name=") == ["in-a-session"]


def test_field_selectors_find_sessions(objects: "Objects") -> None:
    objects.create(AgentSession, SESSION, name="ada")
    objects.create(AgentSession, {"agentRef": {"name": "sales"}}, name="bob")
    assert objects.select(AgentSession, "spec.agentRef.name=support") == ["ada"]


def test_field_selectors_find_approvals(objects: "Objects") -> None:
    open_one = objects.create(AgentApproval, APPROVAL, name="open")
    decided = objects.create(AgentApproval, {**APPROVAL, "runRef": {"name": "other"}}, name="decided")
    objects.replace(AgentApproval, {**decided, "spec": {**decided["spec"], "decision": "Approve"}})
    objects.replace_status(AgentApproval, {**open_one, "status": {**open_one["status"], "state": "Expired"}})

    assert objects.select(AgentApproval, "spec.decision=") == ["open"]
    assert objects.select(AgentApproval, "spec.decision=Approve") == ["decided"]
    assert objects.select(AgentApproval, "spec.runRef.name=refund") == ["open"]
    assert objects.select(AgentApproval, "status.state=Expired") == ["open"]


@pytest.mark.parametrize(
    ("before", "after", "causes"),
    [
        pytest.param({}, {"cancel": True}, ["cancel"], id="cancel is refused"),
        pytest.param({"cancel": False}, {"cancel": True}, ["cancel"], id="cancel is refused where it was false"),
        pytest.param({}, {"cancel": False}, [], id="not cancelling it is no change"),
        pytest.param(
            {"cancel": True}, {"cancel": True, "ttlAfterFinished": "1h"}, [], id="cancelled: the rest goes on"
        ),
        pytest.param({"cancel": True}, {}, [], id="cancelled: Flux may take a patched cancel back"),
        pytest.param({}, {"ttlAfterFinished": "1h"}, [], id="ttlAfterFinished is set"),
        pytest.param({"ttlAfterFinished": "1h"}, {"ttlAfterFinished": "2h"}, [], id="ttlAfterFinished is changed"),
        pytest.param({"ttlAfterFinished": "1h"}, {}, [], id="ttlAfterFinished is removed"),
        pytest.param({}, {"limits": {"maxTurns": 3}}, ["immutable"], id="everything else is refused"),
    ],
)
def test_after_its_end(before: dict[str, Any], after: dict[str, Any], causes: list[str], objects: "Objects") -> None:
    messages = {
        "cancel": "spec.cancel: Forbidden: the run has finished: it can no longer be cancelled",
        "immutable": IMMUTABLE,
    }
    run = objects.replace_status(AgentRun, finish(objects.create(AgentRun, {**RUN, **before})))
    changed = {**run, "spec": {**RUN, **after}}
    if causes:
        with pytest.raises(objects.refused) as refusal:
            objects.replace(AgentRun, changed)
        assert refusal.value.causes == [messages[cause] for cause in causes]
    else:
        assert objects.replace(AgentRun, changed)["spec"] == changed["spec"]


def test_the_longest_conversation_can_be_cancelled(objects: "Objects") -> None:
    """Comparing it with itself, for immutability, must not cost more than the API server grants a rule."""
    spec = {"agentRef": {"name": "support"}, "messages": [{"role": "User", "content": "漢" * 32768}] * 4}
    run = objects.create(AgentRun, spec)
    objects.replace(AgentRun, {**run, "spec": {**spec, "cancel": True}})


def test_the_largest_context_can_be_cancelled(objects: "Objects") -> None:
    spec = {**RUN, "context": {f"v{number:02}": "漢" * 41 for number in range(64)}}
    run = objects.create(AgentRun, spec)
    objects.replace(AgentRun, {**run, "spec": {**spec, "cancel": True}})


# ── The life of a session and of a schedule ────────────────────────────────────────────────────────────────────────

SESSION_IMMUTABLE = "spec: Forbidden: agentRef and context of a session are immutable; create another session"
STAYS_CLOSED = "spec.closed: Forbidden: a closed session stays closed; create another one"


@pytest.mark.parametrize(
    ("before", "after", "causes"),
    [
        pytest.param({}, {"historySize": 8}, [], id="historySize is set"),
        pytest.param({"historySize": 8}, {"historySize": 80}, [], id="historySize is changed"),
        pytest.param({}, {"summary": {"modelRef": {"name": "small"}}}, [], id="another model summarises"),
        pytest.param({"limits": {"maxTurns": 3}}, {}, [], id="limits are lifted"),
        pytest.param({"idleTimeout": "1h"}, {"idleTimeout": "720h"}, [], id="idleTimeout is changed"),
        pytest.param({}, {"closed": True}, [], id="it is closed"),
        pytest.param({"closed": False}, {}, [], id="not closing it is no change"),
        pytest.param({"closed": True}, {"closed": True, "historySize": 8}, [], id="closed: the rest goes on"),
        pytest.param({"closed": True}, {"closed": False}, [STAYS_CLOSED], id="closed: not opened again"),
        pytest.param({"closed": True}, {}, [STAYS_CLOSED], id="closed: not by leaving it out either"),
        pytest.param({}, {"agentRef": {"name": "sales"}}, [SESSION_IMMUTABLE], id="another agent is refused"),
        pytest.param({}, {"context": {"a": "1"}}, [SESSION_IMMUTABLE], id="context cannot be added"),
        pytest.param({"context": {"a": "1"}}, {"context": {"a": "2"}}, [SESSION_IMMUTABLE], id="nor be changed"),
        pytest.param({"context": {"a": "1"}}, {}, [SESSION_IMMUTABLE], id="nor be taken away"),
    ],
)
def test_a_session_that_is_edited(
    before: dict[str, Any], after: dict[str, Any], causes: list[str], objects: "Objects"
) -> None:
    session = objects.create(AgentSession, {**SESSION, **before})
    changed = {**session, "spec": {**SESSION, **after}}
    if causes:
        with pytest.raises(objects.refused) as refusal:
            objects.replace(AgentSession, changed)
        assert refusal.value.causes == causes
    else:
        assert objects.replace(AgentSession, changed)["spec"] == changed["spec"]


def test_the_largest_context_of_a_session_lets_it_be_closed(objects: "Objects") -> None:
    spec = {**SESSION, "context": {f"v{number:02}": "漢" * 41 for number in range(64)}}
    session = objects.create(AgentSession, spec)
    objects.replace(AgentSession, {**session, "spec": {**spec, "closed": True}})


LONG_TASK = {"sessionRef": {"name": "ada"}, "messages": [{"role": "User", "content": "漢" * 32768}] * 4}


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(at(intervals=[{"every": "1h"}], timeZone="Asia/Jakarta"), id="other times"),
        pytest.param(template({**RUN, "input": "And order 43?"}, labels={"team": "shop"}), id="another task"),
        pytest.param(template({"sessionRef": {"name": "ada"}, "input": "hi"}), id="in a session"),
        pytest.param(template(LONG_TASK), id="the longest conversation"),
        pytest.param({**SCHEDULE, "suspend": True, "pauseOnFailure": True}, id="suspended"),
    ],
)
def test_all_of_a_schedule_can_be_edited_in_place(after: dict[str, Any], objects: "Objects") -> None:
    schedule = objects.create(AgentSchedule, SCHEDULE)
    schedule = objects.replace(AgentSchedule, {**schedule, "spec": after})
    assert schedule["spec"] == after
    assert objects.replace(AgentSchedule, {**schedule, "spec": SCHEDULE})["spec"] == SCHEDULE


def test_a_schedule_is_edited_into_nothing_that_is_wrong(objects: "Objects") -> None:
    schedule = objects.create(AgentSchedule, SCHEDULE)
    with pytest.raises(objects.refused) as refusal:
        objects.replace(AgentSchedule, {**schedule, "spec": template({**RUN, "messages": [USER]})})
    assert refusal.value.causes == [
        "spec.runTemplate.spec: Invalid value: exactly one of input and messages must be set"
    ]


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_the_largest_metadata_of_a_template_is_not_too_dear_to_check(field: str, objects: "Objects") -> None:
    prefix = ".".join(["p" * 63] * 3)
    many = {f"{prefix}/{number:02}{'k' * 61}": ("v" * 63 if field == "labels" else "v" * 4096) for number in range(32)}
    objects.create(AgentSchedule, template(**{field: many}))


def test_labels_and_status_can_be_written_after_its_end(objects: "Objects") -> None:
    run = objects.replace_status(AgentRun, finish(objects.create(AgentRun, RUN)))
    run = objects.replace(AgentRun, {**run, "metadata": {**run["metadata"], "labels": {"team": "shop"}}})
    run["status"]["output"] = "On its way."
    assert objects.replace_status(AgentRun, run)["status"]["output"] == "On its way."


# ── What kubectl shows ─────────────────────────────────────────────────────────────────────────────────────────────


def test_kubectl_lists_all_kinds_of_the_category(control_plane: "ControlPlane", objects: "Objects") -> None:
    objects.create(AgentModel, MODEL, name="gpt-5")
    objects.create(AgentPool, None, name="default")
    objects.create(Agent, AGENT, name="support")
    objects.create(AgentRun, RUN, name="refund")
    objects.create(AgentSession, SESSION, name="ada")
    objects.create(AgentSchedule, SCHEDULE, name="nightly")
    listed = control_plane.kubectl("get", "dalang", "--namespace", objects.namespace, "--output", "name")
    assert sorted(listed.split()) == [
        "agent.dalang.dev/support",
        "agentmodel.dalang.dev/gpt-5",
        "agentpool.dalang.dev/default",
        "agentrun.dalang.dev/refund",
        "agentschedule.dalang.dev/nightly",
        "agentsession.dalang.dev/ada",
    ]


READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    ("kind", "spec", "status", "columns"),
    [
        pytest.param(
            AgentModel,
            MODEL,
            {"conditions": [{**READY, "reason": "Accepted"}]},
            {"NAME": "x", "PROVIDER": "OpenAI", "MODEL": "gpt-5", "READY": "True", "REASON": "Accepted"},
            id="models",
        ),
        pytest.param(
            AgentPool,
            {},
            {"conditions": [{**READY, "reason": "Available"}], "replicas": 2, "readyReplicas": 1},
            {"NAME": "x", "DESIRED": "2", "WORKERS": "1", "READY": "True", "REASON": "Available"},
            id="pools",
        ),
        pytest.param(
            Agent,
            {**AGENT, "poolRef": {"name": "gpu"}},
            {"conditions": [{**READY, "reason": "Resolved"}]},
            {"NAME": "x", "MODEL": "gpt-5", "POOL": "gpu", "READY": "True", "REASON": "Resolved"},
            id="agents",
        ),
        pytest.param(
            AgentRun,
            RUN,
            {
                "phase": "Succeeded",
                "conditions": [{**READY, "type": "Succeeded", "reason": "Answered"}],
                "turns": 3,
                "usage": {"inputTokens": 40, "outputTokens": 2, "totalTokens": 42, "costUSD": "0.0042"},
                "output": "Arrived.",
            },
            {
                "NAME": "x",
                "AGENT": "support",
                "PHASE": "Succeeded",
                "REASON": "Answered",
                "TURNS": "3",
                "TOKENS": "42",
                "COST": "0.0042",
                "OUTPUT": "Arrived.",
            },
            id="runs",
        ),
        pytest.param(
            AgentApproval,
            {**APPROVAL, "question": "Refund?"},
            {"state": "Expired"},
            {
                "NAME": "x",
                "RUN": "refund",
                "AGENT": "support",
                "TOOL": "refund",
                "STATE": "Expired",
                "QUESTION": "Refund?",
            },
            id="approvals",
        ),
        pytest.param(
            AgentRun,
            {"sessionRef": {"name": "ada"}, "input": "hi"},
            {
                "phase": "Pending",
                "conditions": [{**READY, "type": "Succeeded", "status": "Unknown", "reason": "Queued"}],
            },
            {"NAME": "x", "SESSION": "ada", "PHASE": "Pending", "REASON": "Queued"},
            id="runs of a session",
        ),
        pytest.param(
            AgentSession,
            SESSION,
            {
                "conditions": [{**READY, "reason": "Active"}],
                "agent": "refunds",
                "runs": 12,
                "queuedRuns": 2,
                "usage": {"inputTokens": 40, "outputTokens": 2, "totalTokens": 42, "costUSD": "0.0042"},
                "lastRun": {"name": "ada-12", "phase": "Succeeded", "finishedAt": "2026-01-02T03:04:05Z"},
            },
            {
                "NAME": "x",
                "AGENT": "refunds",
                "READY": "True",
                "REASON": "Active",
                "RUNS": "12",
                "QUEUED": "2",
                "TOKENS": "42",
                "LAST RUN": "ada-12",
                "COST": "0.0042",
            },
            id="sessions",
        ),
        pytest.param(
            AgentSchedule,
            {
                **SCHEDULE,
                "schedule": {"cron": ["0 9 * * 1-5", "@daily"], "timeZone": "Europe/Berlin"},
                "suspend": False,
                "concurrencyPolicy": "Allow",
            },
            {
                "conditions": [{**READY, "reason": "Scheduled"}],
                "activeRuns": [{"name": "x-1"}, {"name": "x-2"}],
                "nextRuns": ["2026-01-02T08:00:00Z", "2026-01-03T08:00:00Z"],
                "lastRun": {"name": "x-2"},
            },
            {
                "NAME": "x",
                "SCHEDULE": '["0 9 * * 1-5","@daily"]',
                "SUSPEND": "false",
                "READY": "True",
                "REASON": "Scheduled",
                "ACTIVE": "x-1",
                "NEXT": "2026-01-02T08:00:00Z",
                "LAST RUN": "x-2",
                "POLICY": "Allow",
                "TIME ZONE": "Europe/Berlin",
            },
            id="schedules",
        ),
    ],
)
def test_kubectl_shows_columns(
    kind: type[Resource],
    spec: object,
    status: object,
    columns: dict[str, str],
    control_plane: "ControlPlane",
    objects: "Objects",
) -> None:
    objects.replace_status(kind, {**objects.create(kind, spec), "status": status})
    table = control_plane.kubectl("get", kind.SHORT, "--namespace", objects.namespace, "--output", "wide")
    header, row = table.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+(?: \S+)*", header)]
    cells = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    shown = {header[cell].strip(): row[cell].strip() for cell in cells if row[cell].strip()}
    assert shown.pop("AGE")
    assert shown == columns


@pytest.mark.parametrize(
    ("field", "heading", "words"),
    [
        pytest.param(
            "agentrun.spec.cancel",
            "FIELD: cancel <boolean>",
            "Set it to true to cancel the run. What a tool has already done stays done.",
            id="how to cancel",
        ),
        pytest.param(
            "agentapproval.spec.decision",
            "FIELD: decision <string>",
            "kubectl patch agentapproval NAME --type merge -p",
            id="how to decide",
        ),
        pytest.param(
            "agentsession.spec.closed", "FIELD: closed <boolean>", "It cannot be opened again.", id="how to close"
        ),
        pytest.param(
            "agentschedule",
            "KIND: AgentSchedule",
            "set annotation `dalang.dev/trigger` to any new value",
            id="how to trigger",
        ),
        pytest.param(
            "agentschedule.spec.schedule.timeZone", "FIELD: timeZone <string>", "Default: UTC.", id="which time zone"
        ),
    ],
)
def test_kubectl_explains(field: str, heading: str, words: str, control_plane: "ControlPlane") -> None:
    explained = ""
    while not explained:
        # The API server publishes the schemas about a second after it has begun to serve the objects.
        with contextlib.suppress(AssertionError):
            explained = " ".join(control_plane.kubectl("explain", field).split())
    assert heading in explained
    assert words in explained


def test_kubectl_waits_for_the_end_of_a_run(control_plane: "ControlPlane", objects: "Objects") -> None:
    objects.replace_status(AgentRun, finish(objects.create(AgentRun, RUN)))
    control_plane.kubectl(
        "wait", "--for=jsonpath={.status.finishedAt}", "agentrun/x", "--namespace", objects.namespace, "--timeout=10s"
    )
