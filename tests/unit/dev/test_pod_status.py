"""The status of a Pod from the states of its containers."""

from typing import Any

import pytest
from dalang_cli.dev.pod_status import (
    ContainerState,
    Running,
    Terminated,
    Waiting,
    container_status,
    phase,
    pod_status,
    state_after_outage,
)

NOW, BEFORE = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
WAITING = ContainerState("main", "image")
RUNNING = ContainerState("main", "image", state=Running(BEFORE), started=True)
READY = ContainerState("main", "image", state=Running(BEFORE), started=True, ready=True)


def ended(exit_code: int) -> ContainerState:
    return ContainerState("main", "image", state=Terminated(exit_code, BEFORE, NOW))


def crashed() -> ContainerState:
    last = Terminated(1, BEFORE, NOW)
    return ContainerState("main", "image", state=Waiting("CrashLoopBackOff"), last=last, restarts=2)


@pytest.mark.parametrize(
    ("containers", "restart_policy", "expected"),
    [
        pytest.param([WAITING], "Always", "Pending", id="nothing has run yet"),
        pytest.param([RUNNING, WAITING], "Always", "Running", id="one of two runs"),
        pytest.param([crashed()], "Always", "Running", id="waiting for a restart"),
        pytest.param([ended(0)], "Always", "Running", id="ended, but will be restarted"),
        pytest.param([ended(0)], "OnFailure", "Succeeded", id="ended well"),
        pytest.param([ended(0), ended(2)], "Never", "Failed", id="one ended badly"),
        pytest.param([ended(2)], "OnFailure", "Running", id="ended badly, but will be restarted"),
    ],
)
def test_phase(containers: list[ContainerState], restart_policy: str, expected: str) -> None:
    assert phase(containers, restart_policy) == expected


def status(container: ContainerState, previous: dict[str, Any] | None = None, now: str = NOW) -> dict[str, Any]:
    return pod_status(
        [container], restart_policy="Always", ip="127.1.2.3", start_time=BEFORE, previous=previous or {}, now=now
    )


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["lastTransitionTime"]) for each in status["conditions"]}


def test_a_ready_pod() -> None:
    condition = {"status": "True", "lastTransitionTime": NOW}
    assert status(READY) == {
        "phase": "Running",
        "conditions": [{"type": t, **condition} for t in ("Initialized", "PodScheduled", "ContainersReady", "Ready")],
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": "127.1.2.3",
        "podIPs": [{"ip": "127.1.2.3"}],
        "startTime": BEFORE,
        "containerStatuses": [container_status(READY)],
    }


def test_an_unready_pod_names_the_container() -> None:
    ready = next(each for each in status(RUNNING)["conditions"] if each["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert "[main]" in ready["message"]


def test_equal_states_give_equal_statuses_later() -> None:
    first = status(READY, now=BEFORE)
    assert status(READY, previous=first, now=NOW) == first


def test_only_a_change_moves_the_transition_time() -> None:
    later = conditions(status(READY, previous=status(RUNNING, now=BEFORE), now=NOW))
    assert later["Ready"] == ("True", NOW)
    assert later["Initialized"] == ("True", BEFORE)


def test_a_killed_container_tells_the_signal() -> None:
    assert container_status(ended(137))["state"]["terminated"] == {
        "exitCode": 137,
        "signal": 9,
        "reason": "Error",
        "startedAt": BEFORE,
        "finishedAt": NOW,
    }


@pytest.mark.parametrize(
    ("before", "restarts", "last_exit_code"),
    [
        pytest.param(None, 0, None, id="a new pod"),
        pytest.param(WAITING, 0, None, id="never started"),
        pytest.param(READY, 1, 137, id="its process died with the supervisor"),
        pytest.param(crashed(), 3, 1, id="it was waiting for a restart"),
        pytest.param(ended(143), 1, 143, id="it was stopped by down"),
    ],
)
def test_state_after_outage(before: ContainerState | None, restarts: int, last_exit_code: int | None) -> None:
    statuses = [container_status(before)] if before else []
    state = state_after_outage("main", "image", statuses, NOW)
    assert isinstance(state.state, Waiting)
    assert not state.ready
    assert state.restarts == restarts
    assert (state.last.exit_code if state.last else None) == last_exit_code
