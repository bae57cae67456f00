"""ConfigMaps by name: the labelled ones are in the cache, others are read.

A pool reads its tool modules each time, since no event would have it look again. Instructions are wanted by each run
that starts and, while they are missing, by each run that waits: those share one GET and what it brought for a moment.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from dalang_operator.kinds.instructions import ConfigMaps
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import CONFIG_MAPS, Json, ObjectKey, Resource
from dalang_operator.runtime.cache import Cache
from dalang_operator.runtime.references import instructions_key_of

MEMORY_SECONDS = 5.0
"""How old instructions may be that a run starts with, counted from when they were asked for."""
MISSING_MEMORY_SECONDS = 1.0
"""How long a ConfigMap counts as missing without another look. Shorter, since manifests are often applied in an order in
which the Agent comes first, then the ConfigMap, then a run, which would wait ten seconds for its next look."""


class ReadPort(Protocol):
    """What reading needs of a client."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...


async def read_config_map(kube: ReadPort, cache: Cache, key: ObjectKey) -> Json | None:
    """Return a ConfigMap as it is now, or None where there is none."""
    cached = cache.config_maps.get(key)
    if cached is not None:
        return cached
    try:
        return await kube.get(CONFIG_MAPS, key.namespace, key.name)
    except NotFound:
        return None


class RecentConfigMaps:
    """ConfigMaps as they were at most some seconds ago; each is asked for once at a time, whoever wants it."""

    def __init__(self, kube: ReadPort, cache: Cache) -> None:
        self._kube = kube
        self._cache = cache
        self._reads: dict[ObjectKey, asyncio.Task[Json | None]] = {}
        """Under way, or young enough to count."""

    async def read(self, key: ObjectKey) -> Json | None:
        """Return a ConfigMap, or None where there is none.

        Raises:
            ApiError: It could not be read. That is not remembered.
        """
        cached = self._cache.config_maps.get(key)
        if cached is not None:
            return cached
        read = self._reads.get(key)
        if read is None:
            read = self._reads[key] = asyncio.create_task(read_config_map(self._kube, self._cache, key))
            read.add_done_callback(lambda done: self._shorten(key, done))
            asyncio.get_running_loop().call_later(MEMORY_SECONDS, self._forget, key, read)
        return await asyncio.shield(read)

    async def of(self, namespace: str, agents: Iterable[Json]) -> ConfigMaps:
        """Return the ConfigMaps that Agents of a namespace take their instructions from.

        Raises:
            ApiError: One could not be read.
        """
        names = {source.name for agent in agents if (source := instructions_key_of(agent))}
        return {name: await self.read(ObjectKey(namespace, name)) for name in sorted(names)}

    def _shorten(self, key: ObjectKey, read: asyncio.Task[Json | None]) -> None:
        if read.cancelled() or read.exception() is not None:
            self._forget(key, read)
        elif read.result() is None:
            asyncio.get_running_loop().call_later(MISSING_MEMORY_SECONDS, self._forget, key, read)

    def _forget(self, key: ObjectKey, read: asyncio.Task[Json | None]) -> None:
        if self._reads.get(key) is read:
            del self._reads[key]
