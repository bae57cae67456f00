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


class Task:
    """A run of three tool calls, one of whose calls lasts until the kill has happened."""

    def __init__(self, shop: "Shop", name: str, *, in_model: int = 0, in_tool: int = 0) -> None:
        self.shop, self.name, self.in_model, self.in_tool = shop, name, in_model, in_tool
        self.model(LONG_SECONDS, create=True)
        shop.agent(name, tools=("stamp", "hold"))
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

    def go_on(self) -> None:
        """Let what was in flight end at once when it is asked for again."""
        self.model(0.1)
        if self.in_tool:
            self.shop.let_go(self.key(self.in_tool))


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("operator",), id="the operator"),
        pytest.param(("worker",), id="the worker"),
        pytest.param(("operator", "worker"), id="both"),
    ],
)
def test_a_kill_loses_and_repeats_nothing(system: "System", shop: "Shop", killed: tuple[str, ...]) -> None:
    shop.pool()
    held = [Task(shop, f"in-model-{number}", in_model=number) for number in TURNS]
    held += [Task(shop, f"in-tool-{number}", in_tool=number) for number in TOOL_CALLS]
    anywhere = [Task(shop, f"anywhere-{number}") for number in range(5)]
    fresh = [Task(shop, f"fresh-{number}") for number in range(3)]
    if "worker" not in killed:  # nothing would shorten what is in flight
        for task in held:
            task.model(4.0)
    for task in held:
        task.start()
    system.wait_for(
        "all are at their moment but for those whose turn is yet to come", lambda: all(task.is_there() for task in held)
    )
    for task in anywhere:
        task.start()
        system.wait_for("it has begun", lambda task=task: task.run.asked)  # type: ignore[misc]
    for task in fresh:
        task.start()
    parts = [shop.worker() if part == "worker" else part for part in killed]
    pids = {part: system.kill(part) for part in parts}
    for task in held:
        task.go_on()
    for task in [*held, *anywhere, *fresh]:
        status = task.run.answered()
        assert status["output"] == f"{task.name} is done."
        assert status["turns"] == 4
        assert status["workflow"]["id"] == task.run.workflow_id
        assert len(status["agents"]) == 1
        task.run.check_no_call_was_repeated()
        called = {call["key"] for call in shop.calls if call["key"].startswith(f"{task.name}-")}
        assert called == {task.key(number) for number in TOOL_CALLS}
        if "worker" not in killed:
            assert len(task.run.asked) == 4
    for part, pid in pids.items():
        assert system.is_back(part, pid)
    wanted = {run.workflow_id: "COMPLETED" for run in shop.runs}
    system.temporal.become(f"{system.installation}.{shop.namespace}.", wanted)
    if "worker" not in killed:
        assert len(shop.calls) == len({call["key"] for call in shop.calls})


def test_one_of_two_workers_is_killed(system: "System", shop: "Shop") -> None:
    """The other, which has none of the killed one's transcripts, makes the very calls the first would have made."""
    shop.pool(scaling={"minReplicas": 2})
    tasks = [Task(shop, f"run-{number}", in_model=number % 4 + 1) for number in range(8)]
    for task in tasks:
        task.model(8.0)
    ready = lambda: shop.deployment().get("status", {}).get("readyReplicas") == 2  # noqa: E731
    system.wait_for("both workers are ready", ready)
    for task in tasks:
        task.start()
    system.wait_for("all are at their moment", lambda: all(task.is_there() for task in tasks))
    system.kill(f"worker-{shop.namespace}-{shop.pods()[0]['metadata']['name']}")
    for task in tasks:
        task.go_on()
    for task in tasks:
        task.run.answered()
        task.run.check_no_call_was_repeated()
        bodies = [request["body"] for request in task.run.asked]
        longest = bodies[-1]["messages"]
        for body in bodies:
            assert body["messages"] == longest[: len(body["messages"])]
            assert body["tools"] == bodies[0]["tools"]
