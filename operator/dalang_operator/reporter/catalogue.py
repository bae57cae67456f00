"""Workflow `PublishTools` and its activity: what a starting worker says it can do becomes its AgentPool's catalogue.

Workers hold no Kubernetes credentials, so they start this workflow instead; its id names pool and build.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dalang_api.contract import CATALOGUE_ACTIVITY, PUBLISH_TOOLS_WORKFLOW, Catalogue
from dalang_api.v1alpha1.conditions import ConditionType, Reason
from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError, NotFound
from dalang_operator.kube.resources import AGENT_POOLS, Json
from dalang_operator.kube.status import condition, with_conditions, write_status
from dalang_operator.reporter.report import reporting_workflow, retryable

BUILD_PATIENCE = timedelta(minutes=2)
"""How long a catalogue waits for the pool to name its build, before it counts as a build of the past."""
TOOLS_MAX = 512
INSTRUCTIONS_MAX = 128
SECRET_KEYS_MAX = 256


@workflow.defn(name=PUBLISH_TOOLS_WORKFLOW)
class PublishTools:
    """Publishes one worker's catalogue."""

    @workflow.run
    async def run(self, catalogue: Catalogue) -> None:
        """Run the activity until it is written, or ten minutes are over."""
        await workflow.execute_activity(
            CATALOGUE_ACTIVITY,
            catalogue,
            schedule_to_close_timeout=timedelta(minutes=10),
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
        )


def catalogue_status(catalogue: Catalogue, pool: Json, build: str, now: datetime) -> Json:
    """Return the pool's status with the catalogue of a build."""
    before = pool.get("status", {})
    if catalogue.failures:
        message = "; ".join(f"module {failure.module}: {failure.error}" for failure in catalogue.failures)
        loaded = condition(ConditionType.TOOLS_LOADED, "False", Reason.IMPORT_FAILED, message)
    else:
        loaded = condition(ConditionType.TOOLS_LOADED, "True", Reason.LOADED, "Every tool module was imported")
    tools = sorted(catalogue.tools, key=lambda tool: tool.name)[:TOOLS_MAX]
    told: Json = {"build": build, "tools": [tool.model_dump() for tool in tools]}
    if catalogue.instructions:
        told["instructions"] = sorted(set(catalogue.instructions))[:INSTRUCTIONS_MAX]
    if catalogue.secret_keys:
        told["secretKeys"] = sorted(set(catalogue.secret_keys))[:SECRET_KEYS_MAX]
    return {
        **before,
        "catalogue": told,
        "conditions": with_conditions(before.get("conditions", []), [loaded], pool["metadata"]["generation"], now),
    }


@dataclass(frozen=True)
class CataloguePublisher:
    """Writes catalogues into AgentPools."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    kube: KubeClient
    now: Callable[[], datetime]

    @activity.defn(name=CATALOGUE_ACTIVITY)
    async def publish(self, catalogue: Catalogue) -> None:
        """Write one catalogue, if the pool is of its build, now or within two minutes.

        Raises:
            ApplicationError: The API server refused or did not answer, or the pool is of another build yet; Temporal
                tries again.
        """
        target = reporting_workflow(self.installation, self.namespaces, PUBLISH_TOOLS_WORKFLOW)
        if target is None:
            return
        try:
            pool = await self.kube.get(AGENT_POOLS, target.namespace, target.name)
            if pool.get("status", {}).get("build") == target.suffix:
                status = catalogue_status(catalogue, pool, target.suffix, self.now())
                await write_status(self.kube, AGENT_POOLS, pool, status, "reporter")
                return
        except NotFound:
            pass
        except ApiError as error:
            raise retryable(error) from error
        if datetime.now(UTC) - activity.info().scheduled_time < BUILD_PATIENCE:
            raise ApplicationError(
                f"AgentPool {target.name} is not of build {target.suffix} yet",
                type="OtherBuild",
                category=ApplicationErrorCategory.BENIGN,
            )
