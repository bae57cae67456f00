"""What a run of an Agent can reach, cycles included, and what a run is told that waits for something missing."""

import pytest
from dalang_api.contract import SNAPSHOT_MAX_AGENTS
from dalang_operator.kinds.reach import Gap, Reach, TooMany, find_reach, has_live_run
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.runtime.cache import Cache

from tests.build import agent, known, model, pool, run, started_run


def calls(*names: str) -> list[Json]:
    return [{"name": name, "agentRef": {"name": name}} for name in names]


def hands_over_to(*names: str) -> list[Json]:
    return [{"agentRef": {"name": name}} for name in names]


def retriever(name: str, embedding: str) -> Json:
    return {"name": name, "qdrant": {"collection": "c", "embedding": {"modelRef": {"name": embedding}}}}


def reached(start: Json, *there: Json) -> tuple[list[str], list[str], list[str]]:
    """Return the names of agents, models and pools."""
    found = find_reach(start, known(*there))
    assert isinstance(found, Reach), found
    agents, models = ([obj["metadata"]["name"] for obj in part] for part in (found.agents, found.models))
    return agents, models, found.pools()


def test_a_plain_agent_reaches_itself() -> None:
    assert reached(agent(), model()) == (["helper"], ["gpt"], ["default"])


def test_agents_are_reached_by_calls_and_hand_offs_through_others_and_once() -> None:
    start = agent("a", tools=calls("b"), handoffs=hands_over_to("c"))
    others = [
        agent("b", handoffs=hands_over_to("d"), poolRef={"name": "gpu"}),
        agent("c", tools=calls("d"), model="claude"),
        agent("d", poolRef={"name": "gpu"}),
        agent("stranger", model="absent"),
    ]
    assert reached(start, *others, model(), model("claude"), pool("gpu")) == (
        ["a", "b", "c", "d"],
        ["gpt", "claude"],
        ["default", "gpu"],
    )


def test_cycles_are_legal() -> None:
    start = agent("a", tools=calls("b"))
    others = [start, agent("b", handoffs=hands_over_to("c")), agent("c", tools=calls("a"), handoffs=hands_over_to("c"))]
    assert reached(start, *others, model())[0] == ["a", "b", "c"]


def test_models_are_those_called_fallen_back_to_and_those_that_make_vectors() -> None:
    start = agent(fallbackModelRefs=[{"name": "claude"}, {"name": "gpt"}], retrieval={"retriever": "handbook"})
    owner = pool(retrievers=[retriever("handbook", "emb"), retriever("unused", "absent")])
    assert reached(start, owner, model(), model("claude"), model("emb"))[1] == ["gpt", "claude", "emb"]


@pytest.mark.parametrize(
    ("start", "there", "reason", "waiting"),
    [
        pytest.param(
            agent(),
            [],
            "ModelNotFound",
            "Agent helper names AgentModel gpt, which is not there; the run starts when it is",
            id="its model",
        ),
        pytest.param(
            agent(poolRef={"name": "gpu"}),
            [model()],
            "PoolNotFound",
            "Agent helper names AgentPool gpu, which is not there; the run starts when it is",
            id="its pool",
        ),
        pytest.param(
            agent(tools=calls("b")),
            [model(), agent("b", handoffs=hands_over_to("c"))],
            "AgentNotFound",
            "Agent b names Agent c, which is not there; the run starts when it is",
            id="an agent of an agent",
        ),
        pytest.param(
            agent(tools=calls("b")),
            [model(), agent("b", fallbackModelRefs=[{"name": "claude"}])],
            "ModelNotFound",
            "Agent b names AgentModel claude, which is not there; the run starts when it is",
            id="a model of an agent",
        ),
        pytest.param(
            agent(tools=calls("b", "c"), model="absent"),
            [agent("b")],
            "AgentNotFound",
            "Agent helper names Agent c, which is not there; the run starts when it is",
            id="agents are said before all else",
        ),
        pytest.param(
            agent(tools=[{"name": "w", "mcp": {"server": "wether"}}]),
            [model(), pool(mcpServers=[{"name": "weather"}])],
            "ServerNotFound",
            "Agent helper names MCP server wether, which AgentPool default does not have; the run starts when it does; "
            "did you mean weather?",
            id="an MCP server",
        ),
        pytest.param(
            agent(retrieval={"retriever": "handbook"}),
            [model()],
            "RetrieverNotFound",
            "Agent helper names retriever handbook, which AgentPool default does not have; the run starts when it does",
            id="a retriever",
        ),
        pytest.param(
            agent(retrieval={"retriever": "handbook"}),
            [model(), pool(retrievers=[retriever("handbook", "emb")])],
            "ModelNotFound",
            "Retriever handbook of AgentPool default names AgentModel emb, which is not there; "
            "the run starts when it is",
            id="the model of a retriever",
        ),
    ],
)
def test_what_is_missing(start: Json, there: list[Json], reason: str, waiting: str) -> None:
    gap = find_reach(start, known(start, *there))
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.waiting) == (reason, waiting)


