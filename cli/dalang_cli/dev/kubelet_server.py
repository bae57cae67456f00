"""The kubelet's HTTPS port: what the API server asks for `kubectl logs`. Nothing else; there is no exec into a local process.

Only the API server's own client certificate is let in: other certificates of the same authority belong to users, and what
those may read is for the API server to decide.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from dalang_cli.dev.certificates import Certificates
from dalang_cli.dev.logs import last_lines

API_SERVER_NAME = "kube-apiserver-kubelet-client"
FOLLOW_SECONDS = 0.1
NOT_SUPPORTED = (
    "dalang dev runs pods as local processes and only serves their logs; see `dalang dev status` for their pids\n"
)

FindLog = Callable[[str, str, str], Path | None]
"""Returns the log file of (namespace, pod, container), or None when there is no such container."""


class KubeletServer:
    """Serves the logs of containers until closed."""

    def __init__(self, find_log: FindLog, pki: Certificates) -> None:
        self._find_log = find_log
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.authority.certificate_file))
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_cert_chain(str(pki.server.certificate_file), str(pki.server.key_file))
        application = web.Application(middlewares=[_only_api_server])
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        application.router.add_route("*", "/{anything:.*}", _not_supported)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def start(self, port: int) -> None:
        """Listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls).start()

    async def close(self) -> None:
        """Stop listening and end what is followed."""
        await self._runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        log = self._find_log(where["namespace"], where["pod"], where["container"])
        if log is None:
            return web.Response(status=404, text=f"there is no container {where['container']} in pod {where['pod']}\n")
        tail = request.query.get("tailLines")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        content = log.read_bytes() if log.exists() else b""
        shown = last_lines(content.decode(errors="replace"), int(tail) if tail else None)
        await response.write(shown.encode())
        offset = len(content)
        while request.query.get("follow") == "true" and self._find_log(
            where["namespace"], where["pod"], where["container"]
        ):
            await asyncio.sleep(FOLLOW_SECONDS)
            more = _read_from(log, offset)
            offset += len(more)
            if more:
                await response.write(more)
        await response.write_eof()
        return response


def _read_from(log: Path, offset: int) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(offset)
        return file.read()


@web.middleware
async def _only_api_server(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
    certificate = request.get_extra_info("peercert") or {}
    names = {
        value for attributes in certificate.get("subject", ()) for name, value in attributes if name == "commonName"
    }
    if names != {API_SERVER_NAME}:
        raise web.HTTPForbidden(text="only the API server may ask\n")
    return await handler(request)  # type: ignore[misc, no-any-return] # aiohttp's Handler type is not public


async def _not_supported(request: web.Request) -> web.Response:
    return web.Response(status=501, text=NOT_SUPPORTED)
