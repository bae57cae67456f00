"""CEL: what expressions may say, what is an error, and that none holds a worker up."""

import contextlib
import time
from typing import Any

import pytest
from dalang_api import cel

VARIABLES: dict[str, Any] = {
    "args": {
        "amount": 100.5,
        "count": 120,
        "name": "Ada Lovelace",
        "items": [{"price": 1}, {"price": 200}],
        "nothing": None,
        "numbers": list(range(4000)),
        "letters": ["a"] * 4000,
        "text": "a" * 64_000,
        "pattern": "(a?){500}(b|c|d{90}){10}",
    },
    "context": {"vip": True},
    "agent": {"name": "desk"},
    "run": {"name": "r1", "namespace": "shop"},
    "tool": {"name": "pay", "kind": "function", "server": "", "readOnly": False, "destructive": True},
}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("args.amount > 100", True),
        ("args.amount > 100.5", False),
        ("args.count > 119.5", True),
        ("args.count == 120.0", True),
        ("args.count * 2 > 100", True),
        ("double(args.count) * 1.5 > 100.0", True),
        ("args['amount'] >= 100 && args.name != ''", True),
        ("args.nothing == null", True),
        ("has(args.missing)", False),
        ("has(args.missing) && args.missing > 1", False),
        ("'missing' in args", False),
        ("args.missing > 1 || true", True),
        ("args.name.startsWith('Ada') && args.name.endsWith('e') && args.name.contains('Love')", True),
        ("args.name.matches('(?i)^ada')", True),
        ("size(args.items) == 2", True),
        ("args.items.exists(item, item.price > 100)", True),
        ("args.items.all(item, item.price > 100)", False),
        ("args.items.filter(item, item.price > 100).size() == 1", True),
        ("args.items.map(item, item.price)[1] > 100", True),
        ("args.name in ['Ada', 'Ada Lovelace']", True),
        ("context.vip ? args.amount > 1000 : true", False),
        ("agent.name == 'desk' && run.namespace == 'shop' && run.name == 'r1'", True),
        ("tool.kind == 'function' && tool.destructive && !tool.readOnly", True),
        ("context.vip", True),
    ],
)
def test_what_an_expression_says(expression: str, result: bool) -> None:
    cel.check(expression, "call")
    assert cel.evaluate(expression, VARIABLES) is result


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("args.missing > 1", 'Key not found in map : "missing"'),
        ("args.items.exists(item, item.cost > 1)", 'Key not found in map : "cost"'),
        ("output.confidence < 0.95", 'No value with name "output"'),
        ("has(output.confidence)", 'No value with name "output"'),
        ("args.amount > args.name", "No matching overloads"),
        ("args.amount", "comes to type double; it has to be true or false"),
        ("args.name", "comes to type string; it has to be true or false"),
        ("args.nothing", "comes to type null; it has to be true or false"),
        ("args.count / 0 == 1", "divide by zero"),
        ("int(args.name) > 1", "cannot convert string to int"),
        ("args.items[5].price > 1", "Index error"),
    ],
)
def test_what_fails_at_run_time(expression: str, words: str) -> None:
    cel.check(expression, "answer" if "output" in expression else "call")
    with pytest.raises(cel.CelError) as raised:
        cel.evaluate(expression, VARIABLES)
    assert words in str(raised.value)


