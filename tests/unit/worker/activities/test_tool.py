"""A tool call: what the tool is given, what becomes of what it returns or raises."""

import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest
from dalang import Context, Handoff, ToolError, ToolFunction, ToolResult, tool
from dalang_api.contract import (
    CONTEXT_MAX_BYTES,
    TOOL_OUTPUT_MAX_BYTES,
    RunIdentity,
    ToolCall,
    ToolOutcome,
    idempotency_key,
)
from dalang_worker.activities.tool import ToolActivity, render, to_outcome
from dalang_worker.approvals import CalledTool, unknown_outcome
from dalang_worker.tools.runner import ToolRunner
from pydantic import BaseModel
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

LOST = "\N{REPLACEMENT CHARACTER}"


class Order(BaseModel):
    number: int
    placed: date


@dataclass
class Weather:
    sky: str
    degrees: float


class Opaque:
    def __repr__(self) -> str:
        return "<an opaque thing>"


def looped() -> list[Any]:
    ring: list[Any] = [1]
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("sunny", "sunny", id="a string as it is"),
        pytest.param("", "", id="an empty string"),
        pytest.param(None, "null", id="nothing"),
        pytest.param(True, "true", id="a truth"),
        pytest.param(3.5, "3.5", id="a number"),
        pytest.param(["a", 1, None], '["a",1,null]', id="a list"),
        pytest.param({"city": "Kuta", "Ü": "漢"}, '{"city":"Kuta","Ü":"漢"}', id="an object"),
        pytest.param({1: "a", (2, 3): "b"}, '{"1":"a","2,3":"b"}', id="keys that are no strings"),
        pytest.param(float("nan"), "NaN", id="not a number"),
        pytest.param([float("inf")], "[Infinity]", id="infinity"),
        pytest.param(Order(number=42, placed=date(2026, 3, 1)), '{"number":42,"placed":"2026-03-01"}', id="a model"),
        pytest.param(Weather("sunny", 31.5), '{"sky":"sunny","degrees":31.5}', id="a dataclass"),
        pytest.param(datetime(2026, 3, 1, 12, tzinfo=UTC), '"2026-03-01T12:00:00Z"', id="a time"),
        pytest.param({"x": Opaque()}, '{"x":"<an opaque thing>"}', id="an object that is no JSON, as its repr"),
        pytest.param(b"sunny", "sunny", id="bytes that are UTF-8"),
        pytest.param(
            b"a\xff", f"[not UTF-8: what cannot be read is shown as {LOST}]\na{LOST}", id="bytes that are not, marked"
        ),
        pytest.param("a\ud800", "a?", id="a lone surrogate"),
        pytest.param("\x1b[31mred", f"{LOST}[31mred", id="control characters"),
    ],
)
def test_render(value: Any, text: str) -> None:
    assert render(value) == text


@pytest.mark.parametrize(
    ("value", "ending"),
    [
        pytest.param({"x": b"\xff"}, "{'x': b'\\xff'}", id="bytes inside that are not UTF-8"),
        pytest.param({"x": "\ud800"}, "{'x': '\\ud800'}", id="a lone surrogate inside"),
        pytest.param(looped(), "[1, [...]]", id="a list that holds itself"),
    ],
)
def test_what_is_no_json_is_marked_and_shown(value: Any, ending: str) -> None:
    text = render(value)
    assert text.startswith("[not JSON: ")
    assert text.endswith(f"]\n{ending}")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        pytest.param("x" * 5_000_000, 5_000_000, id="5 MB of text"),
        pytest.param(b"x" * 5_000_000, 5_000_000, id="5 MB of bytes"),
        pytest.param(["x" * 1_000_000] * 5, 5_000_016, id="5 MB of JSON"),
        pytest.param("ü" * 10_000, 20_000, id="what is too long only in bytes"),
        pytest.param(b"\x00" * 6_000, 18_000, id="what is too long only when cleaned"),
    ],
)
def test_what_is_too_long_is_cut_with_a_mark(value: Any, size: int) -> None:
    text = render(value)
    assert text.endswith(f"\n… [cut: {size} bytes in all]")
    assert TOOL_OUTPUT_MAX_BYTES - 3 <= len(text.encode()) <= TOOL_OUTPUT_MAX_BYTES


