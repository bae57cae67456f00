"""The whole system on real servers: `dalang dev` with its operator, and workers as pods.

Two control planes are started once, each when a test first needs it. `system` has the operator's own settings, so that no
short interval repairs what an event should have done. `neighbour` is impatient and does its work on the first one's
Temporal, as two clusters may.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import temporalio.api.enums.v1 as enums
import urllib3
from dalang_api import API_VERSION, GROUP, contract, process
from dalang_cli.dev.state import StateDirectory, current_snapshot
from kubernetes import config
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

Object = dict[str, Any]
Value = TypeVar("Value")

KINDS = {
    **{
        kind: (API_VERSION, f"{kind.lower()}s")
        for kind in ("Agent", "AgentApproval", "AgentModel", "AgentPool", "AgentRun", "AgentSchedule", "AgentSession")
    },
    **{kind: ("v1", f"{kind.lower()}s") for kind in ("ConfigMap", "Event", "Namespace", "Pod", "Secret")},
    "Deployment": ("apps/v1", "deployments"),
}
"""Of each kind its group and version, and its plural."""
TOOLS = Path(__file__).parent / "tools" / "shop.py"
OURS = ("DALANG_", "OPENAI_")
"""Beginnings of environment variables that would change what is under test."""


class Refused(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


AWAY = (urllib3.exceptions.HTTPError, OSError, Refused)
"""What a request to a server that is away, or comes back just now, ends with."""


def wait_for(what: str, look: Callable[[], Value | None], within: float = 30.0) -> Value:
    """Return what `look` finds as soon as it finds something; a server that is away has nothing yet."""
    deadline = time.monotonic() + within
    found: Value | Exception | None
    while True:
        try:
            found = look()
            if found:
                return found
        except AWAY as error:
            found = error
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}; last: {found!r}"
        time.sleep(0.03)


# ── Temporal and the model ─────────────────────────────────────────────────────────────────────────────────────────


class Temporal:
    """Temporal's side of the story. The client lives on a loop of its own, so that tests need not be async."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="temporal", daemon=True)
        self._thread.start()
        self.address = address
        self.client = self.do(Client.connect(address, data_converter=process.data_converter()))

    def do(self, call: Coroutine[Any, Any, Value]) -> Value:
        """Await something on the client's loop."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def workflows(self, query: str) -> dict[str, str]:
        """Return id and state of each execution that a query finds."""

        async def find() -> dict[str, str]:
            found = [each async for each in self.client.list_workflows(query)]
            states = {each.id: each.status.name if each.status else "" for each in found}
            assert len(states) == len(found), "a workflow id was used twice"
            return states

        return self.do(find())

    def of(self, prefix: str) -> dict[str, str]:
        """Return the runs' workflows whose ids begin so, with their states."""
        return self.workflows(f"WorkflowId STARTS_WITH '{prefix}' AND WorkflowType = '{contract.RUN_WORKFLOW}'")

    def state(self, workflow_id: str) -> str:
        """Return an execution's state, asked of the execution itself."""
        described = self.do(self.client.get_workflow_handle(workflow_id).describe())
        return described.status.name if described.status else ""

    def history(self, workflow_id: str) -> list[HistoryEvent]:
        """Return the events so far."""
        return list(self.do(self.client.get_workflow_handle(workflow_id).fetch_history()).events)

    def become(self, prefix: str, wanted: dict[str, str]) -> None:
        """Wait until the runs' workflows with such ids are these, in these states."""
        found: dict[str, str] = {}

        def are_wanted() -> bool:
            found.clear()
            found.update(self.of(prefix))
            return found == wanted

        with contextlib.suppress(AssertionError):
            wait_for("the workflows are as wanted", are_wanted, 10)
        assert found == wanted

    def terminate(self, workflow_id: str) -> None:
        self.do(self.client.get_workflow_handle(workflow_id).terminate("by hand"))


@dataclass(frozen=True)
class Completion:
    """An activity whose completion is recorded."""

    activity: str
    call: Object
    """Its input."""
    time: float


