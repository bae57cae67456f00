r"""How an AgentApproval looks on a terminal. Pure.

What a human judges was written by a model, or by whoever talked to it. So nothing is cut, and nothing reaches the terminal
that could change how the rest looks: characters that are not printed (escapes, line breaks, the Unicode marks that turn
text around) appear as `\u202e`, which in JSON is the same string.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from dalang_api.canonical import NotCanonicalError, canonical
from dalang_api.contract import ApprovalTarget
from dalang_api.printable import printable
from dalang_api.v1alpha1.conditions import ConditionType, Reason
from rich.text import Text

from dalang_cli.approvals.override import ABSENT, changes, members

Json = dict[str, Any]
"""A Kubernetes object as the API server sends it."""

SOON_SECONDS = 3600.0
"""From when on an expiry is shown in red."""
ANSWER = "(answer)"
"""Stands in the column TOOL where an agent's answer waits."""


def pretty(value: Any) -> list[str]:
    """Return a JSON value as indented lines, complete."""
    return [printable(line) for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n")]


def arguments_lines(arguments: str) -> list[str]:
    """Return the arguments, or the answer, as lines: indented JSON, or a text as it was written.

    What would not be the same value again is shown as it stands.
    """
    try:
        value = json.loads(arguments)
        is_exact = canonical(value) == arguments
    except (ValueError, NotCanonicalError, RecursionError):
        is_exact = False
    if not is_exact:
        return [printable(arguments)]
    if isinstance(value, str):
        return [f"| {printable(line)}" for line in value.split("\n")]
    return pretty(value)


def request(approval: Json, now: datetime, override: Json | None = None, reason: str | None = None) -> Text:
    """Return all that is asked, and the changes and the reason of the decision to be made."""
    metadata, spec = approval["metadata"], approval["spec"]
    shown = Text()
    _field(shown, "AgentApproval", f"{metadata['namespace']}/{metadata['name']}")
    _field(shown, "Run", spec["runRef"]["name"])
    _field(shown, "Agent", spec["agent"])
    if spec.get("tool"):
        _field(shown, "Tool", tool_words(approval))
    _field(shown, "Question", spec["question"])
    _field(shown, "Asked", f"{spec['requestedAt']} ({_age(spec['requestedAt'], now)} ago)")
    expires_at = spec.get("expiresAt")
    _field(shown, "Expires", f"{expires_at} ({expires(approval, now)})" if expires_at else "never")
    _block(shown, "Answer" if spec["subject"] == "Output" else "Arguments", arguments_lines(spec["arguments"]))
    if override is not None:
        shown.append("Changes\n", "bold")
        for change in changes(members(spec["arguments"]), override):
            _side(shown, "-", "red", change.path, change.before)
            _side(shown, "+", "green", change.path, change.after)
    if reason:
        _block(shown, "Reason", [printable(line) for line in reason.split("\n")])
    shown.rstrip()
    return shown


def _field(shown: Text, label: str, value: str) -> None:
    shown.append(f"{label:<14}", "bold").append(f"{printable(value)}\n")


def _block(shown: Text, label: str, lines: Iterable[str]) -> None:
    shown.append(f"{label}\n", "bold").append("".join(f"  {line}\n" for line in lines))


def _side(shown: Text, sign: str, style: str, path: str, value: Any) -> None:
    if value is ABSENT:
        return
    first, *rest = pretty(value)
    shown.append("".join(f"  {sign} {line}\n" for line in [f"{printable(path)}: {first}", *rest]), style)


# ── The table ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Table:
    """Rows under fixed columns; later ones, of a watch, keep to the widths of the first."""

    def __init__(self, *, with_namespace: bool, with_state: bool) -> None:
        self._with_namespace = with_namespace
        self._with_state = with_state
        self._widths: list[int] = []

    def lines(self, approvals: Iterable[Json], now: datetime) -> Iterable[Text]:
        """Yield a line for each, the first time the headings before."""
        rows = [self._cells(approval, now) for approval in approvals]
        if not self._widths:
            rows.insert(0, [(heading, "bold") for heading in self._headings()])
            self._widths = [max(len(row[column][0]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            line = Text()
            for (cell, style), width in zip(row[:-1], self._widths, strict=False):
                line.append(f"{cell:<{width}}  ", style)
            yield line.append(*row[-1])

    def _headings(self) -> list[str]:
        return [
            *(["NAMESPACE"] if self._with_namespace else []),
            *("NAME", "RUN", "AGENT", "TOOL"),
            *(["STATE", "BY"] if self._with_state else []),
            *("EXPIRES", "AGE", "QUESTION"),
        ]

    def _cells(self, approval: Json, now: datetime) -> list[tuple[str, str]]:
        metadata, spec = approval["metadata"], approval["spec"]
        left = seconds_left(approval, now)
        is_soon = left is not None and left < SOON_SECONDS and is_open(approval)
        cells = [(metadata["name"], ""), (spec["runRef"]["name"], ""), (spec["agent"], "")]
        if self._with_namespace:
            cells.insert(0, (metadata["namespace"], ""))
        has_other_name = spec.get("target", {}).get("name") not in {None, spec.get("tool")}
        cells.append((printable(tool_words(approval) if has_other_name else spec.get("tool") or ANSWER), ""))
        if self._with_state:
            cells += [(state_words(approval), "green" if is_open(approval) else ""), (printable(by(approval)), "")]
        cells += [(expires(approval, now), "red" if is_soon else ""), (_age(metadata["creationTimestamp"], now), "")]
        if held := held_back(approval):
            return [*cells, (printable(f"{spec['decision']} is not delivered: {held}"), "red")]
        return [*cells, (printable(spec["question"]), "")]


def state(approval: Json) -> str:
    """Return the state; one without a status is Pending."""
    return str((approval.get("status") or {}).get("state", "Pending"))


def is_open(approval: Json) -> bool:
    """Return whether it waits for a human."""
    return state(approval) == "Pending" and not approval["spec"].get("decision")


def held_back(approval: Json) -> str | None:
    """Return why a decision is not delivered until somebody mends that: `PolicyMissing. It is …`; None where it is not so."""
    if state(approval) != "Pending" or not approval["spec"].get("decision"):
        return None
    for each in (condition(approval, ConditionType.PROVEN), condition(approval, ConditionType.READY)):
        # `Pending` is tried again by itself.
        if each.get("status") == "False" and each.get("reason") != Reason.PENDING:
            return f"{each['reason']}. {each['message']}"
    return None


def condition(approval: Json, type_: ConditionType) -> Json:
    """Return a condition; an empty one where there is none of that type."""
    conditions = (approval.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == type_), {})


def state_words(approval: Json) -> str:
    """Return the state and the decision: `Pending`, `Applied,Approve`."""
    decision = approval["spec"].get("decision")
    return f"{state(approval)},{decision}" if decision else state(approval)


def by(approval: Json) -> str:
    """Return who decided: as the run was told, else who is said to have, which nothing proves, or nobody has looked into."""
    proven, said = (approval.get("status") or {}).get("decidedBy"), approval["spec"].get("decidedBy")
    if proven or not said:
        return str(proven or "-")
    is_open_yet = state(approval) == "Pending" and condition(approval, ConditionType.PROVEN).get("status") != "False"
    return f"{said} ({'not yet' if is_open_yet else 'not'} proven)"


def tool_words(approval: Json) -> str:
    """Return the tool and, where it is known, what a call of it runs: `greet (function pay)`."""
    spec = approval["spec"]
    target = spec.get("target")
    return f"{spec['tool']} ({ApprovalTarget.model_validate(target).words})" if target else str(spec["tool"])


def deletion_words(approval: Json) -> str | None:
    """Return that it is being deleted, and what keeps it; None where it is not."""
    if not approval["metadata"].get("deletionTimestamp"):
        return None
    finalizers = approval["metadata"].get("finalizers")
    kept = f" Finalizers keep it: {', '.join(finalizers)}" if finalizers else ""
    return f"it is being deleted; its run asks anew once it is gone.{kept}"


def seconds_left(approval: Json, now: datetime) -> float | None:
    """Return for how long the run still waits; None: for ever."""
    expires_at = approval["spec"].get("expiresAt")
    return (_time(expires_at) - now).total_seconds() if expires_at else None


def expires(approval: Json, now: datetime) -> str:
    """Return when the run no longer waits: `in 3h`, `5m ago`, `never`."""
    left = seconds_left(approval, now)
    if left is None:
        return "never"
    return f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"


def duration(seconds: float) -> str:
    """Return a duration as kubectl's column AGE has it: `90s`, `12m`, `30h`, `4d`."""
    for limit, unit, length in ((120.0, "s", 1.0), (7200.0, "m", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{int(seconds / length)}{unit}"
    return f"{int(seconds / 86_400)}d"


def _age(timestamp: str, now: datetime) -> str:
    return duration(max(0.0, (now - _time(timestamp)).total_seconds()))


def _time(timestamp: str) -> datetime:
    return datetime.fromisoformat(timestamp).astimezone(UTC)
