"""Approvals' `when`: whether the CEL in it compiles. Pure."""

from collections.abc import Iterable

from dalang_operator.kube.resources import Json


def expression_problem(policies: Iterable[tuple[str, Json]]) -> str | None:
    """Return which `when` does not compile and why, or None. Takes each approval with the path of its field."""
    for path, policy in policies:
        if "when" not in policy:
            continue
        from dalang_api import cel  # on first use: most installations ask nobody

        try:
            cel.check(policy["when"])
        except cel.CelError as error:
            return f"{path}.when does not compile: {error}"
    return None
