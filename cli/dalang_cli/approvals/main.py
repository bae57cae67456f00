"""The commands `dalang approvals`, `dalang approve` and `dalang reject`, also as `kubectl dalang …`.

Exit codes are those of `ExitCode`: 0 done, 1 refused by the API server, 2 nothing done, 3 too late, 4 not delivered in time.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from dalang_api.printable import printable
from rich.console import Console
from rich.text import Text

from dalang_cli.approvals import show
from dalang_cli.approvals.cluster import Cluster
from dalang_cli.approvals.deciding import Stop, decide, see_that_it_is_open
from dalang_cli.approvals.delivery import ExitCode, wait
from dalang_cli.approvals.override import OverrideError, override
from dalang_cli.cluster import ClusterError, ConfigError, command_parser

WAIT_SECONDS = 10.0
EXIT_CODES = """exit codes:
  0  delivered, or applied
  1  refused by the API server, or it could not be reached
  2  nothing was done: wrong usage, no such object, not confirmed
  3  somebody has decided already, or nobody need any more
  4  decided, and not delivered in time"""


# ── dalang approvals ───────────────────────────────────────────────────────────────────────────────────────────────


def approvals(argv: list[str]) -> int:
    """Run `dalang approvals ARGV`; returns the exit code."""
    parser = command_parser("approvals", "Lists what waits for a human.")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    parser.add_argument(
        "--all", action="store_true", help="also what has been decided and delivered, or need not be any more"
    )
    parser.add_argument(
        "-w", "--watch", action="store_true", help="go on with each that is new or changes, until Ctrl-C"
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=["json", "wide"],
        help="wide: state and who decided; json: whole objects, one a line with -w",
    )
    return _run(parser, argv, _list)


def _list(cluster: Cluster, options: argparse.Namespace) -> int:
    items, version = cluster.list_all(everywhere=options.all_namespaces)
    items = [each for each in items if options.all or _needs_somebody(each)]
    items.sort(key=lambda each: each["metadata"]["creationTimestamp"])
    printer = _Printer(options)
    printer.print_all(items)
    if not options.watch:
        return ExitCode.DONE
    try:
        for each in cluster.watch(version, everywhere=options.all_namespaces):
            printer.print_change(each)
    except KeyboardInterrupt:
        pass  # the way to end it
    return ExitCode.DONE


def _needs_somebody(approval: show.Json) -> bool:
    """Return whether it waits for a human to decide it, or to mend what keeps the decision back."""
    return show.is_open(approval) or show.held_back(approval) is not None


class _Printer:
    """Prints objects, each version that differs once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._where = "in any namespace" if options.all_namespaces else f"in namespace {options.namespace}"
        with_state = options.all or options.watch or options.output == "wide"
        self._table = show.Table(with_namespace=options.all_namespaces, with_state=with_state)
        self._shown: dict[str, str] = {}
        """What was printed of each, by uid."""

    def print_all(self, items: list[show.Json]) -> None:
        """Print what is there to begin with."""
        for each in items:
            self._remember(each)
        if self._options.output == "json":
            if self._options.watch:
                for each in items:
                    _print(json.dumps(each))
            else:
                _print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))
        elif items:
            self._print_rows(items)
        else:
            print(f"Nothing {'is there' if self._options.all else 'waits for a human'} {self._where}.", file=sys.stderr)

    def print_change(self, each: show.Json) -> None:
        """Print one that is new, or that looks other than when it was printed."""
        is_known = each["metadata"]["uid"] in self._shown
        if not (is_known or self._options.all or _needs_somebody(each)) or not self._remember(each):
            return
        if self._options.output == "json":
            _print(json.dumps(each))
        else:
            self._print_rows([each])

    def _remember(self, each: show.Json) -> bool:
        version, words = each["metadata"]["resourceVersion"], (show.state_words(each), show.held_back(each) or "")
        looks = version if self._options.output == "json" else " ".join(words)
        uid = each["metadata"]["uid"]
        is_new = self._shown.get(uid) != looks
        self._shown[uid] = looks
        return is_new

    def _print_rows(self, items: list[show.Json]) -> None:
        for line in self._table.lines(items, datetime.now(UTC)):
            _print(line)


# ── dalang approve, dalang reject ──────────────────────────────────────────────────────────────────────────────────


def approve(argv: list[str]) -> int:
    """Run `dalang approve ARGV`; returns the exit code."""
    parser = _deciding_parser("approve", "Shows what waits, in full, and approves it.")
    parser.add_argument("--reason", metavar="TEXT", help="why; kept with the decision")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="approve with another argument: the value is JSON, else text; dots for what is nested, as in --set "
        "address.city=Berlin or --set items.0.amount=2 (may be repeated)",
    )
    return _run(parser, argv, lambda cluster, options: _decide(cluster, options, "Approve"))


def reject(argv: list[str]) -> int:
    """Run `dalang reject ARGV`; returns the exit code."""
    parser = _deciding_parser("reject", "Shows what waits, in full, and rejects it; the model is told the reason.")
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why; the model is told")
    parser.set_defaults(set=[])
    return _run(parser, argv, lambda cluster, options: _decide(cluster, options, "Reject"))


def _decide(cluster: Cluster, options: argparse.Namespace, decision: Literal["Approve", "Reject"]) -> int:
    asked = cluster.get(options.name)
    changed = override(asked["spec"]["arguments"], options.set) if options.set else None
    _print(show.request(asked, datetime.now(UTC), changed, options.reason))
    see_that_it_is_open(asked)
    user = cluster.who_am_i()
    if not options.yes:
        _confirm(f"{decision}{' with these changes' if changed else ''}, as {user or 'yourself'}?")
    decided = decide(cluster, asked, decision, user=user, reason=options.reason, override=changed)
    _print(f"Decided: {decision} by {printable(decided['spec'].get('decidedBy') or 'you')}.")
    if options.wait <= 0:
        return ExitCode.DONE
    came_to = wait(cluster, decided, options.wait)
    print(printable(came_to.message), file=sys.stderr if came_to.code else sys.stdout)
    return came_to.code


def _confirm(question: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Stop(ExitCode.USAGE, "nothing was decided: there is no terminal to ask on; to decide without, add --yes")
    try:
        answer = input(f"{printable(question)} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise Stop(ExitCode.USAGE, "nothing was decided")


# ── All three ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _deciding_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = command_parser(command, description, EXIT_CODES)
    parser.add_argument("name", metavar="NAME", help="name of the AgentApproval, as `dalang approvals` lists it")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="how long to wait until it is delivered; 0: not (default: %(default)g)",
    )
    return parser


def _run(
    parser: argparse.ArgumentParser, argv: list[str], command: Callable[[Cluster, argparse.Namespace], int]
) -> int:
    options = parser.parse_args(argv)
    try:
        cluster = Cluster(options.kubeconfig, options.context, options.namespace)
        options.namespace = cluster.namespace
        try:
            return command(cluster, options)
        finally:
            cluster.close()
    except Stop as stop:
        return _complain(stop.code, stop)
    except (ConfigError, OverrideError) as error:
        return _complain(ExitCode.USAGE, error)
    except ClusterError as error:
        return _complain(ExitCode.USAGE if error.status == 404 else ExitCode.REFUSED, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `dalang approvals | head`: the reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(code: ExitCode, why: Exception) -> int:
    print(f"error: {printable(str(why))}", file=sys.stderr)
    return code


def _print(text: Text | str) -> None:
    """Print whole lines: rich would wrap them at the terminal's width, which moves what is judged."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(text, soft_wrap=True)
    console.file.flush()
