"""What a run tells about itself: the whole of its state, cut to what fits a status."""

import json
from datetime import UTC, datetime
from typing import Any

from dalang_api import contract
from dalang_api.contract import Message, RecentMessage, RunReport

from dalang_worker.conductor.state import Answer, RunState
from dalang_worker.conductor.thread import Thread

_ROLES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_report(
    state: RunState,
    *,
    seq: int,
    run_id: str,
    task_queue: str,
    phase: str,
    reason: str,
    message: str,
    started_at: datetime,
    finished_at: datetime | None = None,
    answer: Answer | None = None,
) -> RunReport:
    """Return the report of a run's present state."""
    output = answer.text if answer else None
    kept = _first_bytes(output, contract.OUTPUT_MAX_BYTES) if output is not None else None
    budget = state.budget
    return RunReport.model_validate(
        {
            "seq": seq,
            "run_id": run_id,
            "task_queue": task_queue,
            "phase": phase,
            "reason": reason,
            "message": message[:1024],
            "agent": state.agent,
            "agents": [
                {
                    "name": agent.name,
                    "uid": agent.uid,
                    "generation": agent.generation,
                    "pool": contract.pool_of_queue(agent.queue),
                }
                for agent in state.snapshot.agents
            ],
            "started_at": timestamp(started_at),
            "finished_at": timestamp(finished_at) if finished_at else None,
            "output": kept,
            "output_truncated": True if kept != output else None,
            "messages": recent_messages(state.main.thread),
            "turns": budget.turns,
            "input_tokens": budget.input_tokens,
            "output_tokens": budget.output_tokens,
            "cost_usd": f"{budget.cost_usd:f}" if budget.is_priced and budget.tokens() else None,
            "structured_output": _small(answer.structured) if answer else None,
            "context": context_texts(state.main.context),
            "pending_approvals": state.approvals.that_fit() or None,
            "ended_approvals": state.approvals.to_tell() or None,
            "retrieval_failure": _joined(state.retrieval_failures),
            "tools_failure": _joined(state.tools_failures),
        }
    )


def context_texts(context: dict[str, Any]) -> dict[str, str] | None:
    """Return context variables as a status shows them; None where there are none."""
    return {name: contract.context_text(value) for name, value in context.items()} or None


def _joined(failures: dict[str, str]) -> str | None:
    return "; ".join(f"Agent {agent}: {words}" for agent, words in failures.items())[:1024] or None


def _small(structured: dict[str, Any] | None) -> dict[str, Any] | None:
    weight = len(json.dumps(structured, ensure_ascii=False).encode())
    return structured if weight <= contract.STRUCTURED_OUTPUT_MAX_BYTES else None


def recent_messages(thread: Thread) -> list[RecentMessage]:
    """Return the last few messages of a thread, one entry a message or tool result, each cut."""
    entries = [entry for message in thread.messages[-contract.RECENT_MESSAGES :] for entry in _entries(message)]
    return entries[-contract.RECENT_MESSAGES :]


def _entries(message: Message) -> list[RecentMessage]:
    if message.role == "tool":
        return [
            _entry("Tool", part.output, part.tool)
            for part in message.parts
            if isinstance(part, contract.ToolResultPart)
        ]
    lines = [message.text()] if message.text() else []
    lines += [f"→ {call.tool}({call.arguments})" for call in message.tool_calls()]
    return [_entry(_ROLES[message.role], "\n".join(lines), message.sender)]


def _entry(role: str, content: str, sender: str | None) -> RecentMessage:
    limit = contract.RECENT_MESSAGE_MAX_BYTES
    cut = content if len(content.encode()) <= limit else _first_bytes(content, limit - len("…".encode())) + "…"
    return RecentMessage.model_validate({"role": role, "content": cut, "sender": sender})


def _first_bytes(text: str, count: int) -> str:
    """Return the beginning of a text that weighs at most so many bytes; a character is never cut in two."""
    return text.encode()[:count].decode(errors="ignore")
