"""Agent: observe one agent, plan, execute."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dalang_operator.kinds.agent.plan import Observed, plan
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.reach import reached_agents
from dalang_operator.kube.resources import AGENTS, ObjectKey
from dalang_operator.kube.status import StatusPort, write_status
from dalang_operator.runtime.cache import Cache


@dataclass(frozen=True)
class AgentReconciler:
    """Says of Agents whether everything they name is there."""

    kube: StatusPort
    cache: Cache
    config_maps: RecentConfigMaps
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one Agent; returns after how many seconds to look again, or None."""
        agent = self.cache.agents.get(key)
        if agent is None:
            return None
        agents = reached_agents(agent, self.cache.known(key.namespace))
        config_maps = await self.config_maps.of(key.namespace, agents)
        wanted = plan(Observed(agent, self.cache.known(key.namespace), self.now(), config_maps))
        written = await write_status(self.kube, AGENTS, agent, wanted.status, "controller")
        if written is not None:
            self.cache.agents.put(written)
        return wanted.requeue_after
