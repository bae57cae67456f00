"""The few calls that the supervisor and its kubelet make to the API server, straight over aiohttp.

Not the official client: the kubelet starts with the first pod in a tenth of a second, handles plain dicts and needs seven
calls, whereas importing the generated client alone takes longer than that.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from dalang_cli.dev.certificates import Certificate

Object = dict[str, Any]
"""A Kubernetes object as the API server sends it."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
FIELD_MANAGER = "dalang-dev"
WATCH_SECONDS = 300
CALL_TIMEOUT = aiohttp.ClientTimeout(total=30)


class ApiError(Exception):
    """The API server refused a call, or could not be reached (`status` 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        return self.status == 409


def tls_context(authority: Certificate, client: Certificate) -> ssl.SSLContext:
    """Return a context that trusts one authority and shows a client certificate."""
    context = ssl.create_default_context(cafile=str(authority.certificate_file))
    context.load_cert_chain(str(client.certificate_file), str(client.key_file))
    return context


class Api:
    """Calls to one API server with one identity."""

    def __init__(self, server: str, tls: ssl.SSLContext) -> None:
        self._server = server
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0))

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str) -> Object:
        return await self._call("GET", path)

    async def create(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: Object, content_type: str = MERGE_PATCH) -> Object:
        return await self._call("PATCH", path, body, content_type)

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply, taking over fields that others own."""
        return await self._call("PATCH", f"{path}?fieldManager={FIELD_MANAGER}&force=true", body, APPLY_PATCH)

    async def delete(self, path: str, options: Object) -> Object:
        return await self._call("DELETE", path, options)

    async def _call(self, method: str, path: str, body: Object | None = None, content_type: str = JSON) -> Object:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._session.request(
                method, self._server + path, data=data, headers=headers, timeout=CALL_TIMEOUT
            ) as response:
                content: Object = await response.json(content_type=None)
                if response.status >= 400:
                    raise ApiError(response.status, content.get("message") or str(response.reason))
                return content
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, str(error) or type(error).__name__) from error

    async def watch(self, path: str, resource_version: str) -> AsyncIterator[tuple[str, Object]]:
        """Yield `(type, object)` from a version on, until the server ends the watch.

        Raises:
            ApiError: among others with status 410, when the version is too old and the caller must list again.
        """
        query = (
            f"?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={resource_version}"
        )
        # The server sends a bookmark about every minute, so silence for two means a dead connection.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=130)
        try:
            async with self._session.get(self._server + path + query, timeout=timeout) as response:
                if response.status >= 400:
                    raise ApiError(response.status, await response.text())
                buffer = bytearray()
                async for chunk in response.content.iter_any():
                    buffer += chunk
                    *lines, rest = buffer.split(b"\n")
                    buffer = bytearray(rest)
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            raise ApiError(event["object"].get("code", 500), event["object"].get("message", ""))
                        yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, str(error) or type(error).__name__) from error


class Reflector:
    """Keeps a copy of all objects of one resource and tells of every change, across restarts of the API server.

    `changed` and `deleted` are called on the event loop with the new (or the last known) object. After a lost watch it
    lists again and reports the differences, deletions included: nothing depends on having seen each event.
    """

    def __init__(
        self, api: Api, path: str, changed: Callable[[Object], None], deleted: Callable[[Object], None]
    ) -> None:
        self._api = api
        self._path = path
        self._changed = changed
        self._deleted = deleted
        self.objects: dict[tuple[str, str], Object] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List and watch until cancelled."""
        delay = 0.05
        while True:
            try:
                version = await self._list()
                delay = 0.05
                while True:
                    version = await self._watch(version)
            except ApiError as error:
                if error.status != 410:
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 1.0)

    def learn(self, newest: Object) -> None:
        """Take a version that was read otherwise, unless a newer one is known."""
        known = self.objects.get(_key(newest))
        if known is None or int(known["metadata"]["resourceVersion"]) < int(newest["metadata"]["resourceVersion"]):
            self.objects[_key(newest)] = newest

    async def _list(self) -> str:
        result = await self._api.get(self._path)
        listed = {_key(each): each for each in result["items"]}
        for key, gone in list(self.objects.items()):
            if key not in listed or listed[key]["metadata"]["uid"] != gone["metadata"]["uid"]:
                del self.objects[key]
                self._deleted(gone)
        for key, each in listed.items():
            self.objects[key] = each
            self._changed(each)
        self.synced.set()
        return str(result["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        async for kind, each in self._api.watch(self._path, version):
            version = each["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            if kind == "DELETED":
                self.objects.pop(_key(each), None)
                self._deleted(each)
            else:
                self.objects[_key(each)] = each
                self._changed(each)
        return version


def _key(each: Object) -> tuple[str, str]:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]
