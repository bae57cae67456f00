"""The AgentSession of a chat and the AgentRuns in it: what is made, what is read, and what an object says. Little I/O."""

from datetime import UTC, datetime
from typing import Protocol

from dalang_api import API_VERSION
from dalang_api.v1alpha1.agent import Agent
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_api.v1alpha1.agentsession import AgentSession
from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_cli.chat.progress import Line, Shown, is_finished, is_under_way
from dalang_cli.cluster import Json, Kind


class SessionOver(Exception):
    """The session takes no more runs; the text says why, and what to do instead."""


class SessionPort(Protocol):
    """What a chat needs of the cluster."""

    namespace: str

    def read(self, kind: Kind, name: str) -> Json: ...

    def read_all(self, kind: Kind, *, field_selector: str | None) -> tuple[list[Json], str]: ...

    def create(self, kind: Kind, body: Json) -> Json: ...

    def patch(self, kind: Kind, name: str, patch: Json) -> Json: ...


IDLE_TIMEOUT = "720h"
"""After how long without a message a session that a chat began closes: most are never closed by hand."""


def begin_session(cluster: SessionPort, agent: str) -> Json:
    """Create a session with an agent; returns it."""
    metadata = {"generateName": f"chat-{agent}-"}
    spec = {"agentRef": {"name": agent}, "idleTimeout": IDLE_TIMEOUT}
    return cluster.create(AgentSession, _object(AgentSession, metadata, spec))


def send(cluster: SessionPort, session: Json, text: str) -> Json:
    """Create the run that says this in a session; returns it."""
    name = session["metadata"]["name"]
    return cluster.create(
        AgentRun, _object(AgentRun, {"generateName": f"{name}-"}, {"sessionRef": {"name": name}, "input": text})
    )


def unfinished_runs(cluster: SessionPort, session: Json) -> list[Json]:
    """Return the runs of a session that have not ended: the one that is under way, then those that wait, in their order."""
    selector = f"spec.sessionRef.name={session['metadata']['name']},status.finishedAt="
    runs = [run for run in cluster.read_all(AgentRun, field_selector=selector)[0] if not is_finished(run)]
    return sorted(runs, key=_turn)


def _turn(run: Json) -> tuple[bool, str, bool, int, str]:
    """Return by what the runs of a session are ordered.

    Of those created within one second the operator sends the one with the lowest resourceVersion first, and then writes its
    status, which gives it a new one: so those that were sent are in their order, and come before those that were not.
    """
    metadata, status = run["metadata"], run.get("status") or {}
    is_sent = bool((status.get("workflow") or {}).get("id"))
    version = int(metadata["resourceVersion"])
    return not is_under_way(run), metadata["creationTimestamp"], not is_sent, version, metadata["name"]


def cancel(cluster: SessionPort, run: Json) -> None:
    """Ask a run to end."""
    cluster.patch(AgentRun, run["metadata"]["name"], {"spec": {"cancel": True}})


def close(cluster: SessionPort, session: Json) -> None:
    """Ask a session to end after the run that is under way."""
    cluster.patch(AgentSession, session["metadata"]["name"], {"spec": {"closed": True}})


def check_open(session: Json) -> None:
    """Check that a session takes runs.

    Raises:
        SessionOver: It does not.
    """
    name, agent = session["metadata"]["name"], session["spec"]["agentRef"]["name"]
    ready = condition(session)
    again = f"Begin another: dalang chat agent/{agent}"
    closed_at = (session.get("status") or {}).get("closedAt")
    if closed_at or ready.get("reason") == Reason.CLOSED or session["spec"].get("closed"):
        when = f" at {closed_at}" if closed_at else ""
        why = f" ({ready['message']})" if ready.get("reason") == Reason.CLOSED and ready.get("message") else ""
        raise SessionOver(f"AgentSession {name} was closed{when}{why}. {again}")
    if ready.get("reason") == Reason.SESSION_LOST:
        raise SessionOver(f"AgentSession {name} is lost: {ready.get('message', '')}. {again}")


def has_ended_with(run: Json, *reasons: Reason) -> bool:
    """Return whether a run ended for one of these reasons."""
    return condition(run, ConditionType.SUCCEEDED).get("reason") in reasons


def problem(found: Json) -> str:
    """Return why an Agent or AgentSession is not ready, or nothing where it is, or nobody has looked yet."""
    ready = condition(found)
    if ready.get("status") != "False" or is_default(ready):
        return ""
    return f"{ready['reason']}: {ready['message']}"


def is_default(condition: Json) -> bool:
    """Return whether a condition is the schema's default: nobody has looked at the object yet."""
    return str(condition.get("lastTransitionTime", "1970")).startswith("1970")


def recent_lines(session: Json) -> list[Line]:
    """Return what was said last, and the summary of what was before."""
    status = session.get("status") or {}
    lines = [Line(Shown.EARLIER, status["summary"], "summary")] if status.get("summary") else []
    for message in status.get("messages") or []:
        sender = message.get("sender") or ("you" if message["role"] == "User" else "")
        result = "← " if message["role"] == "Tool" else ""
        lines.append(Line(Shown.EARLIER, message["content"], f"{result}{sender}"))
    return lines


def holder(session: Json) -> str:
    """Return who holds the conversation."""
    return str((session.get("status") or {}).get("agent") or begins_with(session))


def begins_with(session: Json) -> str:
    """Return the agent with whom a session begins."""
    return str(session["spec"]["agentRef"]["name"])


def unseen_words(cluster: SessionPort, session: Json, run: Json) -> str:
    """Return what to tell of a run at which nobody has looked: others come first, or there is no operator."""
    found = cluster.read(AgentSession, session["metadata"]["name"])
    status, name = found.get("status") or {}, run["metadata"]["name"]
    if queued := status.get("queuedRuns"):
        return f"{name} waits: {queued} runs of the session were queued before it"
    if (reason := problem(found)) and int(status.get("observedGeneration", -1)) >= 0:
        return f"AgentSession {found['metadata']['name']}: {reason}"
    age = (datetime.now(UTC) - datetime.fromisoformat(run["metadata"]["creationTimestamp"])).total_seconds()
    return (
        f"nobody has looked at AgentRun {name} for {age:.0f} s: is the operator running, and does it watch namespace "
        f"{cluster.namespace}? The run is kept, and goes on when it does"
    )


def condition(found: Json, type_: ConditionType = ConditionType.READY) -> Json:
    """Return a condition of an object; empty where it has none of that type."""
    conditions = (found.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == type_), {})


def _object(kind: Kind, metadata: Json, spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": kind.KIND, "metadata": metadata, "spec": spec}


TALKS_TO = (AgentSession, Agent)
"""What the command's argument may name."""
