"""No secret's value is shown to anybody but those it is for (DESIGN.md §4), whatever goes wrong and whoever repeats it.

Every place that takes a Secret is given a canary of its own. All cases run together; then everything that Temporal,
Kubernetes, the logs and the metrics tell is searched for them. So that the search is known to find something, canaries of
another kind are planted in a run's input.
"""

import base64
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import urllib3
from dalang_api import contract
from temporalio.client import WorkflowQueryFailedError

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]

DONE = {"text": "Done."}
SOON = {"timeout": "9s"}
AWAY = "http://127.0.0.1:9"
PARROT = Path(__file__).parent / "tools" / "parrot_server.py"
WAYS = ("text", "json", "object", "resource", "error", "log")
"""The ways in which the parrot repeats what it was given."""
SPILL = """
import os

from dalang import tool


@tool
def spill() -> str:
    \"\"\"Raise with all that the worker's environment holds.\"\"\"
    try:
        raise KeyError(repr(dict(os.environ)))
    except KeyError as error:
        raise RuntimeError(repr(dict(os.environ))) from error
"""


# ── Canaries ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Canary:
    """A secret value that nobody could mistake for another. The core is hexadecimal, so no encoding of text changes it."""

    before: str = "sk-proj-"
    after: str = ""
    core: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def value(self) -> str:
        return f"{self.before}{self.core}{self.after}"

    @property
    def forms(self) -> list[bytes]:
        """The core as it is, also within JSON, a URL or repr(); and as base64 of any text around it shows it."""
        core = self.core.encode()
        # Each byte before it shifts the core by 8 of 6 bits; the characters at either end are of what is around it, too.
        shifted = [base64.b64encode(b" " * shift + core)[shift and shift + 1 : -4] for shift in range(3)]
        return [core, self.core[::-1].encode(), core.hex().encode(), *shifted]

    def is_in(self, text: bytes) -> bool:
        return any(form in text for form in self.forms)


AWKWARD = '+/="\\&%41'
"""What JSON, URLs and repr() write otherwise, and a header may hold."""


def canaries() -> dict[str, Canary]:
    """Return a canary for each place that takes a Secret."""
    keys = {name: Canary() for name in ("openai", "azure", "anthropic", "qdrant", "token", "refused")}
    return keys | {name: Canary("p", AWKWARD) for name in ("awkward", "header", "env")}


# ── Servers that are given them ────────────────────────────────────────────────────────────────────────────────────


