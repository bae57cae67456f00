"""Several agents, models and kinds of tools in one run, over a real Temporal and the real SDK clients."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api.contract import (
    HandoffBinding,
    LimitSettings,
    McpBinding,
    McpServerSettings,
    RetrieverSettings,
    RetrySettings,
    ToolBinding,
    ToolChoice,
)

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


def functions(*names: str) -> list[ToolBinding]:
    return [ToolBinding(name=name, function=name) for name in names]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def results(run: "Run") -> list[str]:
    """What the model was told last by tools."""
    *_, conversation = await run.conversations()
    told: list[str] = []
    for message in reversed(conversation):
        if message["role"] != "tool":
            break
        told.insert(0, message["content"])
    return told


# ── Hand-offs, agents as tools ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_hand_off_takes_the_conversation_to_another_pool(world: "World") -> None:
    desk = await world.script(calls(("transfer_to_sales", {})))
    sales = await world.script({"text": "Two of them, then."}, loop=True)
    async with world.serving(), world.worker(pool="sales"):
        run = await world.start_team(
            [
                world.agent("desk", model="a", handoffs=[HandoffBinding(agent="sales", description="Buying.")]),
                world.agent("sales", model="b", pool="sales", instructions="Sell."),
            ],
            [world.model("a", desk), world.model("b", sales)],
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.output, ended.report.agent) == ("Succeeded", "Two of them, then.", "sales")
    assert [(agent.name, agent.pool) for agent in ended.report.agents] == [("desk", "default"), ("sales", "sales")]
    assert [(message.role, message.sender) for message in ended.report.messages] == [
        ("User", None),
        ("Assistant", "desk"),
        ("Tool", "transfer_to_sales"),
        ("Assistant", "sales"),
    ]
    (request,) = await world.requests(sales)
    system, user, called, told = request["body"]["messages"]
    assert (system["content"], user["content"]) == ("Sell.", "Where is order 42?")
    assert called["tool_calls"][0]["function"]["name"] == "transfer_to_sales"
    assert told["content"] == "Transferred to sales."


async def test_a_tool_s_hand_off_counts_only_where_it_is_declared(world: "World") -> None:
    async with world.serving():
        run = await world.start_team(
            [
                world.agent("desk", tools=functions("send_to"), handoffs=[HandoffBinding(agent="sales")]),
                world.agent("sales", model="b"),
            ],
            [
                world.model(
                    "gpt",
                    await world.script(calls(("send_to", {"agent": "boss"})), calls(("send_to", {"agent": "sales"}))),
                ),
                world.model("b", sales := await world.script({"text": "Hello."}, loop=True)),
            ],
        )
        ended = await run.end()
    assert (ended.report.output, ended.report.agent) == ("Hello.", "sales")
    (request,) = await world.requests(sales)
    assert [message["content"] for message in request["body"]["messages"] if message["role"] == "tool"] == [
        "Not transferred: there is no hand-off to boss (there is: sales).",
        "Transferred to sales.",
    ]


async def test_agents_called_as_tools_answer_side_by_side_in_threads_of_their_own(world: "World") -> None:
    ask = calls(("archive", {"message": "Find order 42."}), ("weather_desk", {"message": "Rain?"}))
    async with world.serving():
        run = await world.start_team(
            [
                world.agent(
                    "desk",
                    tools=[
                        ToolBinding(name=name, agent=name.replace("_", "-")) for name in ("archive", "weather_desk")
                    ],
                ),
                world.agent("archive", model="b", description="Knows old orders."),
                world.agent("weather-desk", model="c", tools=functions("weather")),
            ],
            [
                world.model("gpt", await world.script(ask, {"text": "In Ubud, dry."})),
                world.model("b", archive := await world.script({"text": "Ubud"})),
                world.model("c", await world.script(calls(("weather", {"city": "Ubud"})), {"text": "{{last_tool}}"})),
            ],
        )
        ended = await run.end()
    assert (ended.report.output, ended.report.turns, ended.report.agent) == ("In Ubud, dry.", 5, "desk")
    assert await results(run) == ["Ubud", "sunny in Ubud"]
    (request,) = await world.requests(archive)
    assert [message["content"] for message in request["body"]["messages"]] == ["Be brief.", "Find order 42."]
    assert [message.role for message in ended.report.messages] == ["User", "Assistant", "Tool", "Tool", "Assistant"]


async def test_cancelling_a_run_cancels_the_agents_it_called(world: "World") -> None:
    async with world.serving():
        run = await world.start_team(
            [
                world.agent("desk", tools=[ToolBinding(name="archive", agent="archive")]),
                world.agent("archive", model="b"),
            ],
            [
                world.model("gpt", await world.script(calls(("archive", {"message": "Find it."})))),
                world.model("b", archive := await world.script({"text": "late", "latencySeconds": 120})),
            ],
        )
        await world.eventually(lambda: world.requests(archive))
        await run.handle.cancel()
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Cancelled", "Cancelled")


# ── Context variables, instructions ────────────────────────────────────────────────────────────────────────────────


async def test_context_variables_go_through_instructions_and_tools_into_the_report(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("remember", {"name": "mood", "value": "good"})),
            {"text": "{{last_tool}}"},
            tools=["remember"],
            agent={"instructions": "Help {{ context.user_name }}, who is in {{ context.mood | default('no') }} mood."},
            context={"user_name": "Ada", "count": 3},
        )
        ended = await run.end()
    assert ended.report.context == {"user_name": "Ada", "count": "3", "mood": "good"}
    assert ended.report.output == "was None"
    assert [conversation[0]["content"] for conversation in await run.conversations()] == [
        "Help Ada, who is in no mood.",
        "Help Ada, who is in good mood.",
    ]


async def test_instructions_may_come_from_a_function(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            {"text": "hi"},
            agent={"instructions": None, "instructions_function": "briefing"},
            context={"user_name": "Ada"},
        )
        await run.end()
    (conversation,) = await run.conversations()
    assert conversation[0]["content"] == "You are support. Be kind to Ada."


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        pytest.param({"instructions": "Help {{ context.nobody }}."}, "nobody", id="a variable that is not there"),
        pytest.param({"instructions": "Help {% if %}."}, "line 1", id="a template that does not parse"),
        pytest.param(
            {"instructions": None, "instructions_function": "broken_briefing"},
            "LookupError: no such customer",
            id="a function that raises",
        ),
    ],
)
async def test_instructions_that_cannot_be_made_end_the_run(world: "World", agent: Json, told: str) -> None:
    async with world.serving():
        run = await world.start({"text": "hi"}, agent=agent)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.turns) == ("Failed", "InvalidInstructions", 0)
    assert told in ended.report.message
    assert await run.asked() == []


# ── Tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(90)
async def test_a_worker_lost_among_five_parallel_calls_repeats_none_that_was_recorded(world: "World") -> None:
    log, gate = world.path / "log", world.path / "gate"
    five = calls(*(("keyed", {"log": str(log), "gate": str(gate), "number": number}) for number in range(5)))
    async with world.reporter():
        async with world.worker_process() as worker:
            run = await world.start(five, {"text": "done"}, tools=["keyed"])
            await world.eventually(lambda: len(lines(log)) == 5)

            async def three_are_recorded() -> bool:
                return len(await run.attempts("tool")) == 3

            await world.eventually(three_are_recorded)
            worker.process.kill()
            await worker.process.wait()
        gate.touch()
        async with world.worker_process():
            ended = await run.end()
    assert ended.outcome == "Succeeded"
    assert await results(run) == [f"done {number}" for number in range(5)]
    called = [line.split() for line in lines(log)]
    assert sorted(number for number, _ in called) == ["0", "1", "1", "2", "3", "3", "4"]
    assert len({key for _, key in called}) == len({(number, key) for number, key in called}) == 5


@pytest.mark.timeout(90)
async def test_a_tool_that_must_not_run_twice_is_told_of_as_unknown_when_its_worker_is_lost(world: "World") -> None:
    log, gate = world.path / "log", world.path / "gate"
    async with world.reporter():
        async with world.worker_process() as worker:
            run = await world.start(
                calls(("pay", {"log": str(log), "gate": str(gate)})), {"text": "I do not know."}, tools=["pay"]
            )
            await world.eventually(lambda: lines(log))
            worker.process.kill()
            await worker.process.wait()
        gate.touch()
        async with world.worker_process():
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "I do not know.")
    assert lines(log) == ["paid"]
    (told,) = await results(run)
    assert told.startswith("The outcome of pay is unknown")


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        pytest.param(2, "open", id="and works in the end"),
        pytest.param(9, "the shop is closed", id="and the model is told of the last"),
    ],
)
async def test_a_tool_may_ask_for_another_attempt(world: "World", fails: int, told: str) -> None:
    log = world.path / "log"
    async with world.serving():
        run = await world.start(calls(("flaky", {"log": str(log), "fails": fails})), {"text": "done"}, tools=["flaky"])
        await run.end()
    assert await results(run) == [told]
    assert len(lines(log)) == 3


MCP_SERVER = '''
from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("shop")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def weather(city: str) -> str:
    """Tell the weather, by MCP."""
    return f"rain in {city}"


server.run()
'''


async def test_tools_of_an_mcp_server_and_one_that_is_away(world: "World", free_port: int) -> None:
    script = world.path / "server.py"
    script.write_text(MCP_SERVER)
    servers = [
        McpServerSettings(name="shop", transport="stdio", command=sys.executable, args=[str(script)]),
        McpServerSettings(name="gone", transport="streamableHTTP", url=f"http://127.0.0.1:{free_port}/mcp"),
    ]
    bindings = [
        *functions("weather"),
        ToolBinding(name="shop", mcp=McpBinding(server="shop")),
        ToolBinding(name="gone", mcp=McpBinding(server="gone")),
    ]
    async with world.serving(mcp_servers=servers):
        run = await world.start(
            calls(("weather", {"city": "Ubud"}), ("shop__weather", {"city": "Ubud"}), ("shop__weather", {"town": 1})),
            {"text": "done"},
            agent={"tools": bindings},
        )
        ended = await run.end()
    assert ended.outcome == "Succeeded"
    first, second, third = await results(run)
    assert (first, second) == ("sunny in Ubud", "rain in Ubud")
    assert "city" in third
    request = (await run.asked())[0]["body"]
    assert [tool["function"]["name"] for tool in request["tools"]] == ["weather", "shop__weather"]
    assert "The tools of MCP server gone cannot be used now" in request["messages"][0]["content"]
    assert "Agent support: The tools of MCP server gone cannot be used now" in (ended.report.tools_failure or "")
    assert await run.attempts("mcp") == [1, 1]


# ── Models ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_anthropic_thinks_in_signed_blocks_which_only_it_gets_back(world: "World") -> None:
    """It thinks, calls a tool, is refused with 529 for good, and OpenAI's model goes on without its thoughts."""
    thought = {"text": "Which city?", "signature": "signed"}
    claude = await world.script(
        {**calls(("weather", {"city": "Ubud"})), "thinking": thought},
        {**calls(("weather", {"city": "Kuta"})), "usage": {"cache_read_input_tokens": 100}},
        {"status": 403, "message": "Your account is closed."},
    )
    gpt = await world.script({"text": "Both are dry."}, loop=True)
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", model="claude", fallbacks=["gpt"], tools=functions("weather"))],
            [
                world.model("claude", claude, provider="Anthropic", base_url=f"{world.model_url}/anthropic"),
                world.model("gpt", gpt),
            ],
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "Both are dry.")
    second = (await world.requests(claude))[1]["body"]["messages"]
    assert second[1]["content"][0] == {"type": "thinking", "thinking": "Which city?", "signature": "signed"}
    (other,) = await world.requests(gpt)
    assert [message["role"] for message in other["body"]["messages"]] == [
        *("system", "user"),
        *("assistant", "tool", "assistant", "tool"),
    ]
    assert "Which city?" not in str(other["body"])


