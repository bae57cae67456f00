"""A thin client of the API server: plain JSON objects in and out, one error tree, one session per event loop.

Configuration (kubeconfig, exec plugins, in-cluster tokens that rotate) is `kubernetes.aio`'s. Its typed models are left
out: they cost 0.4 ms of CPU per request against 0.1 ms here, and every run makes several.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_incluster_config, load_kube_config
from pydantic_core import from_json, to_json

from dalang_operator.kube.apply import FIELD_MANAGER
from dalang_operator.kube.errors import ApiError, Unavailable, from_response
from dalang_operator.kube.resources import Json, PatchBody, Resource
from dalang_operator.runtime.metrics import API_REQUESTS

REQUEST_TIMEOUT_SECONDS = 15.0
"""No request of ours takes seconds, so a server that hangs is given up soon and asked again."""
PAGE_SIZE = 500
CONNECTIONS = 20
"""Open at the most, of one client. Each weighs 256 KiB, asyncio's buffer for TLS: a burst of 100 reports left 28 MB in use, and
is no faster with 100."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Return the configuration of a kubeconfig file, or of the pod we run in.

    Raises:
        ConfigException: Neither is there, or the file is no kubeconfig.
    """
    configuration = Configuration()
    if kubeconfig:
        await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    else:
        load_incluster_config(client_configuration=configuration)
    return configuration


async def authorization(configuration: Configuration) -> str | None:
    """Return the value of the Authorization header; None where a client certificate says it all."""
    token: str | None = await configuration.get_api_key_with_prefix("BearerToken")
    if token is None and configuration.username:
        token = configuration.get_basic_auth_token()
    return token


def open_session(configuration: Configuration, connections: int = 0) -> aiohttp.ClientSession:
    """Return a session with the configuration's TLS settings, for the running event loop; 0 connections: as many as asked."""
    tls = RESTClientObject(configuration).ssl_context
    connector = aiohttp.TCPConnector(limit=connections, ssl=tls)
    return aiohttp.ClientSession(connector=connector, proxy=configuration.proxy, read_bufsize=2**21)


class KubeClient:
    """Requests to one API server. Belongs to the event loop it was opened in."""

    def __init__(self, configuration: Configuration, kubeconfig: Path | None, timeout_seconds: float) -> None:
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._timeout = timeout_seconds
        self._server = configuration.host.rstrip("/")
        self._session = open_session(configuration, CONNECTIONS)

    @classmethod
    async def open(cls, kubeconfig: Path | None, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> "KubeClient":
        """Return a client whose requests end within `timeout_seconds`; the server need not be there yet.

        Raises:
            ConfigException: There is no usable configuration.
        """
        return cls(await load_configuration(kubeconfig), kubeconfig, timeout_seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        """Return an object.

        Raises:
            NotFound: There is none.
        """
        return await self.request("GET", resource.path(namespace, name))

    async def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        """Yield the objects in pages of 500, each with the list's resourceVersion.

        Raises:
            Gone: The list took so long that the server forgot where it was.
        """
        params = {"limit": str(PAGE_SIZE)}
        if fields:
            params["fieldSelector"] = fields
        if labels:
            params["labelSelector"] = labels
        while True:
            page = await self.request("GET", f"{resource.path(namespace)}?{urlencode(params)}")
            metadata = page["metadata"]
            yield page["items"], metadata["resourceVersion"]
            if not metadata.get("continue"):
                return
            params["continue"] = metadata["continue"]

    async def create(self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False) -> Json:
        """Create an object and return it; with `dry_run` only find out whether the server would.

        Raises:
            AlreadyExists: There is one of that name.
        """
        return await self.request("POST", f"{resource.path(namespace)}{'?dryRun=All' if dry_run else ''}", body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json:
        """Patch an object or its subresource and return the result: merge a dict, or carry out a list of operations.

        Raises:
            Conflict: The patch names a resourceVersion or uid, and the object has another.
        """
        content_type = JSON_PATCH if isinstance(body, list) else MERGE_PATCH
        return await self.request("PATCH", resource.path(namespace, name, subresource), body, content_type)

    async def apply(self, resource: Resource, namespace: str, name: str, body: Json) -> Json:
        """Apply an object server-side, taking over fields of others, and return it.

        Raises:
            Conflict: The body names a uid, and the object has another.
        """
        path = f"{resource.path(namespace, name)}?fieldManager={FIELD_MANAGER}&force=true"
        return await self.request("PATCH", path, body, APPLY_PATCH)

    async def replace(self, resource: Resource, namespace: str, name: str, body: Json) -> Json:
        """Replace an object and return it.

        Raises:
            Conflict: The object changed since it was read.
        """
        return await self.request("PUT", resource.path(namespace, name), body)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        """Delete an object if it is still the one that was read.

        Raises:
            Conflict: It is another.
            NotFound: It is gone already.
        """
        preconditions = {"uid": uid}
        if resource_version:
            preconditions["resourceVersion"] = resource_version
        body = {"preconditions": preconditions, "propagationPolicy": "Background"}
        await self.request("DELETE", resource.path(namespace, name), body)

    async def request(
        self,
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        path: str,
        body: PatchBody | None = None,
        content_type: str = JSON,
    ) -> Json:
        """Send one request and return the JSON object of the answer.

        Raises:
            ApiError: Any answer but 2xx, and no answer.
        """
        try:
            return await self._send(method, path, body, content_type)
        except ApiError as error:
            if error.status != 401:
                raise
            # A rotated certificate or token: read the configuration again, once.
            self._configuration = await load_configuration(self._kubeconfig)
            old, self._session = self._session, open_session(self._configuration, CONNECTIONS)
            await old.close()
            return await self._send(method, path, body, content_type)

    async def _send(self, method: str, path: str, body: PatchBody | None, content_type: str) -> Json:
        headers = {"Accept": JSON, "User-Agent": FIELD_MANAGER}  # the server takes it for the field manager, too
        if body is not None:
            headers["Content-Type"] = content_type
        token = await authorization(self._configuration)
        if token:
            headers["Authorization"] = token
        status = "<error>"
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._session.request(
                    method, self._server + path, data=None if body is None else to_json(body), headers=headers
                ) as response,
            ):
                status = str(response.status)
                data = await response.read()
                if response.status < 300:
                    answer: Json = from_json(data)
                    return answer
                raise _error(response, data)
        except TimeoutError as error:
            raise Unavailable(f"the API server did not answer {method} {path} in {self._timeout:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the API server cannot be reached: {error}") from error
        finally:
            API_REQUESTS.labels(method, status).inc()


def _error(response: aiohttp.ClientResponse, data: bytes) -> ApiError:
    try:
        status = from_json(data)
        reason, message = status.get("reason", ""), status.get("message", "")
    except (ValueError, AttributeError):
        reason, message = "", data[:200].decode(errors="replace").strip()
    retry_after = response.headers.get("Retry-After", "")
    return from_response(
        response.status,
        reason,
        message or f"HTTP {response.status} {response.reason}",
        float(retry_after) if retry_after.isdigit() else None,
    )
