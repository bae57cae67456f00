"""The pool's retrievers: passages of a Qdrant collection that are near to what was asked.

A retrieval is part of a model call and waits for two others, the embedding and Qdrant. So it has a short deadline of its own, and
a call goes on without it: every failure is a `RetrievalError` in words for the run's status.
"""

import asyncio
import importlib
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dalang_api import contract
from dalang_api.contract import ModelSnapshot, RetrieverSettings
from pydantic import ValidationError
from pydantic_core import to_json

from dalang_worker.providers import Embedding, ModelCallError, TokenUsage, Verdict
from dalang_worker.secrets import SecretNotFoundError, read_key, redact
from dalang_worker.text import cut

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient
    from qdrant_client.http.models import ScoredPoint

DEADLINE_SECONDS = 10.0
"""How long a retrieval may take, embedding and a second try included."""
PAUSE_SECONDS = 0.2
"""How long to wait before the second try, unless the endpoint says."""
BACKOFF_SECONDS = 30.0
"""How long a retriever that failed in passing is not tried again: else each turn would wait for it."""
RETRIEVED_MAX_BYTES = 16 * 1024
"""The most text of passages that a model call is given."""

_TEXT_FIELDS = ("text", "page_content", "content", "document")
_SOURCE_FIELDS = ("source", "title", "url")

Embed = Callable[[ModelSnapshot, str, str], Awaitable[Embedding]]
"""Makes a vector: (model, the embedding model's name at its endpoint, text). Raises `ModelCallError` where it cannot, and
`SecretNotFoundError` where there is no key."""

_T = TypeVar("_T")


class RetrievalError(Exception):
    """Nothing could be looked up. The text is one line, fit for a status, without secrets."""


@dataclass(frozen=True)
class Retrieved:
    """What was found, and what finding it cost."""

    text: str
    """Numbered passages, the nearest first; empty where there are none."""
    usage: TokenUsage
    """Of the embedding."""
    model: ModelSnapshot
    """Whose endpoint made the vector."""


class Retrievers:
    """The retrievers of one worker; their connections are pooled and live as long as it does."""

    def __init__(self, settings: list[RetrieverSettings], secrets_path: Path, embed: Embed) -> None:
        self._settings = {retriever.name: retriever for retriever in settings}
        self._embed = embed
        self._failures: dict[str, tuple[float, str]] = {}
        """By retriever: until when it is not tried again, and why."""
        self._servers = {name: _Server(one, secrets_path) for name, one in self._settings.items() if one.url}
        paths = {one.path for one in settings if one.path and not one.url}
        # By path, since Qdrant's lock keeps out a second client of the same process too.
        self._folders = {path: _Folder(Path(path)) for path in paths}

    def has(self, name: str) -> bool:
        """Return whether the pool has a retriever of that name."""
        return name in self._settings

    async def retrieve(self, name: str, query: str, snapshot: contract.Snapshot) -> Retrieved:
        """Return the passages nearest to a question.

        Raises:
            RetrievalError: Whatever failed, now or a moment ago, or 10 s passed.
        """
        settings = self._settings.get(name)
        if settings is None:
            raise RetrievalError(f"The agent's pool has no retriever {name!r}")
        model = next((model for model in snapshot.models if model.name == settings.embedding_model), None)
        if model is None:
            raise RetrievalError(
                f"Retriever {name!r}: the run does not know its embedding model {settings.embedding_model!r}"
            )
        self._check_backoff(name)
        doing = "the embedding"
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                vector_name = settings.embedding_name or model.model
                embedding = await _twice(lambda: self._make_vector(model, vector_name, query))
                doing = "Qdrant"
                points = await _twice(lambda: self._source(settings).query(settings, embedding.vector))
        except TimeoutError:
            words = f"Retriever {name!r}: {doing} did not answer within {DEADLINE_SECONDS:g} s"
            self._back_off(name, words)
            raise RetrievalError(words) from None
        except _FailedError as error:
            words = cut(f"Retriever {name!r}: {' '.join(str(error).split())}", 500)
            if error.is_passing:
                self._back_off(name, words)
            raise RetrievalError(words) from None
        self._failures.pop(name, None)
        return Retrieved(format_passages([point.payload or {} for point in points]), embedding.usage, model)

    async def close(self) -> None:
        """Close the connections."""
        sources: list[_Source] = [*self._servers.values(), *self._folders.values()]
        await asyncio.gather(*(source.close() for source in sources))

    def _check_backoff(self, name: str) -> None:
        until, words = self._failures.get(name, (0.0, ""))
        if asyncio.get_running_loop().time() < until:
            raise RetrievalError(words)

    def _back_off(self, name: str, words: str) -> None:
        self._failures[name] = (asyncio.get_running_loop().time() + BACKOFF_SECONDS, words)

    async def _make_vector(self, model: ModelSnapshot, name: str, text: str) -> Embedding:
        try:
            return await self._embed(model, name, text)
        except ModelCallError as error:
            passing = error.failure.verdict is Verdict.RETRY
            raise _FailedError(f"the embedding failed: {error}", passing, error.failure.after_seconds) from None
        except SecretNotFoundError as error:
            raise _FailedError(f"the embedding failed: {error}") from None

    def _source(self, settings: RetrieverSettings) -> "_Source":
        return self._servers[settings.name] if settings.url else self._folders[settings.path or ""]


