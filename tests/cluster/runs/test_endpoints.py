"""/healthz, /readyz and /metrics of operator and worker."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop, System

pytestmark = pytest.mark.timeout(90)


def endpoints(mall: "Shop", part: str) -> str:
    """Return the address of a part's endpoints."""
    if part == "operator":
        return mall.system.address("operator")
    (pod,) = mall.pods()
    return f"{pod['status']['podIP']}:8080"


METRICS = {
    "operator": [
        'dalang_cached_objects{kind="AgentRun"}',
        "dalang_status_writes_total{",
        "dalang_workflow_calls_total{",
        "dalang_reports_total{",
        "dalang_sweeps_total{",
        "workqueue_depth{",
        "workqueue_adds_total{",
        "controller_runtime_reconcile_total{",
        "controller_runtime_reconcile_time_seconds_bucket{",
        "leader_election_master_status{",
        "rest_client_requests_total{",
        "process_cpu_seconds_total",
    ],
    "worker": ["process_cpu_seconds_total"],
}


@pytest.mark.parametrize("part", METRICS)
def test_a_part_tells_that_it_is_well_and_what_it_does(part: str, mall: "Shop", system: "System") -> None:
    mall.task(f"measured-by-{part}", {"text": "Done."}).answered()
    address = endpoints(mall, part)
    assert system.get(f"http://{address}/healthz") == (200, "ok\n")
    assert system.get(f"http://{address}/readyz") == (200, "ok\n")
    status, text = system.get(f"http://{address}/metrics")
    assert status == 200
    assert [name for name in METRICS[part] if name not in text] == []
