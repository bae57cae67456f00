"""Objects we own: whether the current one has all that the desired one says."""

from typing import Any


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
