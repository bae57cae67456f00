"""An endpoint that fails: what ends the run at once, what is tried again, and what the user is told meanwhile."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api.contract import SecretKey
from dalang_worker.providers import openai

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]

KEY = "sk-live-7Qm2vX9"
SECRET = SecretKey(name="openai", key="api-key")


def write_key(world: "World", key: str = KEY) -> None:
    folder = world.path / "secrets" / SECRET.name
    folder.mkdir(parents=True)
    (folder / SECRET.key).write_text(f"{key}\n")


def told(run: "Run") -> list[tuple[str, str]]:
    """What the condition said, report by report."""
    return [(report.phase, report.reason) for report in run.reports]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        pytest.param(
            401,
            {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"},
            "401: Incorrect API key provided: [key].",
            id="no valid key",
        ),
        pytest.param(403, {"message": "Country not supported."}, "403: Country not supported.", id="forbidden"),
        pytest.param(
            404,
            {"message": "The model `gpt-9` does not exist.", "code": "model_not_found"},
            "404: The model `gpt-9` does not exist.",
            id="no such model",
        ),
        pytest.param(
            429,
            {"message": "You exceeded your current quota.", "code": "insufficient_quota"},
            "429: You exceeded your current quota.",
            id="a quota used up, which waiting does not mend",
        ),
    ],
)
async def test_ends_the_run_at_once_with_the_words_of_the_provider(
    world: "World", status: int, error: Json, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    write_key(world)
    async with world.serving():
        run = await world.start(alwaysError={"status": status, "body": {"error": error}}, api_key=SECRET)
        ended = await run.end()

    (request,) = await run.asked()
    assert request["authorization"]
    assert (ended.outcome, ended.report.reason) == ("Failed", "ModelFailed")
    assert ended.report.message == f"model {run.model}: {message}"
    history = await run.handle.fetch_history()
    assert all(KEY.encode() not in event.SerializeToString() for event in history.events)
    assert KEY not in caplog.text


async def test_a_failing_endpoint_is_called_until_it_answers_and_the_condition_says_so(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            {"toolCalls": [{"name": "weather", "arguments": {"city": "Ubud"}}]},
            {"text": "at last"},
            errors=[{"status": 500}, {"drop": True}, {"status": 200, "body": {"error": "overloaded"}}],
            tools=["weather"],
        )
        ended = await run.end()

    assert (ended.outcome, ended.report.output) == ("Succeeded", "at last")
    assert told(run) == [("Running", "ModelRetrying"), ("Running", "Running"), ("Succeeded", "Answered")]
    assert run.reports[0].message == (
        f"model {run.model}: the endpoint answered 200 with no chat completion: overloaded (attempt 3)"
    )
    assert [report.seq for report in run.reports] == [1, 2, 3]
    assert await run.attempts("model") == [4, 1]


async def test_an_endpoint_that_fails_often_is_told_once_in_a_while(world: "World") -> None:
    """Each telling is a signal, and four events, in the history."""
    again = {"status": 429, "headers": {"Retry-After-Ms": "50"}}
    async with world.serving():
        run = await world.start({"text": "at last"}, errors=[again] * 6)
        ended = await run.end()
    assert ended.report.output == "at last"
    assert await run.attempts("model") == [7]
    assert told(run) == [("Running", "ModelRetrying"), ("Succeeded", "Answered")]
    history = await run.handle.fetch_history()
    assert sum(event.HasField("workflow_execution_signaled_event_attributes") for event in history.events) == 1


async def test_a_bug_in_the_worker_is_told_and_tried_again(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    """A later build may mend it; without a word the run would say Running until its timeout."""

    def broken(*_: object) -> Json:
        raise RuntimeError("a bug")

    monkeypatch.setattr(openai, "make_request", broken)
    async with world.serving():
        run = await world.start({"text": "hi"})
        (report,) = await world.eventually(lambda: run.reports)
        monkeypatch.undo()
        ended = await run.end()
    assert (report.reason, report.message) == ("ModelRetrying", "RuntimeError in the worker; see its log (attempt 3)")
    assert ended.report.output == "hi"


async def test_a_refused_connection_is_tried_until_somebody_listens(
    world: "World", serve_model: Any, free_port: int
) -> None:
    base_url = f"http://127.0.0.1:{free_port}/v1"
    async with world.serving():
        run = await world.start({"text": "never asked"}, base_url=base_url, model="unauthorized")
        (report,) = await world.eventually(lambda: run.reports)
        assert (report.phase, report.reason) == ("Running", "ModelRetrying")
        assert report.message == (
            "model unauthorized: Connection error. All connection attempts failed "
            f"(http://127.0.0.1:{free_port}/v1/) (attempt 3)"
        )
        runner, _ = await serve_model(free_port)
        ended = await run.end()
        await runner.cleanup()
    assert (ended.report.reason, ended.report.message) == (
        "ModelFailed",
        "model unauthorized: 401: Incorrect API key provided.",
    )


async def test_retry_after_is_honoured_and_a_long_wait_is_told_at_once(world: "World") -> None:
    async with world.serving():
        short = await world.start({"text": "hi"}, errors=[{"status": 429, "headers": {"Retry-After": "3"}}])
        long = await world.start({"text": "hi"}, errors=[{"status": 429, "headers": {"Retry-After": "30"}}])
        await short.end()
        (report,) = await world.eventually(lambda: long.reports)
        assert (await long.attempts("model"), len(await long.asked())) == ([], 1)
        await long.handle.terminate()
    first, second = await short.asked()
    assert second["time"] - first["time"] >= 2.9  # Dalang's own backoff would be 1 s
    assert told(short) == [("Succeeded", "Answered")]
    assert report.reason == "ModelRetrying"
    assert report.message == f"model {long.model}: 429: scripted error 429 (attempt 1)"


async def test_a_missing_secret_is_told_and_the_run_goes_on_when_it_appears(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "hi"}, api_key=SECRET)
        (report,) = await world.eventually(lambda: run.reports)
        assert (report.phase, report.reason, report.message) == (
            "Running",
            "SecretNotFound",
            "Secret 'openai' is not there; create it with key 'api-key' (attempt 3)",
        )
        assert await run.asked() == []
        write_key(world)
        ended = await run.end()
    assert ended.report.output == "hi"
    assert [request["authorization"] for request in await run.asked()] == [True]
    assert told(run) == [("Running", "SecretNotFound"), ("Succeeded", "Answered")]


async def test_a_timeout_tells_what_the_endpoint_said_last(world: "World") -> None:
    async with world.serving():
        run = await world.start(alwaysError={"status": 503}, timeout_seconds=6)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Failed", "Timeout")
    assert ended.report.message == (
        "limits.timeout of 6s passed while waiting for the model of support (turn 1); "
        f"ModelRetrying: model {run.model}: 503: scripted error 503 (attempt 3)"
    )


async def test_a_tool_that_no_worker_has_is_told_and_waited_for(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "hi"}, tools=["not_there_yet"])
        (report,) = await world.eventually(lambda: run.reports)
        await run.handle.terminate()
    assert report.reason == "ToolNotFound"
    assert report.message.startswith("The pool's modules register no function not_there_yet (they register: ")


async def test_one_failing_endpoint_does_not_hold_up_another(world: "World") -> None:
    async with world.serving():
        failing = await world.start(alwaysError={"status": 503})
        await world.eventually(lambda: failing.asked())
        others = await asyncio.gather(*(world.start({"text": "hi"}) for _ in range(5)))
        ends = await asyncio.gather(*(other.end() for other in others))
        await failing.handle.terminate()
    assert [ended.report.output for ended in ends] == ["hi"] * 5
