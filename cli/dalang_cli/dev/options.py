"""What `dalang dev up` was asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The options of one `up`, handed to the supervisor."""

    with_operator: bool = True
    operator_arguments: tuple[str, ...] = ()
    hand_over: bool = False
    """Started by `up --detach`: stop if that process dies before it has seen everything ready (see up.py)."""
