"""What an agent offers its model: names, clashes, servers that are away, and the verdict on each kind of call."""

from dataclasses import dataclass, field

import pytest
from dalang import Context, tool
from dalang.tools import ToolFunction
from dalang_api import contract
from dalang_api.contract import (
    AgentCall,
    AgentSnapshot,
    ApprovalFloor,
    ApprovalNeeded,
    ApprovalPolicy,
    ApprovalTarget,
    CallVerdict,
    HandoffBinding,
    McpBinding,
    ModelSnapshot,
    Snapshot,
    ToolBinding,
)
from dalang_worker.approvals import CalledTool, Circumstances
from dalang_worker.mcp import McpTool, McpUnavailableError
from dalang_worker.tools.offer import NotHereError, Offers, make_offers

Tools = dict[str, ToolFunction]


@dataclass
class FakeServers:
    """Servers with these tools; a server that is not among them is away."""

    tools: dict[str, list[str]] = field(default_factory=dict)

    def has(self, server: str) -> bool:
        return server != "unknown"

    async def list_tools(self, server: str) -> list[McpTool]:
        if server not in self.tools:
            raise McpUnavailableError(server, "connection refused")
        return [McpTool(name, "", {"type": "object"}, once=name == "pay") for name in self.tools[server]]


def agent(name: str = "desk", **more: object) -> AgentSnapshot:
    return AgentSnapshot.model_validate(
        {"name": name, "uid": "u", "generation": 1, "queue": "i.shop.default", "model": "gpt", **more}
    )


async def offers(
    registry: Tools,
    *tools: ToolBinding,
    servers: FakeServers | None = None,
    handoffs: tuple[HandoffBinding, ...] = (),
    floors: tuple[ApprovalFloor, ...] = (),
) -> Offers:
    desk = agent(tools=list(tools), handoffs=list(handoffs) or None)
    model = ModelSnapshot(name="gpt", uid="m", generation=1, provider="OpenAI", model="gpt-5")
    snapshot = Snapshot(agents=[desk, agent("archive", description="Knows old orders.")], models=[model])
    around = Circumstances("desk", "r1", "shop", floors=floors)
    return await make_offers(desk, snapshot, registry, servers or FakeServers(), around)


def mcp(server: str, *tools: str) -> ToolBinding:
    return ToolBinding(name=f"{server}-tools", mcp=McpBinding(server=server, tools=list(tools) or None))


@pytest.fixture
def weather(registry: Tools) -> Tools:
    @tool
    def weather(city: str) -> str:
        """Tell the weather."""
        return city

    @tool(once=True)
    def pay(amount: float, context: Context) -> str:
        """Pay."""
        return str(amount)

    return registry


WEATHER = ToolBinding(name="weather", function="weather")


async def test_a_function_is_judged_by_its_signature(weather: Tools) -> None:
    made = await offers(weather, WEATHER, ToolBinding(name="charge", function="pay"))
    assert [offer.spec.name for offer in made.tools.values()] == ["weather", "charge"]
    assert made.judge("c", "weather", '{"city":"Ubud"}') == CallVerdict(call_id="c", function="weather")
    verdict = made.judge("c", "charge", '{"amount":3}')
    assert verdict == CallVerdict(call_id="c", function="pay", once=True, reads_context=True)
    assert "city: Field required" in (made.judge("c", "weather", "{}").error or "")


async def test_a_function_the_worker_does_not_have_is_named(registry: Tools) -> None:
    with pytest.raises(NotHereError, match=r"no function weather \(they register: none\)"):
        await offers(registry, WEATHER)


async def test_an_agent_takes_one_message(registry: Tools) -> None:
    made = await offers(registry, ToolBinding(name="look_up", agent="archive"))
    spec = made.tools["look_up"].spec
    assert (spec.description, list(spec.schema["properties"])) == ("Knows old orders.", ["message"])
    verdict = made.judge("c", "look_up", '{"message":"Order 42?"}')
    assert verdict == CallVerdict(call_id="c", agent=AgentCall(agent="archive", message="Order 42?"))
    for wrong in ("{}", '{"message":""}', '{"message":3}', "Order 42?", '{"message":"a","more":1}'):
        assert "It takes one string, message." in (made.judge("c", "look_up", wrong).error or "")


