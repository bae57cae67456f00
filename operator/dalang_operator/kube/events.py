"""Events on objects: what people see in `kubectl describe`. Few, and never worth failing for."""

import logging
from datetime import datetime
from typing import Literal, Protocol

from dalang_operator.kube.errors import AlreadyExists, ApiError
from dalang_operator.kube.resources import EVENTS, Json, Resource, key_of, uid_of
from dalang_operator.kube.status import MESSAGE_MAX, clip

logger = logging.getLogger(__name__)

CONTROLLER = "dalang.dev/operator"


class EventPort(Protocol):
    """What an Event needs of a client."""

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create an object."""
        ...


async def tell_event(
    port: EventPort,
    about: Json,
    *,
    name: str,
    kind: Literal["Normal", "Warning"],
    reason: str,
    action: str,
    note: str,
    now: datetime,
) -> None:
    """Create an Event about an object; one of that name is there already where an attempt is repeated.

    `about` needs `apiVersion` and `kind`, which objects of a list lack.
    """
    key = key_of(about)
    body: Json = {
        "metadata": {"name": name, "namespace": key.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": kind,
        "reason": reason,
        "action": action,
        "note": clip(note, MESSAGE_MAX),
        "reportingController": CONTROLLER,
        "reportingInstance": CONTROLLER,
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid_of(about),
        },
    }
    try:
        await port.create(EVENTS, key.namespace, body)
    except AlreadyExists:
        return
    except ApiError as error:
        logger.warning("no Event on %s %s: %s", about["kind"], key, error)
