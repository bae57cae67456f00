"""Argo CD's health checks, in Lua, over statuses as the schema and the operator's own functions make them."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from dalang_api.contract import AgentVersion, ApprovalEnd, ApprovalRequest, RunReport, SessionReport
from dalang_api.crdgen import KINDS
from dalang_api.v1alpha1.agentapproval import AgentApprovalStatus
from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason
from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agent import plan as agent_plan
from dalang_operator.kinds.agentapproval import plan as approval_plan
from dalang_operator.kinds.agentmodel import plan as model_plan
from dalang_operator.kinds.agentpool import plan as pool_plan
from dalang_operator.kinds.agentpool.desired import WorkerSettings, build_of
from dalang_operator.kinds.agentrun.status import (
    ended_status,
    pending_status,
    run_status,
    running_status,
    stalled_status,
    waiting_status,
)
from dalang_operator.kinds.agentschedule.desired import FAILURE_NOTE, ScheduleView
from dalang_operator.kinds.agentschedule.status import failed_status, refused_status, settled_status
from dalang_operator.kinds.agentsession.status import (
    active_status,
    lost_status,
    observed_status,
    session_status,
    unready_status,
)
from dalang_operator.kube.resources import Json, ObjectKey
from lupa.lua51 import LuaError, LuaRuntime, lua_type

from helm.argocd.make_patch import PATCH, make_patch
from tests.build import (
    INSTALLATION,
    LONG_AGO,
    NOW,
    agent,
    approval,
    awaiting_run,
    condition,
    known,
    model,
    open_session,
    pool,
    run,
    schedule,
    session,
    started_run,
)

CHECKS = PATCH.parent
CRDS = Path("crds")
Health = tuple[str, str]
"""What Argo CD shows: status and message."""

_AS_ARGO_CD = """
getmetatable('').__index = nil
for _, name in ipairs({"coroutine", "debug", "io", "math", "module", "os", "package", "python", "require", "string"}) do
  _G[name] = nil
