"""Scheduler and kubelet of `dalang dev`: registers a Node and runs every Pod as local processes.

Runs inside the supervisor. It follows the API by list and watch (`Reflector`), so an API server that is restarted costs
nothing: the processes keep running and the next list tells what was missed. What it does not do: images, mounts, limits,
networks, init containers; `pod_spec` says what is done instead of mounts, and each pod gets a loopback address of its own.
"""

import asyncio
import contextlib
import logging
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import aiohttp

from dalang_cli.dev.api import STRATEGIC_MERGE_PATCH, Api, ApiError, Object, Reflector
from dalang_cli.dev.binaries import KUBERNETES_VERSION
from dalang_cli.dev.certificates import Certificates
from dalang_cli.dev.kubelet_server import KubeletServer
from dalang_cli.dev.pod_process import Node, PodRunner
from dalang_cli.dev.pod_spec import SourceKind
from dalang_cli.dev.pod_status import timestamp
from dalang_cli.dev.ports import directory_hash
from dalang_cli.dev.processes import Processes
from dalang_cli.dev.state import PartStatus, StateDirectory

NODE_NAME = "dalang-dev"
LAST_HOST = 65_534
SOURCE_RESOURCES: Mapping[SourceKind, str] = {"Secret": "secrets", "ConfigMap": "configmaps"}
RETRY_SECONDS = 1.0
KEPT_POD_LOGS = 100
"""How many pods' logs an `up` keeps of those before it."""
LOG = logging.getLogger(__name__)


class Addresses:
    """Hands out 127.a.b.c addresses: `a`, and where b.c begins, depend on the state directory, so neighbours differ."""

    def __init__(self, directory: Path) -> None:
        number = directory_hash(directory)
        self._network = 1 + number % 254
        self._next = (number >> 8) % LAST_HOST
        self._taken: set[str] = set()

    def take(self) -> str:
        """Return an address that no pod has; 127.0.0.1 where the system has no other (macOS)."""
        while True:
            self._next = self._next % LAST_HOST + 1
            address = f"127.{self._network}.{self._next >> 8}.{self._next & 255}"
            if address not in self._taken:
                break
        if not _can_bind(address):
            return "127.0.0.1"
        self._taken.add(address)
        return address

    def give_back(self, address: str) -> None:
        """Make an address available again."""
        self._taken.discard(address)


class PodSources:
    """The Secrets and ConfigMaps of one namespace, out of the kubelet's copies."""

    def __init__(self, api: Api, copies: Mapping[SourceKind, Reflector], namespace: str) -> None:
        self._api = api
        self._copies = copies
        self._namespace = namespace

    def __call__(self, kind: SourceKind, name: str) -> Object | None:
        return self._copies[kind].objects.get((self._namespace, name))

    async def refresh(self, references: Iterable[tuple[SourceKind, str]]) -> None:
        """Ask the API for these.

        The pod, its Secret and its ConfigMap come by three watches, in any order: without this a container could start
        with the state before the change that its author applied first.
        """

        async def refresh_one(kind: SourceKind, name: str) -> None:
            path = f"/api/v1/namespaces/{self._namespace}/{SOURCE_RESOURCES[kind]}/{name}"
            with contextlib.suppress(ApiError):
                self._copies[kind].learn(await self._api.get(path))

        await asyncio.gather(*(refresh_one(kind, name) for kind, name in references))


