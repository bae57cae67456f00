"""Schedules on a real Temporal: times, overlap, pauses, catch-up, orders, and what happens while somebody is away."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dalang_api import contract, process
from dalang_operator.kinds.agentrun.plan import FIRING_SECONDS, Settings
from dalang_operator.kinds.agentrun.reconcile import RunFacts, RunReconciler
from dalang_operator.kinds.agentschedule.desired import make_schedule
from dalang_operator.kinds.agentschedule.runs import make_run
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kube.errors import Forbidden, Invalid, QuotaExceeded, Unavailable
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, Resource, key_of
from dalang_operator.reporter.triggers import TriggerRun
from dalang_operator.temporal.errors import TemporalUnavailable
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from tests.build import NOW
from tests.workflow.office import EVERY_SECOND, HOURLY, KEY, SELDOM, Office, eventually, fire_in_every_shape, times_of

HISTORIES = sorted((Path(__file__).parent / "histories" / "firings").glob("*.json"))
TEMPORAL = Path(sys.executable).parent / "temporal"


@pytest.fixture
async def office(temporal_address: str) -> AsyncIterator[Office]:
    client = await Client.connect(temporal_address, data_converter=process.data_converter())
    opened = Office(client)
    yield opened
    async for id_ in opened.schedules.list():
        if id_.startswith(f"{opened.installation}."):
            await opened.schedules.remove(id_, "the test is over")


# ── Times ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("times", "begin", "days", "expected"),
    [
        pytest.param(
            {"cron": ["30 2 * * *"]},
            "2027-03-27T00:00:00Z",
            4,
            ["03-27T01:30", "03-29T00:30", "03-30T00:30"],
            id="an hour that spring skips has no run",
        ),
        pytest.param(
            {"cron": ["30 2 * * *"]},
            "2027-10-30T00:00:00Z",
            4,
            ["10-30T00:30", "10-31T01:30", "11-01T01:30", "11-02T01:30"],
            id="an hour that autumn repeats has one, the second time",
        ),
        pytest.param(
            {"cron": ["0 9 * * 1-5"]},
            "2027-03-26T00:00:00Z",
            4,
            ["03-26T08:00", "03-29T07:00"],
            id="nine in the morning is nine in the morning, on working days",
        ),
        pytest.param(
            {"cron": ["0 9 * * *", "0 18 * * *"], "intervals": [{"every": "24h", "offset": "5m"}]},
            "2027-03-26T00:00:00Z",
            1,
            ["03-26T00:05", "03-26T08:00", "03-26T17:00"],
            id="several crons, and an interval that knows no zone",
        ),
        pytest.param(
            {"calendars": [{"year": "2028", "month": "2", "dayOfMonth": "29", "hour": "12"}]},
            "2028-02-28T00:00:00Z",
            3,
            ["02-29T11:00"],
            id="a day of a certain year",
        ),
        pytest.param(
            {"cron": ["@daily"], "startAt": "2027-03-27T00:00:00Z", "endAt": "2027-03-28T12:00:00Z"},
            "2027-03-25T00:00:00Z",
            7,
            ["03-27T23:00"],
            id="nothing before the start, nothing after the end",
        ),
    ],
)
async def test_times_of_a_zone(office: Office, times: Json, begin: str, days: int, expected: list[str]) -> None:
    applied = office.apply({"timeZone": "Europe/Berlin", **times})
    await office.schedules.create(make_schedule(applied, office.installation))
    first = datetime.fromisoformat(begin)
    found = await office.schedules.times(office.id(), first, first + timedelta(days=days))
    assert [each.strftime("%m-%dT%H:%M") for each in found] == expected


@pytest.mark.parametrize(
    ("times", "words"),
    [
        pytest.param({"cron": ["61 * * * *"]}, "Minute is not in range [0-59]", id="a minute that is none"),
        pytest.param({"cron": ["0 9 * *"]}, "CronString does not have 5-7 fields", id="too few fields"),
        pytest.param({"cron": ["@daily"], "timeZone": "Mars/Olympus"}, "unknown time zone Mars/Olympus", id="no zone"),
        pytest.param({"calendars": [{"month": "Foo"}]}, "Month is not in range [1-12]", id="no month"),
    ],
)
async def test_what_temporal_cannot_read_is_said_in_its_words(office: Office, times: Json, words: str) -> None:
    async with office.controller():
        office.apply(times)
        await eventually(lambda: office.has("InvalidSchedule"))
        assert words in office.ready()["message"]
        assert await office.view() is None
        office.apply(SELDOM)
        await eventually(lambda: office.has("Scheduled"))
        office.apply(times)
        await eventually(lambda: office.has("InvalidSchedule"))
        view = await office.view()
    assert view
    assert view.is_paused
    assert "nextRuns" not in office.status()
    assert [each["type"] for each in office.status()["conditions"]] == ["Ready", "Stalled"]


async def test_a_template_that_the_api_server_refuses_is_not_scheduled(office: Office) -> None:
    office.cluster.refusals = [Invalid("spec.input: Too long", 422)] * 100
    async with office.controller():
        office.apply(SELDOM)
        await eventually(lambda: office.has("InvalidTemplate"))
        assert "spec.input: Too long" in office.ready()["message"]
        assert await office.view() is None


async def test_the_status_names_the_next_five_times(office: Office) -> None:
    async with office.controller():
        office.apply(HOURLY)
        await eventually(lambda: office.has("Scheduled"))
        next_runs = [datetime.fromisoformat(each) for each in office.status()["nextRuns"]]
        assert len(next_runs) == 5
        assert all(each.minute == 0 for each in next_runs)
        assert timedelta(0) < next_runs[0] - datetime.now(UTC) <= timedelta(hours=1)
        office.apply(HOURLY, suspend=True)
        await eventually(lambda: office.has("Suspended"))
        assert "nextRuns" not in office.status()
        assert office.ready()["status"] == "True"
        view = await office.view()
        assert view
        assert view.is_paused
        office.apply(HOURLY)
        await eventually(lambda: office.has("Scheduled"))
        view = await office.view()
        assert view
        assert not view.is_paused


# ── When it is time and the run before has not ended ───────────────────────────────────────────────────────────────


async def test_forbid_creates_no_run_beside_another(office: Office) -> None:
    async with office.working():
        office.apply(EVERY_SECOND)
        await eventually(lambda: len(office.active()) == 1)
        [first] = office.active()
        await _time_passes(office, 3)
        assert office.active() == [first]
        office.cluster.finish(first)
        await eventually(lambda: office.active() and office.active() != [first])
        assert len(office.runs()) == 2


async def test_allow_creates_runs_beside_each_other(office: Office) -> None:
    async with office.working():
        office.apply(EVERY_SECOND, concurrencyPolicy="Allow")
        await eventually(lambda: len(office.active()) >= 3)
        await eventually(lambda: len(office.status().get("activeRuns", ())) >= 3)


async def test_replace_cancels_the_old_run_first(office: Office) -> None:
    office.ends_cancelled = False
    async with office.working():
        office.apply(EVERY_SECOND, concurrencyPolicy="Replace")
        await eventually(office.active)
        first = office.runs()[0]["metadata"]["name"]
        await eventually(lambda: office.runs()[0]["spec"].get("cancel"))
        await _time_passes(office, 2)
        assert office.active() == [first], "the new one waits for the end of the old one"
        office.cluster.finish(first, "Cancelled", "Cancelled")
        await eventually(lambda: office.active() and office.active() != [first])
        office.ends_cancelled = True
        second = office.active()[0]
        await eventually(lambda: second not in office.active())
        assert await eventually(lambda: office.firings("Canceled"))
        assert await office.firings("Failed") == []


@pytest.mark.parametrize("policy", ["Queue", "QueueAll"])
async def test_queue_creates_one_after_another(office: Office, policy: str) -> None:
    """After a run of four seconds Queue has the second that came next, and then none of those missed."""
    async with office.working():
        office.apply(EVERY_SECOND, concurrencyPolicy=policy)
        await eventually(lambda: len(office.active()) == 1)
        await _time_passes(office, 4)
        for count in (1, 2, 3):
            assert len(office.runs()) == count
            [running] = office.active()
            office.cluster.finish(running)
            await eventually(lambda running=running: office.active() and office.active() != [running])  # type: ignore[misc]
        first, *rest = times_of(office.runs())
    after = [(each - first).total_seconds() for each in rest]
    assert after[:2] == [1, 2] if policy == "QueueAll" else (after[0] == 1 and after[1] > 3)


async def _time_passes(office: Office, seconds: int) -> None:
    """Wait until so many of the schedule's times have passed."""
    since = datetime.now(UTC)

    async def passed() -> bool:
        return len(await office.times(since)) > seconds

    await eventually(passed)


