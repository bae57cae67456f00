"""Whose AgentRun a call is."""

from dataclasses import replace

import pytest
from dalang_api.contract import ModelCall, RunIdentity, SummaryCall, ToolCall, idempotency_key
from dalang_worker.runs import CallingRun, calling_run
from temporalio.activity import Info
from temporalio.testing import ActivityEnvironment

RUN = RunIdentity(name="chat.1-x7", uid="u-run")
MODEL_CALL = ModelCall(agent="a", snapshot="s", thread="s1", turn=1, count=0, digest="")
TOOL_CALL = ToolCall(call_id="c", tool="t", function="t", arguments="{}", thread="s1", turn=1, index=0)
SUMMARY_CALL = SummaryCall(snapshot="s", model="m", thread="s1", count=0, digest="", run=RUN)


@pytest.fixture
def info() -> Info:
    return replace(
        ActivityEnvironment().info, workflow_id="dalang-0.shop.ada.chats.u-workflow", workflow_run_id="execution"
    )


@pytest.mark.parametrize("call", [MODEL_CALL, TOOL_CALL])
def test_without_a_session_it_is_the_one_that_the_workflows_id_names(call: ModelCall | ToolCall, info: Info) -> None:
    run = calling_run(call, info)
    assert run == CallingRun((info.workflow_id or "", "execution"), "shop", "ada.chats", "u-workflow")
    assert str(run) == info.workflow_id


@pytest.mark.parametrize(
    "call",
    [MODEL_CALL.model_copy(update={"run": RUN}), TOOL_CALL.model_copy(update={"run": RUN}), SUMMARY_CALL],
)
def test_in_a_session_the_call_names_it(call: ModelCall | ToolCall | SummaryCall, info: Info) -> None:
    run = calling_run(call, info)
    assert run == CallingRun((info.workflow_id or "", "execution"), "shop", RUN.name, RUN.uid, session="ada.chats")
    assert str(run) == "dalang-0.shop.ada.chats.u-workflow, AgentRun chat.1-x7"


def test_the_same_call_in_two_runs_of_a_session_has_two_keys(info: Info) -> None:
    calls = [
        TOOL_CALL.model_copy(update={"run": RunIdentity(name=name, uid=f"u-{name}")}) for name in ("first", "second")
    ]
    assert len({idempotency_key(calling_run(call, info).uid, call) for call in calls}) == 2