async def test_a_model_that_uses_up_its_attempts_gives_way_to_the_next(world: "World") -> None:
    first = await world.script({"status": 503}, loop=True)
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", fallbacks=["b"], retry=RetrySettings(maximum_attempts=2, initial_seconds=0.05))],
            [world.model("gpt", first), world.model("b", await world.script({"text": "Here."}))],
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.output, ended.report.turns) == ("Succeeded", "Here.", 1)
    assert len(await world.requests(first)) == 2


async def test_without_another_model_used_up_attempts_end_the_run(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            {"status": 503}, loop=True, agent={"retry": RetrySettings(maximum_attempts=2, initial_seconds=0.05)}
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Failed", "ModelFailed")
    assert ended.report.message.startswith("AgentModel gpt failed 2 times, retry.maximumAttempts; the last time: ")
    assert "503" in ended.report.message


async def test_an_endpoint_that_asks_for_a_long_wait_gives_way_to_the_next_model(world: "World") -> None:
    first = await world.script({"status": 429, "headers": {"retry-after": "60"}}, loop=True)
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", fallbacks=["b"])],
            [world.model("gpt", first), world.model("b", await world.script({"text": "Here."}))],
        )
        async with asyncio.timeout(20):
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "Here.")
    assert len(await world.requests(first)) == 1


