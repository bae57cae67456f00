"""Records the histories that `test_replay.py` replays: `.venv/bin/pytest tests/workflow/record.py [-k name]`.

Not collected unless named. A history that a release has written stays for ever, since runs that began with it may still be
waiting: after a change of the workflow, record new ones under new names. Before the first release they may be recorded anew.

Not so `agent-approved`, `answer-changed`, `session-continued-late` and `session-idle`: what they stand for is done otherwise now
(see `calls.APPLIED_BEFORE`, `asking.FITTING_OVERRIDES`, `session.CONTINUED_LATER` and `session.CLOSED_BY_CONTROLLER`).
"""

import json
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import HandoffBinding
from temporalio.client import WorkflowHistory

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, Session, World

Json = dict[str, Any]

HISTORIES = Path(__file__).parent / "histories"
NAME = {"name": "name", "value": "Ada"}


def functions(*names: str) -> list[contract.ToolBinding]:
    return [contract.ToolBinding(name=name, function=name) for name in names]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


async def save(run: "Run", name: str) -> None:
    await run.end()
    keep(run.handle.id, await run.handle.fetch_history(), name)


async def save_session(session: "Session", name: str) -> None:
    """Close a session and save its executions, each as a history of its own."""
    await session.configure(closed="it is recorded")
    await session.handle.result()
    for number, history in enumerate(await session.histories()):
        keep(session.handle.id, history, f"{name}-{number + 1}" if number else name)


def keep(workflow_id: str, history: WorkflowHistory, name: str) -> None:
    content = {"workflowId": workflow_id, **history.to_json_dict()}
    HISTORIES.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Stack traces name files by where this checkout and this Python stand.
    for place in (Path(__file__).parents[2], sysconfig.get_path("stdlib")):
        text = text.replace(f"{place}/", "")
    (HISTORIES / f"{name}.json").write_text(text + "\n")


async def test_answer(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "It is on its way."}), "answer")


async def test_tools(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("weather", {"city": "Ubud"}), ("time_of", {"city": "Ubud"}), ("no_such_tool", {})),
            calls(("fail", {"words": "no such order"})),
            {"text": "Sunny."},
            tools=["weather", "time_of", "fail"],
        )
        await save(run, "tools")


async def test_model_retried(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("weather", {"city": "Ubud"})), {"text": "Sunny."}, errors=[{"status": 503}] * 3, tools=["weather"]
        )
        await save(run, "model-retried")


async def test_model_failed(world: "World") -> None:
    async with world.serving():
        await save(await world.start(alwaysError={"status": 401}), "model-failed")


async def test_model_stopped(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "Once upon a", "finishReason": "length"}), "model-stopped")


async def test_max_turns(world: "World") -> None:
    async with world.serving():
        again = calls(("weather", {"city": "Ubud"}))
        await save(await world.start(again, loop=True, tools=["weather"], max_turns=2), "max-turns")


async def test_timeout(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "late", "latencySeconds": 60}, timeout_seconds=1), "timeout")


async def test_timeout_in_tools(world: "World") -> None:
    wait = ("wait_for", {"file": str(world.path / "never"), "started": str(world.path / "started")})
    async with world.serving():
        run = await world.start(calls(wait, wait), tools=["wait_for"], timeout_seconds=2)
        await save(run, "timeout-in-tools")


async def test_cancelled(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "late", "latencySeconds": 60})
        await world.eventually(run.asked)
        await run.handle.cancel()
        await save(run, "cancelled")


async def test_cancelled_before_the_first_turn(world: "World") -> None:
    run = await world.start({"text": "never"})
    await run.handle.cancel()
    async with world.serving():
        await save(run, "cancelled-before-the-first-turn")


async def test_cancelled_while_reporting(world: "World") -> None:
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start({"text": "done"})
        await world.eventually(lambda: world.reporting)
        await run.handle.cancel()
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        world.reporter_open.set()
        await save(run, "cancelled-while-reporting")


async def test_reported_again(world: "World") -> None:
    gate, started = world.path / "gate", world.path / "started"
    async with world.serving():
        run = await world.start(
            calls(("wait_for", {"file": str(gate), "started": str(started)})), {"text": "done"}, tools=["wait_for"]
        )
        await world.eventually(started.exists)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: run.reports)
        gate.touch()
        await save(run, "reported-again")