async def test_a_hand_off_is_a_tool_without_arguments(registry: Tools) -> None:
    handoff = HandoffBinding(agent="sales.eu-1", description="Anything about buying.")
    made = await offers(registry, handoffs=(handoff,))
    spec = made.tools["transfer_to_sales_eu_1"].spec
    assert spec.description.endswith("Anything about buying.")
    assert spec.schema["properties"] == {}
    verdict = made.judge("c", "transfer_to_sales_eu_1", "not even JSON")
    assert verdict == CallVerdict(call_id="c", handoff="sales.eu-1")


async def test_a_hand_off_without_a_description_has_the_other_agent_s(registry: Tools) -> None:
    made = await offers(registry, handoffs=(HandoffBinding(agent="archive"),))
    assert made.tools["transfer_to_archive"].spec.description.endswith("Knows old orders.")


async def test_a_server_s_tools_keep_its_names_and_only_those_allowed_are_offered(registry: Tools) -> None:
    made = await offers(registry, mcp("shop", "find", "pay"), servers=FakeServers({"shop": ["find", "pay", "burn"]}))
    assert list(made.tools) == ["find", "pay"]
    assert made.judge("c", "find", "") == CallVerdict(call_id="c", function="find", server="shop")
    assert made.judge("c", "pay", "{}") == CallVerdict(call_id="c", function="pay", server="shop", once=True)
    assert "not JSON" in (made.judge("c", "find", "{").error or "")
    assert "not a JSON object" in (made.judge("c", "find", "[]").error or "")


async def test_a_server_this_worker_does_not_know_is_waited_for(registry: Tools) -> None:
    with pytest.raises(NotHereError, match="no MCP server unknown, or not yet") as missing:
        await offers(registry, mcp("unknown"))
    assert missing.value.reason == "ServerNotFound"


async def test_a_server_that_is_named_twice_does_not_clash_with_itself(registry: Tools) -> None:
    made = await offers(
        registry, mcp("shop", "find"), mcp("shop", "find", "pay"), servers=FakeServers({"shop": ["find", "pay"]})
    )
    assert list(made.tools) == ["find", "pay"]


async def test_names_that_are_taken_get_the_server_s_before_them(weather: Tools) -> None:
    servers = FakeServers({"a": ["weather", "time", "x.y/z"], "b": ["time"]})
    made = await offers(weather, WEATHER, mcp("a"), mcp("b"), servers=servers)
    assert list(made.tools) == ["weather", "a__weather", "a__time", "x_y_z", "b__time"]
    assert made.judge("c", "weather", '{"city":"Ubud"}').server is None
    assert made.judge("c", "b__time", "{}") == CallVerdict(call_id="c", function="time", server="b")
    assert made.judge("c", "x_y_z", "{}").function == "x.y/z"


async def test_a_server_that_is_away_is_noted_and_the_others_are_offered(weather: Tools) -> None:
    made = await offers(weather, WEATHER, mcp("gone"), mcp("a"), servers=FakeServers({"a": ["time"]}))
    assert list(made.tools) == ["weather", "time"]
    (note,) = made.missing
    assert "gone" in note
    assert "connection refused" in note


async def test_an_allowed_tool_that_the_server_does_not_have_is_noted(registry: Tools) -> None:
    made = await offers(registry, mcp("shop", "find", "fnid"), servers=FakeServers({"shop": ["find", "burn"]}))
    assert list(made.tools) == ["find"]
    assert made.missing == ["MCP server shop has no tool fnid (it has: burn, find)"]


# ── Approvals ──────────────────────────────────────────────────────────────────────────────────────────────────────

ALWAYS = ApprovalPolicy(question="Really?")


