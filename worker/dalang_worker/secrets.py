"""Reads keys from mounted Secrets, at each use: a rotated key counts at once, and a missing one may still appear."""

from pathlib import Path

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


def _what_is_missing(folder: Path, reference: SecretKey) -> str:
    keys = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not keys:
        return f"Secret {reference.name!r} is not there; create it with key {reference.key!r}"
    return f"Secret {reference.name!r} has no key {reference.key!r} (it has: {', '.join(keys)})"
