"""The command `dalang chat`, also as `kubectl dalang chat`."""

import os
import signal
import sys
from enum import IntEnum

from dalang_api.printable import printable
from dalang_api.v1alpha1.agentsession import AgentSession

from dalang_cli.approvals.cluster import Cluster
from dalang_cli.chat import session as sessions
from dalang_cli.chat import terminal
from dalang_cli.chat.conversation import Conversation
from dalang_cli.chat.session import TALKS_TO, SessionOver
from dalang_cli.chat.terminal import Screen
from dalang_cli.cluster import ClusterError, ConfigError, Json, Kind, command_parser
from dalang_cli.naming import NameProblem, find

DESCRIPTION = """Talks to an agent. Each line is an AgentRun in an AgentSession: NAME is a session, to go on with it, or an
Agent, for a new one, which is created with the first line and closes after 30 days without one. All of it is kept in the cluster, so you may leave and come back."""
EPILOG = """Without a terminal each line of standard input is a message, and only the answers are printed to standard output;
the first run that fails ends it.

exit codes:
  0  all is well
  1  a run failed, or the API server refused, or could not be reached
  2  wrong usage, no such object, or the session takes no more runs"""


class ExitCode(IntEnum):
    """How the command ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2


def main(argv: list[str]) -> int:
    """Run `dalang chat ARGV`; returns the exit code."""
    parser = command_parser("chat", DESCRIPTION, EPILOG)
    parser.add_argument(
        "name", metavar="NAME", help="an AgentSession or an Agent; session/NAME or agent/NAME says which"
    )
    options = parser.parse_args(argv)
    try:
        cluster = Cluster(options.kubeconfig, options.context, options.namespace)
        try:
            return _chat(cluster, *find(cluster, options.name, TALKS_TO))
        finally:
            cluster.close()
    except (ConfigError, NameProblem, SessionOver) as error:
        return _complain(ExitCode.USAGE, error)
    except ClusterError as error:
        return _complain(ExitCode.FAILED, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _chat(cluster: Cluster, kind: Kind, found: Json) -> ExitCode:
    is_terminal = terminal.is_terminal()
    screen = Screen(is_terminal=is_terminal)
    session = found if kind is AgentSession else None
    if session:
        sessions.check_open(session)
    agent = sessions.begins_with(session) if session else found["metadata"]["name"]
    conversation = Conversation(cluster, session, agent, screen, is_terminal=is_terminal)
    if problem := sessions.problem(found):
        screen.note(f"{found['kind']} {found['metadata']['name']} is not ready: {problem}")
    if not is_terminal:
        return ExitCode.DONE if conversation.send_all() else ExitCode.FAILED
    new = "" if session else f"A new conversation with Agent {agent} begins with your first message. "
    screen.note(f"{new}/help tells the commands; Ctrl-D leaves.")
    conversation.talk()
    return ExitCode.DONE


def _complain(code: ExitCode, why: Exception) -> ExitCode:
    print(f"error: {printable(str(why))}", file=sys.stderr)
    return code
