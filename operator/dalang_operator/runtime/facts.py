"""What a reconcile was told beside the cache, by the object's key, until it is done with it."""

from typing import TypeVar

from dalang_operator.kube.resources import ObjectKey

_Fact = TypeVar("_Fact")


def forget(facts: dict[ObjectKey, set[_Fact]], key: ObjectKey, done: frozenset[_Fact]) -> None:
    """Take out what a reconcile has looked after; what came meanwhile stays."""
    left = facts.get(key, set()) - done
    if left:
        facts[key] = left
    else:
        facts.pop(key, None)
