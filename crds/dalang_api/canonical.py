"""Canonical JSON (RFC 8785) and the digest of a call: what a human is shown, and what is run, is the same to the byte.

Numbers are those of JavaScript, as the RFC has it: `1.0` is `1`, and an integer beyond ±(2^53 - 1) is refused, since readers
that hold numbers as doubles (the API server, `jq`, a browser) would show another one. The library is Trail of Bits' rfc8785,
250 lines of Python without dependencies; it is imported on first use.
"""

import hashlib
import json
from typing import Any


class NotCanonicalError(ValueError):
    """A value that canonical JSON does not have; the text tells why."""


def canonical(value: Any) -> str:
    """Return a JSON value as canonical JSON.

    Raises:
        NotCanonicalError: It holds an integer beyond ±(2^53 - 1), a number that is none, half a character, a key that is no
            text, or what is no JSON.
    """
    import rfc8785

    try:
        return rfc8785.dumps(value).decode()
    except rfc8785.IntegerDomainError:
        raise NotCanonicalError("it holds an integer beyond 2^53, which not every reader can show exactly") from None
    except (ValueError, RecursionError) as error:  # its own errors are ValueErrors, as half a character in a key is
        raise NotCanonicalError(str(error)) from None


def digest(tool: dict[str, str], arguments: str, schema: Any) -> str:
    """Return `sha256:` and the SHA-256 (hex) of what is decided about.

    Args:
        tool: What is called: its name as the model sees it, its kind, and what is behind the name.
        arguments: Canonical JSON of the arguments.
        schema: JSON schema of the arguments. Not written canonically: it may hold large integers, and nobody reads it here.
    """
    written = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical([tool, arguments, written]).encode()).hexdigest()
