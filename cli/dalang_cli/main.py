"""The `dalang` command: picks a subcommand by its first word and hands it the rest.

Each subcommand is a function `(argv) -> int` of a module that is imported only when chosen: a worker pod starts with
`dalang worker`, and a pool that scales from zero waits for every import. So this file imports nothing of ours at the top.

Installed as `kubectl-dalang` too, so that `kubectl dalang …` is the same program.
"""

import importlib
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One subcommand: where its function is, and its line in `dalang --help`."""

    module: str
    summary: str
    function: str = "main"


COMMANDS = {
    "dev": Command("dalang_cli.dev.main", "run Kubernetes, Temporal and the operator on this machine"),
    "approvals": Command("dalang_cli.approvals.main", "list what waits for a human", "approvals"),
    "approve": Command("dalang_cli.approvals.main", "approve what waits, as it is or with changes", "approve"),
    "reject": Command("dalang_cli.approvals.main", "reject what waits, with a reason", "reject"),
    "chat": Command("dalang_cli.chat.main", "talk to an agent, or go on with a session"),
    "transcript": Command("dalang_cli.transcript.main", "print all that was said in a run or a session"),
    "admission-policies": Command(
        "dalang_cli.admission_policies", "print the admission policies, which prove who decided an approval"
    ),
    "operator": Command("dalang_operator.main", "run the operator (what the operator's Deployment runs)"),
    "worker": Command("dalang_worker.main", "run a worker (what the pods of an AgentPool run)"),
}


def usage() -> str:
    """Return the text of `dalang --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dalang COMMAND [arguments]",
            "",
            "LLM agents as Kubernetes resources, executed durably on Temporal.",
            "",
            *lines,
            "",
            "dalang COMMAND --help tells more; dalang --version prints the version.",
        ]
    )


def version() -> str:
    """Return the installed version of the distribution `dalang`."""
    from importlib.metadata import version as installed_version

    return installed_version("dalang")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in {"-V", "--version", "version"}:
        print(f"dalang {version()}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"dalang: there is no command {arguments[0]!r}. Try: dalang --help", file=sys.stderr)
        return 2
    run = getattr(importlib.import_module(command.module), command.function)
    return int(run(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
