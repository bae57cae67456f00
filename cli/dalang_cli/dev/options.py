"""What `dalang dev up` was asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The options of one `up`, handed to the supervisor."""

    with_operator: bool = True
    operator_arguments: tuple[str, ...] = ()
