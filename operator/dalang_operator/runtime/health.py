"""What /readyz answers: what is still missing, in words."""

import threading


class Health:
    """Which parts are not ready, and why. Set from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._missing: dict[str, str] = {}

    def missing(self, part: str, why: str) -> None:
        """A part is not ready."""
        with self._lock:
            self._missing[part] = why

    def ready(self, part: str) -> None:
        """A part is ready."""
        with self._lock:
            self._missing.pop(part, None)

    def report(self) -> str | None:
        """Return what is missing, or None."""
        with self._lock:
            return "; ".join(f"{part} {why}" for part, why in sorted(self._missing.items())) or None
