"""The `@tool` decorator: a Python function becomes a tool that a model can call.

The schema that the model sees is made once, at import, from the signature and a Google-style docstring; the same pydantic
model later parses what the model wrote. Importing a tool module registers its tools in this process.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError, create_model

from dalang.approval import Approval
from dalang.functions import RegisteredFunction, add, annotations, is_context

F = TypeVar("F", bound=Callable[..., Any])

_REGISTRY: dict[str, "ToolFunction"] = {}


class ArgumentsError(ValueError):
    """The model's arguments do not fit the function; the text is written for the model."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem} Call it again with arguments that match its schema.")
        self.problem = problem
        """What is wrong alone: for people."""


RETRYABLE_ATTEMPTS = 3
"""How often a tool that raises `ToolError(retryable=True)` is run in all, unless its `attempts` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class ToolFunction(RegisteredFunction):
    """A registered function, with what a model is told about it."""

    description: str
    arguments: type[BaseModel]
    """Parses the arguments. Its fields are called p0, p1 … (a parameter may be called `schema`), their aliases are the names."""
    schema: dict[str, Any]
    """JSON schema of the arguments, an object with one property per parameter."""
    once: bool = False
    """A lost worker must not run it again."""
    attempts: int = 1
    """How often it is run in all when it raises."""
    retryable_attempts: int = RETRYABLE_ATTEMPTS
    """How often in all when what it raises is a `ToolError(retryable=True)`."""
    approval: Approval | None = None
    """When a human has to approve a call of it."""

    def digest(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of what the model is told."""
        told = json.dumps([self.name, self.description, self.schema], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def parse(self, arguments: str) -> dict[str, Any]:
        """Return the keyword arguments for the function from what the model wrote; empty text means no arguments.

        Raises:
            ArgumentsError: It is no JSON, no object, or does not fit the signature.
        """
        try:
            parsed = self.arguments.model_validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            raise ArgumentsError(describe_misfit(self.name, error)) from error
        return {str(field.alias): getattr(parsed, place) for place, field in self.arguments.model_fields.items()}


@overload
def tool(function: F) -> F: ...
@overload
def tool(
    *,
    name: str | None = None,
    once: bool = False,
    attempts: int | None = None,
    approval: Approval | bool | None = None,
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    *,
    name: str | None = None,
    once: bool = False,
    attempts: int | None = None,
    approval: Approval | bool | None = None,
) -> F | Callable[[F], F]:
    """Register a function, sync or async, as a tool; the function itself stays as it is.

    Its docstring's first part tells the model what it does, its `Args:` section what each argument means. It may return a
    string, any JSON value, a `Handoff` or a `ToolResult`. An exception is told to the model. Sync tools run in threads,
    async ones on an event loop of their own, so neither can hold up the worker.

    A parameter annotated with `Context` is filled in and never shown to the model.

    Args:
        function: The function, when used as `@tool`.
        name: The name Agents use, when it differs from the function's.
        once: When its worker is lost in the middle, do not run it again: the model is told that the outcome is unknown.
        attempts: How often it is run in all when it raises, whatever that is, before the model is told. Absent: once, and
            three times where it raises `ToolError(retryable=True)`. A lost worker counts as an attempt.
        approval: When a human has to approve a call first, whatever Agents say; `True` means always.

    Raises:
        TypeError: A parameter cannot be described to a model (`*args`, `**kwargs`, positional-only, no annotation, or one
            that has no JSON schema), the function yields, or `approval` is neither an `Approval` nor true or false.
        ValueError: Another function is registered under the same name, or `attempts` is below 1 or contradicts `once`.
    """

    def register(decorated: F) -> F:
        described = _describe(decorated, name or decorated.__name__, once, attempts, approval)
        add(_REGISTRY, described, "tool")
        return decorated

    return register if function is None else register(function)


def registered_tools() -> dict[str, ToolFunction]:
    """Return every tool registered in this process, by name."""
    return dict(_REGISTRY)


def _describe(
    function: Callable[..., Any], name: str, once: bool, attempts: int | None, approval: Approval | bool | None
) -> ToolFunction:
    if attempts is not None and attempts < 1:
        raise ValueError(f"tool {name}: attempts is {attempts}; it has to be 1 or more")
    if once and attempts is not None and attempts > 1:
        raise ValueError(f"tool {name}: once=True and attempts={attempts} contradict each other")
    if not isinstance(approval, Approval | bool | None):
        raise TypeError(f"tool {name}: approval is {approval!r}; it has to be an Approval(…), or true or false")
    documentation = docstring_parser.parse(inspect.getdoc(function) or "")
    told = {parameter.arg_name: parameter.description for parameter in documentation.params}
    hints = annotations(function, f"tool {name}")
    context_parameter: str | None = None
    fields: dict[str, Any] = {}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: parameter {parameter} cannot be described to a model; use named parameters")
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: parameter {parameter.name} needs a type annotation")
        if is_context(hints[parameter.name], f"tool {name}: parameter {parameter.name}"):
            if context_parameter is not None:
                raise TypeError(f"tool {name}: both {context_parameter} and {parameter.name} take the Context")
            context_parameter = parameter.name
            continue
        fields[f"p{place}"] = _field(name, parameter, hints[parameter.name], told.get(parameter.name))
    arguments = create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
    schema = arguments.model_json_schema()
    del schema["title"]
    return ToolFunction(
        name=name,
        description=(documentation.description or "").strip(),
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        context_parameter=context_parameter,
        arguments=arguments,
        schema=schema,
        once=once,
        attempts=attempts or 1,
        retryable_attempts=1 if once else attempts or RETRYABLE_ATTEMPTS,
        approval=Approval() if approval is True else approval or None,
    )


def _field(tool_name: str, parameter: inspect.Parameter, hint: Any, description: str | None) -> Any:
    """Return the definition of one field for `create_model`."""
    try:
        TypeAdapter(hint).json_schema()
    except PydanticUserError as error:
        raise TypeError(
            f"tool {tool_name}: parameter {parameter.name} of type {hint} has no JSON schema: {error.message}"
        ) from error
    default = ... if parameter.default is parameter.empty else parameter.default
    # description=None would take away the one that an Annotated has.
    more: dict[str, Any] = {} if description is None else {"description": description}
    return hint, Field(default, alias=parameter.name, **more)


def describe_misfit(name: str, error: ValidationError) -> str:
    """Return what is wrong with the arguments of a tool, for the model: the first few problems, each with its place."""
    problems = "; ".join(
        f"{'.'.join(str(place) for place in problem['loc']) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)[:5]
    )
    return f"The arguments do not fit tool {name}: {problems}."