WORKFLOW_ID = "dalang-1a2b3c4d.shop.refund-x7.8f14e45f"
RAN = "The tool ran, but what it returned cannot be used: "


def call(function: str, arguments: str = "{}", **more: Any) -> ToolCall:
    given: dict[str, Any] = {"call_id": "c1", "tool": function, "function": function, "arguments": arguments}
    return ToolCall(**{**given, "thread": "main", "turn": 2, "index": 1, **more})


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    made = ToolRunner(2)
    yield made
    made.close()


@pytest.fixture
def make_call(runner: ToolRunner, registry: dict[str, ToolFunction]) -> Callable[..., Any]:
    async def made(asked: ToolCall, attempt: int = 1) -> ToolOutcome:
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, workflow_id=WORKFLOW_ID, attempt=attempt)
        outcome: ToolOutcome = await environment.run(ToolActivity(runner).tool, asked)
        return outcome

    return made


class Raising:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def naturals() -> Iterator[int]:
    yield from itertools.count()


async def later() -> AsyncIterator[int]:
    yield 1


class TestOutcome:
    @pytest.mark.parametrize(
        ("returned", "outcome"),
        [
            pytest.param("done", ToolOutcome(output="done"), id="a string"),
            pytest.param(None, ToolOutcome(output="null"), id="nothing"),
            pytest.param(
                Handoff("sales"), ToolOutcome(output="Transferred to sales.", handoff="sales"), id="a hand-off alone"
            ),
            pytest.param(
                ToolResult("done", context={"n": 1}, handoff=Handoff("sales.eu")),
                ToolOutcome(output="done", context={"n": 1}, handoff="sales.eu"),
                id="all at once",
            ),
            pytest.param(
                ToolResult(None, handoff=Handoff("sales")),
                ToolOutcome(output="Transferred to sales.", handoff="sales"),
                id="a hand-off without words",
            ),
            pytest.param(ToolResult([1], context={}), ToolOutcome(output="[1]"), id="no variables"),
            pytest.param(
                ToolResult("", context={"a": None, "day": date(2026, 3, 1), "order": Order(number=1, placed=date.min)}),
                ToolOutcome(
                    output="",
                    context={"a": None, "day": "2026-03-01", "order": {"number": 1, "placed": "0001-01-01"}},
                ),
                id="variables that become JSON",
            ),
            pytest.param(
                Context({"n": {"m": 1}}).variables, ToolOutcome(output='{"n":{"m":1}}'), id="the variables themselves"
            ),
            pytest.param(
                ToolResult("", context=Context({"n": 1}).variables),  # type: ignore[arg-type]
                ToolOutcome(output="", context={"n": 1}),
                id="and set once more",
            ),
            pytest.param(Handoff, ToolOutcome(output="\"<class 'dalang.results.Handoff'>\""), id="a class by mistake"),
        ],
    )
    def test_of_what_a_tool_returns(self, returned: Any, outcome: ToolOutcome) -> None:
        assert to_outcome(returned, {}) == outcome

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            pytest.param(naturals(), "its output is a generator, which yields; return a list", id="a generator"),
            pytest.param(ToolResult(map(str, [1])), "its output is a map, which yields", id="an iterator"),
            pytest.param(later(), "its output is a async_generator", id="an asynchronous generator"),
            pytest.param({"x": Raising()}, "", id="what cannot be shown"),
            pytest.param(ToolResult("", context=["a"]), "context is a list; it has to be a dict", id="a list as context"),  # type: ignore[arg-type]
            pytest.param(ToolResult("", context={"a-b": 1}), "context variable 'a-b': a name is letters", id="a bad name"),
            pytest.param(ToolResult("", context={"a" * 65: 1}), "a name is letters", id="a long name"),
            pytest.param(ToolResult("", context={"a\n": 1}), "a name is letters", id="a name with a newline"),
            pytest.param(ToolResult("", context={1: 1}), "context variable '1'", id="a number as a name"),  # type: ignore[dict-item]
            pytest.param(ToolResult("", context={"a": Opaque()}), "Unable to serialize", id="a value that is no JSON"),
            pytest.param(ToolResult("", context={"a": float("nan")}), "context: a: a number beyond", id="not a number"),
            pytest.param(ToolResult("", context={"a": "\ud800"}), "context: a: text with half a character", id="a surrogate"),
            pytest.param(ToolResult("", context={"a": b"\xff"}), "invalid utf-8", id="bytes that are no text"),
            pytest.param(ToolResult("", context={"a": looped()}), "Circular reference", id="a list that holds itself"),
            pytest.param(ToolResult("", context={"a": "x" * 5000}), "a is longer than 4096 characters", id="too much"),
            pytest.param(Handoff(""), "handoff '' is no agent's name", id="a hand-off to nobody"),
            pytest.param(Handoff("Sales Team"), "handoff 'Sales Team' is no agent's name", id="a hand-off to a title"),
            pytest.param(Handoff("a" * 64), "is no agent's name", id="a hand-off to a long name"),
            pytest.param(ToolResult("", handoff=7), "handoff 7 is no agent's name", id="a hand-off to a number"),  # type: ignore[arg-type]
        ],
    )  # fmt: skip
    def test_of_what_cannot_be_used_says_that_the_tool_ran(self, returned: Any, words: str) -> None:
        outcome = to_outcome(returned, {})
        assert outcome.is_error
        assert outcome.output.startswith(RAN)
        assert words in outcome.output
        assert (outcome.context, outcome.handoff) == (None, None)

    def test_variables_are_bounded_together_with_those_there_are(self) -> None:
        there = {"a": "x" * 4000, "b": "x" * 4000}
        assert f"{CONTEXT_MAX_BYTES} are allowed" in to_outcome(ToolResult("", context={"c": "x" * 300}), there).output
        assert not to_outcome(ToolResult("", context={"a": "x" * 4096}), there).is_error


