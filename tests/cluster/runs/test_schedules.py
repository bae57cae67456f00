"""AgentSchedules on the whole control plane: runs come at their times, once each, whatever is killed, and nothing is left."""

import itertools
import signal
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from temporalio.service import RPCError, RPCStatusCode

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]

OFTEN = {"intervals": [{"every": "2s"}]}
SELDOM = {"cron": ["0 0 1 1 *"], "timeZone": "Europe/Berlin"}


@dataclass(frozen=True)
class Schedule:
    """An AgentSchedule that was created."""

    shop: "Shop"
    name: str
    uid: str

    @property
    def id(self) -> str:
        return contract.schedule_id(self.shop.system.installation, self.shop.namespace, self.name, self.uid)

    @property
    def status(self) -> Object:
        found: Object = self.shop.get("AgentSchedule", self.name)["status"]
        return found

    def waits(self, reason: str, within: float = 30.0) -> str:
        return self.shop.waits("AgentSchedule", self.name, reason, within=within)

    def patch(self, **spec: Any) -> None:
        self.shop.patch("AgentSchedule", self.name, {"spec": spec})

    def annotate(self, **annotations: str) -> None:
        values = [f"dalang.dev/{name}={value}" for name, value in annotations.items()]
        self.shop.kubectl("annotate", "--overwrite", "agentschedule", self.name, *values)

    def delete(self) -> None:
        self.shop.delete("AgentSchedule", self.name)

    def objects(self) -> list[Object]:
        """Its runs in the order of their times."""
        found = self.shop.all("AgentRun", f"labelSelector=dalang.dev/schedule={self.name}")
        return sorted(found, key=lambda run: str(run["metadata"]["name"]))

    def runs(self) -> list["Run"]:
        return [self.shop.adopt(run["metadata"]["name"]) for run in self.objects()]

    def names(self, *phases: str) -> list[str]:
        """The names of those in these phases; of all without."""
        found = self.objects()
        return [run["metadata"]["name"] for run in found if not phases or run["status"]["phase"] in phases]

    def run(self, within: float = 30.0) -> "Run":
        """Wait for the first run."""
        found: list[Run] = self.shop.system.wait_for(f"{self.name} has a run", self.runs, within)
        return found[0]

    def firings(self, status: str = "") -> dict[str, str]:
        """Temporal's workflows of it, with their states."""
        more = f" AND ExecutionStatus = '{status}'" if status else ""
        return self.shop.system.temporal.workflows(
            f"WorkflowId STARTS_WITH '{self.id}-' AND WorkflowType = '{contract.TRIGGER_WORKFLOW}'{more}"
        )

    def run_name(self, workflow_id: str) -> str:
        """The name of a firing's run."""
        return contract.scheduled_run_name(self.name, self.uid, contract.parse_trigger_id(workflow_id)[1])

    def is_in_temporal(self) -> bool:
        temporal = self.shop.system.temporal
        try:
            temporal.do(temporal.client.get_schedule_handle(self.id).describe())
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True


def make(shop: "Shop", name: str, times: Object, *, agent: str | None = None, **spec: Any) -> Schedule:
    template = {
        "metadata": {"labels": {"team": "ops"}},
        "spec": {"agentRef": {"name": agent or name}, "input": "Look after it."},
    }
    created = shop.create("AgentSchedule", name, {"schedule": times, "runTemplate": template, **spec})
    return Schedule(shop, name, created["metadata"]["uid"])


def quick(shop: "Shop", name: str) -> None:
    """An agent that answers at once."""
    shop.model(name, {"text": "All is well."})
    shop.agent(name)


def held(shop: "Shop", name: str) -> None:
    """An agent whose tool is called and does not end before it is let go."""
    shop.model(name, {"toolCalls": [{"name": "hold", "arguments": {"key": name}}]}, {"text": "Done."})
    shop.agent(name, tools=("hold",))