# ── Failures ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["Forbid", "Allow", "Replace"])
async def test_a_run_that_fails_pauses_the_schedule_until_its_spec_changes(office: Office, policy: str) -> None:
    async with office.working():
        office.apply(EVERY_SECOND, concurrencyPolicy=policy, pauseOnFailure=True)
        await eventually(office.active)
        office.cluster.finish(office.active()[0], "Failed", "ModelFailed", "no such model")
        await eventually(lambda: office.has("PausedOnFailure"))
        assert "ended as Failed: ModelFailed: no such model" in office.ready()["message"]
        assert office.ready()["status"] == "False"
        assert "nextRuns" not in office.status()
        for name in office.active():
            office.cluster.finish(name)
        await eventually(lambda: not office.active())
        known = len(office.runs())
        await _time_passes(office, 3)
        assert (len(office.runs()), office.has("PausedOnFailure")) == (known, True)
        office.apply(EVERY_SECOND, concurrencyPolicy=policy, pauseOnFailure=True, catchUpWindow="10s")
        await eventually(lambda: office.has("Scheduled"))
        await eventually(office.active)
    assert office.cluster.events == []


async def test_a_run_that_is_refused_pauses_the_schedule_too_and_tells_an_event(office: Office) -> None:
    async with office.controller():
        office.apply(EVERY_SECOND, pauseOnFailure=True)
        await eventually(lambda: office.has("Scheduled"))
        office.cluster.refusals = [Forbidden("policy says no", 403)]
        async with office.reporter():
            await eventually(lambda: office.has("PausedOnFailure"))
    assert "policy says no" in office.ready()["message"]
    [event] = office.cluster.events
    assert (event["reason"], event["regarding"]["name"]) == ("RunRefused", "nightly")
    assert "policy says no" in event["note"]


