"""What a worker remembers of running runs, and how it gets the rest: transcripts and snapshots, by query.

A transcript is never an activity's input; a history would grow with its square. The workflow names
the prefix it means by count and running digest. What is cached here is used only if its digest is that one: an attempt
that Temporal discarded may have cached words that were never said.
"""

import asyncio
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from cachetools import LRUCache
from dalang_api import contract
from dalang_api.contract import (
    Message,
    ModelCall,
    OpaquePart,
    Part,
    Snapshot,
    SummaryCall,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TranscriptPage,
    TranscriptRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, TemporalError

from dalang_worker.runs import RunKey

QUERY_DEADLINE = timedelta(seconds=15)
"""After a kill -9 the server waits 10 s for the dead worker's sticky queue before it asks another."""

MESSAGE_OVERHEAD_BYTES = 600
"""About what a message takes in memory beside its parts."""
PART_OVERHEAD_BYTES = 500
"""About what a part takes beside its words."""

SNAPSHOTS_MAX_BYTES = 32 * 1024 * 1024

_CONVERSATION = re.compile(r"s\d+")
"""The names that `conductor.memory` gives to the threads of a session's conversation, one after another."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Cached:
    messages: tuple[Message, ...]
    digests: tuple[str, ...]
    """digests[n] is the running digest of the first n messages."""
    size_bytes: int

    def extended(self, messages: Sequence[Message]) -> "_Cached":
        digests = list(self.digests)
        for message in messages:
            digests.append(contract.extend_digest(digests[-1], message))
        size = self.size_bytes + sum(_size_bytes(message) for message in messages)
        return _Cached((*self.messages, *messages), tuple(digests), size)

    def cut(self, count: int) -> "_Cached":
        return _EMPTY.extended(self.messages[:count])


_EMPTY = _Cached((), (contract.EMPTY_DIGEST,), 0)


class Transcripts:
    """The threads this worker remembers, bounded in bytes; the least recently used are forgotten."""

    def __init__(self, client: Client, max_bytes: int) -> None:
        self._client = client
        self._threads: LRUCache[tuple[RunKey, str], _Cached] = LRUCache(
            maxsize=max_bytes, getsizeof=lambda cached: cached.size_bytes + MESSAGE_OVERHEAD_BYTES
        )

    async def messages(self, run: RunKey, call: ModelCall) -> list[Message]:
        """Return exactly the messages the workflow means by a model call.

        Raises:
            ApplicationError: The workflow could not be asked; to be tried again, and no fault of the model.
        """
        whole = (await self._prefix(run, call)).extended(call.tail or [])
        self._remember(run, call.thread, whole)
        return list(whole.messages)

    async def messages_to_summarise(self, run: RunKey, call: SummaryCall) -> list[Message]:
        """Return exactly the messages the workflow means by a summary; the thread is remembered as it was, if at all.

        Raises:
            ApplicationError: As in `messages`.
        """
        return list((await self._prefix(run, call)).messages)

    def said(self, run: RunKey, thread: str, reply: Message) -> None:
        """Remember a model's reply, so that the next call need not carry it."""
        cached = self._threads.get(_key(run, thread))
        if cached is not None:
            self._remember(run, thread, cached.extended([reply]))

    async def _prefix(self, run: RunKey, call: ModelCall | SummaryCall) -> _Cached:
        prefix = self._cached_prefix(run, call)
        return await self._ask(run, call) if prefix is None else prefix

    def _cached_prefix(self, run: RunKey, call: ModelCall | SummaryCall) -> _Cached | None:
        if call.count == 0:
            return _EMPTY
        cached = self._threads.get(_key(run, call.thread))
        if cached is None or len(cached.messages) < call.count or cached.digests[call.count] != call.digest:
            return None
        return cached if len(cached.messages) == call.count else cached.cut(call.count)

    async def _ask(self, run: RunKey, call: ModelCall | SummaryCall) -> _Cached:
        handle = self._client.get_workflow_handle(run[0], run_id=run[1])
        messages: list[Message] = []
        while len(messages) < call.count:
            request = TranscriptRequest(thread=call.thread, start=len(messages), count=call.count - len(messages))
            page = await _query(handle, contract.TRANSCRIPT_QUERY, request, TranscriptPage)
            if not page.messages:
                raise _unavailable(f"the workflow holds {len(messages)} of {call.count} messages of {call.thread}")
            messages += page.messages
        asked = _EMPTY.extended(messages)
        if asked.digests[-1] != call.digest:
            raise _unavailable(f"thread {call.thread} has another digest than the call names")
        return asked

    def _remember(self, run: RunKey, thread: str, cached: _Cached) -> None:
        if cached.size_bytes + MESSAGE_OVERHEAD_BYTES <= self._threads.maxsize:
            self._threads[_key(run, thread)] = cached


class Snapshots:
    """The snapshots of the last runs, bounded in bytes, by digest; runs of the same agents share one."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._snapshots: LRUCache[str, Snapshot] = LRUCache(
            maxsize=SNAPSHOTS_MAX_BYTES, getsizeof=lambda snapshot: len(snapshot.model_dump_json())
        )
        self._asked: dict[str, asyncio.Task[Snapshot]] = {}

    async def get(self, run: RunKey, digest: str) -> Snapshot:
        """Return the snapshot of that digest, asking the run's workflow once however many calls want it.

        Raises:
            ApplicationError: The workflow could not be asked; to be tried again.
        """
        if (known := self._snapshots.get(digest)) is not None:
            return known
        task = self._asked.get(digest)
        if task is None:
            task = self._asked[digest] = asyncio.create_task(self._ask(run, digest))
            task.add_done_callback(lambda _: self._asked.pop(digest, None))
        snapshot = await asyncio.shield(task)
        self._snapshots[digest] = snapshot
        return snapshot

    async def _ask(self, run: RunKey, digest: str) -> Snapshot:
        """Ask for the snapshot that the workflow uses now: a session may have gone on to another one.

        The digest is compared as it was sent: read here, a snapshot of a newer workflow's may lack fields.
        """
        handle = self._client.get_workflow_handle(run[0], run_id=run[1])
        sent = (await _query(handle, contract.SNAPSHOT_QUERY, None, RawValue)).payload
        if hashlib.sha256(sent.data).hexdigest() != digest:
            raise _unavailable("the workflow uses another snapshot than the call names")
        snapshot: Snapshot = self._client.data_converter.payload_converter.from_payload(sent, Snapshot)
        return snapshot


async def _query(handle: WorkflowHandle[Any, Any], name: str, argument: object, result: type[T]) -> T:
    try:
        arguments = [] if argument is None else [argument]
        answer: T = await handle.query(name, args=arguments, result_type=result, rpc_timeout=QUERY_DEADLINE)
    except (TemporalError, TimeoutError) as error:
        raise _unavailable(f"query {name}: {error}") from error
    return answer


def _unavailable(message: str) -> ApplicationError:
    return ApplicationError(message, type="TranscriptUnavailable", category=ApplicationErrorCategory.BENIGN)


def _key(run: RunKey, thread: str) -> tuple[RunKey, str]:
    """Return what a thread is remembered by.

    A session's conversation is remembered once: nobody asks again for a thread that has been followed by another one, be
    it shortened or of the next execution. Digests tell them apart.
    """
    return ((run[0], ""), "") if _CONVERSATION.fullmatch(thread) else (run, thread)


def _size_bytes(message: Message) -> int:
    """Return about what a message takes in memory, its digest taken: Python keeps the UTF-8 that was made for it, too."""
    return MESSAGE_OVERHEAD_BYTES + sum(PART_OVERHEAD_BYTES + sys.getsizeof(_words(part)) for part in message.parts)


def _words(part: Part) -> str:
    match part:
        case TextPart():
            return part.text
        case ToolCallPart():
            return part.arguments
        case ToolResultPart():
            return part.output
        case OpaquePart():
            return part.data
