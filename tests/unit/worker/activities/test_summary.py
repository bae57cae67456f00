"""The activity `summarise`, in Temporal's activity environment, with a real server for the model."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dalang_api.contract import (
    SUMMARY_MAX_CHARS,
    AgentSnapshot,
    Message,
    ModelCall,
    ModelSnapshot,
    RunIdentity,
    SecretKey,
    Snapshot,
    SummaryCall,
    SummaryReply,
    TextPart,
    ToolCallPart,
)
from dalang_worker.activities.model_calls import ModelCalls
from dalang_worker.activities.summary import HALVINGS_MAX, SummaryActivity
from dalang_worker.conductor.memory import summary_message
from dalang_worker.conductor.thread import Thread
from dalang_worker.metrics import TOKENS
from dalang_worker.settings import WorkerSettings
from dalang_worker.summaries import INSTRUCTIONS, TRANSCRIPT_MAX_BYTES
from temporalio.exceptions import ApplicationError

from tests.unit.worker.activities.asking import OneWorkflow, Workflow, environment_of
from tests.unit.worker.providers.servers import Endpoint, Json, ScriptedModel

RUN = RunIdentity(name="chat-2", uid="u-2")
WORKFLOW_ID = "dalang-0.shop.ada.u-session"
SAID = [
    summary_message("Ada lives in Kuta."),
    Message(role="user", parts=[TextPart(text="Pay order 42.")]),
    Message(
        role="assistant",
        parts=[ToolCallPart(call_id="call_u-1_1_0", tool="pay", arguments='{"order": 42}')],
        sender="support",
    ),
    Message(role="user", parts=[TextPart(text="What is my name?")]),
]
TOO_LONG: Json = {"error": {"message": "At most 4096 tokens.", "code": "context_length_exceeded"}}


def completion(text: str, finish: str = "stop") -> Json:
    return {
        "choices": [{"message": {"content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 30},
    }


def model(base_url: str, **more: Any) -> ModelSnapshot:
    given = {"name": "small", "uid": "m", "generation": 1, "provider": "OpenAI", "model": "gpt-small"}
    return ModelSnapshot.model_validate({**given, "base_url": base_url, **more})


class Session:
    """A session's workflow that wants a summary of its first three messages."""

    def __init__(self, made: ModelSnapshot, said: list[Message] = SAID, secrets: Path = Path("/nowhere")) -> None:
        agent = AgentSnapshot(name="support", uid="a", generation=1, queue="q", model=made.name)
        self.workflow = Workflow(Snapshot(agents=[agent], models=[made]), said)
        settings = WorkerSettings(installation="i", namespace="shop", pool="p", secrets_path=secrets)
        self.calls = ModelCalls(OneWorkflow(self.workflow), settings)

    def call(self, count: int = 3, **more: Any) -> SummaryCall:
        digest = Thread("s1", self.workflow.messages).digest(count)
        given = {"model": "small", "thread": "s1", "count": count, "digest": digest, "run": RUN}
        return SummaryCall.model_validate({"snapshot": self.workflow.snapshot.digest(), **given, **more})

    async def summarise(self, call: SummaryCall | None = None, attempt: int = 1) -> SummaryReply:
        environment = environment_of(WORKFLOW_ID, attempt)
        reply: SummaryReply = await environment.run(SummaryActivity(self.calls).summarise, call or self.call())
        return reply

    async def failing(self, call: SummaryCall | None = None, attempt: int = 1) -> ApplicationError:
        with pytest.raises(ApplicationError) as raised:
            await self.summarise(call, attempt)
        assert raised.value.__cause__ is None
        return raised.value


Begin = Callable[..., Session]


@pytest.fixture
async def begin(endpoint: Endpoint) -> AsyncIterator[Begin]:
    """Return a function that begins a session whose model is at the endpoint."""
    begun: list[Session] = []

    def begin(said: list[Message] = SAID, **more: Any) -> Session:
        begun.append(Session(model(f"{endpoint.url}/v1", **more), said))
        return begun[-1]

    yield begin
    for session in begun:
        await session.calls.close()