async def test_a_run_that_is_deleted_lets_its_firing_end(office: Office) -> None:
    async with office.working():
        office.apply(EVERY_SECOND, pauseOnFailure=True)
        await eventually(office.active)
        [first] = office.active()
        office.cluster.remove(AGENT_RUNS, first)
        await eventually(lambda: office.active() and office.active() != [first])
        assert office.has("Scheduled")


# ── The answer is lost, the quota is full, somebody else was quicker ───────────────────────────────────────────────


async def test_a_run_that_is_soon_deleted_is_created_once_though_the_answer_was_lost(office: Office) -> None:
    """Its `ttlAfterFinished` is over before the next attempt, and the template is edited."""
    admit, created = office.cluster.create, []

    async def create(resource: Resource, namespace: str, body: Json, *, dry_run: bool = False) -> Json:
        made = await admit(resource, namespace, body, dry_run=dry_run)
        if resource is AGENT_RUNS and not dry_run:
            created.append(key_of(made))
            if len(created) == 1:
                raise Unavailable("the answer was lost")
        return made

    office.cluster.create = create  # type: ignore[method-assign]
    runs = RunReconciler(
        office.cluster,
        office.workflows,
        office.cache,
        RecentConfigMaps(office.cluster, office.cache),
        RunFacts(),
        Settings(office.installation, timedelta(hours=24)),
        lambda _: None,
        lambda: NOW + timedelta(days=1),  # long after it finished
        SessionFacts(),
        lambda _: None,
    )
    template = {"spec": {"agentRef": {"name": "helper"}, "input": "Look.", "ttlAfterFinished": "1s"}}
    async with office.working():
        office.apply(SELDOM, runTemplate=template)
        await eventually(lambda: office.has("Scheduled"))
        office.annotate(trigger="now")
        [name] = await eventually(office.active)
        office.cluster.finish(name)
        office.apply(SELDOM, runTemplate={"spec": {**template["spec"], "input": "Look again."}})
        assert await runs.reconcile(created[0]) == FIRING_SECONDS
        assert office.runs()

        async def is_deleted() -> bool:
            await runs.reconcile(created[0])
            return not office.runs()

        await eventually(is_deleted)
        assert await office.firings("Completed")
    assert len(created) == 1


async def test_a_full_quota_delays_a_run_and_pauses_nothing(office: Office) -> None:
    full = QuotaExceeded("exceeded quota: few", 403)
    async with office.controller():
        office.apply(SELDOM, pauseOnFailure=True)
        await eventually(lambda: office.has("Scheduled"))
        office.annotate(trigger="now")
        await eventually(office.firings)
        office.cluster.refusals = [full] * 2
        async with office.reporter():
            await eventually(office.active)
        assert office.has("Scheduled")
    assert {event["reason"] for event in office.cluster.events} == {"QuotaExceeded"}


