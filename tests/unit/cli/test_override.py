"""`--set`: how assignments are read, what they change, and how the change is told."""

import json
import re
from typing import Any

import pytest
from dalang_cli.approvals.override import ABSENT, Change, OverrideError, changes, members, override

ARGUMENTS = '{"a.b":1,"amount":120,"items":[{"n":1},{"n":2}],"note":null,"to":{"city":"Berlin"}}'


@pytest.mark.parametrize(
    ("assignments", "changed"),
    [
        pytest.param(["amount=12"], [Change("amount", 120, 12)], id="a number"),
        pytest.param(["amount=12.5"], [Change("amount", 120, 12.5)], id="a fraction"),
        pytest.param(['amount="12"'], [Change("amount", 120, "12")], id="a text, quoted as JSON"),
        pytest.param(["note=see below"], [Change("note", None, "see below")], id="what is no JSON is text"),
        pytest.param(["note="], [Change("note", None, "")], id="nothing is the empty text"),
        pytest.param(["note=a=b"], [Change("note", None, "a=b")], id="only the first = counts"),
        pytest.param(["note=NaN"], [Change("note", None, "NaN")], id="what only Python reads as JSON is text"),
        pytest.param(["amount=true"], [Change("amount", 120, True)], id="a truth value"),
        pytest.param(["to=null"], [Change("to", {"city": "Berlin"}, None)], id="null"),
        pytest.param(["to.city=Bonn"], [Change("to.city", "Berlin", "Bonn")], id="nested"),
        pytest.param(["to.zip=1"], [Change("to.zip", ABSENT, 1)], id="added"),
        pytest.param(
            ["by.who.name=ada"], [Change("by", ABSENT, {"who": {"name": "ada"}})], id="added, with what it is in"
        ),
        pytest.param(["items.1.n=3"], [Change("items.1.n", 2, 3)], id="in a list"),
        pytest.param(["items=[]"], [Change("items", [{"n": 1}, {"n": 2}], [])], id="a list of another length"),
        pytest.param([r"a\.b=2"], [Change(r"a\.b", 1, 2)], id="a key with a dot"),
        pytest.param(["to={}", "to.x=1"], [Change("to.x", ABSENT, 1), Change("to.city", "Berlin", ABSENT)], id="two"),
    ],
)
def test_assignments(assignments: list[str], changed: list[Change]) -> None:
    assert changes(json.loads(ARGUMENTS), override(ARGUMENTS, assignments)) == changed


@pytest.mark.parametrize(
    ("assignments", "complaint"),
    [
        pytest.param(["amount"], "is not key=value", id="no value"),
        pytest.param(["=1"], "is not key=value", id="no key"),
        pytest.param(["to..city=1"], "is not key=value", id="an empty key"),
        pytest.param(["amount.x=1"], "amount has no members", id="into a number"),
        pytest.param(["items.2.n=1"], "2 is no index of a list of 2", id="behind the end of a list"),
        pytest.param(["items.-1=1"], "-1 is no index", id="an index from the end"),
        pytest.param(["amount=120"], "changes nothing", id="the same again"),
        pytest.param(["amount=1", "amount=120"], "changes nothing", id="there and back"),
        pytest.param(["amount=9007199254740993"], "beyond 2^53", id="a number that JSON's readers would round"),
        pytest.param(["amount=1e999"], "--set: ", id="a number there is none of"),
    ],
)
def test_what_cannot_be_meant(assignments: list[str], complaint: str) -> None:
    with pytest.raises(OverrideError, match=re.escape(complaint)):
        override(ARGUMENTS, assignments)


@pytest.mark.parametrize("text", ["The plan is C.", "12", '{"a": 1}', "a=b"])
def test_an_answer_that_is_a_text_becomes_another_text(text: str) -> None:
    changed = override('"The plan is B."', [f"text={text}"])
    assert changed == {"text": text}
    assert changes(members('"The plan is B."'), changed) == [Change("text", "The plan is B.", text)]


@pytest.mark.parametrize("assignment", ["plan=C", "text.more=C", "text=", "text"])
def test_an_answer_that_is_a_text_has_no_members(assignment: str) -> None:
    with pytest.raises(OverrideError, match=re.escape("change it with --set text=…")):
        override('"The plan is B."', [assignment])


@pytest.mark.parametrize("arguments", ["[1]", "1", "no JSON"])
def test_only_objects_have_members(arguments: str) -> None:
    with pytest.raises(OverrideError, match="reject it with a reason"):
        override(arguments, ["a=1"])


@pytest.mark.parametrize(("before", "after"), [(1, True), (0, False), (1, 1.5), ([1], [True]), ("1", 1), (None, False)])
def test_what_python_finds_equal_differs(before: Any, after: Any) -> None:
    assert changes({"a": before}, {"a": after})
    assert not changes({"a": before}, {"a": before})
