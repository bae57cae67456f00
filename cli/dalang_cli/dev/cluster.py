"""Puts into a fresh API server what Dalang needs before its operator starts; every step is safe to repeat."""

import asyncio
import base64
import os
from pathlib import Path

import yaml
from dalang_operator import admission

from dalang_cli.dev.api import Api, ApiError, Object
from dalang_cli.dev.errors import DevError

RESOURCES = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "CustomResourceDefinition": "customresourcedefinitions",
    **admission.PLURALS,
}
ESTABLISHED_SECONDS = 30.0
ENFORCED_SECONDS = 30.0
PROBES: tuple[tuple[str, Object, str], ...] = (
    (
        "agentapprovals",
        {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentApproval",
            "metadata": {"generateName": "probe-"},
            "spec": {
                "subject": "Output",
                "runRef": {"name": "probe"},
                "workflowId": "probe",
                "agent": "probe",
                "question": "Is a decided one refused?",
                "arguments": "{}",
                "digest": f"sha256:{'0' * 64}",
                "requestedAt": "2026-01-01T00:00:00Z",
                "decision": "Reject",
            },
        },
        "an approval is created undecided",
    ),
    (
        "agentruns",
        {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentRun",
            "metadata": {"generateName": "probe-"},
            "spec": {"agentRef": {"name": "probe"}, "input": "Is its creator written down?"},
        },
        "dalang.dev/created-by",
    ),
)
"""Per policy a resource, a body, and what the answer has in it once the policy is enforced. Sent as a dry run."""


async def set_up(api: Api) -> None:
    """Apply the namespace `dalang-system`, the CRDs, the admission policies, the operator's RBAC and the Secret of the examples.

    Raises:
        DevError: the API server refused one of them.
    """
    definitions = custom_resource_definitions()
    try:
        await apply_namespace(api, "dalang-system")
        await asyncio.gather(
            *(api.apply(path_of(each), each) for each in [*definitions, *operator_rbac()]),
            *(replace(api, each) for each in admission.policies()),
            ensure_openai_secret(api),
        )
        await asyncio.gather(*(_wait_established(api, path_of(each)) for each in definitions))
        await _wait_enforced(api)
    except ApiError as error:
        raise DevError(f"The API server refused what Dalang needs: {error}") from error


async def apply_namespace(api: Api, name: str) -> None:
    """Create a namespace if it does not exist."""
    body: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await api.apply(f"/api/v1/namespaces/{name}", body)


async def replace(api: Api, body: Object) -> None:
    """Create an object, or give it just this spec: an apply would leave a condition that somebody added to a policy."""
    path = path_of(body)
    try:
        current = await api.get(path)
    except ApiError as error:
        if not error.is_missing:
            raise
        await api.create(path.rsplit("/", 1)[0], body)
        return
    version = current["metadata"]["resourceVersion"]
    await api.replace(path, {**body, "metadata": {**body["metadata"], "resourceVersion": version}})


async def ensure_openai_secret(api: Api) -> None:
    """Put `$OPENAI_API_KEY` into Secret `openai` in `default`; without it, see that there is one for the scripted model."""
    real_key = os.environ.get("OPENAI_API_KEY")
    key = real_key or "scripted"
    body: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "openai", "namespace": "default"},
        "data": {"api-key": base64.b64encode(key.encode()).decode()},
    }
    await apply_namespace(api, "default")
    if real_key:
        await api.apply("/api/v1/namespaces/default/secrets/openai", body)
        return
    try:
        await api.create("/api/v1/namespaces/default/secrets", body)
    except ApiError as error:
        if not error.is_conflict:  # there already, perhaps with a key of the user's
            raise


def operator_rbac() -> list[Object]:
    """Return the objects of operator_rbac.yaml."""
    return list(yaml.safe_load_all((Path(__file__).parent / "operator_rbac.yaml").read_text()))


def custom_resource_definitions() -> list[Object]:
    """Return Dalang's CRDs."""
    from dalang_api import crdgen  # here, for the models are only needed once per `up`

    return list(crdgen.custom_resource_definitions())


def path_of(each: Object) -> str:
    """Return the API path of one of our objects."""
    group_version, metadata = each["apiVersion"], each["metadata"]
    namespace = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"/apis/{group_version}{namespace}/{RESOURCES[each['kind']]}/{metadata['name']}"


async def _wait_established(api: Api, path: str) -> None:
    try:
        async with asyncio.timeout(ESTABLISHED_SECONDS):
            while not _is_established(await api.get(path)):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise DevError(f"{path.rsplit('/', 1)[-1]} is not established. See: dalang dev logs kube-apiserver") from None


async def _wait_enforced(api: Api) -> None:
    """Wait until the API server enforces the policies: what was written before is unproven.

    Before that it refuses for a while: its admission learns of a new kind later than the rest of it.
    """
    path = "/apis/dalang.dev/v1alpha1/namespaces/default"
    await asyncio.gather(
        *(_wait_answer(api, f"{path}/{plural}?dryRun=All", body, sign) for plural, body, sign in PROBES)
    )


async def _wait_answer(api: Api, path: str, body: Object, sign: str) -> None:
    """Send a write until the answer, good or bad, has the sign in it."""
    answer = ""
    try:
        async with asyncio.timeout(ENFORCED_SECONDS):
            while sign not in answer:
                try:
                    answer = str((await api.create(path, body))["metadata"])
                except ApiError as error:
                    answer = str(error)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DevError(f"The API server does not enforce the admission policies; it says: {answer}") from None


def _is_established(definition: Object) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
