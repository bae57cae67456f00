"""Settings, as the operator writes them into a Deployment and as a person gives them on the command line."""

from pathlib import Path

import pytest
from dalang_worker.settings import WorkerSettings
from pydantic import ValidationError
from pydantic_settings import CliApp

NEEDED = {"DALANG_INSTALLATION": "dalang-0a1b2c3d", "DALANG_NAMESPACE": "shop", "DALANG_POOL": "default"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALANG_TOOLS", "shop.tools,shop.refunds")
    monkeypatch.setenv("DALANG_TOOLS_PATH", "/var/run/dalang/tools")
    monkeypatch.setenv("DALANG_SLOTS", "7")
    monkeypatch.setenv("DALANG_TEMPORAL_TLS", "true")
    settings = CliApp.run(WorkerSettings, cli_args=[])
    assert settings.queue == "dalang-0a1b2c3d.shop.default"
    assert settings.tool_modules == ["shop.tools", "shop.refunds"]
    assert (settings.tools_path, settings.slots, settings.temporal_tls) == (Path("/var/run/dalang/tools"), 7, True)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALANG_SLOTS", "7")
    flags = ["--slots", "9", "--tools-path=/tools", "--temporal-tls", "--log-format", "json"]
    settings = CliApp.run(WorkerSettings, cli_args=flags)
    assert (settings.slots, settings.tools_path, settings.temporal_tls) == (9, Path("/tools"), True)
    assert settings.log_format == "json"


@pytest.mark.parametrize(
    ("tools", "modules"),
    [
        pytest.param("", [], id="none"),
        pytest.param("shop", ["shop"], id="one"),
        pytest.param(" shop , refunds,", ["shop", "refunds"], id="spaces and empty parts do not count"),
    ],
)
def test_tool_modules(tools: str, modules: list[str]) -> None:
    assert WorkerSettings(installation="i", namespace="n", pool="p", tools=tools).tool_modules == modules


@pytest.mark.parametrize("name", ["installation", "namespace", "pool"])
def test_what_names_the_queue_is_needed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(f"DALANG_{name.upper()}")
    with pytest.raises(ValidationError, match=name):
        WorkerSettings()
