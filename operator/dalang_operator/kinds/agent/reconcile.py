"""Agent: observe one agent, plan, execute."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dalang_operator.kinds.agent.plan import Observed, plan
from dalang_operator.kube.resources import AGENTS, ObjectKey
from dalang_operator.kube.status import StatusPort, write_status
from dalang_operator.runtime.cache import Cache, pool_of


@dataclass(frozen=True)
class AgentReconciler:
    """Says of Agents whether everything they name is there."""

    kube: StatusPort
    cache: Cache
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one Agent."""
        agent = self.cache.agents.get(key)
        if agent is None:
            return None
        observed = Observed(
            agent=agent,
            model=self.cache.models.get(ObjectKey(key.namespace, agent["spec"]["modelRef"]["name"])),
            pool=self.cache.pools.get(ObjectKey(key.namespace, pool_of(agent))),
            now=self.now(),
        )
        written = await write_status(self.kube, AGENTS, agent, plan(observed), "controller")
        if written is not None:
            self.cache.agents.put(written)
        return None