def transcript(asked: Json) -> list[Json]:
    """Return the lines of the transcript that a request holds."""
    lines = asked["messages"][-1]["content"].splitlines()
    assert (lines[0], lines[-1]) == ("<transcript>", "Write the summary of the transcript above now.")
    return [json.loads(line) for line in lines if line.startswith("{")]


async def test_one_plain_call_about_exactly_the_messages(begin: Begin, endpoint: Endpoint) -> None:
    endpoint.tell(body=completion(" Ada, from Kuta, wants order 42 paid. "))
    session, counted = begin(), TOKENS.labels("gpt-small", "output")
    before = counted._value.get()
    assert await session.summarise() == SummaryReply(
        summary="Ada, from Kuta, wants order 42 paid.", input_tokens=120, output_tokens=30
    )
    (asked,) = endpoint.asked
    assert asked.body["messages"][0] == {"role": "system", "content": INSTRUCTIONS}
    assert transcript(asked.body) == [
        {"earlier summary": "Ada lives in Kuta."},
        {"from": "user", "text": "Pay order 42."},
        {"from": "support", "calls": "pay", "arguments": '{"order": 42}'},
    ]
    assert asked.body.keys() == {"model", "messages"}
    assert session.workflow.asked == ["snapshot", "transcript"]
    assert counted._value.get() == before + 30


async def test_a_thread_that_the_worker_remembers_is_not_asked_for(begin: Begin, endpoint: Endpoint) -> None:
    endpoint.tell(body=completion("Ada."))
    session = begin()
    info = environment_of(WORKFLOW_ID).info
    key = (info.workflow_id or "", info.workflow_run_id or "")
    whole = ModelCall(agent="support", snapshot="", thread="s1", turn=1, count=0, digest="", tail=SAID)
    await session.calls.transcripts.messages(key, whole)
    await session.summarise()
    assert session.workflow.asked == ["snapshot"]


async def test_the_demo_model_makes_one(scripted: ScriptedModel) -> None:
    session = Session(model(f"{scripted.url}/v1", model="demo"))
    reply = await session.summarise()
    assert reply.summary == "- Ada lives in Kuta.\n- Pay order 42."
    await session.calls.close()


async def test_a_long_one_is_cut(begin: Begin, endpoint: Endpoint) -> None:
    endpoint.tell(body=completion("word " * 2000))
    summary = (await begin().summarise()).summary
    assert SUMMARY_MAX_CHARS - 5 <= len(summary) <= SUMMARY_MAX_CHARS


async def test_one_that_the_models_own_limit_cut_is_one(begin: Begin, endpoint: Endpoint) -> None:
    endpoint.tell(body=completion("Ada lives", "length"))
    assert (await begin(max_output_tokens=3).summarise()).summary == "Ada lives"
    assert endpoint.asked[0].body["max_tokens"] == 3


# ── Budgets ──


CLAUDE = "claude-sonnet-4-6"


