"""The command `dalang transcript`, also as `kubectl dalang transcript`."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import IntEnum

from dalang_api.printable import printable
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_api.v1alpha1.agentsession import AgentSession
from rich.console import Console
from temporalio.client import Client

from dalang_cli.cluster import ClusterError, ConfigError, Connection, Json, Kind, command_parser
from dalang_cli.naming import NameProblem, find
from dalang_cli.transcript import temporal
from dalang_cli.transcript.entries import Entry, figures
from dalang_cli.transcript.entries import Kind as EntryKind
from dalang_cli.transcript.history import Execution, HistoryUnavailable, chain, read
from dalang_cli.transcript.reading import Reader
from dalang_cli.transcript.show import Lines

EXIT_CODES = """exit codes:
  0  all that Temporal has was printed
  1  the API server refused, or could not be reached
  2  wrong usage, or no such object
  3  Temporal could not be asked, or has it no more: only what the status has was printed"""


class ExitCode(IntEnum):
    """How the command ends."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    STATUS_ONLY = 3


@dataclass(frozen=True)
class Subject:
    """Whose transcript is wanted."""

    kind: Kind
    found: Json

    @property
    def name(self) -> str:
        return f"{self.kind.KIND} {self.found['metadata']['name']}"

    @property
    def status(self) -> Json:
        return self.found.get("status") or {}

    @property
    def workflow_id(self) -> str | None:
        return (self.status.get("workflow") or {}).get("id")

    @property
    def run_uid(self) -> str | None:
        """Uid of the run, where only its part of a session's workflow is wanted."""
        is_exchange = self.kind is AgentRun and "sessionRef" in self.found["spec"]
        return self.found["metadata"]["uid"] if is_exchange else None


