"""What to do about one AgentPool. Pure: everything known stands in `Observed`.

The Deployment is created by POST with its replicas and applied afterwards without them, only while this pool owns it.
`status.build` is written before the Deployment is, so that a quick worker's catalogue finds its build.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dalang_api.v1alpha1.conditions import ConditionType, Reason
from dalang_api.v1alpha1.schema import seconds

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentpool.desired import (
    CAPABILITIES_MAX_BYTES,
    HASH_ANNOTATION,
    Credentials,
    WorkerSettings,
    build_of,
    capabilities_size,
    make_deployment,
    make_tools_copy,
    mounted_credentials,
)
from dalang_operator.kinds.expressions import expression_problem
from dalang_operator.kube.apply import covers
from dalang_operator.kube.resources import AGENT_POOLS, Json, ObjectKey, controller_uid, uid_of
from dalang_operator.kube.status import condition, find_condition, with_conditions
from dalang_operator.runtime.cache import deployment_name
from dalang_operator.runtime.references import DEFAULT_POOL

BUSY_QUEUE_SECONDS = 30.0
"""When to ask again whether a pool's task queue has emptied."""
CONFLICT_SECONDS = 60.0
"""When to look again whether a missing ConfigMap or a stranger's Deployment is still so; nothing watches those."""


LEARNING = timedelta(minutes=2)
"""How long a worker is kept, at the most, to tell the tools of a new build; without it an Agent would stay Unknown."""


@dataclass(frozen=True)
class Settings:
    """What of the operator's settings the plans need."""

    worker: WorkerSettings
    scale_to_zero_after: timedelta


@dataclass(frozen=True)
class Observed:
    """All that is known about one AgentPool."""

    key: ObjectKey
    settings: Settings
    now: datetime
    pool: Json | None
    deployment: Json | None = None
    is_foreign: bool = False
    """The Deployment's name is taken by an object that is not this pool's; `deployment` is None then."""
    sources: tuple[tuple[str, Json | None], ...] = ()
    """The ConfigMaps of `toolsFrom`, in order; None where there is none."""
    copies: tuple[Json, ...] = ()
    """Existing copies of tool modules; empty where nobody looked for them."""
    credentials: Credentials = field(default_factory=Credentials)
    """What the pool's MCP servers and retrievers need, and the AgentModels of those and of the pool's Agents."""
    has_agents: bool = False
    has_live_run: bool = False
    idle_since: datetime | None = None
    """Since when no run needs the pool."""
    build_since: datetime | None = None
    """Since when the pool is of its present build, as far as this process knows."""
    queue_is_busy: bool | None = None
    """Tasks wait on the pool's queue, or workflows are open there; None where Temporal was not asked."""


@dataclass(frozen=True)
class CreatePool:
    """Create `default` with an empty spec, so that everything in it follows the operator."""

    body: Json


@dataclass(frozen=True)
class CreateCopy:
    """Create the copy of the tool modules; harmless when it exists."""

    body: Json


@dataclass(frozen=True)
class DeleteCopy:
    """Delete a copy that no worker mounts."""

    name: str
    uid: str


@dataclass(frozen=True)
class CreateDeployment:
    """Create the Deployment. If the name was taken just now, the next reconcile sees by whom."""

    body: Json


@dataclass(frozen=True)
class ApplyDeployment:
    """Apply the Deployment to the one of that uid."""

    body: Json


@dataclass(frozen=True)
class Scale:
    """Set the Deployment's replicas."""

    replicas: int
    reason: str


Action = CreatePool | CreateCopy | DeleteCopy | CreateDeployment | ApplyDeployment | Scale | WriteStatus


