"""The objects a pool owns, whole: its Deployment and the immutable copy of its tool modules."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

from dalang_api.contract import IDENTITY_PATH, identity_folder
from pydantic import BaseModel

from dalang_operator.kinds.agentpool.capabilities import approval_floors, mcp_servers, retrievers
from dalang_operator.kube.resources import AGENT_POOLS, Json, key_of, uid_of
from dalang_operator.runtime.cache import POOL_LABEL, deployment_name

CONTAINER = "worker"
TOOLS_PATH = "/etc/dalang/tools"
SECRETS_PATH = "/var/run/dalang/secrets"
SECRET_VOLUME_PREFIX = "secret-"
IDENTITY_VOLUME_PREFIX = "identity-"
IDENTITY_SECONDS = 3600
"""For how long a projected token holds; the kubelet replaces it when four fifths of that are over."""
CAPABILITIES_MAX_BYTES = 96 * 1024
"""The most that MCP servers, retrievers or approvals may weigh as JSON: Linux starts no process with 128 KiB in a variable."""
HASH_ANNOTATION = "dalang.dev/hash"
"""Digest of the Deployment as we want it, so that what we no longer want is noticed, too."""
PORT = 8080
GRACE_SECONDS = 150
"""A worker that is told to stop has 120 s for the calls in flight, and 30 s to give up."""
DEFAULT_SLOTS = 100
DALANG_VERSION = version("dalang")


@dataclass(frozen=True)
class WorkerSettings:
    """What of the operator's settings goes into a worker's pod."""

    installation: str
    image: str
    temporal_address: str
    temporal_namespace: str
    temporal_tls: bool
    log_level: str
    log_format: str


def make_tools_copy(pool: Json, sources: list[Json]) -> Json | None:
    """Return the immutable ConfigMap with the modules of all sources, later ones winning; None without sources.

    A mounted ConfigMap changes under running pods: old code in memory, new code after any restart, two sets of tools
    under one build. So the pods mount a copy that is named by its content.
    """
    if not sources:
        return None
    data: dict[str, str] = {}
    binary: dict[str, str] = {}
    for source in sources:
        data |= source.get("data") or {}
        binary |= source.get("binaryData") or {}
    name = f"{deployment_name(key_of(pool).name)}-tools-{_digest([data, binary], 10)}"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(pool, name),
        "data": data,
        "binaryData": binary,
        "immutable": True,
    }


def image_of(pool: Json, settings: WorkerSettings) -> str:
    """Return the image a pool's workers run."""
    image: str = pool.get("spec", {}).get("image") or settings.image
    return image


def build_of(pool: Json, tools_copy: Json | None, settings: WorkerSettings) -> str:
    """Return the digest of all that decides what a worker can do: image, version, modules and their source, servers, approvals."""
    copy = tools_copy["metadata"]["name"] if tools_copy else ""
    spec = pool.get("spec", {})
    capabilities = [spec[name] for name in ("mcpServers", "retrievers", "approvals") if spec.get(name)]
    return _digest([image_of(pool, settings), DALANG_VERSION, spec.get("tools", []), copy, *capabilities], 16)


@dataclass(frozen=True)
class Credentials:
    """What a worker is given to prove who it is."""

    secrets: frozenset[str] = frozenset()
    """Names of Secrets, each mounted whole."""
    audiences: frozenset[str] = frozenset()
    """Audiences, for each of which Kubernetes issues a token to the pod."""

    def __or__(self, other: "Credentials") -> "Credentials":
        return Credentials(self.secrets | other.secrets, self.audiences | other.audiences)


