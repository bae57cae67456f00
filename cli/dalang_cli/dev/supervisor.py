"""Runs the control plane: starts the parts in order, starts again what dies, stops all in order, and tells how it goes.

`dalang dev up` runs one `Supervisor` on its main thread; with `--detach` it is an `up` in the background. Everything others
may know is in the `Snapshot` it writes (see state.py). The kubelet is part of this process: the pods' processes are its
children and so share the guarantee that nothing outlives it (processes.py).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from dalang_cli.dev import cluster, parts
from dalang_cli.dev.api import Api, tls_context
from dalang_cli.dev.backoff import Backoff
from dalang_cli.dev.binaries import Binaries
from dalang_cli.dev.certificates import Certificates, ensure_certificates, kubeconfig
from dalang_cli.dev.errors import DevError
from dalang_cli.dev.kubelet import Kubelet
from dalang_cli.dev.options import Options
from dalang_cli.dev.parts import Part
from dalang_cli.dev.ports import choose_ports
from dalang_cli.dev.processes import Process, Processes
from dalang_cli.dev.state import (
    PartStatus,
    Phase,
    Snapshot,
    StateDirectory,
    dev_command,
    write_atomically,
    write_snapshot,
)

START_SECONDS = 180.0
"""How long a part may take to become ready for the first time: a loaded two-core machine needs 30."""
PODS_SECONDS = 15.0
START_ATTEMPTS = 3
"""How often a part may die before its first readiness until `up` gives up."""
LOG_BYTES = 10_000_000
"""A larger log is set aside at the next start of its part."""


class PartRunner:
    """Keeps one part running: starts it, watches its readiness, and starts it again with a growing delay when it dies."""

    def __init__(
        self, part: Part, directory: StateDirectory, processes: Processes, changed: Callable[[], None]
    ) -> None:
        self.status = PartStatus(part.name)
        self._part = part
        self._directory = directory
        self._log = directory.log_file(part.name)
        self._processes = processes
        self._changed = changed
        self._process: Process | None = None
        self._answer = ""
        self._task: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, http: aiohttp.ClientSession) -> None:
        """Start the part and return when it is ready.

        Raises:
            DevError: it died again and again, or did not become ready in time.
        """
        self._task = asyncio.create_task(self._keep_running(http))
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._first_ready
        except TimeoutError:
            raise DevError(
                self._failure(f"is not ready after {START_SECONDS:.0f} s ({self._part.ready_url}: {self._answer})")
            ) from None

    async def stop(self) -> None:
        """Stop the part; harmless when it never started."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._process is not None:
            await self._process.stop(self._part.stop_seconds)
            self._process = None
        self._set(pid=None, ready=False, state="Stopped", started_at=None)

    async def _keep_running(self, http: aiohttp.ClientSession) -> None:
        backoff = Backoff()
        while True:
            started = time.monotonic()
            try:
                exit_code = await self._run_once(http)
            except OSError as error:
                exit_code = 127
                self._set(message=f"cannot be started: {error.strerror}")
            self._process = None
            attempts = self.status.restarts + 1
            gives_up = not self._first_ready.done() and attempts >= START_ATTEMPTS
            backoff.ran_for(time.monotonic() - started)
            delay = backoff.next_delay()
            ended = f"ended with exit code {exit_code}"
            message = ended if gives_up else f"{ended}, starts again in {delay:g} s"
            self._set(pid=None, ready=False, state="BackOff", message=message, restarts=attempts, started_at=None)
            if gives_up:
                self._first_ready.set_exception(DevError(self._failure(ended)))
                return
            await asyncio.sleep(delay)

    async def _run_once(self, http: aiohttp.ClientSession) -> int:
        """Start the process, follow its readiness until it ends, and return the exit code."""
        _rotate(self._log)
        with self._log.open("ab") as log:
            process = self._processes.start(self._part.command, environment=self._part.environment, output=log)
        self._process = process
        self._set(pid=process.pid, state="Starting", started_at=time.time())
        readiness = asyncio.create_task(self._follow_readiness(http))
        try:
            return await process.wait()
        finally:
            readiness.cancel()

    async def _follow_readiness(self, http: aiohttp.ClientSession) -> None:
        started = time.monotonic()
        while True:
            is_ready = await self._is_ready(http)
            if is_ready and not self.status.ready:
                seconds = self.status.seconds_to_ready or time.monotonic() - started
                self._set(ready=True, state="Ready", message="", seconds_to_ready=seconds)
                if not self._first_ready.done():
                    self._first_ready.set_result(None)
            elif not is_ready and self.status.ready:
                self._set(ready=False, state="NotReady", message=f"{self._part.ready_url} answers: {self._answer}")
            # Quick while it matters, then only to keep `status` honest.
            await asyncio.sleep(3.0 if self.status.ready else 0.05)

    async def _is_ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(self._part.ready_url, ssl=self._part.ready_tls or True) as response:
                self._answer = f"{response.status} {response.reason}"
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._answer = str(error) or type(error).__name__
            return False

    def _failure(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.exists() else []
        shown = "".join(f"\n  {line[:300]}" for line in lines)
        more = dev_command(f"logs {self._part.name}", self._directory)
        return f"{self._part.name} {what}. The end of its log:{shown}\nMore of it: {more}"

    def _set(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        self._changed()


class Supervisor:
    """One running control plane. The caller holds the lock of the state directory."""

    def __init__(
        self,
        directory: StateDirectory,
        binaries: Binaries,
        options: Options,
        previous_ports: dict[str, int],
        on_change: Callable[[Snapshot], None],
    ) -> None:
        self._directory = directory
        self._binaries = binaries
        self._options = options
        self._on_change = on_change
        self._processes = Processes(directory.root)
        self._ports = choose_ports(parts.PORT_NAMES, previous_ports, directory.root)
        self._phase: Phase = "starting"
        self._error = ""
        self._runners: dict[str, PartRunner] = {}
        self._kubelet: Kubelet | None = None
        self._stop_requested = asyncio.Event()
        self._publish_scheduled = False
        self._server = f"https://127.0.0.1:{self._ports['apiserver']}"

    async def run(self) -> Snapshot:
        """Run until told to stop (SIGINT, SIGTERM or SIGHUP) or until a part cannot be started; returns the last snapshot."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        self._processes.open()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
                try:
                    await self._start_unless_stopped(http)
                finally:
                    await self._stop()
        except DevError as error:
            self._error = str(error)
        finally:
            self._processes.close()
            self._phase = "failed" if self._error else "stopped"
            self._publish()
        return self.snapshot()

    def stop(self) -> None:
        """Have `run` stop everything and return."""
        self._stop_requested.set()

    def snapshot(self) -> Snapshot:
        """Return what is known now."""
        pods = self._kubelet.statuses() if self._kubelet else []
        return Snapshot(
            phase=self._phase,
            pid=os.getpid(),
            error=self._error,
            ports=self._ports,
            bin_directory=str(self._binaries.kubectl.parent) if self._binaries.kubectl else "",
            parts=(*(runner.status for runner in self._runners.values()), *pods),
        )

    async def _start_unless_stopped(self, http: aiohttp.ClientSession) -> None:
        starting = asyncio.create_task(self._start(http))
        stopping = asyncio.create_task(self._stop_requested.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            self._phase = "running"
            self._publish()
            await stopping
        else:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, DevError):
                await starting

    async def _start(self, http: aiohttp.ClientSession) -> None:
        """Start everything; returns when all is ready."""
        directory, ports, binaries = self._directory, self._ports, self._binaries
        pki = ensure_certificates(directory.pki)
        self._write_kubeconfigs(pki)
        api_tls = tls_context(pki.authority, pki.admin)
        etcd_tls = tls_context(pki.etcd_authority, pki.etcd)
        etcd = self._add(parts.etcd(binaries, directory, ports, pki, etcd_tls))
        apiserver = self._add(parts.kube_apiserver(binaries, directory, ports, pki, api_tls))
        controllers = self._add(parts.kube_controller_manager(binaries, directory, ports, pki, api_tls))
        temporal = self._add(parts.temporal(directory, ports))
        model = self._add(parts.model(ports))
        operator = None
        if self._options.with_operator:
            operator = self._add(parts.operator(directory, ports, self._options.operator_arguments))

        async def start_kubernetes() -> None:
            # Together: the API server keeps trying until etcd is there, and has half a second of its own to do first.
            await _all_or_first_error(etcd.start(http), apiserver.start(http))
            await self._set_up_cluster(pki)
            # It has to find the CRDs: it looks for new kinds every 30 s only, and until then a quota of them refuses all.
            await controllers.start(http)

        await _all_or_first_error(start_kubernetes(), temporal.start(http), model.start(http))
        if operator is not None:
            await operator.start(http)
        await self._wait_for_pods()

    async def _wait_for_pods(self) -> None:
        """Give the pods that an earlier `up` left in the API a moment to be ready again; one that crashes must not hold us up."""
        assert self._kubelet is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PODS_SECONDS):
                while not all(pod.ready for pod in self._kubelet.statuses()):  # noqa: ASYNC110 - many things change it
                    await asyncio.sleep(0.05)

    async def _set_up_cluster(self, pki: Certificates) -> None:
        api = Api(self._server, tls_context(pki.authority, pki.admin))
        try:
            await cluster.set_up(api)
        finally:
            await api.close()
        self._kubelet = Kubelet(
            Api(self._server, tls_context(pki.authority, pki.admin)),
            self._processes,
            self._directory,
            extra_environment=self._pod_environment(),
            changed=self._schedule_publish,
        )
        await self._kubelet.start(self._ports["kubelet"], pki)

    def _pod_environment(self) -> dict[str, str]:
        """Return what every container gets beyond its own environment: the scripted model, unless there is a real key."""
        if os.environ.get("OPENAI_API_KEY"):
            return {}
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{self._ports['model']}/v1"}

    def _write_kubeconfigs(self, pki: Certificates) -> None:
        def write(path: Path, user: str) -> None:
            client = {"admin": pki.admin, "operator": pki.operator, "controller-manager": pki.controller_manager}[user]
            write_atomically(path, kubeconfig(self._server, pki.authority, client, user))

        write(self._directory.kubeconfig, "admin")
        for component in ("operator", "controller-manager"):
            write(self._directory.component_kubeconfig(component), component)

    async def _stop(self) -> None:
        """Stop everything; the API server before etcd, else it hangs for a minute."""
        self._phase = "stopping"
        self._publish()

        async def stop(*names: str) -> None:
            await asyncio.gather(*(self._runners[name].stop() for name in names if name in self._runners))

        async def stop_kubernetes() -> None:
            for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
                await stop(name)

        await stop("operator")
        if self._kubelet is not None:
            await self._kubelet.stop()
        await asyncio.gather(stop_kubernetes(), stop("temporal"), stop("model"))

    def _add(self, part: Part) -> PartRunner:
        runner = PartRunner(part, self._directory, self._processes, self._schedule_publish)
        self._runners[part.name] = runner
        self._schedule_publish()
        return runner

    def _schedule_publish(self) -> None:
        """Publish soon: several changes at once make one write."""
        if not self._publish_scheduled:
            self._publish_scheduled = True
            asyncio.get_running_loop().call_later(0.02, self._publish)

    def _publish(self) -> None:
        self._publish_scheduled = False
        snapshot = self.snapshot()
        write_snapshot(self._directory, snapshot)
        self._on_change(snapshot)


async def _all_or_first_error(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Await all at once; the first error cancels the others and is raised as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.rename(log.with_suffix(".log.1"))
