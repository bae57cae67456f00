"""`dalang dev up`: the supervisor in this process, or in another one that is followed until all is ready."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from dalang_cli.dev.binaries import Binaries, ensure_binaries
from dalang_cli.dev.errors import DevError
from dalang_cli.dev.main import environment_hint
from dalang_cli.dev.options import Options
from dalang_cli.dev.processes import MARKER_VARIABLE, marker_prefix
from dalang_cli.dev.progress import Progress
from dalang_cli.dev.reaper import kill_marked
from dalang_cli.dev.state import (
    Snapshot,
    StateDirectory,
    SupervisorLock,
    current_snapshot,
    dev_command,
    lock_holder,
    read_snapshot,
)

if TYPE_CHECKING:
    from dalang_cli.dev.supervisor import Supervisor

POLL_SECONDS = 0.05
HANDED_OVER = b"k"


def up(directory: StateDirectory, options: Options, *, detach: bool) -> int:
    """Run `dalang dev up`; returns the exit code.

    Raises:
        DevError: it could not be started; nothing is left running.
    """
    directory.create()
    if lock_holder(directory) is not None:
        return _join_running(directory, detach=detach)
    return _up_in_background(directory, options) if detach else _up_here(directory, options)


def _up_here(directory: StateDirectory, options: Options) -> int:
    started = time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lock = SupervisorLock(directory)
    with Progress() as progress:
        binaries = ensure_binaries(progress.report)
    if not lock.acquire():
        return _join_running(directory, detach=False)
    try:
        kill_marked(marker_prefix(directory.root))
        snapshot = asyncio.run(_supervise(directory, binaries, options, started))
    finally:
        lock.release()
    if snapshot.error:
        raise DevError(f"{snapshot.error}\nEverything was stopped again.")
    print(f"Stopped. The data is kept in {directory.root}; go on with: {dev_command('up', directory)}", flush=True)
    return 0


def _up_in_background(directory: StateDirectory, options: Options) -> int:
    started = time.monotonic()
    with Progress() as progress:
        ensure_binaries(progress.report)
        child = _start_in_background(directory, options)
        try:
            _follow(directory, child, progress)
        except KeyboardInterrupt:
            print("Stopping.", file=sys.stderr)
            child.terminate()
            child.wait()
            raise
    snapshot = current_snapshot(directory)
    if snapshot.pid != child.pid:
        return _join_running(directory, detach=True)
    print(welcome(directory, snapshot, time.monotonic() - started))
    return 0


async def _supervise(directory: StateDirectory, binaries: Binaries, options: Options, started: float) -> Snapshot:
    """Run the supervisor to its end, showing what happens."""
    from dalang_cli.dev.supervisor import Supervisor  # here, for it takes half a second that --detach need not wait

    with Progress() as progress:
        greeted = False

        def on_change(snapshot: Snapshot) -> None:
            nonlocal greeted
            progress.show(snapshot)
            if snapshot.phase == "running" and not greeted:
                greeted = True
                progress.finish()
                print(welcome(directory, snapshot, time.monotonic() - started), flush=True)
                print("Ctrl-C stops everything.", flush=True)
            if snapshot.phase == "stopping":
                progress.finish()

        supervisor = Supervisor(directory, binaries, options, read_snapshot(directory).ports, on_change)
        ticking = asyncio.create_task(_tick(progress))
        try:
            if options.hand_over:
                _stop_unless_handed_over(supervisor)
            return await supervisor.run()
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking


def _stop_unless_handed_over(supervisor: "Supervisor") -> None:
    """Stop when `up --detach`, at the other end of our stdin, ends (killed, interrupted) without its word that all is well."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        loop.remove_reader(sys.stdin.fileno())
        if os.read(sys.stdin.fileno(), 1) != HANDED_OVER:
            supervisor.stop()

    loop.add_reader(sys.stdin.fileno(), read)


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(0.1)
        progress.tick()


def _start_in_background(directory: StateDirectory, options: Options) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dalang_cli.main", "dev", "up", "--hand-over", "--state-dir", str(directory.root)]
    if not options.with_operator:
        command.append("--without-operator")
    command += [f"--operator-arg={argument}" for argument in options.operator_arguments]
    environment = {name: value for name, value in os.environ.items() if name != MARKER_VARIABLE}
    with directory.log_file("supervisor").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _follow(directory: StateDirectory, child: subprocess.Popen[bytes], progress: Progress) -> None:
    """Show the progress of a supervisor in the background until it is ready.

    Raises:
        DevError: it ended instead.
    """
    while True:
        ended = child.poll() is not None
        snapshot = read_snapshot(directory)
        if snapshot.pid == child.pid:
            progress.show(snapshot)
            if snapshot.phase == "running":
                assert child.stdin is not None
                child.stdin.write(HANDED_OVER)
                child.stdin.close()
                return
        if ended:
            if snapshot.pid == child.pid and snapshot.error:
                raise DevError(f"{snapshot.error}\nEverything was stopped again.")
            if child.returncode == 0 and lock_holder(directory) is not None:
                return  # another `up` was faster
            log = directory.log_file("supervisor").read_text(errors="replace").strip()
            raise DevError(f"The supervisor ended with exit code {child.returncode}:\n{log[-2000:]}")
        progress.tick()
        time.sleep(POLL_SECONDS)


def _join_running(directory: StateDirectory, *, detach: bool) -> int:
    """Say that it is running already; with `--detach`, first wait until it is ready."""
    while detach and (snapshot := current_snapshot(directory)).phase == "starting":
        time.sleep(POLL_SECONDS)
    snapshot = current_snapshot(directory)
    if snapshot.phase in {"stopped", "failed"}:
        raise DevError(snapshot.error or f"It ended just now. Try again: {dev_command('up', directory)}")
    print(
        f"dalang dev is already {snapshot.phase} in {directory.root} (pid {snapshot.pid}).\n"
        f"  {dev_command('status', directory)}    shows its parts\n"
        f"  {dev_command('down', directory)}      stops it; needed before options of `up` can change"
    )
    return 0


def welcome(directory: StateDirectory, snapshot: Snapshot, seconds: float) -> str:
    """Return what the user reads when all is ready: what to do next."""
    return "\n".join(
        [
            "",
            f"Ready in {seconds:.1f} s. In the shell you work in:",
            "",
            f"  {environment_hint(directory)}",
            "  kubectl get agentruns --all-namespaces",
            "",
            f"Temporal UI  http://{snapshot.address('temporal-ui')}",
            f"Status       {dev_command('status', directory)}",
            f"Logs         {dev_command('logs', directory)} [part]",
            f"Stop         {dev_command('down', directory)}",
        ]
    )