@pytest.fixture
async def priced(scripted: ScriptedModel, tmp_path: Path) -> AsyncIterator[Session]:
    """A session whose model has a price: 3 and 15 dollars for a million tokens."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "claude").write_text("key")
    secret = SecretKey(name="keys", key="claude")
    made = model(f"{scripted.url}/anthropic", provider="Anthropic", model=CLAUDE, api_key=secret)
    session = Session(made, secrets=tmp_path)
    yield session
    await session.calls.close()


USAGE = {"input_tokens": 1000, "output_tokens": 200}


async def test_it_is_priced(priced: Session, scripted: ScriptedModel) -> None:
    await scripted.script(CLAUDE, {"text": "Ada.", "usage": USAGE}, summarises=True)
    reply = await priced.summarise()
    assert reply == SummaryReply(summary="Ada.", input_tokens=1000, output_tokens=200, cost_usd="0.006")


async def test_it_may_cost_no_more_than_is_left(priced: Session, scripted: ScriptedModel) -> None:
    stopped = {"text": "Ad", "finishReason": "length", "usage": USAGE}
    await scripted.script(CLAUDE, stopped, summarises=True)
    failure = await priced.failing(priced.call(max_cost_usd="0.0003"))
    assert (failure.type, failure.non_retryable) == ("CostBudget", True)
    assert failure.message == "The summary was cut at what was left of limits.maxCostUSD: 0.0003"
    assert failure.details == (SummaryReply(summary="", input_tokens=1000, output_tokens=200, cost_usd="0.006"),)
    assert (await scripted.requests())[0]["body"]["max_tokens"] == 20


async def test_a_cost_budget_needs_a_price(begin: Begin, endpoint: Endpoint) -> None:
    session = begin()
    failure = await session.failing(session.call(max_cost_usd="1"))
    assert (failure.type, failure.non_retryable, endpoint.asked) == ("PriceUnknown", True, [])


# ── What goes wrong ──


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(completion(""), "The model made no summary: its answer is empty", id="an empty answer"),
        pytest.param(
            completion("", "length"), "The model made no summary: The model stopped at its ", id="all thought"
        ),
        pytest.param(
            {"choices": [{"message": {"content": "", "refusal": "I cannot."}, "finish_reason": "stop"}]},
            "The model made no summary: I cannot.",
            id="a refusal",
        ),
        pytest.param(completion("Ada", "content_filter"), "The model made no summary: The provider's", id="a filter"),
    ],
)
async def test_no_summary_is_a_failure_for_good(begin: Begin, endpoint: Endpoint, body: Json, words: str) -> None:
    endpoint.tell(body=body)
    failure = await begin().failing()
    assert (failure.type, failure.non_retryable) == ("ModelFailed", True)
    assert failure.message.startswith(words)
    (paid,) = failure.details
    assert (paid.summary, paid.input_tokens) == ("", 120 if "usage" in body else 0)


LONG = [Message(role="user", parts=[TextPart(text=f"{number} " + "x" * 30_000)]) for number in range(20)]


async def test_a_long_transcript_is_halved_until_it_fits(begin: Begin, endpoint: Endpoint) -> None:
    for _ in range(HALVINGS_MAX):
        endpoint.tell(400, TOO_LONG)
    endpoint.tell(body=completion("Ada."))
    session = begin(LONG)
    assert (await session.summarise(session.call(20))).summary == "Ada."
    sizes = [len(asked.body["messages"][-1]["content"]) for asked in endpoint.asked]
    wanted = [TRANSCRIPT_MAX_BYTES >> halvings for halvings in range(HALVINGS_MAX + 1)]
    assert [0.6 * most < size < most + 200 for size, most in zip(sizes, wanted, strict=True)] == [True] * 4


async def test_what_never_fits_is_a_failure_for_good(begin: Begin, endpoint: Endpoint) -> None:
    for _ in range(HALVINGS_MAX + 1):
        endpoint.tell(400, TOO_LONG)
    failure = await begin().failing()
    assert (failure.type, failure.non_retryable) == ("ContextLength", True)
    assert len(endpoint.asked) == HALVINGS_MAX + 1


async def test_what_passes_is_tried_again_and_told(begin: Begin, endpoint: Endpoint) -> None:
    session = begin()
    for attempt in (1, 3):
        endpoint.tell(503, {"error": "busy"})
        failure = await session.failing(attempt=attempt)
        assert (failure.type, failure.non_retryable) == ("ModelRetrying", False)
    (told,) = session.workflow.told
    assert (told.thread, told.run, told.message.endswith("busy (attempt 3)")) == ("s1", RUN, True)


async def test_a_key_that_is_not_there_yet(begin: Begin) -> None:
    failure = await begin(api_key=SecretKey(name="keys", key="small")).failing()
    assert (failure.type, failure.non_retryable) == ("SecretNotFound", False)


async def test_a_model_that_the_snapshot_lacks(begin: Begin, endpoint: Endpoint) -> None:
    session = begin()
    failure = await session.failing(session.call(model="large"))
    assert (failure.type, failure.non_retryable, endpoint.asked) == ("ModelNotFound", True, [])


async def test_another_snapshot_or_transcript_than_the_call_names(begin: Begin, endpoint: Endpoint) -> None:
    session = begin()
    for field in ("snapshot", "digest"):
        failure = await session.failing(session.call().model_copy(update={field: "other"}))
        assert (failure.type, failure.non_retryable, endpoint.asked) == ("TranscriptUnavailable", False, [])
