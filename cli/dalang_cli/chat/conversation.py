"""A conversation: messages go out as AgentRuns, and what comes of them is shown until each has ended."""

from dataclasses import dataclass, field
from typing import Literal

from dalang_api.printable import printable
from dalang_api.v1alpha1.conditions import Reason

from dalang_cli.approvals.cluster import Cluster
from dalang_cli.approvals.deciding import Stop, decide, see_that_it_is_open
from dalang_cli.approvals.delivery import wait
from dalang_cli.chat import session as sessions
from dalang_cli.chat import terminal
from dalang_cli.chat.following import RunDeleted, states
from dalang_cli.chat.progress import Progress, has_succeeded, is_finished, is_under_way, pending_approvals
from dalang_cli.chat.session import SessionOver
from dalang_cli.chat.terminal import Screen
from dalang_cli.cluster import ClusterError, Json

DELIVERY_SECONDS = 10.0
"""How long it is waited until a decision is delivered."""
HELP = """Each line is a message; one that ends with \\ goes on with the next.
/cancel    cancel the run that is under way
/close     end the session for good, and leave
/quit      leave; the session is kept (also Ctrl-D)
//…        a message that begins with /
Ctrl-C     while a run is under way: cancel it, or leave it to go on"""


class Leave(Exception):
    """The user leaves; what is under way goes on."""


@dataclass
class _Followed:
    """A run that is followed, as it was when it was looked at last."""

    run: Json
    progress: Progress
    offered: set[str] = field(default_factory=set)
    """Names of the AgentApprovals the user was asked about."""

    @property
    def name(self) -> str:
        return str(self.run["metadata"]["name"])