async def test_runs_that_somebody_puts_in_the_place_of_those_that_are_due_are_refused(office: Office) -> None:
    """Names and uids can be read, and any owner can be written, where no policy forbids it."""
    applied = office.apply(EVERY_SECOND)
    soon = datetime.now(UTC).replace(microsecond=0)
    for ahead in range(30):
        forged = make_run(applied, soon + timedelta(seconds=ahead))
        forged["spec"] = {"agentRef": {"name": "mine"}, "input": "All is well."}
        forged["metadata"]["annotations"]["dalang.dev/created-by"] = "eve"
        office.cluster.put(AGENT_RUNS, {**forged, "status": {"phase": "Running"}})
    async with office.working():

        async def all_refused() -> bool:
            return len(await office.firings("Failed")) >= 2

        await eventually(all_refused)
        assert office.has("Scheduled")
        assert "activeRuns" not in office.status()
        assert await office.firings("Completed") == []
    assert {event["reason"] for event in office.cluster.events} == {"RunRefused"}
    assert "created by eve. Delete AgentRun nightly-" in office.cluster.events[0]["note"]


# ── Orders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_value_of_the_trigger_creates_one_run(office: Office) -> None:
    """Also beside a run, of a suspended schedule, and two of the same second."""
    async with office.working():
        office.apply(SELDOM, suspend=True)
        await eventually(lambda: office.has("Suspended"))
        for count, value in enumerate(("a", "b", "c" * 300), start=1):
            office.annotate(trigger=value)
            await eventually(lambda count=count: len(office.active()) == count)  # type: ignore[misc]
        await eventually(lambda: len(office.status().get("activeRuns", ())) == 3)
        assert office.status()["trigger"].startswith("sha256:")


async def test_a_trigger_is_carried_out_once_though_the_operator_dies_before_it_noted_it(office: Office) -> None:
    async with office.reporter():
        office.apply(SELDOM)
        await office.reconciler.reconcile(KEY)
        before = office.status()
        office.annotate(trigger="now")
        await office.reconciler.reconcile(KEY)
        await eventually(office.active)
        [order] = office.status()["orders"]
        for _ in range(2):
            noted = {**before, "orders": [{**order, "pending": True}]}
            office.cluster.put(AGENT_SCHEDULES, {**office.object(), "status": noted})
            office.restart()
            await office.reconciler.reconcile(KEY)
        office.annotate(trigger="again")
        await office.reconciler.reconcile(KEY)
        await eventually(lambda: len(office.active()) == 2)
        assert len(await office.firings()) == 2


async def test_a_value_that_comes_again_creates_a_run_again(office: Office) -> None:
    async with office.working():
        office.apply(SELDOM)
        await eventually(lambda: office.has("Scheduled"))
        for count, value in enumerate(("a", "b", "a"), start=1):
            office.annotate(trigger=value)
            await eventually(lambda count=count: len(office.active()) == count)  # type: ignore[misc]
            await eventually(lambda value=value: office.status().get("trigger") == value)  # type: ignore[misc]
    assert [each["value"] for each in office.status()["orders"]] == ["a", "b", "a"]


@pytest.mark.parametrize("is_told", [True, False], ids=["after it told Temporal", "before"])
async def test_a_trigger_is_carried_out_once_though_the_operator_dies_and_temporal_forgets(
    office: Office, is_told: bool
) -> None:
    trigger, requests = office.schedules.trigger, list[str]()

    async def dies(id_: str, scheduled_at: datetime, request_id: str) -> None:
        requests.append(request_id)
        if is_told:
            await trigger(id_, scheduled_at, request_id)
        raise TemporalUnavailable("the operator dies")

    async with office.reporter():
        office.apply(SELDOM)
        await office.reconciler.reconcile(KEY)
        office.annotate(trigger="now")
        office.schedules.trigger = dies  # type: ignore[method-assign]
        with pytest.raises(TemporalUnavailable):
            await office.reconciler.reconcile(KEY)
        assert "trigger" not in office.status()
        if is_told:
            [first] = await eventually(office.active)
            office.cluster.finish(first)
            office.cluster.remove(AGENT_RUNS, first)

        async def forgotten(id_: str, scheduled_at: datetime, request_id: str) -> None:
            await trigger(id_, scheduled_at, f"{request_id} forgotten")

        office.schedules.trigger = forgotten  # type: ignore[method-assign]
        office.restart()
        await office.reconciler.reconcile(KEY)
        assert office.status()["trigger"] == "now"
        assert len(await eventually(lambda: office.firings(None))) == 1
        if not is_told:
            await eventually(office.active)
    assert len(requests) == 1