def completions(events: list[HistoryEvent]) -> list[Completion]:
    """Return the completed model and tool calls of a history, in order."""
    scheduled = {event.event_id: event.activity_task_scheduled_event_attributes for event in events}
    found = []
    for event in events:
        if event.event_type != enums.EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            continue
        asked = scheduled[event.activity_task_completed_event_attributes.scheduled_event_id]
        if asked.activity_type.name in {contract.MODEL_ACTIVITY, contract.TOOL_ACTIVITY}:
            call = json.loads(asked.input.payloads[0].data)
            found.append(Completion(asked.activity_type.name, call, event.event_time.ToNanoseconds() / 1e9))
    return found


class Model:
    """The scripted model of one control plane."""

    def __init__(self, url: str, http: urllib3.PoolManager) -> None:
        self.url = url
        self._http = http

    def script(self, name: str, *responses: Object, **more: Any) -> None:
        """Say what a model answers, from now on."""
        body = {"responses": list(responses), **more}
        answer = self._http.request("PUT", f"{self.url}/scripts/{name}", json=body)
        assert answer.status == 200, answer.data

    def requests(self, name: str | None = None) -> list[Object]:
        """Return what a model was asked, the first request first."""
        fields = {"model": name} if name else {}
        answer = self._http.request("GET", f"{self.url}/requests", fields=fields)
        return cast(list[Object], json.loads(answer.data)["requests"])


# ── A control plane ────────────────────────────────────────────────────────────────────────────────────────────────


