"""The client of the API server, against an HTTP server of the test's own."""

import asyncio

from aiohttp import web
from dalang_operator.kube.client import CONNECTIONS, KubeClient
from dalang_operator.kube.resources import AGENT_RUNS
from kubernetes.aio.client import Configuration


async def test_a_burst_of_requests_shares_a_few_connections() -> None:
    at_once, most_at_once = 0, 0
    all_that_may_come = asyncio.Event()
    connections: set[asyncio.BaseTransport] = set()

    async def answer(request: web.Request) -> web.Response:
        nonlocal at_once, most_at_once
        assert request.transport is not None
        connections.add(request.transport)
        at_once += 1
        most_at_once = max(at_once, most_at_once)
        if at_once == CONNECTIONS:
            all_that_may_come.set()
        await all_that_may_come.wait()
        at_once -= 1
        return web.json_response({"metadata": {"name": request.match_info["name"]}})

    app = web.Application()
    app.router.add_get("/apis/dalang.dev/v1alpha1/namespaces/shop/agentruns/{name}", answer)
    server = web.AppRunner(app)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    kube = KubeClient(Configuration(host=f"http://127.0.0.1:{server.addresses[0][1]}"), None, timeout_seconds=10)
    names = [f"r{number}" for number in range(5 * CONNECTIONS)]

    got = await asyncio.gather(*(kube.get(AGENT_RUNS, "shop", name) for name in names))

    assert [run["metadata"]["name"] for run in got] == names
    assert most_at_once == len(connections) == CONNECTIONS
    await kube.close()
    await server.cleanup()
