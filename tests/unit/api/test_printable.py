"""Others' words among our own."""

import json

import pytest
from dalang_api.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 日本 🍕 “x”", "Zoë 日本 🍕 “x”"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31m\x7f\x9b", "\\u001b[31m\\u007f\\u009b"),
        ("abc\u202edcb\u2066", "abc\\u202edcb\\u2066"),
        ("\u200b\u00a0\u2028\U000e0041", "\\u200b\\u00a0\\u2028\\udb40\\udc41"),
    ],
)
def test_what_is_not_printed_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    if "\\" in shown:
        assert json.loads(f'"{shown}"') == text, "it is the same string in JSON"