class System:
    """One running control plane."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http = urllib3.PoolManager(maxsize=4, timeout=5.0, retries=False)
        self.environment: dict[str, str] = {}
        self.model: Model
        self.temporal: Temporal
        self.installation = ""
        self._host = ""
        self._api = self.http

    # ── Its life ──

    def up(self, *operator_arguments: str) -> None:
        """Start everything, or go on where `down` stopped."""
        arguments = [f"--operator-arg={argument}" for argument in operator_arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        with (self.directory.parent / f"{self.directory.name}.up").open("w+") as output:
            done = subprocess.run(
                self._dev("up", "--detach", *arguments), env=clean, stdout=output, stderr=output, check=False
            )
            output.seek(0)
            assert done.returncode == 0, output.read()
        exports = subprocess.run(self._dev("env"), check=True, capture_output=True, text=True).stdout
        shell = subprocess.run(["sh", "-c", f"{exports}\nenv -0"], check=True, capture_output=True, text=True)
        self.environment = dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)
        self.model = Model(self.environment["DALANG_MODEL_URL"], self.http)
        access: Any = config.new_client_from_config(self.environment["KUBECONFIG"]).configuration
        self._host = access.host
        self._api = urllib3.PoolManager(
            maxsize=4,
            timeout=5.0,
            retries=False,
            ca_certs=access.ssl_ca_cert,
            cert_file=access.cert_file,
            key_file=access.key_file,
        )
        self.installation = f"dalang-{self.request('GET', 'Namespace', None, 'kube-system')['metadata']['uid'][:8]}"

    def down(self) -> None:
        subprocess.run(self._dev("down"), check=True, capture_output=True)
        self.http.clear()
        self._api.clear()

    def _dev(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dalang_cli.main", "dev", *arguments, "--state-dir", str(self.directory)]

    # ── Its parts ──

    wait_for = staticmethod(wait_for)
    """A test cannot import from a conftest."""

    def parts(self) -> dict[str, Object]:
        """Return the parts by name, each with pid, ready and restarts."""
        snapshot = current_snapshot(StateDirectory(self.directory))
        return {part.name: vars(part) for part in snapshot.parts}

    def pid(self, part: str) -> int:
        """Return the process id of a part; of several that begin so there must be one."""
        (pid,) = [found["pid"] for name, found in self.parts().items() if name.startswith(part) and found["pid"]]
        return cast(int, pid)

    def signal(self, part: str, number: signal.Signals) -> int:
        """Send a part a signal; return the process id it had."""
        pid = self.pid(part)
        os.kill(pid, number)
        return pid

    def kill(self, part: str) -> int:
        return self.signal(part, signal.SIGKILL)

    def is_back(self, part: str, killed: int) -> bool:
        """Tell whether another process has taken the killed one's place and is ready."""
        found = [each for name, each in self.parts().items() if name.startswith(part)]
        return any(each["ready"] and each["pid"] not in {None, killed} for each in found)

    def address(self, port: str) -> str:
        return current_snapshot(StateDirectory(self.directory)).address(port)

    def logs(self) -> dict[Path, str]:
        """Return every log: the servers' and the workers'."""
        return {path: path.read_text(errors="replace") for path in (self.directory / "logs").rglob("*.log")}

    def get(self, url: str) -> tuple[int, str]:
        """Return status and body of a URL."""
        answer = self.http.request("GET", url)
        return answer.status, answer.data.decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return one of the operator's metrics; 0 where it has not been counted yet."""
        _, text = self.get(f"http://{self.address('operator')}/metrics")
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))

    # ── Kubernetes ──

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl; return what it printed, errors included unless they are failures of the test."""
        done = subprocess.run(
            ["kubectl", *arguments], env=self.environment, input=stdin, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr

    def request(
        self,
        method: str,
        kind: str,
        namespace: str | None,
        name: str = "",
        body: Object | None = None,
        query: str = "",
        user: str | None = None,
    ) -> Object:
        """Ask the API server, as the administrator or in a user's name.

        Raises:
            Refused: It said no.
        """
        version, plural = KINDS[kind]
        path = f"{'api' if version == 'v1' else 'apis'}/{version}" + (f"/namespaces/{namespace}" if namespace else "")
        media = "application/merge-patch+json" if method == "PATCH" else "application/json"
        url = f"{self._host}/{path}/{plural}{f'/{name}' if name else ''}?fieldValidation=Strict&{query}"
        content = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": media, **({"Impersonate-User": user} if user else {})}
        answer = self._api.request(method, url, body=content, headers=headers)
        found: Object = json.loads(answer.data)
        if answer.status >= 300:
            raise Refused(answer.status, found["message"])
        return found

    def api_requests(self, *, verbs: tuple[str, ...], group: str = GROUP, **labels: str) -> int:
        """Return how many requests the API server has counted: of these verbs, to our group."""
        text = self.kubectl("get", "--raw", "/metrics")
        wanted = [f'{name}="{value}"' for name, value in {"group": group, **labels}.items()]
        lines = [
            line
            for line in text.splitlines()
            if line.startswith("apiserver_request_total{")
            and all(label in line for label in wanted)
            and any(f'verb="{verb}"' in line for verb in verbs)
        ]
        return int(sum(float(line.rpartition(" ")[2]) for line in lines))

    def open_shop(self, folder: Path, name: str | None = None) -> "Shop":
        """Create a namespace, with a folder in which its tools leave word."""
        metadata = {"name": name} if name else {"generateName": "shop-"}
        created = self.request("POST", "Namespace", None, body={"metadata": metadata})
        return Shop(self, created["metadata"]["name"], folder)


# ── A namespace ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Run:
    """An AgentRun that was created."""

    shop: "Shop"
    name: str
    uid: str

    @property
    def workflow_id(self) -> str:
        return contract.run_workflow_id(self.shop.system.installation, self.shop.namespace, self.name, self.uid)

    @property
    def object(self) -> Object:
        return self.shop.get("AgentRun", self.name)

    @property
    def status(self) -> Object:
        return cast(Object, self.object["status"])

    @property
    def conditions(self) -> dict[str, Object]:
        return {each["type"]: each for each in self.status["conditions"]}

    @property
    def succeeded(self) -> Object:
        """The condition that scripts read."""
        return self.conditions["Succeeded"]

    def waits(self, reason: str, within: float = 30.0) -> str:
        """Wait until the condition has this reason; return its message."""

        def message() -> str:
            found = self.succeeded
            return str(found["message"]) if found["reason"] == reason else ""

        return wait_for(f"{self.name} is {reason}", message, within)

    def ended(self, within: float = 60.0) -> Object:
        """Wait for the end; return the status."""
        return wait_for(
            f"{self.name} has ended", lambda: self.status if self.status.get("finishedAt") else None, within
        )

    def answered(self, within: float = 60.0) -> Object:
        """Wait for the end, which must be good; return the status."""
        status = self.ended(within)
        assert status["phase"] == "Succeeded", status
        assert {kind: each["status"] for kind, each in self.conditions.items()} == {
            "Ready": "True",
            "Succeeded": "True",
        }
        assert status["observedGeneration"] == self.object["metadata"]["generation"]
        return status

    @property
    def asked(self) -> list[Object]:
        """What its model was asked; of a run with a model of its own."""
        return self.shop.system.model.requests(self.shop.model_name(self.name))

    def is_asked(self, turn: int) -> bool:
        """Tell whether the model has been asked for this turn."""
        return any(turn_of(request) == turn for request in self.asked)

    @property
    def events(self) -> list[HistoryEvent]:
        return self.shop.system.temporal.history(self.workflow_id)

    def approvals(self) -> list[Object]:
        """Return its AgentApprovals, the first call's first."""
        found = self.shop.all("AgentApproval", f"fieldSelector=spec.runRef.name={self.name}")
        return sorted(found, key=lambda each: (each["spec"]["requestedAt"], each["spec"]["arguments"], uid_of(each)))

    def asks(self, count: int = 1, within: float = 30.0) -> list[str]:
        """Wait until it says that it waits for so many humans, and only for them; return the names of the AgentApprovals."""

        def pending() -> list[str]:
            status = self.status
            names = [each["name"] for each in status.get("pendingApprovals", ())]
            return names if len(names) == count and status["phase"] == "AwaitingApproval" else []

        return wait_for(f"{self.name} awaits {count} approvals", pending, within)

    def ask(self, within: float = 30.0) -> str:
        """Wait until it waits for one human; return the name of the AgentApproval."""
        (name,) = self.asks(1, within)
        return name

    def cancel(self) -> None:
        self.shop.patch("AgentRun", self.name, {"spec": {"cancel": True}})

    def delete(self) -> None:
        self.shop.delete("AgentRun", self.name)

    def check_no_call_was_repeated(self) -> None:
        """No model or tool call begins after its completion was recorded. All clocks are this machine's."""
        done = completions(self.events)
        model = {each.call["turn"]: each.time for each in done if each.activity == contract.MODEL_ACTIVITY}
        tools = {each.call["arguments"]: each.time for each in done if each.activity == contract.TOOL_ACTIVITY}
        for request in self.asked:
            assert request["time"] <= model[turn_of(request)], f"{self.name}: model call {turn_of(request)} again"
        for call in self.shop.calls:
            for arguments, recorded in tools.items():
                if json.loads(arguments).get("key") == call["key"]:
                    assert call["time"] <= recorded, f"{self.name}: tool call {call['key']} again"


