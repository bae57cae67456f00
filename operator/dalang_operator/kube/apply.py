"""Objects we own: whether the current one has all that the desired one says, and who owns its fields."""

from typing import Any

from dalang_operator.kube.resources import Json

FIELD_MANAGER = "dalang"


def covers(current: Any, desired: Any) -> bool:
    """Return whether everything `desired` says is so in `current`, whatever the server or others added to it.

    Objects may have more keys. Lists of objects with a `name` are matched by it and may have more items; other lists
    must be equal item by item. So defaults and injected containers are no difference, an edited image is one.
    """
    if isinstance(desired, dict):
        return isinstance(current, dict) and all(
            key in current and covers(current[key], value) for key, value in desired.items()
        )
    if isinstance(desired, list):
        if not isinstance(current, list):
            return False
        if desired and all(isinstance(item, dict) and "name" in item for item in desired):
            by_name = {item.get("name"): item for item in current if isinstance(item, dict)}
            return all(item["name"] in by_name and covers(by_name[item["name"]], item) for item in desired)
        return len(current) == len(desired) and all(map(covers, current, desired))
    return bool(current == desired)


def owned_by_apply(obj: Json) -> list[Json] | None:
    """Return the managedFields with our creation turned into an apply of ours; None where that is done already.

    A Deployment is created by POST, so that it can have replicas and never takes over a stranger's. But fields set by
    POST are not removed by a later apply that leaves them out: the server counts them as another manager's. So before
    the first apply the entry is renamed, as client-go's `csaupgrade` does, and `replicas` is taken out of it: they belong
    to `/scale`, and an apply without them would reset them to 1.
    """
    entries: list[Json] = obj["metadata"].get("managedFields", [])
    created = [entry for entry in entries if _is_creation(entry)]
    if not created:
        return None
    kept = [entry for entry in entries if not _is_creation(entry)]
    entry = created[0]
    fields = entry["fieldsV1"]
    spec = {key: value for key, value in fields.get("f:spec", {}).items() if key != "f:replicas"}
    return [*kept, {**entry, "operation": "Apply", "fieldsV1": {**fields, "f:spec": spec}}]


def _is_creation(entry: Json) -> bool:
    return entry["manager"] == FIELD_MANAGER and entry["operation"] == "Update" and not entry.get("subresource")