async def test_a_trigger_finds_a_second_though_each_is_a_time(office: Office) -> None:
    async with office.working():
        office.apply(EVERY_SECOND, concurrencyPolicy="Allow")
        await eventually(lambda: len(office.runs()) >= 2)
        made = datetime.fromisoformat(office.object()["metadata"]["creationTimestamp"])

        def triggered() -> list[datetime]:
            return [each for each in times_of(office.runs()) if each < made]

        for count in (1, 2):
            office.annotate(trigger=str(count))
            await eventually(lambda count=count: len(triggered()) == count)  # type: ignore[misc]
        assert triggered() == [made - timedelta(seconds=2), made - timedelta(seconds=1)]


async def test_no_run_is_created_once_the_schedule_is_suspended_whatever_was_due(office: Office) -> None:
    """The reporter is away, times come due, the brake is pulled; what is ordered by hand goes on."""
    async with office.controller():
        office.apply(EVERY_SECOND, concurrencyPolicy="Allow", pauseOnFailure=True)
        await eventually(lambda: office.has("Scheduled"))
        since = datetime.now(UTC)
        fired = await eventually(lambda: _fired(office, 3))
        office.apply(EVERY_SECOND, concurrencyPolicy="Allow", pauseOnFailure=True, suspend=True)
        office.annotate(trigger="now")
        await eventually(lambda: office.status().get("trigger") == "now")
        async with office.reporter():

            async def all_ended() -> bool:
                return len(await office.firings("Completed")) >= len(fired)

            await eventually(all_ended)
            [run] = await eventually(office.active)
            assert times_of(office.runs())[0] < since
            assert office.has("Suspended")
            office.cluster.finish(run)
            # What the brake has dropped may be backfilled.
            _, dropped = contract.parse_trigger_id(fired[0])
            office.annotate(trigger="now", backfill=f"{dropped.isoformat()}/{dropped.isoformat()}")
            await eventually(office.active)
    assert office.cluster.events == []


async def _fired(office: Office, count: int) -> list[str]:
    found = await office.firings()
    return found if len(found) >= count else []


async def test_a_triggered_run_that_is_cancelled_pauses_the_schedule(office: Office) -> None:
    async with office.working():
        office.apply(SELDOM, pauseOnFailure=True)
        await eventually(lambda: office.has("Scheduled"))
        office.annotate(trigger="now")
        [name] = await eventually(office.active)
        office.cluster.finish(name, "Cancelled", "Cancelled")
        await eventually(lambda: office.has("PausedOnFailure"))


async def test_a_backfill_creates_the_runs_of_its_times_one_after_another_and_once(office: Office) -> None:
    async with office.reporter():
        office.apply(HOURLY)
        await office.reconciler.reconcile(KEY)
        before = office.status()
        office.annotate(backfill="2026-11-01T09:00:00Z/2026-11-01T11:30:00Z")
        for _ in range(2):
            await office.reconciler.reconcile(KEY)
            office.cluster.put(AGENT_SCHEDULES, {**office.object(), "status": before})
            office.restart()
        async with office.controller():
            for count in (1, 2, 3):
                await eventually(lambda: len(office.active()) == 1)
                assert len(office.runs()) == count
                office.cluster.finish(office.active()[0])
            await eventually(lambda: not office.active())
            assert [f"{each:%d %H:%M}" for each in times_of(office.runs())] == ["01 09:00", "01 10:00", "01 11:00"]

            async def none_waits() -> bool:
                return not await office.firings()

            await eventually(none_waits)
    assert office.cluster.events == []


def _hours_with_runs(office: Office, hours: dict[int, str]) -> None:
    """Have runs of that day's hours ended before, each so."""
    for hour, phase in hours.items():
        run = office.cluster.put(AGENT_RUNS, make_run(office.object(), datetime(2026, 11, 1, hour, tzinfo=UTC)))
        office.cluster.finish(key_of(run).name, phase)
    office.restart()


def _created(office: Office) -> list[str]:
    return [write.split()[-1] for write in office.cluster.writes if write.startswith("create AgentRun")]


