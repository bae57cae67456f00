"""The examples do what their READMEs say: the commands of each, on its own files, print what it shows."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]

EXAMPLES = Path(__file__).parents[3] / "examples"


def follow(machine: Any, example: str) -> None:
    """Run the commands of an example's README but for those that start the control plane; the last prints what is shown."""
    blocks = (EXAMPLES / example / "README.md").read_text().split("```")[1::2]
    script, shown = (next(block for block in blocks if block.startswith(mark)) for mark in ("sh\n", "\n"))
    *commands, last = [line for line in script.splitlines()[1:] if "dalang dev" not in line]
    for command in commands:
        machine.run("sh", "-c", command.replace(".venv/bin/python", sys.executable))
    assert machine.run("sh", "-c", last).strip("\n") == shown.strip("\n")


def walk(machine: Any, example: str) -> None:
    """Run the commands of a README in one shell; after each block of them comes what its last one prints."""
    blocks = (EXAMPLES / example / "README.md").read_text().split("```")[1::2]
    scripts = [[line for line in block.splitlines()[1:] if "dalang dev" not in line] for block in blocks[::2]]
    mark = "─── what is shown ───"
    lines = [line for *commands, last in scripts for line in (*commands, f"echo {mark}", last, f"echo {mark}")]
    printed = machine.run("sh", "-ec", "\n".join(lines)).split(f"{mark}\n")[1::2]
    assert [each.strip("\n") for each in printed] == [block.strip("\n") for block in blocks[1::2]]


def status_of(machine: Any, run: str) -> Object:
    """Return the status of a run that has answered."""
    status: Object = machine.get("agentrun", run)["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert (status["phase"], conditions) == ("Succeeded", {"Ready": "True", "Succeeded": "True"})
    return status


def said(status: Object) -> list[tuple[str, str]]:
    """Return role and sender of each message."""
    return [(each["role"], each.get("sender", "")) for each in status["messages"]]


def test_weather(machine: Any) -> None:
    follow(machine, "weather")
    status = status_of(machine, "weather")
    assert status["context"] == {"user_name": "Ada", "unit": "fahrenheit", "cities": '["Berlin"]'}
    assert "46 °F" in status["output"]
    before, after = machine.instructions("questions about the weather in one")
    assert before.startswith("You answer Ada's questions about the weather")
    assert "in degrees fahrenheit." in before
    assert ["Looked up so far: Berlin." in each for each in (before, after)] == [False, True]


def test_mcp_weather(machine: Any) -> None:
    follow(machine, "mcp_weather")
    status = status_of(machine, "mcp-weather")
    assert said(status) == [
        ("User", ""),
        ("Assistant", "mcp-weather"),
        ("Tool", "get_forecast"),
        ("Assistant", "mcp-weather"),
    ]
    assert [list(tools) for tools in machine.offered("weather of the next days")] == [["get_forecast"]] * 2


def test_handoff(machine: Any) -> None:
    follow(machine, "handoff")
    status = status_of(machine, "handoff")
    assert status["agent"] == "haiku"
    assert said(status) == [
        ("User", ""),
        ("Assistant", "desk"),
        ("Tool", "transfer_to_haiku"),
        ("Assistant", "haiku"),
    ]
    (offered,) = machine.offered("You are the front desk")
    assert offered["transfer_to_haiku"].endswith("Writes haiku and other short poems.")
    assert {agent["name"]: agent["pool"] for agent in status["agents"]} == {"desk": "desk", "haiku": "poets"}


def test_research(machine: Any) -> None:
    follow(machine, "research")
    status = status_of(machine, "research")
    assert status["agent"] == "editor"
    assert {agent["name"] for agent in status["agents"]} == {"editor", "researcher", "critic"}
    assert said(status)[2::2] == [("Tool", "researcher"), ("Tool", "critic")]
    answer = status["structuredOutput"]
    assert answer == json.loads(status["output"])
    assert answer["sources"] == ["leave"]
    (researcher,) = machine.instructions("Use only the passages you are given")
    assert [f"[{number}]\nsource: " in researcher for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_pizza(machine: Any) -> None:
    walk(machine, "pizza")
    status = status_of(machine, "pizza-party")
    assert said(status) == [
        ("Tool", "transfer_to_pizza_orders"),
        ("Assistant", "pizza-orders"),
        ("Tool", "place_order"),
        ("Assistant", "pizza-orders"),
        ("Tool", "place_order"),
        ("Assistant", "pizza-orders"),
    ]
    assert "the oven is small" in status["messages"][2]["content"]
    assert status_of(machine, "pizza-for-two")["output"].endswith("Order pizza-for-two: 2 × Margherita.")
    assert "You know the menu" in status_of(machine, "pizza-question")["output"]


def test_support_chat(machine: Any) -> None:
    walk(machine, "support-chat")
    first, third = status_of(machine, "ada-1"), status_of(machine, "ada-3")
    assert [agent["name"] for agent in first["agents"]] == ["chat-support", "chat-returns"]
    assert said(third)[-3:] == [
        ("Assistant", "chat-support"),
        ("Tool", "transfer_to_chat_returns"),
        ("Assistant", "chat-returns"),
    ]
    (returns,) = {each.strip() for each in machine.instructions("within 30 days and unworn")}
    assert returns.startswith("You take order 42 back")
    session = machine.get("agentsession", "ada")["status"]
    assert session["runs"] == 4
    assert session["lastRun"]["name"] == "ada-4"
    assert len(machine.instructions("You keep the memory of a conversation")) > 0


def test_nightly_report(machine: Any) -> None:
    walk(machine, "nightly-report")
    schedule = machine.get("agentschedule", "nightly-report")
    assert len(schedule["status"]["recentRuns"]) == 5
    assert schedule["status"]["backfill"] == schedule["metadata"]["annotations"]["dalang.dev/backfill"]


def test_watchdog(machine: Any) -> None:
    try:
        walk(machine, "watchdog")
    finally:
        Path("/tmp/dalang-watchdog").unlink(missing_ok=True)
    status = machine.get("agentschedule", "watchdog")["status"]
    assert "activeRuns" not in status or status["activeRuns"] == []
