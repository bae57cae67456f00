"""Conversations on real servers: order and memory under kills, what one run's end leaves the others, and the session's own end."""

import signal
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Object, Run, Shop, System

pytestmark = pytest.mark.timeout(300)

ECHO = {"text": "{{n}}: {{last_user}}"}
LATE = {"text": "late", "latencySeconds": 60}


@dataclass(frozen=True)
class Session:
    """An AgentSession that was created."""

    shop: "Shop"
    name: str

    def say(self, name: str, said: str, **spec: Any) -> "Run":
        """Create the next run."""
        spec = {"sessionRef": {"name": self.name}, "input": said, **spec}
        self.shop.create("AgentRun", name, spec)
        return self.shop.adopt(name)

    @property
    def status(self) -> "Object":
        return cast("Object", self.shop.get("AgentSession", self.name)["status"])

    def asked(self, agent: str) -> list[list[str]]:
        """What the model of an agent was sent, without the instructions."""
        requests = self.shop.system.model.requests(self.shop.model_name(agent))
        return [
            [message["content"] for message in request["body"]["messages"] if message["role"] != "system"]
            for request in requests
        ]


def wait_until_idle(shop: "Shop", last: "Object", seconds: float) -> None:
    """Wait until nothing but a run that waits can have kept a session open, by the status of the run before."""
    over = datetime.fromisoformat(last["finishedAt"]).timestamp() + seconds + 1
    shop.system.wait_for("its idle time is over", lambda: time.time() > over)


def open_session(shop: "Shop", name: str, *responses: "Object", agent: str | None = None, **spec: Any) -> Session:
    """Create a session, with an agent and a model of its own where none is named."""
    if agent is None:
        shop.model(name, *(responses or (ECHO,)), loop=True)
        shop.agent(name)
    shop.create("AgentSession", name, {"agentRef": {"name": agent or name}, **spec})
    return Session(shop, name)


def test_a_conversation_remembers_and_tells(mall: "Shop") -> None:
    session = open_session(mall, "remembers", context={"plan": "gold"})
    first = session.say("remembers-1", "I am Ada", context={"colour": "red"})
    assert first.answered()["output"] == "1: I am Ada"
    second = session.say("remembers-2", "Who am I?")
    status = second.answered()
    assert (status["output"], status["agent"]) == ("2: Who am I?", "remembers")
    assert session.asked("remembers")[-1] == ["I am Ada", "1: I am Ada", "Who am I?"]
    uid = mall.get("AgentSession", "remembers")["metadata"]["uid"]
    assert status["workflow"]["id"] == f"{mall.system.installation}.{mall.namespace}.remembers.{uid}"

    mall.waits("AgentSession", "remembers", "Active")
    told = mall.system.wait_for("both are counted", lambda: session.status if session.status.get("runs") == 2 else None)
    assert told["context"] == {"plan": "gold", "colour": "red"}
    assert told["lastRun"]["name"] == "remembers-2"
    assert (told["queuedRuns"], told["agent"], told["observedGeneration"]) == (0, "remembers", 1)
    assert told["usage"]["totalTokens"] > 0
    assert [message["content"] for message in told["messages"]][-2:] == ["Who am I?", "2: Who am I?"]


def test_a_run_waits_for_its_session(mall: "Shop") -> None:
    run = Session(mall, "late-opened").say("late-opened-1", "hello")
    assert "There is no AgentSession late-opened in namespace mall" in run.waits("SessionNotFound")
    open_session(mall, "late-opened")
    assert run.answered()["output"] == "1: hello"


def test_a_session_waits_for_its_agent_and_tells_its_runs(mall: "Shop") -> None:
    session = open_session(mall, "early", agent="later")
    run = session.say("early-1", "hello")
    assert "There is no Agent later" in run.waits("AgentNotFound")
    mall.waits("AgentSession", "early", "AgentNotFound")
    mall.model("later", ECHO, loop=True)
    mall.agent("later")
    assert run.answered()["output"] == "1: hello"
    mall.waits("AgentSession", "early", "Active")


def test_an_edited_agent_is_used_from_the_next_run_on(mall: "Shop") -> None:
    session = open_session(mall, "re-edited")
    assert session.say("re-edited-1", "one").answered()["agents"][0]["generation"] == 1
    mall.patch("Agent", "re-edited", {"spec": {"instructions": "Be brief."}})
    assert session.say("re-edited-2", "two").answered()["agents"][0]["generation"] == 2