def test_runs_come_at_their_times_and_old_ones_go(mall: "Shop", system: "System") -> None:
    quick(mall, "often")
    schedule = make(mall, "often", OFTEN, runHistory={"succeeded": 2})
    first = schedule.run()
    assert first.object["metadata"]["labels"] == {"team": "ops", "dalang.dev/schedule": "often"}
    answered: set[str] = set()

    def many() -> bool:
        answered.update(schedule.names("Succeeded"))
        return len(answered) >= 5

    system.wait_for("five runs have answered", many, 60)
    assert len(schedule.status["nextRuns"]) == 5
    schedule.patch(suspend=True)
    assert schedule.waits("Suspended") == "spec.suspend is set"
    system.wait_for("all have ended", lambda: not schedule.status.get("activeRuns"))
    system.wait_for("two are kept", lambda: len(schedule.names()) == 2)
    system.wait_for("every firing has ended", lambda: set(schedule.firings().values()) == {"COMPLETED"})
    status = schedule.status
    assert "nextRuns" not in status
    assert [each["name"] for each in status["recentRuns"][:2]] == schedule.names()[::-1]
    assert status["lastRun"]["name"] == schedule.names()[-1]
    times = [datetime.fromisoformat(each["scheduledAt"]) for each in status["recentRuns"]]
    assert all(each.second % 2 == 0 for each in times)
    assert len(set(times)) == len(times)
    columns = mall.kubectl("get", "agentschedule", "often", "-o", "wide")
    assert "Suspended" in columns


def test_each_trigger_is_one_run_though_the_operator_is_killed(mall: "Shop", system: "System") -> None:
    quick(mall, "triggered")
    schedule = make(mall, "triggered", SELDOM)
    schedule.waits("Scheduled")
    for number in range(1, 4):
        schedule.annotate(trigger=f"value-{number}")
        killed = system.kill("operator")
        system.wait_for("the operator is back", lambda killed=killed: system.is_back("operator", killed), 60)  # type: ignore[misc]
        system.wait_for("it was noted", lambda number=number: schedule.status.get("trigger") == f"value-{number}")  # type: ignore[misc]
        system.wait_for("its run is there", lambda number=number: len(schedule.names()) == number)  # type: ignore[misc]
    for run in schedule.runs():
        run.answered()
    system.wait_for("every firing has ended", lambda: list(schedule.firings().values()) == ["COMPLETED"] * 3)
    assert len(schedule.names()) == 3


def test_a_backfill_creates_each_run_of_the_past_once(mall: "Shop", system: "System") -> None:
    quick(mall, "filled")
    schedule = make(mall, "filled", {"cron": ["0 9 * * *"]}, runHistory={"succeeded": 5})
    schedule.waits("Scheduled")
    schedule.annotate(backfill="2026-03-01T00:00:00Z/2026-03-04T00:00:00Z")
    system.wait_for("three have answered", lambda: len(schedule.names("Succeeded")) == 3, 60)
    scheduled_at = [run["metadata"]["annotations"]["dalang.dev/scheduled-at"] for run in schedule.objects()]
    assert scheduled_at == [f"2026-03-0{day}T09:00:00Z" for day in (1, 2, 3)]
    schedule.annotate(backfill="the day before yesterday")
    mall.system.wait_for(
        "it is refused",
        lambda: "write two times" in mall.condition("AgentSchedule", "filled")["message"],
    )
    assert mall.condition("AgentSchedule", "filled")["reason"] == "Scheduled"
    events = mall.kubectl("events", "--for", "agentschedule/filled")
    assert "BackfillRefused" in events


def test_runs_of_a_session_come_at_their_times_too(mall: "Shop", system: "System") -> None:
    mall.model("spoken-to", {"text": "All is well."}, loop=True)
    mall.agent("spoken-to")
    mall.create("AgentSession", "spoken-to", {"agentRef": {"name": "spoken-to"}})
    template = {"spec": {"sessionRef": {"name": "spoken-to"}, "input": "How are things?"}}
    created = mall.create("AgentSchedule", "spoken-to", {"schedule": OFTEN, "runTemplate": template})
    schedule = Schedule(mall, "spoken-to", created["metadata"]["uid"])
    system.wait_for("three have answered", lambda: mall.get("AgentSession", "spoken-to")["status"].get("runs", 0) >= 3)
    schedule.patch(suspend=True)
    schedule.waits("Suspended")
    system.wait_for("every firing has ended", lambda: not schedule.firings("Running"))
    assert set(schedule.firings().values()) == {"COMPLETED"}
    schedule.delete()


