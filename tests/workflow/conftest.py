"""A real Temporal server and a scripted model, started once; and for each test an installation of its own on them.

The worker is the one that pods run, in the test's process or, where a test kills it, in one of its own. The reporter is a
Temporal worker here that notes what it is told.
"""

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from dalang_api import contract, process
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalRequest,
    Decision,
    Message,
    ModelCall,
    ModelReply,
    ModelSnapshot,
    ReportResult,
    RunInput,
    RunReport,
    SecretKey,
    Snapshot,
    TextPart,
    ToolBinding,
)
from dalang_cli.dev.model_server import ModelServer
from dalang_worker.main import serve
from dalang_worker.settings import WorkerSettings
from dalang_worker.tools.loader import load_tools
from dalang_worker.workflows.run import AgentRunWorkflow
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

Json = dict[str, Any]

TOOLS_PATH = Path(__file__).parent / "tools"
TEMPORAL = Path(sys.executable).parent / "temporal"
QUICK_SERVER = [
    # The dev server looks for work 20 times a second, as if it shared a disk with thousands.
    argument
    for queue in ("transfer", "timer", "visibility", "outbound")
    for argument in ("--dynamic-config-value", f"history.{queue}ProcessorMaxPollRPS=5000")
]


@pytest.fixture(scope="session")
def temporal_address() -> Iterator[str]:
    environment = asyncio.run(
        WorkflowEnvironment.start_local(dev_server_existing_path=str(TEMPORAL), dev_server_extra_args=QUICK_SERVER)
    )
    yield environment.client.service_client.config.target_host
    asyncio.run(environment.shutdown())


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """The scripted model, on a loop in a thread of its own, so that a test that blocks does not hold it up."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="model-server", daemon=True)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(_serve_model(0), loop).result()
    yield f"http://127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _serve_model(port: int) -> tuple[web.AppRunner, int]:
    """Start a scripted model; it listens on the port that is returned."""
    runner = web.AppRunner(
        ModelServer().application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, runner.addresses[0][1]


@pytest.fixture
def serve_model() -> Callable[[int], Awaitable[tuple[web.AppRunner, int]]]:
    """Another scripted model, on a port of one's choice."""
    return _serve_model


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="session", autouse=True)
def run_tools() -> None:
    """The tools of this folder, loaded as a worker loads them."""
    catalogue = load_tools(["run_tools"], TOOLS_PATH)
    assert catalogue.failures == []


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    outcome: str
    """Succeeded, Failed or Cancelled: what Temporal says of the workflow."""
    report: RunReport
    """The last one that the reporter was given."""


@dataclass
class Run:
    """A run that was started."""

    handle: WorkflowHandle[Any, RunReport]
    model: str
    world: "World"

    @property
    def reports(self) -> list[RunReport]:
        """What the reporter was told, in the order in which it was."""
        return self.world.reported.setdefault(self.handle.id, [])

    @property
    def last_report(self) -> RunReport:
        """The newest report: one may overtake another on its way."""
        return max(self.reports, key=lambda report: report.seq)

    async def end(self) -> Ended:
        """Wait for the end; the workflow's result or failure must be the last report, without its messages."""
        try:
            result = await self.handle.result()
        except WorkflowFailureError as error:
            cause = error.cause
            if not isinstance(cause, ApplicationError):
                return Ended(type(cause).__name__.removesuffix("Error"), self.last_report)
            converter = process.data_converter().payload_converter
            (told,) = converter.from_payloads(converter.to_payloads(cause.details), [RunReport])
            assert told == self.last_report.model_copy(update={"messages": []})
            assert (cause.type, cause.message) == (told.reason, told.message)
            return Ended("Failed", self.last_report)
        assert result == self.last_report.model_copy(update={"messages": []})
        return Ended("Succeeded", self.last_report)

    async def pending(self, count: int = 1) -> list[ApprovalRequest]:
        """Wait until so many approvals are pending, as the last report tells, and return them."""
        last: list[ApprovalRequest] = []

        def are_there() -> bool:
            nonlocal last
            last = (self.last_report.pending_approvals or []) if self.reports else []
            return len(last) == count

        await self.world.eventually(are_there)
        return last

    async def decide(self, request: ApprovalRequest, decision: str, **more: Any) -> None:
        """Decide as the controller delivers it."""
        made = {"name": request.name, "uid": self.world.approval_uids[request.name], "digest": request.digest}
        run_uid = contract.parse_workflow_id(self.handle.id).suffix
        said = Decision.model_validate({"run_uid": run_uid, "decision": decision, "decided_by": "ada", **made, **more})
        await self.handle.signal(contract.DECIDE_SIGNAL, said)

    async def asked(self) -> list[Json]:
        """The requests that the model was sent."""
        return await self.world.requests(self.model)

    async def conversations(self) -> list[list[Json]]:
        """The messages of each request."""
        return [request["body"]["messages"] for request in await self.asked()]

    async def reports_under_way(self) -> int:
        """How many reports Temporal has still to bring to an end."""
        described = (await self.handle.describe()).raw_description
        return sum(one.activity_type.name == contract.REPORT_ACTIVITY for one in described.pending_activities)

    async def attempts(self, activity_type: str) -> list[int]:
        """For each activity of that type that was started, in order: at which attempt it ended."""
        history = await self.handle.fetch_history()
        names = {
            event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name
            for event in history.events
            if event.HasField("activity_task_scheduled_event_attributes")
        }
        started = [
            event.activity_task_started_event_attributes
            for event in history.events
            if event.HasField("activity_task_started_event_attributes")
        ]
        return [event.attempt for event in started if names[event.scheduled_event_id] == activity_type]


