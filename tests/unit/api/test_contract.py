"""What crosses Temporal: names that are read back, and digests that must be the same in every process."""

import pytest
from dalang_api import contract
from dalang_api.contract import (
    EMPTY_DIGEST,
    AgentSnapshot,
    Message,
    TextPart,
    ToolCallPart,
    WorkflowTarget,
    extend_digest,
)

UID = "0b6b1e4e-6c0a-4d3c-9d6f-2f6b6c1f3a11"


class TestWorkflowId:
    @pytest.mark.parametrize(
        ("workflow_id", "target"),
        [
            pytest.param(
                contract.run_workflow_id("dalang-0a1b2c3d", "shop", "refund-x7k2", UID),
                WorkflowTarget("dalang-0a1b2c3d", "shop", "refund-x7k2", UID),
                id="of a run",
            ),
            pytest.param(
                contract.run_workflow_id("dalang-0a1b2c3d", "shop", "v1.2.refund", UID),
                WorkflowTarget("dalang-0a1b2c3d", "shop", "v1.2.refund", UID),
                id="of a run whose name holds dots",
            ),
            pytest.param(
                contract.catalogue_workflow_id("dalang-0a1b2c3d", "shop", "default", "9f31c2aa10"),
                WorkflowTarget("dalang-0a1b2c3d", "shop", "default", "9f31c2aa10"),
                id="of a pool's catalogue",
            ),
        ],
    )
    def test_is_read_back(self, workflow_id: str, target: WorkflowTarget) -> None:
        assert contract.parse_workflow_id(workflow_id) == target

    @pytest.mark.parametrize(
        "workflow_id",
        ["", "order-42", "dalang.shop", "dalang.shop.name", "dalang.shop.name.", ".shop.name.uid", "a..b.c"],
    )
    def test_of_somebody_else_is_refused(self, workflow_id: str) -> None:
        with pytest.raises(ValueError, match=r"is not <installation>\.<namespace>\.<name>\.<uid>"):
            contract.parse_workflow_id(workflow_id)


def user(text: str) -> Message:
    return Message(role="user", parts=[TextPart(text=text)])


def digest(*messages: Message) -> str:
    running = EMPTY_DIGEST
    for message in messages:
        running = extend_digest(running, message)
    return running


class TestDigest:
    def test_is_the_same_for_the_same_words(self) -> None:
        assert digest(user("a"), user("b")) == digest(user("a"), user("b"))

    @pytest.mark.parametrize(
        "thread",
        [
            pytest.param([], id="nothing said"),
            pytest.param([user("a")], id="less said"),
            pytest.param([user("a"), user("b"), user("c")], id="more said"),
            pytest.param([user("b"), user("a")], id="another order"),
            pytest.param([user("ab")], id="the same text in one message"),
            pytest.param(
                [user("a"), Message(role="assistant", parts=[TextPart(text="b")])], id="said by somebody else"
            ),
            pytest.param(
                [user("a"), Message(role="user", sender="x", parts=[TextPart(text="b")])], id="another sender"
            ),
            pytest.param(
                [user("a"), Message(role="user", parts=[ToolCallPart(call_id="1", tool="b", arguments="{}")])],
                id="another kind of part",
            ),
        ],
    )
    def test_differs_for_other_words(self, thread: list[Message]) -> None:
        assert digest(*thread) != digest(user("a"), user("b"))

    def test_survives_temporal(self) -> None:
        sent = user("Wo ist Bestellung 42? 🪆")
        received = Message.model_validate_json(sent.model_dump_json(exclude_none=True))
        assert digest(received) == digest(sent)

    def test_is_the_same_in_every_release(self) -> None:
        """Workers of two releases serve one run during a rollout, so this value never changes."""
        assert digest(user("hello")) == "d2713c5c5317c67f9859b2f58376456e14bed36b6163ef4e46986ad78c83a430"


@pytest.mark.parametrize("pool", ["default", "shop.eu"])
def test_a_queue_tells_its_pool(pool: str) -> None:
    assert contract.pool_of_queue(contract.pool_queue("dalang-1", "shop", pool)) == pool


def test_the_key_of_a_call_is_its_place_and_arguments() -> None:
    call = contract.ToolCall(
        call_id="c", tool="pay", function="pay", arguments="{}", thread="main", turn=1, index=0, agent="a"
    )
    key = contract.idempotency_key("uid", call)
    assert key == contract.idempotency_key("uid", call.model_copy(update={"call_id": "other"}))
    others = [
        call.model_copy(update=more) for more in ({"turn": 2}, {"index": 1}, {"thread": "t"}, {"arguments": "[]"})
    ]
    assert len({key, *(contract.idempotency_key("uid", other) for other in others)}) == 5
    assert contract.idempotency_key("another run", call) != key


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("Ada", "Ada", id="text"),
        pytest.param("42", 42, id="a number"),
        pytest.param('"42"', "42", id="text that would be a number"),
        pytest.param('["a",{"b":null}]', ["a", {"b": None}], id="JSON"),
        pytest.param("{not json", "{not json", id="text that begins like JSON"),
        pytest.param("NaN", "NaN", id="what Python takes for JSON"),
        pytest.param('"\\ud800"', '"\\ud800"', id="half a character"),
        pytest.param("[" * 1500 + "]" * 1500, "[" * 1500 + "]" * 1500, id="endless nesting"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_a_context_variable_is_json_where_it_is_json_and_comes_back_as_it_was(text: str, value: object) -> None:
    assert contract.context_value(text) == value
    assert contract.context_text(value) == text


@pytest.mark.parametrize(
    ("more", "reads"),
    [
        pytest.param({}, False, id="nothing does"),
        pytest.param(
            {"tools": [{"name": "pay", "function": "pay", "approval": {}}]}, False, id="an approval without when"
        ),
        pytest.param(
            {"tools": [{"name": "pay", "function": "pay", "approval": {"when": "!context.vip"}}]},
            True,
            id="a tool's approval",
        ),
        pytest.param({"output_approval": {"when": "!context.vip"}}, True, id="the answer's approval"),
        pytest.param({"output_approval": {"when": "output.sure < 0.9"}}, False, id="an approval that reads none"),
        pytest.param({"instructions": "Hi {{ context.name }}"}, True, id="instructions"),
    ],
)
def test_an_agent_s_calls_carry_the_context_where_it_is_read(more: dict[str, object], reads: bool) -> None:
    agent = AgentSnapshot.model_validate({"name": "a", "uid": "u", "generation": 1, "queue": "q", "model": "m", **more})
    assert agent.reads_context() is reads
