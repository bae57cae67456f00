"""What a full ResourceQuota answers on a real API server, also for a name that is taken."""

import json
from typing import TYPE_CHECKING

import pytest
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import QuotaExceeded
from dalang_operator.kube.resources import AGENT_RUNS
from dalang_operator.kube.user import own_user

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane

COUNT = "count/agentruns.dalang.dev"


def agent_run(name: str, namespace: str) -> dict[str, object]:
    return {
        "apiVersion": "dalang.dev/v1alpha1",
        "kind": "AgentRun",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"agentRef": {"name": "support"}, "input": "Hello."},
    }


async def test_a_full_quota_comes_before_a_name_that_is_taken(control_plane: "ControlPlane", namespace: str) -> None:
    """So that a run which fills it is found must not hang on `AlreadyExists`."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {COUNT: "1"}}}
    control_plane.kubectl("--namespace", namespace, "create", "-f", "-", stdin=json.dumps(quota))
    count = COUNT.replace(".", r"\.")
    is_counted = f"--for=jsonpath={{.status.used.{count}}}=0"
    control_plane.kubectl("--namespace", namespace, "wait", "resourcequota/few", is_counted, "--timeout=20s")
    kube = await KubeClient.open(control_plane.kubeconfig)
    try:
        await kube.create(AGENT_RUNS, namespace, agent_run("first", namespace))
        for name in ("first", "second"):
            for dry_run in (False, True):
                with pytest.raises(QuotaExceeded):
                    await kube.create(AGENT_RUNS, namespace, agent_run(name, namespace), dry_run=dry_run)
    finally:
        await kube.close()


async def test_the_operator_learns_who_it_is(control_plane: "ControlPlane") -> None:
    kube = await KubeClient.open(control_plane.kubeconfig)
    try:
        assert await own_user(kube) == "dalang-dev-admin"
    finally:
        await kube.close()
