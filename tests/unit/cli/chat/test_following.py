"""Each state of a run once, whatever becomes of the watch."""

from collections.abc import Iterator
from typing import Any

import pytest
from dalang_cli.chat.following import PATIENCE_SECONDS, RunDeleted, states
from dalang_cli.cluster import SILENCE_SECONDS, ClusterError, Kind, Silence

Json = dict[str, Any]


def run(version: int, *, uid: str = "1", seen: bool = True, ended: bool = False) -> Json:
    status = {"observedGeneration": 1 if seen else -1, **({"finishedAt": "2026-01-02T03:04:06Z"} if ended else {})}
    return {"metadata": {"name": "r", "uid": uid, "resourceVersion": str(version)}, "status": status}


def modified(found: Json) -> Json:
    return {"type": "MODIFIED", "object": found}


class Watches:
    """Each watch is a list of events, the last perhaps how it ends; and what reading the run gives."""

    def __init__(self, *watches: list[Json | ClusterError], found: Json | ClusterError | None = None) -> None:
        self.watches = list(watches)
        self.found = found
        self.asked: list[tuple[str, float]] = []
        """From which version, and for how much silence."""

    def events(self, kind: Kind, version: str, *, field_selector: str | None, silence_seconds: float) -> Iterator[Json]:
        assert field_selector == "metadata.name=r"
        self.asked.append((version, silence_seconds))
        for event in self.watches.pop(0):
            if isinstance(event, ClusterError):
                raise event
            yield event

    def read(self, kind: Kind, name: str) -> Json:
        if isinstance(self.found, ClusterError):
            raise self.found
        assert self.found is not None
        return self.found


def follow(watches: Watches, first: Json) -> list[Json | None]:
    return list(states(watches, first, sleep=lambda _: None))


def test_until_it_has_ended() -> None:
    watches = Watches([modified(run(2)), modified(run(3, ended=True)), modified(run(4))])
    assert follow(watches, run(1)) == [run(1), run(2), run(3, ended=True)]
    assert watches.asked == [("1", SILENCE_SECONDS)]


def test_a_run_that_has_ended_is_not_watched() -> None:
    assert follow(Watches(), run(1, ended=True)) == [run(1, ended=True)]


def test_silence_is_told_once_where_nobody_has_looked() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    watches = Watches([Silence()], [bookmark, Silence()], [modified(run(8, ended=True))])
    new = run(1, seen=False)
    assert follow(watches, new) == [new, None, run(8, ended=True)]
    assert watches.asked == [("1", PATIENCE_SECONDS), ("1", SILENCE_SECONDS), ("7", SILENCE_SECONDS)]


def test_an_ended_watch_goes_on_from_where_it_was() -> None:
    watches = Watches([modified(run(2))], [modified(run(3, ended=True))])
    assert follow(watches, run(1)) == [run(1), run(2), run(3, ended=True)]
    assert [version for version, _ in watches.asked] == ["1", "2"]


@pytest.mark.parametrize("status", [0, 410, 429, 503])
def test_after_a_broken_watch_it_is_read_again(status: int) -> None:
    watches = Watches([ClusterError(status, "…")], found=run(9, ended=True))
    assert follow(watches, run(1)) == [run(1), run(9, ended=True)]


@pytest.mark.parametrize(
    "watches",
    [
        pytest.param(Watches([{"type": "DELETED", "object": run(2)}]), id="deleted"),
        pytest.param(Watches([modified(run(2, uid="2"))]), id="another of its name"),
        pytest.param(Watches([ClusterError(410, "…")], found=ClusterError(404, "…")), id="deleted unseen"),
        pytest.param(Watches([ClusterError(410, "…")], found=run(2, uid="2")), id="another unseen"),
    ],
)
def test_deleted(watches: Watches) -> None:
    with pytest.raises(RunDeleted):
        follow(watches, run(1))


@pytest.mark.parametrize("watches", [Watches([ClusterError(403, "eve may not")])])
def test_a_refused_watch_ends(watches: Watches) -> None:
    with pytest.raises(ClusterError, match="eve may not"):
        follow(watches, run(1))