class TestCall:
    async def test_a_tool_is_told_of_its_run(self, make_call: Callable[..., Any]) -> None:
        @tool
        def who(context: Context, greeting: str) -> dict[str, Any]:
            return {"context": context, "said": greeting + context["name"]}

        asked = call("who", '{"greeting": "Hi "}', agent="support", context={"name": "Ada"})
        outcome = await make_call(asked)
        assert not outcome.is_error
        assert outcome.output == (
            '{"context":{"variables":{"name":"Ada"},'
            f'"idempotency_key":"{idempotency_key("8f14e45f", asked)}",'
            '"run":"refund-x7","namespace":"shop","agent":"support","session":null},"said":"Hi Ada"}'
        )

    async def test_in_a_session_it_is_told_of_the_run_and_of_the_session(self, make_call: Callable[..., Any]) -> None:
        @tool
        def who(context: Context) -> list[str | None]:
            return [context.idempotency_key, context.run, context.namespace, context.session]

        asked = call("who", run=RunIdentity(name="chat-2", uid="u-2"))
        outcome = await make_call(asked)
        assert outcome.output == f'["{idempotency_key("u-2", asked)}","chat-2","shop","refund-x7"]'

    @pytest.mark.parametrize(
        ("options", "error", "attempt", "is_tried_again"),
        [
            pytest.param({}, ValueError("no"), 1, False, id="an exception is told"),
            pytest.param({}, ToolError("no"), 1, False, id="an error for the model is told"),
            pytest.param({}, ToolError("no", retryable=True), 1, True, id="one that asks for it is tried again"),
            pytest.param({}, ToolError("no", retryable=True), 2, True, id="and again"),
            pytest.param({}, ToolError("no", retryable=True), 3, False, id="and then told"),
            pytest.param({"attempts": 2}, ValueError("no"), 1, True, id="attempts are for every exception"),
            pytest.param({"attempts": 2}, ValueError("no"), 2, False, id="until they are used up"),
            pytest.param({"attempts": 2}, ToolError("no", retryable=True), 2, False, id="and bound what asks for more"),
            pytest.param({"attempts": 2}, ValueError("no"), 9, False, id="lost workers count as well"),
            pytest.param({"attempts": 5}, ToolError("no", retryable=True), 4, True, id="or allow it more"),
            pytest.param({"once": True}, ToolError("no", retryable=True), 1, False, id="once is once"),
        ],
    )
    async def test_what_raises_is_tried_again_or_told(
        self,
        make_call: Callable[..., Any],
        options: dict[str, Any],
        error: Exception,
        attempt: int,
        is_tried_again: bool,
    ) -> None:
        def fail() -> None:
            raise error

        tool(**options)(fail)
        words = "ValueError: no" if isinstance(error, ValueError) else "no"
        if not is_tried_again:
            assert await make_call(call("fail"), attempt) == ToolOutcome(output=words, is_error=True)
            return
        with pytest.raises(ApplicationError, match=f"^ToolRetrying: {words}$") as raised:
            await make_call(call("fail"), attempt)
        assert (raised.value.type, raised.value.non_retryable) == ("ToolRetrying", False)

    async def test_a_call_that_was_recorded_as_once_is_not_tried_again(self, make_call: Callable[..., Any]) -> None:
        """Though the function has changed since."""

        @tool(attempts=5)
        def fail() -> None:
            raise ValueError("no")

        assert (await make_call(call("fail", once=True))).is_error

    async def test_what_a_tool_returned_wrongly_does_not_make_it_run_again(self, make_call: Callable[..., Any]) -> None:
        @tool(attempts=5)
        def refund() -> ToolResult:
            return ToolResult("done", context={"a-b": 1})

        outcome = await make_call(call("refund"))
        assert (outcome.is_error, outcome.output[: len(RAN)]) == (True, RAN)

    async def test_a_coroutine_of_a_sync_function_is_awaited(self, make_call: Callable[..., Any]) -> None:
        async def transfer() -> Handoff:
            return Handoff("sales")

        @tool
        def disguised() -> Any:
            return transfer()

        assert await make_call(call("disguised")) == ToolOutcome(output="Transferred to sales.", handoff="sales")

    async def test_a_function_that_is_missing_is_waited_for(self, make_call: Callable[..., Any]) -> None:
        with pytest.raises(ApplicationError, match="registers no function nowhere") as raised:
            await make_call(call("nowhere"))
        assert (raised.value.type, raised.value.non_retryable) == ("ToolNotFound", False)

    async def test_unless_it_may_be_tried_once_only(self, make_call: Callable[..., Any]) -> None:
        outcome = await make_call(call("nowhere", once=True))
        assert outcome.is_error
        assert outcome.output == "The tool did not run. This worker registers no function nowhere."

    async def test_arguments_that_do_not_fit_are_told(self, make_call: Callable[..., Any]) -> None:
        @tool
        def refund(order: int) -> None: ...

        outcome = await make_call(call("refund", "{}"))
        assert outcome.is_error
        assert "order: Field required" in outcome.output


