"""The AgentPool's reconcile against a small cluster in memory: what it writes, and that it comes to rest."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_operator.kinds.agentpool.desired import Credentials, WorkerSettings, mounted_credentials
from dalang_operator.kinds.agentpool.plan import Settings
from dalang_operator.kinds.agentpool.reconcile import PoolFacts, PoolReconciler
from dalang_operator.kube.errors import AlreadyExists, Forbidden, Invalid, NotFound
from dalang_operator.kube.resources import Json, ObjectKey, Resource, key_of
from dalang_operator.runtime.cache import Cache

from tests.build import INSTALLATION, NOW, agent, awaiting_run, config_map, model, open_session, pool, session

KEY = ObjectKey("shop", "default")
WORKER = WorkerSettings(INSTALLATION, "dalang:1", "temporal:7233", "default", False, "info", "text")


@dataclass
class FakeKube:
    """Objects by plural and name."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    version: int = 100
    refuses: str | None = None

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        try:
            return self.objects[(resource.plural, name)]
        except KeyError:
            raise NotFound(name) from None

    async def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        yield [obj for (plural, _), obj in self.objects.items() if plural == resource.plural], "1"

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        name = body["metadata"]["name"]
        self.writes.append(("create", name))
        if (resource.plural, name) in self.objects:
            raise AlreadyExists(name)
        if self.refuses:
            raise Forbidden(self.refuses)
        return self._keep(resource, {**body, "metadata": {**body["metadata"], "uid": f"uid-{name}", "generation": 1}})

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json | list[Json], subresource: str | None = None
    ) -> Json:
        assert isinstance(body, dict), "statuses without nulls are merged"
        self.writes.append((str(subresource), name))
        current = self.objects[(resource.plural, name)]
        if subresource == "scale":
            return self._keep(resource, {**current, "spec": {**current["spec"], **body["spec"]}})
        status = {**current.get("status", {}), **body["status"]}
        return self._keep(resource, {**current, "status": status})

    async def apply(self, resource: Resource, namespace: str, name: str, body: Json) -> Json:
        self.writes.append(("apply", name))
        current = self.objects[(resource.plural, name)]
        return self._keep(resource, {**current, **body, "metadata": {**current["metadata"], **body["metadata"]}})

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        self.writes.append(("delete", name))
        del self.objects[(resource.plural, name)]

    def _keep(self, resource: Resource, obj: Json) -> Json:
        self.version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self.objects[(resource.plural, obj["metadata"]["name"])] = obj
        return obj


@dataclass
class FakeQueues:
    opened: int = 0

    async def count(self, query: str) -> int:
        assert "WorkflowType = 'AgentRun'" in query, "sessions are open for months"
        return self.opened


@dataclass
class World:
    kube: FakeKube = field(default_factory=FakeKube)
    queues: FakeQueues = field(default_factory=FakeQueues)
    cache: Cache = field(default_factory=Cache)
    facts: PoolFacts = field(default_factory=PoolFacts)
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.cache.models.put(model())
        self.cache.agents.put(agent())

    def has(self, plural: str, obj: Json) -> None:
        self.kube.objects[(plural, key_of(obj).name)] = obj
        self.applied({"agentpools": "AgentPool", "configmaps": "ConfigMap", "deployments": "Deployment"}[plural], obj)

    def applied(self, kind: str, obj: Json) -> None:
        self.cache.store(kind).put({**obj, "metadata": dict(obj["metadata"])})

    async def reconcile(self) -> list[tuple[str, str]]:
        """Reconcile until nothing is written any more, as the pool's own events would; returns what was written."""
        reconciler = PoolReconciler(
            self.kube,
            self.queues,
            self.cache,
            self.facts,
            Settings(WORKER, timedelta(minutes=10)),
            self.applied,
            lambda: self.now,
        )
        before = len(self.kube.writes)
        for _ in range(5):
            written = len(self.kube.writes)
            await reconciler.reconcile(KEY)
            if len(self.kube.writes) == written:
                return self.kube.writes[before:]
        raise AssertionError(f"it does not come to rest: {self.kube.writes[before:]}")

    def ready(self) -> Any:
        conditions = self.kube.objects[("agentpools", "default")]["status"]["conditions"]
        return next(found["reason"] for found in conditions if found["type"] == "Ready")


