"""Text within bounds: what tools and models return is neither short nor always Unicode."""


def clean(text: str) -> str:
    """Return text that can be written as UTF-8: lone surrogates, which JSON lets through, become `?`."""
    return text.encode(errors="replace").decode()


def cut(text: str, max_bytes: int) -> str:
    """Return the text, cut at a character so that it and the mark that says so weigh at most `max_bytes`."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    mark = f"\n… [cut: {len(encoded)} bytes in all]"
    return encoded[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark
