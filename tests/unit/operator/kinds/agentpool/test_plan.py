"""What is done about an AgentPool in every state it and its Deployment can be in."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentpool.desired import (
    Credentials,
    WorkerSettings,
    build_of,
    make_deployment,
    make_tools_copy,
    mounted_credentials,
)
from dalang_operator.kinds.agentpool.plan import (
    Action,
    ApplyDeployment,
    CreateCopy,
    CreateDeployment,
    CreatePool,
    DeleteCopy,
    Observed,
    Plan,
    Scale,
    Settings,
    plan,
    wants_zero,
)
from dalang_operator.kube.resources import Json, ObjectKey

from tests.build import INSTALLATION, NOW, condition, config_map, pool

WORKER = WorkerSettings(INSTALLATION, "dalang:1", "temporal:7233", "default", False, "info", "text")
SETTINGS = Settings(WORKER, timedelta(minutes=10))
JUST_NOW = NOW - timedelta(minutes=1)
LONG = NOW - timedelta(minutes=11)


def deployment(
    owner: Json, *, replicas: int, ready: int = 0, credentials: Credentials | None = None, copy: Json | None = None
) -> Json:
    """The pool's Deployment as the API server has it: applied, defaulted, rolled out."""
    made = make_deployment(
        owner,
        WORKER,
        build=build_of(owner, copy, WORKER),
        tools_copy=copy["metadata"]["name"] if copy else None,
        credentials=credentials or Credentials(),
    )
    made["metadata"] |= {"uid": "uid-deployment", "generation": 1, "resourceVersion": "20"}
    made["spec"]["replicas"] = replicas
    made["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    made["status"] = {
        "observedGeneration": 1,
        "replicas": replicas,
        "updatedReplicas": replicas,
        "readyReplicas": ready,
    }
    return made


def observed(owner: Json | None = None, **facts: Any) -> Observed:
    defaults = {"has_agents": True, "idle_since": JUST_NOW, "build_since": LONG}
    return Observed(key=ObjectKey("shop", "default"), settings=SETTINGS, now=NOW, pool=owner, **{**defaults, **facts})


def known(**spec: Any) -> Json:
    """A pool whose present build has told its tools."""
    made = pool(**spec)
    build = build_of(made, None, WORKER)
    made["status"] = {"build": build, "catalogue": {"build": build, "tools": []}}
    return made


def summary(action: Action) -> Any:
    match action:
        case WriteStatus(status):
            return ("status", status["conditions"][0]["reason"], status["replicas"], status["readyReplicas"])
        case CreateDeployment(body):
            return ("create", body["spec"]["replicas"])
        case ApplyDeployment(body):
            return ("apply", body["metadata"]["uid"], "replicas" in body["spec"])
        case CreatePool(body):
            return ("create pool", body["spec"])
        case CreateCopy(body):
            return ("copy", body["data"])
        case _:
            return action


RUNNING = {"has_live_run": True, "idle_since": None}
ZERO = Scale(0, "no run has needed it for a while")
ONE = Scale(1, "a worker is needed")