def main(argv: list[str]) -> int:
    """Run `dalang transcript ARGV`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        cluster = Connection(options.kubeconfig, options.context, options.namespace)
        try:
            subject = Subject(*find(cluster, options.name, (AgentRun, AgentSession)))
        finally:
            cluster.close()
        return asyncio.run(_print_transcript(subject, options))
    except (ConfigError, NameProblem) as error:
        return _complain(ExitCode.USAGE, error)
    except ClusterError as error:
        return _complain(ExitCode.REFUSED, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `dalang transcript | head`: the reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "transcript",
        "Prints all that was said in an AgentRun or an AgentSession, from Temporal's history. No worker is needed.",
        EXIT_CODES,
    )
    parser.add_argument(
        "name", metavar="NAME", help="an AgentRun or an AgentSession; run/NAME or session/NAME says which"
    )
    parser.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="json: one object with `entries`"
    )
    temporal.add_options(parser)
    return parser


async def _print_transcript(subject: Subject, options: argparse.Namespace) -> ExitCode:
    printer = _JsonPrinter(subject) if options.output == "json" else _TextPrinter()
    problem = ""
    try:
        if subject.workflow_id is None:
            begun = "did not begin" if subject.status.get("finishedAt") else "has not begun"
            problem = f"{subject.name} {begun}: {_why_not(subject.status)}"
        else:
            client = await temporal.connect(temporal.settings(options))
            async for entry in entries(client, subject.workflow_id, subject.run_uid):
                printer.print(entry)
    except HistoryUnavailable as error:
        problem = f"only what the status of {subject.name} has: {error}"
    if problem:
        # What was printed before Temporal went away is not said again.
        for entry in () if printer.has_printed else status_entries(subject):
            printer.print(entry)
    printer.end(problem)
    if problem:
        print(f"note: {printable(problem)}", file=sys.stderr)
    return ExitCode.STATUS_ONLY if problem and subject.workflow_id else ExitCode.DONE


async def entries(client: Client, workflow_id: str, run_uid: str | None) -> AsyncIterator[Entry]:
    """Yield the entries of a workflow, or of one run in it, the oldest first.

    Raises:
        HistoryUnavailable: Temporal could not be asked, or knows nothing of it.
    """
    executions = [execution async for execution in chain(client, workflow_id)]
    if run_uid is not None:
        for entry in await _entries_of_run(client, workflow_id, executions, run_uid):
            yield entry
        return
    reader = Reader()
    for execution in reversed(executions):
        for entry in reader.read(await read(client, workflow_id, execution)):
            yield entry
    for entry in reader.rest():
        yield entry


async def _entries_of_run(client: Client, workflow_id: str, executions: list[Execution], run_uid: str) -> list[Entry]:
    """Return the part of one run: it lies within one execution, most likely a late one.

    Raises:
        HistoryUnavailable: It is in none of those that Temporal has.
    """
    for execution in executions:
        reader = Reader()
        entries = [*reader.read(await read(client, workflow_id, execution)), *reader.rest()]
        own = [entry for entry in entries if entry.run_uid == run_uid]
        if any(entry.kind in {EntryKind.RUN, EntryKind.END, EntryKind.QUEUED} for entry in own):
            return own
    gone = " Older executions of its session are past Temporal's retention." if executions[-1].continued_from else ""
    raise HistoryUnavailable(f"the run is not in the session's history.{gone}")


def status_entries(subject: Subject) -> Iterator[Entry]:
    """Yield what the object itself tells: the last messages, each cut."""
    roles = {"User": EntryKind.USER, "Assistant": EntryKind.ASSISTANT, "Tool": EntryKind.RESULT}
    status, spec = subject.status, subject.found["spec"]
    if summary := status.get("summary"):
        yield Entry(EntryKind.SUMMARY, summary)
    messages = status.get("messages") or []
    if not messages and subject.kind is AgentRun:
        asked = spec.get("messages") or [{"role": "User", "content": spec.get("input", "")}]
        messages = [{"role": each["role"], "content": each["content"]} for each in asked]
    for message in messages:
        sender = message.get("sender", "")
        who = {"tool": sender} if message["role"] == "Tool" else {"sender": sender}
        yield Entry(roles[message["role"]], message["content"], **who)
    if (output := status.get("output")) and not (messages and messages[-1]["content"] == output):
        yield Entry(EntryKind.ASSISTANT, output, sender=status.get("agent", ""))
    if subject.kind is AgentRun and status.get("finishedAt"):
        phase, usage = status.get("phase", ""), status.get("usage")
        words = f"{phase}, {_why_not(status)}"
        if usage is not None:
            words += f" ({figures(usage['totalTokens'], usage.get('costUSD'))})"
        yield Entry(EntryKind.END, words, is_error=phase != "Succeeded")


def _why_not(status: Json) -> str:
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    said = conditions.get("Succeeded") or conditions.get("Ready") or {}
    return ": ".join(filter(None, (said.get("reason", "Pending"), said.get("message"))))


class _TextPrinter:
    """Prints entries as they come."""

    def __init__(self) -> None:
        self.has_printed = False
        self._lines = Lines()
        # Whole lines: rich would wrap them at the terminal's width, and mark up what it takes for numbers.
        self._console = Console(highlight=False, markup=False, emoji=False)

    def print(self, entry: Entry) -> None:
        self.has_printed = True
        for line in self._lines.of(entry):
            self._console.print(line, soft_wrap=True)

    def end(self, problem: str) -> None:
        """Print what comes last: nothing."""
        self._console.file.flush()


class _JsonPrinter:
    """Prints one object in the end."""

    def __init__(self, subject: Subject) -> None:
        metadata = subject.found["metadata"]
        self._head = {"kind": subject.kind.KIND, "name": metadata["name"], "namespace": metadata["namespace"]}
        self._entries: list[Json] = []

    @property
    def has_printed(self) -> bool:
        return bool(self._entries)

    def print(self, entry: Entry) -> None:
        self._entries.append(entry.to_json())

    def end(self, problem: str) -> None:
        """Print the object; `problem` says why it is not all."""
        whole = {**self._head, "entries": self._entries, **({"incomplete": problem} if problem else {})}
        print(json.dumps(whole, indent=2, ensure_ascii=False), flush=True)


def _complain(code: ExitCode, why: Exception) -> ExitCode:
    print(f"error: {printable(str(why))}", file=sys.stderr)
    return code