class Conversation:
    """One session, and what of it was shown; it is created with the first message, where it is a new one."""

    def __init__(
        self, cluster: Cluster, session: Json | None, agent: str, screen: Screen, *, is_terminal: bool
    ) -> None:
        """Begin with a session or, where that is None, with an agent for a new one."""
        self._cluster = cluster
        self._session = session
        self._begins_with = agent
        self._screen = screen
        self._is_terminal = is_terminal
        self._agent: str | None = sessions.holder(session) if session else agent
        self._user: str | None = None
        """By which name the API server knows the caller, once it has been asked."""

    def send_all(self) -> bool:
        """Send each line of standard input and print the answers; returns whether all runs have succeeded.

        The first that fails ends it: what comes next would be said to somebody who has not heard this.

        Raises:
            SessionOver: The session takes no more runs.
            ClusterError: The API server refuses.
        """
        return all(self._say(text) for text in terminal.read_messages())

    def talk(self) -> None:
        """Talk on the terminal until the user leaves.

        Raises:
            SessionOver: The session takes no more runs.
            ClusterError: The API server refuses to tell about a run.
        """
        try:
            self._resume()
            has_interrupted = False
            while True:
                try:
                    text = terminal.read_message().strip()
                except KeyboardInterrupt:
                    print()
                    if has_interrupted:
                        return
                    has_interrupted = True
                    self._screen.note("Ctrl-C again, or Ctrl-D, leaves; the session is kept.")
                    continue
                has_interrupted = False
                if text:
                    self._carry_out(text)
        except EOFError:
            print()
        except Leave:
            pass

    def _carry_out(self, text: str) -> None:
        """Carry out a line: a command, or a message."""
        match text:
            case "/quit" | "/exit":
                raise Leave
            case "/help":
                self._screen.note(HELP)
            case "/cancel":
                self._cancel_first()
            case "/close":
                self._close()
            case _ if text.startswith("/") and not text.startswith("//"):
                self._screen.error(f"there is no command {text.split()[0]}. /help tells which there are")
            case _:
                self._try_to_say(text.removeprefix("/") if text.startswith("//") else text)

    def _try_to_say(self, text: str) -> None:
        try:
            self._say(text)
        except ClusterError as error:
            self._screen.error(str(error))

    def _say(self, text: str) -> bool:
        """Send a message and follow its run; returns whether there was an answer."""
        session = self._session or self._begin()
        return self._follow(session, sessions.send(self._cluster, session, text))

    def _begin(self) -> Json:
        session = self._session = sessions.begin_session(self._cluster, self._begins_with)
        name, command = session["metadata"]["name"], self._resume_command(session)
        self._screen.note(f"AgentSession {name}; to go on with it later: {command}")
        return session

    def _resume(self) -> None:
        """Show where the conversation stands, and follow what is under way."""
        if (session := self._session) is None:
            return
        for line in sessions.recent_lines(session):
            self._screen.show(line)
        for run in sessions.unfinished_runs(self._cluster, session):
            stands = "is under way" if is_under_way(run) else "waits"
            self._screen.note(f"AgentRun {run['metadata']['name']} {stands}: {run['spec'].get('input', '')}")
            self._follow(session, run)

    def _cancel_first(self) -> None:
        session = self._session
        runs = sessions.unfinished_runs(self._cluster, session) if session else []
        if not (session and runs):
            self._screen.note("Nothing is under way.")
            return
        sessions.cancel(self._cluster, runs[0])
        self._screen.note(f"AgentRun {runs[0]['metadata']['name']} is told to end: {runs[0]['spec'].get('input', '')}")
        self._follow(session, runs[0])

    def _close(self) -> None:
        if self._session:
            sessions.close(self._cluster, self._session)
            self._screen.note("The session is closed; its runs that have not begun fail.")
        else:
            self._screen.note("Nothing was said, so there is no session to close.")
        raise Leave

    # ── One run ──

    def _follow(self, session: Json, run: Json) -> bool:
        """Show what happens to a run until it has ended; returns whether there was an answer.

        Raises:
            Leave: The user leaves.
            SessionOver: It has failed because the session takes no more runs.
        """
        followed = _Followed(run, Progress(self._agent))
        while not is_finished(followed.run):
            try:
                self._watch(session, followed)
            except RunDeleted:
                self._screen.error(f"AgentRun {followed.name} was deleted")
                return False
            except KeyboardInterrupt:
                if not self._is_terminal:
                    command = self._resume_command(session)
                    self._screen.note(f"AgentRun {followed.name} goes on; `{command}` follows it")
                    raise
                self._interrupted(session, followed)
        self._agent = followed.progress.agent
        if sessions.has_ended_with(followed.run, Reason.SESSION_CLOSED, Reason.SESSION_LOST):
            raise SessionOver(f"the session takes no more runs. {self._begin_another}")
        return has_succeeded(followed.run)

    def _watch(self, session: Json, followed: "_Followed") -> None:
        """Show each state of a run until it has ended."""
        for state in states(self._cluster, followed.run):
            if state is None:
                self._screen.note(sessions.unseen_words(self._cluster, session, followed.run))
                continue
            followed.run = state
            for line in followed.progress.update(state):
                self._screen.show(line)
            for pending in pending_approvals(state):
                if pending["name"] not in followed.offered:
                    followed.offered.add(pending["name"])
                    self._offer(pending)

    def _interrupted(self, session: Json, followed: "_Followed") -> None:
        """Ask what Ctrl-C is to mean.

        Raises:
            Leave: The user leaves, such as by another one.
        """
        name, has_pending = followed.name, bool(pending_approvals(followed.run))
        print()
        choices = ("no", "yes", "decide") if has_pending else ("no", "yes")
        try:
            decide_now = "/[d]ecide what waits" if has_pending else ""
            answer = terminal.ask(
                f"Cancel {name}? [y]es/[N]o, wait on{decide_now} (Ctrl-C leaves it to go on) ", *choices
            )
        except (KeyboardInterrupt, EOFError):
            print()
            self._screen.note(f"AgentRun {name} goes on; `{self._resume_command(session)}` follows it.")
            raise Leave from None
        if answer == "decide":
            followed.offered.clear()
        if answer == "yes":
            try:
                sessions.cancel(self._cluster, followed.run)
            except ClusterError as error:
                self._screen.error(str(error))

    # ── Approvals ──

    def _offer(self, pending: Json) -> None:
        """Show what waits for a human, in full, and let the user decide."""
        name = pending["name"]
        if not self._is_terminal:
            self._screen.note(f"{pending['question']} Decide with: {self._approve_command(name)}")
            return
        try:
            asked = self._cluster.get(name)
            self._screen.request(asked)
            see_that_it_is_open(asked)
            self._decide(asked)
        except (Stop, ClusterError) as error:
            self._screen.error(str(error))
        except EOFError:
            print()
            self._later(name)

    def _decide(self, asked: Json) -> None:
        self._user = self._user or self._cluster.who_am_i()
        who = f", as {printable(self._user)}" if self._user else ""
        answer = terminal.ask(f"[a]pprove, [r]eject or decide [L]ater{who}? ", "later", "approve", "reject")
        reason: str | None = None
        if answer == "reject":
            reason = terminal.clean(input("Why? The model is told: ")).strip()
            if not reason:
                self._screen.note("Nothing was decided: to reject takes a reason.")
        if answer == "later" or (answer == "reject" and not reason):
            self._later(asked["metadata"]["name"])
            return
        decision: Literal["Approve", "Reject"] = "Approve" if answer == "approve" else "Reject"
        decided = decide(self._cluster, asked, decision, user=self._user, reason=reason)
        came_to = wait(self._cluster, decided, DELIVERY_SECONDS)
        if came_to.code:
            self._screen.error(came_to.message)
        else:
            self._screen.note(came_to.message)

    def _later(self, name: str) -> None:
        self._screen.note(
            f"It waits. Anybody who may can decide: {self._approve_command(name)} (--set changes arguments), or Ctrl-C here."
        )

    def _approve_command(self, name: str) -> str:
        return f"dalang approve {name} -n {self._cluster.namespace}"

    def _resume_command(self, session: Json) -> str:
        return f"dalang chat session/{session['metadata']['name']} -n {self._cluster.namespace}"

    @property
    def _begin_another(self) -> str:
        return f"Begin another: dalang chat agent/{self._begins_with}"