def test_replace_cancels_the_old_run(mall: "Shop", system: "System") -> None:
    held(mall, "replaced")
    schedule = make(mall, "replaced", {"intervals": [{"every": "4s"}]}, concurrencyPolicy="Replace")
    first = schedule.run()
    assert first.ended()["phase"] == "Cancelled"
    system.wait_for("another one", lambda: len(schedule.names()) >= 2)
    schedule.patch(suspend=True)
    schedule.waits("Suspended")
    system.wait_for("its firing is cancelled", lambda: schedule.firings("Canceled"))
    assert schedule.firings("Failed") == {}
    schedule.delete()


def test_a_run_that_fails_pauses_its_schedule(mall: "Shop", system: "System") -> None:
    mall.model("failing-often", spec={"name": "unauthorized"})
    mall.agent("failing-often")
    schedule = make(mall, "failing-often", OFTEN, pauseOnFailure=True)
    message = schedule.waits("PausedOnFailure", 60)
    [failed] = schedule.names("Failed")
    assert failed in message
    assert "ModelFailed" in message
    assert mall.condition("AgentSchedule", "failing-often", "Stalled")["status"] == "True"
    mall.model("mended", {"text": "All is well."})
    mall.patch("Agent", "failing-often", {"spec": {"modelRef": {"name": "mended"}}})
    schedule.patch(catchUpWindow="10m")
    system.wait_for("it goes on", lambda: schedule.names("Succeeded"), 30)
    schedule.delete()


def test_a_schedule_that_makes_no_sense_says_so_and_is_not_scheduled(mall: "Shop", system: "System") -> None:
    schedule = make(mall, "senseless", {"cron": ["0 25 * * *"]}, agent="nobody")
    assert "Hour is not in range [0-23]" in schedule.waits("InvalidSchedule")
    assert not schedule.is_in_temporal()
    schedule.patch(schedule={"cron": ["0 5 * * *"], "timeZone": "Europe/Atlantis"})
    system.wait_for(
        "the zone is refused",
        lambda: "unknown time zone Europe/Atlantis" in mall.condition("AgentSchedule", "senseless")["message"],
    )
    schedule.patch(schedule={"timeZone": "Europe/Berlin"})
    schedule.waits("Scheduled")
    schedule.delete()


def test_a_template_that_the_api_server_would_refuse_is_not_scheduled(mall: "Shop") -> None:
    """Each annotation is short enough, but together they are not, which only the server that takes the run counts."""
    annotations = {f"note-{number}": "€" * 4096 for number in range(32)}
    template = {"metadata": {"annotations": annotations}, "spec": {"agentRef": {"name": "nobody"}, "input": "Hello"}}
    created = mall.create("AgentSchedule", "bulky", {"schedule": OFTEN, "runTemplate": template})
    schedule = Schedule(mall, "bulky", created["metadata"]["uid"])
    assert "metadata.annotations: Too long" in schedule.waits("InvalidTemplate")
    assert not schedule.is_in_temporal()
    schedule.delete()


def test_a_deleted_schedule_leaves_nothing(mall: "Shop", system: "System") -> None:
    held(mall, "left")
    schedule = make(mall, "left", OFTEN)
    run = schedule.run()
    system.wait_for("it is under way", lambda: mall.is_called("left"))
    schedule.delete()
    system.wait_for("it is gone from Temporal", lambda: not schedule.is_in_temporal())
    system.wait_for("so is its run", lambda: not schedule.names())
    system.temporal.become(run.workflow_id, {run.workflow_id: "TERMINATED"})
    system.wait_for("and its firing", lambda: not schedule.firings("Running"))


def test_a_schedule_that_was_deleted_while_the_operator_was_away_is_swept(annex: "Shop", neighbour: "System") -> None:
    schedule = make(annex, "forgotten", SELDOM)
    schedule.waits("Scheduled")
    stopped = make(annex, "kept", SELDOM)
    stopped.waits("Scheduled")
    neighbour.signal("operator", signal.SIGSTOP)
    schedule.delete()
    killed = neighbour.kill("operator")
    neighbour.wait_for("it is back", lambda: neighbour.is_back("operator", killed))
    neighbour.wait_for("it is swept", lambda: not schedule.is_in_temporal(), 60)
    assert stopped.is_in_temporal()


