"""What tools and instructions have in common: a named function that may ask for a `Context`."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dalang.context import Context


@dataclass(frozen=True, kw_only=True)
class RegisteredFunction:
    """A function of an author's, under the name that Agents use."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    context_parameter: str | None = None
    """The parameter that takes the `Context`, if it has one."""

    @property
    def reads_context(self) -> bool:
        """Whether it takes a `Context`."""
        return self.context_parameter is not None

    def with_context(self, arguments: dict[str, Any], context: Context) -> dict[str, Any]:
        """Return the keyword arguments, the context added where the function takes it."""
        return arguments if self.context_parameter is None else {**arguments, self.context_parameter: context}


R = TypeVar("R", bound=RegisteredFunction)


def add(registry: dict[str, R], described: R, kind: str) -> None:
    """Add a function to a registry.

    Raises:
        ValueError: Another function is registered under the same name.
    """
    known = registry.get(described.name)
    # The same function once more is its module, imported again.
    if known is not None and _place(known.function) != _place(described.function):
        raise ValueError(
            f"{kind} {described.name!r} is registered by {_place(known.function)} already; "
            f"give one of them another name with @{kind}(name=...)"
        )
    registry[described.name] = described


def annotations(function: Callable[..., Any], what: str) -> dict[str, Any]:
    """Return the resolved annotations; `what` names the function in errors.

    Raises:
        TypeError: The function yields, or an annotation cannot be resolved.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{what}: it yields; return one value instead, such as a list")
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{what}: an annotation cannot be resolved: {error}") from error


def is_context(hint: Any, what: str) -> bool:
    """Return whether a parameter of this annotation takes the context.

    Raises:
        TypeError: `Context` is only a part of the annotation, as in `list[Context]`.
    """
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if hint is Context:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = set(typing.get_args(hint))
        if members == {Context, types.NoneType}:
            return True
    if _mentions_context(hint):
        raise TypeError(f"{what} of type {hint}: a Context is given as it is; annotate it with Context alone")
    return False


def _mentions_context(hint: Any) -> bool:
    return hint is Context or any(_mentions_context(part) for part in typing.get_args(hint))


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