async def test_a_backfill_of_times_that_have_their_runs_is_over_at_once_and_pauses_nothing(office: Office) -> None:
    """No sweep comes here to tell what was told long ago."""
    async with office.working():
        office.apply(HOURLY, pauseOnFailure=True)
        await eventually(lambda: office.has("Scheduled"))
    _hours_with_runs(office, {9: "Succeeded", 10: "Failed", 11: "Cancelled"})
    async with office.working():
        office.annotate(backfill="2026-11-01T09:00:00Z/2026-11-01T11:00:00Z")

        async def all_ended() -> bool:
            return len(await office.firings("Completed")) == 3

        await eventually(all_ended)
        view = await office.view()
    assert view
    assert not view.is_paused
    assert (_created(office), len(office.runs())) == ([], 3)


async def test_a_backfill_creates_no_run_again_that_was_there_when_it_was_ordered(office: Office) -> None:
    """Though its own runs are newer than those, and the history keeps two."""
    async with office.reporter():
        office.apply(HOURLY, runHistory={"succeeded": 2})
        await office.reconciler.reconcile(KEY)
        _hours_with_runs(office, {11: "Succeeded", 12: "Succeeded"})
        office.annotate(backfill="2026-11-01T09:00:00Z/2026-11-01T12:00:00Z")
        await office.reconciler.reconcile(KEY)
        view = await office.view()
        assert view
        assert view.buffered == 3
        [order] = office.status()["orders"]
        long_ago = {**order, "orderedAt": "2026-11-01T13:00:00Z"}
        office.cluster.put(AGENT_SCHEDULES, {**office.object(), "status": {**office.status(), "orders": [long_ago]}})
        async with office.controller():
            for count in (3, 4):
                [name] = await eventually(office.active)
                assert len(office.runs()) == count
                office.cluster.finish(name)
                await eventually(lambda name=name: name not in office.active())  # type: ignore[misc]
            await eventually(lambda: len(office.runs()) == 2, 40)
    assert [f"{each:%H}" for each in times_of(office.runs())] == ["09", "10"]
    assert len(_created(office)) == 2


@pytest.mark.parametrize(
    ("value", "words", "is_in_status"),
    [
        pytest.param("yesterday", "write two times", True, id="no times"),
        pytest.param("2026-11-02T00:00:00Z/2026-11-01T00:00:00Z", "before the first", True, id="the wrong way round"),
        pytest.param("2026-10-01T00:00:00Z/2026-11-01T00:00:00Z", "more than 100 times", False, id="too many"),
        pytest.param("2026-11-01T09:10:00Z/2026-11-01T09:20:00Z", "no time in this period", False, id="none"),
    ],
)
async def test_a_backfill_that_cannot_be_is_told_once(
    office: Office, value: str, words: str, is_in_status: bool
) -> None:
    office.apply(HOURLY)
    office.annotate(backfill=value)
    for _ in range(3):
        await office.reconciler.reconcile(KEY)
    [event] = office.cluster.events
    assert event["reason"] == "BackfillRefused"
    assert words in event["note"]
    assert (words in office.ready()["message"]) == is_in_status
    assert office.status()["backfill"] == value


# ── Changes by hand ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_changed_in_temporal_is_put_back_and_told(office: Office) -> None:
    office.apply(SELDOM)
    await office.reconciler.reconcile(KEY)
    handle = office.client.get_schedule_handle(office.id())
    await handle.pause(note="by hand")
    await office.reconciler.reconcile(KEY)
    other = make_schedule(
        office.object() | {"spec": {**office.object()["spec"], "schedule": HOURLY}}, office.installation
    )
    await office.schedules.update(other, b"")
    await office.reconciler.reconcile(KEY)
    await handle.delete()
    await office.reconciler.reconcile(KEY)
    for _ in range(2):
        await office.reconciler.reconcile(KEY)
    notes = [event["note"] for event in office.cluster.events]
    assert [note.split(";")[0] for note in notes] == [
        "The schedule was changed in Temporal",
        "The schedule was changed in Temporal",
        "The schedule was deleted in Temporal",
    ]
    view = await office.view()
    assert view
    assert not view.is_paused
    assert [(each.month, each.day) for each in view.next_times[:2]] == [(1, 1), (1, 1)]
    assert office.has("Scheduled")


async def test_a_settled_schedule_is_written_no_more(office: Office) -> None:
    office.apply(SELDOM)
    await office.reconciler.reconcile(KEY)
    writes = len(office.cluster.writes)
    office.restart()
    for _ in range(2):
        await office.reconciler.reconcile(KEY)
    assert len(office.cluster.writes) == writes