def test_a_schedule_that_is_suspended_while_the_operator_is_away_creates_no_run(
    annex: "Shop", neighbour: "System"
) -> None:
    schedule = make(annex, "braked", OFTEN, concurrencyPolicy="Allow")
    schedule.run()
    neighbour.signal("operator", signal.SIGSTOP)
    names = schedule.names()
    neighbour.wait_for("three times come due", lambda: len(schedule.firings("Running")) >= len(names) + 3)
    schedule.patch(suspend=True)
    killed = neighbour.kill("operator")
    neighbour.wait_for("it is back", lambda: neighbour.is_back("operator", killed))
    schedule.waits("Suspended")
    neighbour.wait_for("what was due has ended", lambda: len(schedule.firings("Running")) == len(names))
    assert schedule.names() == names
    assert len(schedule.firings("Completed")) >= 3
    schedule.annotate(trigger="now")
    neighbour.wait_for("what is ordered has its run", lambda: len(schedule.names()) == len(names) + 1)
    assert schedule.status["orders"][-1]["value"] == "now"
    schedule.delete()


def test_changes_by_hand_in_temporal_are_put_back(annex: "Shop", neighbour: "System") -> None:
    schedule = make(annex, "drifting", SELDOM)
    schedule.waits("Scheduled")
    temporal = neighbour.temporal
    handle = temporal.client.get_schedule_handle(schedule.id)
    temporal.do(handle.pause(note="by hand"))

    def is_paused() -> bool:
        return bool(temporal.do(handle.describe()).schedule.state.paused)

    neighbour.wait_for("it goes on", lambda: not is_paused())
    temporal.do(handle.delete())
    neighbour.wait_for("it is there again", schedule.is_in_temporal)
    neighbour.wait_for(
        "both are told", lambda: annex.kubectl("events", "--for", "agentschedule/drifting").count("DriftCorrected") >= 2
    )


def test_no_time_is_missed_or_doubled_while_the_operator_is_killed(mall: "Shop", system: "System") -> None:
    """The operator is killed three times while a run is due each second; each time has one run, and all of them answer."""
    quick(mall, "each-second")
    schedule = make(
        mall,
        "each-second",
        {"intervals": [{"every": "1s"}]},
        concurrencyPolicy="Allow",
        runHistory={"succeeded": 100, "failed": 100},
    )
    schedule.run()
    for _ in range(3):
        before = len(schedule.names())
        killed = system.kill("operator")
        system.wait_for("the operator is back", lambda killed=killed: system.is_back("operator", killed), 60)  # type: ignore[misc]
        system.wait_for("more runs", lambda before=before: len(schedule.names()) > before)  # type: ignore[misc]
    due = {schedule.run_name(workflow_id) for workflow_id in schedule.firings()}
    # What comes due from here on may be dropped: a firing reads `suspend` before it creates its run.
    system.wait_for("what was due has its run", lambda: due <= set(schedule.names()), 60)
    schedule.patch(suspend=True)
    schedule.waits("Suspended")
    system.wait_for("every firing has ended", lambda: not schedule.firings("Running"), 90)
    system.wait_for("all have answered", lambda: len(schedule.names("Succeeded")) == len(schedule.names()), 90)
    firings = schedule.firings()
    assert set(firings.values()) == {"COMPLETED"}
    times = sorted(contract.parse_trigger_id(workflow_id)[1] for workflow_id in firings)
    assert [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)] == [1.0] * (
        len(times) - 1
    )
    assert due <= set(schedule.names()) <= {schedule.run_name(workflow_id) for workflow_id in firings}
    schedule.delete()


def test_a_namespace_with_schedules_can_be_deleted_without_an_operator(shop: "Shop", system: "System") -> None:
    """As after an uninstall: no finalizer waits for anybody, and whoever comes back sweeps Temporal."""
    schedule = make(shop, "orphan", SELDOM, agent="nobody")
    schedule.waits("Scheduled")
    system.signal("operator", signal.SIGSTOP)
    try:
        system.request("DELETE", "Namespace", None, shop.namespace)
        system.wait_for(
            "the namespace is gone",
            lambda: shop.namespace not in system.kubectl("get", "namespaces", "-o", "name"),
            60,
        )
        assert schedule.is_in_temporal()
    finally:
        system.signal("operator", signal.SIGCONT)
    system.wait_for("it is gone from Temporal", lambda: not schedule.is_in_temporal(), 120)
