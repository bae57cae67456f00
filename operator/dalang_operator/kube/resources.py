"""The resources the operator touches, and the paths they are served under."""

from dataclasses import dataclass
from typing import Any, NamedTuple

Json = dict[str, Any]
"""An object as the API server sends it. Never changed in place: the cache and two threads share it."""

PatchBody = Json | list[Json]
"""A merge patch, or the operations of a JSON patch."""


class ObjectKey(NamedTuple):
    """Namespace and name of an object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Resource:
    """A kind and where it is served."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of a collection (no name), an object or a subresource; no namespace means all of them."""
        path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if namespace:
            path += f"/namespaces/{namespace}"
        path += f"/{self.plural}"
        if name:
            path += f"/{name}"
        return f"{path}/{subresource}" if subresource else path


AGENTS = Resource("dalang.dev", "v1alpha1", "agents", "Agent")
AGENT_MODELS = Resource("dalang.dev", "v1alpha1", "agentmodels", "AgentModel")
AGENT_POOLS = Resource("dalang.dev", "v1alpha1", "agentpools", "AgentPool")
AGENT_RUNS = Resource("dalang.dev", "v1alpha1", "agentruns", "AgentRun")
AGENT_SESSIONS = Resource("dalang.dev", "v1alpha1", "agentsessions", "AgentSession")
AGENT_APPROVALS = Resource("dalang.dev", "v1alpha1", "agentapprovals", "AgentApproval")
AGENT_SCHEDULES = Resource("dalang.dev", "v1alpha1", "agentschedules", "AgentSchedule")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
SELF_REVIEWS = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview")


def key_of(obj: Json) -> ObjectKey:
    """Return the key of an object."""
    metadata = obj["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def uid_of(obj: Json) -> str:
    """Return the uid of an object."""
    uid: str = obj["metadata"]["uid"]
    return uid


def controller_uid(obj: Json) -> str | None:
    """Return the uid of the owner that controls the object, or None."""
    return next(
        (owner["uid"] for owner in obj["metadata"].get("ownerReferences", ()) if owner.get("controller")),
        None,
    )