# ── Old runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_finished_runs_are_kept_as_the_history_says(office: Office) -> None:
    async with office.working():
        office.apply(SELDOM, runHistory={"succeeded": 1, "failed": 0}, concurrencyPolicy="Allow")
        for number, phase in enumerate(("Succeeded", "Failed", "Succeeded")):
            office.annotate(trigger=str(number))
            await eventually(office.active)
            [name] = office.active()
            office.cluster.finish(name, phase)
        last = name
        await eventually(lambda: [key_of(run).name for run in office.runs()] == [last])
        recent = await eventually(lambda: len(office.status()["recentRuns"]) == 3 and office.status()["recentRuns"])
        assert sorted(each["phase"] for each in recent) == ["Failed", "Succeeded", "Succeeded"]

        async def all_told() -> bool:
            return len(await office.firings("Failed")) == 1 and len(await office.firings("Completed")) == 2

        await eventually(all_told)


# ── Somebody is away ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(120)
async def test_while_the_reporter_is_away_20_seconds_forbid_has_one_run_and_queue_all_has_all(office: Office) -> None:
    async with office.controller():
        office.apply(EVERY_SECOND, "forbidding")
        office.apply({"intervals": [{"every": "4s"}]}, "queueing", concurrencyPolicy="QueueAll")
        await eventually(lambda: office.has("Scheduled", "queueing") and office.has("Scheduled", "forbidding"))
        since = datetime.now(UTC)

        async def passed() -> bool:
            return len(await office.times(since, "queueing")) >= 5

        await eventually(passed, 40)
        missed = await office.times(since, "queueing")
        async with office.reporter():
            await eventually(lambda: office.active("forbidding") and office.active("queueing"))
            assert len(office.runs("forbidding")) == 1
            while times_of(office.runs("queueing"))[-1] < missed[-1]:
                for name in office.active("queueing"):
                    office.cluster.finish(name)
                    await eventually(lambda name=name: office.active("queueing") not in ([], [name]))  # type: ignore[misc]
            office.cluster.finish(office.active("forbidding")[0])
            await eventually(lambda: len(office.runs("forbidding")) == 2)
    kept = set(times_of(office.runs("queueing")))  # the oldest are deleted by now
    created = [write.split()[-1] for write in office.cluster.writes if write.startswith("create AgentRun queueing-")]
    all_times = [contract.scheduled_run_time("queueing", name) for name in created]
    assert set(missed) <= set(all_times) | kept
    first, second = times_of(office.runs("forbidding"))
    assert second - first > timedelta(seconds=15)


