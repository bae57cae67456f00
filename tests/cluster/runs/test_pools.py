"""Pools: their Deployment, from nothing to a worker and back."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop, System

pytestmark = pytest.mark.timeout(120)

DONE = {"text": "Done."}


def test_an_idle_pool_goes_to_zero_and_the_next_run_wakes_it(shop: "Shop", system: "System") -> None:
    shop.pool(scaling={"scaleToZeroAfter": "2s"})
    run = shop.task("clerk", DONE)
    run.answered()
    system.wait_for("nobody is left", lambda: shop.replicas() == 0 and not shop.pods())
    shop.waits("AgentPool", "default", "ScaledToZero")
    assert shop.condition("AgentPool", "default")["status"] == "True"
    shop.run("clerk-2", agent="clerk").answered()
    shop.waits("AgentPool", "default", "ScaledToZero")


def test_a_pool_with_a_run_does_not_go_to_zero(mall: "Shop", system: "System") -> None:
    mall.pool("hasty", scaling={"scaleToZeroAfter": "0s"})
    run = mall.task("hasty", {"text": "Done.", "latencySeconds": 3}, pool="hasty")
    system.wait_for("the model is called", lambda: run.asked)
    (before,) = (pod["metadata"]["uid"] for pod in mall.pods("hasty"))
    run.answered()
    assert len(run.asked) == 1
    assert {pod["metadata"]["uid"] for pod in mall.pods("hasty")} <= {before}


def test_a_pool_that_is_deleted_takes_its_deployment_along(mall: "Shop", system: "System") -> None:
    mall.pool("desk", scaling={"minReplicas": 1})
    mall.waits("AgentPool", "desk", "Available")
    assert mall.deployment("desk")["metadata"]["ownerReferences"][0]["controller"]
    mall.delete("AgentPool", "desk")
    system.wait_for("all is collected", lambda: not mall.find("Deployment", "dalang-desk") and not mall.pods("desk"))
    left = [found["metadata"]["name"] for found in mall.all("ConfigMap")]
    assert not any(name.startswith("dalang-desk") for name in left)


def test_a_pool_has_its_fewest_workers_always(shop: "Shop", system: "System") -> None:
    shop.pool("desk", scaling={"minReplicas": 2, "scaleToZeroAfter": "0s"})
    system.wait_for("two are there", lambda: len(shop.pods("desk")) == 2)
    shop.scale(0, "desk")
    system.wait_for("two are there again", lambda: shop.replicas("desk") == 2)
    shop.patch("AgentPool", "desk", {"spec": {"scaling": {"minReplicas": 0}}})
    system.wait_for("none is needed", lambda: shop.replicas("desk") == 0)
