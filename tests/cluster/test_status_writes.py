"""The operator's status writes on a real API server: nulls are kept, and every write is bound to what was read."""

from typing import TYPE_CHECKING, Any

import pytest
from dalang_api.v1alpha1 import AgentRun
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import Conflict
from dalang_operator.kube.resources import AGENT_RUNS
from dalang_operator.kube.status import write_status

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane, Objects

RUN = {"agentRef": {"name": "support"}, "input": "Where is order 42?"}
ANSWERS = [
    pytest.param({"note": "none"}, id="by merge patch"),
    pytest.param({"note": None, "lines": [{"price": None}, None]}, id="with nulls, by JSON patch"),
]


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_is_stored_as_it_is(answer: Any, control_plane: "ControlPlane", objects: "Objects") -> None:
    run = objects.create(AgentRun, RUN)
    kube = await KubeClient.open(control_plane.kubeconfig)
    try:
        status = {**run["status"], "phase": "Succeeded", "structuredOutput": answer}
        written = await write_status(kube, AGENT_RUNS, run, status, "reporter")
        assert written is not None
        assert written["status"] == status
        assert objects.get(AgentRun)["status"] == status
        assert await write_status(kube, AGENT_RUNS, written, status, "reporter") is None
    finally:
        await kube.close()


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_write_for_another_state_is_refused(
    answer: Any, control_plane: "ControlPlane", objects: "Objects"
) -> None:
    """By its resourceVersion, which no two states share; the server ignores the uid of a status write."""
    run = objects.create(AgentRun, RUN)
    stale = {**run, "metadata": {**run["metadata"], "resourceVersion": "1"}}
    kube = await KubeClient.open(control_plane.kubeconfig)
    try:
        with pytest.raises(Conflict):
            await write_status(kube, AGENT_RUNS, stale, {**run["status"], "structuredOutput": answer}, "reporter")
    finally:
        await kube.close()
    assert objects.get(AgentRun)["status"] == run["status"]
