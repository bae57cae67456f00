"""Two control planes with objects of the same names on one Temporal server: nothing crosses."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(120)

HOLD = {"toolCalls": [{"name": "hold", "arguments": {"key": "held"}}]}


@pytest.fixture
def twins(system: "System", neighbour: "System", tmp_path: Path) -> Iterator[tuple["Shop", "Shop"]]:
    """A namespace of the same name, with objects of the same names, in each."""
    opened = []
    for number, each in enumerate((system, neighbour)):
        folder = tmp_path / str(number)
        folder.mkdir()
        opened.append(each.open_shop(folder, "twins"))
    for shop, word in zip(opened, ("first", "second"), strict=True):
        shop.pool()
        shop.model("clerk", {"toolCalls": [{"name": "stamp", "arguments": {"key": word}}]}, {"text": f"the {word}"})
        shop.agent("clerk", tools=("stamp",))
        shop.model("held", HOLD, {"text": f"the {word}, held"})
        shop.agent("held", tools=("hold",))
    yield opened[0], opened[1]
    for shop in opened:
        shop.close()


def test_what_has_the_same_name_in_two_clusters_has_nothing_else_in_common(
    system: "System", neighbour: "System", twins: tuple["Shop", "Shop"]
) -> None:
    words = ("first", "second")
    assert system.installation != neighbour.installation
    runs: dict[str, list[Run]] = {word: [] for word in words}
    for number in range(5):
        for shop, word in zip(twins, words, strict=True):
            runs[word].append(shop.run(f"run-{number}", agent="clerk"))
    for shop, word in zip(twins, words, strict=True):
        for run in runs[word]:
            assert run.answered()["output"] == f"the {word}"
        assert len(shop.system.model.requests(shop.model_name("clerk"))) == 2 * 5
        assert [call["key"] for call in shop.calls] == [word] * 5
        wanted = {run.workflow_id: "COMPLETED" for run in runs[word]}
        system.temporal.become(f"{shop.system.installation}.twins.", wanted)

    ours, theirs = (shop.run("held") for shop in twins)
    for shop in twins:
        system.wait_for("both are held", lambda shop=shop: shop.is_called("held"))  # type: ignore[misc]
    ours.delete()
    system.wait_for("the deleted one ends", lambda: system.temporal.state(ours.workflow_id) == "TERMINATED")
    sweeps = neighbour.metric("dalang_sweeps_total", result="success")
    system.wait_for("some sweeps", lambda: neighbour.metric("dalang_sweeps_total", result="success") >= sweeps + 5)
    assert system.temporal.state(theirs.workflow_id) == "RUNNING"
    twins[1].let_go("held")
    assert theirs.answered()["output"] == "the second, held"
