"""Text within bounds."""

import json

import pytest
from dalang_worker.text import clean, cut

LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("plain", "plain", id="plain text stays"),
        pytest.param("a\tb\r\nc", "a\tb\r\nc", id="tabs and line ends stay"),
        pytest.param("ü 漢 🦜", "ü 漢 🦜", id="all of Unicode stays"),
        pytest.param("a\ud800b\udfff", "a?b?", id="lone surrogates"),
        pytest.param("\x00a\x1b[31mb\x1f", f"{LOST}a{LOST}[31mb{LOST}", id="control characters"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("character", [chr(code) for code in range(0x80)])
def test_cleaned_text_takes_at_most_twice_its_bytes_in_json(character: str) -> None:
    cleaned = clean(character * 100)
    assert len(json.dumps(cleaned, ensure_ascii=False).encode()) <= 2 * len(cleaned.encode()) + 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("x" * 100, "x" * 100, id="what fits is left alone"),
        pytest.param("ü" * 50, "ü" * 50, id="what just fits in bytes"),
        pytest.param("x" * 101, "x" * 72 + "\n… [cut: 101 bytes in all]", id="what is too long gets a mark"),
        pytest.param("ü" * 51, "ü" * 36 + "\n… [cut: 102 bytes in all]", id="at a character, not within one"),
        pytest.param("🦜" * 26, "🦜" * 18 + "\n… [cut: 104 bytes in all]", id="at a character of four bytes"),
        pytest.param("\ud800", "?", id="what is no Unicode is cleaned"),
    ],
)
def test_cut(text: str, expected: str) -> None:
    kept = cut(text, 100)
    assert kept == expected
    assert len(kept.encode()) <= 100
