"""What to say about one AgentModel. Whether key and endpoint are right only a call can tell, so it is accepted as it is."""

from datetime import datetime

from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import condition, with_conditions


def plan(model: Json, now: datetime) -> Json:
    """Return the status the AgentModel should have."""
    before = model.get("status", {})
    generation = model["metadata"]["generation"]
    ready = condition(ConditionType.READY, "True", Reason.ACCEPTED, "The definition is usable")
    return {
        **before,
        "observedGeneration": generation,
        "conditions": with_conditions(before.get("conditions", []), [ready], generation, now),
    }
