"""One Pod as local processes: binds it, starts its containers, restarts them, reports its status and removes it at the end.

Each pod has one `PodRunner` with a task of its own, so pods never wait for each other. The kubelet tells it of three things,
all level-triggered: the newest version of the pod, a change of a Secret or ConfigMap it uses, and that it is gone.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from dalang_cli.dev import pod_spec, pod_status
from dalang_cli.dev.api import Api, ApiError, Object
from dalang_cli.dev.backoff import Backoff
from dalang_cli.dev.pod_spec import MissingSource, PodFacts, SourceKind
from dalang_cli.dev.pod_status import ContainerState, Running, Terminated, Waiting, timestamp
from dalang_cli.dev.pod_tokens import PodTokens
from dalang_cli.dev.probes import Probing
from dalang_cli.dev.processes import Process, Processes
from dalang_cli.dev.state import PartStatus, StateDirectory, write_atomically

POOL_LABEL = "dalang.dev/pool"
POOL_ENTRYPOINT = ("dalang",)
"""What the worker image starts when a container names no command."""
DOWN_GRACE_SECONDS = 10.0
"""`dalang dev down` gives no pod longer than this to end."""
RETRY_SECONDS = 1.0
TOKEN_LOOK_SECONDS = 30.0
"""How often to look whether a token is near its end; none lives shorter than ten minutes."""
NO_INIT_CONTAINERS = "dalang dev runs no init containers; put what they do into the container's command"
NO_PROGRAM = "dalang dev runs commands found on this machine, not images"

INHERITED_VARIABLES = frozenset(
    {
        *("HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "PYTHONPATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)
"""What a container gets of this machine's environment, as an image would bring it; never keys or tokens."""


def image_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what stands for an image's own environment: PATH with this Python's programs first, locale, proxies."""
    kept = {name: value for name, value in environment.items() if name in INHERITED_VARIABLES or name.startswith("LC_")}
    programs = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    path = [*dict.fromkeys(programs), environment.get("PATH", os.defpath)]
    return {**kept, "PATH": os.pathsep.join(path)}


@dataclass(frozen=True)
class Node:
    """What all pods share."""

    name: str
    api: Api
    http: aiohttp.ClientSession
    """For probes."""
    processes: Processes
    directory: StateDirectory
    extra_environment: Mapping[str, str]
    """Added to every container that does not set these variables itself."""
    changed: Callable[[], None]
    """Is called when the pod's line in `dalang dev status` changes."""


class FreshSources(Protocol):
    """The Secrets and ConfigMaps of a pod's namespace: at hand, and read anew on demand."""

    def __call__(self, kind: SourceKind, name: str) -> Object | None: ...

    async def refresh(self, references: Iterable[tuple[SourceKind, str]]) -> None: ...