@pytest.mark.parametrize("how", ["cancel", "delete", "timeout"])
def test_the_run_under_way_and_the_second_of_three_queued_end_alone(mall: "Shop", how: str) -> None:
    name = f"alone-{how}"
    session = open_session(mall, name)
    session.say(f"{name}-0", "remember me").answered()
    mall.script(name, LATE, loop=True)
    limits = {"limits": {"timeout": "5s"}} if how == "timeout" else {}
    under_way = session.say(f"{name}-1", "never", **limits)
    mall.system.wait_for("it is asked", lambda: len(session.asked(name)) == 2)
    queued = [session.say(f"{name}-{number}", f"say {number}") for number in (2, 3, 4)]
    for run in queued:
        run.waits("Queued")
    if how == "cancel":
        queued[1].cancel()
        under_way.cancel()
    elif how == "delete":
        queued[1].delete()
        under_way.delete()
    mall.script(name, ECHO, loop=True)
    answered = [queued[0], queued[2]]
    if how == "timeout":
        answered = queued
        assert under_way.ended()["conditions"][0]["reason"] == "Timeout"
    assert [run.answered()["output"] for run in answered] == [
        f"{place + 2}: say {run.name[-1]}" for place, run in enumerate(answered)
    ]
    if how == "cancel":
        assert [run.ended()["phase"] for run in (under_way, queued[1])] == ["Cancelled", "Cancelled"]
    heard = session.asked(name)[-1]
    assert heard[:2] == ["remember me", "1: remember me"]
    assert "never" not in heard
    if how != "timeout":
        assert "say 3" not in heard


def test_a_closed_session_takes_no_run(mall: "Shop") -> None:
    session = open_session(mall, "closing", {**ECHO, "latencySeconds": 2})
    first = session.say("closing-1", "one")
    mall.system.wait_for("it is asked", lambda: session.asked("closing"))
    second = session.say("closing-2", "two")
    second.waits("Queued")
    mall.patch("AgentSession", "closing", {"spec": {"closed": True}})
    assert first.answered()["output"] == "1: one"
    assert second.ended()["conditions"][0]["reason"] == "SessionClosed"
    mall.waits("AgentSession", "closing", "Closed")
    assert session.status["closedAt"]
    third = session.say("closing-3", "three")
    assert third.ended()["phase"] == "Failed"
    assert third.succeeded["reason"] == "SessionClosed"


def test_an_idle_session_closes(mall: "Shop") -> None:
    session = open_session(mall, "idle", idleTimeout="3s")
    session.say("idle-1", "hello").answered()
    assert "idleTimeout" in mall.waits("AgentSession", "idle", "Closed")


def test_a_session_told_to_close_ends_what_waits_at_once_and_itself_after_the_run_under_way(mall: "Shop") -> None:
    session = open_session(mall, "told", LATE)
    first = session.say("told-1", "one")
    mall.system.wait_for("it is asked", lambda: session.asked("told"))
    second = session.say("told-2", "two")
    second.waits("Queued")
    assert session.status["queuedRuns"] == 1
    mall.delete("Agent", "told")
    third = session.say("told-3", "three")
    third.waits("AgentNotFound")
    mall.patch("AgentSession", "told", {"spec": {"closed": True}})
    assert [run.ended(20)["conditions"][0]["reason"] for run in (second, third)] == ["SessionClosed", "SessionClosed"]
    message = "Closed by spec.closed; the session closes when the run under way has ended"
    mall.system.wait_for("it says so", lambda: mall.condition("AgentSession", "told")["message"] == message)
    assert first.status["phase"] == "Running"
    first.cancel()
    assert mall.waits("AgentSession", "told", "Closed") == "Closed by spec.closed"


def test_a_run_that_waits_for_its_agent_keeps_a_session_open(mall: "Shop") -> None:
    session = open_session(mall, "agentless")
    first = session.say("agentless-1", "hello").answered()
    mall.delete("Agent", "agentless")
    second = session.say("agentless-2", "still there?")
    second.waits("AgentNotFound")
    # Only now: on a busy machine the second run may come later than that.
    mall.patch("AgentSession", "agentless", {"spec": {"idleTimeout": "3s"}})
    wait_until_idle(mall, first, 3)
    mall.agent("agentless")
    assert second.answered()["output"] == "2: still there?"
    assert "idleTimeout, 3s" in mall.waits("AgentSession", "agentless", "Closed")


