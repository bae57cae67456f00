"""The `@instructions` decorator: a Python function that makes an agent's system prompt."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from dalang.functions import RegisteredFunction, add, annotations, is_context

F = TypeVar("F", bound=Callable[..., Any])

_REGISTRY: dict[str, "InstructionsFunction"] = {}


@dataclass(frozen=True, kw_only=True)
class InstructionsFunction(RegisteredFunction):
    """A registered function that returns instructions."""


@overload
def instructions(function: F) -> F: ...
@overload
def instructions(*, name: str | None = None) -> Callable[[F], F]: ...
def instructions(function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """Register a function, sync or async, that makes an agent's instructions; an Agent names it in `instructionsFrom`.

    It takes a `Context` or nothing, and returns the text. It is called for each model call.

    Args:
        function: The function, when used as `@instructions`.
        name: The name Agents use, when it differs from the function's.

    Raises:
        TypeError: It takes something else.
        ValueError: Another function is registered under the same name.
    """
    if function is None:
        return lambda decorated: _register(decorated, name)
    return _register(function, name)


def registered_instructions() -> dict[str, InstructionsFunction]:
    """Return every instructions function registered in this process, by name."""
    return dict(_REGISTRY)


def _register(function: F, name: str | None) -> F:
    add(_REGISTRY, _describe(function, name or function.__name__), "instructions")
    return function


def _describe(function: Callable[..., Any], name: str) -> InstructionsFunction:
    what = f"instructions {name}"
    hints = annotations(function, what)
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        place = f"{what}: parameter {parameter.name}"
        if len(parameters) > 1 or not is_named or not is_context(hints.get(parameter.name), place):
            raise TypeError(f"{what}: it may take one parameter, annotated with Context, and nothing else")
    return InstructionsFunction(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        context_parameter=parameters[0].name if parameters else None,
    )