def uid_of(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def turn_of(request: Object) -> int:
    """Return the number of the turn a request to the model is for."""
    return 1 + [message["role"] for message in request["body"]["messages"]].count("assistant")


@dataclass
class Shop:
    """A namespace and what a test puts into it."""

    system: System
    namespace: str
    folder: Path
    runs: list[Run] = field(default_factory=list)

    # ── Objects ──

    def create(
        self, kind: str, name: str, spec: Object | None = None, *, metadata: Object | None = None, **more: Any
    ) -> Object:
        body = {
            "apiVersion": KINDS[kind][0],
            "kind": kind,
            "metadata": {"name": name, **(metadata or {})},
            **({} if spec is None else {"spec": spec}),
            **more,
        }
        return self.system.request("POST", kind, self.namespace, body=body)

    def get(self, kind: str, name: str) -> Object:
        return self.system.request("GET", kind, self.namespace, name)

    def takes_runs(self) -> bool:
        """Whether runs can be created. A server that has just started refuses them until admission has seen their kind."""
        spec = {"agentRef": {"name": "nobody"}, "input": "hi"}
        body = {"apiVersion": KINDS["AgentRun"][0], "kind": "AgentRun", "metadata": {"name": "dry"}, "spec": spec}
        self.system.request("POST", "AgentRun", self.namespace, body=body, query="dryRun=All")
        return True

    def all(self, kind: str, query: str = "") -> list[Object]:
        found: list[Object] = self.system.request("GET", kind, self.namespace, query=query)["items"]
        return found

    def find(self, kind: str, name: str) -> Object | None:
        """Return an object, or None where there is none."""
        try:
            return self.get(kind, name)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def patch(self, kind: str, name: str, body: Object, user: str | None = None) -> Object:
        return self.system.request("PATCH", kind, self.namespace, name, body, user=user)

    def delete(self, kind: str, name: str) -> None:
        self.system.request("DELETE", kind, self.namespace, name)

    def put(self, kind: str, name: str, **more: Any) -> None:
        """Create a Secret or a ConfigMap (one that is watched), or change it."""
        if self.find(kind, name):
            self.patch(kind, name, more)
        else:
            self.create(kind, name, metadata={"labels": {"dalang.dev/tools": ""}}, **more)

    def condition(self, kind: str, name: str, condition: str = "Ready") -> Object:
        found = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((each for each in found if each["type"] == condition), {"status": "", "reason": "", "message": ""})

    def waits(self, kind: str, name: str, reason: str, condition: str = "Ready", within: float = 30.0) -> str:
        """Wait until an object's condition has this reason; return the message."""

        def message() -> str:
            found = self.condition(kind, name, condition)
            return cast(str, found["message"]) if found["reason"] == reason else ""

        return wait_for(f"{kind} {name} is {reason}", message, within)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.system.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def deployment(self, pool: str = "default") -> Object:
        return self.get("Deployment", f"dalang-{pool}")

    def replicas(self, pool: str = "default") -> int:
        """Return how many workers a pool's Deployment asks for."""
        replicas: int = self.deployment(pool)["spec"]["replicas"]
        return replicas

    def scale(self, replicas: int, pool: str = "default") -> None:
        """Scale a pool's Deployment as a person might."""
        self.patch("Deployment", f"dalang-{pool}", {"spec": {"replicas": replicas}})

    def pods(self, pool: str = "default") -> list[Object]:
        """Return a pool's pods that are not about to go."""
        found = self.all("Pod", f"labelSelector=dalang.dev/pool={pool}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def worker(self, pool: str = "default") -> str:
        """Return what the names of a pool's workers begin with among the parts."""
        return f"worker-{self.namespace}-dalang-{pool}-"

    # ── Ours ──

    def pool(self, name: str = "default", *, tools: dict[str, str] | None = None, **spec: Any) -> None:
        """Create a pool, with the tools of tools/shop.py or with other modules."""
        modules = {"shop.py": TOOLS.read_text()} if tools is None else tools
        self.put("ConfigMap", f"{name}-tools", data={"folder.txt": str(self.folder), **modules})
        spec = {
            "tools": [module.removesuffix(".py") for module in modules],
            "toolsFrom": [{"configMapRef": {"name": f"{name}-tools"}}],
            **spec,
        }
        self.create("AgentPool", name, spec)

    def model_name(self, name: str) -> str:
        """Return under which name the scripted model knows the AgentModel of this name."""
        return f"{self.namespace}-{name}"

    def model(self, name: str, *responses: Object, spec: Object | None = None, **script: Any) -> None:
        """Create an AgentModel and say what it answers."""
        self.script(name, *responses, **script)
        endpoint = {"baseURL": f"{self.system.model.url}/v1"}
        known = {"provider": "OpenAI", "name": self.model_name(name), "openAI": endpoint}
        self.create("AgentModel", name, {**known, **(spec or {})})

    def script(self, name: str, *responses: Object, **script: Any) -> None:
        """Say what an AgentModel answers, from now on."""
        self.system.model.script(self.model_name(name), *responses, **script)

    def agent(
        self, name: str, *, model: str | None = None, tools: tuple[str, ...] = (), pool: str | None = None, **spec: Any
    ) -> None:
        bound = [{"name": tool, "function": {}} for tool in tools]
        spec = {"modelRef": {"name": model or name}, "poolRef": {"name": pool or "default"}, "tools": bound, **spec}
        self.create("Agent", name, spec)

    def run(self, name: str, *, agent: str | None = None, metadata: Object | None = None, **spec: Any) -> Run:
        spec = {"agentRef": {"name": agent or name}, "input": "Do it.", **spec}
        created = self.create("AgentRun", name, spec, metadata=metadata)
        run = Run(self, created["metadata"]["name"], created["metadata"]["uid"])
        self.runs.append(run)
        return run

    def adopt(self, name: str) -> Run:
        """Return a run that somebody else has created."""
        run = Run(self, name, self.get("AgentRun", name)["metadata"]["uid"])
        self.runs.append(run)
        return run

    def task(
        self,
        name: str,
        *responses: Object,
        tools: tuple[str, ...] = (),
        pool: str | None = None,
        model: Object | None = None,
        **script: Any,
    ) -> Run:
        """Create a run with an agent and a model of its own, all of one name."""
        self.model(name, *responses, spec=model, **script)
        self.agent(name, tools=tools, pool=pool)
        return self.run(name)

    # ── Approvals ──

    def allow(self, user: str, *rules: Object) -> None:
        """Give a user rights in this namespace, beside those to read and patch AgentApprovals."""
        group, named = "rbac.authorization.k8s.io", {"name": user, "namespace": self.namespace}
        patches = {"apiGroups": [GROUP], "resources": ["agentapprovals"], "verbs": ["get", "list", "patch"]}
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": named, "rules": [patches, *rules]}
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }
        self.kubectl(
            "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]})
        )

    def decide(self, name: str, decision: str = "Approve", *, by: str = "bob", **more: Any) -> float:
        """Decide an AgentApproval; return when that was begun."""
        begun = time.time()
        self.patch("AgentApproval", name, {"spec": {"decision": decision, **more}}, user=by)
        return begun

    def becomes(self, name: str, state: str, within: float = 30.0) -> Object:
        """Wait until an AgentApproval is in this state; return it."""

        def found() -> Object | None:
            approval = self.get("AgentApproval", name)
            return approval if approval["status"]["state"] == state else None

        return wait_for(f"AgentApproval {name} is {state}", found, within)

    # ── What its tools did ──

    @property
    def calls(self) -> list[Object]:
        """Return the calls its tools have noted."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls_of(self, key: str) -> list[Object]:
        return [call for call in self.calls if call["key"] == key]

    def is_called(self, key: str) -> bool:
        return any(call["key"] == key for call in self.calls)

    def let_go(self, key: str) -> None:
        """Let the tool `hold` end."""
        (self.folder / f"go-{key}").touch()

    def close(self) -> None:
        """Have everything in it deleted."""
        for call in self.calls:
            self.let_go(call["key"])
        with contextlib.suppress(Refused):  # the test has done it
            self.system.request("DELETE", "Namespace", None, self.namespace)


# ── Fixtures ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A control plane with the operator's own settings."""
    made = System(tmp_path_factory.mktemp("system"))
    try:
        made.up()
        made.temporal = Temporal(made.environment["TEMPORAL_ADDRESS"])
        yield made
        made.temporal.close()
    finally:
        made.down()


@pytest.fixture(scope="session")
def neighbour(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A second one on the Temporal server of the first, which sweeps every second and resyncs every three."""
    made = System(tmp_path_factory.mktemp("neighbour"))
    made.temporal = system.temporal
    try:
        made.up(f"--temporal-address={system.temporal.address}", "--sweep-interval=1s", "--resync-interval=3s")
        yield made
    finally:
        made.down()


@pytest.fixture
def shop(system: System, tmp_path: Path) -> Iterator[Shop]:
    """A namespace of the test's own."""
    opened = system.open_shop(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def mall(system: System, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A namespace that all tests share who disturb nobody, each under names of its own: one worker serves them."""
    opened = system.open_shop(tmp_path_factory.mktemp("mall"), "mall")
    opened.pool()
    return opened


@pytest.fixture(scope="session")
def annex(neighbour: System, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Such a namespace of the neighbour's, of the very same name."""
    opened = neighbour.open_shop(tmp_path_factory.mktemp("annex"), "mall")
    opened.pool()
    return opened
