"""`@instructions`: functions that make a system prompt."""

from collections.abc import Callable
from typing import Any

import pytest
from dalang import Context, InstructionsFunction, instructions
from dalang.prompts import registered_instructions


@pytest.fixture(autouse=True)
def empty(prompt_registry: dict[str, InstructionsFunction]) -> dict[str, InstructionsFunction]:
    return prompt_registry


def test_functions_are_registered_and_stay_as_they_are() -> None:
    @instructions
    def brief() -> str:
        return "Be brief."

    @instructions(name="polite")
    async def be_polite(context: Context) -> str:
        return f"Be polite to {context['name']}."

    assert brief() == "Be brief."
    made = registered_instructions()
    assert [(item.name, item.is_async, item.reads_context) for item in made.values()] == [
        ("brief", False, False),
        ("polite", True, True),
    ]
    assert made["polite"].with_context({}, Context({"name": "Ada"})) == {"context": Context({"name": "Ada"})}


def test_a_name_belongs_to_one_function() -> None:
    @instructions
    def brief() -> str:
        return ""

    def other() -> str:
        return ""

    with pytest.raises(ValueError, match=r"^instructions 'brief' is registered by .* with @instructions\(name=...\)"):
        instructions(name="brief")(other)


def no_annotation(context) -> str:  # type: ignore[no-untyped-def]
    return ""


def other_type(name: str) -> str:
    return name


def too_many(context: Context, name: str = "") -> str:
    return name


def variadic(*contexts: Context) -> str:
    return ""


def yielding(context: Context) -> Any:
    yield ""


@pytest.mark.parametrize("function", [no_annotation, other_type, too_many, variadic, yielding])
def test_what_takes_something_else_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"^instructions {function.__name__}: it "):
        instructions(function)
    assert registered_instructions() == {}
