"""Conversations that last: order, memory, summaries, what a failed run leaves, the end, and continuing as new."""

import asyncio
import random
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import HandoffBinding, RunIdentity, Snapshot, ToolBinding
from temporalio.client import WorkflowHistory

if TYPE_CHECKING:
    from tests.workflow.conftest import Session, World

Json = dict[str, Any]

ECHO = {"text": "{{n}}: {{last_user}}"}


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


async def test_a_run_goes_on_with_what_was_said_before(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        first = await session.ask("I am Ada")
        second = await session.ask("Who am I?")

    assert (first.output, second.output) == ("1: I am Ada", "2: Who am I?")
    assert await session.asked() == [
        [("user", "I am Ada")],
        [("user", "I am Ada"), ("assistant", "1: I am Ada"), ("user", "Who am I?")],
    ]
    assert second.session is not None
    assert (second.turns, second.session.runs, second.session.queued_runs) == (1, 2, 0)
    assert second.session.last_run == contract.LastRun(
        name="run-2", phase="Succeeded", finished_at=second.finished_at or ""
    )
    assert second.session.input_tokens == first.input_tokens + second.input_tokens
    assert [message.content for message in second.session.messages] == [
        "I am Ada",
        "1: I am Ada",
        "Who am I?",
        "2: Who am I?",
    ]
    assert second.seq > first.seq


async def test_runs_are_carried_out_one_after_another_in_the_order_they_were_sent(world: "World") -> None:
    async with world.serving():
        session = await world.start_session({**ECHO, "latencySeconds": 0.05}, loop=True)
        runs = [await session.send(f"say {number}", queued=number > 0 or None) for number in range(5)]
        await session.handle.signal(  # sent again, as by a controller that died before it noted the first time
            contract.EXCHANGE_SIGNAL,
            contract.Exchange(
                run=runs[1],
                agent="support",
                messages=[],
                max_turns=1,
                timeout_seconds=1,
                snapshot_digest=session.snapshot.digest(),
            ),
        )
        ended = [await session.ended(run) for run in runs]

    assert [report.output for report in ended] == [f"{number + 1}: say {number}" for number in range(5)]
    assert len(await session.asked()) == 5
    assert len(session.reports_of(runs[0])) == 1
    begun = session.reports_of(runs[1])[0]
    assert (begun.phase, begun.turns) == ("Running", 0)


async def test_context_variables_and_hand_offs_last(world: "World") -> None:
    async with world.serving():
        chief = world.agent(
            tools=[ToolBinding(name="remember", function="remember")], handoffs=[HandoffBinding(agent="sales")]
        )
        sales = world.agent("sales", model="seller")
        models = [
            world.model(
                "gpt",
                await world.script(
                    calls(("remember", {"name": "name", "value": "Ada"})), calls(("transfer_to_sales", {}))
                ),
            ),
            world.model("seller", await world.script({"text": "Sales here"}, loop=True)),
        ]
        session = await world.start_session(agents=[chief, sales], models=models, context={"plan": "gold"})
        first = await session.ask("I want to buy")
        second = await session.ask("the red one", context={"colour": "red"})

    assert (first.agent, second.agent) == ("sales", "sales")
    assert second.session is not None
    assert second.session.agent == "sales"
    assert second.session.context == {"plan": "gold", "name": "Ada", "colour": "red"}


async def test_an_agent_that_is_no_more_reached_gives_the_conversation_back(world: "World") -> None:
    async with world.serving():
        chief = world.agent(handoffs=[HandoffBinding(agent="sales")])
        models = [
            world.model("gpt", await world.script(calls(("transfer_to_sales", {})), {"text": "Chief"}, loop=True)),
            world.model("seller", await world.script({"text": "Sales"}, loop=True)),
        ]
        session = await world.start_session(agents=[chief, world.agent("sales", model="seller")], models=models)
        assert (await session.ask("buy")).agent == "sales"
        edited = Snapshot(agents=[world.agent(generation=3)], models=models[:1])
        last = await session.ask("and now", snapshot=edited)

    assert (last.agent, last.agents[0].generation) == ("support", 3)


async def test_a_run_that_fails_leaves_the_conversation_as_it_was(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(
            ECHO, calls(("remember", {"name": "x", "value": "1"})), loop=True, agents=None
        )
        agent = world.agent(tools=[ToolBinding(name="remember", function="remember")])
        snapshot = Snapshot(agents=[agent], models=session.snapshot.models)
        await session.ask("first", snapshot=snapshot)
        failed = await session.ask("second", snapshot=snapshot, max_turns=1)
        assert failed.session is not None
        assert (failed.phase, failed.reason, failed.context) == ("Failed", "MaxTurns", {"x": '"1"'})
        assert (failed.session.context, failed.session.runs) == (None, 2)
        assert [message.content for message in failed.session.messages] == ["first", "1: first"]
        third = await session.send("third", snapshot=snapshot, max_turns=1)
        await session.ended(third)

    *_, last = await session.asked()
    assert last == [("user", "first"), ("assistant", "1: first"), ("user", "third")]


@pytest.mark.parametrize("deleted", [False, True])
async def test_the_run_under_way_and_a_queued_one_end_alone(world: "World", *, deleted: bool) -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        await session.ask("remember me")
        slow = await world.script({"text": "late", "latencySeconds": 60}, loop=True)
        stuck = Snapshot(agents=session.snapshot.agents, models=[world.model("gpt", slow)])
        under_way = await session.send("never", snapshot=stuck)
        await world.eventually(lambda: world.requests(slow))
        queued = await session.send("nor this", queued=True)
        last = await session.send("but this")
        await session.cancel(queued, deleted=deleted or None)
        await session.cancel(under_way, deleted=deleted or None)
        answered = await session.ended(last)

        assert answered.output == "2: but this"
        assert answered.session is not None
        if deleted:
            assert not session.reports_of(queued)
            assert not any(report.finished_at for report in session.reports_of(under_way))
        else:
            cancelled = [await session.ended(run) for run in (queued, under_way)]
            assert [report.phase for report in cancelled] == ["Cancelled", "Cancelled"]
            assert cancelled[0].message == "Cancelled before its turn came"
            assert "while waiting for the model of support (turn 1)" in cancelled[1].message
    assert (await session.asked())[-1] == [
        ("user", "remember me"),
        ("assistant", "1: remember me"),
        ("user", "but this"),
    ]


async def test_a_run_that_was_never_sent_is_cancelled_and_not_taken_later(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        run = RunIdentity(name="early", uid="early-uid")
        await session.cancel(run)
        assert (await session.ended(run)).phase == "Cancelled"
        await session.handle.signal(
            contract.EXCHANGE_SIGNAL,
            contract.Exchange(
                run=run,
                agent="support",
                messages=[],
                max_turns=1,
                timeout_seconds=1,
                snapshot_digest=session.snapshot.digest(),
                snapshot=session.snapshot,
            ),
        )
        assert (await session.ask("hello")).output == "1: hello"
    assert len(session.reports_of(run)) == 1


async def test_a_run_whose_deletion_nobody_told_of_ends_with_its_next_report(world: "World") -> None:
    async with world.serving():
        session = await world.start_session({"text": "late", "latencySeconds": 60}, loop=True)
        run = await session.send("never", queued=True)
        world.deleted.add(run.uid)
        quick = Snapshot(
            agents=session.snapshot.agents, models=[world.model("gpt", await world.script(ECHO, loop=True))]
        )
        assert (await session.ask("hello", snapshot=quick)).output == "1: hello"


async def test_what_a_run_has_said_that_was_deleted_before_its_end_is_given_up(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True, context={"plan": "gold"})
        await session.ask("remember me")
        run = await session.send("forget me", context={"colour": "red"})
        world.deleted.add(run.uid)
        await world.eventually(lambda: world.session_reports.get(session.handle.id))
        assert (await session.ask("hello")).output == "2: hello"
        assert (await session.ask("hello")).context == {"plan": "gold"}


async def test_a_run_that_waits_for_a_human_and_was_deleted_holds_nobody_up(
    world: "World", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalang_worker.workflows.session.WAITED_FOR_INTERVAL", timedelta())
    policy = contract.ApprovalPolicy()
    tool = ToolBinding(name="weather", function="weather", approval=policy)
    async with world.serving():
        session = await world.start_session(
            calls(("weather", {"city": "Ubud"})), agents=[world.agent(tools=[tool])], loop=True
        )
        stuck = await session.send("pay")
        await world.eventually(partial(asked_by, session, stuck))
        world.deleted.add(stuck.uid)
        model = world.model("gpt", await world.script(ECHO, loop=True))
        quick = Snapshot(agents=[world.agent()], models=[model])
        assert (await session.ask("hello", snapshot=quick, queued=True)).output == "1: hello"


async def test_a_timed_out_run_does_not_stop_the_others(world: "World") -> None:
    async with world.serving():
        session = await world.start_session({"text": "late", "latencySeconds": 60}, loop=True)
        late = await session.send("never", timeout_seconds=0.5)
        quick = Snapshot(
            agents=session.snapshot.agents, models=[world.model("gpt", await world.script(ECHO, loop=True))]
        )
        assert (await session.ask("hello", snapshot=quick)).output == "1: hello"
    assert (await session.ended(late)).reason == "Timeout"


async def test_each_run_asks_for_approval_and_acts_for_itself(world: "World") -> None:
    """The same call in two runs of one session is asked twice, runs twice, and has a key of its own each time."""
    log, gate = world.path / "log", world.path / "gate"
    gate.touch()
    call = ("keyed", {"log": str(log), "gate": str(gate), "number": 1})
    policy = contract.ApprovalPolicy()
    async with world.serving():
        session = await world.start_session(
            calls(call),
            {"text": "done"},
            loop=True,
            agents=[world.agent(tools=[ToolBinding(name="keyed", function="keyed", approval=policy)])],
        )
        names = []
        for _ in range(2):
            run = await session.send("do it")
            request = await world.eventually(partial(asked_by, session, run))
            names.append(request.name)
            uid = world.approval_uids[request.name]
            decision = contract.Decision(
                run_uid=run.uid, name=request.name, uid=uid, digest=request.digest, decision="Approve"
            )
            await session.handle.signal(contract.DECIDE_SIGNAL, decision.model_copy(update={"run_uid": "another"}))
            await session.handle.signal(contract.DECIDE_SIGNAL, decision)
            ended = await session.ended(run)
            assert ended.ended_approvals is not None
            assert [(end.name, end.state) for end in ended.ended_approvals] == [(request.name, "Applied")]

    assert len(set(names)) == 2
    keys = log.read_text().splitlines()
    assert len(set(keys)) == len(keys) == 2


def asked_by(session: "Session", run: RunIdentity) -> contract.ApprovalRequest | None:
    """What the run asks a human, if it says so."""
    reports = session.reports_of(run)
    pending = reports[-1].pending_approvals if reports else None
    return pending[0] if pending else None


# ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_too_long_ago_is_known_by_its_summary(world: "World") -> None:
    async with world.serving():
        talker = await world.script(ECHO, loop=True)
        writer = await world.script({"text": "Ada wants the red one."}, loop=True, summarises=True)
        session = await world.start_session(
            models=[world.model("gpt", talker), world.model("writer", writer)],
            settings={"history_size": 4, "summary_model": "writer"},
        )
        for number in range(3):
            last = await session.ask(f"say {number}")
        last = await session.ask("say 3")

    summary = f"{contract.SUMMARY_HEADING}\nAda wants the red one."
    assert (await session.asked())[-1] == [
        ("user", f"{summary}\n\nsay 2"),
        ("assistant", "3: say 2"),
        ("user", "say 3"),
    ]
    (asked,) = await world.requests(writer)
    assert "say 0" in str(asked["body"]["messages"])
    assert "say 2" not in str(asked["body"]["messages"])
    assert last.session is not None
    assert last.session.summary == "Ada wants the red one."
    assert last.input_tokens > 0


async def test_without_summaries_the_oldest_is_dropped(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True, settings={"history_size": 4, "summary_enabled": False})
        for number in range(4):
            last = await session.ask(f"say {number}")
    assert (await session.asked())[-1] == [("user", "say 2"), ("assistant", "3: say 2"), ("user", "say 3")]
    assert last.session is not None
    assert last.session.summary is None


async def test_a_conversation_goes_on_where_no_summary_can_be_written(world: "World") -> None:
    async with world.serving():
        writer = await world.script(alwaysError={"status": 401})
        session = await world.start_session(
            models=[world.model("gpt", await world.script(ECHO, loop=True)), world.model("writer", writer)],
            settings={"history_size": 4, "summary_model": "writer"},
        )
        problems = [summary_problem(await session.ask(f"say {number}")) for number in range(3)]
        last = await session.ask("say 3")
        assert (last.phase, (await session.asked())[-1][0]) == ("Succeeded", ("user", "say 0"))
        assert [*problems, summary_problem(last)] == [None] * 3 + [f"model {writer}: 401: scripted error 401"]
        await world.script({"text": "They talked."}, name=writer, loop=True, summarises=True)
        last = await session.ask("say 4")
    assert last.session is not None
    assert (last.session.summary, last.session.summary_problem) == ("They talked.", None)


async def test_what_no_summary_was_written_of_is_told_no_more_when_none_is_needed(world: "World") -> None:
    async with world.serving():
        writer = await world.script(alwaysError={"status": 401})
        few: Json = {"history_size": 4, "summary_model": "writer"}
        session = await world.start_session(
            models=[world.model("gpt", await world.script(ECHO, loop=True)), world.model("writer", writer)],
            settings=few,
        )
        for number in range(4):
            last = await session.ask(f"say {number}")
        assert summary_problem(last) is not None
        await session.configure(**few, summary_enabled=False)
        assert summary_problem(await session.ask("say 4")) is None
        await session.configure(**{**few, "history_size": 40})
        assert summary_problem(await session.ask("say 5")) is None


def summary_problem(report: contract.RunReport) -> str | None:
    assert report.session is not None
    return report.session.summary_problem


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_run_that_is_too_long_for_the_model_by_itself_takes_nothing_away(
    world: "World", *, enabled: bool
) -> None:
    words = {"message": "maximum context length is 8 tokens", "code": "context_length_exceeded"}
    async with world.serving():
        talker = await world.script(ECHO, loop=True)
        writer = await world.script({"text": "They talked."}, loop=True, summarises=True)
        session = await world.start_session(
            models=[world.model("gpt", talker), world.model("writer", writer)],
            settings={"summary_model": "writer", "summary_enabled": enabled},
        )
        await session.ask("I am Ada")
        await world.script(name=talker, alwaysError={"status": 400, "body": {"error": words}})
        assert (await session.ask("x" * 30_000)).reason == "ContextLength"
        await world.script(ECHO, name=talker, loop=True)
        assert (await session.ask("Who am I?")).output == "2: Who am I?"
    assert (await session.asked())[-1][0] == ("user", "I am Ada")


async def test_an_outage_of_the_model_takes_nothing_away(world: "World") -> None:
    async with world.serving():
        talker = await world.script(ECHO, loop=True)
        session = await world.start_session(models=[world.model("gpt", talker)], settings={"history_size": 4})
        for number in range(3):
            await session.ask(f"say {number}")
        await world.script(name=talker, alwaysError={"status": 401})
        assert (await session.ask("say 3")).phase == "Failed"
        await world.script(ECHO, name=talker, loop=True)
        last = await session.ask("say 4")
    assert last.session is not None
    assert "say 0" in (last.session.summary or "")


async def test_a_conversation_too_long_for_the_model_is_summarised_once_and_sent_again(world: "World") -> None:
    words = {"message": "maximum context length is 8 tokens", "code": "context_length_exceeded"}
    too_long = {"status": 400, "body": {"error": words}}
    async with world.serving():
        talker = await world.script(ECHO, loop=True)
        writer = await world.script({"text": "Ada is here."}, loop=True, summarises=True)
        session = await world.start_session(
            models=[world.model("gpt", talker), world.model("writer", writer)], settings={"summary_model": "writer"}
        )
        await session.ask("I am Ada")
        await world.script(ECHO, name=talker, errors=[too_long], loop=True)
        second = await session.ask("Who am I?")
        assert (second.phase, (second.output or "")[-9:]) == ("Succeeded", "Who am I?")
        await world.script(ECHO, name=talker, alwaysError=too_long)
        third = await session.ask("And now?")
        assert (third.phase, third.reason) == ("Failed", "ContextLength")

    assert [("user", f"{contract.SUMMARY_HEADING}\nAda is here.\n\nWho am I?")] in await session.asked()


# ── The end ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_closed_session_ends_the_run_under_way_and_refuses_the_queued(world: "World") -> None:
    async with world.serving():
        session = await world.start_session({**ECHO, "latencySeconds": 1}, loop=True)
        first, second = await session.send("one"), await session.send("two", queued=True)
        await world.eventually(lambda: world.requests(session.snapshot.models[0].model))
        await session.configure(closed="spec.closed was set")
        result = await session.handle.result()

    assert [(await session.ended(run)).reason for run in (first, second)] == ["Answered", "SessionClosed"]
    refused = await session.ended(second)
    assert refused.message == ("AgentSession talk was closed before the run's turn came. spec.closed was set")
    (told,) = world.session_reports[session.handle.id]
    assert told == result
    assert (result.closed_message, result.runs, result.queued_runs) == ("spec.closed was set", 2, 0)
    assert result.closed_at is not None


async def test_a_closed_session_refuses_the_queued_at_once_whatever_the_run_under_way_waits_for(world: "World") -> None:
    tool = ToolBinding(name="weather", function="weather", approval=contract.ApprovalPolicy())
    async with world.serving():
        session = await world.start_session(
            calls(("weather", {"city": "Ubud"})), {"text": "done"}, loop=True, agents=[world.agent(tools=[tool])]
        )
        waiting = await session.send("pay")
        request = await world.eventually(partial(asked_by, session, waiting))
        queued = [await session.send(f"say {number}", queued=True) for number in range(2)]
        await session.configure(closed="spec.closed was set")
        late = await session.send("late")
        refused = [await session.ended(run) for run in (*queued, late)]
        assert {(report.phase, report.reason) for report in refused} == {("Failed", "SessionClosed")}
        assert [report.session.queued_runs for report in refused if report.session] == [0, 0, 0]
        assert not any(report.finished_at for report in session.reports_of(waiting))
        decision = contract.Decision(
            run_uid=waiting.uid,
            name=request.name,
            uid=world.approval_uids[request.name],
            digest=request.digest,
            decision="Approve",
        )
        await session.handle.signal(contract.DECIDE_SIGNAL, decision)
        result = await session.handle.result()
    assert ((await session.ended(waiting)).phase, result.runs) == ("Succeeded", 4)
    assert (result.last_run or refused[0].run or waiting).name == waiting.name
    assert all(len(session.reports_of(run)) == 1 for run in (*queued, late))


async def test_a_run_that_is_cancelled_while_it_waits_for_a_human_says_so(world: "World") -> None:
    tool = ToolBinding(name="weather", function="weather", approval=contract.ApprovalPolicy())
    async with world.serving():
        session = await world.start_session(calls(("weather", {"city": "Ubud"})), agents=[world.agent(tools=[tool])])
        waiting = await session.send("pay")
        await world.eventually(partial(asked_by, session, waiting))
        await session.cancel(waiting)
        ended = await session.ended(waiting)
    assert (ended.reason, ended.message) == ("Cancelled", "Cancelled while waiting for a human's decision")


async def test_a_run_whose_end_got_lost_can_be_cancelled(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        run = await session.send("forgotten")
        await session.ended(run)

        async def is_told() -> bool:
            return not (await session.handle.describe()).raw_description.pending_activities

        await world.eventually(is_told)
        world.reported.clear()
        await session.cancel(run)
        again = await session.ended(run)
        assert (again.phase, again.message) == ("Cancelled", "Cancelled; its session had ended it before")
        assert (await session.ask("Do you remember?")).output == "2: Do you remember?"


async def test_no_timer_closes_an_idle_session(world: "World") -> None:
    """The controller alone knows whether a run came in time: it may not have been able to send it."""
    async with world.serving():
        session = await world.start_session(ECHO, loop=True, settings={"idle_timeout_seconds": 0.01})
        await session.ask("hello")
        assert (await session.ask("hello again")).phase == "Succeeded"
        await session.configure(closed="No run came within idleTimeout, 10ms")
        result = await session.handle.result()
    assert (result.runs, result.closed_message) == (2, "No run came within idleTimeout, 10ms")


async def test_a_session_cancelled_in_temporal_closes(world: "World") -> None:
    async with world.serving():
        session = await world.start_session({"text": "late", "latencySeconds": 60}, loop=True)
        run = await session.send("never")
        await world.eventually(lambda: world.requests(session.snapshot.models[0].model))
        await session.handle.cancel()
        result = await session.handle.result()
    assert (await session.ended(run)).phase == "Cancelled"
    assert result.closed_message == "Its workflow was cancelled in Temporal"


async def test_a_session_cancelled_in_temporal_while_the_reporter_is_away_closes(world: "World") -> None:
    world.reporter_open.clear()
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        run = await session.send("hello")
        await world.eventually(lambda: any(report.run == run for report in world.reporting))
        await session.handle.cancel()
        world.reporter_open.set()
        result = await session.handle.result()
    assert ((await session.ended(run)).phase, result.closed_message) == (
        "Succeeded",
        "Its workflow was cancelled in Temporal",
    )


# ── Continuing as new, and what is lost on the way ─────────────────────────────────────────────────────────────────


async def test_a_session_continues_as_new_and_remembers(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 20_000)
    async with world.serving():
        session = await world.start_session(
            {**ECHO, "latencySeconds": 0.01}, loop=True, context={"plan": "gold"}, settings={"history_size": 200}
        )
        runs = [await session.send(f"say {number}", queued=True) for number in range(12)]
        ended = [await session.ended(run) for run in runs]
        assert [report.output for report in ended] == [f"{number + 1}: say {number}" for number in range(12)]
        again = await session.send("late")
        assert (await session.ended(again)).output == "13: late"

    assert len(await session.histories()) > 1
    last = (await session.ended(again)).session
    assert last is not None
    assert (last.runs, last.context) == (13, {"plan": "gold"})
    assert [report.seq for report in ended] == sorted(report.seq for report in ended)


async def test_as_much_as_may_be_is_carried(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    """A transcript about to be summarised, the largest snapshot, and a full queue: together below Temporal's 2 MiB."""
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 1_500_000)
    words = random.Random(7).randbytes(15_000).hex()
    instructions = random.Random(8).randbytes(contract.SNAPSHOT_MAX_BYTES // 2 - 2_000).hex()
    async with world.serving():
        session = await world.start_session(
            {"text": words, "latencySeconds": 0.2},
            loop=True,
            agents=[world.agent(instructions=instructions)],
            settings={"history_size": 400},
        )
        runs = [await session.send(f"{number}{words}", queued=True) for number in range(24)]
        ended = [await session.ended(run, within=60) for run in runs]

    assert {report.phase for report in ended} == {"Succeeded"}
    first, second, *_ = await session.histories()
    assert len(first.to_json()) < 4 * 1024 * 1024
    carried = second.events[0].workflow_execution_started_event_attributes.input.payloads[0].data
    assert 1_250_000 < len(carried) <= contract.SESSION_CARRY_MAX_BYTES


async def test_a_lost_worker_changes_nothing(world: "World") -> None:
    session = await world.start_session({**ECHO, "latencySeconds": 0.3}, loop=True)
    async with world.reporter():
        async with world.worker_process() as worker:
            runs = [await session.send(f"say {number}", queued=True) for number in range(4)]
            await session.ended(runs[1])
            worker.process.kill()
            await worker.process.wait()
        async with world.worker_process():
            ended = [await session.ended(run, within=60) for run in runs]
    assert [report.output for report in ended] == [f"{number + 1}: say {number}" for number in range(4)]
    assert len(session.reports_of(runs[3])) >= 1


async def test_the_reporter_away_holds_up_no_run(world: "World") -> None:
    world.reporter_open.clear()
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        runs = [await session.send(f"say {number}") for number in range(3)]
        asked = session.asked

        async def all_asked() -> bool:
            return len(await asked()) == 3

        await world.eventually(all_asked)
        world.reporter_open.set()
        assert [(await session.ended(run)).phase for run in runs] == ["Succeeded"] * 3


async def test_the_reporter_away_holds_up_no_run_of_a_long_session(
    world: "World", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 10_000)
    monkeypatch.setattr("dalang_worker.workflows.session.TOLD_PATIENCE_SECONDS", 0.1)
    world.reporter_open.clear()
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        runs = [await session.send(f"say {number}") for number in range(9)]

        async def all_asked() -> bool:
            return len(await session.asked()) == len(runs)

        await world.eventually(all_asked)
        (history,) = await session.histories()
        assert len(history.to_json()) > 2 * contract.SESSION_CONTINUE_BYTES
        world.reporter_open.set()
        assert [(await session.ended(run)).output for run in runs][-1] == "9: say 8"
        assert (await session.ask("late")).output == "10: late"
        assert (await session.ask("later")).output == "11: later"
        assert len(await session.histories()) > 1


@pytest.mark.parametrize("bound", ["BYTES", "EVENTS"])
async def test_continuing_as_new_is_not_put_off_for_ever(
    world: "World", monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 1_000)
    monkeypatch.setattr("dalang_worker.workflows.session.TOLD_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(f"dalang_worker.workflows.session.PUT_OFF_MAX_{bound}", 10)
    world.reporter_open.clear()
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        runs = [await session.send(f"say {number}") for number in range(2)]

        async def has_waited_for_the_report() -> bool:
            (history,) = await session.histories()
            return any(event.HasField("timer_fired_event_attributes") for event in history.events)

        await world.eventually(has_waited_for_the_report)
        world.reporter_open.set()
        assert [(await session.ended(run)).output for run in runs] == ["1: say 0", "2: say 1"]
        first, *later = await session.histories()
    assert later
    assert said_in(first) == 1


def said_in(history: WorkflowHistory) -> int:
    """How many model calls an execution made."""
    made = [event.activity_task_scheduled_event_attributes.activity_type.name for event in history.events]
    return made.count(contract.MODEL_ACTIVITY)


async def test_sessions_side_by_side(world: "World") -> None:
    async with world.serving():
        sessions = [await world.start_session(ECHO, loop=True) for _ in range(10)]
        sent = await asyncio.gather(*(send_three(session) for session in sessions))
        for session, runs in zip(sessions, sent, strict=True):
            assert sorted([(await session.ended(run)).turns for run in runs]) == [1, 1, 1]


async def send_three(session: "Session") -> list[RunIdentity]:
    return [await session.send(f"say {number}") for number in range(3)]
