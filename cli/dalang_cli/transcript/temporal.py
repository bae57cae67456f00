"""Where Temporal is, for commands that read from it."""

import argparse
import asyncio
import os
from pathlib import Path

from dalang_api import process
from dalang_api.process import ProcessSettings
from temporalio.client import Client

from dalang_cli.dev.errors import DevError
from dalang_cli.dev.state import StateDirectory, current_snapshot
from dalang_cli.transcript.history import HistoryUnavailable

CONNECT_SECONDS = 10.0
NO_ADDRESS = (
    "Temporal's address is not known: give --temporal-address HOST:PORT or set TEMPORAL_ADDRESS "
    '(eval "$(dalang dev env)" sets it)'
)
FILES = ("tls-ca-file", "tls-cert-file", "tls-key-file", "api-key-file")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where Temporal is; those of `dalang operator`, of the same names and variables."""
    group = parser.add_argument_group("Temporal")
    group.add_argument(
        "--temporal-address", metavar="HOST:PORT", help="default: $TEMPORAL_ADDRESS, else that of `dalang dev`"
    )
    group.add_argument("--temporal-namespace", metavar="NS", help="default: $TEMPORAL_NAMESPACE, else default")
    group.add_argument("--temporal-tls", action="store_true", default=None, help="use TLS; implied by the files below")
    for name in FILES:
        group.add_argument(f"--temporal-{name}", metavar="FILE", type=Path)


def settings(options: argparse.Namespace) -> ProcessSettings:
    """Return where Temporal is. What no option says is taken from `DALANG_TEMPORAL_…`, as the operator does.

    Raises:
        HistoryUnavailable: Nothing tells the address.
    """
    environment = os.environ
    chosen = {
        "temporal_address": options.temporal_address
        or environment.get("TEMPORAL_ADDRESS")
        or environment.get("DALANG_TEMPORAL_ADDRESS")
        or _address_of_dev(options.kubeconfig or environment.get("KUBECONFIG")),
        "temporal_namespace": options.temporal_namespace or environment.get("TEMPORAL_NAMESPACE"),
        "temporal_tls": options.temporal_tls,
        **{
            f"temporal_{name.replace('-', '_')}": getattr(options, f"temporal_{name.replace('-', '_')}")
            for name in FILES
        },
    }
    if not chosen["temporal_address"]:
        raise HistoryUnavailable(NO_ADDRESS)
    return ProcessSettings(**{name: value for name, value in chosen.items() if value is not None})


async def connect(chosen: ProcessSettings) -> Client:
    """Return a client.

    Raises:
        HistoryUnavailable: Temporal cannot be reached, or a file cannot be read.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await process.connect(chosen, identity="dalang transcript")
    except TimeoutError:
        raise HistoryUnavailable(
            f"Temporal cannot be reached at {chosen.temporal_address} within {CONNECT_SECONDS:g} s"
        ) from None
    except (RuntimeError, OSError, ValueError) as error:
        raise HistoryUnavailable(f"Temporal cannot be reached at {chosen.temporal_address}: {error}") from None


def _address_of_dev(kubeconfig: str | None) -> str | None:
    """Return the address in the `dalang dev` whose kubeconfig is used, if it is one's."""
    directory = StateDirectory(Path(kubeconfig or "").parent)
    if kubeconfig is None or os.pathsep in kubeconfig or not directory.snapshot_file.exists():
        return None
    try:
        snapshot = current_snapshot(directory)
    except (DevError, TypeError, KeyError):  # some other state.json
        return None
    return snapshot.address("temporal") if snapshot.pid and "temporal" in snapshot.ports else None
