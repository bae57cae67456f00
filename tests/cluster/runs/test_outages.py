"""The API server or Temporal is away for half a minute, or killed: nothing is lost, and nobody restarts anything."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(180)

AWAY_SECONDS = 30.0


def work(name: str, count: int = 3) -> list[dict[str, Any]]:
    calls = [{"toolCalls": [{"name": "stamp", "arguments": {"key": f"{name}-{n}"}}]} for n in range(count)]
    return [*calls, {"text": f"{name} is done."}]


@contextmanager
def away(system: "System", part: str) -> Iterator[None]:
    """Stop a server for the body of the block, and for half a minute at least."""
    system.signal(part, signal.SIGSTOP)
    end = time.monotonic() + AWAY_SECONDS
    try:
        yield
        system.wait_for("half a minute has passed", lambda: time.monotonic() > end, AWAY_SECONDS + 1)
    finally:
        system.signal(part, signal.SIGCONT)


@contextmanager
def nobody_is_restarted(system: "System", mall: "Shop", *but: str) -> Iterator[None]:
    """Compare the processes of all parts before and after."""

    def pids() -> dict[str, Any]:
        ours = {name: part["pid"] for name, part in system.parts().items() if name not in but}
        return {name: pid for name, pid in ours.items() if not name.startswith("worker-") or mall.namespace in name}

    before = pids()
    yield
    assert pids() == before


def test_the_api_server_is_away(system: "System", mall: "Shop") -> None:
    ending = mall.task("ending", *work("ending"), tools=("stamp",), latencySeconds=2)
    hold = {"toolCalls": [{"name": "hold", "arguments": {"key": "outlasting"}}]}
    outlasting = mall.task("outlasting", hold, *work("outlasting"), tools=("stamp", "hold"))
    failing = mall.task("failing", model={"name": "unauthorized"})
    mall.model("after-the-api", {"text": "Later."})
    mall.agent("after-the-api")
    system.wait_for("both are under way", lambda: ending.asked and mall.is_called("outlasting"))
    failing.ended()
    with nobody_is_restarted(system, mall):
        with away(system, "kube-apiserver"):
            system.wait_for("the run goes on meanwhile", lambda: ending.is_asked(4), 20)
        mall.let_go("outlasting")
        later = system.wait_for("a run can be created", lambda: mall.run("after-the-api"))
        for run in (ending, outlasting, later):
            run.answered()
            run.check_no_call_was_repeated()
            assert len(run.asked) == run.status["turns"]
        system.wait_for("all is ready", lambda: all(part["ready"] for part in system.parts().values()))


def test_temporal_is_away(system: "System", mall: "Shop") -> None:
    names = ("going-0", "going-1", "going-2")
    runs = [mall.task(name, *work(name), tools=("stamp",), latencySeconds=1) for name in names]
    stopped = {name: mall.task(name, {"text": "too late"}, latencySeconds=120) for name in ("deleted", "cancelled")}
    mall.model("during-temporal", {"text": "Later."})
    mall.agent("during-temporal")
    system.wait_for("all are under way", lambda: all(run.asked for run in [*runs, *stopped.values()]))
    with nobody_is_restarted(system, mall):
        with away(system, "temporal"):
            later = mall.run("during-temporal")
            stopped["deleted"].delete()
            stopped["cancelled"].cancel()
            assert "Temporal" in later.waits("StartFailed", 40)
        for run in [*runs, later]:
            run.answered()
            run.check_no_call_was_repeated()
        assert stopped["cancelled"].ended()["phase"] == "Cancelled"
        deleted = stopped["deleted"].workflow_id
        system.wait_for("the deleted run's workflow ends", lambda: system.temporal.state(deleted) == "TERMINATED")
        system.wait_for("all is ready", lambda: all(part["ready"] for part in system.parts().values()))


def test_servers_are_killed(system: "System", mall: "Shop") -> None:
    """All of them, one after the other, in the middle of the same runs."""
    servers = ("kube-apiserver", "etcd", "temporal", "kube-controller-manager")
    runs: list[Run] = []
    with nobody_is_restarted(system, mall, *servers):
        for server in servers:
            name = f"at-{server}"
            runs.append(mall.task(name, *work(name, 4), tools=("stamp",), latencySeconds=1))
            system.wait_for("it is under way", lambda: runs[-1].asked)
            killed = system.kill(server)
            system.wait_for(f"{server} is back", lambda: system.is_back(server, killed))  # noqa: B023 called at once
            system.wait_for("the API server takes runs", mall.takes_runs)
        for run in runs:
            run.answered(90)
            run.check_no_call_was_repeated()
        system.wait_for("all is ready", lambda: all(part["ready"] for part in system.parts().values()))
