"""How often an unlabelled ConfigMap is read, and how old what is read may be."""

import asyncio

import pytest
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kube.errors import NotFound, Unavailable
from dalang_operator.kube.resources import Json, ObjectKey, Resource
from dalang_operator.runtime.cache import Cache

from tests.build import config_map

KEY = ObjectKey("shop", "prompts")


class SlowKube:
    """One ConfigMap, or none, or an error; each answer takes a second."""

    def __init__(self) -> None:
        self.answer: Json | Exception = NotFound("prompts")
        self.reads = 0

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.reads += 1
        answer = self.answer
        await asyncio.sleep(1.0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def kube() -> SlowKube:
    return SlowKube()


@pytest.mark.looptime
async def test_whoever_wants_it_at_once_shares_one_read(kube: SlowKube) -> None:
    recent = RecentConfigMaps(kube, Cache())
    kube.answer = config_map("prompts", helper="Be kind.")
    assert await asyncio.gather(*(recent.read(KEY) for _ in range(1000))) == [kube.answer] * 1000
    assert kube.reads == 1


@pytest.mark.looptime
async def test_what_was_asked_for_five_seconds_ago_is_read_again(kube: SlowKube) -> None:
    recent = RecentConfigMaps(kube, Cache())
    old = kube.answer = config_map("prompts", helper="Be kind.")
    assert await recent.read(KEY) == old  # asked for at 0 s, there at 1 s
    kube.answer = config_map("prompts", helper="Be brief.")
    await asyncio.sleep(3.9)
    assert await recent.read(KEY) == old
    await asyncio.sleep(0.2)
    assert await recent.read(KEY) == kube.answer
    assert kube.reads == 2


@pytest.mark.looptime
async def test_a_missing_one_is_looked_for_once_a_second(kube: SlowKube) -> None:
    recent = RecentConfigMaps(kube, Cache())
    for _ in range(1000):
        assert await recent.read(KEY) is None
    assert kube.reads == 1
    await asyncio.sleep(1.1)
    kube.answer = config_map("prompts")
    assert await recent.read(KEY) == kube.answer


@pytest.mark.looptime
async def test_an_error_is_told_to_all_who_wait_and_not_remembered(kube: SlowKube) -> None:
    recent = RecentConfigMaps(kube, Cache())
    kube.answer = Unavailable("away")
    told = await asyncio.gather(*(recent.read(KEY) for _ in range(3)), return_exceptions=True)
    assert told == [kube.answer] * 3
    kube.answer = config_map("prompts")
    assert await recent.read(KEY) == kube.answer
    assert kube.reads == 2


@pytest.mark.looptime
async def test_what_the_watch_tells_counts_at_once(kube: SlowKube) -> None:
    cache = Cache()
    recent = RecentConfigMaps(kube, cache)
    assert await recent.read(KEY) is None
    labelled = config_map("prompts", helper="Be kind.")
    cache.config_maps.put(labelled)
    assert await recent.read(KEY) == labelled
    assert kube.reads == 1
