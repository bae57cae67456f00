"""Kopf's part: login, the watches, and one `on.event` per kind that hands every object to the intake. Nothing else.

Retries, order, deduplication and status writes are ours (`runtime/`), because kopf's own lose work under load: a framework
patch that fails past its retries is not tried again, and a relist tells no deletions. So its annotations, finalizers, events and posting are off.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from pydantic_core import from_json, to_json

from dalang_operator.kinds.intake import Intake
from dalang_operator.kube.client import authorization, load_configuration, open_session
from dalang_operator.kube.resources import Json
from dalang_operator.resync import WATCHES, Watch
from dalang_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS = 15.0
LOGIN_PAUSE_SECONDS = 1.0
RETRY_LOG_SECONDS = 30.0


class Backoffs:
    """1, 1, 2 and then 3 seconds for ever: kopf's own list ends after 54 s, and with it the operator."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0), itertools.repeat(3.0))


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-handled state: 64 % of kopf's time per event went into comparing with it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: there are none that could fail."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Purge nothing."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""

    def clear(self, *, essence: Any) -> Any:
        return essence


class NoMemories(ResourceMemories):
    """Remembers nothing of objects: 2 KB for each of thousands, for daemons, indexes and memos that there are none of.

    `kopf.operator` takes the container, but names its type in no public module.
    """

    async def recall(self, raw_body: Any, **_: Any) -> ResourceMemory:
        return ResourceMemory()


class SeldomRetries(logging.Filter):
    """Lets kopf's line for each attempt of each watch through once in 30 s of an outage."""

    def __init__(self) -> None:
        super().__init__()
        self._silent_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        if "will retry" not in record.getMessage():
            return True
        now = time.monotonic()
        if now < self._silent_until:
            return False
        self._silent_until = now + RETRY_LOG_SECONDS
        return True


def make_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watches only, and never give up."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.networking.request_timeout = REQUEST_TIMEOUT_SECONDS
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = Backoffs()
    settings.watching.chunk_size = 500
    settings.watching.reconnect_backoff = 0.2
    # Each object that changed has a task and a queue for this long, and at a start that is all of them at once.
    settings.queueing.idle_timeout = 0.1
    settings.execution.default_backoff = 3.0  # of a login that failed
    settings.process.ultimate_exiting_timeout = None
    for watch in WATCHES:
        selector = (watch.resource.group, watch.resource.version, watch.resource.plural)
        if watch.fields:
            settings.watching.field_selectors[selector] = watch.fields
        if watch.labels:
            settings.watching.label_selectors[selector] = watch.labels
    return settings


def make_registry(settings: OperatorSettings, intake: Intake) -> kopf.OperatorRegistry:
    """Return the registry with the login and one handler per kind."""
    registry = kopf.OperatorRegistry()
    _register_login(registry, settings)
    for watch in WATCHES:
        _register(registry, intake, watch)
    return registry


def _register_login(registry: kopf.OperatorRegistry, settings: OperatorSettings) -> None:
    last = float("-inf")

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        """Open a session of kopf's own, each time anew: it closes and remembers the one that got a 401."""
        nonlocal last
        if time.monotonic() - last < LOGIN_PAUSE_SECONDS:
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        last = time.monotonic()
        configuration = await load_configuration(settings.kubeconfig)
        session = open_session(configuration)
        token = await authorization(configuration)
        if token:
            session.headers["Authorization"] = token
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)


def _register(registry: kopf.OperatorRegistry, intake: Intake, watch: Watch) -> None:
    kind = watch.resource.kind

    @kopf.on.event(watch.resource.group, watch.resource.version, watch.resource.plural, registry=registry, id=kind)
    async def on_event(event: Any, **_: Any) -> None:
        # Parsed anew: the standard library, which kopf parses with, makes strings for the same few keys in each object. It
        # takes 60 µs and halves what the cache weighs: 15 KB a waiting run with its AgentApproval.
        obj: Json = from_json(to_json(event["object"]))
        if event["type"] == "DELETED":
            intake.removed(kind, obj)
        else:
            intake.applied(kind, obj)


async def run(settings: OperatorSettings, intake: Intake, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Watch until told to stop; returns earlier only if kopf gives up."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for name in ("kopf", "kopf._cogs.clients.api", "kopf._cogs.clients.watching"):
        logging.getLogger(name).addFilter(SeldomRetries())
    await kopf.operator(
        registry=make_registry(settings, intake),
        settings=make_settings(),
        memories=NoMemories(),
        clusterwide=not settings.watch_namespace,
        namespaces=settings.watch_namespace,
        standalone=True,
        stop_flag=stop,
        ready_flag=ready,
    )
