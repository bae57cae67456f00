"""Reads keys from mounted Secrets, at each use: a rotated key counts at once, and a missing one may still appear."""

from pathlib import Path

from dalang_api.contract import SecretKey


class SecretNotFoundError(Exception):
    """The Secret or its key is not mounted in this pod."""


def read_key(root: Path, reference: SecretKey) -> str:
    """Return the key's value, without surrounding white space.

    Raises:
        SecretNotFoundError: Its file is not there; the text names Secret and key, never a value.
    """
    folder = root / reference.name
    try:
        return (folder / reference.key).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        keys = (
            sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        )
        if keys:
            detail = f"Secret {reference.name!r} has no key {reference.key!r} (it has: {', '.join(keys)})"
        else:
            detail = f"Secret {reference.name!r} is not there; create it with key {reference.key!r}"
        raise SecretNotFoundError(detail) from None
