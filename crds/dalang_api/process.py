"""What the operator's and the workers' processes have in common: settings, logs, the Temporal client, HTTP endpoints."""

import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import temporalio.api.common.v1
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from pydantic_core import to_json
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from pythonjsonlogger.json import JsonFormatter
from temporalio.client import Client, KeepAliveConfig
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import CompositePayloadConverter, DataConverter, DefaultPayloadConverter
from temporalio.service import GrpcCompression, RetryConfig, TLSConfig

from dalang_api.contract import Wire

S = TypeVar("S", bound="ProcessSettings")


class ProcessSettings(BaseSettings):
    """Settings of both processes, from flags and from the environment (`DALANG_TEMPORAL_ADDRESS` and so on)."""

    model_config = SettingsConfigDict(
        env_prefix="DALANG_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
        extra="ignore",
    )

    temporal_address: str = "127.0.0.1:7233"
    """Temporal's frontend, HOST:PORT."""
    temporal_namespace: str = "default"
    """Temporal namespace. It is the trust boundary: who holds its credential can signal and poll everything in it."""
    temporal_tls: bool = False
    """Use TLS. Implied by any of the files below."""
    temporal_tls_ca_file: Path | None = None
    """CA certificate (PEM) of the server, where it is not publicly trusted."""
    temporal_tls_cert_file: Path | None = None
    """Client certificate (PEM), for mTLS."""
    temporal_tls_key_file: Path | None = None
    """Key of the client certificate (PEM)."""
    temporal_api_key_file: Path | None = None
    """File that holds the API key, for Temporal Cloud."""
    http_address: str = "127.0.0.1:8080"
    """Where /healthz, /readyz and /metrics are served, HOST:PORT."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe records that are logged."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""


def read_settings(settings_type: type[S], argv: list[str]) -> S:
    """Return the settings of flags and environment.

    Raises:
        SystemExit: One is wrong or missing; a line for each was printed. Also after --help.
    """
    try:
        return CliApp.run(settings_type, cli_args=argv, cli_exit_on_error=True)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            flag, variable = name.replace("_", "-"), f"DALANG_{name.upper()}"
            sys.stderr.write(f"--{flag} (or ${variable}): {problem['msg']}\n")
        raise SystemExit(2) from None


def configure_logging(settings: ProcessSettings) -> None:
    """Send all records to standard error in the chosen format."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(
            JsonFormatter("{asctime}{levelname}{name}{message}", style="{", rename_fields={"levelname": "level"})
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


class _WirePayloadConverter(PydanticJSONPlainPayloadConverter):
    """JSON by pydantic, with `None` left out: histories pay for every byte."""

    def to_payload(self, value: Any) -> temporalio.api.common.v1.Payload | None:
        if not isinstance(value, Wire):
            return super().to_payload(value)
        return temporalio.api.common.v1.Payload(
            metadata={"encoding": self.encoding.encode()}, data=to_json(value, exclude_none=True)
        )


class _PayloadConverter(CompositePayloadConverter):
    def __init__(self) -> None:
        json_converter = _WirePayloadConverter()
        super().__init__(
            *(
                json_converter if converter.encoding == json_converter.encoding else converter
                for converter in DefaultPayloadConverter.default_encoding_payload_converters
            )
        )


def data_converter() -> DataConverter:
    """The one way payloads are written and read, in every process that has a Temporal client."""
    return DataConverter(payload_converter_class=_PayloadConverter)


async def connect(settings: ProcessSettings, *, identity: str, lazy: bool = False) -> Client:
    """Return a client for the configured Temporal.

    Raises:
        RuntimeError: Temporal cannot be reached (unless `lazy`, which connects at the first call).
    """
    files = (settings.temporal_tls_ca_file, settings.temporal_tls_cert_file, settings.temporal_tls_key_file)
    tls: bool | TLSConfig = settings.temporal_tls
    if any(files):
        ca, certificate, key = (file.read_bytes() if file else None for file in files)
        tls = TLSConfig(server_root_ca_cert=ca, client_cert=certificate, client_private_key=key)
    api_key = settings.temporal_api_key_file.read_text().strip() if settings.temporal_api_key_file else None
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=data_converter(),
        identity=identity,
        tls=tls,
        api_key=api_key,
        lazy=lazy,
        grpc_compression=GrpcCompression.NONE,  # the SDK's gzip takes 0.25 ms of CPU per call; our messages are small
        keep_alive_config=KeepAliveConfig(interval_millis=10_000, timeout_millis=5_000),
        retry_config=RetryConfig(max_elapsed_time_millis=int(timedelta(seconds=10).total_seconds() * 1000)),
    )


async def serve_http(address: str, ready: Callable[[], str | None]) -> web.AppRunner:
    """Serve /healthz, /readyz and /metrics; `ready` returns None, or what is still missing.

    Raises:
        OSError: The address cannot be bound.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = ready()
        return web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host or "0.0.0.0", int(port)).start()
    return runner