class _FailedError(Exception):
    def __init__(self, words: str, is_passing: bool = False, after_seconds: float | None = None) -> None:
        super().__init__(words)
        self.is_passing = is_passing
        self.after_seconds = after_seconds


async def _twice(attempt: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return await attempt()
    except _FailedError as error:
        if not error.is_passing:
            raise
        await asyncio.sleep(PAUSE_SECONDS if error.after_seconds is None else error.after_seconds)
    return await attempt()


# ── Qdrant ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Source(Protocol):
    async def query(self, settings: RetrieverSettings, vector: list[float]) -> "list[ScoredPoint]": ...

    async def close(self) -> None: ...


class _Server:
    """A Qdrant server. Its client is made anew when the key in the Secret has changed."""

    def __init__(self, settings: RetrieverSettings, secrets_path: Path) -> None:
        self._settings = settings
        self._secrets_path = secrets_path
        self._client: AsyncQdrantClient | None = None
        self._key: str | None = None

    async def query(self, settings: RetrieverSettings, vector: list[float]) -> "list[ScoredPoint]":
        """Return the nearest points; what the server says is wrong comes without the key, which it may repeat."""
        try:
            return await self._query(settings, vector)
        except _FailedError as error:
            words = redact(str(error), [self._key] if self._key else [], "[key]")
            raise _FailedError(words, error.is_passing, error.after_seconds) from None

    async def _query(self, settings: RetrieverSettings, vector: list[float]) -> "list[ScoredPoint]":
        exceptions = await asyncio.to_thread(importlib.import_module, "qdrant_client.http.exceptions")
        throttled = importlib.import_module("qdrant_client.common.client_exceptions").ResourceExhaustedResponse
        client = await self._open()
        try:
            found = await client.query_points(
                settings.collection, query=vector, limit=settings.limit, with_payload=True
            )
        except exceptions.UnexpectedResponse as error:
            status = error.status_code or 0
            words = _say(settings, status, error.content)
            raise _FailedError(words, status in (408, 429) or status >= 500) from None
        except throttled as error:
            raise _FailedError(f"Qdrant answered HTTP 429: {error}", True, error.retry_after_s) from None
        except exceptions.ApiException as error:
            cause = getattr(error, "source", error)
            if isinstance(cause, ValidationError):  # its text quotes the answer, cut
                raise _FailedError("an answer that is not Qdrant's") from None
            raise _FailedError(f"Qdrant cannot be reached: {str(cause) or type(cause).__name__}", True) from None
        except ValueError as error:
            raise _FailedError(f"an answer that is not Qdrant's: {error}") from None
        return found.points

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> "AsyncQdrantClient":
        key = None
        try:
            if self._settings.api_key is not None:
                key = read_key(self._secrets_path, self._settings.api_key)
        except SecretNotFoundError as error:
            raise _FailedError(str(error)) from None
        if self._client is not None and key == self._key:
            return self._client
        module = importlib.import_module("qdrant_client")
        client: AsyncQdrantClient = module.AsyncQdrantClient(
            url=self._settings.url,
            # As a header and not as `api_key`, which warns of plain HTTP, of use inside a cluster.
            headers={"api-key": key} if key else None,
            timeout=int(DEADLINE_SECONDS),
            check_compatibility=False,  # a request of its own, and it blocks
        )
        old, self._client, self._key = self._client, client, key
        if old is not None:
            await old.close()
        return client


def _say(settings: RetrieverSettings, status: int, content: bytes) -> str:
    try:
        told = str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        told = ""
    if status == 404 and not told:
        told = f"is there a collection {settings.collection!r}?"
    return f"Qdrant answered HTTP {status}{': ' if told else ''}{told}"


class _Folder:
    """A folder that Qdrant's local mode reads: an exact search in this process, so in a thread, one at a time.

    The thread is its own: those of the event loop look up names, and would be taken by the searches that wait.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qdrant")
        self._client: QdrantClient | None = None

    async def query(self, settings: RetrieverSettings, vector: list[float]) -> "list[ScoredPoint]":
        """Return the nearest points."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._query, settings, vector)

    async def close(self) -> None:
        """Close its files, so that another process may open them."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _query(self, settings: RetrieverSettings, vector: list[float]) -> "list[ScoredPoint]":
        if self._client is None:
            self._client = self._open()
        try:
            found = self._client.query_points(
                settings.collection, query=vector, limit=settings.limit, with_payload=True
            )
        except Exception as error:  # noqa: BLE001 numpy's and sqlite's errors come through as they are
            raise _FailedError(f"Qdrant in {self._path}: {error}") from None
        return found.points

    def _open(self) -> "QdrantClient":
        if not (self._path / "meta.json").is_file():  # the client would make an empty store
            raise _FailedError(f"there is no Qdrant store in {self._path}")
        module = importlib.import_module("qdrant_client")
        try:
            self._check_lock()
            client: QdrantClient = module.QdrantClient(path=str(self._path))
        except (OSError, ValueError, RuntimeError) as error:
            raise _FailedError(f"the Qdrant store in {self._path} cannot be opened: {error}") from None
        return client

    def _check_lock(self) -> None:
        """Say at once where another process has it open: the client would load every vector first, and leak the file."""
        portalocker = importlib.import_module("portalocker")
        lock = self._path / ".lock"
        if not lock.exists():
            return
        with lock.open("r+") as file:
            try:
                portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            except portalocker.exceptions.LockException:
                words = f"the Qdrant store in {self._path} is open in another process, and takes only one: use a Qdrant server"
                raise _FailedError(words) from None

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


# ── Passages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def format_passages(payloads: list[dict[str, Any]]) -> str:
    """Return the passages as the model reads them: numbered, whole ones for as long as they fit, the first cut if need be."""
    passages: list[str] = []
    left = RETRIEVED_MAX_BYTES
    for number, payload in enumerate(payloads, start=1):
        source = _first_text(payload, _SOURCE_FIELDS)
        text = _first_text(payload, _TEXT_FIELDS) or to_json(payload, fallback=repr).decode()
        passage = cut(f"[{number}]\n" + (f"source: {source}\n" if source else "") + text, RETRIEVED_MAX_BYTES)
        left -= len(passage.encode()) + (2 if passages else 0)
        if left < 0:
            break
        passages.append(passage)
    return "\n\n".join(passages)


def _first_text(payload: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    return next((payload[field] for field in fields if isinstance(payload.get(field), str)), None)
