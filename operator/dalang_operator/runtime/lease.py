"""The Lease that lets one controller act at a time.

Our own hundred lines because of two wishes `kubernetes.aio.leaderelection` does not grant. An API server that is away
must not end the process: we stop acting when the lease would have run out, and go on when the server is back and the
lease is still ours; only another's name in it ends us. And a controller that was killed must not be waited for when
its successor can see that it is dead.

A Lease is no fence: a paused process may act a moment too long. Preconditions and workflow ids make that harmless.
"""

import asyncio
import logging
import os
import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from dalang_operator.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, NotFound
from dalang_operator.kube.resources import LEASES, Json, Resource
from dalang_operator.runtime.clock import utc_now
from dalang_operator.runtime.metrics import IS_LEADER

logger = logging.getLogger(__name__)

DURATION = timedelta(seconds=8)
"""How long a lease is good without renewal: the longest nobody acts after a machine is lost."""
RENEW_EVERY = timedelta(seconds=2)
RENEW_DEADLINE = timedelta(seconds=6)
"""When we stop acting without a renewal, before others may begin."""


class LeasePort(Protocol):
    """What the Lease needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json: ...

    async def replace(self, resource: Resource, namespace: str, name: str, body: Json) -> Json: ...


class LeaseLost(Exception):
    """Another process holds the Lease. This one must end at once."""


def process_identity() -> str:
    """Return host, PID namespace, PID and start time of this process: no later process ever has the same."""
    return "_".join([*_place(), str(os.getpid()), _start_time(os.getpid()) or "0"])


def is_dead(identity: str) -> bool:
    """Return whether the holder was a process of this very host and PID namespace and is no more."""
    rest, _, start = identity.rpartition("_")
    place, _, pid = rest.rpartition("_")
    if place != "_".join(_place()) or not pid.isdigit():
        return False
    return _start_time(int(pid)) != start


def _place() -> list[str]:
    try:
        namespace = os.readlink("/proc/self/ns/pid").removeprefix("pid:").strip("[]")
    except OSError:
        namespace = "unknown"
    return [socket.gethostname(), namespace]


def _start_time(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks; None if there is none (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


class Lease:
    """One Lease and whether we hold it."""

    def __init__(self, kube: LeasePort, namespace: str, name: str, identity: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._held = asyncio.Event()
        self._renewed_at = float("-inf")
        self._written: Json | None = None
        """The Lease as our last turn left it: writing it again needs no read, and is refused if another wrote."""
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._ever_held = False
        self._is_released = False
        self._gauge = IS_LEADER.labels(name)

    @property
    def is_held(self) -> bool:
        """Whether we may act now."""
        return self._held.is_set()

    async def held(self) -> None:
        """Wait until we may act."""
        await self._held.wait()

    async def run(self) -> None:
        """Acquire the Lease and keep it, until it is released.

        Raises:
            LeaseLost: We held it, and now another does.
        """
        loop = asyncio.get_running_loop()
        while not self._is_released:
            try:
                async with asyncio.timeout((RENEW_DEADLINE - RENEW_EVERY).total_seconds()):
                    await self._turn(loop)
            except (Conflict, AlreadyExists, NotFound):
                continue  # somebody wrote or deleted it just now; look who
            except Forbidden as error:
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            except (ApiError, TimeoutError) as error:
                logger.debug("lease %s: %s", self._name, error)
            if self.is_held and loop.time() - self._renewed_at >= RENEW_DEADLINE.total_seconds():
                logger.warning("lease %s could not be renewed; the controller pauses", self._name)
                self._held.clear()
                self._gauge.set(0)
            await asyncio.sleep(RENEW_EVERY.total_seconds())

    async def release(self) -> None:
        """Give the Lease up, so that a successor need not wait for it to run out."""
        self._is_released = True
        self._held.clear()
        if not self._ever_held:
            return
        try:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                spec = {**lease["spec"], "holderIdentity": ""}
                await self._kube.replace(LEASES, self._namespace, self._name, {**lease, "spec": spec})
        except ApiError as error:
            logger.debug("lease %s not released: %s", self._name, error)

    async def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        begin = loop.time()
        lease, self._written = self._written, None
        try:
            if lease is None:
                lease = await self._kube.get(LEASES, self._namespace, self._name)
        except NotFound:
            self._written = await self._kube.create(LEASES, self._namespace, self._body(None))
            self._hold(begin)
            return
        holder = lease["spec"].get("holderIdentity") or ""
        if holder and holder != self._identity:
            if self._ever_held:
                raise LeaseLost(f"lease {self._name} is now held by {holder}")
            if not (is_dead(holder) or self._has_run_out(lease, loop.time())):
                return
        self._written = await self._kube.replace(LEASES, self._namespace, self._name, self._body(lease))
        self._hold(begin)

    def _hold(self, since: float) -> None:
        self._renewed_at = since
        if self._is_released:
            return
        if not self.is_held:
            logger.info("lease %s held; the controller acts", self._name)
        self._ever_held = True
        self._held.set()
        self._gauge.set(1)

    def _has_run_out(self, lease: Json, now: float) -> bool:
        """Whether nobody has renewed it while we watched for its whole duration; others' clocks are not trusted."""
        seen = (lease["spec"].get("holderIdentity", ""), lease["metadata"]["resourceVersion"])
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        duration = lease["spec"].get("leaseDurationSeconds") or DURATION.total_seconds()
        return bool(now - self._seen_at > duration)

    def _body(self, lease: Json | None) -> Json:
        before = lease["spec"] if lease else {}
        renewal = _micro_time(utc_now())
        is_ours = before.get("holderIdentity") == self._identity
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": lease["metadata"] if lease else {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION.total_seconds()),
                "acquireTime": before.get("acquireTime", renewal) if is_ours else renewal,
                "renewTime": renewal,
                "leaseTransitions": before.get("leaseTransitions", 0) + (0 if is_ours else 1),
            },
        }


def _micro_time(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
