"""Text within bounds: what tools and models return is neither short nor always Unicode."""

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in range(0x20) if chr(code) not in "\t\n\r"}


def clean(text: str) -> str:
    """Return text that can be written as UTF-8, and as JSON in at most twice its bytes.

    Lone surrogates, which JSON lets through, become `?`. Control characters take six bytes in JSON, so that a bound on the
    text would be none on a payload; they become U+FFFD.
    """
    return text.encode(errors="replace").decode().translate(_CONTROLS)


def cut(text: str, max_bytes: int) -> str:
    """Return the cleaned text, cut at a character so that it and the mark that says so weigh at most `max_bytes`."""
    encoded = clean(text).encode()
    if len(encoded) <= max_bytes:
        return encoded.decode()
    mark = f"\n… [cut: {len(encoded)} bytes in all]"
    return encoded[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark
