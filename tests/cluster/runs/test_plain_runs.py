"""A run that meets nothing unusual: what the user sees, and what it costs the API server and Temporal."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import System

pytestmark = pytest.mark.timeout(180)

QUICKSTART = "examples/quickstart"


def test_the_quickstart_answers_with_what_its_tool_said(system: "System", request: pytest.FixtureRequest) -> None:
    folder = str(request.config.rootpath / QUICKSTART)
    system.kubectl("apply", "-f", folder)
    try:
        system.kubectl("wait", "agentrun/hello", "--for=jsonpath={.status.finishedAt}", "--timeout=60s")
        columns = [line.split() for line in system.kubectl("get", "agentrun", "hello").splitlines()]
        assert columns[0] == ["NAME", "AGENT", "PHASE", "REASON", "TURNS", "TOKENS", "AGE"]
        assert columns[1][:5] == ["hello", "forecaster", "Succeeded", "Answered", "2"]
        assert "31 °C" in system.kubectl("get", "agentrun", "hello", "-o", "jsonpath={.status.output}")
        system.kubectl("wait", "agentrun/hello", "--for=condition=Succeeded", "--timeout=1s")
        system.kubectl("wait", "agent/forecaster", "agentpool/default", "--for=condition=Ready", "--timeout=20s")
    finally:
        system.kubectl("delete", "-f", folder)
