"""The API server as the bench uses it: objects by name, one watch that tells when runs finish, and its own counters."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from kubernetes.aio import client, config, watch

GROUP, VERSION = "dalang.dev", "v1alpha1"
NAMESPACE = "bench"

TOOLS = '''
from dalang import tool


@tool
def echo(text: str) -> str:
    """Say it back."""
    return text
'''


class Cluster:
    """A namespace of AgentRuns."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._finished: dict[str, tuple[float, dict[str, Any]]] = {}
        self._awaiting: dict[str, dict[str, Any]] = {}
        """Runs that await approval, with their status."""
        self._changed = asyncio.Condition()

    async def prepare(self, model_url: str, models: list[str]) -> None:
        """Make the namespace, a pool with a tool, and an agent for each of the scripted models."""
        await self._core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
        await self._core.create_namespaced_config_map(
            NAMESPACE,
            client.V1ConfigMap(metadata=client.V1ObjectMeta(name="tools"), data={"benchtools.py": TOOLS}),
        )
        await self.create(
            "agentpools",
            {
                "kind": "AgentPool",
                "metadata": {"name": "default"},
                "spec": {
                    "tools": ["benchtools"],
                    "toolsFrom": [{"configMapRef": {"name": "tools"}}],
                    "scaling": {"minReplicas": 1},
                },
            },
        )
        for name in models:
            await self.create(
                "agentmodels",
                {
                    "kind": "AgentModel",
                    "metadata": {"name": name},
                    "spec": {"provider": "OpenAI", "name": name, "openAI": {"baseURL": f"{model_url}/v1"}},
                },
            )
            tools = [{"name": "echo", "function": {}}] if "turns" in name else []
            await self.create(
                "agents",
                {
                    "kind": "Agent",
                    "metadata": {"name": name},
                    "spec": {"modelRef": {"name": name}, "tools": tools, "limits": {"maxTurns": 200}},
                },
            )
        await self._wait_ready("agentpools", "default")

    async def prepare_approvals(self, model: str) -> str:
        """Make a pool that goes to zero soon, and an agent there whose tool needs approval; return the agent's name."""
        scaling = {"minReplicas": 0, "scaleToZeroAfter": "5s"}
        tools = {"tools": ["benchtools"], "toolsFrom": [{"configMapRef": {"name": "tools"}}]}
        await self.create(
            "agentpools", {"kind": "AgentPool", "metadata": {"name": "asking"}, "spec": {**tools, "scaling": scaling}}
        )
        spec = {
            "modelRef": {"name": model},
            "poolRef": {"name": "asking"},
            "tools": [{"name": "echo", "function": {}, "approval": {"question": "Echo?"}}],
            "limits": {"timeout": "1h"},
        }
        await self.create("agents", {"kind": "Agent", "metadata": {"name": "asking"}, "spec": spec})
        return "asking"

    async def awaiting(self, names: list[str]) -> None:
        """Wait until all these runs await approval."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(name in self._awaiting for name in names))

    async def approve(self, name: str) -> None:
        """Approve what a run asks for."""
        approval = self._awaiting[name]["pendingApprovals"][0]["name"]
        await self._objects.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            NAMESPACE,
            "agentapprovals",
            approval,
            {"spec": {"decision": "Approve"}},
            _content_type="application/merge-patch+json",
        )

    async def at_zero(self, pool: str) -> None:
        """Wait until a pool has no worker."""
        while True:
            got = await self._objects.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, "agentpools", pool)
            status = cast(dict[str, Any], got).get("status", {})
            if status.get("replicas") == 0 and not status.get("readyReplicas"):
                return
            await asyncio.sleep(0.5)

    async def create(self, plural: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object."""
        whole = {"apiVersion": f"{GROUP}/{VERSION}", **body}
        created = await self._objects.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, whole)
        return cast(dict[str, Any], created)

    async def get(self, plural: str, name: str) -> dict[str, Any]:
        """Read an object."""
        found = await self._objects.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, name)
        return cast(dict[str, Any], found)

    async def create_run(self, name: str, agent: str) -> dict[str, Any]:
        """Create an AgentRun."""
        spec = {"agentRef": {"name": agent}, "input": "hi"}
        return await self.create("agentruns", {"kind": "AgentRun", "metadata": {"name": name}, "spec": spec})

    async def set_status(self, name: str, status: dict[str, Any]) -> None:
        """Write an AgentRun's status, to make finished runs that never ran."""
        await self._objects.patch_namespaced_custom_object_status(
            GROUP,
            VERSION,
            NAMESPACE,
            "agentruns",
            name,
            {"status": status},
            _content_type="application/merge-patch+json",
        )

    async def finished(self, name: str) -> tuple[float, dict[str, Any]]:
        """Wait until a run has finished; return when it was seen, and its status."""
        async with self._changed:
            await self._changed.wait_for(lambda: name in self._finished)
        return self._finished[name]

    async def api_writes(self) -> dict[str, float]:
        """Writes the API server has counted so far, by resource."""
        response = await self._api.call_api("GET", f"{self._api.configuration.host}/metrics", header_params={})
        text = (await response.read()).decode()
        writes: dict[str, float] = {}
        for labels, value in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
            found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if found["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and found["code"].startswith("2"):
                key = f"{found['resource']}/{found['subresource']}".rstrip("/")
                writes[key] = writes.get(key, 0.0) + float(value)
        return writes

    async def watch_runs(self) -> None:
        """Note every run that finishes, until cancelled."""
        while True:
            async with watch.Watch() as stream:
                async for event in stream.stream(
                    self._objects.list_namespaced_custom_object, GROUP, VERSION, NAMESPACE, "agentruns"
                ):
                    run = event["raw_object"] if "raw_object" in event else event["object"]
                    if run.get("status", {}).get("phase") == "AwaitingApproval":
                        async with self._changed:
                            self._awaiting[run["metadata"]["name"]] = run["status"]
                            self._changed.notify_all()
                    if run.get("status", {}).get("finishedAt"):
                        async with self._changed:
                            name = run["metadata"]["name"]
                            self._finished.setdefault(name, (time.perf_counter(), run["status"]))
                            self._changed.notify_all()

    async def _wait_ready(self, plural: str, name: str) -> None:
        while True:
            got = await self._objects.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, name)
            found = cast(dict[str, Any], got)
            conditions = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", [])}
            if conditions.get("Ready") == "True" and found["status"].get("readyReplicas"):
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def connect() -> AsyncIterator[Cluster]:
    """Use the cluster of $KUBECONFIG."""
    await config.load_kube_config(os.environ["KUBECONFIG"])
    async with client.ApiClient() as api:
        cluster = Cluster(api)
        yield cluster
