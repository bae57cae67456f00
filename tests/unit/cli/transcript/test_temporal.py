"""Where Temporal is: an option, a variable, or the `dalang dev` whose kubeconfig is used."""

import argparse
import json
from pathlib import Path

import pytest
from dalang_cli.dev.state import StateDirectory, SupervisorLock
from dalang_cli.transcript.history import HistoryUnavailable
from dalang_cli.transcript.temporal import add_options, settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TEMPORAL_ADDRESS",
        "TEMPORAL_NAMESPACE",
        "DALANG_TEMPORAL_ADDRESS",
        "DALANG_TEMPORAL_TLS",
        "KUBECONFIG",
    ):
        monkeypatch.delenv(name, raising=False)


def options(*argv: str, kubeconfig: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parsed = parser.parse_args(argv)
    parsed.kubeconfig = kubeconfig
    return parsed


@pytest.mark.parametrize(
    ("argv", "environment", "address"),
    [
        (["--temporal-address", "a:1"], {"TEMPORAL_ADDRESS": "b:2"}, "a:1"),
        ([], {"TEMPORAL_ADDRESS": "b:2", "DALANG_TEMPORAL_ADDRESS": "c:3"}, "b:2"),
        ([], {"DALANG_TEMPORAL_ADDRESS": "c:3"}, "c:3"),
    ],
)
def test_address(argv: list[str], environment: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings(options(*argv)).temporal_address == address


def test_the_rest_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "agents")
    monkeypatch.setenv("DALANG_TEMPORAL_TLS", "true")
    chosen = settings(options("--temporal-address", "a:1", "--temporal-api-key-file", "key"))
    assert (chosen.temporal_namespace, chosen.temporal_tls) == ("agents", True)
    assert chosen.temporal_api_key_file == Path("key")
    assert settings(options("--temporal-address", "a:1", "--temporal-namespace", "other")).temporal_namespace == "other"


def test_that_of_dalang_dev(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    kubeconfig = str(directory.kubeconfig)
    with pytest.raises(HistoryUnavailable, match="--temporal-address HOST:PORT"):
        settings(options(kubeconfig=kubeconfig))
    lock = SupervisorLock(directory)
    lock.acquire()
    snapshot = {
        "phase": "running",
        "pid": int(directory.lock_file.read_text()),
        "ports": {"temporal": 7000},
        "parts": [],
    }
    directory.snapshot_file.write_text(json.dumps(snapshot))
    assert settings(options(kubeconfig=kubeconfig)).temporal_address == "127.0.0.1:7000"
    lock.release()
    with pytest.raises(HistoryUnavailable):  # it runs no more
        settings(options(kubeconfig=kubeconfig))


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"parts": [], "other": 1}'])
def test_a_state_of_somebody_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(HistoryUnavailable):
        settings(options(kubeconfig=str(tmp_path / "config")))