class ContainerRunner:
    """Runs one container again and again, as its pod's restart policy says."""

    def __init__(self, pod: "PodRunner", spec: Object, state: ContainerState) -> None:
        self.state = state
        self.process: Process | None = None
        self._pod = pod
        self._spec = spec

    async def run(self) -> None:
        """Return when the container has ended for good."""
        backoff = Backoff()
        if self.state.restarts:
            backoff.next_delay()
        while True:
            began = time.monotonic()
            ended = await self._run_once()
            policy = self._pod.restart_policy
            if policy == "Never" or (policy == "OnFailure" and ended.exit_code == 0):
                self._set(state=ended, ready=False, started=False)
                return
            backoff.ran_for(time.monotonic() - began)
            delay = backoff.next_delay()
            why = f"back-off {delay:g}s restarting failed container={self.state.name} pod={self._pod.part_name}"
            self._set(state=Waiting("CrashLoopBackOff", why), last=ended, ready=False, started=False)
            await asyncio.sleep(delay)
            self._set(restarts=self.state.restarts + 1)

    def refuse(self, why: Waiting) -> None:
        """Say why the container is not going to run."""
        self._set(state=why)

    async def stop(self, grace_seconds: float) -> None:
        """End the process; `run` must have been cancelled, else it starts the next."""
        if self.process is not None:
            exit_code = await self.process.stop(grace_seconds)
            started = self.state.state.started_at if isinstance(self.state.state, Running) else ""
            self._set(state=Terminated(exit_code, started, timestamp()), ready=False, started=False)
            self.process = None

    async def _run_once(self) -> Terminated:
        """Start the container, wait for its end and return how it ended."""
        environment, command, directory = await self._prepare()
        log = self._pod.log_file(self.state.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        started_at = timestamp()
        try:
            with log.open("ab") as output:
                process = self._pod.node.processes.start(
                    command, environment=environment, output=output, directory=directory
                )
        except OSError as error:
            return Terminated(128, started_at, timestamp(), f"{command[0]}: {error.strerror}", "StartError")
        self.process = process
        probing = Probing(
            self._pod.node.http, self._spec, self._pod.ip, became=self._became, unhealthy=self._restart_unhealthy
        )
        self.state = replace(self.state, state=Running(started_at))
        probes = asyncio.create_task(probing.run())
        # The probes' first report comes before anybody can read the state, so a container without probes is written once.
        await asyncio.sleep(0)
        self._pod.state_changed()
        try:
            exit_code = await process.wait()
        finally:
            probes.cancel()
        self.process = None
        return Terminated(exit_code, started_at, timestamp(), _last_line(log) if exit_code else "")

    async def _prepare(self) -> tuple[dict[str, str], list[str], Path]:
        """Resolve environment and command; waits as long as something they need is missing."""
        pod = self._pod
        while True:
            await pod.sources.refresh(pod.references)
            try:
                await pod.refresh_tokens()
                own = pod_spec.container_environment(self._spec, pod.facts, pod.sources)
                pod.write_volumes()
            except MissingSource as error:
                self._set(state=Waiting("CreateContainerConfigError", str(error)))
                await pod.wait_for_sources()
                continue
            image = image_environment()
            mounts = pod_spec.local_mounts(self._spec, pod.volume_directories)
            mounts = link_parents(mounts, pod.directory / "root" / self.state.name)
            rewritten = {name: pod_spec.rewrite(value, mounts) for name, value in own.items()}
            environment = {**image, "HOSTNAME": pod.facts.name, **pod.node.extra_environment, **rewritten}
            command = pod_spec.command_line(self._spec, pod.entrypoint, own, mounts)
            program = shutil.which(command[0], path=environment["PATH"]) if command else None
            if program is None:
                named = f"{command[0]} is not one" if command else "the container names no command"
                self._set(state=Waiting("ErrImageNeverPull", f"{NO_PROGRAM}: {named}"))
                await asyncio.sleep(RETRY_SECONDS * 5)
                continue
            return environment, [program, *command[1:]], self._working_directory(mounts)

    def _working_directory(self, mounts: Mapping[str, Path]) -> Path:
        working = pod_spec.rewrite(self._spec.get("workingDir", ""), mounts)
        return Path(working) if working and Path(working).is_dir() else self._pod.directory

    async def _restart_unhealthy(self, why: str) -> None:
        if self.process is not None:
            with self._pod.log_file(self.state.name).open("a") as log:
                log.write(f"[dalang dev] restarting the container: {why}\n")
            await self.process.stop(self._pod.grace_seconds)

    def _became(self, started: bool, ready: bool) -> None:
        self._set(started=started, ready=ready)

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._pod.state_changed()


class PodRunner:
    """Runs one pod from its binding to its removal."""

    def __init__(self, node: Node, pod: Object, ip: str, sources: FreshSources) -> None:
        self.node = node
        self.pod = pod
        self.ip = ip
        self.sources = sources
        self.facts = PodFacts.of(pod, ip, node.name)
        self.references = pod_spec.referenced_sources(pod["spec"])
        self._tokens = PodTokens(node.api, self.facts, pod["spec"])
        self.restart_policy: str = pod["spec"].get("restartPolicy", "Always")
        self.directory = node.directory.pods / self.facts.uid
        kind = "worker" if POOL_LABEL in self.facts.labels else "pod"
        self.part_name = f"{kind}-{self.facts.namespace}-{self.facts.name}"
        self.entrypoint = POOL_ENTRYPOINT if kind == "worker" else ()
        self.volume_directories = {
            each["name"]: _volume_directory(self.directory, each) for each in pod["spec"].get("volumes") or []
        }
        self._path = f"/api/v1/namespaces/{self.facts.namespace}/pods/{self.facts.name}"
        self._start_time = (pod.get("status") or {}).get("startTime") or timestamp()
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        self._containers = [
            ContainerRunner(
                self,
                spec,
                pod_status.state_after_outage(spec["name"], spec.get("image", ""), statuses, timestamp()),
            )
            for spec in pod["spec"]["containers"]
        ]
        self._started_at = time.time()
        self._deletion = asyncio.Event()
        self._gone = asyncio.Event()
        self._sources_changed = asyncio.Event()
        self._state_changed = asyncio.Event()
        if pod["metadata"].get("deletionTimestamp"):
            self._deletion.set()

    @property
    def grace_seconds(self) -> float:
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        return float(metadata.get("deletionGracePeriodSeconds", spec.get("terminationGracePeriodSeconds", 30)))

    @property
    def container_names(self) -> list[str]:
        return [each.state.name for each in self._containers]

    def log_file(self, container: str) -> Path:
        """Return the file that a container's output goes to."""
        return self.node.directory.pod_log_file(self.part_name, container)

    def update(self, pod: Object) -> None:
        """Take the newest version of the pod."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deletion.set()

    def gone(self) -> None:
        """Learn that the pod is no longer in the API: only its processes are left to end."""
        self._gone.set()
        self._deletion.set()

    def sources_changed(self) -> None:
        """Learn that a Secret or ConfigMap of the pod's namespace changed: rewrite the volumes."""
        self._sources_changed.set()
        with contextlib.suppress(MissingSource):
            self.write_volumes()

    def state_changed(self) -> None:
        """Have the status written."""
        self._state_changed.set()
        self.node.changed()

    def status(self) -> PartStatus:
        """Return the pod's line in `dalang dev status`."""
        states = [each.state for each in self._containers]
        pid = next((each.process.pid for each in self._containers if each.process), None)
        waiting = next((each.state for each in states if isinstance(each.state, Waiting)), None)
        ready = all(each.ready for each in states)
        word = (
            "Stopping" if self._deletion.is_set() else "Ready" if ready else waiting.reason if waiting else "NotReady"
        )
        return PartStatus(
            name=self.part_name,
            pid=pid,
            ready=ready,
            state=word,
            message=waiting.message if waiting else "",
            restarts=sum(each.restarts for each in states),
            started_at=self._started_at,
        )

    async def run(self) -> None:
        """Run the pod until it is deleted; returns when nothing of it is left."""
        background = [asyncio.create_task(self._write_statuses()), asyncio.create_task(self._renew_tokens())]
        try:
            await self._run_until_deleted()
            await self._stop_containers(self.grace_seconds)
        finally:
            for task in background:
                task.cancel()
        if not self._gone.is_set():
            await self._remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def stop(self) -> None:
        """End the processes because the control plane stops; the pod itself stays, to be started again by the next `up`."""
        await self._stop_containers(min(self.grace_seconds, DOWN_GRACE_SECONDS))
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(2):
                await self._write_status()

    async def wait_for_sources(self) -> None:
        """Wait until a Secret or ConfigMap changed, or a moment at most."""
        self._sources_changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._sources_changed.wait()

    async def refresh_tokens(self) -> None:
        """Ask for the tokens of the volumes that are missing or near their end.

        Raises:
            MissingSource: the API server issues none now.
        """
        try:
            await self._tokens.refresh()
        except ApiError as error:
            raise MissingSource(str(error)) from error

    async def _renew_tokens(self) -> None:
        while self._tokens:
            await asyncio.sleep(TOKEN_LOOK_SECONDS)
            with contextlib.suppress(MissingSource):
                await self.refresh_tokens()
                self.write_volumes()

    def write_volumes(self) -> None:
        """Make the files of the volumes equal to their sources.

        Raises:
            MissingSource: one that is not optional is missing.
        """
        for volume in self.pod["spec"].get("volumes") or []:
            if "hostPath" in volume:
                continue
            files = pod_spec.volume_files(volume, self.facts, self.sources, self._tokens)
            synchronize(self.volume_directories[volume["name"]], files, owns_all="emptyDir" not in volume)

    async def _run_until_deleted(self) -> None:
        if self._deletion.is_set():
            return
        containers = asyncio.create_task(self._bind_and_run())
        deletion = asyncio.create_task(self._deletion.wait())
        try:
            await asyncio.wait({containers, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if containers.done():
                await containers
            await deletion
        finally:
            containers.cancel()
            deletion.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await containers

    async def _bind_and_run(self) -> None:
        await self._bind()
        if (self.pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return
        if self.pod["spec"].get("initContainers"):
            for container in self._containers:
                container.refuse(Waiting("InitContainersNotSupported", NO_INIT_CONTAINERS))
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with asyncio.TaskGroup() as group:
            for container in self._containers:
                group.create_task(container.run())

    async def _bind(self) -> None:
        """Assign the pod to our node, which is what a scheduler would do."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": self.facts.name, "uid": self.facts.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node.name},
        }
        while not self.pod["spec"].get("nodeName"):
            try:
                await self.node.api.create(f"{self._path}/binding", body)
                return
            except ApiError as error:
                if error.is_conflict or error.is_missing:
                    return  # bound already, or gone: the watch tells
                await asyncio.sleep(RETRY_SECONDS)

    async def _stop_containers(self, grace_seconds: float) -> None:
        await asyncio.gather(*(each.stop(grace_seconds) for each in self._containers))

    async def _write_statuses(self) -> None:
        while True:
            await self._state_changed.wait()
            self._state_changed.clear()
            try:
                await self._write_status()
            except ApiError as error:
                if error.is_missing or error.is_conflict:
                    continue  # gone, or another pod of the same name: the watch tells
                self._state_changed.set()
                await asyncio.sleep(RETRY_SECONDS / 4)

    async def _write_status(self) -> None:
        previous = self.pod.get("status") or {}
        status = pod_status.pod_status(
            [each.state for each in self._containers],
            restart_policy=self.restart_policy,
            ip=self.ip,
            start_time=self._start_time,
            previous=previous,
            now=timestamp(),
        )
        if any(previous.get(name) != value for name, value in status.items()):
            # A merge patch, which replaces podIPs: the strategic one would add the new address to that of an earlier `up`.
            body: Object = {"metadata": {"uid": self.facts.uid}, "status": status}
            written = await self.node.api.patch(f"{self._path}/status", body)
            if int(written["metadata"]["resourceVersion"]) > int(self.pod["metadata"]["resourceVersion"]):
                self.pod = written

    async def _remove(self) -> None:
        """Take the pod out of the API, as the kubelet does when its containers have ended."""
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.facts.uid},
        }
        while not self._gone.is_set():
            try:
                await self.node.api.delete(self._path, options)
                return
            except ApiError as error:
                if error.is_missing or error.is_conflict:
                    return
                await asyncio.sleep(RETRY_SECONDS)


def link_parents(mounts: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """Add the folders that mounts stand in, such as /var/run/dalang/secrets of /var/run/dalang/secrets/openai.

    Each is a folder below `root` with a link to every mount. Folders of the system (/etc, /var/run) are never replaced, so
    only those three levels deep count.
    """
    parents: dict[str, Path] = {}
    for mounted, local in mounts.items():
        parent, _, name = mounted.rpartition("/")
        if parent.count("/") < 3 or parent in mounts:
            continue
        folder = parents[parent] = root / parent.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(local)
    return {**parents, **mounts}


def synchronize(directory: Path, files: Mapping[str, bytes], *, owns_all: bool) -> None:
    """Make a directory contain these files, each replaced atomically; others are removed when the volume owns all."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        path = directory / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, content)
    if owns_all:
        for path in directory.rglob("*"):
            if path.is_file() and str(path.relative_to(directory)) not in files:
                path.unlink()


def _volume_directory(pod_directory: Path, volume: Object) -> Path:
    host_path = volume.get("hostPath")
    return Path(host_path["path"]) if host_path else pod_directory / "volumes" / volume["name"]


def _last_line(log: Path) -> str:
    """Return the last line of a log, for a message such as `terminated: error (No module named 'shop')`."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2048))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""
