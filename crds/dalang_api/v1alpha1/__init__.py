"""The `dalang.dev/v1alpha1` API. These pydantic models are the one source of `crds/*.yaml` and of `kubectl explain`."""

from dalang_api.v1alpha1.agent import Agent
from dalang_api.v1alpha1.agentapproval import AgentApproval
from dalang_api.v1alpha1.agentmodel import AgentModel
from dalang_api.v1alpha1.agentpool import AgentPool
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_api.v1alpha1.agentschedule import AgentSchedule
from dalang_api.v1alpha1.agentsession import AgentSession

__all__ = ["Agent", "AgentApproval", "AgentModel", "AgentPool", "AgentRun", "AgentSchedule", "AgentSession"]
