"""What the model is sent is what the workflow holds, whatever a worker remembers (DESIGN §3.4)."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import (
    Message,
    ModelCall,
    RunInput,
    TextPart,
    TranscriptPage,
    TranscriptRequest,
)
from dalang_worker import main
from dalang_worker.conductor.thread import Thread
from dalang_worker.transcripts import Snapshots, Transcripts
from temporalio.client import WorkflowHistory
from temporalio.exceptions import ApplicationError

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]

RUN_TOOLS = ["weather", "wait_for", "say"]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


def model_calls(run: "Run", history: WorkflowHistory) -> list[ModelCall]:
    converter = run.world.client.data_converter.payload_converter
    scheduled = (event.activity_task_scheduled_event_attributes for event in history.events)
    return [
        converter.from_payload(attributes.input.payloads[0], ModelCall)
        for attributes in scheduled
        if attributes.activity_type.name == contract.MODEL_ACTIVITY
    ]


@pytest.fixture
def transcripts(world: "World") -> Transcripts:
    return Transcripts(world.client, 1024 * 1024)


class Waiting:
    """A run in its second turn, which waits for the model: three messages are said."""

    def __init__(self, run: "Run", said: list[Message]) -> None:
        self.run = run
        self.key = (run.handle.id, run.handle.first_execution_run_id or "")
        self.said = said

    def call(self, thread: Thread) -> ModelCall:
        count, digest, tail = thread.prefix()
        return ModelCall(agent="support", snapshot="", thread="main", turn=2, count=count, digest=digest, tail=tail)


async def waiting_run(world: "World") -> Waiting:
    run = await world.start(
        calls(("weather", {"city": "Ubud"})), {"text": "never", "latencySeconds": 120}, tools=RUN_TOOLS
    )

    async def second() -> bool:
        return len(await run.asked()) == 2

    await world.eventually(second)
    page = await run.handle.query(
        contract.TRANSCRIPT_QUERY, TranscriptRequest(thread="main", start=0, count=9), result_type=TranscriptPage
    )
    return Waiting(run, page.messages)


def known(*messages: Message) -> Thread:
    """A thread of which the worker that made the last reply knows all."""
    thread = Thread("main", list(messages[:-1]))
    thread.append_reply(messages[-1])
    return thread


async def test_words_of_a_discarded_attempt_are_not_sent(world: "World", transcripts: Transcripts) -> None:
    """Attempt 1 answers after the server has given up on it; it has cached as many messages, with other words."""
    async with world.serving(drain_seconds=0):
        waiting = await waiting_run(world)
        user, reply, result = waiting.said
        await transcripts.messages(waiting.key, waiting.call(Thread("main", [user])))
        discarded = Message(role="assistant", parts=[TextPart(text="words of attempt 1")], sender="support")
        transcripts.said(waiting.key, "main", discarded)

        thread = known(user, reply)
        thread.append(result)
        call = waiting.call(thread)
        assert (call.count, call.tail) == (2, [result])
        assert await transcripts.messages(waiting.key, call) == [user, reply, result]
        await waiting.run.handle.terminate()


async def test_a_remembered_prefix_is_sent_without_asking(world: "World", transcripts: Transcripts) -> None:
    async with world.serving(drain_seconds=0):
        waiting = await waiting_run(world)
    user, reply, result = waiting.said
    # Nobody could answer a query now.
    await transcripts.messages(waiting.key, waiting.call(Thread("main", [user])))
    transcripts.said(waiting.key, "main", reply)
    thread = known(user, reply)
    thread.append(result)
    async with asyncio.timeout(1):
        assert await transcripts.messages(waiting.key, waiting.call(thread)) == [user, reply, result]
    await waiting.run.handle.terminate()


async def test_what_the_workflow_does_not_hold_is_an_error_to_be_tried_again(
    world: "World", transcripts: Transcripts
) -> None:
    async with world.serving(drain_seconds=0):
        waiting = await waiting_run(world)
        user, reply, result = waiting.said
        for said in ([user, reply, reply], [user, reply, result, reply]):
            with pytest.raises(ApplicationError) as raised:
                await transcripts.messages(waiting.key, waiting.call(known(*said)))
            assert (raised.value.type, raised.value.non_retryable) == ("TranscriptUnavailable", False)
        await waiting.run.handle.terminate()
        with pytest.raises(ApplicationError) as raised:
            await transcripts.messages(("no-such-workflow", ""), waiting.call(known(user, reply)))
        assert (raised.value.type, raised.value.non_retryable) == ("TranscriptUnavailable", False)


async def test_a_snapshot_is_asked_for_once_and_remembered(world: "World") -> None:
    async with world.serving(drain_seconds=0):
        waiting = await waiting_run(world)
        (started, *_) = (await waiting.run.handle.fetch_history()).events
        payload = started.workflow_execution_started_event_attributes.input.payloads[0]
        snapshot = world.client.data_converter.payload_converter.from_payload(payload, RunInput).snapshot
        snapshots = Snapshots(world.client)
        digest = snapshot.digest()
        assert await asyncio.gather(*(snapshots.get(waiting.key, digest) for _ in range(20))) == [snapshot] * 20
    async with asyncio.timeout(1):  # nobody could answer a query now
        assert await snapshots.get(waiting.key, digest) == snapshot
    await waiting.run.handle.terminate()


async def test_another_snapshot_than_was_asked_for_is_not_taken(world: "World") -> None:
    """A session may have gone on to a run with another snapshot."""
    async with world.serving(drain_seconds=0):
        waiting = await waiting_run(world)
        snapshots = Snapshots(world.client)
        for _ in range(2):
            with pytest.raises(ApplicationError) as raised:
                await snapshots.get(waiting.key, "another digest")
            assert (raised.value.type, raised.value.non_retryable) == ("TranscriptUnavailable", False)
        await waiting.run.handle.terminate()


async def test_a_long_tail_goes_by_query_in_pages(world: "World") -> None:
    said = [("say", {"size": contract.TOOL_OUTPUT_MAX_BYTES})] * contract.TURN_MAX_CALLS
    async with world.serving():
        run = await world.start(
            calls(*said),
            calls(*said),
            calls(*said),
            calls(("weather", {"city": "Ubud"})),
            {"text": "That was long.", "latencySeconds": 0.5},
            tools=RUN_TOOLS,
        )
        ended = await run.end()
        whole = TranscriptRequest(thread="main", start=0, count=9)
        page = await run.handle.query(contract.TRANSCRIPT_QUERY, whole, result_type=TranscriptPage)
    assert ended.outcome == "Succeeded"
    made = model_calls(run, await run.handle.fetch_history())
    # The first call carries what the user said, the next three nothing: half a megabyte each goes by query.
    assert [(call.count, call.tail is None) for call in made] == [
        (0, False),
        (3, True),
        (5, True),
        (7, True),
        (8, False),
    ]
    assert len(page.messages) < 9
    assert len(page.model_dump_json()) <= contract.PAGE_MAX_BYTES * 1.1
    *_, conversation = await run.conversations()
    outputs = [message["content"] for message in conversation if message["role"] == "tool"]
    assert [len(output) for output in outputs] == [contract.TOOL_OUTPUT_MAX_BYTES] * 96 + [len("sunny in Ubud")]


async def test_what_takes_most_room_in_json_still_fits_a_payload(world: "World") -> None:
    """Control characters take six bytes each in JSON, quotes two."""
    async with world.serving():
        run = await world.start(
            calls(*[("quotes", {"size": contract.TOOL_OUTPUT_MAX_BYTES})] * contract.TURN_MAX_CALLS),
            calls(*[("controls", {"size": contract.TOOL_OUTPUT_MAX_BYTES})] * contract.TURN_MAX_CALLS),
            {"text": "That was long."},
            tools=["quotes", "controls"],
        )
        ended = await run.end()
    assert (ended.outcome, ended.report.turns) == ("Succeeded", 3)
    assert await run.attempts("model") == [1, 1, 1]


async def test_a_worker_that_does_not_remember_makes_the_same_calls(world: "World") -> None:
    """The first worker is stopped in the middle; the second has never seen the run and asks the workflow."""
    gate = world.path / "gate"

    def script() -> list[Json]:
        wait = ("wait_for", {"file": str(gate), "started": str(world.path / "started")})
        return [
            calls(("weather", {"city": "Ubud"})),
            calls(wait, ("weather", {"city": "Kuta"})),
            calls(("weather", {"city": "Sanur"})),
            {"text": "{{last_tool}}"},
        ]

    async with world.reporter():
        async with world.worker(drain_seconds=0):
            disturbed = await world.start(*script(), tools=RUN_TOOLS)
            await world.eventually((world.path / "started").exists)
        gate.touch()
        async with world.worker():
            ended = await disturbed.end()
            undisturbed = await world.start(*script(), tools=RUN_TOOLS)
            await undisturbed.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "sunny in Sanur")
    assert await disturbed.conversations() == await undisturbed.conversations()
    assert await disturbed.attempts("model") == [1, 1, 1, 1]
    assert sorted(await disturbed.attempts("tool")) == [1, 1, 1, 2]


async def test_two_workers_share_a_run(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    """With no cache of workflows, turn after turn goes to whichever worker asks first."""
    monkeypatch.setattr(main, "MAX_CACHED_WORKFLOWS", 0)
    turns = [calls(("weather", {"city": f"city-{number}"}), ("say", {"size": 10})) for number in range(6)]
    async with world.reporter(), world.worker(pod="one"), world.worker(pod="two"):
        runs = await asyncio.gather(*(world.start(*turns, {"text": "done"}, tools=RUN_TOOLS) for _ in range(6)))
        ends = await asyncio.gather(*(run.end() for run in runs))
    assert [ended.report.output for ended in ends] == ["done"] * 6
    conversations = [await run.conversations() for run in runs]
    assert all(each == conversations[0] for each in conversations)
    workers = set()
    for run in runs:
        history = await run.handle.fetch_history()
        workers |= {
            event.activity_task_started_event_attributes.identity
            for event in history.events
            if event.HasField("activity_task_started_event_attributes")
        }
    assert {"one", "two"} <= workers
