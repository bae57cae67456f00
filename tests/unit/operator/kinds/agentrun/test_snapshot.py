"""What a run starts with: all the worker needs, no secret, and nothing that is not set."""

from datetime import timedelta
from typing import Any

import pytest
from dalang_operator.kinds.agentrun.snapshot import EffectiveLimits, limits, make_run_input, model_snapshot
from dalang_operator.kinds.reach import Reach, find_reach
from dalang_operator.kube.resources import Json

from tests.build import INSTALLATION, agent, config_map, known, model, pool, run

HOUR = timedelta(hours=1)
QUEUE = f"{INSTALLATION}.shop.default"
GPT = {"name": "gpt", "uid": "uid-gpt", "generation": 1, "provider": "OpenAI", "model": "gpt-5"}


def run_input(obj: Json, start: Json, *there: Json, config_maps: dict[str, Json | None] | None = None) -> Any:
    reach = find_reach(start, known(start, *there))
    assert isinstance(reach, Reach), reach
    return make_run_input(obj, reach, config_maps or {}, INSTALLATION).model_dump(exclude_none=True)


def one_agent(start: Json, *there: Json) -> Any:
    return run_input(run(), start, *there)["snapshot"]["agents"][0]


@pytest.mark.parametrize(
    ("agents", "own", "expected"),
    [
        pytest.param({}, {}, EffectiveLimits(20, HOUR), id="the defaults"),
        pytest.param({"maxTurns": 50}, {}, EffectiveLimits(50, HOUR), id="an agent may raise a default"),
        pytest.param(
            {"maxTurns": 5, "timeout": "10m"},
            {"maxTurns": 9, "timeout": "30s"},
            EffectiveLimits(5, timedelta(seconds=30)),
            id="of two the lower",
        ),
        pytest.param(
            {"maxTokens": 500, "maxCostUSD": "0.50"},
            {"maxTokens": 900},
            EffectiveLimits(20, HOUR, 500, "0.50"),
            id="budgets have no default",
        ),
        pytest.param(
            {"maxCostUSD": "10"}, {"maxCostUSD": "9.5"}, EffectiveLimits(20, HOUR, None, "9.5"), id="costs are numbers"
        ),
    ],
)
def test_limits(agents: Json, own: Json, expected: EffectiveLimits) -> None:
    assert limits(agent(limits=agents), run(limits=own)) == expected


def test_a_plain_agents_input_holds_nothing_that_is_not_set() -> None:
    assert run_input(run(), agent(), model(secret="openai")) == {
        "agent": "helper",
        "messages": [{"role": "user", "parts": [{"type": "text", "text": "hello"}]}],
        "max_turns": 20,
        "timeout_seconds": 3600.0,
        "snapshot": {
            "agents": [
                {"name": "helper", "uid": "uid-helper", "generation": 1, "queue": QUEUE, "model": "gpt", "tools": []}
            ],
            "models": [{**GPT, "api_key": {"name": "openai", "key": "api-key"}}],
        },
    }


def test_a_conversation_its_budgets_and_its_context_variables() -> None:
    said = [{"role": "User", "content": "a"}, {"role": "Assistant", "content": "b"}, {"role": "User", "content": "c"}]
    context = {"name": "Ada", "count": "3", "order": '{"id":42}', "quoted": '"3"'}
    given = run(messages=said, context=context, limits={"maxTokens": 100})
    made = run_input(given, agent(limits={"maxCostUSD": "0.5", "maxTokens": 900}), model())
    assert [(message["role"], message["parts"][0]["text"]) for message in made["messages"]] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert (made["max_tokens"], made["max_cost_usd"]) == (100, "0.5")
    assert made["context"] == {"name": "Ada", "count": 3, "order": {"id": 42}, "quoted": "3"}


def test_everything_an_agent_can_say() -> None:
    start = agent(
        description="Answers.",
        fallbackModelRefs=[{"name": "claude"}],
        instructions="Be kind.",
        tools=[
            {"name": "weather", "function": {}},
            {"name": "pay", "function": {"name": "shop.pay"}},
            {"name": "maps", "mcp": {"server": "maps", "tools": ["find"]}},
            {"name": "all", "mcp": {"server": "maps"}},
            {"name": "refunds", "agentRef": {"name": "refunds"}},
        ],
        handoffs=[{"agentRef": {"name": "sales"}, "description": "Buying."}, {"agentRef": {"name": "refunds"}}],
        toolChoice={"mode": "Tool", "tool": "weather"},
        parallelToolCalls=False,
        retrieval={"retriever": "handbook"},
        output={"schema": {"type": "object"}},
        parameters={"temperature": "0.2", "maxOutputTokens": 9},
        retry={"timeout": "2m", "maximumAttempts": 0, "initialInterval": "500ms", "maximumInterval": "1m"},
        limits={"maxTurns": 5, "maxTokens": 6, "maxCostUSD": "7", "timeout": "8s"},
    )
    embedding = {"collection": "c", "embedding": {"modelRef": {"name": "gpt"}}}
    owner = pool(mcpServers=[{"name": "maps"}], retrievers=[{"name": "handbook", "qdrant": embedding}])
    others = [
        agent("refunds", handoffs=[{"agentRef": {"name": "helper"}}]),
        agent("sales"),
        model(parameters={"temperature": "1"}),
        model("claude"),
        owner,
    ]
    assert one_agent(start, *others) == {
        "name": "helper",
        "uid": "uid-helper",
        "generation": 1,
        "queue": QUEUE,
        "model": "gpt",
        "fallbacks": ["claude"],
        "description": "Answers.",
        "instructions": "Be kind.",
        "tools": [
            {"name": "weather", "function": "weather"},
            {"name": "pay", "function": "shop.pay"},
            {"name": "maps", "mcp": {"server": "maps", "tools": ["find"]}},
            {"name": "all", "mcp": {"server": "maps"}},
            {"name": "refunds", "agent": "refunds"},
        ],
        "handoffs": [{"agent": "sales", "description": "Buying."}, {"agent": "refunds"}],
        "tool_choice": {"mode": "Tool", "tool": "weather"},
        "parallel_tool_calls": False,
        "retriever": "handbook",
        "output_schema": {"type": "object"},
        "temperature": "0.2",
        "max_output_tokens": 9,
        "retry": {"timeout_seconds": 120.0, "maximum_attempts": 0, "initial_seconds": 0.5, "maximum_seconds": 60.0},
        "limits": {"max_turns": 5, "max_tokens": 6, "max_cost_usd": "7", "timeout_seconds": 8.0},
    }


