"""`kill -9` of the operator, of the worker, of both, with runs of three tool calls at each of their moments.

One kill meets all moments at once: of each run one model or tool call lasts until after it. Besides, some runs have just
been created and some are anywhere.
"""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(180)

TOOL_CALLS = (1, 2, 3)
TURNS = (1, 2, 3, 4)
LONG_SECONDS = 40.0
"""Far longer than it takes until the kill, and given up after it."""
PAIR_SECONDS = 12.0
"""Longer than it takes until the kill; on the worker that is left it goes on."""


class Task:
    """A run of three tool calls, one of whose calls lasts until the kill has happened."""

    def __init__(
        self, shop: "Shop", name: str, *, pool: str = "default", in_model: int = 0, in_tool: int = 0, seconds: float = 0
    ) -> None:
        self.shop, self.name, self.in_model, self.in_tool = shop, name, in_model, in_tool
        self.model(seconds, create=True)
        shop.agent(name, tools=("stamp", "hold"), pool=pool)
        self.run: Run

    def model(self, in_flight_seconds: float, *, create: bool = False) -> None:
        responses: list[dict[str, Any]] = [
            {
                "toolCalls": [
                    {"name": "hold" if self.in_tool == number else "stamp", "arguments": {"key": self.key(number)}}
                ]
            }
            for number in TOOL_CALLS
        ]
        responses.append({"text": f"{self.name} is done."})
        if self.in_model:
            responses[self.in_model - 1]["latencySeconds"] = in_flight_seconds
        make = self.shop.model if create else self.shop.script
        make(self.name, *responses, latencySeconds=0.1)

    def key(self, number: int) -> str:
        return f"{self.name}-{number}"

    def start(self) -> "Run":
        self.run = self.shop.run(self.name)
        return self.run

    def is_there(self) -> bool:
        """Tell whether the run has come to its moment."""
        if self.in_tool:
            return self.shop.is_called(self.key(self.in_tool))
        return self.run.is_asked(self.in_model)

    def check_its_calls(self, *, loses_calls: bool) -> None:
        """No recorded call is made again, and whatever is asked again is asked in the same words.

        So a worker that has lost its transcripts, or never had them, makes the calls the first would have made.
        """
        self.run.check_no_call_was_repeated()
        calls = [call["key"] for call in self.shop.calls if call["key"].startswith(f"{self.name}-")]
        assert set(calls) == {self.key(number) for number in TOOL_CALLS}
        asked = self.run.asked
        if not loses_calls:
            assert (len(calls), len(asked)) == (len(TOOL_CALLS), len(TURNS))
        said = asked[-1]["body"]["messages"]
        for request in asked:
            messages = request["body"]["messages"]
            assert messages == said[: len(messages)]
            assert request["body"]["tools"] == asked[0]["body"]["tools"]

    def go_on(self) -> None:
        """Let what was in flight end at once when it is asked for again."""
        self.model(0.1)
        if self.in_tool:
            self.shop.let_go(self.key(self.in_tool))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("operator",), id="of the operator"),
        pytest.param(("workers",), id="of workers"),
        pytest.param(("operator", "workers"), id="of the operator and of workers"),
    ],
)
def test_a_kill_loses_and_repeats_nothing(system: "System", shop: "Shop", parts: tuple[str, ...]) -> None:
    """Of the workers: the only one of one pool, and one of the two of another."""
    wait_for, loses_calls = system.wait_for, "workers" in parts
    shop.pool()
    shop.pool("pair", scaling={"minReplicas": 2})
    # What is in flight on a lost worker is asked for again, and then quick; else it lasts as long as it says.
    seconds = {"default": LONG_SECONDS, "pair": PAIR_SECONDS} if loses_calls else {"default": 4.0, "pair": 4.0}
    held = [
        Task(shop, f"{pool}-model-{number}", pool=pool, in_model=number, seconds=seconds[pool])
        for pool in seconds
        for number in TURNS
    ]
    held += [Task(shop, f"tool-{number}", in_tool=number) for number in TOOL_CALLS]
    anywhere = [Task(shop, f"anywhere-{number}") for number in range(5)]
    fresh = [Task(shop, f"fresh-{number}") for number in range(3)]
    wait_for("two workers", lambda: shop.deployment("pair").get("status", {}).get("readyReplicas") == 2)
    for task in held:
        task.start()
    wait_for("all that are held are at their moment", lambda: all(task.is_there() for task in held))
    for task in anywhere:
        task.start()
        wait_for("it has begun", lambda task=task: task.run.asked)  # type: ignore[misc]
    for task in fresh:
        task.start()
    names = (
        []
        if not loses_calls
        else [f"worker-{shop.namespace}-{shop.pods(pool)[0]['metadata']['name']}" for pool in seconds]
    )
    if "operator" in parts:
        names.append("operator")
    pids = {name: system.kill(name) for name in names}
    for task in held:
        task.go_on()
    for task in [*held, *anywhere, *fresh]:
        status = task.run.answered()
        assert status["output"] == f"{task.name} is done."
        assert status["turns"] == len(TURNS)
        assert status["workflow"]["id"] == task.run.workflow_id
        assert len(status["agents"]) == 1
        task.check_its_calls(loses_calls=loses_calls)
    for name, pid in pids.items():
        wait_for(f"{name} is back", lambda name=name, pid=pid: system.is_back(name, pid))  # type: ignore[misc]
    wanted = {run.workflow_id: "COMPLETED" for run in shop.runs}
    system.temporal.become(f"{system.installation}.{shop.namespace}.", wanted)
