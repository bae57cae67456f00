"""Child processes of the supervisor: the servers, the operator and the containers of pods.

No process may outlive the supervisor, whatever kills it. Three nets, because each has a hole:

- every child asks the kernel (Linux) for SIGKILL when its parent dies: at once, but not passed on to grandchildren;
- every child leads a process group of its own, which is killed as a whole when the child ends: misses what moved to a
  group of its own;
- every child and all it starts carry `DALANG_DEV_SUPERVISOR=<state directory>:<pid of supervisor>:<random>` in their
  environment, and a small `reaper` process kills all that carry it once the supervisor is gone.

Not asyncio's subprocesses: on Python 3.11 they start a thread per child, and the kernel's parent-death signal belongs to
the *thread* that forked. Everything here runs on the main thread, with one SIGCHLD handler.
"""

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

MARKER_VARIABLE = "DALANG_DEV_SUPERVISOR"
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Run in the child before exec; so it must not import, allocate much or take locks."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """A running or ended child that leads its own process group."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, as a shell tells it: 128 + n when signal n ended the process. None while it runs."""
        code = self._popen.returncode
        return code if code is None or code >= 0 else 128 - code

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        await self._ended.wait()
        assert self.exit_code is not None
        return self.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, as a container runtime does; nothing happens when it has ended."""
        if not self._ended.is_set():
            self._popen.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL for the process and all of its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, then SIGKILL after the grace period; returns the exit code."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill_group()
            return await self.wait()

    def notice_end(self) -> bool:
        """Collect the exit status if the process has ended; called on SIGCHLD."""
        if self._popen.poll() is None:
            return False
        self.kill_group()
        self._ended.set()
        return True


class Processes:
    """Starts children and learns of their end. One per supervisor, on the main thread, inside a running event loop."""

    def __init__(self, state_directory: Path) -> None:
        self.marker = f"{marker_prefix(state_directory)}{os.getpid()}:{secrets.token_hex(4)}"
        self._running: set[Process] = set()
        self._reaper: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Listen for ends of children, and start the reaper."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)
        environment = {name: value for name, value in os.environ.items() if name != MARKER_VARIABLE}
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "dalang_cli.dev.reaper", self.marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def close(self) -> None:
        """Let the reaper kill what is left, and wait for it."""
        for process in self._running:
            process.kill_group()
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: IO[bytes] | int,
        directory: Path | None = None,
    ) -> Process:
        """Start a child whose output goes to a file; the environment is complete, nothing is inherited.

        Raises:
            OSError: the program cannot be started.
        """
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**environment, MARKER_VARIABLE: self.marker},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        process = Process(popen)
        self._running.add(process)
        return process

    def _collect(self) -> None:
        self._running = {process for process in self._running if not process.notice_end()}


def marker_prefix(state_directory: Path) -> str:
    """Return what the markers of all supervisors of this state directory begin with."""
    return f"{state_directory.resolve()}:"
