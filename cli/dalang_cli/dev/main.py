"""`dalang dev`: the commands `up`, `down`, `status`, `env` and `logs`, all on one state directory.

`up` is the supervisor itself; `up --detach` starts another `up` in the background and follows its snapshot file. The other
commands only read that file, and `down` sends SIGTERM. Heavy modules are imported by the commands that need them.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from dalang_cli.dev.errors import DevError
from dalang_cli.dev.state import (
    Snapshot,
    StateDirectory,
    current_snapshot,
    default_state_directory,
    dev_command,
    lock_holder,
)

DOWN_SECONDS = 60.0
NOT_RUNNING_EXIT_CODE = 3


def main(argv: list[str]) -> int:
    """Run `dalang dev ARGV`; returns the exit code."""
    options = _parser().parse_args(argv)
    directory = StateDirectory((options.state_dir or default_state_directory()).expanduser().absolute())
    try:
        return int(options.run(directory, options))
    except DevError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `dalang dev logs | head`: the reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dalang dev",
        description="A real Kubernetes API, Temporal and the Dalang operator on this machine, without Docker or root.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where data, certificates and logs are kept (default: $DALANG_DEV_STATE_DIR, else ~/.local/state/dalang/dev)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[common], help="start everything, or go on where `down` stopped")
    up.add_argument("--detach", "-d", action="store_true", help="return when all is ready, and run in the background")
    up.add_argument("--without-operator", action="store_true", help="start the servers only")
    up.add_argument(
        "--operator-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="a further argument for `dalang operator`, such as --operator-arg=--log-level=debug (may be repeated)",
    )
    up.add_argument("--hand-over", action="store_true", help=argparse.SUPPRESS)
    up.set_defaults(run=_up)

    down = commands.add_parser("down", parents=[common], help="stop everything; the data is kept")
    down.set_defaults(run=_down)

    status = commands.add_parser("status", parents=[common], help="show all parts; exit code 0 when all are ready")
    status.add_argument("--output", "-o", choices=["table", "json"], default="table")
    status.set_defaults(run=_status)

    env = commands.add_parser("env", parents=[common], help='print exports for a shell: eval "$(dalang dev env)"')
    env.set_defaults(run=_env)

    logs = commands.add_parser("logs", parents=[common], help="show the log of one part, or the end of every log")
    logs.add_argument("part", nargs="?", help="a name, or the beginning of one, as shown by `dalang dev status`")
    logs.add_argument("--follow", "-f", action="store_true", help="go on with what is written from now on")
    logs.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
    logs.set_defaults(run=_logs)
    return parser


def _up(directory: StateDirectory, options: argparse.Namespace) -> int:
    from dalang_cli.dev.options import Options
    from dalang_cli.dev.up import up

    return up(
        directory,
        Options(
            with_operator=not options.without_operator,
            operator_arguments=tuple(options.operator_arg),
            hand_over=options.hand_over,
        ),
        detach=options.detach,
    )


def _down(directory: StateDirectory, options: argparse.Namespace) -> int:
    from dalang_cli.dev.processes import marker_prefix
    from dalang_cli.dev.reaper import kill_marked

    started = time.monotonic()
    pid = lock_holder(directory)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while lock_holder(directory) == pid or _is_alive(pid):
            if time.monotonic() - started > DOWN_SECONDS:
                print(f"The supervisor (pid {pid}) does not end; it is killed.", file=sys.stderr)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    left_over = kill_marked(marker_prefix(directory.root))
    if pid is None and not left_over:
        print(_not_running(directory))
    else:
        print(f"Stopped in {time.monotonic() - started:.1f} s. The data is kept in {directory.root}")
    return 0


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended counts as gone even before its parent has asked for its exit code."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _status(directory: StateDirectory, options: argparse.Namespace) -> int:
    snapshot = current_snapshot(directory)
    if options.output == "json":
        parts = [{"name": part.name, "pid": part.pid, "ready": part.ready} for part in snapshot.parts]
        print(json.dumps({"parts": parts}, indent=1))
    elif snapshot.pid is None or snapshot.phase in {"stopped", "failed"}:
        print(_not_running(directory))
        if snapshot.error:
            print(f"The last start failed: {snapshot.error}")
    else:
        _print_status(directory, snapshot)
    if snapshot.phase in {"stopped", "failed"}:
        return NOT_RUNNING_EXIT_CODE
    return 0 if snapshot.all_ready else 1


def _print_status(directory: StateDirectory, snapshot: Snapshot) -> None:
    print(f"dalang dev is {snapshot.phase} in {directory.root} (pid {snapshot.pid})\n")
    rows = [("NAME", "PID", "STATE", "RESTARTS", "AGE", "")]
    for part in snapshot.parts:
        age = _age(time.time() - part.started_at) if part.started_at else ""
        rows.append((part.name, str(part.pid or ""), part.state, str(part.restarts), age, part.message))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    if "temporal-ui" in snapshot.ports:
        print(f"\nTemporal UI  http://{snapshot.address('temporal-ui')}")
        print(f"kubectl      {environment_hint(directory)}")


def environment_hint(directory: StateDirectory) -> str:
    """Return the line with which a user's shell learns of this control plane."""
    return f'eval "$({dev_command("env", directory)})"'


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7200 else f"{seconds / 3600:.0f}h"


def _env(directory: StateDirectory, options: argparse.Namespace) -> int:
    snapshot = current_snapshot(directory)
    if snapshot.pid is None or not snapshot.ports:
        raise DevError(_not_running(directory))
    exports = {
        "KUBECONFIG": str(directory.kubeconfig),
        "TEMPORAL_ADDRESS": snapshot.address("temporal"),
        "DALANG_MODEL_URL": f"http://{snapshot.address('model')}",
    }
    for name, value in exports.items():
        print(f"export {name}={shlex.quote(value)}")
    # Behind what the user has, so that a kubectl of theirs stays theirs; once, however often this is evaluated.
    if snapshot.bin_directory and snapshot.bin_directory not in os.environ.get("PATH", "").split(os.pathsep):
        print(f'export PATH="$PATH":{shlex.quote(snapshot.bin_directory)}')
    return 0


def _logs(directory: StateDirectory, options: argparse.Namespace) -> int:
    from dalang_cli.dev.logs import show_logs

    return show_logs(directory, options.part, tail=options.tail, follow=options.follow)


def _not_running(directory: StateDirectory) -> str:
    return f"dalang dev is not running in {directory.root}. Start it with: {dev_command('up', directory)}"
