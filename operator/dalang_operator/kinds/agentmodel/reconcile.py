"""AgentModel: observe one model, plan, execute."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dalang_operator.kinds.agentmodel.plan import plan
from dalang_operator.kube.resources import AGENT_MODELS, ObjectKey
from dalang_operator.kube.status import StatusPort, write_status
from dalang_operator.runtime.cache import Cache


@dataclass(frozen=True)
class ModelReconciler:
    """Says that AgentModels are accepted."""

    kube: StatusPort
    cache: Cache
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one AgentModel."""
        model = self.cache.models.get(key)
        if model is None:
            return None
        written = await write_status(self.kube, AGENT_MODELS, model, plan(model, self.now()), "controller")
        if written is not None:
            self.cache.models.put(written)
        return None
