"""`@tool`: the schema that a model sees, and what becomes of the arguments it writes."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Optional

import pytest
from dalang import Approval, Context, tool, tools
from dalang.tools import ArgumentsError, ToolFunction, registered_tools
from pydantic import BaseModel, Field

Json = dict[str, Any]
Registry = dict[str, ToolFunction]


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Address(BaseModel):
    """Where to."""

    street: str
    number: int = 1


@pytest.fixture(autouse=True)
def empty(registry: Registry) -> Registry:
    return registry


def described(function: Callable[..., Any]) -> ToolFunction:
    tool(function)
    return registered_tools()[function.__name__]


def properties(function: Callable[..., Any]) -> Json:
    found: Json = described(function).schema["properties"]
    return found


class TestSchema:
    def test_is_made_of_signature_and_docstring(self) -> None:
        def refund(order: str, amount: float = 10.0) -> str:
            """Refund an order.

            Only orders of this year.

            Args:
                order: The order to refund,
                    as it stands on the invoice.
                amount: In euros.

            Returns:
                A receipt.
            """
            return f"{order}: {amount}"

        made = described(refund)
        assert (made.name, made.description, made.is_async) == (
            "refund",
            "Refund an order.\n\nOnly orders of this year.",
            False,
        )
        assert made.schema == {
            "type": "object",
            "properties": {
                "order": {
                    "type": "string",
                    "title": "Order",
                    "description": "The order to refund,\nas it stands on the invoice.",
                },
                "amount": {"type": "number", "title": "Amount", "description": "In euros.", "default": 10.0},
            },
            "required": ["order"],
            "additionalProperties": False,
        }

    def test_of_a_function_without_parameters_and_docstring(self) -> None:
        def now() -> str:
            return "12:00"

        made = described(now)
        assert (made.description, made.schema) == (
            "",
            {"type": "object", "properties": {}, "additionalProperties": False},
        )

    def test_of_types(self) -> None:
        def order(
            size: Size,
            colour: Literal["red", "blue"],
            count: Annotated[int, Field(ge=1, le=9, description="How many.")],
            notes: list[str],
            prices: dict[str, float],
            comment: str | None = None,
            *,
            express: bool = False,
        ) -> None: ...

        made = described(order).schema
        assert made["required"] == ["size", "colour", "count", "notes", "prices"]
        assert made["$defs"] == {"Size": {"enum": ["small", "large"], "title": "Size", "type": "string"}}
        assert made["properties"] == {
            "size": {"$ref": "#/$defs/Size"},
            "colour": {"enum": ["red", "blue"], "title": "Colour", "type": "string"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9, "description": "How many.", "title": "Count"},
            "notes": {"type": "array", "items": {"type": "string"}, "title": "Notes"},
            "prices": {"type": "object", "additionalProperties": {"type": "number"}, "title": "Prices"},
            "comment": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Comment"},
            "express": {"type": "boolean", "default": False, "title": "Express"},
        }

    def test_of_a_nested_model(self) -> None:
        def ship(to: Address) -> None: ...

        made = described(ship).schema
        assert made["properties"] == {"to": {"$ref": "#/$defs/Address"}}
        assert made["$defs"]["Address"]["description"] == "Where to."

    def test_a_docstring_wins_over_the_description_in_an_annotation(self) -> None:
        def order(count: Annotated[int, Field(description="How many.")]) -> None:
            """Order.

            Args:
                count: How many of them.
            """

        assert properties(order)["count"]["description"] == "How many of them."

    @pytest.mark.parametrize(
        "docstring",
        [
            pytest.param("Do it.\n\n:param city: Where.", id="Sphinx"),
            pytest.param("Do it.\n\nParameters\n----------\ncity : str\n    Where.", id="NumPy"),
            pytest.param("Do it.\n\n    Args:\n        city (str): Where.", id="Google, with types"),
        ],
    )
    def test_docstrings_of_other_styles_are_read(self, docstring: str) -> None:
        def do(city: str) -> None: ...

        do.__doc__ = docstring
        made = described(do)
        assert (made.description, made.schema["properties"]["city"]["description"]) == ("Do it.", "Where.")

    @pytest.mark.parametrize("name", ["schema", "json", "copy", "model_config", "model_dump", "self", "cls", "p0"])
    def test_parameters_may_be_called_what_they_like(self, name: str) -> None:
        namespace: Json = {}
        exec(f"def do({name}: int, other: str = 'x') -> None: ...", namespace)
        made = described(namespace["do"])
        assert list(made.schema["properties"]) == [name, "other"]
        assert made.parse(f'{{"{name}": 3}}') == {name: 3, "other": "x"}

    def test_is_the_same_each_time(self) -> None:
        def do(city: str) -> None: ...

        first = described(do)
        registered_tools()
        assert first.digest() == described(do).digest()

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param("def do(city: int) -> None: ...", id="another type"),
            pytest.param("def do(town: str) -> None: ...", id="another name"),
            pytest.param("def do(city: str) -> None: 'Do it.'", id="another description"),
            pytest.param("def do(city: str = 'Ubud') -> None: ...", id="another default"),
        ],
    )
    def test_what_the_model_is_told_changes_the_digest(self, other: str, registry: Registry) -> None:
        namespace: Json = {}
        exec("def do(city: str) -> None: ...", namespace)
        before = described(namespace["do"]).digest()
        registry.clear()
        exec(other, namespace)
        assert described(namespace["do"]).digest() != before


class TestRegistration:
    def test_leaves_the_function_as_it_is(self) -> None:
        @tool
        def double(number: int) -> int:
            return 2 * number

        @tool(name="triple")
        async def times_three(number: int) -> int:
            return 3 * number

        assert double(4) == 8
        registered = registered_tools()
        assert {name: made.is_async for name, made in registered.items()} == {"double": False, "triple": True}
        assert registered["triple"].function is times_three

    def test_what_is_returned_is_a_copy(self) -> None:
        registered_tools()["x"] = None  # type: ignore[assignment]
        assert registered_tools() == {}

    def test_a_module_may_be_imported_again(self) -> None:
        def define() -> Callable[..., Any]:
            def do() -> None: ...

            return do

        first, second = define(), define()
        tool(first)
        tool(second)
        assert registered_tools()["do"].function is second

    def test_a_name_belongs_to_one_function(self) -> None:
        @tool
        def do() -> None: ...

        def other() -> None: ...

        with pytest.raises(
            ValueError, match=r"tool 'do' is registered by .*\.do already; give one of them another name"
        ):
            tool(name="do")(other)
        assert registered_tools()["do"].function is do


def with_context(context: Context, city: str) -> None: ...


def with_context_or_none(city: str, run: Context | None = None) -> None: ...


def with_optional(city: str, *, c: Optional[Context] = None) -> None:  # noqa: UP045
    """Do it.

    Args:
        city: Where.
        c: Never shown.
    """


def with_annotated(city: str, c: Annotated[Context, "the run"]) -> None: ...


class TestContext:
    @pytest.mark.parametrize(
        ("function", "parameter"),
        [
            pytest.param(with_context, "context", id="alone"),
            pytest.param(with_context_or_none, "run", id="or none"),
            pytest.param(with_optional, "c", id="optional, keyword only"),
            pytest.param(with_annotated, "c", id="annotated"),
        ],
    )
    def test_is_given_and_never_shown(self, function: Callable[..., Any], parameter: str) -> None:
        made = described(function)
        assert list(made.schema["properties"]) == ["city"]
        assert (made.reads_context, made.context_parameter) == (True, parameter)
        context = Context({"a": 1})
        assert made.with_context(made.parse('{"city": "Ubud"}'), context) == {"city": "Ubud", parameter: context}

    @pytest.mark.parametrize("arguments", ['{"context": {}, "city": "x"}', '{"city": "x", "context": null}'])
    def test_a_model_cannot_give_it(self, arguments: str) -> None:
        with pytest.raises(ArgumentsError, match="context: Extra inputs are not permitted"):
            described(with_context).parse(arguments)

    def test_a_tool_without_it_is_given_none(self) -> None:
        made = described(ship)
        assert not made.reads_context
        assert made.with_context({"count": 1}, Context()) == {"count": 1}

    def test_it_changes_nothing_of_what_the_model_is_told(self, registry: Registry) -> None:
        def do(city: str) -> None: ...

        before = described(do).digest()
        registry.clear()
        with_context.__name__, name = "do", with_context.__name__
        try:
            assert described(with_context).digest() == before
        finally:
            with_context.__name__ = name

    @pytest.mark.parametrize(
        ("signature", "words"),
        [
            ("a: Context, b: Context", "both a and b take the Context"),
            ("a: list[Context]", "parameter a of type .* annotate it with Context alone"),
            ("a: Context | str", "parameter a of type .* annotate it with Context alone"),
            ("a: Annotated[list[Context], 1]", "annotate it with Context alone"),
        ],
    )
    def test_anything_else_is_refused(self, signature: str, words: str) -> None:
        namespace: Json = {"Context": Context, "Annotated": Annotated}
        exec(f"def do({signature}) -> None: ...", namespace)
        with pytest.raises(TypeError, match=f"^tool do: {words}|^tool do: .*{words}"):
            tool(namespace["do"])

    def test_is_read_only(self) -> None:
        given = {"name": "Ada"}
        context = Context(given, idempotency_key="k", run="r", namespace="n", agent="a")
        given["name"] = "Bob"
        assert (context["name"], context.get("x"), context.get("x", 1), "name" in context) == ("Ada", None, 1, True)
        assert list(context) == ["name"]
        with pytest.raises(KeyError, match="x"):
            context["x"]
        with pytest.raises(TypeError):
            context.variables["x"] = 1  # type: ignore[index]
        with pytest.raises(AttributeError):
            context.run = "other"  # type: ignore[misc]


class TestAttempts:
    @pytest.mark.parametrize(
        ("options", "once", "attempts", "retryable_attempts"),
        [
            pytest.param({}, False, 1, 3, id="by default, only errors that ask for it, three times"),
            pytest.param({"attempts": 1}, False, 1, 1, id="never"),
            pytest.param({"attempts": 5}, False, 5, 5, id="whatever it raises, five times"),
            pytest.param({"once": True}, True, 1, 1, id="once, whatever it raises"),
            pytest.param({"once": True, "attempts": 1}, True, 1, 1, id="once, said twice"),
        ],
    )
    def test_how_often(self, options: Json, once: bool, attempts: int, retryable_attempts: int) -> None:
        def do() -> None: ...

        tool(**options)(do)
        made = registered_tools()["do"]
        assert (made.once, made.attempts, made.retryable_attempts) == (once, attempts, retryable_attempts)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"attempts": 0}, "attempts is 0; it has to be 1 or more"),
            ({"attempts": -1}, "attempts is -1"),
            ({"once": True, "attempts": 2}, "once=True and attempts=2 contradict each other"),
        ],
    )
    def test_a_contradiction_is_refused_where_it_is_written(self, options: Json, words: str) -> None:
        def do() -> None: ...

        with pytest.raises(ValueError, match=f"^tool do: {words}"):
            tool(**options)(do)
        assert registered_tools() == {}


def no_annotation(city) -> None:  # type: ignore[no-untyped-def]
    ...


def variadic(*cities: str) -> None: ...


def keywords(**cities: str) -> None: ...


def positional(city: str, /) -> None: ...


class Unknown:
    pass


def strange_type(thing: Unknown) -> None: ...


def no_schema(callback: Callable[[], None]) -> None: ...


def yielding(city: str) -> Iterator[str]:
    yield city


async def yielding_too(city: str) -> AsyncIterator[str]:
    yield city


def unresolved(city: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        pytest.param(no_annotation, "parameter city needs a type annotation", id="no annotation"),
        pytest.param(variadic, r"parameter \*cities: str cannot be described", id="*args"),
        pytest.param(keywords, r"parameter \*\*cities: str cannot be described", id="**kwargs"),
        pytest.param(positional, "parameter city: str cannot be described", id="positional only"),
        pytest.param(strange_type, "parameter thing of type .*Unknown.* has no JSON schema", id="a class of its own"),
        pytest.param(yielding, "it yields; return one value instead", id="a generator"),
        pytest.param(yielding_too, "it yields; return one value instead", id="an asynchronous generator"),
        pytest.param(no_schema, "parameter callback of type .* has no JSON schema", id="no JSON schema"),
        pytest.param(
            unresolved, "an annotation cannot be resolved: name 'Nowhere' is not defined", id="an unknown name"
        ),
    ],
)
def test_a_signature_that_cannot_be_described_is_refused_where_it_is_written(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(TypeError, match=f"^tool {function.__name__}: {words}"):
        tool(function)
    assert registered_tools() == {}


def ship(
    to: Address, count: Annotated[int, Field(ge=1)] = 1, size: Size = Size.SMALL, notes: list[str] | None = None
) -> None: ...


class TestParse:
    @pytest.mark.parametrize(
        ("arguments", "parsed"),
        [
            pytest.param(
                '{"to": {"street": "Jalan Raya"}}',
                {"to": Address(street="Jalan Raya", number=1), "count": 1, "size": Size.SMALL, "notes": None},
                id="what is left out has its default",
            ),
            pytest.param(
                '{"to": {"street": "x", "number": "7"}, "count": "2", "size": "large", "notes": []}',
                {"to": Address(street="x", number=7), "count": 2, "size": Size.LARGE, "notes": []},
                id="numbers as strings, as models write them",
            ),
            pytest.param(
                ' \n{"to": {"street": "Ü"}}\n',
                {"to": Address(street="Ü"), "count": 1, "size": Size.SMALL, "notes": None},
                id="white space around it",
            ),
        ],
    )
    def test_gives_what_the_function_takes(self, arguments: str, parsed: Json) -> None:
        assert described(ship).parse(arguments) == parsed

    @pytest.mark.parametrize("arguments", ["", " ", "{}"])
    def test_no_arguments(self, arguments: str) -> None:
        def now() -> None: ...

        assert described(now).parse(arguments) == {}

    @pytest.mark.parametrize(
        ("arguments", "problems"),
        [
            pytest.param("{}", "to: Field required", id="something missing"),
            pytest.param(
                '{"to": {"street": "x"}, "colour": "red"}', "colour: Extra inputs are not permitted", id="too much"
            ),
            pytest.param(
                '{"to": {"street": 1}, "count": 0}',
                "to.street: Input should be a valid string; count: Input should be greater than or equal to 1",
                id="all that does not fit",
            ),
            pytest.param("[]", "arguments: Input should be an object", id="a list"),
            pytest.param(
                '{"to"', "arguments: Invalid JSON: EOF while parsing an object at line 1 column 5", id="no JSON"
            ),
        ],
    )
    def test_tells_the_model_what_does_not_fit(self, arguments: str, problems: str) -> None:
        with pytest.raises(ArgumentsError) as raised:
            described(ship).parse(arguments)
        assert str(raised.value) == (
            f"The arguments do not fit tool ship: {problems}. Call it again with arguments that match its schema."
        )

    def test_a_default_is_not_shared_between_calls(self) -> None:
        def collect(notes: list[str] = []) -> None: ...  # noqa: B006

        made = described(collect)
        made.parse("{}")["notes"].append("x")
        assert made.parse("{}") == {"notes": []}


def test_the_registry_of_a_test_is_its_own() -> None:
    assert tools._REGISTRY == {}


class TestApproval:
    def test_is_part_of_the_tool(self, registry: Registry) -> None:
        wanted = Approval(when="args.amount > 100", timeout=timedelta(hours=12), on_timeout="Fail")

        @tool(approval=wanted)
        def pay(amount: float) -> None: ...

        @tool(approval=True)
        def burn() -> None: ...

        @tool(approval=False)
        def find() -> None: ...

        assert {name: made.approval for name, made in registry.items()} == {
            "pay": wanted,
            "burn": Approval(),
            "find": None,
        }
        assert (wanted.timeout_seconds, Approval(timeout=90).timeout_seconds) == (43_200.0, 90)

    @pytest.mark.parametrize(
        "wrong",
        [
            pytest.param({"when": ""}, id="no expression"),
            pytest.param({"when": "x" * 2049}, id="an expression that is too long"),
            pytest.param({"question": "x" * 513}, id="a question that is too long"),
            pytest.param({"timeout": 0}, id="no time"),
            pytest.param({"timeout": timedelta(seconds=-1)}, id="time before now"),
            pytest.param({"on_timeout": "reject"}, id="another word"),
        ],
    )
    def test_says_what_is_wrong(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Approval(**wrong)

    def test_is_an_approval_and_nothing_else(self) -> None:
        with pytest.raises(TypeError, match=r"it has to be an Approval"):
            tool(approval="args.amount > 100")(lambda: None)  # type: ignore[call-overload]
