"""What a run uses is copied when it starts: edits and deletions concern later runs only."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(90)


def held(key: str) -> list[dict[str, Any]]:
    return [{"toolCalls": [{"name": "hold", "arguments": {"key": key}}]}, {"text": "Done."}]


def instructions(run: "Run") -> list[str]:
    """Return the system message of each request."""
    return [request["body"]["messages"][0]["content"] for request in run.asked]


def test_a_run_goes_on_with_its_agent_as_it_was(mall: "Shop", system: "System") -> None:
    mall.model("edited", *held("edited"))
    mall.agent("edited", tools=("hold",), instructions="Be brief.")
    run = mall.run("edited")
    system.wait_for("it is under way", lambda: mall.is_called("edited"))
    mall.patch("Agent", "edited", {"spec": {"instructions": "Be long.", "tools": []}})
    mall.let_go("edited")
    assert run.answered()["agents"][0]["generation"] == 1
    assert instructions(run) == ["Be brief."] * 2
    assert mall.get("Agent", "edited")["metadata"]["generation"] == 2

    later = mall.run("edited-later", agent="edited")
    assert later.answered()["agents"][0]["generation"] == 2
    assert "tools" not in run.asked[-1]["body"]
    assert instructions(run)[-1] == "Be long."


def test_a_run_goes_on_when_its_agent_and_its_model_are_deleted(mall: "Shop", system: "System") -> None:
    mall.model("removed", *held("removed"))
    mall.agent("removed", tools=("hold",))
    run = mall.run("removed")
    uid = mall.get("Agent", "removed")["metadata"]["uid"]
    system.wait_for("it is under way", lambda: mall.is_called("removed"))
    mall.delete("Agent", "removed")
    mall.delete("AgentModel", "removed")
    mall.let_go("removed")
    assert run.answered()["agents"] == [{"name": "removed", "uid": uid, "generation": 1, "pool": "default"}]
    assert "Agent removed" in mall.run("removed-later", agent="removed").waits("AgentNotFound")