async def test_long_tail(world: "World") -> None:
    """More than a model call carries, so that the next asks for it by query; and a second worker that has seen nothing."""
    said = [("say", {"size": contract.TOOL_OUTPUT_MAX_BYTES})] * 9
    gate, started = world.path / "gate", world.path / "started"
    wait = ("wait_for", {"file": str(gate), "started": str(started)})
    async with world.reporter():
        async with world.worker(drain_seconds=0):
            run = await world.start(
                calls(*said),
                calls(wait),
                calls(("weather", {"city": "Ubud"})),
                {"text": "done"},
                tools=["say", "wait_for", "weather"],
            )
            await world.eventually(started.exists)
        gate.touch()
        async with world.worker():
            await save(run, "long-tail")


# ── Several agents ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_handed_over(world: "World") -> None:
    async with world.serving(), world.worker(pool="sales"):
        run = await world.start_team(
            [
                world.agent("desk", handoffs=[HandoffBinding(agent="sales")], tools=functions("remember")),
                world.agent("sales", model="b", pool="sales", instructions="Sell to {{ context.name }}."),
            ],
            [
                world.model("gpt", await world.script(calls(("remember", NAME), ("transfer_to_sales", {})))),
                world.model("b", await world.script({"text": "Two, then."}, loop=True)),
            ],
        )
        await save(run, "handed-over")


def agents_as_tools(world: "World", **archive: Any) -> list[contract.AgentSnapshot]:
    tools = [contract.ToolBinding(name=name, agent=name) for name in ("archive", "weatherman")]
    return [
        world.agent("desk", tools=tools),
        world.agent("archive", model="b", tools=functions("note", "wait_for"), **archive),
        world.agent("weatherman", model="c", tools=functions("weather")),
    ]


async def ask_both(world: "World", *archive: Json) -> list[contract.ModelSnapshot]:
    ask = calls(("archive", {"message": "Order 42?"}), ("weatherman", {"message": "Rain?"}))
    weather = calls(("weather", {"city": "Ubud"}))
    return [
        world.model("gpt", await world.script(ask, {"text": "In Ubud, dry."})),
        world.model("b", await world.script(*archive)),
        world.model("c", await world.script(weather, {"text": "{{last_tool}}"})),
    ]


async def test_agents_as_tools(world: "World") -> None:
    note = calls(("note", {"file": str(world.path / "notes"), "line": "42"}))
    async with world.serving():
        models = await ask_both(world, note, {"text": "Ubud"})
        await save(await world.start_team(agents_as_tools(world), models), "agents-as-tools")


async def test_agent_as_tool_timed_out(world: "World") -> None:
    wait = calls(("wait_for", {"file": str(world.path / "never"), "started": str(world.path / "started")}))
    async with world.serving():
        limits = contract.LimitSettings(timeout_seconds=2)
        models = await ask_both(world, wait, {"text": "Ubud"})
        await save(await world.start_team(agents_as_tools(world, limits=limits), models), "agent-as-tool-timed-out")


async def test_agent_as_tool_cancelled(world: "World") -> None:
    wait = calls(("wait_for", {"file": str(world.path / "never"), "started": str(world.path / "started")}))
    async with world.serving():
        run = await world.start_team(agents_as_tools(world), await ask_both(world, wait))
        await world.eventually((world.path / "started").exists)
        await run.handle.cancel()
        await save(run, "agent-as-tool-cancelled")


async def test_fallen_back(world: "World") -> None:
    retry = contract.RetrySettings(maximum_attempts=2, initial_seconds=0.05)
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", fallbacks=["b", "c"], retry=retry)],
            [
                world.model("gpt", await world.script({"status": 503}, loop=True)),
                world.model("b", await world.script({"text": "No.", "finishReason": "content_filter"})),
                world.model("c", await world.script({"text": "Here."})),
            ],
        )
        await save(run, "fallen-back")


