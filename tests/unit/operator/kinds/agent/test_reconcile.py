"""The Agent's reconcile: what it reads and writes."""

import asyncio
from dataclasses import dataclass, field

import pytest
from dalang_operator.kinds.agent.reconcile import AgentReconciler
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import Json, ObjectKey, PatchBody, Resource
from dalang_operator.runtime.cache import Cache

from tests.build import NOW, agent, config_map, model

KEY = ObjectKey("shop", "helper")
PROMPTS = ObjectKey("shop", "prompts")


@dataclass
class FakeKube:
    """ConfigMaps to read, and the reasons that are written."""

    config_maps: dict[ObjectKey, Json] = field(default_factory=dict)
    reads: int = 0
    reasons: list[str] = field(default_factory=list)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.reads += 1
        try:
            return self.config_maps[ObjectKey(str(namespace), name)]
        except KeyError:
            raise NotFound(name) from None

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json:
        assert isinstance(body, dict)
        [ready] = body["status"]["conditions"]
        self.reasons.append(ready["reason"])
        version = str(int(body["metadata"]["resourceVersion"]) + 1)
        source = {"configMapKeyRef": {"name": "prompts", "key": "helper"}}
        written = agent(metadata={"resourceVersion": version}, instructionsFrom=source)
        return {**written, "status": body["status"]}


@pytest.mark.looptime
async def test_a_missing_config_map_is_read_again_until_it_is_there() -> None:
    kube, cache = FakeKube(), Cache()
    cache.models.put(model())
    cache.agents.put(agent(instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "helper"}}))
    reconciler = AgentReconciler(kube, cache, RecentConfigMaps(kube, cache), lambda: NOW)
    for _ in range(2):
        assert await reconciler.reconcile(KEY) == 10.0
        await asyncio.sleep(10.0)
    kube.config_maps[PROMPTS] = config_map("prompts", helper="Be kind.")
    assert await reconciler.reconcile(KEY) is None
    assert kube.reasons == ["ConfigMapNotFound", "Resolved"]


@pytest.mark.looptime
async def test_the_config_map_of_an_agent_it_reaches_is_read_too() -> None:
    kube, cache = FakeKube({PROMPTS: config_map("prompts", helper="{% x %}")}), Cache()
    cache.models.put(model())
    cache.agents.put(agent(handoffs=[{"agentRef": {"name": "sales"}}]))
    cache.agents.put(agent("sales", instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "helper"}}))
    reconciler = AgentReconciler(kube, cache, RecentConfigMaps(kube, cache), lambda: NOW)
    assert await reconciler.reconcile(KEY) == 10.0
    assert kube.reasons == ["InvalidSpec"]


async def test_a_labelled_config_map_is_in_the_cache() -> None:
    kube, cache = FakeKube(), Cache()
    cache.models.put(model())
    cache.config_maps.put(config_map("prompts", helper="Be kind."))
    cache.agents.put(agent(instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "helper"}}))
    assert await AgentReconciler(kube, cache, RecentConfigMaps(kube, cache), lambda: NOW).reconcile(KEY) is None
    assert (kube.reasons, kube.reads) == (["Resolved"], 0)
