"""The status of a Pod, computed from the states of its containers; pure functions and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Waiting:
    """Not running: why, and what could be done."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Running:
    """Running since."""

    started_at: str


@dataclass(frozen=True)
class Terminated:
    """Ended, for now or for good."""

    exit_code: int
    started_at: str
    finished_at: str
    message: str = ""
    reason: str = ""
    """Empty: `Completed` for exit code 0, else `Error`."""


@dataclass(frozen=True)
class ContainerState:
    """What is known about one container; the kubelet replaces it at every change."""

    name: str
    image: str
    state: Waiting | Running | Terminated = Waiting("ContainerCreating")
    last: Terminated | None = None
    ready: bool = False
    started: bool = False
    restarts: int = 0


def timestamp(moment: datetime | None = None) -> str:
    """Return a time as Kubernetes writes it."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def state_after_outage(name: str, image: str, statuses: Sequence[Object], now: str) -> ContainerState:
    """Return the state of a container at the start of a supervisor, from the status that the one before it wrote.

    Its process is gone, whatever the status says; so what ran before counts as ended and its next start as a restart.
    """
    old = next((each for each in statuses if each["name"] == name), None)
    if old is None:
        return ContainerState(name, image)
    state, last_state = old.get("state") or {}, old.get("lastState") or {}
    last = _terminated(state.get("terminated") or last_state.get("terminated"))
    if running := state.get("running"):
        last = Terminated(137, running["startedAt"], now, "dalang dev stopped", "ContainerStatusUnknown")
    has_run = last is not None
    return ContainerState(name, image, last=last, restarts=old["restartCount"] + (1 if has_run else 0))


def _terminated(old: Object | None) -> Terminated | None:
    if old is None:
        return None
    return Terminated(
        exit_code=old["exitCode"],
        started_at=old.get("startedAt") or "",
        finished_at=old.get("finishedAt") or "",
        message=old.get("message", ""),
        reason=old.get("reason", ""),
    )


def container_status(container: ContainerState) -> Object:
    """Return the entry of `status.containerStatuses`."""
    return {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "state": _state(container.state),
        "lastState": _state(container.last) if container.last else {},
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
    }


def _state(state: Waiting | Running | Terminated) -> Object:
    if isinstance(state, Waiting):
        return {"waiting": {"reason": state.reason, **({"message": state.message} if state.message else {})}}
    if isinstance(state, Running):
        return {"running": {"startedAt": state.started_at}}
    ended: Object = {
        "exitCode": state.exit_code,
        "reason": state.reason or ("Completed" if state.exit_code == 0 else "Error"),
    }
    if state.exit_code > 128:
        ended["signal"] = state.exit_code - 128
    for name, value in (
        ("message", state.message),
        ("startedAt", state.started_at),
        ("finishedAt", state.finished_at),
    ):
        if value:
            ended[name] = value
    return {"terminated": ended}


def phase(containers: Sequence[ContainerState], restart_policy: str) -> str:
    """Return the pod's phase."""
    ended = [each.state for each in containers if isinstance(each.state, Terminated)]
    if len(ended) == len(containers) and restart_policy != "Always":
        if all(each.exit_code == 0 for each in ended):
            return "Succeeded"
        if restart_policy == "Never":
            return "Failed"
    has_run = any(not isinstance(each.state, Waiting) or each.last is not None for each in containers)
    return "Running" if has_run else "Pending"


def pod_status(
    containers: Sequence[ContainerState],
    *,
    restart_policy: str,
    ip: str,
    start_time: str,
    previous: Mapping[str, Any],
    now: str,
) -> Object:
    """Return the whole status that the kubelet writes.

    `previous` is the status last seen; transition times of conditions that stay the same are kept from it, so that equal
    states give equal bytes and no write.
    """
    phase_now = phase(containers, restart_policy)
    unready = [each.name for each in containers if not each.ready]
    finished = phase_now in {"Succeeded", "Failed"}
    not_ready: dict[str, str] = {}
    if unready:
        reason = "PodCompleted" if phase_now == "Succeeded" else "PodFailed" if finished else "ContainersNotReady"
        not_ready = {"reason": reason, "message": f"containers with unready status: [{' '.join(unready)}]"}
    wanted: list[tuple[str, bool, dict[str, str]]] = [
        ("Initialized", True, {}),
        ("PodScheduled", True, {}),
        ("ContainersReady", not unready, not_ready),
        ("Ready", not unready, not_ready),
    ]
    old_conditions = {each["type"]: each for each in previous.get("conditions") or []}
    conditions = []
    for type_, holds, details in wanted:
        value = "True" if holds else "False"
        old = old_conditions.get(type_)
        since = old["lastTransitionTime"] if old and old["status"] == value and old.get("lastTransitionTime") else now
        conditions.append({"type": type_, "status": value, "lastTransitionTime": since, **details})
    return {
        "phase": phase_now,
        "conditions": conditions,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": start_time,
        "containerStatuses": [container_status(each) for each in containers],
    }
