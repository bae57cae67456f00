"""Embeddings without a model: texts that share words, or parts of words, are near each other.

Each word and each of its trigrams is hashed to one dimension and a sign (the hashing trick); a text is the normalised sum.
That is enough for a test or an example to find the paragraph that speaks of refunds when it is asked about a refund; it
knows nothing of meaning.
"""

import base64
import math
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

from dalang_cli.dev.demo_model import STOP_WORDS

DIMENSIONS = 256
TRIGRAM_WEIGHT = 0.25
"""Of a trigram, where a word has 1: enough for `refund` and `refunds` to meet, too little for `fun` to matter."""
STOP_WORD_WEIGHT = 0.05


def embed(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the vector of a text, of length 1; a text without words is a vector too."""
    vector = [0.0] * dimensions
    for feature, weight in _features(text):
        place = _hash(feature)
        vector[(place >> 1) % dimensions] += weight if place & 1 else -weight
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else [1.0] + [0.0] * (dimensions - 1)


def as_base64(vector: list[float]) -> str:
    """Return a vector as OpenAI encodes it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in re.findall(r"\w+", text.lower()):
        if word in STOP_WORDS or len(word) < 3:
            yield word, STOP_WORD_WEIGHT
            continue
        yield word, 1.0
        padded = f"^{word}$"
        for start in range(len(padded) - 2):
            yield f"#{padded[start : start + 3]}", TRIGRAM_WEIGHT


@lru_cache(maxsize=100_000)
def _hash(feature: str) -> int:
    return int.from_bytes(blake2b(feature.encode(), digest_size=8).digest())
