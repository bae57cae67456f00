"""Startup, readiness and liveness probes of containers that are local processes."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

Object = dict[str, Any]

EAGER_SECONDS = 0.1
"""Between two looks while a probe has not yet succeeded: Kubernetes, too, looks oftener than `periodSeconds` then."""
EAGER_FOR_SECONDS = 30.0


@dataclass(frozen=True)
class Probe:
    """One probe with Kubernetes' defaults filled in."""

    url: str | None
    address: tuple[str, int] | None
    headers: dict[str, str]
    initial_delay: float
    period: float
    timeout: float
    success_threshold: int
    failure_threshold: int

    @classmethod
    def of(cls, spec: Object | None, container: Object, ip: str) -> "Probe | None":
        """Read a probe; None when there is none, or when it is of a kind not supported here (exec, grpc)."""
        if not spec or not (action := spec.get("httpGet") or spec.get("tcpSocket")):
            return None
        host, port = action.get("host") or ip, _port(action["port"], container)
        url = None
        if "httpGet" in spec:
            path = action.get("path", "/")
            url = f"{action.get('scheme', 'HTTP').lower()}://{host}:{port}/{path.removeprefix('/')}"
        return cls(
            url=url,
            address=None if url else (host, port),
            headers={each["name"]: each["value"] for each in action.get("httpHeaders") or []},
            initial_delay=spec.get("initialDelaySeconds", 0),
            period=spec.get("periodSeconds", 10),
            timeout=spec.get("timeoutSeconds", 1),
            success_threshold=spec.get("successThreshold", 1),
            failure_threshold=spec.get("failureThreshold", 3),
        )

    async def succeeds(self, http: aiohttp.ClientSession) -> tuple[bool, str]:
        """Look once; returns whether it succeeded, and else why not."""
        try:
            async with asyncio.timeout(self.timeout):
                if self.address:
                    _, writer = await asyncio.open_connection(*self.address)
                    writer.close()
                    return True, ""
                assert self.url is not None
                # As the kubelet: no verification of certificates, no redirects to other hosts.
                async with http.get(self.url, headers=self.headers, ssl=False, allow_redirects=False) as response:
                    return 200 <= response.status < 400, f"HTTP probe failed with statuscode: {response.status}"
        except TimeoutError:
            return False, f"no answer within {self.timeout} s"
        except (aiohttp.ClientError, OSError) as error:
            return False, str(error)


def _port(port: int | str, container: Object) -> int:
    if isinstance(port, int):
        return port
    named = {each.get("name"): each["containerPort"] for each in container.get("ports") or []}
    return int(named.get(port, port if port.isdigit() else 0))


class Probing:
    """Runs the probes of one running container and reports what they mean."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        container: Object,
        ip: str,
        *,
        became: Callable[[bool, bool], None],
        unhealthy: Callable[[str], Awaitable[None]],
    ) -> None:
        """Prepare; `became(started, ready)` tells of changes, `unhealthy(why)` asks for a restart."""
        self._http = http
        self._startup = Probe.of(container.get("startupProbe"), container, ip)
        self._readiness = Probe.of(container.get("readinessProbe"), container, ip)
        self._liveness = Probe.of(container.get("livenessProbe"), container, ip)
        self._became = became
        self._unhealthy = unhealthy

    async def run(self) -> None:
        """Probe until cancelled, which the end of the container does."""
        if self._startup is None and self._readiness is None:
            self._became(True, True)
        elif self._startup is None:
            self._became(True, False)
        elif not await self._starts(self._startup):
            return
        else:
            self._became(True, self._readiness is None)
        async with asyncio.TaskGroup() as group:
            if self._readiness is not None:
                group.create_task(self._follow_readiness(self._readiness))
            if self._liveness is not None:
                group.create_task(self._follow_liveness(self._liveness))

    async def _starts(self, probe: Probe) -> bool:
        allowed = probe.initial_delay + probe.period * probe.failure_threshold
        deadline = time.monotonic() + allowed
        while time.monotonic() < deadline:
            good, why = await probe.succeeds(self._http)
            if good:
                return True
            await asyncio.sleep(EAGER_SECONDS)
        await self._unhealthy(f"startup probe failed for {allowed:g} s: {why}")
        return False

    async def _follow_readiness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.initial_delay)
        began, ready, streak = time.monotonic(), False, 0
        while True:
            good, _ = await probe.succeeds(self._http)
            streak = 0 if good is ready else streak + 1
            if streak >= (probe.success_threshold if good else probe.failure_threshold):
                ready, streak = good, 0
                self._became(True, ready)
            eager = not ready and time.monotonic() - began < EAGER_FOR_SECONDS
            await asyncio.sleep(EAGER_SECONDS if eager else probe.period)

    async def _follow_liveness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.initial_delay)
        failures = 0
        while True:
            # The first look is a period after the start: a process that is still importing is not unhealthy.
            await asyncio.sleep(probe.period)
            good, why = await probe.succeeds(self._http)
            failures = 0 if good else failures + 1
            if failures >= probe.failure_threshold:
                with contextlib.suppress(ProcessLookupError):
                    await self._unhealthy(f"liveness probe failed {failures} times: {why}")
                return
