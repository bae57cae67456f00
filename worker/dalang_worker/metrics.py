"""Prometheus metrics of a worker's calls. Labels are names from manifests, so there are few of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Histogram

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

MODEL_CALLS = Counter("dalang_model_calls", "Model calls, by how they ended.", ["model", "result"])
MODEL_CALL_TIME = Histogram("dalang_model_call_seconds", "Duration of model calls.", ["model"], buckets=_SECONDS)
TOKENS = Counter("dalang_tokens", "Tokens of answered model calls.", ["model", "direction"])
TOOL_CALLS = Counter("dalang_tool_calls", "Tool calls, by how they ended.", ["tool", "result"])
TOOL_CALL_TIME = Histogram("dalang_tool_call_seconds", "Duration of tool calls.", ["tool"], buckets=_SECONDS)


@contextmanager
def measured(calls: Counter, time: Histogram, name: str) -> Iterator[None]:
    """Count and time the call of this block; one that raises, also one that is cancelled, counts as failed."""
    result = "failed"
    try:
        with time.labels(name).time():
            yield
        result = "ok"
    finally:
        calls.labels(name, result).inc()
