"""Every state of one AgentRun until it ends, as a watch tells them."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from dalang_api.v1alpha1.agentrun import AgentRun

from dalang_cli.chat.progress import is_finished, is_seen
from dalang_cli.cluster import SILENCE_SECONDS, ClusterError, Json, Kind, Silence

PATIENCE_SECONDS = 10.0
"""How long nobody needs to have looked at a new run before the user is told."""
AGAIN_SECONDS = 1.0
"""Between two attempts to read the run after a watch broke."""


class RunDeleted(Exception):
    """The AgentRun is not there any more."""


class FollowPort(Protocol):
    """What following needs of the cluster."""

    def read(self, kind: Kind, name: str) -> Json: ...

    def events(
        self, kind: Kind, version: str, *, field_selector: str | None, silence_seconds: float
    ) -> Iterator[Json]: ...


def states(
    cluster: FollowPort, run: Json, sleep: Callable[[float], None] = time.sleep, patience: float = PATIENCE_SECONDS
) -> Iterator[Json | None]:
    """Yield the run, then each state it comes to, the last one finished; None, once, where nobody looks at it.

    Raises:
        RunDeleted: It was deleted meanwhile.
        ClusterError: The API server refuses.
    """
    name, uid = run["metadata"]["name"], run["metadata"]["uid"]
    has_complained = False
    yield run
    while not is_finished(run):
        version = run["metadata"]["resourceVersion"]
        is_waiting = not (is_seen(run) or has_complained)
        try:
            for event in cluster.events(
                AgentRun,
                version,
                field_selector=f"metadata.name={name}",
                silence_seconds=patience if is_waiting else SILENCE_SECONDS,
            ):
                run = _next_state(event, run, uid)
                if event["type"] != "BOOKMARK":
                    yield run
                if is_finished(run):
                    return
        except Silence:
            if is_waiting and not is_seen(run):
                has_complained = True
                yield None
        except ClusterError as error:
            if not error.may_pass:
                raise
            run = _read_again(cluster, name, uid, sleep)
            yield run


def _next_state(event: Json, run: Json, uid: str) -> Json:
    found: Json = event["object"]
    if event["type"] == "BOOKMARK":
        # The watch goes on from there, should it break; the run is as it was.
        return {**run, "metadata": {**run["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}}
    if event["type"] == "DELETED" or found["metadata"]["uid"] != uid:
        raise RunDeleted
    return found


def _read_again(cluster: FollowPort, name: str, uid: str, sleep: Callable[[float], None]) -> Json:
    while True:
        sleep(AGAIN_SECONDS)
        try:
            run = cluster.read(AgentRun, name)
        except ClusterError as error:
            if error.status == 404:
                raise RunDeleted from None
            if not error.may_pass:
                raise
            continue
        if run["metadata"]["uid"] != uid:
            raise RunDeleted
        return run