class Gateway(ThreadingHTTPServer):
    """Stands before the scripted model, notes all it is given, and elsewhere refuses with all it is given."""

    daemon_threads = True

    def __init__(self, model_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model_url = model_url
        self.model = urllib3.PoolManager(maxsize=16, retries=False)
        self.given: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


PASSED_ON = ("Content-Type", "Retry-After")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        self._refuse()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.given.append(f"{self.path}\n{self.headers}".encode())
        if self.path.startswith(("/collections", "/mcp")):
            self._refuse()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        answer = self.server.model.request("POST", f"{self.server.model_url}{self.path}", body=body, headers=headers)
        self._answer(answer.status, answer.data, {name: answer.headers.get(name, "") for name in PASSED_ON})

    def _refuse(self) -> None:
        said = f"I do not know {dict(self.headers)}"
        content = {"status": {"error": said}, "error": {"code": -32600, "message": said}, "jsonrpc": "2.0", "id": None}
        self._answer(401, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def gateway(model_url: str) -> Iterator[Gateway]:
    with Gateway(model_url) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.model.clear()


@contextmanager
def parrot(folder: Path) -> Iterator[str]:
    """Yield the URL of a parrot over HTTP."""
    command = [sys.executable, "-W", "ignore", str(PARROT), "remote", "http", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()


# ── What uses them ─────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(name: str) -> Object:
    return {"secretKeyRef": {"name": "canaries", "key": name}}


def models(url: str) -> dict[str, Object]:
    """Return the spec of an AgentModel of each provider, but for its name and its key."""
    return {
        "openai": {"provider": "OpenAI", "openAI": {"baseURL": f"{url}/v1"}},
        "azure": {"provider": "AzureOpenAI", "azureOpenAI": {"endpoint": url, "apiVersion": "2025-04-01-preview"}},
        "anthropic": {"provider": "Anthropic", "anthropic": {"baseURL": f"{url}/anthropic"}},
    }


def make_model(
    shop: "Shop", url: str, provider: str, name: str, *responses: Object, key: str = "", **script: Any
) -> None:
    known = shop.model_name(name)
    shop.script(name, *responses, **script)
    spec = {**models(url)[provider], "name": known, "auth": {"apiKey": key_of(key or provider)}}
    if provider == "azure":
        spec["azureOpenAI"] = {**spec["azureOpenAI"], "deployment": known}
    shop.create("AgentModel", name, spec)


def make_pool(shop: "Shop", url: str, parrot_url: str) -> None:
    def refuser(address: str) -> Object:
        headers = [{"name": "X-Refused", "valueFrom": key_of("awkward")}]
        return {"streamableHTTP": {"url": address, "headers": headers, "bearerToken": key_of("refused")}}

    def retriever(name: str, address: str) -> Object:
        of = {"collection": "handbook", "apiKey": key_of("qdrant"), "embedding": {"modelRef": {"name": "openai-plain"}}}
        return {"name": name, "qdrant": {"url": address, **of}}

    local = {"command": sys.executable, "args": ["-W", "ignore", str(PARROT), "local", "stdio", str(shop.folder)]}
    headers = [{"name": "X-Canary", "valueFrom": key_of("header")}]
    shop.pool(
        tools={"shop.py": (PARROT.parent / "shop.py").read_text(), "spill.py": SPILL},
        mcpServers=[
            {
                "name": "remote",
                "streamableHTTP": {"url": parrot_url, "headers": headers, "bearerToken": key_of("token")},
            },
            {"name": "local", "stdio": {**local, "env": [{"name": "CANARY", "valueFrom": key_of("env")}]}},
            {"name": "refusing", **refuser(f"{url}/mcp")},
            {"name": "dead", **refuser(f"{AWAY}/mcp")},
            {"name": "broken", "stdio": {"command": "false", "env": [{"name": "CANARY", "valueFrom": key_of("env")}]}},
        ],
        retrievers=[retriever("refused", url), retriever("away", AWAY)],
        scaling={"minReplicas": 1},
    )
    shop.waits("AgentPool", "default", "Available")  # so that no run waits for its worker


def calls(*tools: str, **arguments: Any) -> Object:
    return {"toolCalls": [{"name": tool, "arguments": arguments} for tool in tools]}


class Cases:
    """Runs of every kind, begun together."""

    def __init__(self, shop: "Shop", url: str, kept: dict[str, Canary], planted: str) -> None:
        self.shop, self.url, self.kept, self.planted = shop, url, kept, planted
        self.failing: list[Run] = []
        self.answering: list[Run] = []
        self._start_models()
        self._start_tools()

    def _start_models(self) -> None:
        for provider in models(""):
            said = f"Incorrect key provided: {self.kept[provider].value}"
            refused = {"status": 401, "message": said}
            odd = {"status": 401, "body": {"errors": [{"why": f"key {self.kept['awkward'].value}?"}]}}
            busy = {"status": 503, "message": said, "headers": {"Retry-After": "30"}}  # a long wait is told at once
            self.answering.append(self._run(provider, "plain", DONE))
            self.failing += [
                self._run(provider, "refused", alwaysError=refused),
                self._run(provider, "odd", key="awkward", alwaysError=odd),
                self._run(provider, "busy", alwaysError=busy, limits=SOON),
                self._run(provider, "misnamed", DONE, key="no-such-key", limits=SOON),
            ]
        broken = {
            "text": "a b",
            "errorMidStream": {"type": "authentication_error", "message": self.kept["anthropic"].value},
        }
        self.failing.append(self._run("anthropic", "breaks", broken))
        self.answering.append(self._run("openai", "planted", DONE, input=self.planted))

    def _start_tools(self) -> None:
        repeated = [f"{server}_{way}" for server in ("remote", "local") for way in WAYS]
        servers = ("remote", "local", "refusing", "dead", "broken")
        bound = [{"name": server, "mcp": {"server": server}} for server in servers]
        self.repeating = self._run("anthropic", "repeats", calls(*repeated), DONE, tools=bound)
        spills = calls("spill", "explode", key="spilt")
        functions: list[Object] = [{"name": name, "function": {}} for name in ("spill", "explode", "hold")]
        self.spilling = self._run("azure", "spills", spills, {"text": "{{last_tool}}"}, tools=functions)
        self.killed = self._run("anthropic", "killed", calls("hold", key="killed"), DONE, tools=functions)
        self.answering += [self.repeating, self.spilling, self.killed]

    def _start_retrievals(self) -> None:
        self.retrieving = [
            self._run("openai", f"asks-{name}", DONE, retrieval={"retriever": name}) for name in ("refused", "away")
        ]
        self.answering += self.retrieving

    def _run(
        self,
        provider: str,
        name: str,
        *responses: Object,
        key: str = "",
        limits: Object | None = None,
        input: str = "Do it.",
        alwaysError: Object | None = None,
        **agent: Any,
    ) -> "Run":
        name = f"{provider}-{name}"
        script = {"alwaysError": alwaysError} if alwaysError else {}
        make_model(self.shop, self.url, provider, name, *responses, key=key, **script)
        self.shop.create("Agent", name, {"modelRef": {"name": name}, **agent})
        return self.shop.run(name, input=input, limits=limits or {})

    def end(self) -> None:
        """Kill the worker while one run waits for its tool, and wait until all have ended."""
        system = self.shop.system
        for run in (*self.failing, *self.answering):
            if run is not self.killed:
                run.ended()
        self._start_retrievals()  # by themselves, since they have a deadline that a busy machine may miss
        for run in self.retrieving:
            run.ended()
        system.wait_for("the tool holds", lambda: self.shop.is_called("killed"))
        system.kill(self.shop.worker())
        self.shop.let_go("killed")
        self.killed.ended()


# ── Where they are looked for ──────────────────────────────────────────────────────────────────────────────────────


def histories(system: "System") -> list[tuple[str, bytes]]:
    """Return all that Temporal keeps of every workflow of the installation; JSON within payloads is as it was sent."""
    client = system.temporal.client

    async def read() -> list[tuple[str, bytes]]:
        found = []
        async for execution in client.list_workflows(f"WorkflowId STARTS_WITH '{system.installation}'"):
            handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
            events = (await handle.fetch_history()).events
            found += [(f"event {each.event_id} of {execution.id}", each.SerializeToString()) for each in events]
            description = (await handle.describe()).raw_description
            found.append((f"description of {execution.id}", description.SerializeToString()))
        return found

    return system.temporal.do(read())


def queries(system: "System", runs: "list[Run]") -> Iterator[tuple[str, bytes]]:
    request = contract.TranscriptRequest(thread="main", start=0, count=100)
    for run in runs:
        handle = system.temporal.client.get_workflow_handle(run.workflow_id)
        for name, arguments in ((contract.TRANSCRIPT_QUERY, [request]), (contract.SNAPSHOT_QUERY, [])):
            try:
                answer: object = system.temporal.do(handle.query(name, args=arguments))
            except WorkflowQueryFailedError as error:
                answer = error
            yield f"query {name} of {run.name}", repr(answer).encode()


def objects(shop: "Shop") -> Iterator[tuple[str, bytes]]:
    """Yield every object in the namespace, Secrets excepted, and what kubectl shows of them."""
    listed = shop.system.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in listed if kind not in ("secrets", "endpoints")]  # the latter are endpointslices
    assert {"agentruns.dalang.dev", "pods", "events", "deployments.apps", "replicasets.apps", "configmaps"} <= set(
        kinds
    )
    found = shop.kubectl("get", ",".join(kinds), "-o", "json", "--show-managed-fields")
    for item in json.loads(found)["items"]:
        yield f"{item['kind']} {item['metadata']['name']}", json.dumps(item).encode()
    yield "kubectl describe", shop.kubectl("describe", "agents,agentruns,agentmodels,agentpools,pods").encode()


def files(system: "System") -> Iterator[tuple[str, bytes]]:
    """Yield logs and Temporal's database; etcd and the pods' volumes are where Secrets belong."""
    for path in system.directory.rglob("*"):
        if path.is_file() and path.relative_to(system.directory).parts[0] not in ("etcd", "pods", "pki"):
            yield str(path), path.read_bytes()


def requests(shop: "Shop") -> Iterator[tuple[str, bytes]]:
    """Yield what models were sent, which is not for a secret either; their keys come as headers."""
    for request in shop.system.model.requests():
        if request["model"].startswith(shop.namespace):
            yield f"request {request['model']}", json.dumps(request).encode()


def metrics(shop: "Shop") -> Iterator[tuple[str, bytes]]:
    (pod,) = shop.pods()
    addresses = [
        shop.system.address("operator"),
        f"{pod['status']['podIP']}:8080",
        shop.system.address("temporal-metrics"),
    ]
    for address in addresses:
        status, text = shop.system.get(f"http://{address}/metrics")
        assert status == 200
        yield f"metrics of {address}", text.encode()


def test_no_secret_is_shown_to_anybody_it_is_not_for(system: "System", shop: "Shop") -> None:
    kept = canaries()
    planted = [Canary("planted "), Canary("planted:"), Canary("planted/", AWKWARD), Canary("planted")]
    raw, encoded, awkward, odd = (canary.value for canary in planted)
    text = " ".join(
        [raw, base64.b64encode(f"Basic {encoded}".encode()).decode(), quote(awkward, safe=""), json.dumps({"a": odd})]
    )
    shop.put("Secret", "canaries", stringData={name: canary.value for name, canary in kept.items()})
    with parrot(shop.folder) as parrot_url, gateway(system.model.url) as server:
        make_pool(shop, server.url, parrot_url)
        cases = Cases(shop, server.url, kept, text)
        cases.end()
        given = b"\n".join(server.given)
        assert [
            name
            for name in ("openai", "azure", "anthropic", "qdrant", "refused", "awkward")
            if kept[name].value.encode() not in given
        ] == []
        places = [
            *(*histories(system), *queries(system, shop.runs), *objects(shop)),
            *(*files(system), *metrics(shop), *requests(shop)),
        ]
    remote, local = ((shop.folder / f"parrot-{name}").read_text() for name in ("remote", "local"))
    assert kept["token"].value in remote
    assert repr(kept["header"].value)[1:-1] in remote
    assert repr(kept["env"].value)[1:-1] in local

    def finds(canary: Canary) -> list[str]:
        return [where for where, text in places if canary.is_in(text)]

    with ThreadPoolExecutor(2) as pool:
        shown = dict(zip(kept, pool.map(finds, kept.values()), strict=True))
        found = list(pool.map(finds, planted))
    for wheres in found:
        assert {"event", "query", "AgentRun", "request"} <= {where.split()[0] for where in wheres}
        assert any(where.endswith(("temporal.db", "temporal.db-wal")) for where in wheres)
    told = [f"{name}: {where}" for name, wheres in shown.items() for where in wheres]
    assert not told, "\n".join(told)
    check_what_was_told(cases)


def check_what_was_told(cases: Cases) -> None:
    """Each repeated what it was given, which is marked."""
    told = {run.name: run.succeeded["message"] for run in cases.failing if "misnamed" not in run.name}
    assert {name: text for name, text in told.items() if "[key]" not in text} == {}
    for run in cases.answering:
        assert run.status["phase"] == "Succeeded", run.status