def test_description_and_limits_are_for_those_who_call_it() -> None:
    """The run's own limits stand in its input."""
    spec: Json = {"description": "Answers.", "limits": {"maxTurns": 5}}
    assert {"description", "limits"}.isdisjoint(one_agent(agent(**spec), model()))
    caller = agent(tools=[{"name": "other", "agentRef": {"name": "other"}}], **spec)
    first, second = run_input(run(), caller, agent("other", **spec), model())["snapshot"]["agents"]
    assert {"description", "limits"}.isdisjoint(first)
    assert (second["description"], second["limits"]) == ("Answers.", {"max_turns": 5})


def test_instructions_from_elsewhere() -> None:
    from_map = agent(instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "a"}})
    texts: dict[str, Json | None] = {"prompts": config_map("prompts", a="Be {{ context.mood }}.")}
    [found] = run_input(run(), from_map, model(), config_maps=texts)["snapshot"]["agents"]
    assert found["instructions"] == "Be {{ context.mood }}."
    found = one_agent(agent(instructionsFrom={"function": {"name": "greet"}}), model())
    assert found["instructions_function"] == "greet"
    assert "instructions" not in found


def test_each_agent_is_on_the_queue_of_its_own_pool() -> None:
    start = agent(handoffs=[{"agentRef": {"name": "sales"}}])
    made = run_input(run(), start, agent("sales", poolRef={"name": "gpu"}), model(), pool("gpu"))
    assert [found["queue"] for found in made["snapshot"]["agents"]] == [QUEUE, f"{INSTALLATION}.shop.gpu"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({"openAI": {"baseURL": "http://m/v1"}}, {"base_url": "http://m/v1"}, id="OpenAI"),
        pytest.param(
            {
                "provider": "AzureOpenAI",
                "azureOpenAI": {"endpoint": "https://shop.openai.azure.com", "apiVersion": "v", "deployment": "d"},
            },
            {
                "provider": "AzureOpenAI",
                "base_url": "https://shop.openai.azure.com",
                "api_version": "v",
                "deployment": "d",
            },
            id="AzureOpenAI",
        ),
        pytest.param({"provider": "Anthropic"}, {"provider": "Anthropic"}, id="Anthropic"),
        pytest.param(
            {
                "provider": "Anthropic",
                "anthropic": {"baseURL": "http://proxy"},
                "auth": {
                    "workloadIdentity": {
                        "audience": "https://api.anthropic.com",
                        "anthropic": {"federationRuleID": "f", "organizationID": "o"},
                    }
                },
            },
            {
                "provider": "Anthropic",
                "base_url": "http://proxy",
                "identity": {
                    "audience": "https://api.anthropic.com",
                    "parameters": {"federationRuleID": "f", "organizationID": "o"},
                },
            },
            id="Anthropic by a proxy, with the pod's identity",
        ),
        pytest.param(
            {"provider": "Bedrock", "bedrock": {"region": "eu-central-1"}},
            {"provider": "Bedrock", "region": "eu-central-1"},
            id="Bedrock",
        ),
        pytest.param(
            {"provider": "Bedrock", "bedrock": {"region": "r", "baseURL": "https://vpc"}},
            {"provider": "Bedrock", "region": "r", "base_url": "https://vpc"},
            id="Bedrock by a VPC endpoint",
        ),
        pytest.param(
            {"parameters": {"temperature": "1", "maxOutputTokens": 9}},
            {"temperature": "1", "max_output_tokens": 9},
            id="its own parameters",
        ),
    ],
)
def test_models(spec: Json, expected: Json) -> None:
    assert model_snapshot(model(**spec)).model_dump(exclude_none=True) == {**GPT, **expected}


def test_approvals_stand_in_the_snapshot_with_their_times_in_seconds() -> None:
    asks = {"when": "args.amount > 100", "question": "Charge?", "timeout": "12h", "onTimeout": "Fail"}
    start = agent(
        tools=[{"name": "pay", "function": {}, "approval": asks}, {"name": "ship", "function": {}, "approval": {}}],
        output={"approval": {"when": "output.confidence < 0.95", "timeout": "90s"}},
    )
    made = one_agent(start, model())
    assert [tool["approval"] for tool in made["tools"]] == [
        {"when": "args.amount > 100", "question": "Charge?", "timeout_seconds": 43200.0, "on_timeout": "Fail"},
        {"on_timeout": "Reject"},
    ]
    assert made["output_approval"] == {
        "when": "output.confidence < 0.95",
        "timeout_seconds": 90.0,
        "on_timeout": "Reject",
    }
