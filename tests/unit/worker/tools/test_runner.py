"""Tools run where they hold up nobody, and whatever they raise is told."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dalang import Context, InstructionsFunction, ToolError, ToolFunction, instructions, tool
from dalang_worker.tools.runner import HELD_UP_AFTER_SECONDS, ToolRaisedError, ToolRunner

Register = Callable[[Callable[..., Any]], ToolFunction]

CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("CALLER", default="nobody")


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    made = ToolRunner(2)
    yield made
    made.close()


@pytest.fixture
def register(registry: dict[str, ToolFunction]) -> Register:
    def registered(function: Callable[..., Any]) -> ToolFunction:
        tool(function)
        return registry[function.__name__]

    return registered


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


RAISED = [
    pytest.param(LookupError("no such order"), "LookupError: no such order", id="an exception"),
    pytest.param(ToolError("No such order."), "No such order.", id="an error for the model, in its words alone"),
    pytest.param(ToolError(""), "ToolError", id="an error for the model without words"),
    pytest.param(ValueError(), "ValueError", id="an exception without words"),
    pytest.param(SystemExit(3), "SystemExit: 3", id="the wish to leave"),
    pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="an interrupt"),
    pytest.param(StopAsyncIteration(), "StopAsyncIteration", id="the end of an iterator"),
    pytest.param(asyncio.CancelledError(), "CancelledError", id="a cancel of its own"),
    pytest.param(TimeoutError("too slow"), "TimeoutError: too slow", id="a timeout of its own"),
    pytest.param(Unspeakable(), "Unspeakable", id="an exception that cannot be told"),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [
        pytest.param(ToolError("busy", retryable=True), True, id="an error that asks for it"),
        pytest.param(ToolError("gone"), False, id="one that does not"),
        pytest.param(TimeoutError(), False, id="any other"),
    ],
)
async def test_what_asks_for_another_attempt_is_marked(
    runner: ToolRunner, register: Register, is_async: bool, error: Exception, is_retryable: bool
) -> None:
    def fail() -> None:
        raise error

    async def fail_too() -> None:
        raise error

    with pytest.raises(ToolRaisedError) as raised:
        await runner.run(register(fail_too if is_async else fail), {})
    assert raised.value.is_retryable is is_retryable


async def test_instructions_run_as_tools_do(
    runner: ToolRunner, prompt_registry: dict[str, InstructionsFunction]
) -> None:
    @instructions
    def brief(context: Context) -> str:
        return f"Be brief, {context['name']}."

    @instructions
    async def polite() -> str:
        return "Be polite."

    context = Context({"name": "Ada"})
    told = [await runner.run(made, made.with_context({}, context)) for made in prompt_registry.values()]
    assert told == ["Be brief, Ada.", "Be polite."]


class TestSync:
    @pytest.mark.parametrize("delay", [0.0, 0.01])
    async def test_a_coroutine_it_returns_is_awaited(
        self, runner: ToolRunner, register: Register, delay: float
    ) -> None:
        async def slow(number: int) -> tuple[int, str]:
            await asyncio.sleep(delay)
            return number, threading.current_thread().name

        def disguised(number: int) -> Any:
            return slow(number)

        assert await runner.run(register(disguised), {"number": 3}) == (3, "tools-0")

    async def test_what_a_coroutine_it_returns_raises_is_told(self, runner: ToolRunner, register: Register) -> None:
        async def fail() -> None:
            raise ToolError("busy", retryable=True)

        def disguised() -> Any:
            return fail()

        with pytest.raises(ToolRaisedError, match=r"^busy$") as raised:
            await runner.run(register(disguised), {})
        assert raised.value.is_retryable

    async def test_a_tool_runs_in_a_thread_of_its_own(self, runner: ToolRunner, register: Register) -> None:
        def where(city: str) -> tuple[str, str]:
            return city, threading.current_thread().name

        assert await runner.run(register(where), {"city": "Ubud"}) == ("Ubud", "tool_0")

    @pytest.mark.parametrize(("error", "told"), RAISED)
    async def test_what_it_raises_is_told(
        self, runner: ToolRunner, register: Register, error: BaseException, told: str
    ) -> None:
        def fail() -> None:
            raise error

        with pytest.raises(ToolRaisedError) as raised:
            await runner.run(register(fail), {})
        assert str(raised.value) == told

    async def test_the_end_of_an_iterator_does_not_hang_it(self, runner: ToolRunner, register: Register) -> None:
        """A future refuses StopIteration, in a callback whose error nobody hears."""

        def fail() -> None:
            next(iter(()))

        with pytest.raises(ToolRaisedError, match=r"^StopIteration$"):
            await runner.run(register(fail), {})

    async def test_it_sees_the_context_of_its_caller(self, runner: ToolRunner, register: Register) -> None:
        def who() -> str:
            seen = CALLER.get()
            CALLER.set("the tool")
            return seen

        CALLER.set("the run")
        assert await runner.run(register(who), {}) == "the run"
        assert CALLER.get() == "the run"

    async def test_cancelled_it_is_abandoned(self, runner: ToolRunner, register: Register) -> None:
        started, gate = threading.Event(), threading.Event()

        def wait() -> None:
            started.set()
            gate.wait(10)

        running = asyncio.create_task(runner.run(register(wait), {}))
        await asyncio.to_thread(started.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.set()


class TestAsync:
    async def test_tools_share_one_loop_which_is_not_the_worker_s(self, runner: ToolRunner, register: Register) -> None:
        async def where() -> tuple[asyncio.AbstractEventLoop, str]:
            return asyncio.get_running_loop(), threading.current_thread().name

        (loop, thread), (again, _) = [await runner.run(register(where), {}) for _ in range(2)]
        assert (loop is again, thread) == (True, "tools-0")
        assert loop is not asyncio.get_running_loop()

    @pytest.mark.parametrize(("error", "told"), RAISED)
    async def test_what_it_raises_is_told_and_the_loop_lives_on(
        self, runner: ToolRunner, register: Register, error: BaseException, told: str
    ) -> None:
        async def fail() -> None:
            raise error

        async def fine() -> str:
            return threading.current_thread().name

        for _ in range(2):
            with pytest.raises(ToolRaisedError) as raised:
                await runner.run(register(fail), {})
            assert str(raised.value) == told
        assert await runner.run(register(fine), {}) == "tools-0"

    async def test_it_sees_the_context_of_its_caller(self, runner: ToolRunner, register: Register) -> None:
        async def who() -> str:
            seen = CALLER.get()
            CALLER.set("the tool")
            return seen

        CALLER.set("the run")
        assert [await runner.run(register(who), {}) for _ in range(2)] == ["the run", "the run"]

    async def test_cancelled_it_is_cancelled(self, runner: ToolRunner, register: Register) -> None:
        started, cancelled = threading.Event(), threading.Event()

        async def wait() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        running = asyncio.create_task(runner.run(register(wait), {}))
        await asyncio.to_thread(started.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.to_thread(cancelled.wait, 10)

    async def test_while_one_holds_its_loop_up_others_run_on_a_spare_one(
        self, runner: ToolRunner, register: Register, caplog: pytest.LogCaptureFixture
    ) -> None:
        started, gate = threading.Event(), threading.Event()
        calls: list[str] = []

        async def hold_up() -> str:
            started.set()
            gate.wait(20)  # as `time.sleep` would
            return threading.current_thread().name

        async def quick() -> str:
            calls.append(threading.current_thread().name)
            return calls[-1]

        async def wait() -> str:
            await asyncio.sleep(0.01)
            return threading.current_thread().name

        holding = asyncio.create_task(runner.run(register(hold_up), {}))
        await asyncio.to_thread(started.wait, 10)
        began = time.monotonic()
        # Right after the loop was taken nobody can know that it is held up; the call moves on when it does not begin.
        assert await runner.run(register(quick), {}) == "tools-1"
        assert time.monotonic() - began < HELD_UP_AFTER_SECONDS + 3
        assert await runner.run(register(wait), {}) == "tools-1"
        assert "holds up its event loop (running: hold_up)" in caplog.text
        gate.set()
        assert await holding == "tools-0"
        assert await runner.run(register(wait), {}) in ("tools-0", "tools-1")
        assert calls == ["tools-1"]  # and is not made a second time by the loop that was late
