"""What is new in an AgentRun since it was looked at last, for somebody who watches. Pure.

A status has the last few messages of the conversation only, each cut, and may skip some between two reports. So what was
shown is found again in the new list, rather than counted.
"""

from dataclasses import dataclass
from enum import StrEnum

from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason

from dalang_cli.cluster import Json


class Shown(StrEnum):
    """What a line is about."""

    EARLIER = "Earlier"
    """Something said before the chat began."""
    TOOL = "Tool"
    """A tool call, or its result."""
    SAID = "Said"
    """Something said on the way to the answer."""
    AGENT = "Agent"
    """Who holds the conversation has changed."""
    WAIT = "Wait"
    """Why it does not get on."""
    ANSWER = "Answer"
    USAGE = "Usage"
    FAILED = "Failed"
    """How it ended without an answer."""


@dataclass(frozen=True)
class Line:
    """Something to show; `text` may have several lines."""

    shown: Shown
    text: str
    sender: str = ""


NOT_WORTH_A_WORD = frozenset({Reason.RUNNING, Reason.AWAITING_APPROVAL, Reason.ANSWERED})


def is_finished(run: Json) -> bool:
    """Return whether the run has ended."""
    return bool(_status(run).get("finishedAt"))


def is_under_way(run: Json) -> bool:
    """Return whether the run has begun, and has not ended."""
    return _status(run).get("phase") in {Phase.RUNNING, Phase.AWAITING_APPROVAL}


def has_succeeded(run: Json) -> bool:
    """Return whether it ended with an answer."""
    return _status(run).get("phase") == Phase.SUCCEEDED


def is_seen(run: Json) -> bool:
    """Return whether the operator has looked at the run: its status is not that of the schema's default."""
    return int(_status(run).get("observedGeneration", -1)) >= 0


def pending_approvals(run: Json) -> list[Json]:
    """Return what waits for a human."""
    return list(_status(run).get("pendingApprovals") or []) if not is_finished(run) else []


class Progress:
    """What of one run was shown."""

    def __init__(self, agent: str | None) -> None:
        """Begin with the agent who held the conversation before the run, if that is known."""
        self._agent = agent
        self._messages: list[Json] = []
        self._waits: tuple[str, str] | None = None

    @property
    def agent(self) -> str | None:
        """Who holds the conversation."""
        return self._agent

    def update(self, run: Json) -> list[Line]:
        """Return what is new, in the order in which it is shown."""
        lines = [*self._message_lines(run), *self._agent_lines(run)]
        if is_finished(run):
            return [*lines, *self._end_lines(run)]
        return [*lines, *self._wait_lines(run)]

    def _message_lines(self, run: Json) -> list[Line]:
        own = own_messages(run)
        new = added(self._messages, own)
        self._messages = own or self._messages
        if is_finished(run) and has_succeeded(run) and new and _is_answer(new[-1], run):
            new = new[:-1]  # shown whole, from `status.output`
        return [_message_line(message) for message in new]

    def _agent_lines(self, run: Json) -> list[Line]:
        status = _status(run)
        if not (status.get("workflow") or {}).get("reportSeq"):
            return []  # the controller's, which knows with whom the session began
        before, self._agent = self._agent, status.get("agent") or self._agent
        if before is None or before == self._agent:
            return []
        return [Line(Shown.AGENT, f"{before} → {self._agent}")]

    def _wait_lines(self, run: Json) -> list[Line]:
        said = _condition(run, ConditionType.STALLED) or _condition(run, ConditionType.SUCCEEDED)
        now = (said.get("reason", ""), said.get("message", "")) if is_seen(run) else None
        if now is None or now[0] in NOT_WORTH_A_WORD or now == self._waits:
            return []
        self._waits = now
        return [Line(Shown.WAIT, f"{now[0]}: {now[1]}")]

    def _end_lines(self, run: Json) -> list[Line]:
        status = _status(run)
        usage = [Line(Shown.USAGE, words)] if (words := usage_words(status)) else []
        if not has_succeeded(run):
            said = _condition(run, ConditionType.SUCCEEDED)
            return [Line(Shown.FAILED, f"{said.get('reason', status['phase'])}: {said.get('message', '')}"), *usage]
        cut = "\n[cut: `dalang transcript` has all of it]" if status.get("outputTruncated") else ""
        return [Line(Shown.ANSWER, status.get("output", "") + cut, sender=status.get("agent", "")), *usage]


def own_messages(run: Json) -> list[Json]:
    """Return those of the status's messages that came after the run's input: before it is what the session remembers."""
    if not _status(run).get("turns"):
        return []  # when its turn has come, and the model was not called yet, there is not even the input
    messages: list[Json] = list(_status(run).get("messages") or [])
    begins = [place for place, each in enumerate(messages) if each["role"] == "User" and not each.get("sender")]
    return messages[begins[-1] + 1 :] if begins else messages


def added(before: list[Json], now: list[Json]) -> list[Json]:
    """Return what of a list of the last messages is not in the one before it."""
    for place in range(len(before)):
        kept = before[place:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now


def usage_words(status: Json) -> str:
    """Return what it has used: `1234 tokens, $0.0012, 2 turns`."""
    usage = status.get("usage")
    if not usage:
        return ""
    words = [f"{usage.get('totalTokens', 0)} tokens"]
    if cost := usage.get("costUSD"):
        words.append(f"${cost}")
    if turns := status.get("turns"):
        words.append("1 turn" if turns == 1 else f"{turns} turns")
    return ", ".join(words)


def _message_line(message: Json) -> Line:
    sender, content = message.get("sender", ""), message["content"]
    if message["role"] == "Tool":
        return Line(Shown.TOOL, f"← {sender}: {content}")
    if message["role"] == "Assistant" and content.startswith("→ "):
        return Line(Shown.TOOL, content, sender=sender)
    return Line(Shown.SAID, content, sender=sender)


def _is_answer(message: Json, run: Json) -> bool:
    content = message["content"].removesuffix("…")
    return message["role"] == "Assistant" and str(_status(run).get("output", "")).startswith(content)


def _status(run: Json) -> Json:
    return run.get("status") or {}


def _condition(run: Json, type_: ConditionType) -> Json:
    conditions = _status(run).get("conditions") or []
    return next((each for each in conditions if each["type"] == type_), {})
