"""The cache keeps the newest state, whatever order it comes in."""

from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.cache import Cache, Store

from tests.build import agent, approval, awaiting_run, model, pool, run, started_run

KEY = ObjectKey("shop", "r1")
POOL = ObjectKey("shop", "default")


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


def test_a_pool_is_needed_by_runs_that_run_there_or_could_start_there() -> None:
    cache = Cache()
    assert not cache.has_live_run(POOL)
    cache.runs.put(run())
    assert not cache.has_live_run(POOL), "its agent is not there"
    cache.agents.put(agent())
    assert not cache.has_live_run(POOL), "the agent's model is not there"
    cache.models.put(model())
    assert cache.has_live_run(POOL)
    cache.agents.drop(agent(metadata={"resourceVersion": "99"}))
    cache.runs.put(started_run(metadata={"resourceVersion": "11"}))
    assert cache.has_live_run(POOL), "a started one needs no agent any more"


def test_a_pool_is_needed_by_runs_that_can_reach_it() -> None:
    gpu = ObjectKey("shop", "gpu")
    cache = Cache()
    cache.models.put(model())
    cache.agents.put(agent(handoffs=[{"agentRef": {"name": "sales"}}]))
    cache.agents.put(agent("sales", tools=[{"name": "refunds", "agentRef": {"name": "refunds"}}]))
    cache.agents.put(agent("refunds", poolRef={"name": "gpu"}))
    cache.runs.put(run())
    assert not cache.has_live_run(gpu), "the run waits for the pool itself"
    cache.pools.put(pool("gpu"))
    assert cache.has_live_run(gpu)
    started = started_run(metadata={"resourceVersion": "11"})
    started["status"]["agents"] = [{"name": "helper", "pool": "default"}, {"name": "refunds", "pool": "gpu"}]
    cache.runs.put(started)
    cache.agents.drop(agent("refunds", metadata={"resourceVersion": "99"}))
    assert cache.has_live_run(gpu)
    assert cache.has_live_run(POOL)
    cache.runs.drop(started_run(metadata={"resourceVersion": "12"}))
    assert not cache.has_live_run(gpu)


def test_a_run_that_waits_for_a_config_map_keeps_no_pool_up() -> None:
    cache = Cache()
    cache.models.put(model())
    cache.agents.put(agent())
    waiting = run()
    waiting["status"]["conditions"][1]["reason"] = "ConfigMapNotFound"
    cache.runs.put(waiting)
    assert not cache.has_live_run(POOL)
    cache.runs.put(run("r2"))
    assert cache.has_live_run(POOL)


def test_a_run_that_awaits_approval_needs_no_pool_until_it_is_told_something() -> None:
    cache = Cache()
    cache.runs.put(awaiting_run("r1", "r1-a", seq=1))
    assert not cache.has_live_run(POOL)
    assert cache.runs.count("awaiting", "shop", "default") == 1
    cache.note_awake(KEY, awaiting_run(seq=1))
    assert cache.has_live_run(POOL)
    assert not cache.has_live_run(ObjectKey("shop", "gpu"))
    assert not cache.has_live_run(ObjectKey("other", "default"))
    cache.runs.put(awaiting_run("r1", "r1-b", seq=2, metadata={"resourceVersion": "11"}))
    assert not cache.has_live_run(POOL), "it reported, and waits for another"
    assert cache.runs.by("approval", "shop", "r1-b") == [KEY]
    cache.runs.put(awaiting_run("r1", seq=2, metadata={"resourceVersion": "12"}, cancel=True))
    assert cache.has_live_run(POOL), "cancelled, it has to report"
    assert cache.runs.count("awaiting", "shop", "default") == 0


def test_arguments_of_approvals_are_not_kept() -> None:
    cache = Cache()
    cache.approvals.put(approval())
    kept = cache.approvals.get(ObjectKey("shop", "r1-a"))
    assert kept is not None
    assert "arguments" not in kept["spec"]
    assert cache.approvals.by("run", "shop", "r1") == [ObjectKey("shop", "r1-a")]
