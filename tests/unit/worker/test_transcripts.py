"""What a worker remembers of transcripts; what it asks a workflow for is in tests/workflow/test_transcript.py."""

import asyncio
import tracemalloc
from typing import Any

import pytest
from dalang_api.contract import (
    EMPTY_DIGEST,
    Message,
    ModelCall,
    OpaquePart,
    RunIdentity,
    SessionInput,
    SessionSettings,
    SummaryCall,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    extend_digest,
)
from dalang_worker.conductor.memory import Memory, state_of
from dalang_worker.conductor.thread import Thread
from dalang_worker.transcripts import Transcripts
from temporalio.client import Client

RUN = ("i.shop.run.u1", "r1")


class Asked(Exception):
    """The workflow would have been asked."""


class NobodyToAsk(Client):
    """A client whose workflows cannot be asked."""

    def __init__(self) -> None:
        pass

    def get_workflow_handle(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise Asked


def user(text: str = "hello") -> Message:
    return Message(role="user", parts=[TextPart(text=text)])


def assistant(text: str) -> Message:
    return Message(role="assistant", parts=[TextPart(text=text)], sender="support")


def call(thread: Thread) -> ModelCall:
    count, digest, tail = thread.prefix()
    return ModelCall(agent="a", snapshot="s", thread=thread.name, turn=1, count=count, digest=digest, tail=tail)


@pytest.fixture
def transcripts() -> Transcripts:
    return Transcripts(NobodyToAsk(), 100_000)


async def test_a_thread_grows_by_tails_and_replies_alone(transcripts: Transcripts) -> None:
    thread = Thread("main", [user()])
    for turn in range(5):
        assert await transcripts.messages(RUN, call(thread)) == thread.messages
        thread.append_reply(assistant(f"reply {turn}"))
        transcripts.said(RUN, "main", assistant(f"reply {turn}"))
        thread.append(user(f"result {turn}"))
    made = call(thread)
    assert (made.count, made.tail) == (10, [user("result 4")])
    assert await transcripts.messages(RUN, made) == thread.messages


async def test_an_attempt_that_is_repeated_gets_the_same(transcripts: Transcripts) -> None:
    thread = Thread("main", [user()])
    first = call(thread)
    assert await transcripts.messages(RUN, first) == await transcripts.messages(RUN, first) == [user()]
    thread.append_reply(assistant("hi"))
    transcripts.said(RUN, "main", assistant("hi"))
    thread.append(user("more"))
    second = call(thread)
    for _ in range(3):
        assert await transcripts.messages(RUN, second) == thread.messages


async def test_an_earlier_prefix_of_what_is_remembered_is_used(transcripts: Transcripts) -> None:
    """The first attempt has cached its reply; the server has discarded it and calls once more."""
    thread = Thread("main", [user()])
    await transcripts.messages(RUN, call(thread))
    thread.append_reply(assistant("hi"))
    transcripts.said(RUN, "main", assistant("hi"))
    thread.append(user("more"))
    again = call(thread)
    await transcripts.messages(RUN, again)
    transcripts.said(RUN, "main", assistant("words of a discarded attempt"))
    assert await transcripts.messages(RUN, again) == [user(), assistant("hi"), user("more")]


@pytest.mark.parametrize(
    ("count", "digest"),
    [
        pytest.param(2, extend_digest(extend_digest(EMPTY_DIGEST, user()), assistant("other")), id="other words"),
        pytest.param(3, extend_digest(EMPTY_DIGEST, user()), id="more than is remembered"),
        pytest.param(2, EMPTY_DIGEST, id="no words"),
    ],
)
async def test_what_has_another_digest_is_asked_for(transcripts: Transcripts, count: int, digest: str) -> None:
    await transcripts.messages(RUN, call(Thread("main", [user()])))
    transcripts.said(RUN, "main", assistant("hi"))
    with pytest.raises(Asked):
        await transcripts.messages(
            RUN, ModelCall(agent="a", snapshot="s", thread="main", turn=2, count=count, digest=digest, tail=[])
        )


@pytest.mark.parametrize(
    ("run", "thread"),
    [
        pytest.param(("i.shop.run.u2", "r1"), "main", id="another run"),
        pytest.param(("i.shop.run.u1", "r2"), "main", id="another execution, after a reset"),
        pytest.param(RUN, "helper", id="another thread"),
    ],
)
async def test_what_another_has_said_is_not_used(transcripts: Transcripts, run: tuple[str, str], thread: str) -> None:
    await transcripts.messages(RUN, call(Thread("main", [user()])))
    digest = extend_digest(EMPTY_DIGEST, user())
    with pytest.raises(Asked):
        await transcripts.messages(
            run, ModelCall(agent="a", snapshot="s", thread=thread, turn=2, count=1, digest=digest, tail=[])
        )


async def test_the_least_recently_used_are_forgotten_first() -> None:
    transcripts = Transcripts(NobodyToAsk(), 20_000)
    digest = extend_digest(EMPTY_DIGEST, user("x" * 2000))
    runs = [(f"i.shop.run.u{number}", "r") for number in range(20)]
    for run in runs:
        await transcripts.messages(run, call(Thread("main", [user("x" * 2000)])))
    again = ModelCall(agent="a", snapshot="s", thread="main", turn=2, count=1, digest=digest, tail=[])

    async def is_remembered(run: tuple[str, str]) -> bool:
        try:
            await transcripts.messages(run, again)
        except Asked:
            return False
        return True

    remembered = [await is_remembered(run) for run in runs]
    kept = sum(remembered)
    assert 3 <= kept <= 8
    assert remembered == [False] * (20 - kept) + [True] * kept


async def test_what_is_larger_than_the_cache_is_sent_all_the_same() -> None:
    transcripts = Transcripts(NobodyToAsk(), 1000)
    thread = Thread("main", [user("x" * 5000)])
    assert await transcripts.messages(RUN, call(thread)) == thread.messages
    transcripts.said(RUN, "main", assistant("hi"))


async def test_side_by_side_attempts_do_not_mix(transcripts: Transcripts) -> None:
    thread = Thread("main", [user()])
    first = call(thread)
    await asyncio.gather(transcripts.messages(RUN, first), transcripts.messages(RUN, first))
    transcripts.said(RUN, "main", assistant("of the first"))
    transcripts.said(RUN, "main", assistant("of the second"))
    thread.append_reply(assistant("of the first"))
    assert await transcripts.messages(RUN, call(thread)) == [user(), assistant("of the first")]


async def test_what_is_a_providers_own_counts_too() -> None:
    """Signed thinking is the largest part of many a conversation."""
    thought = Message(role="assistant", parts=[OpaquePart(provider="Anthropic", model="m", data="x" * 50_000)])
    transcripts = Transcripts(NobodyToAsk(), 100_000)
    for name in ("first", "second", "third"):
        await transcripts.messages(RUN, call(Thread(name, [thought])))
    assert [key[1] for key in transcripts._threads] == ["third"]


async def test_what_is_summarised_is_the_beginning_of_the_thread_which_is_remembered_whole(
    transcripts: Transcripts,
) -> None:
    said = [user("one"), assistant("two"), user("three")]
    thread = Thread("s1", said)
    await transcripts.messages(RUN, call(thread))
    run = RunIdentity(name="chat-2", uid="u-2")
    summary = SummaryCall(snapshot="s", model="m", thread="s1", count=2, digest=thread.digest(2), run=run)
    assert await transcripts.messages_to_summarise(RUN, summary) == said[:2]
    assert (
        await transcripts.messages_to_summarise(
            RUN, summary.model_copy(update={"count": 3, "digest": thread.digest(3)})
        )
        == said
    )


async def test_a_late_reply_of_a_run_that_was_given_up_is_never_sent(transcripts: Transcripts) -> None:
    """Should the next run of the session say its words in a thread of the same name."""
    await transcripts.messages(RUN, call(Thread("s1", [user("first run")])))
    second = Thread("s1", [user("second run")])
    await transcripts.messages(RUN, call(second))
    transcripts.said(RUN, "s1", assistant("to the first run"))
    second.append_reply(assistant("to the second run"))
    with pytest.raises(Asked):
        await transcripts.messages(RUN, call(second))


async def test_of_a_session_only_the_conversation_as_it_is_now_is_remembered(transcripts: Transcripts) -> None:
    """Else a worker that serves one long session would grow until its cache is full."""
    session = SessionInput(agent="support", settings=SessionSettings())
    for execution in ("r1", "r2"):
        memory, run = Memory.of(session), ("i.shop.talk.u1", execution)
        for number in range(10):
            memory.thread.append(user(f"question {number}"))
            await transcripts.messages(run, call(memory.thread))
            memory.thread.append_reply(assistant("reply"))
            transcripts.said(run, memory.thread.name, assistant("reply"))
            memory.thread.append(user("more"))
            assert await transcripts.messages(run, call(memory.thread)) == memory.thread.messages
            memory.shorten(2, "It was said before.")
        carried: dict[str, Any] = {"started_at": "", "seq": 1, "queue": [], "snapshots": {}, "seen": [], "runs": 0}
        session = session.model_copy(update={"state": state_of(memory, **carried)})

    assert memory.threads > 20
    assert len(transcripts._threads) == 1


async def test_each_session_and_each_helper_in_it_is_remembered(transcripts: Transcripts) -> None:
    threads = [("i.shop.talk.u1", "s1"), ("i.shop.talk.u1", "1.0.helper"), ("i.shop.talk.u2", "s1")]
    for workflow, name in threads:
        await transcripts.messages((workflow, "r1"), call(Thread(name, [user(f"{workflow} {name}")])))
    for workflow, name in threads:
        said = Thread(name, [user(f"{workflow} {name}")])
        again = call(said).model_copy(update={"count": 1, "digest": said.digest(1), "tail": None})
        assert await transcripts.messages((workflow, "r1"), again) == said.messages


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(TextPart(text=""), id="nothing"),
        pytest.param(TextPart(text="x" * 1000), id="English"),
        pytest.param(TextPart(text="字" * 1000), id="Chinese"),
        pytest.param(ToolCallPart(call_id="1.1", tool="look_up", arguments='{"of": "42"}'), id="call"),
        pytest.param(ToolResultPart(call_id="1.1", tool="look_up", output="x" * 1000), id="result"),
    ],
)
async def test_what_is_counted_is_what_it_takes_in_memory(part: Any) -> None:
    transcripts = Transcripts(NobodyToAsk(), 10_000_000)
    sent = call(
        Thread("main", [Message(role="user", parts=[part] * parts) for parts in (1, 1, 1, 5)])
    ).model_dump_json()
    await transcripts.messages(RUN, ModelCall.model_validate_json(sent))  # what is made but once
    tracemalloc.start()
    for number in range(50):
        await transcripts.messages((f"i.shop.run.v{number}", "r"), ModelCall.model_validate_json(sent))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counted = transcripts._threads.currsize * 50 / 51
    assert 0.75 <= counted / taken <= 1.33