@pytest.mark.parametrize(
    ("given", "actions"),
    [
        pytest.param(observed(None), [("create pool", {})], id="default is made for the Agents that need it"),
        pytest.param(observed(None, has_agents=False), [], id="and not without any"),
        pytest.param(
            replace(observed(None), key=ObjectKey("shop", "gpu")), [], id="no other pool is made, however many name it"
        ),
        pytest.param(
            observed(pool(), build_since=NOW),
            [("status", "Scaling", 1, 0), ("create", 1)],
            id="a new pool gets one worker, to learn its tools; its build is written first",
        ),
        pytest.param(
            observed(pool(), has_agents=False, build_since=NOW),
            [("status", "ScaledToZero", 0, 0), ("create", 0)],
            id="a new pool without Agents gets none",
        ),
        pytest.param(
            observed(known(), **RUNNING), [("status", "Scaling", 1, 0), ("create", 1)], id="a run waits: one worker"
        ),
        pytest.param(
            observed(known(scaling={"minReplicas": 2}), **RUNNING),
            [("status", "Scaling", 2, 0), ("create", 2)],
            id="no fewer than minReplicas",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1, ready=1), **RUNNING),
            [("status", "Available", 1, 1)],
            id="all is well: only the status, which is skipped when equal",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=0), **RUNNING),
            [("status", "Scaling", 1, 0), ONE],
            id="a run wakes the pool, also when somebody scaled it to zero by hand",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=3, ready=3), **RUNNING),
            [("status", "Available", 3, 3)],
            id="more workers by hand stay while they are needed",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1, ready=1)),
            [("status", "Available", 1, 1)],
            id="idle for a minute: the worker stays",
        ),
        pytest.param(
            observed(
                known(), deployment=deployment(known(), replicas=1, ready=1), idle_since=LONG, queue_is_busy=False
            ),
            [("status", "Available", 0, 1), ZERO],
            id="idle for eleven minutes and Temporal has nothing: zero",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1, ready=1), idle_since=LONG, queue_is_busy=True),
            [("status", "Available", 1, 1)],
            id="idle, but Temporal has something left: it stays",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=0), queue_is_busy=True),
            [("status", "Scaling", 1, 0), ONE],
            id="at zero with tasks in the queue: woken",
        ),
        pytest.param(
            observed(pool(), deployment=deployment(pool(), replicas=1), idle_since=LONG, queue_is_busy=False),
            [("status", "ScaledToZero", 0, 0), ZERO],
            id="a worker that never tells its tools is not waited for",
        ),
        pytest.param(
            observed(pool(), deployment=deployment(pool(), replicas=0), idle_since=LONG, build_since=JUST_NOW),
            [("status", "Scaling", 1, 0), ONE],
            id="a new build wakes a pool that was idle for long, to tell its tools",
        ),
        pytest.param(
            observed(
                known(scaling={"minReplicas": 1}), deployment=deployment(known(), replicas=1, ready=1), idle_since=LONG
            ),
            [("status", "Available", 1, 1)],
            id="minReplicas is never undercut",
        ),
        pytest.param(
            observed(known(image="shop:2"), deployment=deployment(known(), replicas=4, ready=4), **RUNNING),
            [("status", "Available", 4, 4), ("apply", "uid-deployment", False)],
            id="a new image is applied to the Deployment of that uid, without replicas",
        ),
        pytest.param(
            observed(known(), is_foreign=True, **RUNNING),
            [("status", "NameConflict", 1, 0)],
            id="a stranger's Deployment is not touched",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=0), sources=(("tools", None),), **RUNNING),
            [("status", "ConfigMapNotFound", 1, 0), ONE],
            id="a missing ConfigMap: the present Deployment goes on, and is scaled",
        ),
        pytest.param(observed(known(metadata={"deletionTimestamp": "x"})), [], id="a pool being deleted is left alone"),
    ],
)
def test_plan(given: Observed, actions: list[Any]) -> None:
    assert [summary(action) for action in plan(given).actions] == actions
    assert plan(given) == plan(given)


