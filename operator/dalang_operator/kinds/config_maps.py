"""ConfigMaps by name: the labelled ones are in the cache, others are read, one GET each."""

from typing import Protocol

from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import CONFIG_MAPS, Json, ObjectKey, Resource
from dalang_operator.runtime.cache import Cache


class ReadPort(Protocol):
    """What reading needs of a client."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...


async def read_config_map(kube: ReadPort, cache: Cache, key: ObjectKey) -> Json | None:
    """Return a ConfigMap, or None where there is none."""
    cached = cache.config_maps.get(key)
    if cached is not None:
        return cached
    try:
        return await kube.get(CONFIG_MAPS, key.namespace, key.name)
    except NotFound:
        return None
