"""A watch that breaks goes on; one that is refused ends."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from dalang_cli.approvals import cluster
from dalang_cli.approvals.cluster import Cluster
from dalang_cli.cluster import ClusterError


def named(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


class Broken(Cluster):
    """Its watches end as told; each time everything can be listed."""

    def __init__(self, *ends: ClusterError | None) -> None:
        self.ends = list(ends)
        self.begun: list[str] = []

    def list_all(self, *, everywhere: bool) -> tuple[list[dict[str, Any]], str]:
        return [named("listed", 7)], "9"

    def _events(self, version: str, *, everywhere: bool) -> Iterator[dict[str, Any]]:
        self.begun.append(version)
        newer = int(version) + 1
        yield {"type": "MODIFIED", "object": named("x", newer)}
        yield {"type": "DELETED", "object": named("y", newer + 1)}
        yield {"type": "BOOKMARK", "object": named("", newer + 2)}
        if end := self.ends.pop(0):
            raise end


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "AGAIN_SECONDS", 0.0)


def test_an_ended_watch_goes_on_from_where_it_was() -> None:
    broken = Broken(None, None)
    assert list(islice(broken.watch("1", everywhere=False), 2)) == [named("x", 2), named("x", 5)]
    assert broken.begun == ["1", "4"]


@pytest.mark.parametrize("status", [0, 410, 429, 503])
def test_a_broken_watch_lists_again(status: int) -> None:
    broken = Broken(ClusterError(status, "…"), None)
    assert list(islice(broken.watch("1", everywhere=False), 3)) == [named("x", 2), named("listed", 7), named("x", 10)]
    assert broken.begun == ["1", "9"]


def test_a_refused_watch_ends() -> None:
    watch = Broken(ClusterError(403, "eve may not")).watch("1", everywhere=False)
    with pytest.raises(ClusterError, match="eve may not"):
        list(watch)
