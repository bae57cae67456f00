"""The processes of one bench: the local control plane on a folder of its own, and what each of them costs."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

DALANG = [sys.executable, "-m", "dalang_cli.main"]

GROUPS = ("operator", "worker", "kube-apiserver", "temporal")
"""The parts whose cost is told; all workers count as one."""


@dataclass(frozen=True)
class Cost:
    """CPU seconds since the process began, by group."""

    cpu_seconds: dict[str, float]

    def since(self, earlier: "Cost") -> dict[str, float]:
        return {name: spent - earlier.cpu_seconds.get(name, 0.0) for name, spent in self.cpu_seconds.items()}


class ControlPlane:
    """A running `dalang dev`."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        exports = subprocess.run(
            [*DALANG, "dev", "env", "--state-dir", str(state_dir)], check=True, capture_output=True
        )
        for line in exports.stdout.decode().splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            if name != "PATH":
                os.environ[name] = value.strip("'\"")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The processes of each group, children included."""
        status = subprocess.run(
            [*DALANG, "dev", "status", "-o", "json", "--state-dir", str(self.state_dir)],
            capture_output=True,
            check=False,
        )
        groups: dict[str, list[psutil.Process]] = {name: [] for name in GROUPS}
        for part in json.loads(status.stdout)["parts"]:
            name = "worker" if part["name"].startswith("worker-") else part["name"]
            if name in groups and part["pid"]:
                process = psutil.Process(part["pid"])
                groups[name] += [process, *process.children(recursive=True)]
        return groups

    def cost(self) -> Cost:
        """CPU spent so far."""
        return Cost(
            {
                name: sum(sum(process.cpu_times()[:2]) for process in processes)
                for name, processes in self.processes().items()
            }
        )

    def memory_mib(self, *, peak: bool) -> dict[str, float]:
        """Resident memory by group: now, or the most there ever was."""
        field = "VmHWM" if peak else "VmRSS"
        return {
            name: sum(_memory_mib(process.pid, field) for process in processes)
            for name, processes in self.processes().items()
        }


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Bring `dalang dev` up on a new folder, and down again."""
    with tempfile.TemporaryDirectory(prefix="dalang-bench-") as folder:
        subprocess.run([*DALANG, "dev", "up", "--detach", "--state-dir", folder], check=True)
        try:
            yield ControlPlane(Path(folder))
        finally:
            subprocess.run([*DALANG, "dev", "down", "--state-dir", folder], check=True)


@contextmanager
def bare_worker() -> Iterator[psutil.Process]:
    """Serve the bare workflow in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "bench.bare"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the bare worker did not start")
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


@contextmanager
def agent_worker(installation: str, tools_path: Path) -> Iterator[psutil.Process]:
    """Serve an installation of the bench's own with one `dalang worker`, as a pod runs it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    settings = {
        "TEMPORAL_ADDRESS": os.environ["TEMPORAL_ADDRESS"],
        "INSTALLATION": installation,
        "NAMESPACE": "bench",
        "POOL": "default",
        "TOOLS": "benchtools",
        "TOOLS_PATH": str(tools_path),
        "HTTP_ADDRESS": address,
        "LOG_LEVEL": "warning",
    }
    environment = os.environ | {f"DALANG_{name}": value for name, value in settings.items()}
    with subprocess.Popen([*DALANG, "worker"], env=environment) as process:
        try:
            while not _is_ready(f"http://{address}/readyz"):
                assert process.poll() is None, "the worker did not start"
                time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def _memory_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0