async def test_corrected(world: "World") -> None:
    schema = {"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}
    async with world.serving():
        run = await world.start({"text": "Tomorrow."}, {"text": '{"day": 1}'}, agent={"output_schema": schema})
        await save(run, "corrected")


async def test_once_lost(world: "World") -> None:
    log, gate = world.path / "log", world.path / "gate"
    async with world.reporter():
        async with world.worker_process() as worker:
            run = await world.start(calls(("pay", {"log": str(log), "gate": str(gate)})), {"text": "?"}, tools=["pay"])
            await world.eventually(log.exists)
            worker.process.kill()
            await worker.process.wait()
        async with world.worker_process():
            await save(run, "once-lost")


async def test_token_budget(world: "World") -> None:
    again = {**calls(("weather", {"city": "Ubud"})), "usage": {"prompt_tokens": 50, "completion_tokens": 10}}
    async with world.serving():
        run = await world.start_team(
            [world.agent(tools=functions("weather"))],
            [world.model("gpt", await world.script(again, loop=True))],
            max_tokens=100,
        )
        await save(run, "token-budget")


# ── Approvals ──────────────────────────────────────────────────────────────────────────────────────────────────────


def noting(**policy: Any) -> Json:
    approval = contract.ApprovalPolicy(**policy)
    return {"tools": [contract.ToolBinding(name="note", function="note", approval=approval)]}


async def test_approved(world: "World") -> None:
    note = ("note", {"file": str(world.path / "notes"), "line": "paid"})
    async with world.serving():
        run = await world.start(calls(note, note), {"text": "done"}, agent=noting())
        first, second = await run.pending(2)
        await run.decide(second, "Reject", reason="Once is enough.")
        await run.pending(1)
        await run.decide(first, "Approve", override={"file": str(world.path / "notes"), "line": "less"})
        await save(run, "approved")


async def test_approval_expired(world: "World") -> None:
    note = ("note", {"file": str(world.path / "notes"), "line": "paid"})
    async with world.serving():
        agent = noting(timeout_seconds=1, on_timeout="Approve")
        await save(await world.start(calls(note), {"text": "done"}, agent=agent), "approval-expired")


async def test_answer_approved(world: "World") -> None:
    schema = {"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}
    agent = {"output_schema": schema, "output_approval": contract.ApprovalPolicy()}
    async with world.serving():
        run = await world.start({"text": '{"day": 7}'}, {"text": '{"day": 6}'}, agent=agent)
        (first,) = await run.pending()
        await run.decide(first, "Reject", reason="Not on a Sunday.")
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [first]))
        (second,) = await run.pending()
        await run.decide(second, "Approve", override={"day": 3})
        await save(run, "answer-approved")


async def test_report_replaced(world: "World") -> None:
    note = ("note", {"file": str(world.path / "notes"), "line": "paid"})
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start(calls(note), {"text": "done"}, agent=noting())
        await world.eventually(lambda: len(world.reporting) == 1)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: len(world.reporting) == 2)
        world.reporter_open.set()
        (request,) = await run.pending()
        await run.decide(request, "Approve")
        await save(run, "report-replaced")


async def test_judged_again(world: "World") -> None:
    said = contract.Message(role="assistant", parts=[contract.TextPart(text="done")], sender="support")
    async with world.reporter():
        async with world.worker_before_approvals(contract.ModelReply(message=said)):
            run = await world.start({"text": "done"}, agent=noting())
            await world.eventually(lambda: run.reports)
        async with world.worker():
            await save(run, "judged-again")


async def test_override_too_large(world: "World") -> None:
    note = ("note", {"file": str(world.path / "notes"), "line": "paid"})
    async with world.serving():
        run = await world.start(calls(note), {"text": "done"}, agent=noting())
        (first,) = await run.pending()
        await run.decide(first, "Approve", override={"line": "x" * contract.MESSAGE_MAX_BYTES})
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [first]))
        (second,) = await run.pending()
        await run.decide(second, "Approve")
        await save(run, "override-too-large")


async def test_agent_called_when_approved(world: "World") -> None:
    """With arguments that do not fit, then with some that do; and the called agent asks, too."""
    note = calls(("note", {"file": str(world.path / "notes"), "line": "42"}))
    clerk = contract.ToolBinding(name="clerk", agent="clerk", approval=contract.ApprovalPolicy())
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", tools=[clerk]), world.agent("clerk", model="b", **noting())],
            [
                world.model("gpt", await world.script(calls(("clerk", {"message": "All."})), {"text": "Done."})),
                world.model("b", await world.script(note, {"text": "One."})),
            ],
        )
        for override in ({"message": "Order 42.", "extra": 1}, {"message": "Order 42."}, None):
            request = await world.eventually(partial(newest, run))
            await run.decide(request, "Approve", override=override)
            await world.eventually(partial(has_ended, run, request.name))
        await save(run, "agent-called-when-approved")