@contextmanager
def server(port: int, database: Path) -> Iterator[None]:
    """A Temporal dev server of the test's own, which keeps what it has in a file."""
    arguments = ["server", "start-dev", "--headless", "--port", str(port), "--db-filename", str(database)]
    arguments += ["--log-level", "error"]
    running = subprocess.Popen([TEMPORAL, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


async def connected(port: int) -> Client:
    async def connect() -> Client | None:
        with suppress(RuntimeError):
            client = await Client.connect(f"127.0.0.1:{port}", data_converter=process.data_converter())
            await client.count_workflows()
            return client
        return None

    found: Client = await eventually(connect)
    return found


@pytest.mark.timeout(180)
async def test_times_while_temporal_was_away_have_runs_within_the_catch_up_window(
    tmp_path: Path, free_port: int
) -> None:
    """20 seconds away, with windows of 10 and of 60 seconds."""
    database = tmp_path / "temporal.db"
    times = {"intervals": [{"every": "2s"}]}
    with server(free_port, database):
        office = Office(await connected(free_port))
        for name, window in (("short", "10s"), ("long", "60s")):
            office.apply(times, name, concurrencyPolicy="Allow", catchUpWindow=window)
            await office.reconciler.reconcile(ObjectKey("shop", name))
        async with office.reporter():
            await eventually(lambda: office.runs("short") and office.runs("long"))
    stopped = datetime.now(UTC)
    await eventually(lambda: datetime.now(UTC) - stopped > timedelta(seconds=20), 25)
    started = datetime.now(UTC)
    with server(free_port, database):
        office.client = await connected(free_port)
        office.__post_init__()
        async with office.reporter():
            await eventually(lambda: times_of(office.runs("long"))[-1] > started + timedelta(seconds=4), 60)
            await eventually(lambda: times_of(office.runs("short"))[-1] > started + timedelta(seconds=4), 60)
    away = [stopped + timedelta(seconds=2), started - timedelta(seconds=1)]

    def missed(name: str) -> list[datetime]:
        return [each for each in times_of(office.runs(name)) if away[0] < each < away[1]]

    assert len(missed("long")) >= 8
    assert missed("short")
    assert min(missed("short")) > started - timedelta(seconds=12)


# ── Nobody told ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["ended", "deleted"])
async def test_a_firing_that_was_told_nothing_is_found_by_the_sweep(office: Office, way: str) -> None:
    async with office.reporter():
        office.apply(SELDOM)
        office.annotate(trigger="now")
        await office.reconciler.reconcile(KEY)
        [name] = await eventually(office.active)
        await eventually(office.firings)
        if way == "ended":
            office.cluster.finish(name, "Failed")
        else:
            office.cluster.remove(AGENT_RUNS, name)
        office.restart()
        async with office.controller():
            await office.sweep.sweep()
            await eventually(lambda: office.firings("Failed" if way == "ended" else "Completed"))


async def test_a_firing_whose_run_is_not_created_yet_is_told_nothing(office: Office) -> None:
    office.apply(SELDOM)
    office.annotate(trigger="now")
    await office.reconciler.reconcile(KEY)
    await eventually(office.firings)
    await office.sweep.sweep()
    await office.reconciler.reconcile(KEY)
    async with office.reporter():
        await eventually(office.active)
        assert len(await office.firings()) == 1


async def test_a_deleted_schedule_is_removed_from_temporal_with_its_firings(office: Office) -> None:
    async with office.working():
        office.apply(EVERY_SECOND)
        await eventually(office.active)
        id_ = office.id()
        office.cluster.remove(AGENT_SCHEDULES, "nightly")

        async def is_removed() -> bool:
            return await office.view(id_) is None and not await office.firings()

        await eventually(is_removed)


async def test_a_schedule_that_was_deleted_while_the_operator_was_away_is_swept(office: Office) -> None:
    """One of another installation, and one that is there, are left alone."""
    strange = Office(office.client, installation=f"{office.installation}-2")
    kept = office.apply(SELDOM, "kept")
    for each, name in ((office, "nightly"), (strange, "nightly"), (office, "kept")):
        if name == "nightly":
            each.apply(EVERY_SECOND)
        await each.reconciler.reconcile(ObjectKey("shop", name))
    id_, strange_id = office.id(), strange.id()
    await eventually(office.firings)
    office.cluster.told = lambda *_: None
    office.cluster.remove(AGENT_SCHEDULES, "nightly")
    office.restart()
    office.cache.schedules.drop(kept)  # the cache's word is not enough

    async def is_swept() -> bool:
        await office.sweep.sweep()
        return await office.view(id_) is None and not await office.firings()

    await eventually(is_swept)
    for _ in range(3):
        await office.sweep.sweep()
    assert await office.view(strange_id)
    assert await office.view(office.id("kept"))
    await strange.schedules.remove(strange_id, "the test is over")


async def test_a_firing_that_finds_its_schedule_gone_deletes_it_in_temporal(office: Office) -> None:
    office.apply(EVERY_SECOND)
    await office.reconciler.reconcile(KEY)
    id_ = office.id()
    office.cluster.told = lambda *_: None
    office.cluster.remove(AGENT_SCHEDULES, "nightly")
    async with office.reporter():

        async def is_gone() -> bool:
            return await office.view(id_) is None and not await office.firings()

        await eventually(is_gone)
    assert office.runs() == []


# ── Replay ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def replayer() -> Replayer:
    return Replayer(
        workflows=[TriggerRun],
        data_converter=process.data_converter(),
        workflow_runner=UnsandboxedWorkflowRunner(),
    )


async def test_firings_replay(office: Office) -> None:
    for workflow_id in (await fire_in_every_shape(office)).values():
        await replayer().replay_workflow(await office.client.get_workflow_handle(workflow_id).fetch_history())


def read(path: Path) -> WorkflowHistory:
    content = json.loads(path.read_text())
    return WorkflowHistory.from_json(content.pop("workflowId"), content)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_firings_that_began_with_an_earlier_version_replay(path: Path) -> None:
    """Recorded by `record_firings.py`."""
    await replayer().replay_workflow(read(path))


def test_there_is_a_history_of_each_shape_of_firing() -> None:
    assert {path.stem for path in HISTORIES} >= {
        "firing",
        "firing-cancelled",
        "firing-cancelled-first",
        "firing-deleted",
        "firing-failed",
        "firing-refused",
    }
