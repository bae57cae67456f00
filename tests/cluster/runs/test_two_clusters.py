"""Two control planes with objects of the same names on one Temporal server: nothing crosses."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(120)

HOLD = {"toolCalls": [{"name": "hold", "arguments": {"key": "twin-held"}}]}


def test_what_has_the_same_name_in_two_clusters_has_nothing_else_in_common(
    system: "System", neighbour: "System", mall: "Shop", annex: "Shop"
) -> None:
    twins = {"the first": mall, "the second": annex}
    assert mall.namespace == annex.namespace
    assert system.installation != neighbour.installation
    runs: dict[str, list[Run]] = {word: [] for word in twins}
    for word, shop in twins.items():
        shop.model("twin", {"toolCalls": [{"name": "stamp", "arguments": {"key": word}}]}, {"text": word})
        shop.agent("twin", tools=("stamp",))
        shop.model("twin-held", HOLD, {"text": word})
        shop.agent("twin-held", tools=("hold",))
    for number in range(5):
        for word, shop in twins.items():
            runs[word].append(shop.run(f"twin.{number}", agent="twin"))
    for word, shop in twins.items():
        for run in runs[word]:
            assert run.answered()["output"] == word
        assert len(shop.system.model.requests(shop.model_name("twin"))) == 2 * 5
        assert [call["key"] for call in shop.calls].count(word) == 5
        wanted = {run.workflow_id: "COMPLETED" for run in runs[word]}
        system.temporal.become(f"{shop.system.installation}.{shop.namespace}.twin.", wanted)

    ours, theirs = (shop.run("twin-held") for shop in twins.values())
    for shop in twins.values():
        system.wait_for("both are held", lambda shop=shop: shop.is_called("twin-held"))  # type: ignore[misc]
    ours.delete()
    system.temporal.become(ours.workflow_id, {ours.workflow_id: "TERMINATED"})
    sweeps = neighbour.metric("dalang_sweeps_total", result="success")
    system.wait_for("some sweeps", lambda: neighbour.metric("dalang_sweeps_total", result="success") >= sweeps + 5)
    assert system.temporal.state(theirs.workflow_id) == "RUNNING"
    annex.let_go("twin-held")
    assert theirs.answered()["output"] == "the second"