class Kubelet:
    """All pods of the node."""

    def __init__(
        self,
        api: Api,
        processes: Processes,
        directory: StateDirectory,
        *,
        extra_environment: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self._api = api
        self._directory = directory
        self._addresses = Addresses(directory.root)
        self._changed = changed
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        self._node = Node(
            name=NODE_NAME,
            api=api,
            http=self._http,
            processes=processes,
            directory=directory,
            extra_environment=extra_environment,
            changed=changed,
        )
        self._pods = Reflector(api, "/api/v1/pods", self._pod_changed, self._pod_deleted)
        self._sources: dict[SourceKind, Reflector] = {
            kind: Reflector(
                api,
                f"/api/v1/{resource}",
                partial(self._source_changed, kind),
                partial(self._source_changed, kind),
            )
            for kind, resource in SOURCE_RESOURCES.items()
        }
        self._runners: dict[str, PodRunner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []
        self._server: KubeletServer | None = None

    async def start(self, port: int, pki: Certificates) -> None:
        """Register the node and follow the pods."""
        shutil.rmtree(self._directory.pods, ignore_errors=True)
        self._directory.pods.mkdir(mode=0o700)
        _remove_old_logs(self._directory.logs / "pods")
        self._server = KubeletServer(self._find_log, pki)
        await self._server.start(port)
        await self._register_node(port)
        for reflector in (*self._sources.values(), self._pods):
            self._background.append(asyncio.create_task(reflector.run()))
            await reflector.synced.wait()

    async def stop(self) -> None:
        """End all pods' processes; the pods stay in the API and are started again by the next `up`."""
        await _cancel(self._background)
        await _cancel(self._tasks.values())
        await asyncio.gather(*(runner.stop() for runner in self._runners.values()))
        self._runners.clear()
        if self._server is not None:
            await self._server.close()
        await self._http.close()
        await self._api.close()

    def _find_log(self, namespace: str, pod: str, container: str) -> Path | None:
        for runner in self._runners.values():
            if (runner.facts.namespace, runner.facts.name) == (namespace, pod):
                return runner.log_file(container) if container in runner.container_names else None
        return None

    def statuses(self) -> list[PartStatus]:
        """Return a line per pod."""
        return sorted((runner.status() for runner in self._runners.values()), key=lambda status: status.name)

    def _pod_changed(self, pod: Object) -> None:
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        if (runner := self._runners.get(uid)) is not None:
            runner.update(pod)
            return
        is_ours = spec.get("nodeName", NODE_NAME) == NODE_NAME and not spec.get("schedulingGates")
        if not is_ours or (pod["metadata"].get("deletionTimestamp") and not spec.get("nodeName")):
            return
        runner = PodRunner(
            self._node,
            pod,
            self._addresses.take(),
            PodSources(self._api, self._sources, pod["metadata"]["namespace"]),
        )
        self._runners[uid] = runner
        self._tasks[uid] = asyncio.create_task(self._run(uid, runner))

    async def _run(self, uid: str, runner: PodRunner) -> None:
        while True:
            try:
                await runner.run()
                break
            except Exception:  # a pod we do not understand must not take the others with it
                LOG.exception("pod %s: internal error", runner.part_name)
                await runner.stop()
                await asyncio.sleep(RETRY_SECONDS)
        del self._runners[uid], self._tasks[uid]
        self._addresses.give_back(runner.ip)
        self._changed()

    def _pod_deleted(self, pod: Object) -> None:
        if (runner := self._runners.get(pod["metadata"]["uid"])) is not None:
            runner.gone()

    def _source_changed(self, kind: SourceKind, source: Object) -> None:
        metadata = source["metadata"]
        for runner in self._runners.values():
            if runner.facts.namespace == metadata["namespace"] and (kind, metadata["name"]) in runner.references:
                runner.sources_changed()

    async def _register_node(self, port: int) -> None:
        labels = {
            "kubernetes.io/hostname": NODE_NAME,
            "kubernetes.io/os": platform.system().lower(),
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        }
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME, "labels": labels}}
        with contextlib.suppress(ApiError):
            await self._api.create("/api/v1/nodes", node)
        capacity = {
            "cpu": str(os.cpu_count() or 1),
            "memory": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
            "pods": "250",
        }
        status: Object = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "DalangDev",
                    "message": "dalang dev runs pods as local processes",
                    "lastHeartbeatTime": timestamp(),
                    "lastTransitionTime": timestamp(),
                }
            ],
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": "localhost"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "nodeInfo": {
                "architecture": labels["kubernetes.io/arch"],
                "bootID": "",
                "containerRuntimeVersion": "processes://1",
                "kernelVersion": platform.release(),
                "kubeProxyVersion": "",
                "kubeletVersion": KUBERNETES_VERSION,
                "machineID": "",
                "operatingSystem": labels["kubernetes.io/os"],
                "osImage": platform.platform(),
                "systemUUID": "",
            },
        }
        await self._api.patch(f"/api/v1/nodes/{NODE_NAME}/status", {"status": status}, STRATEGIC_MERGE_PATCH)


def _remove_old_logs(directory: Path) -> None:
    newest_first = sorted(directory.glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in newest_first[KEPT_POD_LOGS:]:
        shutil.rmtree(folder, ignore_errors=True)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)


def _can_bind(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        try:
            candidate.bind((address, 0))
        except OSError:
            return False
    return True