end
"""
"""Without `useOpenLibs` a check gets the libraries base, table, package and a part of os; ours need the first two."""

_RUN_ENDED = "The workflow was terminated"
_APPROVE = """--type merge -p '{"spec":{"decision":"Approve"}}'"""


def health(kind: str, obj: Json) -> Health:
    found = run_check((CHECKS / kind / "health.lua").read_text(encoding="utf-8"), obj)
    assert lua_type(found) == "table"
    assert set(found) == {"status", "message"}
    return found["status"], found["message"]


def run_check(check: str, obj: Json) -> Any:
    """Run a check as Argo CD does: Lua 5.1, the object in the global `obj`, no string library."""
    lua = LuaRuntime(unpack_returned_tuples=False)
    lua.execute(_AS_ARGO_CD)
    lua.globals()["obj"] = lua.table_from(_without_null(obj), recursive=True)
    return lua.execute(check)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(inner) for name, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def with_status(obj: Json, status: Json) -> Json:
    return {**obj, "status": status}


# ── What is installed ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_has_a_check() -> None:
    assert {check.parent.name for check in CHECKS.glob("*/health.lua")} == {kind.KIND for kind in KINDS}


def test_the_patch_holds_the_checks() -> None:
    assert PATCH.read_text(encoding="utf-8") == make_patch(), "run: python helm/argocd/make_patch.py"
    patch = yaml.safe_load(PATCH.read_text(encoding="utf-8"))
    assert patch == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "argocd-cm"},
        "data": {
            f"resource.customizations.health.dalang.dev_{kind.KIND}": (CHECKS / kind.KIND / "health.lua").read_text(
                encoding="utf-8"
            )
            for kind in KINDS
        },
    }


@pytest.mark.parametrize("check", ["return string.upper('a')", "return ('a'):upper()", "return os.time()"])
def test_these_tests_give_a_check_no_more_than_argo_cd_does(check: str) -> None:
    with pytest.raises(LuaError, match="attempt to index"):
        run_check(check, {})


# ── Every kind, before the controller has looked ───────────────────────────────────────────────────────────────────


def new_objects() -> dict[str, Json]:
    return {
        "Agent": agent(),
        "AgentApproval": approval(decision="Approve"),
        "AgentModel": model(),
        "AgentPool": pool(),
        "AgentRun": run(),
        "AgentSession": session(),
        "AgentSchedule": schedule(),
    }


@pytest.mark.parametrize("kind", [kind.KIND for kind in KINDS])
def test_without_a_status_it_is_progressing(kind: str) -> None:
    obj = new_objects()[kind]
    expected = ("Progressing", "Waiting for the controller")
    assert health(kind, {name: value for name, value in obj.items() if name != "status"}) == expected
    assert health(kind, with_status(obj, {})) == expected
    assert health(kind, with_status(obj, {"conditions": []})) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.KIND))
def test_as_the_schema_makes_it_it_is_progressing(kind: Any) -> None:
    crd = yaml.safe_load((CRDS / f"dalang.dev_{kind.PLURAL}.yaml").read_text(encoding="utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    born = with_status(new_objects()[kind.KIND], schema["properties"]["status"]["default"])
    status, message = health(kind.KIND, born)
    assert status == "Progressing"
    assert message.endswith("for the controller")


# ── Agent, AgentModel, AgentPool ───────────────────────────────────────────────────────────────────────────────────


def planned_agent(*there: Json, **spec: Any) -> Json:
    obj = agent(**spec)
    return with_status(obj, agent_plan.plan(agent_plan.Observed(obj, known(*there), NOW)).status)


def planned_model() -> Json:
    return with_status(model(), model_plan.plan(model(), NOW))


WORKER = WorkerSettings(INSTALLATION, "dalang:1", "temporal:7233", "default", False, "info", "text")


def planned_pool(owner: Json | None = None, **facts: Any) -> Json:
    obj = owner or pool()
    settings = pool_plan.Settings(WORKER, timedelta(minutes=10))
    observed = pool_plan.Observed(ObjectKey("shop", "default"), settings, NOW, obj, build_since=NOW)
    actions = pool_plan.plan(replace(observed, **facts)).actions
    return with_status(obj, next(action.status for action in actions if isinstance(action, WriteStatus)))


def refused_pool() -> Json:
    return with_status(pool(), pool_plan.failed_status(pool(), "quota exceeded", NOW))


TOOLS = [{"name": "weather", "function": {}}]
LEARNT = {"build": "b1", "catalogue": {"build": "b1", "tools": [], "instructions": []}}
BROKEN_MODULE = {
    "catalogue": {"build": build_of(pool(), None, WORKER), "tools": []},
    "conditions": [condition(ConditionType.TOOLS_LOADED, "False", Reason.IMPORT_FAILED, "shop.py: SyntaxError")],
}


@pytest.mark.parametrize(
    ("obj", "status", "reason"),
    [
        pytest.param(planned_agent(model(), pool()), "Healthy", Reason.RESOLVED, id="everything it names is there"),
        pytest.param(planned_agent(pool()), "Degraded", Reason.MODEL_NOT_FOUND, id="no model"),
        pytest.param(
            planned_agent(model(), pool(status=LEARNT), tools=TOOLS), "Degraded", Reason.TOOL_NOT_FOUND, id="no tool"
        ),
        pytest.param(
            planned_agent(model(), pool(), instructions="{{"), "Degraded", Reason.INVALID_SPEC, id="no template"
        ),
        pytest.param(
            planned_agent(model(), pool(status={"build": "b2"}), tools=TOOLS),
            "Progressing",
            Reason.CATALOGUE_UNKNOWN,
            id="no worker has told its tools yet",
        ),
    ],
)
def test_agent(obj: Json, status: str, reason: Reason) -> None:
    assert_ready_kind("Agent", obj, status, reason)


def test_agent_model() -> None:
    assert_ready_kind("AgentModel", planned_model(), "Healthy", Reason.ACCEPTED)


@pytest.mark.parametrize(
    ("obj", "status", "reason"),
    [
        pytest.param(planned_pool(), "Healthy", Reason.SCALED_TO_ZERO, id="nothing to do"),
        pytest.param(planned_pool(has_live_run=True), "Progressing", Reason.SCALING, id="a worker starts"),
        pytest.param(
            planned_pool(sources=(("tools", None),)), "Degraded", Reason.CONFIG_MAP_NOT_FOUND, id="no ConfigMap"
        ),
        pytest.param(
            planned_pool(pool(status=BROKEN_MODULE)), "Degraded", Reason.IMPORT_FAILED, id="a module fails to import"
        ),
        pytest.param(planned_pool(is_foreign=True), "Degraded", Reason.NAME_CONFLICT, id="the name is taken"),
        pytest.param(refused_pool(), "Degraded", Reason.DEPLOYMENT_FAILED, id="the Deployment was refused"),
    ],
)
def test_agent_pool(obj: Json, status: str, reason: Reason) -> None:
    assert_ready_kind("AgentPool", obj, status, reason)


@pytest.mark.parametrize("kind", ["Agent", "AgentModel", "AgentPool", "AgentSession", "AgentSchedule"])
@pytest.mark.parametrize(
    ("ready", "reason", "expected"),
    [
        pytest.param("True", "Fine", "Healthy", id="ready"),
        pytest.param("Unknown", "NotKnown", "Progressing", id="not known yet"),
        pytest.param("False", Reason.PENDING, "Progressing", id="passes by itself"),
        pytest.param("False", "Broken", "Degraded", id="any other reason: somebody has to mend it"),
    ],
)
def test_ready_whatever_the_reason(kind: str, ready: str, reason: str, expected: str) -> None:
    status = {"observedGeneration": 1, "conditions": [condition("Ready", ready, reason, "so it is")]}
    assert health(kind, with_status(new_objects()[kind], status)) == (expected, f"{reason}: so it is")


def assert_ready_kind(kind: str, obj: Json, status: str, reason: Reason) -> None:
    ready = obj["status"]["conditions"][0]
    assert ready["reason"] == reason, "the operator says so"
    assert health(kind, obj) == (status, f"{reason}: {ready['message']}")
    edited = {**obj, "metadata": {**obj["metadata"], "generation": 2}}
    assert health(kind, edited) == ("Progressing", "Waiting for the controller"), "what it said is of an older one"


# ── AgentSession, AgentSchedule ────────────────────────────────────────────────────────────────────────────────────

STARTED_SESSION = with_status(session(), observed_status(session(), active_status(session(), None, NOW)))
END = "spec.closed is set"


def ended_session() -> Json:
    report = SessionReport(
        seq=9, run_id="r", task_queue="q", agent="helper", started_at=LONG_AGO, closed_at=LONG_AGO, closed_message=END
    )
    return with_status(open_session(), session_status(report, open_session(), "wf", NOW))


def unready_session(reason: Reason) -> Json:
    return with_status(session(), unready_status(session(), reason, "so it is", NOW))


@pytest.mark.parametrize(
    ("obj", "status", "message"),
    [
        pytest.param(
            STARTED_SESSION, "Healthy", "Active: The conversation goes on with the next run", id="it takes runs"
        ),
        pytest.param(ended_session(), "Healthy", f"Closed: {END}", id="it has ended as it should"),
        pytest.param(
            with_status(session(), lost_status(open_session(), "It is gone.", NOW)),
            "Degraded",
            "SessionLost: It is gone.",
            id="its workflow is gone",
        ),
        pytest.param(
            unready_session(Reason.AGENT_NOT_FOUND), "Degraded", "AgentNotFound: so it is", id="no agent, and not begun"
        ),
        pytest.param(
            unready_session(Reason.START_FAILED), "Progressing", "StartFailed: so it is", id="Temporal is away"
        ),
    ],
)
def test_agent_session(obj: Json, status: str, message: str) -> None:
    assert health("AgentSession", obj) == (status, message)


def test_a_session_whose_workflow_fails_is_degraded_though_it_is_ready() -> None:
    failing = with_status(open_session(), active_status(open_session(), "KeyError", NOW))
    status, message = health("AgentSession", failing)
    assert status == "Degraded"
    assert message.startswith(f"{Reason.WORKFLOW_TASK_FAILING}: ")
    assert "KeyError" in message


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(STARTED_SESSION, "Progressing", id="active: the workflow has yet to be told"),
        pytest.param(unready_session(Reason.AGENT_NOT_FOUND), "Progressing", id="no agent: is it the same one?"),
        pytest.param(ended_session(), "Healthy", id="closed: nobody is told any more"),
        pytest.param(
            with_status(session(), lost_status(open_session(), "It is gone.", NOW)),
            "Degraded",
            id="lost: nobody is there to be told",
        ),
    ],
)
def test_a_session_that_was_edited(before: Json, expected: str) -> None:
    assert health("AgentSession", {**before, "metadata": {**before["metadata"], "generation": 2}})[0] == expected


def settled_schedule(*, paused_since: str | None = None, quota: str | None = None, **spec: Any) -> Json:
    """A schedule that Temporal has."""
    obj = schedule(**spec)
    is_paused = paused_since is not None or bool(spec.get("suspend"))
    view = ScheduleView("sha256:0", b"", is_paused, paused_since or "", (NOW + timedelta(hours=1),))
    status = settled_status(
        obj,
        view,
        schedule_id="s",
        active=(),
        finished=None,
        orders={},
        quota_problem=quota,
        problem=None,
        now=NOW,
    )
    return with_status(obj, status)


def refused_schedule(reason: Reason) -> Json:
    return with_status(schedule(), refused_status(schedule(), reason, "no such thing", (), None, NOW))


@pytest.mark.parametrize(
    ("obj", "status", "reason"),
    [
        pytest.param(settled_schedule(), "Healthy", Reason.SCHEDULED, id="scheduled"),
        pytest.param(settled_schedule(suspend=True), "Suspended", Reason.SUSPENDED, id="suspended"),
        pytest.param(
            settled_schedule(pauseOnFailure=True, paused_since=f"{FAILURE_NOTE} nightly-1 failed"),
            "Degraded",
            Reason.PAUSED_ON_FAILURE,
            id="a run failed",
        ),
        pytest.param(
            refused_schedule(Reason.INVALID_SCHEDULE), "Degraded", Reason.INVALID_SCHEDULE, id="no such time zone"
        ),
        pytest.param(refused_schedule(Reason.INVALID_TEMPLATE), "Degraded", Reason.INVALID_TEMPLATE, id="no such run"),
        pytest.param(
            with_status(schedule(), failed_status(schedule(), "It is away.", NOW)),
            "Progressing",
            Reason.SCHEDULE_FAILED,
            id="Temporal is away",
        ),
        pytest.param(settled_schedule(quota="full"), "Progressing", Reason.QUOTA_EXCEEDED, id="the quota is full"),
    ],
)
def test_agent_schedule(obj: Json, status: str, reason: Reason) -> None:
    assert_ready_kind("AgentSchedule", obj, status, reason)


# ── AgentRun ───────────────────────────────────────────────────────────────────────────────────────────────────────

HELPER = AgentVersion(name="helper", uid="uid-helper", generation=3, pool="default")


def asked(name: str, question: str) -> ApprovalRequest:
    return ApprovalRequest(
        name=name,
        subject="ToolCall",
        agent="helper",
        tool="pay",
        question=question,
        arguments='{"amount":120}',
        digest="sha256:0",
        requested_at=LONG_AGO,
    )


def reported(phase: Phase, reason: Reason, message: str, *pending: ApprovalRequest) -> Json:
    report = RunReport.model_validate(
        {
            "seq": 1,
            "run_id": "run-1",
            "task_queue": "inst.shop.default",
            "phase": phase,
            "reason": reason,
            "message": message,
            "agent": "helper",
            "agents": [HELPER],
            "started_at": LONG_AGO,
            "turns": 2,
            "input_tokens": 10,
            "output_tokens": 5,
            "pending_approvals": list(pending),
        }
    )
    return run_status(report, started_run(), "wf", NOW)


STARTED = running_status(
    run(), workflow_id="wf", run_id="run-1", task_queue="inst.shop.default", agents=[HELPER], now=NOW
)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(
            pending_status(run(), Reason.AGENT_NOT_FOUND, "no Agent helper", NOW),
            ("Progressing", "AgentNotFound: no Agent helper"),
            id="pending: starts when the agent appears",
        ),
        pytest.param(
            pending_status(run(), Reason.QUEUED, "Two runs come first", NOW),
            ("Progressing", "Queued: Two runs come first"),
            id="queued in its session",
        ),
        pytest.param(STARTED, ("Progressing", "Running: The workflow was started"), id="started"),
        pytest.param(
            waiting_status(started_run(), Reason.WORKER_MISSING, "no worker", NOW),
            ("Progressing", "WorkerMissing: no worker"),
            id="no worker yet",
        ),
        pytest.param(
            reported(Phase.RUNNING, Reason.MODEL_RETRYING, "429"),
            ("Progressing", "ModelRetrying: 429"),
            id="tried again",
        ),
        pytest.param(
            reported(Phase.AWAITING_APPROVAL, Reason.AWAITING_APPROVAL, "Charge?", asked("r1-a", "Charge?")),
            (
                "Suspended",
                f"Charge?\nkubectl describe agentapproval r1-a -n shop\n"
                f"kubectl patch agentapproval r1-a -n shop {_APPROVE}",
            ),
            id="awaiting approval: the question, and how to answer it",
        ),
        pytest.param(
            reported(
                Phase.AWAITING_APPROVAL,
                Reason.AWAITING_APPROVAL,
                "Charge?; Refund?",
                asked("r1-a", "Charge?"),
                asked("r1-b", "Refund?"),
            ),
            (
                "Suspended",
                f"Charge?\nkubectl describe agentapproval r1-a -n shop\n"
                f"kubectl patch agentapproval r1-a -n shop {_APPROVE}\n"
                f"Refund?\nkubectl describe agentapproval r1-b -n shop\n"
                f"kubectl patch agentapproval r1-b -n shop {_APPROVE}",
            ),
            id="awaiting two",
        ),
        pytest.param(
            reported(Phase.RUNNING, Reason.RUNNING, "Turn 2", asked("r1-a", "Charge?")),
            ("Progressing", "Running: Turn 2"),
            id="something waits, and something else runs",
        ),
        pytest.param(
            reported(Phase.SUCCEEDED, Reason.ANSWERED, "helper answered"),
            ("Healthy", "Answered: helper answered"),
            id="succeeded",
        ),
        pytest.param(
            reported(Phase.FAILED, Reason.MODEL_FAILED, "401 bad key"),
            ("Degraded", "ModelFailed: 401 bad key"),
            id="failed",
        ),
        pytest.param(
            reported(Phase.CANCELLED, Reason.CANCELLED, "spec.cancel was set"),
            ("Degraded", "Cancelled: spec.cancel was set"),
            id="cancelled",
        ),
        pytest.param(
            ended_status(awaiting_run("r1", "r1-a"), Phase.FAILED, Reason.TERMINATED, _RUN_ENDED, NOW),
            ("Degraded", f"Terminated: {_RUN_ENDED}"),
            id="ended without a report",
        ),
    ],
)
def test_agent_run(status: Json, expected: Health) -> None:
    assert health("AgentRun", with_status(run(), status)) == expected


def test_a_stalled_run_is_degraded_though_it_has_not_ended() -> None:
    status, message = health("AgentRun", with_status(run(), stalled_status(started_run(), "KeyError", NOW)))
    assert status == "Degraded"
    assert message.startswith(f"{Reason.WORKFLOW_TASK_FAILING}: ")
    assert "KeyError" in message


def test_a_finished_run_stays_so_when_its_ttl_is_changed() -> None:
    done = reported(Phase.SUCCEEDED, Reason.ANSWERED, "helper answered")
    assert health("AgentRun", with_status(run(metadata={"generation": 2}), done))[0] == "Healthy"


# ── AgentApproval ──────────────────────────────────────────────────────────────────────────────────────────────────

PROVEN = approval_plan.Proof(None, NOW - timedelta(days=1))
UNPROVEN = approval_plan.Proof("the policy is missing", None)
APPROVED = approval(decision="Approve", decidedBy="ada")


def planned_approval(obj: Json, **facts: Any) -> Json:
    observed = approval_plan.Observed(
        key=ObjectKey("shop", "r1-a"),
        settings=approval_plan.Settings(INSTALLATION, needs_proof=True),
        now=NOW,
        approval=obj,
        run=awaiting_run("r1", "r1-a"),
        proof=PROVEN,
    )
    actions = approval_plan.plan(replace(observed, **facts)).actions
    statuses = [action.status for action in actions if isinstance(action, WriteStatus)]
    return with_status(obj, statuses[0]) if statuses else obj


def settled(state: Any) -> Json:
    end = ApprovalEnd(name="r1-a", state=state, decision="Approve")
    return with_status(APPROVED, approval_plan.settled_status(APPROVED, end, NOW))


@pytest.mark.parametrize(
    ("obj", "state", "status"),
    [
        pytest.param(planned_approval(approval()), "Pending", "Suspended", id="asked"),
        pytest.param(APPROVED, "Pending", "Progressing", id="just decided"),
        pytest.param(
            with_status(
                APPROVED,
                approval_plan.undelivered_status(
                    APPROVED, approval_plan.decision_of(APPROVED), "Temporal is away", NOW
                ),
            ),
            "Pending",
            "Progressing",
            id="decided, and Temporal is away",
        ),
        pytest.param(
            planned_approval(APPROVED, proof=UNPROVEN), "Pending", "Degraded", id="decided, and nothing proves by whom"
        ),
        pytest.param(planned_approval(APPROVED), "Delivered", "Progressing", id="delivered"),
        pytest.param(settled("Applied"), "Applied", "Healthy", id="applied"),
        pytest.param(settled("Expired"), "Expired", "Healthy", id="expired"),
        pytest.param(settled("Superseded"), "Superseded", "Healthy", id="superseded"),
        pytest.param(
            planned_approval(approval(), has_no_workflow=True), "Expired", "Healthy", id="the run has ended first"
        ),
    ],
)
def test_agent_approval(obj: Json, state: str, status: str) -> None:
    ready = obj["status"]["conditions"][-1]
    assert obj["status"]["state"] == state, "the operator says so"
    found, message = health("AgentApproval", obj)
    assert found == status
    if status == "Suspended":
        assert message == (
            f"Charge?\nkubectl describe agentapproval r1-a -n shop\nkubectl patch agentapproval r1-a -n shop {_APPROVE}"
        )
    else:
        assert message == f"{ready['reason']}: {ready['message']}"


def test_every_state_of_an_approval_has_a_health() -> None:
    states = get_args(AgentApprovalStatus.model_fields["state"].annotation)
    assert set(states) == {"Pending", "Delivered", *approval_plan.SETTLED}
