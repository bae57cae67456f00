"""What a run of an Agent can reach, cycles included, and what a run is told that waits for something missing."""

import pytest
from dalang_api.contract import SNAPSHOT_MAX_AGENTS
from dalang_operator.kinds.reach import Gap, Reach, TooMany, find_reach
from dalang_operator.kube.resources import Json

from tests.build import agent, known, model, pool


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
