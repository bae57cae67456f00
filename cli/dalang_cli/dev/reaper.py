"""Kills what a supervisor left behind: `python -m dalang_cli.dev.reaper MARKER` waits for the supervisor's end, then acts.

The supervisor holds the other end of our stdin; the kernel closes it however the supervisor ends. The processes are found by
the marker in their environment (see processes.py), so no list has to be kept and nothing can be missing from it.
"""

import contextlib
import os
import signal
import sys
import time

import psutil

from dalang_cli.dev.processes import MARKER_VARIABLE


def marked_processes(prefix: str) -> list[psutil.Process]:
    """Return the living processes whose marker begins with `prefix`, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARKER_VARIABLE, "").startswith(prefix):
                found.append(process)
    return found


def kill_marked(prefix: str, timeout_seconds: float = 10.0) -> int:
    """Kill all processes whose marker begins with `prefix`, until none is left; returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_seconds
    while (processes := marked_processes(prefix)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed.add(process.pid)
        psutil.wait_procs(processes, timeout=1)
    return len(killed)


def main() -> int:
    """Wait for the end of stdin, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