def test_a_run_that_came_in_time_keeps_a_session_open_though_the_operator_was_away(annex: "Shop") -> None:
    system = annex.system
    session = open_session(annex, "away-in-time")
    first = session.say("away-in-time-1", "hello").answered()
    pid = system.signal("operator", signal.SIGSTOP)
    second = session.say("away-in-time-2", "still there?")
    annex.patch("AgentSession", "away-in-time", {"spec": {"idleTimeout": "3s"}})
    wait_until_idle(annex, first, 3)
    system.kill("operator")
    system.wait_for("the operator is back", lambda: system.is_back("operator", pid))
    assert second.answered()["output"] == "2: still there?"
    annex.waits("AgentSession", "away-in-time", "Closed")


def test_a_session_says_that_a_summary_failed_until_one_is_written(mall: "Shop") -> None:
    mall.model("scribe", alwaysError={"status": 401, "message": "no such key"})
    session = open_session(mall, "forgetful", historySize=4, summary={"modelRef": {"name": "scribe"}})
    for turn in range(4):
        session.say(f"forgetful-{turn}", f"turn {turn}").answered()

    def says(words: str) -> bool:
        return words in mall.condition("AgentSession", "forgetful")["message"]

    mall.system.wait_for("it says so", lambda: says("no such key"))
    assert mall.condition("AgentSession", "forgetful", "Summarised")["reason"] == "SummaryFailed"
    assert session.asked("forgetful")[-1][0] == "turn 0", "nothing was given up"
    mall.script("scribe")
    session.say("forgetful-4", "turn 4").answered()
    mall.system.wait_for("it says no more", lambda: not says("no such key"))
    assert "turn 0" in session.status["summary"]
    assert mall.condition("AgentSession", "forgetful", "Summarised")["status"] == ""


def test_a_lost_session_is_never_begun_anew(mall: "Shop") -> None:
    session = open_session(mall, "lost")
    first = session.say("lost-1", "hello").answered()
    mall.system.temporal.terminate(first["workflow"]["id"])
    second = session.say("lost-2", "are you there?")
    assert second.ended()["phase"] == "Failed"
    assert second.succeeded["reason"] == "SessionLost"
    mall.waits("AgentSession", "lost", "SessionLost")
    assert mall.condition("AgentSession", "lost", "Stalled")["status"] == "True"
    assert len(session.asked("lost")) == 1


def test_a_deleted_session_ends_after_the_run_that_is_under_way(mall: "Shop") -> None:
    session = open_session(mall, "leaving", {**ECHO, "latencySeconds": 3})
    first = session.say("leaving-1", "one")
    mall.system.wait_for("it is asked", lambda: session.asked("leaving"))
    second = session.say("leaving-2", "two")
    second.waits("Queued")
    workflow_id = first.status["workflow"]["id"]
    mall.delete("AgentSession", "leaving")
    assert first.answered()["output"] == "1: one"
    assert second.ended()["conditions"][0]["reason"] == "SessionClosed"
    mall.system.wait_for("its workflow ends", lambda: mall.system.temporal.state(workflow_id) != "RUNNING")


def test_what_was_deleted_while_the_operator_was_away_is_repaired(annex: "Shop") -> None:
    """The neighbour sweeps every second. An idle session, and a run of another that is under way and queued ones."""
    system = annex.system
    idle = open_session(annex, "away-idle")
    workflow_id = idle.say("away-idle-1", "hello").answered()["workflow"]["id"]
    busy = open_session(annex, "away-busy", LATE)
    under_way = busy.say("away-busy-1", "never")
    system.wait_for("it is asked", lambda: busy.asked("away-busy"))
    queued = busy.say("away-busy-2", "nor this")
    last = busy.say("away-busy-3", "but this")
    last.waits("Queued")
    annex.script("away-busy", ECHO, loop=True)
    pid = system.kill("operator")
    under_way.delete()
    queued.delete()
    annex.delete("AgentSession", "away-idle")
    system.wait_for("the operator is back", lambda: system.is_back("operator", pid))
    assert last.answered(120)["output"] == "1: but this"
    system.wait_for("the idle one's workflow is gone", lambda: system.temporal.state(workflow_id) != "RUNNING", 120)