def test_a_number_beyond_64_bits_fails_whatever_is_asked_of_its_object() -> None:
    with pytest.raises(cel.CelError, match="out of range"):
        cel.evaluate("args.amount > 1", {"args": {"amount": 2, "order": 2**64}})


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("args.amount >", "1:14: Syntax error"),
        ("", "1:1: Syntax error"),
        ("args.amount > 1 &&\n  amount", "2:3: undeclared reference to 'amount'"),
        ("args.name.lower() == 'ada'", "1:16: undeclared reference to 'lower'"),
        ("1 + 1", "of type int; it has to be true or false"),
        ("'yes'", "of type string; it has to be true or false"),
        ("1 > 'a'", "1:3: found no matching overload for '_>_' applied to '(int, string)'"),
        ("true" + " " * 2048, "longer than 2048 characters"),
        ("(" * 900 + "true" + ")" * 900, "recursion limit"),
        ("args" + ".b" * 1000, "recursion depth"),
    ],
)
def test_what_does_not_compile(expression: str, words: str) -> None:
    for attempt in (lambda one: cel.check(one, "call"), lambda one: cel.evaluate(one, VARIABLES)):
        with pytest.raises(cel.CelError) as raised:
            attempt(expression)
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("subject", "expression", "words"),
    [
        ("call", "output.x > 1", "1:7: undeclared reference to 'output.x'"),
        ("answer", "args.x > 1", "1:5: undeclared reference to 'args.x'"),
        ("answer", "output.x > 1 && tool.readOnly", "1:21: undeclared reference to 'tool.readOnly'"),
        ("call", "agent.foo == 'x'", "there is no agent.foo; agent has name"),
        ("answer", "run.uid == 'x'", "there is no run.uid; run has name, namespace"),
        ("call", "!tool.readonly", "there is no tool.readonly; tool has name, kind, server, readOnly, destructive"),
        ("call", "has(tool.readonly) && args.x", "there is no tool.readonly"),
        ("call", "agent.foo.bar == 'x'", "there is no agent.foo"),
        ("call", "args.x.startsWith(agent.foo)", "there is no agent.foo"),
        ("call", "agent.foo.startsWith('x')", "there is no agent.foo"),
        ("call", "args.x in [agent.foo]", "there is no agent.foo"),
        ("call", "{'x': agent.foo}.x == {agent.foo: 1}.y", "there is no agent.foo"),
        ("call", "args.all(x, x == agent.foo)", "there is no agent.foo"),
        ("call", "agent.foo.all(agent, agent.name == 'x')", "there is no agent.foo"),
        ("call", "args.x.all(agent, agent.y) && agent.foo", "there is no agent.foo"),
    ],
)
def test_what_names_something_that_is_never_there_does_not_compile(
    subject: cel.Subject, expression: str, words: str
) -> None:
    with pytest.raises(cel.CelError) as raised:
        cel.check(expression, subject)
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    ("subject", "expression"),
    [
        ("answer", "output == 'yes' || output.x > 1"),
        ("answer", "context.vip && agent.name == 'desk' && run.name == run.namespace"),
        ("call", "args.agents.exists(agent, agent.foo == agent['bar'] && args.tools.all(tool, tool.of == agent.foo))"),
        ("call", "args.agent.foo == context.run.uid"),
        ("call", "tool['readOnly'] || 'x' in agent"),
        ("call", " && ".join(f"tool.{member} != null" for member in cel.MEMBERS["tool"])),
    ],
)
def test_what_may_be_there_compiles(subject: cel.Subject, expression: str) -> None:
    cel.check(expression, subject)


def nested(depth: int, inner: str, over: str = "[0,1,2,3,4,5,6,7,8,9]") -> str:
    for level in range(depth):
        inner = f"{over}.all(x{level}, {inner})"
    return inner


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(nested(9, "true"), id="10^9 steps"),
        pytest.param(nested(3, "true", "args.numbers"), id="4000^3 steps"),
        pytest.param(
            "[args.text].map(x, x + x + x + x)" + ".map(x,x+x+x+x)" * 20 + "[0].size() > 1", id="text that grows"
        ),
        pytest.param(
            "[args.numbers].map(x,x+x+x+x)" + ".map(x,x+x+x+x)" * 12 + "[0].size() > 1", id="a list that grows"
        ),
        pytest.param("args.letters.all(x, !args.text.matches(x + '{900}b'))", id="4000 patterns"),
        pytest.param(
            f"args.letters.all(x, {' && '.join(['args.numbers == args.numbers'] * 60)})", id="large comparisons"
        ),
    ],
)
def test_an_expression_that_would_take_for_ever_is_ended(expression: str) -> None:
    started = time.monotonic()
    with pytest.raises(cel.CelError, match=r"budget|too much time or memory|took longer"):
        cel.evaluate(expression, VARIABLES)
    assert time.monotonic() - started < cel.CHILD_SECONDS + 2


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("true" + " && true" * 250, id="long"),
        pytest.param("-" * 2000 + "1 == 1", id="signs"),
        pytest.param(" || ".join(["args.text.matches('(a?){500}(b|c|d{90}){10}x')"] * 40), id="many patterns"),
        pytest.param(" || ".join(["args.text.matches(args.pattern)"] * cel.MATCHES_MAX), id="patterns of the model's"),
        pytest.param("args.text.matches('(.*.*.*.*.*.*.*.*)*x')", id="a pattern that others choke on"),
        pytest.param("args.text" + " + args.text" * 28 + " == 'x'", id="long text"),
    ],
)
def test_other_expressions_cost_what_they_are_long(expression: str) -> None:
    started = time.monotonic()
    with contextlib.suppress(cel.CelError):
        cel.evaluate(expression, VARIABLES)
    assert time.monotonic() - started < cel.CHILD_SECONDS + 2