@dataclass(frozen=True)
class Plan:
    """Actions in order, and when to look again."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def plan(observed: Observed) -> Plan:
    """Return what to do."""
    pool = observed.pool
    if pool is None:
        is_wanted = observed.key.name == DEFAULT_POOL and observed.has_agents
        return Plan((CreatePool(_default_pool(observed.key)),) if is_wanted else ())
    if pool["metadata"].get("deletionTimestamp"):
        return Plan()
    if observed.is_foreign:
        return Plan(_write_status(observed, pool, None), CONFLICT_SECONDS)
    if any(source is None for _, source in observed.sources) or _spec_problem(pool):
        # What runs goes on running, and is still scaled, with the tools it has.
        steps = _plan_replicas(observed, pool)
        return Plan(_write_status(observed, pool, None) + steps.actions, CONFLICT_SECONDS)
    copy = make_tools_copy(pool, [source for _, source in observed.sources if source])
    build = build_of(pool, copy, observed.settings.worker)
    rollout = _plan_deployment(observed, pool, copy, build)
    scaling = _plan_replicas(observed, pool)
    return Plan(
        _write_status(observed, pool, build) + rollout + scaling.actions + _plan_cleanup(observed, copy),
        scaling.requeue_after,
    )


# ── The Deployment ─────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_deployment(observed: Observed, pool: Json, copy: Json | None, build: str) -> tuple[Action, ...]:
    desired = _desired_deployment(observed, pool, copy, build)
    current = observed.deployment
    make_copy: tuple[Action, ...] = (CreateCopy(copy),) if copy else ()
    if current is None:
        desired["spec"]["replicas"] = wanted_replicas(observed)
        return (*make_copy, CreateDeployment(desired))
    # Items of a list come without apiVersion and kind, so only the rest is compared.
    same = all(covers(current[part], desired[part]) for part in ("metadata", "spec"))
    if same and _hash(current) == _hash(desired):
        return ()
    desired["metadata"]["uid"] = uid_of(current)
    return (*make_copy, ApplyDeployment(desired))


def _desired_deployment(observed: Observed, pool: Json, copy: Json | None, build: str) -> Json:
    """Return the Deployment with the credentials it needs, and those mounted already unless something else rolls.

    So a new Secret rolls the pods once and one no longer named rolls nothing: a run may still use it by its snapshot.
    """
    copy_name = copy["metadata"]["name"] if copy else None

    def made(credentials: Credentials) -> Json:
        settings = observed.settings.worker
        return make_deployment(pool, settings, build=build, tools_copy=copy_name, credentials=credentials)

    if observed.deployment:
        mounted = mounted_credentials(observed.deployment)
        if _hash(made(mounted)) == _hash(observed.deployment):
            return made(mounted | observed.credentials)
    return made(observed.credentials)


def _hash(deployment: Json) -> str | None:
    digest: str | None = deployment["metadata"].get("annotations", {}).get(HASH_ANNOTATION)
    return digest


def _plan_cleanup(observed: Observed, copy: Json | None) -> tuple[Action, ...]:
    if not observed.deployment or not is_rolled_out(observed.deployment):
        return ()
    kept = copy["metadata"]["name"] if copy else None
    return tuple(
        DeleteCopy(found["metadata"]["name"], uid_of(found))
        for found in observed.copies
        if found["metadata"]["name"] != kept
    )


def is_rolled_out(deployment: Json) -> bool:
    """Return whether no pod of an older template is left."""
    status = deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("replicas", 0) == status.get("updatedReplicas", 0) == deployment["spec"].get("replicas", 1)
    )


# ── Replicas ───────────────────────────────────────────────────────────────────────────────────────────────────────


def replicas_of(deployment: Json | None) -> int:
    """Return how many replicas a Deployment asks for; 0 where there is none."""
    return int(deployment["spec"].get("replicas", 1)) if deployment else 0


def min_replicas(pool: Json) -> int:
    """Return the fewest workers a pool has."""
    return int(pool.get("spec", {}).get("scaling", {}).get("minReplicas", 0))


def needs_worker(observed: Observed) -> bool:
    """Return whether somebody waits for a worker: a run, or Agents that want to know what tools this build has."""
    return observed.has_live_run or bool(observed.queue_is_busy) or _learning_left(observed) > 0


def wanted_replicas(observed: Observed) -> int:
    """Return how many workers there should be now.

    One while it is needed; none once it has not been for `scaleToZeroAfter`; what there is in between, so that neither
    a pause between runs nor a restart of the operator starts or stops anything.
    """
    assert observed.pool is not None, "asked of a pool"
    current = replicas_of(observed.deployment)
    least = min_replicas(observed.pool)
    if needs_worker(observed):
        return max(least, current, 1)
    if _idle_left(observed) > 0:
        return max(least, current)
    return least


def wants_zero(observed: Observed) -> bool:
    """Return whether the pool is about to lose its last worker, for which Temporal must agree that nothing is left."""
    return (
        observed.pool is not None
        and observed.deployment is not None
        and replicas_of(observed.deployment) > 0
        and wanted_replicas(observed) == 0
    )


def _plan_replicas(observed: Observed, pool: Json) -> Plan:
    wanted = wanted_replicas(observed)
    requeue_after = None
    if observed.queue_is_busy:
        requeue_after = BUSY_QUEUE_SECONDS
    elif not observed.has_live_run and wanted > min_replicas(pool):
        requeue_after = max(_idle_left(observed), _learning_left(observed), 1.0)
    current = replicas_of(observed.deployment)
    if observed.deployment is None or wanted == current:
        return Plan(requeue_after=requeue_after)
    reason = "a worker is needed" if wanted > current else "no run has needed it for a while"
    return Plan((Scale(wanted, reason),), requeue_after)


def _idle_left(observed: Observed) -> float:
    """Seconds until the pool has been idle for long enough."""
    assert observed.pool is not None, "asked of a pool"
    own = observed.pool.get("spec", {}).get("scaling", {}).get("scaleToZeroAfter")
    patience = timedelta(seconds=seconds(own)) if own else observed.settings.scale_to_zero_after
    return _left(patience, observed.idle_since, observed.now)


def _learning_left(observed: Observed) -> float:
    """Seconds a worker may still take to tell the tools of this build; 0 when they are known, or nobody asks."""
    status = (observed.pool or {}).get("status", {})
    catalogue = status.get("catalogue", {})
    is_known = bool(catalogue) and catalogue.get("build") == status.get("build")
    if is_known or not observed.has_agents:
        return 0.0
    return _left(LEARNING, observed.build_since, observed.now)


def _left(patience: timedelta, since: datetime | None, now: datetime) -> float:
    return max((patience - (now - since if since else timedelta())).total_seconds(), 0.0)


# ── Status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_status(observed: Observed, pool: Json, build: str | None) -> tuple[Action, ...]:
    """Return the status write; the caller skips it when nothing differs. No build means: keep the one there is."""
    before = pool.get("status", {})
    status: Json = {
        **before,
        "observedGeneration": pool["metadata"]["generation"],
        "replicas": wanted_replicas(observed),
        "readyReplicas": (observed.deployment or {}).get("status", {}).get("readyReplicas", 0),
    }
    if build:
        status["build"] = build
    status["conditions"] = with_conditions(
        before.get("conditions", []),
        [_ready(observed, pool, status)],
        pool["metadata"]["generation"],
        observed.now,
    )
    return (WriteStatus(status),)


def _ready(observed: Observed, pool: Json, status: Json) -> Json:
    missing = [name for name, source in observed.sources if source is None]
    if missing:
        message = f"toolsFrom names {_listed('ConfigMap', missing)}, not there in namespace {observed.key.namespace}"
        return condition(ConditionType.READY, "False", Reason.CONFIG_MAP_NOT_FOUND, message)
    if problem := _spec_problem(pool):
        return condition(ConditionType.READY, "False", Reason.INVALID_SPEC, problem)
    if observed.is_foreign:
        message = f"Deployment {deployment_name(observed.key.name)} exists and is not this pool's"
        return condition(ConditionType.READY, "False", Reason.NAME_CONFLICT, message)
    loaded = find_condition(pool, ConditionType.TOOLS_LOADED)
    is_of_build = status.get("catalogue", {}).get("build") == status.get("build")
    if loaded and loaded["status"] == "False" and is_of_build:
        return condition(ConditionType.READY, "False", Reason.IMPORT_FAILED, loaded["message"])
    failure = _replica_failure(observed.deployment)
    if failure:
        return condition(ConditionType.READY, "False", Reason.DEPLOYMENT_FAILED, failure)
    wanted, ready = status["replicas"], status["readyReplicas"]
    if ready:
        return condition(ConditionType.READY, "True", Reason.AVAILABLE, "A worker is ready")
    if wanted:
        return condition(ConditionType.READY, "False", Reason.SCALING, "A worker is wanted and none is ready yet")
    return condition(ConditionType.READY, "True", Reason.SCALED_TO_ZERO, "Nothing to do; the next run starts a worker")


def _spec_problem(pool: Json) -> str | None:
    """Return why no worker is made of this spec, or None. Those there are go on with what they were made of."""
    size = capabilities_size(pool)
    if size > CAPABILITIES_MAX_BYTES:
        return f"mcpServers, retrievers or approvals weigh {size} bytes; {CAPABILITIES_MAX_BYTES} are allowed"
    floors = pool.get("spec", {}).get("approvals", ())
    return expression_problem(((f"approvals[{index}]", floor) for index, floor in enumerate(floors)), "call")


def failed_status(pool: Json, message: str, now: datetime) -> Json:
    """Return the status of a pool whose Deployment or copy the API server refused."""
    failed = [condition(ConditionType.READY, "False", Reason.DEPLOYMENT_FAILED, message)]
    status = pool.get("status", {})
    generation = pool["metadata"]["generation"]
    conditions = with_conditions(status.get("conditions", []), failed, generation, now)
    return {**status, "observedGeneration": generation, "conditions": conditions}


def _replica_failure(deployment: Json | None) -> str | None:
    for found in (deployment or {}).get("status", {}).get("conditions", ()):
        if found["type"] == "ReplicaFailure" and found["status"] == "True":
            message: str = found.get("message", "")
            return message
    return None


def _listed(noun: str, names: list[str]) -> str:
    return f"{noun} {names[0]}" if len(names) == 1 else f"{noun}s {', '.join(names)}"


def _default_pool(key: ObjectKey) -> Json:
    return {
        "apiVersion": AGENT_POOLS.api_version,
        "kind": AGENT_POOLS.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": {},
    }


def is_ours(deployment: Json, pool: Json) -> bool:
    """Return whether the pool is the Deployment's controller."""
    return controller_uid(deployment) == uid_of(pool)
