"""The Lease, with several candidates on one in-memory API server and virtual time."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_operator.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from dalang_operator.runtime.lease import DURATION, Lease, LeaseLost, is_dead, process_identity

pytestmark = [pytest.mark.looptime(True)]


@dataclass
class FakeApi:
    lease: dict[str, Any] | None = None
    is_away: bool = False
    version: int = 0
    writers: list[str] = field(default_factory=list)

    async def get(self, *_: object) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise NotFound("no lease")
        return self.lease

    async def create(self, _resource: object, _namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        if self.lease is not None:
            raise AlreadyExists("lease")
        return self._write(body)

    async def replace(self, _resource: object, _namespace: str, _name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("lease")
        return self._write(body)

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("away")

    def _write(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.writers.append(body["spec"]["holderIdentity"])
        return self.lease


def candidate(api: FakeApi, name: str) -> tuple[Lease, "asyncio.Task[None]"]:
    lease = Lease(api, "dalang-system", "controller", name)
    return lease, asyncio.ensure_future(lease.run())


async def test_the_first_gets_it_and_the_second_waits(looptime: float) -> None:
    api = FakeApi()
    first, _ = candidate(api, "a")
    await first.held()
    assert looptime == 0
    second, _ = candidate(api, "b")
    await asyncio.sleep(3600)
    assert first.is_held
    assert not second.is_held


async def test_a_holder_that_vanished_is_followed_after_the_leases_duration(looptime: float) -> None:
    api = FakeApi()
    first, task = candidate(api, "a")
    await first.held()
    task.cancel()
    second, _ = candidate(api, "b")
    await second.held()
    assert DURATION.total_seconds() < looptime <= DURATION.total_seconds() + 4


async def test_a_holder_that_gives_up_is_followed_at_once(looptime: float) -> None:
    api = FakeApi()
    first, task = candidate(api, "a")
    await first.held()
    task.cancel()
    await first.release()
    second, _ = candidate(api, "b")
    await second.held()
    assert looptime == 0


async def test_a_holder_known_to_be_dead_is_followed_at_once(looptime: float) -> None:
    dead = process_identity().rsplit("_", 1)[0] + "_1"  # our own PID, of a process that began earlier
    api = FakeApi()
    first, task = candidate(api, dead)
    await first.held()
    task.cancel()
    second, _ = candidate(api, process_identity())
    await second.held()
    assert looptime == 0


async def test_while_the_api_server_is_away_the_holder_pauses_and_goes_on(looptime: float) -> None:
    api = FakeApi()
    lease, task = candidate(api, "a")
    await lease.held()
    api.is_away = True
    await asyncio.sleep(DURATION.total_seconds())
    assert not lease.is_held, "another may act from now on"
    await asyncio.sleep(30)
    api.is_away = False
    await lease.held()
    assert not task.done()
    assert looptime < 45


async def test_who_finds_another_in_its_place_ends(looptime: float) -> None:
    api = FakeApi()
    lease, task = candidate(api, "a")
    await lease.held()
    assert api.lease is not None
    usurped = {**api.lease, "spec": {**api.lease["spec"], "holderIdentity": "b"}}
    await api.replace(None, "", "", usurped)
    with pytest.raises(LeaseLost):
        await task


def test_only_processes_of_this_host_can_be_known_to_be_dead() -> None:
    ours = process_identity()
    place, pid, start = ours.rsplit("_", 2)
    assert not is_dead(ours)
    assert is_dead(f"{place}_{pid}_{int(start) - 1}")
    assert is_dead(f"{place}_{2**22 + 1}_1")
    assert not is_dead(f"elsewhere_4026531836_{os.getpid()}_1")
    assert not is_dead("")
    assert not is_dead("dalang-operator-7d9f_1a2b")