class TestApproval:
    @pytest.fixture
    def paid(self, registry: dict[str, ToolFunction]) -> list[float]:
        """What the tool `pay` was called with."""
        paid: list[float] = []

        @tool
        def pay(amount: float) -> str:
            paid.append(amount)
            return "paid"

        return paid

    @staticmethod
    def approved(registry: dict[str, ToolFunction], arguments: str, **more: Any) -> ToolCall:
        """Return a call of the arguments, `{"amount":120}` being what was approved."""
        digest = CalledTool.function("pay", registry["pay"]).digest('{"amount":120}')
        return call("pay", arguments, approved_digest=digest, agent="support", **more)

    async def test_what_was_approved_is_run(
        self, make_call: Callable[..., Any], registry: dict[str, ToolFunction], paid: list[float]
    ) -> None:
        outcome = await make_call(self.approved(registry, '{ "amount": 1, "amount": 120.0 }'))
        assert (outcome, paid) == (ToolOutcome(output="paid"), [120.0])

    async def test_other_arguments_are_asked_about(
        self, make_call: Callable[..., Any], registry: dict[str, ToolFunction], paid: list[float]
    ) -> None:
        outcome = await make_call(self.approved(registry, '{"amount": 121}'))
        assert (outcome.ask_again.arguments, outcome.output, paid) == ('{"amount":121}', "", [])

    async def test_a_tool_that_has_changed_is_asked_about(
        self, make_call: Callable[..., Any], registry: dict[str, ToolFunction], paid: list[float]
    ) -> None:
        asked = self.approved(registry, '{"amount": 120}')
        registry["pay"] = dataclasses.replace(
            registry["pay"], schema={**registry["pay"].schema, "description": "More."}
        )
        again = (await make_call(asked)).ask_again
        assert (again.arguments, paid) == ('{"amount":120}', [])
        assert await make_call(asked.model_copy(update={"approved_digest": again.digest})) == ToolOutcome(output="paid")

    @pytest.mark.parametrize(
        ("arguments", "approved"),
        [
            pytest.param('{"amount": 121}', None, id="other arguments"),
            pytest.param('{"amount": "all"}', '{"amount": 121}', id="an approver's, which do not fit"),
        ],
    )
    async def test_what_has_changed_since_a_worker_was_lost_may_have_run(
        self,
        arguments: str,
        approved: str | None,
        make_call: Callable[..., Any],
        registry: dict[str, ToolFunction],
        paid: list[float],
    ) -> None:
        asked = self.approved(registry, arguments, approved_arguments=approved)
        assert (await make_call(asked, attempt=2), paid) == (unknown_outcome("pay"), [])

    async def test_an_approver_s_arguments_are_run_instead(
        self, make_call: Callable[..., Any], registry: dict[str, ToolFunction], paid: list[float]
    ) -> None:
        asked = self.approved(registry, '{"amount": 5}', approved_arguments='{"amount": 120}')
        assert (await make_call(asked), paid) == (ToolOutcome(output="paid"), [5.0])

    @pytest.mark.parametrize(
        ("arguments", "words", "advice"),
        [
            pytest.param(
                '{"amount": "all"}',
                "those do not fit the tool. The arguments do not fit tool pay: amount",
                " Call it again with arguments that match its schema.",
                id="a type",
            ),
            pytest.param(
                "{}",
                "those do not fit the tool. The arguments do not fit tool pay: amount",
                " Call it again with arguments that match its schema.",
                id="one missing",
            ),
            pytest.param("[]", "Not run: the arguments are not a JSON object.", "", id="no object"),
        ],
    )
    async def test_an_approver_s_arguments_that_do_not_fit_are_told(
        self,
        arguments: str,
        words: str,
        advice: str,
        make_call: Callable[..., Any],
        registry: dict[str, ToolFunction],
        paid: list[float],
    ) -> None:
        outcome = await make_call(self.approved(registry, arguments, approved_arguments='{"amount": 120}'))
        assert (outcome.is_error, outcome.not_run, words in outcome.output, paid) == (True, True, True, [])
        for_people = outcome.not_run_because or outcome.output
        assert outcome.output == f"{for_people}{advice}"
        assert "Call it again" not in for_people