async def test_a_worker_that_is_stopped_uses_up_no_attempt_of_the_model(world: "World") -> None:
    async with world.reporter():
        async with world.worker(drain_seconds=0):
            run = await world.start(
                {"text": "late", "latencySeconds": 120}, agent={"retry": RetrySettings(maximum_attempts=1)}
            )
            await world.eventually(run.asked)
        await world.script({"text": "at last"}, name=run.model)
        async with world.worker():
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "at last")


async def test_instructions_by_a_function_that_fails_at_times_are_asked_for_again(world: "World") -> None:
    log = world.path / "log"
    async with world.serving():
        run = await world.start(
            {"text": "hi"},
            agent={"instructions": None, "instructions_function": "shaky_briefing"},
            context={"log": str(log)},
        )
        ended = await run.end()
    assert (ended.outcome, len(lines(log))) == ("Succeeded", 3)


async def test_an_attempt_may_not_take_longer_than_the_agent_says(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            {"text": "late", "latencySeconds": 60},
            agent={"retry": RetrySettings(timeout_seconds=0.3, maximum_attempts=1)},
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Failed", "ModelFailed")
    assert "no answer within retry.timeout" in ended.report.message


async def test_a_schema_that_is_none_is_told_before_anything_is_paid_for(world: "World") -> None:
    async with world.serving():
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
        run = await world.start({"text": "{}"}, agent={"output_schema": schema})
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.turns) == ("Failed", "InvalidOutput", 0)
    assert await run.asked() == []


