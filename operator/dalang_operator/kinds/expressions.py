"""Approvals' `when`: whether the CEL in it compiles, and names only what there is. Pure."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dalang_operator.kube.resources import Json

if TYPE_CHECKING:
    from dalang_api.cel import Subject


def expression_problem(policies: Iterable[tuple[str, Json]], subject: "Subject") -> str | None:
    """Return which `when` does not compile and why, or None. Takes each approval of calls or answers with its field's path."""
    for path, policy in policies:
        if "when" not in policy:
            continue
        from dalang_api import cel  # on first use: most installations ask nobody

        try:
            cel.check(policy["when"], subject)
        except cel.CelError as error:
            return f"{path}.when does not compile: {error}"
    return None
