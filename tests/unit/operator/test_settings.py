"""The operator's flags and environment."""

from datetime import timedelta

import pytest
from dalang_operator.settings import OperatorSettings
from pydantic import ValidationError
from pydantic_settings import CliApp


def parse(*arguments: str) -> OperatorSettings:
    return CliApp.run(OperatorSettings, cli_args=list(arguments))


def test_defaults() -> None:
    settings = parse()
    assert settings.components == ["controller", "reporter"]
    assert settings.watch_namespace == []
    assert settings.run_ttl == timedelta(hours=24)
    assert settings.scale_to_zero_after == timedelta(minutes=10)
    assert settings.approval_proof == "Required"


def test_lists_may_be_repeated_or_joined_by_commas() -> None:
    assert parse("--watch-namespace", "a", "--watch-namespace", "b").watch_namespace == ["a", "b"]
    assert parse("--watch-namespace", "a,b").watch_namespace == ["a", "b"]
    assert parse("--components", "reporter").components == ["reporter"]
    assert parse("--components=controller,reporter").components == ["controller", "reporter"]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALANG_WATCH_NAMESPACE", "a,b")
    monkeypatch.setenv("DALANG_RUN_TTL", "90m")
    monkeypatch.setenv("DALANG_COMPONENTS", "reporter")
    settings = parse()
    assert settings.watch_namespace == ["a", "b"]
    assert settings.run_ttl == timedelta(minutes=90)
    assert settings.components == ["reporter"]


def test_durations_are_written_as_in_the_api() -> None:
    assert parse("--scale-to-zero-after", "1h30m").scale_to_zero_after == timedelta(minutes=90)


@pytest.mark.parametrize("name", ["with.dot", "x" * 64, "a b"])
def test_an_installation_whose_name_would_not_fit_a_workflow_id_is_refused(name: str) -> None:
    with pytest.raises((ValidationError, SystemExit)):
        parse("--installation", name)