async def test_what_did_not_fit_is_told_when_the_turns_are_used_up(world: "World") -> None:
    schema = {"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}
    async with world.serving():
        run = await world.start({"text": "{}"}, loop=True, agent={"output_schema": schema}, max_turns=2)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Failed", "MaxTurns")
    assert "The last answer did not fit output.schema: " in ended.report.message
    assert "day" in ended.report.message


async def test_embeddings_of_a_provider_that_has_none_are_noted(world: "World") -> None:
    retriever = RetrieverSettings(name="r", path=str(world.path), collection="c", limit=1, embedding_model="claude")
    async with world.serving(retrievers=[retriever]):
        run = await world.start_team(
            [world.agent(retriever="r")],
            [
                world.model("gpt", await world.script({"text": "Hm."})),
                world.model("claude", "c", provider="Anthropic", base_url=f"{world.model_url}/anthropic"),
            ],
        )
        ended = await run.end()
    assert ended.outcome == "Succeeded"
    assert "AgentModel claude has provider Anthropic, which has no embeddings" in (ended.report.retrieval_failure or "")


async def test_an_answer_that_does_not_fit_is_asked_for_again(world: "World") -> None:
    schema = {"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}
    async with world.serving():
        run = await world.start(
            {"text": "Tomorrow."},
            {"text": '{"day": "one"}'},
            {"text": '```json\n{"day": 1}\n```'},
            agent={"output_schema": schema},
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.turns) == ("Succeeded", 3)
    assert ended.report.structured_output == {"day": 1}
    *_, conversation = await run.conversations()
    assert conversation[0]["content"].startswith("Be brief.\n\nGive the final answer as one JSON object")
    assert [message["role"] for message in conversation] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "day" in conversation[-1]["content"]


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        pytest.param({"max_tokens": 150}, "TokenBudget", 2, id="tokens"),
        pytest.param({"max_cost_usd": "0.0005"}, "CostBudget", 2, id="money"),
    ],
)
async def test_a_budget_ends_the_run_and_keeps_what_was_said(
    world: "World", limits: Json, reason: str, turns: int
) -> None:
    spent = {**calls(("weather", {"city": "Ubud"})), "usage": {"input_tokens": 70, "output_tokens": 10}}
    model = await world.script(spent, loop=True, name="claude-sonnet-4-6")
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", model="claude", tools=functions("weather"))],
            [world.model("claude", model, provider="Anthropic", base_url=f"{world.model_url}/anthropic")],
            **limits,
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.turns) == ("Failed", reason, turns)
    assert (ended.report.input_tokens, ended.report.output_tokens) == (70 * turns, 10 * turns)
    assert ended.report.cost_usd == "0.00072"
    assert ended.report.messages[-1].content == "sunny in Ubud"


