"""What several of these tests need."""

import pytest
from dalang import tools
from dalang.tools import ToolFunction


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, ToolFunction]:
    """An empty registry of tools, of the test's own."""
    empty: dict[str, ToolFunction] = {}
    monkeypatch.setattr(tools, "_REGISTRY", empty)
    return empty