def test_tools_are_copied_before_the_deployment_names_them() -> None:
    owner = known(toolsFrom=[{"configMapRef": {"name": "tools"}}])
    source = config_map(weather__py="def f(): ...")
    given = observed(owner, sources=(("tools", source),), **RUNNING)
    _, copy, create = plan(given).actions
    assert summary(copy) == ("copy", {"weather.py": "def f(): ..."})
    assert isinstance(create, CreateDeployment)
    made = make_tools_copy(owner, [source])
    assert made is not None
    pod = create.body["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "tools", "configMap": {"name": made["metadata"]["name"]}}]


def test_copies_that_no_worker_mounts_are_deleted_once_the_rollout_is_over() -> None:
    owner = known(toolsFrom=[{"configMapRef": {"name": "tools"}}])
    source = config_map(weather__py="new")
    copy = make_tools_copy(owner, [source])
    assert copy is not None
    copies = (
        {"metadata": {"name": "dalang-default-tools-old", "uid": "u1"}},
        {"metadata": {**copy["metadata"], "uid": "u2"}},
    )
    given = observed(
        owner,
        sources=(("tools", source),),
        copies=copies,
        deployment=deployment(owner, replicas=1, ready=1, copy=copy),
        **RUNNING,
    )
    assert plan(given).actions[1:] == (DeleteCopy("dalang-default-tools-old", "u1"),)
    assert given.deployment is not None
    rolling = {**given.deployment, "status": {**given.deployment["status"], "updatedReplicas": 0}}
    assert plan(replace(given, deployment=rolling)).actions[1:] == ()


def needs(*secrets: str, audiences: tuple[str, ...] = ()) -> Credentials:
    return Credentials(frozenset(secrets), frozenset(audiences))


@pytest.mark.parametrize(
    ("owner", "needed", "mounted"),
    [
        pytest.param(known(), needs("a"), None, id="what is needed is mounted"),
        pytest.param(known(), needs("b"), needs("a", "b"), id="a Secret more rolls the pods"),
        pytest.param(known(), needs(), None, id="a Secret less rolls nothing"),
        pytest.param(known(), needs(audiences=("x",)), needs("a", audiences=("x",)), id="a token more rolls the pods"),
        pytest.param(known(image="x"), needs("b"), needs("b"), id="when something else rolls, what nobody names goes"),
    ],
)
def test_credentials(owner: Json, needed: Credentials, mounted: Credentials | None) -> None:
    """A run may still use a Secret that no model names any more, by its snapshot."""
    with_a = deployment(known(), replicas=1, ready=1, credentials=needs("a"))
    steps = plan(observed(owner, deployment=with_a, credentials=needed, **RUNNING))
    applied = [action for action in steps.actions if isinstance(action, ApplyDeployment)]
    assert [mounted_credentials(action.body) for action in applied] == ([mounted] if mounted else [])


def test_capabilities_that_no_process_could_be_started_with_are_not_rolled_out() -> None:
    """What runs goes on running."""
    server = {"name": "s", "stdio": {"command": "c", "args": ["x" * 4096] * 30}}
    owner = {**known(), "spec": {"mcpServers": [server]}}
    given = observed(owner, deployment=deployment(known(), replicas=1, ready=1), **RUNNING)
    assert [summary(action) for action in plan(given).actions] == [("status", "InvalidSpec", 1, 1)]


def test_a_field_edited_by_hand_is_applied_again() -> None:
    edited = deployment(known(), replicas=1, ready=1)
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    given = observed(known(), deployment=edited, **RUNNING)
    assert [summary(action) for action in plan(given).actions][1:] == [("apply", "uid-deployment", False)]


def test_tools_that_do_not_import_make_the_pool_not_ready_while_they_are_of_this_build() -> None:
    owner = known()
    owner["status"]["conditions"] = [condition("ToolsLoaded", "False", "ImportFailed", "module x: SyntaxError")]
    ready = deployment(owner, replicas=1, ready=1)
    assert summary(plan(observed(owner, deployment=ready, **RUNNING)).actions[0]) == ("status", "ImportFailed", 1, 1)
    owner["status"]["catalogue"]["build"] = "the one before"
    assert summary(plan(observed(owner, deployment=ready, **RUNNING)).actions[0]) == ("status", "Available", 1, 1)


def test_what_kubernetes_says_of_missing_pods_is_passed_on() -> None:
    failing = deployment(known(), replicas=1)
    failing["status"]["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    [write, *_] = plan(observed(known(), deployment=failing, **RUNNING)).actions
    assert isinstance(write, WriteStatus)
    assert write.status["conditions"][0]["message"] == "exceeded quota"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1), idle_since=NOW - timedelta(minutes=4)),
            Plan(requeue_after=360.0),
            id="when it will have been idle for long enough",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1), idle_since=LONG, queue_is_busy=True),
            Plan(requeue_after=30.0),
            id="soon, while Temporal has something left",
        ),
        pytest.param(
            observed(known(), deployment=deployment(known(), replicas=1), **RUNNING),
            Plan(),
            id="never while a run needs it: its end is an event",
        ),
    ],
)
def test_when_a_pool_is_looked_at_again(given: Observed, expected: Plan) -> None:
    assert plan(given).requeue_after == expected.requeue_after


def test_temporal_is_asked_only_before_the_last_worker_goes() -> None:
    idle = observed(known(), deployment=deployment(known(), replicas=1, ready=1), idle_since=LONG)
    assert wants_zero(idle)
    assert not wants_zero(replace(idle, idle_since=JUST_NOW))
    assert not wants_zero(replace(idle, has_live_run=True))
    assert not wants_zero(replace(idle, deployment=deployment(known(), replicas=0)))


def test_the_written_status_is_a_fixpoint() -> None:
    given = observed(known(), deployment=deployment(known(), replicas=1, ready=1), **RUNNING)
    [write] = plan(given).actions
    assert isinstance(write, WriteStatus)
    assert given.pool is not None
    later = replace(given, pool={**given.pool, "status": write.status}, now=NOW + timedelta(hours=1))
    assert plan(later).actions == (write,)


@pytest.mark.parametrize("when", ["args.amount >", "output.amount > 1", "tool.readonly"])
def test_approvals_that_do_not_compile_are_said_and_the_workers_keep_those_there_were(when: str) -> None:
    owner = {**known(), "spec": {"approvals": [{"tools": ["*"]}, {"tools": ["pay"], "when": when}]}}
    steps = plan(observed(owner, deployment=deployment(known(), replicas=1, ready=1)))
    [write] = steps.actions
    assert isinstance(write, WriteStatus)
    [ready] = write.status["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert ready["message"].startswith("approvals[1].when does not compile: ")
