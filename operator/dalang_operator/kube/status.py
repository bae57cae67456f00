"""Conditions, and the one way a status is written: a patch of the difference, bound to what was read.

A patch without resourceVersion would overwrite a newer status with an older one.
"""

from datetime import datetime
from typing import Any, Literal, Protocol

from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kube.resources import Json, PatchBody, Resource
from dalang_operator.runtime.metrics import STATUS_WRITES

MESSAGE_MAX = 1024
_UNSET_TIME = "1970-01-01T00:00:00Z"
"""The time of conditions that come from the schema's default."""


class StatusPort(Protocol):
    """What a status write needs of a client."""

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json:
        """Patch an object's subresource: merge a dict into it, or carry out a list of operations."""
        ...


def timestamp(now: datetime) -> str:
    """Return RFC 3339, UTC, whole seconds."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Read a time back, also one with a fraction.

    Raises:
        ValueError: It is no RFC 3339 time.
    """
    return datetime.fromisoformat(text)


def clip(text: str, limit: int = MESSAGE_MAX) -> str:
    """Return the text, cut with a mark where it is longer than the limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clip_bytes(text: str, limit: int) -> str:
    """Return the text, cut with a mark where it weighs more as UTF-8 than the limit."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - len("…".encode())].decode(errors="ignore") + "…"


def condition(
    type_: ConditionType, status: Literal["True", "False", "Unknown"], reason: Reason | str, message: str
) -> Json:
    """Return a condition; `with_conditions` adds time and generation."""
    return {"type": str(type_), "status": status, "reason": str(reason), "message": clip(message)}


def with_conditions(current: list[Json], new: list[Json], generation: int, now: datetime) -> list[Json]:
    """Return the current conditions with the new ones in their place, others' kept, sorted by type.

    `lastTransitionTime` moves only when `status` changes, or when it was the schema default's.
    """
    merged = {condition["type"]: condition for condition in current}
    for fresh in new:
        before = merged.get(fresh["type"], {})
        since = before.get("lastTransitionTime", _UNSET_TIME)
        if before.get("status") != fresh["status"] or since == _UNSET_TIME:
            since = timestamp(now)
        merged[fresh["type"]] = {**fresh, "lastTransitionTime": since, "observedGeneration": generation}
    return [merged[type_] for type_ in sorted(merged)]


def without_condition(current: list[Json], type_: ConditionType) -> list[Json]:
    """Return the conditions but for one type."""
    return [condition for condition in current if condition["type"] != type_]


def find_condition(obj: Json, type_: ConditionType) -> Json | None:
    """Return a condition of an object, or None."""
    conditions = obj.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type_), None)


def merge_patch(current: Json, desired: Json) -> Json:
    """Return the RFC 7396 patch from one object to the other: removed fields are null, lists are replaced whole."""
    patch: dict[str, Any] = {key: None for key in current if key not in desired}
    for key, value in desired.items():
        before = current.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch


async def write_status(
    port: StatusPort, resource: Resource, obj: Json, status: Json, writer: Literal["controller", "reporter"]
) -> Json | None:
    """Make `status` the object's status; returns the new object, or None when it was so already.

    Raises:
        Conflict: The object is no longer the one that was read.
        NotFound: It is gone.
    """
    patch = merge_patch(obj.get("status", {}), status)
    if not patch:
        return None
    metadata = obj["metadata"]
    observed = {name: metadata[name] for name in ("uid", "resourceVersion")}
    body: PatchBody = {"metadata": observed, "status": patch}
    if _holds_null(status):
        # An answer as an object may hold nulls, which a merge patch would take for fields to remove.
        body = [{"op": "add", "path": f"/metadata/{name}", "value": value} for name, value in observed.items()]
        body.append({"op": "add", "path": "/status", "value": status})
    written = await port.patch(resource, metadata["namespace"], metadata["name"], body, "status")
    STATUS_WRITES.labels(resource.kind, writer).inc()
    return written


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None
