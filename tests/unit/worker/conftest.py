"""What several of these tests need."""

import pytest
from dalang import InstructionsFunction, ToolFunction, prompts, tools


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, ToolFunction]:
    """An empty registry of tools, of the test's own."""
    empty: dict[str, ToolFunction] = {}
    monkeypatch.setattr(tools, "_REGISTRY", empty)
    return empty


@pytest.fixture
def prompt_registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, InstructionsFunction]:
    """An empty registry of instructions, of the test's own."""
    empty: dict[str, InstructionsFunction] = {}
    monkeypatch.setattr(prompts, "_REGISTRY", empty)
    return empty
