"""The cache keeps the newest state, whatever order it comes in."""

from datetime import timedelta

from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.cache import Cache, Store

from tests.build import NOW, approval, awaiting_run, run, started_run

POOL = ObjectKey("shop", "default")
KEY = ObjectKey("shop", "r1")


def versioned(version: int, **metadata: object) -> dict[str, object]:
    return run(metadata={"resourceVersion": str(version), **metadata})


def test_an_older_state_changes_nothing() -> None:
    store = Store("X")
    assert store.put(versioned(5))
    assert not store.put(versioned(4))
    assert not store.put(versioned(5))
    assert store.put(versioned(6))


def test_the_answer_to_a_write_that_comes_after_the_objects_end_brings_it_not_back() -> None:
    store = Store("X")
    store.put(versioned(5))
    store.drop(versioned(7))
    assert not store.put(versioned(6))
    assert store.get(KEY) is None
    assert store.put(versioned(8, uid="new"))


def test_the_late_end_of_an_older_object_does_not_drop_the_newer_one() -> None:
    store = Store("X")
    store.put(versioned(9, uid="new"))
    store.drop(versioned(7))
    assert store.get(KEY) is not None


def test_managed_fields_are_not_kept() -> None:
    store = Store("X")
    store.put(versioned(5, managedFields=[{"manager": "kubectl"}]))
    kept = store.get(KEY)
    assert kept is not None
    assert "managedFields" not in kept["metadata"]


def test_indexes_follow_their_objects() -> None:
    cache = Cache()
    cache.runs.put(run())
    assert cache.runs.by("waiting", "shop", "helper") == [KEY]
    cache.runs.put(started_run(metadata={"resourceVersion": "11"}))
    assert cache.runs.by("waiting", "shop", "helper") == []
    assert cache.runs.by("pool", "shop", "default") == [KEY]
    assert cache.runs.by("pool", "other", "default") == []
    cache.runs.drop(started_run(metadata={"resourceVersion": "12"}))
    assert cache.runs.count("pool", "shop", "default") == 0


def test_a_run_that_awaits_approval_needs_no_pool_until_it_is_told_something() -> None:
    cache = Cache()
    cache.runs.put(awaiting_run("r1", "r1-a", seq=1))
    assert not has_live_run(cache, POOL)
    assert cache.runs.count("awaiting", "shop", "default") == 1
    cache.note_awake(KEY, awaiting_run(seq=1), NOW)
    cache.note_awake(KEY, awaiting_run(seq=1), NOW + timedelta(minutes=1))
    assert cache.awake_since(KEY) == NOW, "told again of the same, it has waited since the first time"
    assert has_live_run(cache, POOL)
    assert not has_live_run(cache, ObjectKey("shop", "gpu"))
    assert not has_live_run(cache, ObjectKey("other", "default"))
    cache.runs.put(awaiting_run("r1", "r1-b", seq=2, metadata={"resourceVersion": "11"}))
    assert not has_live_run(cache, POOL), "it reported, and waits for another"
    assert cache.runs.by("approval", "shop", "r1-b") == [KEY]
    cache.runs.put(awaiting_run("r1", seq=2, metadata={"resourceVersion": "12"}, cancel=True))
    assert has_live_run(cache, POOL), "cancelled, it has to report"
    assert cache.runs.count("awaiting", "shop", "default") == 0


def test_arguments_of_approvals_are_not_kept() -> None:
    cache = Cache()
    cache.approvals.put(approval())
    kept = cache.approvals.get(ObjectKey("shop", "r1-a"))
    assert kept is not None
    assert "arguments" not in kept["spec"]
    assert cache.approvals.by("run", "shop", "r1") == [ObjectKey("shop", "r1-a")]