async def test_the_default_pool_comes_into_being_with_its_deployment() -> None:
    world = World()
    written = await world.reconcile()
    assert written == [("create", "default"), ("status", "default"), ("create", "dalang-default")]
    assert world.kube.objects[("deployments", "dalang-default")]["spec"]["replicas"] == 1


async def test_a_strangers_deployment_is_left_alone_and_said_once() -> None:
    world = World()
    world.has("agentpools", pool())
    stranger = {"metadata": {"name": "dalang-default", "namespace": "shop", "uid": "s", "resourceVersion": "5"}}
    world.kube.objects[("deployments", "dalang-default")] = stranger
    assert await world.reconcile() == [("status", "default")]
    assert world.ready() == "NameConflict"
    assert world.kube.objects[("deployments", "dalang-default")] is stranger


async def test_tools_change_the_copy_and_the_deployment_and_the_old_copy_goes() -> None:
    world = World()
    world.has("agentpools", pool(toolsFrom=[{"configMapRef": {"name": "tools"}}]))
    world.has("configmaps", config_map(a__py="1"))
    await world.reconcile()
    deployment = world.kube.objects[("deployments", "dalang-default")]
    settled = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
    world.has(
        "deployments",
        {**deployment, "status": settled, "metadata": {**deployment["metadata"], "resourceVersion": "500"}},
    )
    world.kube.version = 500
    changed = config_map(a__py="2")
    changed["metadata"]["resourceVersion"] = "501"
    world.has("configmaps", changed)
    written = await world.reconcile()
    assert [verb for verb, _ in written] == ["status", "create", "apply", "delete"]


@pytest.mark.parametrize(
    "forged",
    [pytest.param({"data": {"a.py": "evil"}}, id="other code"), pytest.param({"immutable": None}, id="mutable")],
)
async def test_a_copy_that_somebody_else_made_is_not_mounted_unless_it_is_the_same(forged: Json) -> None:
    world = World()
    world.has("agentpools", pool(toolsFrom=[{"configMapRef": {"name": "tools"}}]))
    world.has("configmaps", config_map(a__py="1"))
    await world.reconcile()
    (name,) = [name for plural, name in world.kube.objects if plural == "configmaps" and name != "tools"]
    copy = world.kube.objects["configmaps", name]
    world.kube.objects["configmaps", name] = {**copy, **forged}
    world.cache.deployments.drop(world.kube.objects.pop(("deployments", "dalang-default")))
    with pytest.raises(Invalid):
        await world.reconcile()
    assert world.ready() == "DeploymentFailed"
    assert ("deployments", "dalang-default") not in world.kube.objects
    world.kube.objects["configmaps", name] = copy
    await world.reconcile()
    assert ("deployments", "dalang-default") in world.kube.objects


async def test_what_the_api_server_refuses_is_said() -> None:
    world = World(kube=FakeKube(refuses="exceeded quota"))
    world.has("agentpools", pool())
    with pytest.raises(Forbidden):
        await world.reconcile()
    assert world.ready() == "DeploymentFailed"


async def test_the_last_worker_goes_only_when_temporal_has_nothing_left() -> None:
    world = World()
    await world.reconcile()
    world.queues.opened = 1
    world.now += timedelta(hours=1)
    assert await world.reconcile() == []
    world.queues.opened = 0
    world.now += timedelta(minutes=1)
    assert ("scale", "dalang-default") in await world.reconcile()
    assert world.kube.objects[("deployments", "dalang-default")]["spec"]["replicas"] == 0