@pytest.mark.parametrize(("count", "is_too_many"), [(SNAPSHOT_MAX_AGENTS, False), (SNAPSHOT_MAX_AGENTS + 1, True)])
def test_a_snapshot_holds_so_many_agents(count: int, is_too_many: bool) -> None:
    chain = [agent(f"a{number}", tools=calls(f"a{(number + 1) % count}")) for number in range(count)]
    assert isinstance(find_reach(chain[0], known(*chain, model())), TooMany if is_too_many else Reach)


# ── The pools that runs need ───────────────────────────────────────────────────────────────────────────────────────


POOL = ObjectKey("shop", "default")


def test_a_pool_is_needed_by_runs_that_run_there_or_could_start_there() -> None:
    cache = Cache()
    assert not has_live_run(cache, POOL)
    cache.runs.put(run())
    assert not has_live_run(cache, POOL), "its agent is not there"
    cache.agents.put(agent())
    assert not has_live_run(cache, POOL), "the agent's model is not there"
    cache.models.put(model())
    assert has_live_run(cache, POOL)
    cache.agents.drop(agent(metadata={"resourceVersion": "99"}))
    cache.runs.put(started_run(metadata={"resourceVersion": "11"}))
    assert has_live_run(cache, POOL), "a started one needs no agent any more"


def test_a_pool_is_needed_by_runs_that_can_reach_it() -> None:
    gpu = ObjectKey("shop", "gpu")
    cache = Cache()
    cache.models.put(model())
    cache.agents.put(agent(handoffs=[{"agentRef": {"name": "sales"}}]))
    cache.agents.put(agent("sales", tools=[{"name": "refunds", "agentRef": {"name": "refunds"}}]))
    cache.agents.put(agent("refunds", poolRef={"name": "gpu"}))
    cache.runs.put(run())
    assert not has_live_run(cache, gpu), "the run waits for the pool itself"
    cache.pools.put(pool("gpu"))
    assert has_live_run(cache, gpu)
    started = started_run(metadata={"resourceVersion": "11"})
    started["status"]["agents"] = [{"name": "helper", "pool": "default"}, {"name": "refunds", "pool": "gpu"}]
    cache.runs.put(started)
    cache.agents.drop(agent("refunds", metadata={"resourceVersion": "99"}))
    assert has_live_run(cache, gpu)
    assert has_live_run(cache, POOL)
    cache.runs.drop(started_run(metadata={"resourceVersion": "12"}))
    assert not has_live_run(cache, gpu)


@pytest.mark.parametrize("reason", ["ConfigMapNotFound", "InvalidSpec"])
def test_a_run_that_waits_for_what_somebody_has_to_mend_keeps_no_pool_up(reason: str) -> None:
    cache = Cache()
    cache.models.put(model())
    cache.agents.put(agent())
    waiting = run()
    waiting["status"]["conditions"][1]["reason"] = reason
    cache.runs.put(waiting)
    assert not has_live_run(cache, POOL)
    cache.runs.put(run("r2"))
    assert has_live_run(cache, POOL)
