"""Embeddings: whatever form a server gives them, or none."""

import base64
import struct

import pytest
from dalang_worker.providers import Embedding, TokenUsage
from dalang_worker.providers.embeddings import read_embedding

PACKED = base64.b64encode(struct.pack("<2f", 0.5, -1.0))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"data": [{"embedding": [0.5, -1]}], "usage": {"prompt_tokens": 4, "total_tokens": 4}}',
            Embedding([0.5, -1.0], TokenUsage(input_tokens=4)),
            id="numbers",
        ),
        pytest.param(
            b'{"data": [{"embedding": "' + PACKED + b'"}], "usage": {"prompt_tokens": 4}}',
            Embedding([0.5, -1.0], TokenUsage(input_tokens=4)),
            id="base64, though not asked for",
        ),
        pytest.param(b'{"data": [{"embedding": [1]}]}', Embedding([1.0], TokenUsage()), id="no usage"),
    ],
)
def test_an_embedding_is_read(body: bytes, expected: Embedding) -> None:
    assert read_embedding(body) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"<h1>Sign in</h1>", "<h1>Sign in</h1>", id="a page"),
        pytest.param(b'{"data": []}', "{'data': []}", id="none"),
        pytest.param(b'{"error": "no such model"}', "no such model", id="an error"),
        pytest.param(b'{"data": [{"embedding": "!"}]}', "{'data': [{'embedding': '!'}]}", id="no base64"),
        pytest.param(b'{"data": [{"embedding": "AAA="}]}', "{'data': [{'embedding': 'AAA='}]}", id="half a number"),
    ],
)
def test_what_is_none_is_an_error(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="answered 200 with no embedding") as raised:
        read_embedding(body)
    assert str(raised.value).endswith(f": {words}")