def newest(run: "Run") -> contract.ApprovalRequest | None:
    """What a run asks now, and did not before."""
    pending = run.last_report.pending_approvals if run.reports else None
    ended = {end.name for report in run.reports for end in report.ended_approvals or ()}
    return next((request for request in pending or () if request.name not in ended), None)


async def test_answer_text_changed(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "Plan B."}, agent={"output_approval": contract.ApprovalPolicy()})
        for override in ({"plan": "C"}, {"text": "Plan C."}):
            request = await world.eventually(partial(newest, run))
            await run.decide(request, "Approve", override=override)
            await world.eventually(partial(has_ended, run, request.name))
        await save(run, "answer-text-changed")


def has_ended(run: "Run", name: str) -> bool:
    return any(end.name == name for end in run.last_report.ended_approvals or ())


async def test_cancelled_awaiting_approval(world: "World") -> None:
    note = ("note", {"file": str(world.path / "notes"), "line": "paid"})
    async with world.serving():
        run = await world.start(calls(note), agent=noting())
        await run.pending()
        await run.handle.cancel()
        await save(run, "cancelled-awaiting-approval")


async def test_session(world: "World") -> None:
    """Runs with tools and a hand-off, one that fails, one that is cancelled while it is queued, a summary."""
    async with world.serving():
        writer = await world.script({"text": "They talked."}, loop=True, summarises=True)
        talker = await world.script(
            {"text": "Hello"}, calls(("remember", NAME)), {"text": "Noted"}, {"text": "Well"}, loop=True
        )
        session = await world.start_session(
            agents=[world.agent(tools=functions("remember"))],
            models=[world.model("gpt", talker), world.model("writer", writer)],
            settings={"history_size": 4, "summary_model": "writer"},
            context={"plan": "gold"},
        )
        await session.ask("hello")
        await session.ask("remember me", max_turns=1)
        runs = [await session.send(f"say {number}", queued=number > 0 or None) for number in range(3)]
        await session.cancel(runs[2])
        for run in runs:
            await session.ended(run)
        await session.ask("once more")
        await save_session(session, "session")


async def test_session_continued(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 20_000)
    async with world.serving():
        session = await world.start_session({"text": "{{n}}"}, loop=True)
        for number in range(9):
            await session.ask(f"say {number}")
        await save_session(session, "session-continued")


async def test_session_stopped(world: "World") -> None:
    """A run under way is cancelled, the next one deleted, and the session closed with one queued."""
    async with world.serving():
        session = await world.start_session({"text": "late", "latencySeconds": 60}, loop=True)
        runs = [await session.send(f"say {number}", queued=number > 0 or None) for number in range(4)]
        model = session.snapshot.models[0].model
        for number, deleted in ((0, None), (1, True), (2, None)):
            await world.eventually(partial(was_asked, world, model, number + 1))
            if number == 2:
                await session.configure(closed="it is recorded")
            await session.cancel(runs[number], deleted=deleted)
        await save_session(session, "session-stopped")


async def test_session_refused(world: "World") -> None:
    """One run is under way and one queued when it is closed, and one comes afterwards."""
    async with world.serving():
        session = await world.start_session(
            {"text": "late", "latencySeconds": 60}, loop=True, settings={"idle_timeout_seconds": 0.5}
        )
        first, second = await session.send("one"), await session.send("two", queued=True)
        await world.eventually(partial(was_asked, world, session.snapshot.models[0].model, 1))
        await session.configure(closed="it is recorded")
        third = await session.send("three")
        for run in (second, third):
            await session.ended(run)
        await session.cancel(first)
        await save_session(session, "session-refused")


async def test_session_continued_later(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 20_000)
    monkeypatch.setattr("dalang_worker.workflows.session.TOLD_PATIENCE_SECONDS", 0.1)
    world.reporter_open.clear()
    async with world.serving():
        session = await world.start_session({"text": "{{n}}"}, loop=True)
        for number in range(9):
            await session.send(f"say {number}")
        await world.eventually(partial(was_asked, world, session.snapshot.models[0].model, 9))
        world.reporter_open.set()
        await session.ask("late")
        await session.ask("later")
        await save_session(session, "session-continued-later")


async def was_asked(world: "World", model: str, times: int) -> bool:
    return len(await world.requests(model)) >= times