@dataclass
class WorkerProcess:
    """A `dalang worker` of its own process."""

    process: asyncio.subprocess.Process
    url: str
    http: aiohttp.ClientSession
    log: Path
    ready_after_seconds: float = 0.0

    async def says(self, wanted: tuple[int, str]) -> bool:
        """Whether /readyz answers with this status and text."""
        assert self.process.returncode is None, self.log.read_text()
        try:
            async with self.http.get(f"{self.url}/readyz") as answer:
                return (answer.status, (await answer.text()).strip()) == wanted
        except aiohttp.ClientError:
            return False


@dataclass
class World:
    """One installation: its pool, its reporter, its models."""

    client: Client
    temporal_address: str
    model_url: str
    http: aiohttp.ClientSession
    path: Path
    installation: str = field(default_factory=lambda: f"test-{uuid4().hex[:12]}")
    reported: dict[str, list[RunReport]] = field(default_factory=dict)
    reporting: list[RunReport] = field(default_factory=list)
    """Every report that reached the reporter, written or not."""
    approval_uids: dict[str, str] = field(default_factory=dict)
    """The uids of the AgentApprovals that the reporter has made, by name."""
    reporter_open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, the reporter takes a report and does not come to an end with it."""

    @staticmethod
    async def eventually(condition: Callable[[], Any], *, within: float = 20.0) -> Any:
        """Return the condition's value, or what it resolves to, as soon as that is true."""
        deadline = time.monotonic() + within
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {within} s"
            await asyncio.sleep(0.02)

    # ── Its parts ──

    def settings(self, **more: Any) -> WorkerSettings:
        """Settings of a worker of this installation's pool."""
        return WorkerSettings(
            **{
                "installation": self.installation,
                "namespace": "shop",
                "pool": "default",
                "temporal_address": self.temporal_address,
                "secrets_path": self.path / "secrets",
                "drain_seconds": 5.0,
                **more,
            }
        )

    @asynccontextmanager
    async def worker(self, **more: Any) -> AsyncIterator[None]:
        """A worker as pods run it, with a client and caches of its own; it is stopped as pods are."""
        settings = self.settings(**more)
        async with serve(settings, await process.connect(settings, identity=settings.pod)):
            yield

    def worker_before_approvals(self, *replies: ModelReply) -> Worker:
        """A worker of a version that finds no call in need of approval, and answers for the model."""
        left = list(replies)

        @activity.defn(name=contract.MODEL_ACTIVITY)
        async def model(call: ModelCall) -> ModelReply:
            return left.pop(0) if len(left) > 1 else left[0]

        return Worker(
            self.client,
            task_queue=contract.pool_queue(self.installation, "shop", "default"),
            workflows=[AgentRunWorkflow],
            workflow_runner=UnsandboxedWorkflowRunner(),
            activities=[model],
        )

    def reporter(self) -> Worker:
        """The operator's part, which here only takes notes."""

        @activity.defn(name=contract.REPORT_ACTIVITY)
        async def report(report: RunReport) -> ReportResult:
            self.reporting.append(report)
            await self.reporter_open.wait()
            self.reported.setdefault(activity.info().workflow_id or "", []).append(report)
            names = [request.name for request in report.pending_approvals or ()]
            return ReportResult(approvals={name: self.approval_uids.setdefault(name, uuid4().hex) for name in names})

        return Worker(self.client, task_queue=contract.reporter_queue(self.installation), activities=[report])

    @asynccontextmanager
    async def serving(self, **more: Any) -> AsyncIterator[None]:
        """A worker and the reporter."""
        async with self.worker(**more), self.reporter():
            yield

    @asynccontextmanager
    async def worker_process(self, says: tuple[int, str] = (200, "ok"), **more: Any) -> AsyncIterator["WorkerProcess"]:
        """A worker in a process of its own, as pods start it, once /readyz says so; it is killed in the end."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = f"127.0.0.1:{listening.getsockname()[1]}"
        settings = {
            "temporal_address": self.temporal_address,
            "installation": self.installation,
            "namespace": "shop",
            "pool": "default",
            "tools": "run_tools",
            "tools_path": TOOLS_PATH,
            "secrets_path": self.path / "secrets",
            "http_address": address,
            **more,
        }
        environment = {f"DALANG_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "dalang_cli.main", "worker"]
        began = time.monotonic()
        with (self.path / f"{address}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, env=os.environ | environment, stderr=log)
        try:
            made = WorkerProcess(process, f"http://{address}", self.http, Path(log.name))
            await self.eventually(lambda: made.says(says))
            made.ready_after_seconds = time.monotonic() - began
            yield made
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    # ── Its models ──

    async def script(self, *responses: Json, name: str | None = None, **more: Any) -> str:
        """Say what a model answers, one of its own or that of this name; return the name."""
        name = name or f"model-{uuid4().hex[:8]}"
        body = {"responses": list(responses), **more}
        async with self.http.put(f"{self.model_url}/scripts/{name}", json=body) as answer:
            assert answer.status == 200, await answer.text()
        return name

    async def requests(self, model: str) -> list[Json]:
        """What a model was asked."""
        async with self.http.get(f"{self.model_url}/requests", params={"model": model}) as answer:
            found: list[Json] = (await answer.json())["requests"]
            return found

    # ── Its runs ──

    def agent(self, name: str = "support", **more: Any) -> AgentSnapshot:
        """An agent of the pool `default`, or of another."""
        queue = contract.pool_queue(self.installation, "shop", more.pop("pool", "default"))
        fields = {"uid": f"{name}-uid", "generation": 2, "queue": queue, "model": "gpt", "instructions": "Be brief."}
        return AgentSnapshot(name=name, **{**fields, **more})

    def model(self, name: str, script: str, **more: Any) -> ModelSnapshot:
        """An AgentModel that stands for a script of the scripted model."""
        fields = {"uid": f"{name}-uid", "generation": 1, "provider": "OpenAI", "base_url": f"{self.model_url}/v1"}
        return ModelSnapshot(name=name, model=script, **{**fields, **more})

    async def start(
        self,
        *responses: Json,
        tools: list[str] | None = None,
        max_turns: int = 20,
        timeout_seconds: float = 60.0,
        said: list[Message] | None = None,
        base_url: str | None = None,
        api_key: SecretKey | None = None,
        model: str | None = None,
        agent: Json | None = None,
        context: Json | None = None,
        **script: Any,
    ) -> Run:
        """Start a run of one agent as the controller does, with a model that answers so."""
        model = model or await self.script(*responses, **script)
        bindings = [ToolBinding(name=name, function=name) for name in tools or []]
        endpoint = {"base_url": base_url or f"{self.model_url}/v1", "api_key": api_key}
        return await self.start_team(
            [self.agent(**{"tools": bindings, **(agent or {})})],
            [self.model("gpt", model, **endpoint)],
            max_turns=max_turns,
            timeout_seconds=timeout_seconds,
            messages=said,
            context=context,
        )

    async def start_team(
        self,
        agents: list[AgentSnapshot],
        models: list[ModelSnapshot],
        *,
        messages: list[Message] | None = None,
        **more: Any,
    ) -> Run:
        """Start a run of the first of these agents."""
        fields = {"max_turns": 20, "timeout_seconds": 60.0, **more}
        handle = await self.client.start_workflow(
            contract.RUN_WORKFLOW,
            RunInput(
                agent=agents[0].name,
                messages=messages or [Message(role="user", parts=[TextPart(text="Where is order 42?")])],
                snapshot=Snapshot(agents=agents, models=models),
                **fields,
            ),
            id=contract.run_workflow_id(self.installation, "shop", "run", uuid4().hex),
            task_queue=agents[0].queue,
            result_type=RunReport,
        )
        return Run(handle, models[0].model, self)


@pytest.fixture
async def world(temporal_address: str, model_url: str, tmp_path: Path) -> AsyncIterator[World]:
    client = await Client.connect(temporal_address, data_converter=process.data_converter())
    async with aiohttp.ClientSession() as http:
        made = World(client, temporal_address, model_url, http, tmp_path)
        made.reporter_open.set()
        yield made
