"""What is said of an Agent: the order of the checks is tested through the list."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from dalang_operator.kinds.agent.plan import Observed, Plan, plan
from dalang_operator.kube.resources import Json

from tests.build import NOW, agent, config_map, known, model, pool

TOOLS = [{"name": "weather", "function": {}}, {"name": "pay", "function": {"name": "shop.pay"}}]
REFUNDS = [{"name": "refunds", "agentRef": {"name": "refunds"}}]
SALES = [{"agentRef": {"name": "sales"}}]
WEATHER = [{"name": "weather", "mcp": {"server": "weather"}}]
SERVER = {"name": "weather", "streamableHTTP": {"url": "http://weather/mcp"}}
HANDBOOK = {
    "name": "handbook",
    "qdrant": {"url": "http://q", "collection": "c", "embedding": {"modelRef": {"name": "emb"}}},
}
FROM_MAP = {"instructionsFrom": {"configMapKeyRef": {"name": "prompts", "key": "helper"}}}
FROM_FUNCTION = {"instructionsFrom": {"function": {"name": "greet"}}}
BUDGET = {"limits": {"maxCostUSD": "0.50"}}

OK = ("True", "Resolved")
OWN = model("own", name="our-own")
CATALOGUE = [{"name": "weather", "digest": "d"}, {"name": "shop.pay", "digest": "d"}]
TOOL_WEATHER = {"mode": "Tool", "tool": "weather"}
TOOL_NOPE = {"mode": "Tool", "tool": "nope"}


def known_pool(*functions: str, build: str = "b1", instructions: tuple[str, ...] = ()) -> Json:
    tools = [{"name": name, "digest": "d"} for name in functions]
    return pool(status={"build": "b1", "catalogue": {"build": build, "tools": tools, "instructions": instructions}})


def embedding_pool(embedding: str) -> Json:
    """A pool with the retriever, whose vectors a model of that name makes."""
    made = {"modelRef": {"name": "emb"}, "name": embedding}
    return pool(retrievers=[{**HANDBOOK, "qdrant": {"collection": "c", "embedding": made}}])


def observed(spec: Json, *there: Json, config_maps: dict[str, Json | None] | None = None) -> Observed:
    """An Agent of that spec, and what else is there."""
    return Observed(agent(**spec), known(*there), NOW, config_maps or {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(observed({}, model(), pool()), ("True", "Resolved"), id="everything it names is there"),
        pytest.param(observed({}, model()), ("True", "Resolved"), id="the default pool need not be there yet"),
        pytest.param(observed({}), ("False", "ModelNotFound"), id="no model"),
        pytest.param(
            observed({"fallbackModelRefs": [{"name": "claude"}]}, model()),
            ("False", "ModelNotFound"),
            id="no model to fall back to",
        ),
        pytest.param(observed({"tools": REFUNDS}, model()), ("False", "AgentNotFound"), id="no agent to call"),
        pytest.param(observed({"handoffs": SALES}, model()), ("False", "AgentNotFound"), id="no agent to hand over to"),
        pytest.param(
            observed({"tools": REFUNDS, "handoffs": SALES}, model(), agent("refunds"), agent("sales")),
            ("True", "Resolved"),
            id="all agents are there",
        ),
        pytest.param(observed({"poolRef": {"name": "gpu"}}, model()), ("False", "PoolNotFound"), id="no pool"),
        pytest.param(
            observed({"poolRef": {"name": "gpu"}, "tools": [*TOOLS, *REFUNDS]}),
            ("False", "ModelNotFound"),
            id="of several the first",
        ),
        pytest.param(observed(FROM_MAP, model()), ("False", "ConfigMapNotFound"), id="no ConfigMap with instructions"),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts", other="x")}),
            ("False", "ConfigMapNotFound"),
            id="a ConfigMap without the key",
        ),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts", helper="Be kind.")}),
            ("True", "Resolved"),
            id="the ConfigMap is there",
        ),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts", helper="x" * 32769)}),
            ("False", "InvalidSpec"),
            id="its text is too long",
        ),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts", helper="Hi {{ context.")}),
            ("False", "InvalidSpec"),
            id="its text is no template",
        ),
        pytest.param(observed({"tools": WEATHER}, model()), ("False", "ServerNotFound"), id="no MCP server"),
        pytest.param(
            observed({"tools": WEATHER}, model(), pool(mcpServers=[SERVER])), ("True", "Resolved"), id="the MCP server"
        ),
        pytest.param(
            observed({"retrieval": {"retriever": "handbook"}}, model(), pool()),
            ("False", "RetrieverNotFound"),
            id="no retriever",
        ),
        pytest.param(
            observed({"retrieval": {"retriever": "handbook"}}, model(), pool(retrievers=[HANDBOOK])),
            ("False", "ModelNotFound"),
            id="the retriever, but not the model that makes its vectors",
        ),
        pytest.param(
            observed({"retrieval": {"retriever": "handbook"}}, model(), model("emb"), pool(retrievers=[HANDBOOK])),
            ("True", "Resolved"),
            id="the retriever with its model",
        ),
        *(
            pytest.param(
                observed(
                    {"retrieval": {"retriever": "handbook"}},
                    model(),
                    model("emb", provider=provider),
                    pool(retrievers=[HANDBOOK]),
                ),
                expected,
                id=f"vectors of {provider}",
            )
            for provider, expected in {
                "AzureOpenAI": ("True", "Resolved"),
                "Anthropic": ("False", "InvalidSpec"),
                "Bedrock": ("False", "InvalidSpec"),
            }.items()
        ),
        pytest.param(observed({"instructions": "Hi {{ context."}, model()), ("False", "InvalidSpec"), id="no template"),
        pytest.param(
            observed({"output": {"schema": {"type": "nonsense"}}}, model()),
            ("False", "InvalidSpec"),
            id="no JSON schema",
        ),
        pytest.param(
            observed({"output": {"schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}}, model()),
            ("True", "Resolved"),
            id="a JSON schema",
        ),
        pytest.param(
            observed(
                {"handoffs": [{"agentRef": {"name": "a-b"}}, {"agentRef": {"name": "a.b"}}]},
                model(),
                agent("a-b"),
                agent("a.b"),
            ),
            ("False", "InvalidSpec"),
            id="two hand-offs the model cannot tell apart",
        ),
        pytest.param(
            observed(
                {"handoffs": SALES, "tools": [{"name": "transfer_to_sales", "function": {}}]},
                model(),
                agent("sales"),
                known_pool("transfer_to_sales"),
            ),
            ("False", "InvalidSpec"),
            id="a tool called like a hand-off",
        ),
        pytest.param(
            observed(
                {"handoffs": SALES, "tools": [{"name": "transfer_to_sales", "mcp": {"server": "weather"}}]},
                model(),
                agent("sales"),
                pool(mcpServers=[SERVER]),
            ),
            ("True", "Resolved"),
            id="the name of MCP tools is none the model sees",
        ),
        *(
            pytest.param(
                observed(
                    {"toolChoice": choice, **tools},
                    model(),
                    agent("sales"),
                    pool(
                        mcpServers=[SERVER],
                        status={"build": "b1", "catalogue": {"build": "b1", "tools": CATALOGUE, "instructions": []}},
                    ),
                ),
                expected,
                id=f"toolChoice {' '.join(choice.values())}, with {' and '.join(tools) or 'nothing'}: {expected[1]}",
            )
            for choice, tools, expected in (
                (TOOL_WEATHER, {"tools": TOOLS}, ("True", "Resolved")),
                (TOOL_NOPE, {"tools": TOOLS}, ("False", "InvalidSpec")),
                (TOOL_NOPE, {}, ("False", "InvalidSpec")),
                (TOOL_NOPE, {"tools": [*TOOLS, {"name": "w", "mcp": {"server": "weather"}}], "handoffs": SALES}, OK),
                ({"mode": "Tool", "tool": "transfer_to_sales"}, {"handoffs": SALES}, OK),
                ({"mode": "Required"}, {"handoffs": SALES}, OK),
                ({"mode": "Required"}, {"tools": WEATHER}, OK),
                ({"mode": "Required"}, {}, ("False", "InvalidSpec")),
                ({"mode": "Auto"}, {}, OK),
                ({"mode": "None"}, {}, OK),
            )
        ),
        *(
            pytest.param(
                observed({"tools": REFUNDS, **spec}, model(), *there),
                expected,
                id=f"{what} {expected[1]}",
            )
            for what, spec, there, expected in (
                ("an agent in reach has no model:", {}, [agent("refunds", model="x")], ("False", "ModelNotFound")),
                ("one has no price:", {}, [agent("refunds", model="own", **BUDGET), OWN], ("False", "PriceUnknown")),
                ("one reaches nobody:", {}, [agent("refunds", handoffs=SALES)], ("False", "AgentNotFound")),
                (
                    "one farther away is not valid:",
                    {},
                    [agent("refunds", handoffs=SALES), agent("sales", instructions="{% x %}")],
                    ("False", "InvalidSpec"),
                ),
                ("nobody told what one has:", {}, [agent("refunds", tools=TOOLS), pool()], OK),
                (
                    "what is wrong comes before what is unknown:",
                    {"tools": [*TOOLS, *REFUNDS]},
                    [agent("refunds", model="x"), pool()],
                    ("False", "ModelNotFound"),
                ),
                ("one calls back:", {}, [agent(), agent("refunds", handoffs=[{"agentRef": {"name": "helper"}}])], OK),
                (
                    "its own comes first:",
                    {"poolRef": {"name": "gpu"}},
                    [agent("refunds", model="x")],
                    ("False", "PoolNotFound"),
                ),
            )
        ),
        pytest.param(observed(BUDGET, model()), ("True", "Resolved"), id="a cost limit and a price"),
        pytest.param(
            observed(BUDGET, model(openAI={"baseURL": "http://ollama.models:11434/v1"}, name="gpt-5x")),
            ("False", "PriceUnknown"),
            id="a cost limit and no price",
        ),
        pytest.param(
            observed({**BUDGET, "fallbackModelRefs": [{"name": "own"}]}, model(), model("own", name="our-own")),
            ("False", "PriceUnknown"),
            id="a cost limit and no price of the model to fall back to",
        ),
        *(
            pytest.param(
                observed(
                    {**BUDGET, "retrieval": {"retriever": "handbook"}}, model(), model("emb"), embedding_pool(embedding)
                ),
                expected,
                id=f"a cost limit and vectors of {embedding}",
            )
            for embedding, expected in (
                ("text-embedding-3-small", ("True", "Resolved")),
                ("our-own", ("False", "PriceUnknown")),
            )
        ),
        pytest.param(observed({}, model(name="our-own")), ("True", "Resolved"), id="without a cost limit no price"),
        pytest.param(
            observed({"tools": TOOLS}, model(), pool()),
            ("Unknown", "CatalogueUnknown"),
            id="nobody has told the pool's tools",
        ),
        pytest.param(
            observed(FROM_FUNCTION, model(), pool()),
            ("Unknown", "CatalogueUnknown"),
            id="nobody has told the pool's instruction functions",
        ),
        pytest.param(
            observed({"tools": TOOLS}, model(), known_pool("weather", "shop.pay", build="b0")),
            ("Unknown", "CatalogueUnknown"),
            id="what an older build had says nothing",
        ),
        pytest.param(
            observed({"tools": TOOLS}, model(), known_pool("weather", "shop.pay")),
            ("True", "Resolved"),
            id="all functions are there",
        ),
        pytest.param(
            observed({"tools": TOOLS}, model(), known_pool("weather")),
            ("False", "ToolNotFound"),
            id="one function is not",
        ),
        pytest.param(
            observed(FROM_FUNCTION, model(), known_pool(instructions=("greet",))),
            ("True", "Resolved"),
            id="the instruction function is there",
        ),
        pytest.param(
            observed(FROM_FUNCTION, model(), known_pool("greet")),
            ("False", "ToolNotFound"),
            id="a tool is no instruction function",
        ),
        pytest.param(
            observed({"tools": TOOLS, "output": {"schema": {"type": "nonsense"}}}, model(), pool()),
            ("False", "InvalidSpec"),
            id="what is wrong with it is said before a worker has told anything",
        ),
    ],
)
def test_ready(given: Observed, expected: tuple[str, str]) -> None:
    [ready] = plan(given).status["conditions"]
    assert (ready["status"], ready["reason"]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(observed({}), "There is no AgentModel gpt in namespace shop", id="a model"),
        pytest.param(
            observed({"tools": REFUNDS}, model()), "There is no Agent refunds in namespace shop", id="an agent"
        ),
        pytest.param(
            observed({"tools": TOOLS}, model(), known_pool("weather", "shop.pays")),
            "AgentPool default has no function shop.pay; did you mean shop.pays?",
            id="a function, and the nearest one",
        ),
        pytest.param(
            observed(FROM_FUNCTION, model(), known_pool(instructions=("greets",))),
            "AgentPool default has no instruction function greet; did you mean greets?",
            id="an instruction function, and the nearest one",
        ),
        pytest.param(
            observed({"tools": [{"name": "w", "mcp": {"server": "wether"}}]}, model(), pool(mcpServers=[SERVER])),
            "AgentPool default has no MCP server wether; did you mean weather?",
            id="an MCP server, and the nearest one",
        ),
        pytest.param(
            observed({"retrieval": {"retriever": "handbok"}}, model(), pool(retrievers=[HANDBOOK])),
            "AgentPool default has no retriever handbok; did you mean handbook?",
            id="a retriever, and the nearest one",
        ),
        pytest.param(
            observed({"retrieval": {"retriever": "handbook"}}, model(), pool(retrievers=[HANDBOOK])),
            "Retriever handbook of AgentPool default names AgentModel emb, which is not there",
            id="the model of a retriever",
        ),
        pytest.param(observed(FROM_MAP, model()), "There is no ConfigMap prompts in namespace shop", id="a ConfigMap"),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts")}),
            "ConfigMap prompts has no text under the key helper",
            id="a ConfigMap's key",
        ),
        pytest.param(
            observed(BUDGET, model(name="our-own")),
            "limits.maxCostUSD is set, and the price of AgentModel gpt (our-own) is not known",
            id="a price",
        ),
        pytest.param(
            observed(
                {"handoffs": SALES, "tools": [{"name": "transfer_to_sales", "function": {}}]}, model(), agent("sales")
            ),
            "The model would see two tools called transfer_to_sales, hand-offs included",
            id="a name twice",
        ),
        pytest.param(
            observed({"tools": TOOLS, "handoffs": SALES, "toolChoice": TOOL_NOPE}, model(), agent("sales")),
            "toolChoice names nope, which is none of the tools: pay, transfer_to_sales, weather",
            id="a choice of a tool that is none",
        ),
        pytest.param(
            observed({"tools": REFUNDS}, model(), agent("refunds", model="x")),
            "Agent refunds: There is no AgentModel x in namespace shop",
            id="an agent in reach that lacks something",
        ),
    ],
)
def test_the_message_says_where_to_look(given: Observed, message: str) -> None:
    [ready] = plan(given).status["conditions"]
    assert ready["message"] == message


@pytest.mark.parametrize(
    ("given", "requeue_after"),
    [
        pytest.param(observed(FROM_MAP, model()), 10.0, id="a missing ConfigMap"),
        pytest.param(
            observed(FROM_MAP, model(), config_maps={"prompts": config_map("prompts", helper="{% x %}")}),
            10.0,
            id="a ConfigMap with what is no template",
        ),
        pytest.param(
            observed({"tools": REFUNDS}, model(), agent("refunds", instructionsFrom=FROM_MAP["instructionsFrom"])),
            10.0,
            id="one of an agent in reach",
        ),
        pytest.param(observed({"instructions": "{% x %}"}, model()), None, id="an Agent's own: its event tells"),
        pytest.param(observed({}), None, id="a missing model: its event tells"),
    ],
)
def test_what_nothing_watches_is_looked_at_again(given: Observed, requeue_after: float | None) -> None:
    assert plan(given).requeue_after == requeue_after


@pytest.mark.parametrize("spec", [{}, FROM_MAP, {"tools": TOOLS}], ids=["ready", "waits for a ConfigMap", "unknown"])
def test_the_written_status_is_a_fixpoint(spec: dict[str, Any]) -> None:
    given = observed(spec, model())
    first = plan(given)
    later = replace(given, agent={**given.agent, "status": first.status}, now=NOW + timedelta(days=1))
    assert plan(later) == Plan(first.status, first.requeue_after)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param({"tools": [{**TOOLS[1], "approval": {"when": "args. >"}}]}, "tools[pay].approval", id="of a tool"),
        pytest.param({"output": {"approval": {"when": "output >"}}}, "output.approval", id="of the answer"),
        pytest.param(
            {"tools": [{**TOOLS[1], "approval": {"when": "output.x > 1"}}]}, "tools[pay].approval", id="not of a tool"
        ),
        pytest.param({"output": {"approval": {"when": "args.x > 1"}}}, "output.approval", id="not of the answer"),
        pytest.param(
            {"tools": [{**TOOLS[1], "approval": {"when": "agent.foo == 'x'"}}]}, "tools[pay].approval", id="no member"
        ),
    ],
)
def test_an_approval_that_does_not_compile_is_named(spec: Json, field: str) -> None:
    [ready] = plan(observed(spec, model(), known_pool("weather", "shop.pay"))).status["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert ready["message"].startswith(f"{field}.when does not compile: ")


def test_approvals_that_compile_are_fine() -> None:
    spec = {
        "tools": [{**TOOLS[1], "approval": {"when": "args.amount > 100"}}, {**TOOLS[0], "approval": {}}],
        "output": {"approval": {"when": "output.confidence < 0.95"}},
    }
    [ready] = plan(observed(spec, model(), known_pool("weather", "shop.pay"))).status["conditions"]
    assert ready["status"] == "True"
