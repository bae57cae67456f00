"""Retrievals from Qdrant's local mode, with vectors from a function; of a Qdrant server only its absence and its errors."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dalang_api.contract import ModelSnapshot, RetrieverSettings, SecretKey, Snapshot
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker import retrieval as retrieval_module
from dalang_worker.providers import CallFailure, Embedding, ModelCallError, TokenUsage, Verdict
from dalang_worker.retrieval import RETRIEVED_MAX_BYTES, RetrievalError, Retrieved, Retrievers, format_passages
from dalang_worker.secrets import SecretNotFoundError
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

MODEL = ModelSnapshot(name="gpt", uid="1", generation=1, provider="OpenAI", model="gpt-5")
SNAPSHOT = Snapshot(agents=[], models=[MODEL])
WORDS = ("rain", "sun", "wind")
USAGE = TokenUsage(input_tokens=7)


async def embed(model: ModelSnapshot, name: str, text: str) -> Embedding:
    assert (model, name) == (MODEL, "small")
    return Embedding([float(text.count(word)) + 0.01 for word in WORDS], USAGE)


def settings(**more: Any) -> RetrieverSettings:
    known = {"name": "handbook", "collection": "docs", "limit": 2, "embedding_model": "gpt", "embedding_name": "small"}
    return RetrieverSettings.model_validate(known | more)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    client = QdrantClient(path=str(folder))
    client.create_collection("docs", vectors_config=VectorParams(size=3, distance=Distance.COSINE))
    client.create_collection("wide", vectors_config=VectorParams(size=4, distance=Distance.COSINE))
    payloads = [{"text": "When it rains", "source": "rain.md"}, {"text": "In the sun"}, {"note": "wind"}]
    points = [
        PointStruct(id=number, vector=[float(number == place) for place in range(3)], payload=payload)
        for number, payload in enumerate(payloads)
    ]
    client.upsert("docs", points)
    client.close()
    return folder


@pytest.fixture
async def handbook(store: Path, tmp_path: Path) -> AsyncIterator[Retrievers]:
    retrievers = Retrievers([settings(path=str(store))], tmp_path, embed)
    yield retrievers
    await retrievers.close()


async def test_the_nearest_passages_come_first(handbook: Retrievers) -> None:
    found = await handbook.retrieve("handbook", "rain rain wind", SNAPSHOT)
    text = '[1]\nsource: rain.md\nWhen it rains\n\n[2]\n{"note":"wind"}'
    assert found == Retrieved(text, USAGE, MODEL)


async def test_the_models_own_name_is_the_default(store: Path, tmp_path: Path) -> None:
    names = []

    async def note(model: ModelSnapshot, name: str, text: str) -> Embedding:
        names.append(name)
        return Embedding([1.0, 0.0, 0.0], USAGE)

    retrievers = Retrievers([settings(path=str(store), embedding_name=None)], tmp_path, note)
    await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()
    assert names == ["gpt-5"]


async def test_retrievals_at_the_same_time(handbook: Retrievers) -> None:
    found = await asyncio.gather(*(handbook.retrieve("handbook", word, SNAPSHOT) for word in WORDS * 5))
    assert [one.text.split("\n")[-1] if one.text else "" for one in found[:3]] == [
        one.text.split("\n")[-1] for one in found[3:6]
    ]


async def test_two_retrievers_of_one_folder(store: Path, tmp_path: Path) -> None:
    retrievers = Retrievers([settings(path=str(store)), settings(name="other", path=str(store))], tmp_path, embed)
    first, second = [await retrievers.retrieve(name, "sun", SNAPSHOT) for name in ("handbook", "other")]
    await retrievers.close()
    assert first == second


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param({"collection": "none"}, "Collection none not found", id="no such collection"),
        pytest.param({"collection": "wide"}, "Retriever 'handbook': Qdrant in ", id="vectors of another size"),
        pytest.param({"embedding_model": "other"}, "does not know its embedding model 'other'", id="no such model"),
        pytest.param({"path": "/nowhere"}, "there is no Qdrant store in /nowhere", id="no such folder"),
    ],
)
async def test_what_cannot_be_looked_up(more: dict[str, Any], words: str, store: Path, tmp_path: Path) -> None:
    retrievers = Retrievers([settings(**{"path": str(store), **more})], tmp_path, embed)
    with pytest.raises(RetrievalError, match=words) as failure:
        await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()
    assert "\n" not in str(failure.value)


async def test_a_retriever_that_is_not_there(handbook: Retrievers) -> None:
    with pytest.raises(RetrievalError, match=r"^The agent's pool has no retriever 'other'$"):
        await handbook.retrieve("other", "rain", SNAPSHOT)


OPEN = (
    "import sys, qdrant_client as q; c = q.QdrantClient(path=sys.argv[1]); print('open', flush=True); sys.stdin.read()"
)


async def test_a_folder_that_another_process_has_open(handbook: Retrievers, store: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", OPEN, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert await asyncio.to_thread(other.stdout.readline) == "open\n"
        with pytest.raises(RetrievalError, match="is open in another process, and takes only one: use a Qdrant server"):
            await handbook.retrieve("handbook", "rain", SNAPSHOT)
        other.kill()
    assert (await handbook.retrieve("handbook", "rain", SNAPSHOT)).text


# ── The embedding ──────────────────────────────────────────────────────────────────────────────────────────────────


def failing(verdict: Verdict, after_seconds: float | None = None) -> ModelCallError:
    return ModelCallError(CallFailure(verdict, Reason.MODEL_RETRYING, after_seconds), "503: overloaded")


@pytest.mark.parametrize(
    ("errors", "calls", "words"),
    [
        pytest.param([failing(Verdict.RETRY)], 2, None, id="one that passes is made again"),
        pytest.param([failing(Verdict.RETRY, 0.01)], 2, None, id="after what the endpoint asks for"),
        pytest.param([failing(Verdict.RETRY)] * 2, 2, "the embedding failed: 503: overloaded", id="once"),
        pytest.param([failing(Verdict.FINAL)], 1, "the embedding failed: 503: overloaded", id="one for good is not"),
        pytest.param([SecretNotFoundError("no key")], 1, "the embedding failed: no key", id="without a key"),
        pytest.param(
            [failing(Verdict.RETRY, 60.0)], 1, "did not answer within 0.5 s", id="nor one that takes too long"
        ),
    ],
)
async def test_an_embedding_that_fails(
    errors: list[Exception],
    calls: int,
    words: str | None,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval_module, "DEADLINE_SECONDS", 0.5 if words and "within" in words else 10.0)
    waiting, made = list(errors), 0

    async def fail(model: ModelSnapshot, name: str, text: str) -> Embedding:
        nonlocal made
        made += 1
        if waiting:
            raise waiting.pop(0)
        return await embed(model, name, text)

    retrievers = Retrievers([settings(path=str(store))], tmp_path, fail)
    if words is None:
        assert (await retrievers.retrieve("handbook", "rain", SNAPSHOT)).text
    else:
        with pytest.raises(RetrievalError, match=words):
            await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()
    assert made == calls


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        pytest.param(failing(Verdict.RETRY, 0.0), 2, id="a failure that passes: no try for a while"),
        pytest.param(failing(Verdict.RETRY, 60.0), 1, id="no answer in time: no try for a while"),
        pytest.param(failing(Verdict.FINAL), 3, id="one that somebody has to mend: tried each time"),
        pytest.param(SecretNotFoundError("no key"), 3, id="no key: tried each time"),
    ],
)
@pytest.mark.looptime
async def test_a_retriever_that_fails_does_not_hold_up_each_turn(
    error: Exception, tries: int, store: Path, tmp_path: Path
) -> None:
    made, words, is_mended = 0, set(), False

    async def fail(model: ModelSnapshot, name: str, text: str) -> Embedding:
        nonlocal made
        made += 1
        if is_mended:
            return await embed(model, name, text)
        raise error

    retrievers = Retrievers([settings(path=str(store)), settings(name="other", path=str(store))], tmp_path, fail)
    for _ in range(3):
        with pytest.raises(RetrievalError) as failure:
            await retrievers.retrieve("handbook", "rain", SNAPSHOT)
        words.add(str(failure.value))
    assert (made, len(words)) == (tries, 1)
    is_mended = True
    assert (await retrievers.retrieve("other", "rain", SNAPSHOT)).text
    await asyncio.sleep(retrieval_module.BACKOFF_SECONDS)
    assert (await retrievers.retrieve("handbook", "rain", SNAPSHOT)).text
    await retrievers.close()


# ── A Qdrant server ────────────────────────────────────────────────────────────────────────────────────────────────


class Answers(BaseHTTPRequestHandler):
    """Answers as Qdrant does, as far as this test knows: there is no server of Qdrant here to ask."""

    answers: list[tuple[int, Any]]
    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["api-key"]))
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def qdrant() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Handler", (Answers,), {"answers": [], "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


POINTS = {
    "status": "ok",
    "time": 0.0,
    "result": {"points": [{"id": 1, "version": 1, "score": 0.9, "payload": {"text": "a"}}]},
}
GONE = {"status": {"error": "Not found: Collection `docs` doesn't exist!"}, "time": 0.0}


@pytest.mark.parametrize(
    ("answers", "calls", "words"),
    [
        pytest.param([(200, POINTS)], 1, None, id="points"),
        pytest.param([(503, b"no"), (200, POINTS)], 2, None, id="a second time"),
        pytest.param([(503, b"no")], 2, "Qdrant answered HTTP 503$", id="no third time"),
        pytest.param([(404, GONE)], 1, "HTTP 404: Not found: Collection `docs` doesn't exist!$", id="no collection"),
        pytest.param([(404, b"")], 1, "HTTP 404: is there a collection 'docs'", id="no words"),
        pytest.param(
            [(200, b"<html>")], 1, "an answer that is not Qdrant's: Expecting value", id="something else than Qdrant"
        ),
    ],
)
async def test_answers_of_a_server(
    answers: list[tuple[int, Any]],
    calls: int,
    words: str | None,
    qdrant: tuple[str, type[Answers]],
    tmp_path: Path,
) -> None:
    url, handler = qdrant
    handler.answers = list(answers)
    (tmp_path / "qdrant").mkdir()
    (tmp_path / "qdrant" / "key").write_text("a-key")
    retrievers = Retrievers([settings(url=url, api_key=SecretKey(name="qdrant", key="key"))], tmp_path, embed)
    if words is None:
        assert (await retrievers.retrieve("handbook", "rain", SNAPSHOT)).text == "[1]\na"
    else:
        with pytest.raises(RetrievalError, match=words):
            await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()
    assert handler.seen == [("/collections/docs/points/query", "a-key")] * calls


async def test_a_key_that_changes_counts_at_once(qdrant: tuple[str, type[Answers]], tmp_path: Path) -> None:
    url, handler = qdrant
    handler.answers = [(200, POINTS)]
    (tmp_path / "qdrant").mkdir()
    retrievers = Retrievers([settings(url=url, api_key=SecretKey(name="qdrant", key="key"))], tmp_path, embed)
    with pytest.raises(RetrievalError, match="Secret 'qdrant' is not there"):
        await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    for key in ("old", "new"):
        (tmp_path / "qdrant" / "key").write_text(key)
        await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()
    assert [key for _, key in handler.seen] == ["old", "new"]


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    retrievers = Retrievers([settings(url=f"http://127.0.0.1:{port}")], tmp_path, embed)
    with pytest.raises(RetrievalError, match=r"^Retriever 'handbook': Qdrant cannot be reached: All connection"):
        await retrievers.retrieve("handbook", "rain", SNAPSHOT)
    await retrievers.close()


async def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_module, "DEADLINE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        retrievers = Retrievers([settings(url=f"http://127.0.0.1:{listening.getsockname()[1]}")], tmp_path, embed)
        begun = datetime.now(UTC)
        with pytest.raises(RetrievalError, match=r"Qdrant did not answer within 1 s$"):
            await retrievers.retrieve("handbook", "rain", SNAPSHOT)
        assert (datetime.now(UTC) - begun).total_seconds() < 2
        await retrievers.close()


# ── Passages ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("payload", "passage"),
    [
        pytest.param({"text": "a", "content": "b"}, "[1]\na", id="text"),
        pytest.param({"page_content": "a"}, "[1]\na", id="page_content, of LangChain"),
        pytest.param({"text": 5, "document": "a"}, "[1]\na", id="a text that is none"),
        pytest.param({"text": "a", "title": "T", "url": "u"}, "[1]\nsource: T\na", id="a title"),
        pytest.param({"text": "a", "url": "u"}, "[1]\nsource: u\na", id="an address"),
        pytest.param({"a": [1]}, '[1]\n{"a":[1]}', id="an object"),
        pytest.param({}, "[1]\n{}", id="nothing"),
        pytest.param({"text": "a\ud800"}, "[1]\na?", id="a lone surrogate"),
    ],
)
def test_a_passage(payload: dict[str, Any], passage: str) -> None:
    assert format_passages([payload]) == passage


def test_whole_passages_as_long_as_they_fit() -> None:
    text = format_passages([{"text": "a" * 10_000}, {"text": "b" * 6_000}, {"text": "c" * 1_000}, {"text": "d"}])
    assert text == f"[1]\n{'a' * 10_000}\n\n[2]\n{'b' * 6_000}"


def test_the_first_passage_is_cut_when_it_is_too_long() -> None:
    text = format_passages([{"text": "ü" * 10_000}, {"text": "b"}])
    assert len(text.encode()) <= RETRIEVED_MAX_BYTES
    assert text.endswith("[cut: 20004 bytes in all]")


def test_nothing_found() -> None:
    assert format_passages([]) == ""
