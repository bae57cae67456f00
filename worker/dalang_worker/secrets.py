"""Reads keys from mounted Secrets, and keeps them out of texts that others wrote.

Keys are read at each use: a rotated one counts at once, and a missing one may still appear.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, quote_plus

from dalang_api.contract import SecretKey


class SecretNotFoundError(Exception):
    """The Secret or its key is not mounted in this pod, or holds nothing that can be a key."""


def read_key(root: Path, reference: SecretKey) -> str:
    """Return the key's value, without surrounding white space.

    Raises:
        SecretNotFoundError: Its file is not there, or what it holds cannot stand in an HTTP header (a client's error about
            that would quote it). The text names Secret and key, never a value.
    """
    folder = root / reference.name
    try:
        value = (folder / reference.key).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        raise SecretNotFoundError(_what_is_missing(folder, reference)) from None
    except (OSError, UnicodeDecodeError) as error:
        what = f"Key {reference.key!r} of Secret {reference.name!r} cannot be read: {type(error).__name__}"
        raise SecretNotFoundError(what) from None
    if not (value and value.isascii() and value.isprintable()):
        raise SecretNotFoundError(f"Key {reference.key!r} of Secret {reference.name!r} is not one line of ASCII")
    return value


def visible_keys(root: Path) -> list[str]:
    """Return the keys of mounted Secrets as `secret/key`, sorted; never a value."""
    if not root.is_dir():
        return []
    files = (file for folder in root.iterdir() if folder.is_dir() for file in folder.iterdir())
    # Kubernetes keeps the files themselves in hidden folders, beside links to them.
    return sorted(f"{file.parent.name}/{file.name}" for file in files if not file.name.startswith("."))


def redact(text: str, secrets: Iterable[str], mark: str) -> str:
    """Return the text with the mark in place of each secret: a server may well repeat what it was sent.

    Also as JSON (once, and within JSON), Python, a URL or base64 spell it. What somebody hides on purpose is not found.
    """
    spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=lambda each: (-len(each), each)):
        text = text.replace(spelling, mark)
    return text


def _spellings(secret: str) -> set[str]:
    quoted = json.dumps(secret)[1:-1]
    slashed = quoted.replace("/", "\\/")
    nested = json.dumps(quoted)[1:-1]
    urls = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {secret, " ".join(secret.split()), quoted, slashed, nested, repr(secret)[1:-1], *urls} | {
        base64.b64encode(secret.encode()).decode().rstrip("=")
    }


def _what_is_missing(folder: Path, reference: SecretKey) -> str:
    keys = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not keys:
        return f"Secret {reference.name!r} is not there; create it with key {reference.key!r}"
    return f"Secret {reference.name!r} has no key {reference.key!r} (it has: {', '.join(keys)})"
