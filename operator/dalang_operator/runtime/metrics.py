"""Prometheus metrics. Where controller-runtime has a metric for the same thing its name and labels are used, so existing dashboards fit."""

from prometheus_client import Counter, Gauge, Histogram

API_REQUESTS = Counter("rest_client_requests", "Requests to the API server.", ["method", "code"])

QUEUE_DEPTH = Gauge("workqueue_depth", "Keys waiting for a reconcile.", ["name"])
QUEUE_ADDS = Counter("workqueue_adds", "Keys added.", ["name"])
QUEUE_RETRIES = Counter("workqueue_retries", "Keys added again after an error.", ["name"])

RECONCILES = Counter("controller_runtime_reconcile", "Reconciles.", ["controller", "result"])
RECONCILE_TIME = Histogram(
    "controller_runtime_reconcile_time_seconds",
    "Duration of a reconcile.",
    ["controller"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
IS_LEADER = Gauge("leader_election_master_status", "1 while this process holds the Lease.", ["name"])

CACHED = Gauge("dalang_cached_objects", "Objects in the cache.", ["kind"])
STATUS_WRITES = Counter("dalang_status_writes", "Writes of a status.", ["kind", "writer"])
WORKFLOW_CALLS = Counter("dalang_workflow_calls", "Calls to Temporal about workflows.", ["call", "result"])
REPORTS = Counter("dalang_reports", "Reports of workflows.", ["result"])
SWEEPS = Counter("dalang_sweeps", "Sweeps, by how they ended.", ["result"])
SWEEP_FINDINGS = Counter("dalang_sweep_findings", "What sweeps found.", ["finding"])
