"""What is said of an Agent: the order of the checks is tested through the list."""

from datetime import timedelta

import pytest
from dalang_operator.kinds.agent.plan import Observed, plan
from dalang_operator.kube.resources import Json

from tests.build import NOW, agent, model, pool

TOOLS = [{"name": "weather", "function": {}}, {"name": "pay", "function": {"name": "shop.pay"}}]


def known_pool(*functions: str, build: str = "b1") -> Json:
    tools = [{"name": name, "digest": "d"} for name in functions]
    return pool(status={"build": "b1", "catalogue": {"build": build, "tools": tools}})


@pytest.mark.parametrize(
    ("obj", "its_model", "its_pool", "expected"),
    [
        pytest.param(agent(), model(), pool(), ("True", "Resolved"), id="everything it names is there"),
        pytest.param(agent(), model(), None, ("True", "Resolved"), id="the default pool need not be there yet"),
        pytest.param(agent(), None, None, ("False", "ModelNotFound"), id="no model"),
        pytest.param(agent(poolRef={"name": "gpu"}), model(), None, ("False", "PoolNotFound"), id="no pool"),
        pytest.param(
            agent(poolRef={"name": "gpu"}, tools=TOOLS),
            None,
            None,
            ("False", "ModelNotFound"),
            id="of several the first",
        ),
        pytest.param(
            agent(tools=TOOLS), model(), pool(), ("Unknown", "CatalogueUnknown"), id="nobody has told the pool's tools"
        ),
        pytest.param(
            agent(tools=TOOLS),
            model(),
            known_pool("weather", "shop.pay", build="b0"),
            ("Unknown", "CatalogueUnknown"),
            id="what an older build had says nothing",
        ),
        pytest.param(
            agent(tools=TOOLS),
            model(),
            known_pool("weather", "shop.pay"),
            ("True", "Resolved"),
            id="all functions are there",
        ),
        pytest.param(
            agent(tools=TOOLS), model(), known_pool("weather"), ("False", "ToolNotFound"), id="one function is not"
        ),
    ],
)
def test_ready(obj: Json, its_model: Json | None, its_pool: Json | None, expected: tuple[str, str]) -> None:
    [ready] = plan(Observed(obj, its_model, its_pool, NOW))["conditions"]
    assert (ready["status"], ready["reason"]) == expected


def test_the_nearest_name_is_offered() -> None:
    [ready] = plan(Observed(agent(tools=TOOLS), model(), known_pool("weather", "shop.pays"), NOW))["conditions"]
    assert ready["message"] == "AgentPool default has no function shop.pay; did you mean shop.pays?"


def test_the_written_status_is_a_fixpoint() -> None:
    first = plan(Observed(agent(), model(), None, NOW))
    assert plan(Observed({**agent(), "status": first}, model(), None, NOW + timedelta(days=1))) == first
