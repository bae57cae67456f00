"""Which object a name on the command line means, where it may be one of two kinds: `NAME` or, as for kubectl, `KIND/NAME`."""

from collections.abc import Sequence
from typing import Protocol

from dalang_api import GROUP

from dalang_cli.cluster import ClusterError, Json, Kind

LISTED_MAX = 10
"""How many names are told where there is none of that name."""


class NameProblem(Exception):
    """The name means nothing, or two things; the text says what to write instead."""


class ReadPort(Protocol):
    """What finding an object needs of the cluster."""

    namespace: str

    def read(self, kind: Kind, name: str) -> Json: ...

    def read_all(self, kind: Kind) -> tuple[list[Json], str]: ...


def find(cluster: ReadPort, given: str, kinds: Sequence[Kind]) -> tuple[Kind, Json]:
    """Return the object of one of these kinds that is meant, and its kind.

    Raises:
        NameProblem: There is none, or one of each kind.
        ClusterError: The API server refused.
    """
    prefix, separator, name = given.rpartition("/")
    if separator:
        kinds = [kind for kind in kinds if prefix.lower() in _words(kind)] or _unknown(prefix, kinds)
    found: list[tuple[Kind, Json]] = []
    refusals: list[ClusterError] = []
    for kind in kinds:
        try:
            found.append((kind, cluster.read(kind, name)))
        except ClusterError as error:
            refusals.append(error)
    if len(found) > 1:
        choices = " or ".join(f"{_word(kind)}/{name}" for kind in kinds)
        raise NameProblem(f"{name} is both an {' and an '.join(kind.KIND for kind in kinds)}: write {choices}")
    if found:
        return found[0]
    for refusal in refusals:
        if refusal.status != 404 or "not found" not in str(refusal):
            raise refusal
    kinds_words = " or ".join(kind.KIND for kind in kinds)
    there_is = "; ".join(words for kind in kinds if (words := _listed(cluster, kind)))
    raise NameProblem(f"there is no {kinds_words} {name!r} in namespace {cluster.namespace}. There is: {there_is}")


def _words(kind: Kind) -> set[str]:
    """Return all that stands for a kind before the slash."""
    singular = kind.KIND.lower()
    words = {singular, kind.PLURAL, kind.SHORT, f"{kind.PLURAL}.{GROUP}", _word(kind), f"{_word(kind)}s"}
    return {word for word in words if word}


def _word(kind: Kind) -> str:
    """Return the shortest word: `run`, `session`, `agent`."""
    return kind.KIND.lower().removeprefix("agent") or "agent"


def _unknown(prefix: str, kinds: Sequence[Kind]) -> list[Kind]:
    choices = " or ".join(f"{_word(kind)}/NAME" for kind in kinds)
    raise NameProblem(f"{prefix!r} is no kind that is meant here: write {choices}")


def _listed(cluster: ReadPort, kind: Kind) -> str:
    try:
        names = [each["metadata"]["name"] for each in cluster.read_all(kind)[0]]
    except ClusterError:
        return ""  # who may not list them is not told
    more = f", and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return f"{kind.KIND} {', '.join(names[:LISTED_MAX])}{more}" if names else f"no {kind.KIND}"