def test_a_session_deleted_while_the_operator_was_away_closes_after_the_run_under_way(annex: "Shop") -> None:
    """It has queued runs as well: they must not be carried out for nobody, one after another."""
    system = annex.system
    session = open_session(annex, "away-gone", {**ECHO, "latencySeconds": 25})
    under_way = session.say("away-gone-1", "one")
    system.wait_for("it is asked", lambda: session.asked("away-gone"))
    queued = [session.say(f"away-gone-{number}", "never") for number in (2, 3)]
    for run in queued:
        run.waits("Queued")
    workflow_id = under_way.status["workflow"]["id"]
    pid = system.kill("operator")
    annex.delete("AgentSession", "away-gone")
    system.wait_for("the operator is back", lambda: system.is_back("operator", pid))
    assert under_way.answered()["output"] == "1: one"
    assert [run.ended()["conditions"][0]["reason"] for run in queued] == ["SessionClosed", "SessionClosed"]
    system.wait_for("its workflow ends", lambda: system.temporal.state(workflow_id) != "RUNNING")
    assert len(session.asked("away-gone")) == 1


def test_runs_that_wait_keep_their_order_when_the_operator_is_restarted(annex: "Shop") -> None:
    """Created within one second, if this machine is quick enough; every write of them changes their resourceVersion."""
    system = annex.system
    session = open_session(annex, "order", agent="order")
    runs = [session.say(f"order-{letter}", letter) for letter in "cba"]
    for run in runs:
        run.waits("AgentNotFound")
    annex.patch("AgentRun", runs[0].name, {"metadata": {"labels": {"seen": "yes"}}})
    pid = system.kill("operator")
    system.wait_for("the operator is back", lambda: system.is_back("operator", pid))
    annex.model("order", ECHO, loop=True)
    annex.agent("order")
    assert [run.answered()["output"] for run in runs] == ["1: c", "2: b", "3: a"]


def test_a_run_that_the_controller_ended_is_left_out_even_if_its_session_was_not_told(annex: "Shop") -> None:
    """As if the operator had been killed between the status and the signal."""
    system = annex.system
    session = open_session(annex, "untold", LATE)
    first = session.say("untold-1", "never")
    system.wait_for("it is asked", lambda: session.asked("untold"))
    pid = system.kill("operator")
    ended = {"phase": "Failed", "finishedAt": first.object["metadata"]["creationTimestamp"]}
    annex.patch("AgentRun", f"{first.name}/status", {"status": ended})
    annex.script("untold", ECHO, loop=True)
    system.wait_for("the operator is back", lambda: system.is_back("operator", pid))
    assert session.say("untold-2", "hello").answered(30)["output"] == "1: hello"
    assert session.asked("untold")[-1] == ["hello"]


def test_a_session_stays_in_the_pool_it_began_in_and_says_so_when_that_is_gone(mall: "Shop") -> None:
    mall.pool("old")
    mall.model("moved", ECHO, loop=True)
    mall.agent("moved", pool="old")
    session = open_session(mall, "moved", agent="moved")
    assert session.say("moved-1", "one").answered()["output"] == "1: one"
    mall.patch("Agent", "moved", {"spec": {"poolRef": {"name": "default"}}})
    mall.delete("AgentPool", "old")
    second = session.say("moved-2", "two")
    assert "began in AgentPool old" in mall.waits("AgentSession", "moved", "PoolNotFound")
    second.waits("PoolNotFound")
    mall.create("AgentPool", "old", {})
    assert second.answered()["output"] == "2: two"
    mall.waits("AgentSession", "moved", "Active")


def test_two_hundred_sessions_of_five_runs_each(system: "System", shop: "Shop") -> None:
    """All sent at once; worker and operator are killed in the middle. In order, none lost, none doubled."""
    sessions, runs = 200, 5
    shop.pool()
    shop.model("many", ECHO, loop=True, latencySeconds=0.05)
    shop.agent("many")
    begun = time.monotonic()
    created = []
    for number in range(sessions):
        session = open_session(shop, f"many-{number}", agent="many")
        created.append([session.say(f"many-{number}-{turn}", f"{number} {turn}") for turn in range(runs)])
    last = [group[-1] for group in created]
    system.wait_for("some have ended", lambda: sum(bool(run.status.get("finishedAt")) for run in last) > 20, 120)
    for part in (shop.worker(), "operator"):
        pid = system.kill(part)
        system.wait_for(f"{part} is back", partial(system.is_back, part, pid), 60)
    for number, group in enumerate(created):
        outputs = [run.answered(180)["output"] for run in group]
        assert outputs == [f"{turn + 1}: {number} {turn}" for turn in range(runs)]
    assert time.monotonic() - begun < 280
    for number in (0, 57, 199):
        status = Session(shop, f"many-{number}").status
        assert (status["runs"], status["queuedRuns"]) == (runs, 0)
