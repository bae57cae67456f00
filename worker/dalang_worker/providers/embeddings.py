"""The answer to `POST /embeddings`, of OpenAI or any compatible server."""

import base64
import binascii
import struct

from pydantic import BaseModel, ValidationError

from dalang_worker.providers import Embedding, TokenUsage
from dalang_worker.providers.chat_completions import read_error


class _Vector(BaseModel):
    embedding: list[float] | str


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class _Embeddings(BaseModel):
    data: list[_Vector]
    usage: _Usage | None = None


def read_embedding(body: bytes) -> Embedding:
    """Return the one embedding that was asked for: a list of numbers or, though not asked for, base64 of 32-bit floats.

    Raises:
        ValueError: It is none.
    """
    try:
        answer = _Embeddings.model_validate_json(body)
        vector = _floats(answer.data[0].embedding)
    except (ValidationError, IndexError, binascii.Error, struct.error):
        raise ValueError(f"the endpoint answered 200 with no embedding: {read_error(body)[1]}") from None
    return Embedding(vector, TokenUsage(input_tokens=(answer.usage or _Usage()).prompt_tokens or 0))


def _floats(embedding: list[float] | str) -> list[float]:
    if isinstance(embedding, list):
        return embedding
    return [number for (number,) in struct.iter_unpack("<f", base64.b64decode(embedding, validate=True))]
