"""A small API server in memory: objects by kind and key, merge patches, preconditions, selectors, owners."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from dalang_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from dalang_operator.kube.resources import AGENT_RUNS, Json, ObjectKey, Resource, key_of

from tests.build import at, condition

OPERATOR = "system:serviceaccount:dalang:operator"
"""As whom everything is created."""
BORN = {"phase": "Pending", "conditions": []}


@dataclass
class MemoryCluster:
    """What a reconcile or the reporter needs of a KubeClient. `told` is called with every change, as a watch would be."""

    objects: dict[tuple[str, ObjectKey], Json] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    refusals: list[ApiError] = field(default_factory=list)
    """What the next creations of objects end with."""
    writes: list[str] = field(default_factory=list)
    """Every write but Events, as `create AgentRun r1`."""
    told: Callable[[str, Resource, Json], None] = lambda *_: None
    _version: int = 100

    def put(self, resource: Resource, obj: Json) -> Json:
        """Have an object as it is, whatever there was."""
        self._version += 1
        metadata = {"uid": uuid4().hex, "generation": 1, "namespace": "shop", **obj["metadata"]}
        obj = {**obj, "metadata": {**metadata, "resourceVersion": str(self._version)}}
        self.objects[resource.kind, key_of(obj)] = obj
        self.told("MODIFIED", resource, obj)
        return obj

    def all(self, resource: Resource) -> list[Json]:
        """All objects of a kind, by name."""
        found = {key: obj for (kind, key), obj in self.objects.items() if kind == resource.kind}
        return [found[key] for key in sorted(found)]

    def remove(self, resource: Resource, name: str) -> None:
        """Have no object of that name any more."""
        obj = self.objects.pop((resource.kind, ObjectKey("shop", name)))
        self.told("DELETED", resource, obj)

    def finish(self, name: str, phase: str = "Succeeded", reason: str = "Answered", message: str = "") -> None:
        """Have a run end, as its workflow's last report does."""
        run = self.objects[AGENT_RUNS.kind, ObjectKey("shop", name)]
        ended = {
            "phase": phase,
            "finishedAt": at(timedelta(seconds=self._version)),  # each ends after the one before
            "conditions": [condition("Succeeded", str(phase == "Succeeded"), reason, message)],
        }
        self.put(AGENT_RUNS, {**run, "status": {**run.get("status", {}), **ended}})

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        await asyncio.sleep(0)
        try:
            return self.objects[resource.kind, ObjectKey(namespace or "", name)]
        except KeyError:
            raise NotFound(f"no {resource.kind} {name}", 404) from None

    async def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        await asyncio.sleep(0)
        label, _, value = labels.partition("=")
        assert fields in {"", "status.finishedAt!="}
        found = [
            obj
            for obj in self.all(resource)
            if not fields or obj.get("status", {}).get("finishedAt")
            if not labels or obj["metadata"].get("labels", {}).get(label) == value
        ]
        yield found, str(self._version)

    async def create(self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False) -> Json:
        await asyncio.sleep(0)
        if resource.kind == "Event":
            self.events.append(body)
            return body
        if resource.kind == "SelfSubjectReview":
            return {**body, "status": {"userInfo": {"username": OPERATOR}}}
        if self.refusals:
            raise self.refusals.pop(0)
        if (resource.kind, key_of(body)) in self.objects:
            raise AlreadyExists(f"{resource.kind} {key_of(body).name} already exists", 409)
        if dry_run:
            return body
        self.writes.append(f"create {resource.kind} {key_of(body).name}")
        return self.put(resource, {"status": BORN, **json.loads(json.dumps(body))})

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Any, subresource: str | None = None
    ) -> Json:
        current = await self.get(resource, namespace, name)
        self._check(current, body.get("metadata", {}))
        self.writes.append(f"patch {resource.kind} {name}")
        part = subresource or "spec"
        merged = merge(current.get(part, {}), body[part])
        return self.put(resource, {**current, part: merged})

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        current = await self.get(resource, namespace, name)
        wanted = {"uid": uid, **({"resourceVersion": resource_version} if resource_version else {})}
        self._check(current, wanted)
        self.writes.append(f"delete {resource.kind} {name}")
        self.remove(resource, name)

    @staticmethod
    def _check(current: Json, wanted: Json) -> None:
        for name, value in wanted.items():
            if current["metadata"].get(name) != value:
                raise Conflict(f"{name} is another", 409)


def merge(current: Any, patch: Any) -> Any:
    """Return what an RFC 7396 merge patch makes of a value."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(current) if isinstance(current, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged
