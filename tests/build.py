"""Builders of API objects for tests: one line per object, only what the test is about is said."""

from datetime import UTC, datetime, timedelta
from typing import Any

from dalang_operator.runtime.cache import Known

Json = dict[str, Any]

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
LONG_AGO = "2026-11-20T11:00:00Z"
INSTALLATION = "inst"


def at(delta: timedelta = timedelta()) -> str:
    """A time relative to NOW, as the API writes it."""
    return (NOW + delta).strftime("%Y-%m-%dT%H:%M:%SZ")


def meta(name: str, **more: Any) -> Json:
    return {
        "name": name,
        "namespace": "shop",
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": "10",
        "creationTimestamp": LONG_AGO,
        **more,
    }


def pending_conditions(*types: str) -> list[Json]:
    """The schema's default."""
    return [
        {
            "type": type_,
            "status": "False" if type_ == "Ready" else "Unknown",
            "reason": "Pending",
            "message": "Waiting for the controller",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
        for type_ in types
    ]


def condition(type_: str, status: str, reason: str, message: str = "", since: str = LONG_AGO) -> Json:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
        "observedGeneration": 1,
    }


def run(name: str = "r1", *, metadata: Json | None = None, status: Json | None = None, **spec: Any) -> Json:
    """A run as it was created."""
    born = {"phase": "Pending", "observedGeneration": -1, "conditions": pending_conditions("Ready", "Succeeded")}
    return {
        "metadata": meta(name, **(metadata or {})),
        "spec": {"agentRef": {"name": "helper"}, "input": "hello", **spec},
        "status": born if status is None else status,
    }


def started_run(name: str = "r1", *, seq: int = 0, metadata: Json | None = None, **spec: Any) -> Json:
    """A run whose workflow was started an hour ago."""
    status = {
        "phase": "Running",
        "observedGeneration": 1,
        "conditions": [condition("Ready", "False", "Running"), condition("Succeeded", "Unknown", "Running")],
        "agent": "helper",
        "startedAt": LONG_AGO,
        "workflow": {
            "id": f"{INSTALLATION}.shop.{name}.uid-{name}",
            "runId": "run-1",
            "taskQueue": f"{INSTALLATION}.shop.default",
            "reportSeq": seq,
        },
    }
    return run(name, metadata=metadata, status=status, **spec)


def finished_run(name: str = "r1", *, ago: timedelta = timedelta(0), metadata: Json | None = None, **spec: Any) -> Json:
    obj = started_run(name, seq=1, metadata=metadata, **spec)
    obj["status"] |= {"phase": "Succeeded", "finishedAt": at(-ago)}
    return obj


def awaiting_run(name: str = "r1", *pending: str, seq: int = 1, metadata: Json | None = None, **spec: Any) -> Json:
    """A run that waits for a human to decide the AgentApprovals of these names."""
    obj = started_run(name, seq=seq, metadata=metadata, **spec)
    listed = [{"name": each, "agent": "helper", "question": "Charge?", "preview": "{}"} for each in pending]
    obj["status"] |= {"phase": "AwaitingApproval", "pendingApprovals": listed}
    return obj


def approval(
    name: str = "r1-a", *, run: str = "r1", metadata: Json | None = None, status: Json | None = None, **spec: Any
) -> Json:
    """An AgentApproval as the reporter creates it; `decision="Approve"` makes it a decided one."""
    owner = {"kind": "AgentRun", "name": run, "uid": f"uid-{run}", "controller": True}
    request = {
        "subject": "ToolCall",
        "runRef": {"name": run},
        "workflowId": f"{INSTALLATION}.shop.{run}.uid-{run}",
        "agent": "helper",
        "tool": "pay",
        "question": "Charge?",
        "arguments": '{"amount":120}',
        "digest": "sha256:0",
        "requestedAt": LONG_AGO,
    }
    born = {"state": "Pending", "conditions": pending_conditions("Ready")}
    return {
        "metadata": meta(name, **{"ownerReferences": [owner], **(metadata or {})}),
        "spec": {**request, **spec},
        "status": born if status is None else status,
    }


def session(name: str = "chat", *, metadata: Json | None = None, status: Json | None = None, **spec: Any) -> Json:
    """An AgentSession as it was applied."""
    born = {"observedGeneration": -1, "conditions": pending_conditions("Ready")}
    return {
        "kind": "AgentSession",
        "metadata": meta(name, **(metadata or {})),
        "spec": {"agentRef": {"name": "helper"}, **spec},
        "status": born if status is None else status,
    }


def open_session(name: str = "chat", *, seq: int = 1, metadata: Json | None = None, **spec: Any) -> Json:
    """A session whose workflow was started an hour ago."""
    status = {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "True", "Active", "The conversation goes on with the next run")],
        "agent": "helper",
        "startedAt": LONG_AGO,
        "workflow": {
            "id": f"{INSTALLATION}.shop.{name}.uid-{name}",
            "runId": "run-1",
            "taskQueue": f"{INSTALLATION}.shop.default",
            "reportSeq": seq,
        },
    }
    return session(name, metadata=metadata, status=status, **spec)


def exchange(name: str = "r1", *, session: str = "chat", **more: Any) -> Json:
    """A run of a session that was not sent to it yet."""
    return _in_session(run(name, **more), session)


def sent_exchange(name: str = "r1", *, session: str = "chat", phase: str = "Running", **more: Any) -> Json:
    """A run that was sent to its session; `phase="Pending"`: it is queued there."""
    obj = _in_session(started_run(name, **more), session)
    workflow = obj["status"]["workflow"] | {"id": f"{INSTALLATION}.shop.{session}.uid-{session}"}
    obj["status"] |= {"phase": phase, "workflow": workflow}
    if phase == "Pending":
        del obj["status"]["startedAt"], obj["status"]["agent"]
    return obj


def _in_session(obj: Json, name: str) -> Json:
    task = {key: value for key, value in obj["spec"].items() if key != "agentRef"}
    return {**obj, "spec": {**task, "sessionRef": {"name": name}}}


def schedule(name: str = "nightly", *, metadata: Json | None = None, status: Json | None = None, **spec: Any) -> Json:
    """An AgentSchedule as it was applied: every day at nine, unless `schedule` says otherwise."""
    born = {"observedGeneration": -1, "conditions": pending_conditions("Ready")}
    template = {"spec": {"agentRef": {"name": "helper"}, "input": "Look after it."}}
    return {
        "metadata": meta(name, **(metadata or {})),
        "spec": {"schedule": {"cron": ["0 9 * * *"]}, "runTemplate": template, **spec},
        "status": born if status is None else status,
    }


def agent(name: str = "helper", *, model: str = "gpt", metadata: Json | None = None, **spec: Any) -> Json:
    return {"kind": "Agent", "metadata": meta(name, **(metadata or {})), "spec": {"modelRef": {"name": model}, **spec}}


def model(called: str = "gpt", *, secret: str | None = None, **spec: Any) -> Json:
    """A model; `name` is that at the provider."""
    auth = {"auth": {"apiKey": {"secretKeyRef": {"name": secret, "key": "api-key"}}}} if secret else {}
    return {
        "kind": "AgentModel",
        "metadata": meta(called),
        "spec": {"provider": "OpenAI", "name": "gpt-5", **auth, **spec},
    }


def pool(name: str = "default", *, metadata: Json | None = None, status: Json | None = None, **spec: Any) -> Json:
    return {
        "kind": "AgentPool",
        "metadata": meta(name, **(metadata or {})),
        "spec": spec,
        "status": status or {},
    }


def config_map(name: str = "tools", **data: str) -> Json:
    return {"metadata": meta(name), "data": {key.replace("__", "."): value for key, value in data.items()}}


def known(*there: Json) -> Known:
    """These objects, and no others, to look up by name."""
    objects = {(obj["kind"], obj["metadata"]["name"]): obj for obj in there}
    return Known(
        agents=lambda name: objects.get(("Agent", name)),
        models=lambda name: objects.get(("AgentModel", name)),
        pools=lambda name: objects.get(("AgentPool", name)),
    )