async def test_a_cost_budget_without_a_price_is_an_error_before_any_call(world: "World") -> None:
    async with world.serving():
        run = await world.start_team([world.agent()], [world.model("gpt", await world.script())], max_cost_usd="1")
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, ended.report.turns) == ("Failed", "PriceUnknown", 0)
    assert await run.asked() == []


async def test_a_demanded_tool_is_demanded_until_it_was_called(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("weather", {"city": "Ubud"})),
            {"text": "done"},
            tools=["weather"],
            agent={"tool_choice": ToolChoice(mode="Required"), "parallel_tool_calls": False},
        )
        await run.end()
    bodies = [request["body"] for request in await run.asked()]
    assert [body.get("tool_choice") for body in bodies] == ["required", None]
    assert [body.get("parallel_tool_calls") for body in bodies] == [False, False]


async def test_an_agent_called_as_a_tool_keeps_to_its_own_limits(world: "World") -> None:
    again = calls(("weather", {"city": "Ubud"}))
    async with world.serving():
        run = await world.start_team(
            [
                world.agent("desk", tools=[ToolBinding(name="archive", agent="archive")]),
                world.agent("archive", model="b", tools=functions("weather"), limits=LimitSettings(max_turns=2)),
            ],
            [
                world.model("gpt", await world.script(calls(("archive", {"message": "Find it."})), {"text": "Sorry."})),
                world.model("b", await world.script(again, loop=True)),
            ],
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.output, ended.report.turns) == ("Succeeded", "Sorry.", 4)
    (told,) = await results(run)
    assert told.startswith("Agent archive gave no answer: No answer after limits.maxTurns = 2")


# ── Retrieval ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_passages_are_looked_up_once_for_a_message_and_a_failure_is_noted(world: "World") -> None:
    folder = world.path / "qdrant"
    await asyncio.to_thread(_fill, folder, world.model_url)
    retrievers = [
        RetrieverSettings(name="handbook", path=str(folder), collection="orders", limit=1, embedding_model="embed"),
        RetrieverSettings(name="lost", path=str(world.path / "no"), collection="x", limit=1, embedding_model="embed"),
    ]
    models = [world.model("embed", "embedder")]
    async with world.serving(retrievers=retrievers):
        first = await world.script(calls(("weather", {"city": "Ubud"})), {"text": "In Ubud."})
        run = await world.start_team(
            [world.agent(retriever="handbook", tools=functions("weather"))], [world.model("gpt", first), *models]
        )
        ended = await run.end()
        other = await world.start_team(
            [world.agent(retriever="lost")], [world.model("gpt", await world.script({"text": "Hm."})), *models]
        )
        failed = await other.end()
    assert (ended.outcome, ended.report.retrieval_failure) == ("Succeeded", None)
    systems = [conversation[0]["content"] for conversation in await run.conversations()]
    assert len(set(systems)) == 1
    assert "Order 42 is in Ubud." in systems[0]
    assert len([one for one in await world.requests("embedder") if "Where is order 42?" in str(one["body"])]) == 2
    assert (failed.outcome, failed.report.output) == ("Succeeded", "Hm.")
    assert "no Qdrant store" in (failed.report.retrieval_failure or "")


def _fill(folder: Path, model_url: str) -> None:
    from openai import OpenAI
    from qdrant_client import QdrantClient, models

    texts = ["Order 42 is in Ubud.", "Bananas are yellow.", "The shop opens at nine."]
    with OpenAI(api_key="none", base_url=f"{model_url}/v1") as openai:
        vectors = [one.embedding for one in openai.embeddings.create(model="embedder", input=texts).data]
    client = QdrantClient(path=str(folder))
    size = models.VectorParams(size=len(vectors[0]), distance=models.Distance.COSINE)
    client.create_collection("orders", vectors_config=size)
    points = [
        models.PointStruct(id=number, vector=vector, payload={"text": text})
        for number, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]
    client.upsert("orders", points)
    client.close()
