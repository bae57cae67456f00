"""Model calls of a session's runs: what one run looked up, was told or was called is never another's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dalang import Context, InstructionsFunction, instructions
from dalang_api.contract import (
    AgentSnapshot,
    Message,
    ModelCall,
    ModelReply,
    ModelSnapshot,
    RetrieverSettings,
    RunIdentity,
    Snapshot,
    TextPart,
)
from dalang_cli.dev.scripted_embeddings import DIMENSIONS, embed
from dalang_worker.activities.model import ModelActivity
from dalang_worker.activities.model_calls import ModelCalls
from dalang_worker.mcp.servers import McpServers
from dalang_worker.settings import WorkerSettings
from dalang_worker.tools.runner import ToolRunner
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from tests.unit.worker.activities.asking import OneWorkflow, Workflow, environment_of
from tests.unit.worker.providers.servers import ScriptedModel

FIRST, SECOND = (RunIdentity(name=f"chat-{number}", uid=f"u-{number}") for number in (1, 2))


@pytest.fixture
def handbook(tmp_path: Path) -> RetrieverSettings:
    folder = str(tmp_path / "handbook")
    client = QdrantClient(path=folder)
    client.create_collection("docs", vectors_config=VectorParams(size=DIMENSIONS, distance=Distance.COSINE))
    texts = ["Refunds take three days.", "Trains are booked by the office."]
    points = [PointStruct(id=place, vector=embed(text), payload={"text": text}) for place, text in enumerate(texts)]
    client.upsert("docs", points)
    client.close()
    return RetrieverSettings(name="handbook", path=folder, collection="docs", limit=1, embedding_model="demo")


class Session:
    """A session of an agent, and the activity that calls its model."""

    def __init__(self, agent: AgentSnapshot, model: ModelSnapshot, *retrievers: RetrieverSettings) -> None:
        self.workflow = Workflow(Snapshot(agents=[agent], models=[model]))
        settings = WorkerSettings(installation="i", namespace="shop", pool="p", retrievers=list(retrievers))
        self.calls = ModelCalls(OneWorkflow(self.workflow), settings)
        self._runner, self._servers = ToolRunner(1), McpServers([], Path("/nowhere"), None)
        self._activity = ModelActivity(self.calls, settings, self._runner, self._servers)

    async def ask(self, run: RunIdentity, text: str, turn: int = 1) -> ModelReply:
        """Make the first call of a run, in the thread and at the place where that of another run was."""
        call = ModelCall(
            agent="support",
            snapshot=self.workflow.snapshot.digest(),
            thread="s1",
            turn=turn,
            count=0,
            digest="",
            tail=[Message(role="user", parts=[TextPart(text=text)])],
            run=run,
        )
        reply: ModelReply = await environment_of("dalang-0.shop.ada.u-session").run(self._activity.model, call)
        return reply

    async def close(self) -> None:
        self._runner.close()
        await self._servers.close()
        await self._activity.close()
        await self.calls.close()


def agent(**more: object) -> AgentSnapshot:
    given = {"name": "support", "uid": "a", "generation": 1, "queue": "q", "model": "demo", **more}
    return AgentSnapshot.model_validate(given)


def demo(scripted: ScriptedModel) -> ModelSnapshot:
    base_url = f"{scripted.url}/v1"
    return ModelSnapshot(name="demo", uid="m", generation=1, provider="OpenAI", model="demo", base_url=base_url)


@pytest.fixture
async def looking_up(scripted: ScriptedModel, handbook: RetrieverSettings) -> AsyncIterator[Session]:
    session = Session(agent(retriever="handbook"), demo(scripted), handbook)
    yield session
    await session.close()


async def test_each_run_looks_its_own_message_up(looking_up: Session) -> None:
    """The first has failed, so that the message of the second stands in its place."""
    first = await looking_up.ask(FIRST, "How long do refunds take?")
    second = await looking_up.ask(SECOND, "Who books trains?")
    again = await looking_up.ask(SECOND, "Who books trains?", turn=2)
    assert [reply.message.text() for reply in (first, second, again)] == [
        "Here is what I found: Refunds take three days.",
        "Here is what I found: Trains are booked by the office.",
        "Here is what I found: Trains are booked by the office.",
    ]


async def test_each_run_pays_for_its_own_and_once(looking_up: Session, scripted: ScriptedModel) -> None:
    for run, turn in ((FIRST, 1), (SECOND, 1), (SECOND, 2)):
        await looking_up.ask(run, "Who books trains?", turn)
    paths = [request["path"] for request in await scripted.requests()]
    assert sum(path.endswith("/embeddings") for path in paths) == 2


async def test_instructions_are_those_of_the_run(
    scripted: ScriptedModel, prompt_registry: dict[str, InstructionsFunction]
) -> None:
    @instructions
    def prompt(context: Context) -> str:
        return f"Run {context.run} of {context.session} in {context.namespace}."

    by_function = Session(agent(instructions_function="prompt"), demo(scripted))
    by_template = Session(agent(instructions="Run {{ run.name }} in {{ run.namespace }}."), demo(scripted))
    for session in (by_function, by_template):
        await session.ask(FIRST, "Hello")
        await session.ask(SECOND, "Hello")
        await session.close()
    systems = [request["body"]["messages"][0]["content"] for request in await scripted.requests()]
    assert systems == [
        "Run chat-1 of ada in shop.",
        "Run chat-2 of ada in shop.",
        "Run chat-1 in shop.",
        "Run chat-2 in shop.",
    ]
