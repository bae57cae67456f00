"""What one `dalang dev` keeps on disk, and how its commands learn about a supervisor in another process.

Two files make the protocol between the supervisor and the other commands:

- `lock` is held (flock) by the supervisor for as long as it lives and contains its pid. The kernel frees the lock however
  the process ends, so "is it running" needs no guess about recycled pids.
- `state.json` is the supervisor's `Snapshot`, replaced atomically on every change; readers never see half of one.
"""

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dalang_cli.dev.errors import DevError

Phase = Literal["starting", "running", "stopping", "stopped", "failed"]


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return `$DALANG_DEV_STATE_DIR`, else the per-user XDG state directory of `dalang dev`."""
    if chosen := environment.get("DALANG_DEV_STATE_DIR"):
        return Path(chosen)
    base = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "dalang" / "dev"


@dataclass(frozen=True)
class StateDirectory:
    """The paths below one state directory. Mode 0700: it holds private keys and the Secrets of the pods."""

    root: Path

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def snapshot_file(self) -> Path:
        return self.root / "state.json"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    def component_kubeconfig(self, component: str) -> Path:
        """Return the path of the kubeconfig with which a part of ours, not the user, talks to the API server."""
        return self.root / "pki" / f"{component}.kubeconfig"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def temporal_database(self) -> Path:
        return self.root / "temporal.db"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pods(self) -> Path:
        return self.root / "pods"

    def log_file(self, part: str) -> Path:
        """Return the log file of a part that is not a pod."""
        return self.logs / f"{part}.log"

    def pod_log_file(self, part: str, container: str) -> Path:
        """Return the log file of one container; `part` is the pod's name in `dalang dev status`."""
        return self.logs / "pods" / part / f"{container}.log"

    def create(self) -> None:
        """Make the directories that everything else relies on."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
            for directory in (self.pki, self.etcd, self.logs, self.pods):
                directory.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise DevError(
                f"The state directory {self.root} cannot be used: {error.strerror}. Choose another with --state-dir."
            ) from error


@dataclass(frozen=True)
class PartStatus:
    """One process of the control plane, or one pod."""

    name: str
    pid: int | None = None
    ready: bool = False
    state: str = "Waiting"
    """Waiting, Starting, Ready, NotReady, BackOff or Stopped: for humans."""
    message: str = ""
    restarts: int = 0
    started_at: float | None = None
    """When the present process was started, in seconds since the epoch."""
    seconds_to_ready: float | None = None
    """How long it took from the start to the first readiness."""


@dataclass(frozen=True)
class Snapshot:
    """All that is known from outside about one supervisor."""

    phase: Phase = "stopped"
    pid: int | None = None
    error: str = ""
    """Why the phase is `failed`: a text for the user."""
    ports: dict[str, int] = field(default_factory=dict)
    """The ports by name, kept from one `up` to the next as long as they are free."""
    bin_directory: str = ""
    """The folder with kubectl, for the user's PATH."""
    parts: tuple[PartStatus, ...] = ()

    @property
    def all_ready(self) -> bool:
        return self.phase == "running" and all(part.ready for part in self.parts)

    def address(self, port_name: str) -> str:
        """Return `127.0.0.1:<port>`."""
        return f"127.0.0.1:{self.ports[port_name]}"


def dev_command(name: str, directory: StateDirectory) -> str:
    """Return the command line of `dalang dev NAME` for this directory, as it is shown to the user.

    It works in any shell: one that is opened later need not have this one's variables.
    """
    is_default = directory.root == default_state_directory({})
    program = "dalang"
    if shutil.which(program) is None and Path(sys.argv[0]).name == program:
        program = os.path.relpath(sys.argv[0])
    return f"{program} dev {name}" + ("" if is_default else f" --state-dir {shlex.quote(str(directory.root))}")


def read_snapshot(directory: StateDirectory) -> Snapshot:
    """Return the last snapshot written, or an empty one (phase `stopped`) when there is none."""
    try:
        content: dict[str, Any] = json.loads(directory.snapshot_file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return Snapshot()
    except ValueError as error:
        raise DevError(f"{directory.snapshot_file} is damaged ({error}). Remove it, then: dalang dev up") from error
    parts = tuple(PartStatus(**part) for part in content.pop("parts"))
    return Snapshot(**content, parts=parts)


def current_snapshot(directory: StateDirectory) -> Snapshot:
    """Like `read_snapshot`, but tells the truth when the supervisor died without saying so."""
    holder = lock_holder(directory)
    snapshot = read_snapshot(directory)
    if holder is None:
        phase: Phase = "failed" if snapshot.phase == "failed" else "stopped"
        return replace(snapshot, phase=phase, pid=None, parts=())
    if snapshot.pid != holder:
        return replace(snapshot, phase="starting", pid=holder, error="", parts=())
    return snapshot


def write_snapshot(directory: StateDirectory, snapshot: Snapshot) -> None:
    """Replace the snapshot file."""
    write_atomically(directory.snapshot_file, json.dumps(asdict(snapshot), indent=1).encode())


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
    temporary.rename(path)


class SupervisorLock:
    """The right to be the supervisor of a state directory; freed by the kernel when the process ends."""

    def __init__(self, directory: StateDirectory) -> None:
        self._path = directory.lock_file
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another process holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def lock_holder(directory: StateDirectory) -> int | None:
    """Return the pid of the living supervisor of this directory, or None."""
    try:
        descriptor = os.open(directory.lock_file, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        content = os.pread(descriptor, 32, 0)
        return int(content) if content else -1
    finally:
        os.close(descriptor)
    return None