async def test_the_workers_get_what_models_servers_and_retrievers_of_the_pool_need() -> None:
    """Not what a model needs that no agent of the pool names."""
    world = World()
    identity = {"workloadIdentity": {"audience": "anthropic", "anthropic": {}}}
    world.cache.models.put(
        model("gpt", secret="openai") | {"metadata": model()["metadata"] | {"resourceVersion": "11"}}
    )
    world.cache.models.put(model("claude", provider="Anthropic", auth=identity))
    world.cache.models.put(model("emb", secret="embeddings"))
    world.cache.models.put(model("stranger", secret="strangers"))
    fresh = {"resourceVersion": "11"}
    world.cache.agents.put(agent(metadata=fresh, fallbackModelRefs=[{"name": "claude"}, {"name": "not-there"}]))

    def secret(name: str) -> Json:
        return {"secretKeyRef": {"name": name, "key": "k"}}

    http = {
        "url": "http://w",
        "headers": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": secret("header")}],
        "bearerToken": secret("bearer"),
    }
    qdrant = {
        "url": "http://q",
        "collection": "c",
        "apiKey": secret("qdrant"),
        "embedding": {"modelRef": {"name": "emb"}},
    }
    servers = [
        {"name": "weather", "streamableHTTP": http},
        {"name": "files", "stdio": {"command": "c", "env": [{"name": "E", "valueFrom": secret("env")}]}},
    ]
    world.has("agentpools", pool(mcpServers=servers, retrievers=[{"name": "handbook", "qdrant": qdrant}]))
    await world.reconcile()
    deployment = world.kube.objects[("deployments", "dalang-default")]
    secrets = {"openai", "embeddings", "header", "bearer", "env", "qdrant"}
    assert mounted_credentials(deployment) == Credentials(frozenset(secrets), frozenset({"anthropic"}))


@pytest.mark.parametrize(
    ("obj", "is_mounted"),
    [
        pytest.param(session(summary={"modelRef": {"name": "small"}}), True, id="of an agent of the pool"),
        pytest.param(
            open_session(summary={"modelRef": {"name": "small"}}, agentRef={"name": "moved"}),
            True,
            id="whose workflow is on the pool",
        ),
        pytest.param(
            session(summary={"modelRef": {"name": "small"}}, agentRef={"name": "moved"}), False, id="of another pool"
        ),
        pytest.param(session(summary={"modelRef": {"name": "small"}, "enabled": False}), False, id="without summaries"),
    ],
)
async def test_the_workers_get_what_the_model_of_a_sessions_summary_needs(obj: Json, is_mounted: bool) -> None:
    world = World()
    world.cache.agents.put(agent("moved", poolRef={"name": "gpu"}))
    world.cache.models.put(model("small", secret="summaries"))
    world.cache.sessions.put(obj)
    world.has("agentpools", pool())
    await world.reconcile()
    mounted = mounted_credentials(world.kube.objects[("deployments", "dalang-default")])
    assert ("summaries" in mounted.secrets) is is_mounted


async def test_runs_that_await_approval_keep_no_worker_until_they_are_told_something() -> None:
    world = World()
    world.cache.runs.put(awaiting_run("r1", "r1-a"))
    world.queues.opened = 1
    await world.reconcile()
    world.now += timedelta(minutes=11)
    assert ("scale", "dalang-default") in await world.reconcile()
    deployments = world.kube.objects[("deployments", "dalang-default")]
    assert deployments["spec"]["replicas"] == 0
    world.cache.note_awake(ObjectKey("shop", "r1"), awaiting_run("r1", "r1-a"), NOW)
    assert ("scale", "dalang-default") in await world.reconcile()
    assert world.kube.objects[("deployments", "dalang-default")]["spec"]["replicas"] == 1


async def test_any_other_open_workflow_keeps_the_last_worker() -> None:
    world = World()
    world.cache.runs.put(awaiting_run("r1", "r1-a"))
    world.queues.opened = 2
    await world.reconcile()
    world.now += timedelta(minutes=11)
    assert ("scale", "dalang-default") not in await world.reconcile()