async def test_the_agent_s_policy_goes_with_the_verdict(weather: Tools) -> None:
    binding = ToolBinding(name="charge", function="pay", approval=ApprovalPolicy(when="args.amount > 100"))
    made = await offers(weather, binding)
    assert made.judge("c", "charge", '{"amount":100}').approval is None
    verdict = made.judge("c", "charge", '{"amount": 120.0}')
    assert verdict == CallVerdict(
        call_id="c",
        function="pay",
        once=True,
        reads_context=True,
        approval=ApprovalNeeded(
            question="Agent desk wants to call charge (function pay). Approve?",
            arguments='{"amount":120}',
            digest=CalledTool.function("charge", weather["pay"]).digest('{"amount":120}'),
            target=ApprovalTarget(kind="Function", name="pay"),
        ),
    )


async def test_a_call_that_cannot_be_run_is_not_asked_about(weather: Tools) -> None:
    made = await offers(weather, ToolBinding(name="weather", function="weather", approval=ALWAYS))
    verdict = made.judge("c", "weather", "{}")
    assert (verdict.approval, verdict.error is not None) == (None, True)


async def test_an_agent_called_as_a_tool_is_asked_about(registry: Tools) -> None:
    made = await offers(registry, ToolBinding(name="look_up", agent="archive", approval=ALWAYS))
    verdict = made.judge("c", "look_up", '{"message":"Order 42?"}')
    assert verdict.agent == AgentCall(agent="archive", message="Order 42?")
    assert verdict.approval is not None
    assert verdict.approval.arguments == '{"message":"Order 42?"}'


async def test_a_floor_covers_hand_offs_agents_and_mcp_tools(registry: Tools) -> None:
    made = await offers(
        registry,
        ToolBinding(name="look_up", agent="archive"),
        mcp("shop"),
        servers=FakeServers({"shop": ["pay", "find"]}),
        handoffs=(HandoffBinding(agent="archive"),),
        floors=(ApprovalFloor(tools=["transfer_to_*", "look_up", "pay"]),),
    )
    calls = {"transfer_to_archive": "not even JSON", "look_up": '{"message":"a"}', "pay": "{}", "find": "{}"}
    found = {name: made.judge("c", name, arguments).approval for name, arguments in calls.items()}
    assert {name: needed and needed.arguments for name, needed in found.items()} == {
        "transfer_to_archive": "{}",
        "look_up": '{"message":"a"}',
        "pay": "{}",
        "find": None,
    }


async def test_a_floor_is_for_a_function_under_whatever_name(weather: Tools) -> None:
    made = await offers(weather, ToolBinding(name="harmless", function="pay"), floors=(ApprovalFloor(tools=["pay"]),))
    assert made.judge("c", "harmless", '{"amount":1}').approval is not None


async def test_two_bindings_of_a_server_s_tool_ask_for_both(registry: Tools) -> None:
    asking = ToolBinding(name="paying", mcp=McpBinding(server="shop", tools=["pay"]), approval=ALWAYS)
    made = await offers(registry, mcp("shop"), asking, servers=FakeServers({"shop": ["pay", "find"]}))
    asked = {name: made.judge("c", name, "{}").approval is not None for name in made.tools}
    assert asked == {"find": False, "pay": True}


async def test_64_kib_of_arguments_are_run_and_no_more(weather: Tools) -> None:
    made = await offers(weather, WEATHER, ToolBinding(name="asked", function="weather", approval=ALWAYS))
    longest = '{"city":"' + "x" * (contract.CALL_ARGUMENTS_MAX_BYTES - len('{"city":""}')) + '"}'
    for name in ("weather", "asked"):
        verdict = made.judge("c", name, longest)
        assert (verdict.function, verdict.error) == ("weather", None)
        assert made.judge("c", name, longest + " ") == CallVerdict(
            call_id="c", error="Not run: the arguments are longer than 65536 bytes."
        )
    shown = made.judge("c", "asked", longest).approval
    assert shown is not None
    assert shown.arguments == longest


async def test_arguments_that_cannot_be_shown_are_refused(weather: Tools) -> None:
    made = await offers(weather, ToolBinding(name="charge", function="pay", approval=ALWAYS))
    assert made.judge("c", "charge", '{"amount":12345678901234567890}') == CallVerdict(
        call_id="c",
        error="Not run: a human has to approve it, and the arguments of charge cannot be shown exactly: "
        "it holds an integer beyond 2^53, which not every reader can show exactly.",
    )