def make_deployment(
    pool: Json, settings: WorkerSettings, *, build: str, tools_copy: str | None, credentials: Credentials
) -> Json:
    """Return the pool's Deployment as we apply it: without `replicas`, which belong to `/scale`."""
    key = key_of(pool)
    labels = _labels(key.name)
    volumes, mounts = _credential_volumes(credentials)
    if tools_copy:
        volumes.append({"name": "tools", "configMap": {"name": tools_copy}})
        mounts.append({"name": "tools", "mountPath": TOOLS_PATH, "readOnly": True})
    container: Json = {
        "name": CONTAINER,
        "image": image_of(pool, settings),
        "command": ["dalang", "worker"],
        "env": _environment(pool, settings, build, with_tools=tools_copy is not None, credentials=credentials),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 2, "timeoutSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if volumes:
        container["volumeMounts"] = mounts
        pod["volumes"] = volumes
    deployment: Json = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(pool, deployment_name(key.name)),
        "spec": {
            "selector": {"matchLabels": {POOL_LABEL: key.name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    deployment["metadata"]["annotations"] = {HASH_ANNOTATION: _digest(deployment, 16)}
    return deployment


def mounted_credentials(deployment: Json) -> Credentials:
    """Return what a Deployment of ours mounts."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes", ())
    secrets = (
        volume["secret"]["secretName"]
        for volume in volumes
        if volume["name"].startswith(SECRET_VOLUME_PREFIX) and "secret" in volume
    )
    tokens = (
        volume["projected"]["sources"][0]["serviceAccountToken"]
        for volume in volumes
        if volume["name"].startswith(IDENTITY_VOLUME_PREFIX) and "projected" in volume
    )
    return Credentials(frozenset(secrets), frozenset(token["audience"] for token in tokens))


def capabilities_size(pool: Json) -> int:
    """Return what the largest of MCP servers, retrievers and approvals weighs as JSON, in bytes."""
    return max(len(_listed(found).encode()) for found in (mcp_servers(pool), retrievers(pool), approval_floors(pool)))


def _credential_volumes(credentials: Credentials) -> tuple[list[Json], list[Json]]:
    """Return the volumes and where they are mounted."""
    volumes: list[Json] = []
    mounts: list[Json] = []
    for name in sorted(credentials.secrets):
        volumes.append({"name": _secret_volume(name), "secret": {"secretName": name, "optional": True}})
        mounts.append({"name": _secret_volume(name), "mountPath": f"{SECRETS_PATH}/{name}", "readOnly": True})
    for audience in sorted(credentials.audiences):
        token = {"audience": audience, "expirationSeconds": IDENTITY_SECONDS, "path": "token"}
        folder = identity_folder(audience)
        volumes.append({"name": folder, "projected": {"sources": [{"serviceAccountToken": token}]}})
        mounts.append({"name": folder, "mountPath": f"{IDENTITY_PATH}/{folder}", "readOnly": True})
    return volumes, mounts


def _environment(
    pool: Json, settings: WorkerSettings, build: str, *, with_tools: bool, credentials: Credentials
) -> list[Json]:
    key, spec = key_of(pool), pool.get("spec", {})
    values = {
        "DALANG_INSTALLATION": settings.installation,
        "DALANG_NAMESPACE": key.namespace,
        "DALANG_POOL": key.name,
        "DALANG_BUILD": build,
        "DALANG_SECRETS_PATH": SECRETS_PATH,
        "DALANG_SLOTS": str(spec.get("slots") or DEFAULT_SLOTS),
        "DALANG_TEMPORAL_ADDRESS": settings.temporal_address,
        "DALANG_TEMPORAL_NAMESPACE": settings.temporal_namespace,
        "DALANG_LOG_LEVEL": settings.log_level,
        "DALANG_LOG_FORMAT": settings.log_format,
    }
    # An empty value would come back absent from the server, and look like a difference for ever.
    if spec.get("tools"):
        values["DALANG_TOOLS"] = ",".join(spec["tools"])
    if with_tools:
        values["DALANG_TOOLS_PATH"] = TOOLS_PATH
    if servers := mcp_servers(pool):
        values["DALANG_MCP_SERVERS"] = _listed(servers)
    if found := retrievers(pool):
        values["DALANG_RETRIEVERS"] = _listed(found)
    if floors := approval_floors(pool):
        values["DALANG_APPROVALS"] = _listed(floors)
    if credentials.audiences:
        values["DALANG_IDENTITY_PATH"] = IDENTITY_PATH  # a variable, since `dalang dev` mounts it elsewhere
    if settings.temporal_tls:
        values["DALANG_TEMPORAL_TLS"] = "true"
    fields = {"DALANG_POD": "metadata.name", "POD_IP": "status.podIP"}
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        {"name": "DALANG_HTTP_ADDRESS", "value": f"$(POD_IP):{PORT}"},  # after POD_IP, which it names
    ]


def _listed(settings: Iterable[BaseModel]) -> str:
    """Return settings as a JSON list without a dollar sign, which Kubernetes would take for one of a variable."""
    listed = ",".join(each.model_dump_json(exclude_none=True) for each in settings)
    return f"[{listed}]".replace("$", "\\u0024")


def _secret_volume(secret: str) -> str:
    """A volume's name is a label of at most 63 characters; a Secret's may be longer and hold dots."""
    return f"{SECRET_VOLUME_PREFIX}{_digest(secret, 16)}"


def _metadata(pool: Json, name: str) -> Json:
    key = key_of(pool)
    return {
        "name": name,
        "namespace": key.namespace,
        "labels": _labels(key.name),
        "ownerReferences": [
            {
                "apiVersion": AGENT_POOLS.api_version,
                "kind": AGENT_POOLS.kind,
                "name": key.name,
                "uid": uid_of(pool),
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def _labels(pool: str) -> dict[str, str]:
    return {
        POOL_LABEL: pool,
        "app.kubernetes.io/name": "dalang-worker",
        "app.kubernetes.io/instance": deployment_name(pool),
        "app.kubernetes.io/part-of": "dalang",
        "app.kubernetes.io/managed-by": "dalang",
    }


def _digest(value: object, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
