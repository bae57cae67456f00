"""Choosing TCP ports on 127.0.0.1 so that several control planes can run side by side.

Not `bind(0)`: that hands out ports of the range from which the kernel also takes the local end of outgoing connections, so a
port remembered from the last run is often taken by some client. We choose below that range, starting at a place that
depends on the state directory, so that two control planes that start at the same moment do not try the same ports.
"""

import hashlib
import itertools
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

FIRST_PORT = 18_000
LAST_PORT = 32_000


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def directory_hash(directory: Path) -> int:
    """Return a number that is stable for a directory and different for others (32 bits)."""
    return int.from_bytes(hashlib.sha256(str(directory.resolve()).encode()).digest()[:4], "big")


def choose_ports(
    names: Iterable[str],
    previous: Mapping[str, int],
    directory: Path,
    is_free: Callable[[int], bool] = is_free,
) -> dict[str, int]:
    """Return a free port for each name: the previous one where it is still free."""
    chosen: dict[str, int] = {}
    wanted = list(names)
    for name in wanted:
        port = previous.get(name)
        if port is not None and port not in chosen.values() and is_free(port):
            chosen[name] = port
    span = LAST_PORT - FIRST_PORT
    offset = directory_hash(directory) % span
    candidates = (FIRST_PORT + (offset + step) % span for step in itertools.count())
    for name in wanted:
        if name not in chosen:
            chosen[name] = next(port for port in candidates if port not in chosen.values() and is_free(port))
    return chosen
