"""What a function is told of the run that calls it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Context:
    """The run a function is called in. A parameter annotated with it is filled in, and never shown to the model.

    `context["user_name"]` and `context.get("user_name")` read its variables. To set some, return a `ToolResult`. In a
    test of your own: `Context({"user_name": "Ada"})`.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    """The run's context variables, as JSON values; read-only."""
    idempotency_key: str = ""
    """The same each time this one tool call is made, also on another worker, and for no other call. Empty for instructions."""
    run: str = ""
    """Name of the AgentRun."""
    namespace: str = ""
    agent: str = ""
    """Name of the agent that calls."""
    session: str | None = None
    """Name of the AgentSession that the run belongs to; None: it stands for itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", MappingProxyType(dict(self.variables)))

    def __getitem__(self, name: str) -> Any:
        """Return the variable of that name.

        Raises:
            KeyError: The run has none of that name.
        """
        return self.variables[name]

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the variable of that name, or else the default."""
        return self.variables.get(name, default)
