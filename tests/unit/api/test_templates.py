"""Instructions as templates: what they say, what is refused, and that no template takes long."""

import time
from typing import Any

import pytest
from dalang_api.contract import CONTEXT_MAX_BYTES, INSTRUCTIONS_MAX_BYTES
from dalang_api.templates import NODES_MAX, TemplateError, check, render


def rendered(template: str, /, **context: Any) -> str:
    return render(template, context=context, agent="support", run="refund-x7", namespace="shop")


def problem(template: str, /, **context: Any) -> str:
    with pytest.raises(TemplateError) as raised:
        rendered(template, **context)
    return str(raised.value)


@pytest.mark.parametrize(
    ("template", "context", "text"),
    [
        pytest.param("Be brief.\n", {}, "Be brief.\n", id="text alone, its last newline included"),
        pytest.param('Answer {"a": 1}.\n', {}, 'Answer {"a": 1}.\n', id="braces of JSON"),
        pytest.param("Help {{ context.name }}.", {"name": "Ada"}, "Help Ada.", id="a variable"),
        pytest.param("{{ context['name'] }}", {"name": "Ada"}, "Ada", id="a variable as an item"),
        pytest.param("{{ context.items }}", {"items": 3}, "3", id="a variable named as a method of dict"),
        pytest.param("{{ context.a.b.0 }}", {"a": {"b": [7]}}, "7", id="within a variable"),
        pytest.param("{{ context.a }}", {"a": "<b>&"}, "<b>&", id="nothing is escaped"),
        pytest.param("{{ context.a }}", {"a": "{{ 1 + 1 }}"}, "{{ 1 + 1 }}", id="a variable is no template"),
        pytest.param("{{ agent.name }} {{ run.namespace }}/{{ run.name }}", {}, "support shop/refund-x7", id="the run"),
        pytest.param("{{ context.a | default('x') }}", {}, "x", id="a default"),
        pytest.param("{{ context.a.b | default('x') }}", {"a": {}}, "x", id="a default within a variable"),
        pytest.param("{% if context.a is defined %}a{% else %}b{% endif %}", {}, "b", id="whether one is set"),
        pytest.param(
            "A\n{% if context.a > 1 and not context.b %}\nB\n{% elif true %}\nC\n{% endif %}\nD\n",
            {"a": 2, "b": False},
            "A\nB\nD\n",
            id="lines of tags leave nothing behind",
        ),
        pytest.param(
            "{% for x in context.l %}{{ loop.index }}/{{ loop.length }} {{ x }}{{ ', ' if not loop.last }}{% endfor %}",
            {"l": ["a", "b"]},
            "1/2 a, 2/2 b",
            id="a loop",
        ),
        pytest.param(
            "{% for k, v in context.d | dictsort if v %}{{ k }}={{ v }};{% else %}none{% endfor %}",
            {"d": {"b": 1, "A": 2, "c": 0}},
            "A=2;b=1;",
            id="a loop over an object, with a condition",
        ),
        pytest.param("{% for x in [] %}{% else %}none{% endfor %}", {}, "none", id="a loop over nothing"),
        pytest.param("{% for x in range(2, 8, 2) %}{{ x }}{% endfor %}", {}, "246", id="numbers"),
        pytest.param("{{ 1 + 2 * 3 - 7 // 2 }} {{ 7 % 4 }} {{ 1 / 2 }} {{ -1 }}", {}, "4 3 0.5 -1", id="arithmetic"),
        pytest.param("{{ 'a' + 'b' ~ 1 ~ context.x }}", {"x": None}, "ab1None", id="putting together"),
        pytest.param("{{ 1 < 2 <= 2 != 3 }} {{ 'a' in context.l }}", {"l": ["a"]}, "True True", id="comparing"),
        pytest.param("{{ context.n is divisibleby(3) and context.n is not string }}", {"n": 9}, "True", id="tests"),
        pytest.param("{{ context.a | upper | replace('A', 'b') | trim }}", {"a": " aa "}, "bb", id="filters of text"),
        pytest.param("{{ context.a | title }}", {"a": "it's ada"}, "It's Ada", id="a title"),
        pytest.param(
            "{{ context.l | sort | unique | join(', ') }}", {"l": ["b", "a", "b"]}, "a, b", id="filters of lists"
        ),
        pytest.param(
            "{{ context.l | map(attribute='a.b') | join('+') }}",
            {"l": [{"a": {"b": 1}}, {"a": {"b": 2}}]},
            "1+2",
            id="map",
        ),
        pytest.param("{{ context.a | tojson }}", {"a": {"ü": ["<", None]}}, '{"ü": ["<", null]}', id="JSON"),
        pytest.param("{{ context.a | indent(2) }}", {"a": "x\n\ny"}, "x\n\n  y", id="indented"),
        pytest.param("{{ context.a | truncate(9) }}", {"a": "hello wide world"}, "hello...", id="truncated"),
        pytest.param(
            "{{ '3.7' | int }} {{ 'x' | int(7) }} {{ 3.14159 | round(2) }}", {}, "3 7 3.14", id="numbers made"
        ),
        pytest.param(
            "{{ context.l | first }} {{ context.l | last }} {{ context.l | length }}", {"l": [1, 2]}, "1 2 2", id="ends"
        ),
        pytest.param("{% raw %}{{ x }}{% endraw %}{# a comment #}", {}, "{{ x }}", id="raw text and comments"),
    ],
)
def test_what_a_template_says(template: str, context: dict[str, Any], text: str) -> None:
    check(template)
    assert rendered(template, **context) == text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        pytest.param("a\n{{ x", "line 2: unexpected end of template", id="cut off"),
        pytest.param("\n\n{% endif %}", "line 3: Encountered unknown tag 'endif'", id="an end without a beginning"),
        pytest.param("{{ name }}", "line 1: there is no variable name; context variables are written context.name", id="no context."),
        pytest.param("{{ x | md5 }}", "line 1: there is no filter md5; there are capitalize, count,", id="an unknown filter"),
        pytest.param("{% if 0 %}{{ 1 | md5 }}{% endif %}", "line 1: there is no filter md5", id="one that is never reached"),
        pytest.param("{{ 1 is callable }}", "line 1: there is no test callable", id="an unknown test"),
        pytest.param("{% set x = 1 %}", "line 1: {% set %} is not allowed", id="set"),
        pytest.param("{% set x %}a{% endset %}", "{% set %} is not allowed", id="a block set"),
        pytest.param("{% macro a() %}{% endmacro %}", "{% macro %} is not allowed", id="a macro"),
        pytest.param("{% include 'x' %}", "{% include %} is not allowed", id="include"),
        pytest.param("{% import 'x' as y %}", "{% import %} is not allowed", id="import"),
        pytest.param("{% from 'x' import y %}", "{% from %} is not allowed", id="from"),
        pytest.param("{% extends 'x' %}", "{% extends %} is not allowed", id="extends"),
        pytest.param("{% block a %}{% endblock %}", "{% block %} is not allowed", id="a block"),
        pytest.param("{% with a = 1 %}{% endwith %}", "{% with %} is not allowed", id="with"),
        pytest.param("{% filter upper %}a{% endfilter %}", "{% filter %} is not allowed", id="a filter block"),
        pytest.param("{% autoescape true %}{% endautoescape %}", "{% autoescape %} is not allowed", id="autoescape"),
        pytest.param("{% for x in [1] recursive %}{% endfor %}", "a recursive loop is not allowed", id="a recursive loop"),
        pytest.param("{% for a in [1] %}" * 3 + "{% endfor %}" * 3, "loops nest deeper than 2", id="three loops"),
        pytest.param("{% for run in [1] %}{% endfor %}", "a loop cannot give run another meaning", id="a name taken"),
        pytest.param("{{ context.a[1:2] }}", "a slice", id="a slice"),
        pytest.param("{{ 2 ** 9 }}", "** is not allowed", id="a power"),
        pytest.param("{{ context.a.upper() }}", "nothing can be called but range()", id="a method"),
        pytest.param("{{ lipsum() }}", "nothing can be called but range()", id="a function of Jinja's"),
        pytest.param("{{ range(*context.a) }}", "* and ** are not allowed", id="arguments from a list"),
        pytest.param("{{ range }}", "there is no variable range", id="range itself"),
        pytest.param("{{ self }}", "there is no variable self", id="self"),
        pytest.param("{{ 99999999999999999999 }}", "the number is too large", id="a large number"),
        pytest.param("{{ 1e999 }}", "the number is too large", id="infinity"),
        pytest.param("{{ " + "9" * 5000 + " }}", "it cannot be read", id="a number of 5,000 digits"),
        pytest.param("{{ 0x" + "f" * 50_000 + " }}", "the number is too large", id="one of 50,000 in hex"),
        pytest.param("x" * (INSTRUCTIONS_MAX_BYTES + 1), "longer than 65536 bytes", id="too long"),
        pytest.param("{{ 1 }}" * NODES_MAX, "more than 2000 pieces", id="too many expressions"),
        pytest.param("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "too deep", id="deep parentheses"),
        pytest.param("{{ " + "+".join("1" * 9000) + " }}", "deeper than 60", id="a long sum"),
        pytest.param("{{ context" + ".a" * 20_000 + " }}", "deeper than 60", id="a long path"),
        pytest.param("{{ " + "-" * 20_000 + "1 }}", "too deep", id="many signs"),
        pytest.param("{% if 1 %}" * 6000, "too deep", id="many ifs"),
        pytest.param("{{ 1" + " if 1 else 1" * 5000 + " }}", "too deep", id="many conditions"),
        pytest.param("{" * 60_000, "too deep", id="braces alone"),
        pytest.param("{%" + " " * 60_000, "line 1", id="a tag of spaces"),
        pytest.param("{#" * 30_000, "Missing end of comment", id="comments that do not end"),
        pytest.param("{% raw %}" + "{%  " * 15_000, "Missing end of raw", id="raw text that does not end"),
    ],
)  # fmt: skip
def test_what_is_no_template_is_refused_beforehand(template: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(TemplateError) as raised:
        check(template)
    assert words in str(raised.value)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("template", "context", "words"),
    [
        pytest.param(
            "Dear\n{{ context.user_name }}",
            {},
            "line 2: context.user_name is not set: set spec.context.user_name of the run, "
            'or write {{ context.user_name | default("…") }}',
            id="a variable that is not set",
        ),
        pytest.param("{% if context.a %}{% endif %}", {}, "context.a is not set", id="one that is asked for"),
        pytest.param("{% for x in context.a %}{% endfor %}", {}, "context.a is not set", id="one that is gone through"),
        pytest.param("{{ context.a < 1 }}", {}, "context.a is not set", id="one that is compared"),
        pytest.param("{{ context.a ~ 1 }}", {}, "context.a is not set", id="one that is put together"),
        pytest.param("{{ context.a + 1 }}", {}, "context.a is not set", id="one that is added"),
        pytest.param("{{ context.a.b | default(1) }}", {}, "context.a is not set", id="what would hold it is missing"),
        pytest.param("{{ context.a.b }}", {"a": {}}, "there is no b in an object", id="something within one"),
        pytest.param("{{ context.a.0 }}", {"a": []}, "there is no 0 in a list", id="an item beyond the end"),
        pytest.param("{{ context.a | first }}", {"a": []}, "the list is empty", id="the first of nothing"),
        pytest.param("{{ context.a.upper }}", {"a": "x"}, "there is no upper in text", id="a method"),
        pytest.param("{{ context.__class__ }}", {}, "context.__class__ is not set", id="Python's class of it"),
        pytest.param("{{ ''.__class__ }}", {}, "there is no __class__", id="Python's class of text"),
        pytest.param("{% for x in [1] %}{{ loop.changed }}{% endfor %}", {}, "there is no changed", id="a loop's method"),
        pytest.param("{% for x in [1] %}{{ loop }}{% endfor %}", {}, "only text, numbers,", id="the loop itself"),
        pytest.param("{{ 1 < 'a' }}", {}, "line 1: '<' not supported", id="what cannot be compared"),
        pytest.param("{{ 1 / 0 }}", {}, "line 1: division by zero", id="a division by zero"),
        pytest.param("{{ 'a' + 1 }}", {}, "+ takes numbers, not text and a number; use ~", id="text and a number"),
        pytest.param("{{ 'a' * 9 }}", {}, "* takes numbers, not text and a number", id="text times a number"),
        pytest.param("{{ [1] * 9 }}", {}, "* takes numbers", id="a list times a number"),
        pytest.param("{{ '%9s' % 1 }}", {}, "% takes numbers", id="text as a format"),
        pytest.param("{{ range(1001) }}", {}, "more than 1000", id="too many numbers"),
        pytest.param("{{ 3 | items }}", {}, "a number has no items", id="items of a number"),
        pytest.param("{{ context.n * 2 }}", {"n": 10**300}, "the number is too large", id="a large number"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_to_its_author(template: str, context: dict[str, Any], words: str) -> None:
    check(template)
    assert words in problem(template, **context)


A = "a" * 8000
ONES = [1] * 4000
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("template", "context"),
    [
        pytest.param("{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}", {}, id="a million empty rounds"),
        pytest.param("{% for a in range(1000) %}{% for b in range(1000) if b < 0 %}{% endfor %}{% endfor %}", {}, id="a million refused"),
        pytest.param("{% for a in context.x %}{% for b in context.x %}xyz{% endfor %}{% endfor %}", {"x": A}, id="a loop over text, twice"),
        pytest.param("{{ context.x | replace('a', context.x) | replace('a', context.x) }}", {"x": A}, id="text that squares"),
        pytest.param("{{ context.x | replace('', context.x) }}", {"x": A}, id="text between all characters"),
        pytest.param("{{ context.x | join(context.x) }}", {"x": A}, id="text joined by itself"),
        pytest.param("{{ context.x | indent(100) }}", {"x": "\n" * 8000}, id="lines indented"),
        pytest.param("{{ context.x | indent(context.x) }}", {"x": "\n" * 8000}, id="lines indented by lines"),
        pytest.param("{{ context.x | indent(999999999) }}", {"x": "a"}, id="an indent without bounds"),
        pytest.param("{{ context.x | tojson(indent=999999999) }}", {"x": [1]}, id="JSON indented without bounds"),
        pytest.param("{{ context.x | tojson(indent=8) }}", {"x": [[[[1]]]] * 900}, id="JSON of deep lists"),
        pytest.param("{{ [" + ",".join(["context.x"] * 500) + "] | tojson }}", {"x": ONES}, id="one list many times"),
        pytest.param("{{ " + "~".join(["context.x"] * 20) + " }}", {"x": A}, id="one text many times"),
        pytest.param("{% for a in range(1000) %}{{ context.x }}{% endfor %}", {"x": A}, id="output without bounds"),
        pytest.param("{% for a in range(1000) %}{% if context.x | upper | lower == 'z' %}{% endif %}{% endfor %}", {"x": A}, id="filters in a loop"),
        pytest.param(
            "{% for a in context.x %}{% for b in context.x %}{% if context.x == context.y %}{% endif %}{% endfor %}{% endfor %}",
            {"x": ONES, "y": [1] * 3999 + [2]},
            id="lists compared in a loop",
        ),
        pytest.param(
            "{% for a in context.x %}{% for b in context.x %}{% if context.x is eq(context.y) %}{% endif %}{% endfor %}{% endfor %}",
            {"x": ONES, "y": [1] * 3999 + [2]},
            id="lists compared by a test",
        ),
        pytest.param("{% for a in context.x %}{% if 2 in context.x %}{% endif %}{% endfor %}", {"x": ONES}, id="a search in a loop"),
        pytest.param("{% for x in range(1000) %}{{ range(1000) | sort | unique | length }}{% endfor %}", {}, id="sorting in a loop"),
        pytest.param("{% for x in range(1000) %}{{ [" + ",".join("x" * 500) + "] | length }}{% endfor %}", {}, id="a long body"),
        pytest.param("{{ context.x }}{{ context.x | tojson }}{{ context.x == context.x }}", {"x": DEEP}, id="lists deeper than the stack"),
    ],
)  # fmt: skip
def test_whoever_writes_a_template_cannot_hold_a_worker_up(template: str, context: dict[str, Any]) -> None:
    check(template)
    began = time.process_time()
    problem(template, **context)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("expression", "context"),
    [
        pytest.param("context.x | title", {"x": "a " * 4000}, id="title"),
        pytest.param("context.x | unique", {"x": [{}] * 2000}, id="unique, of objects"),
        pytest.param("context.x | unique", {"x": A}, id="unique, of characters"),
        pytest.param("context.x | map(attribute='a.a.a.a.a.a.a.a') | first", {"x": [{"a": {}}] * 800}, id="map"),
        pytest.param("context.x | map(attribute='0') | list", {"x": A}, id="map, of nothing"),
        pytest.param("context.x | sort(attribute='a.a.a.a.a')", {"x": [{}] * 2000}, id="sort by an attribute"),
        pytest.param("context.x | tojson", {"x": ONES}, id="JSON"),
        pytest.param("context.x | tojson(indent=0)", {"x": [[[]]] * 1200}, id="JSON in lines"),
        pytest.param("context.x | string", {"x": [[[]]] * 1200}, id="a list written"),
        pytest.param("context.x | indent(0)", {"x": chr(10) * 8000}, id="empty lines"),
        pytest.param("context.x | trim(context.y)", {"x": A[:4000], "y": "".join(map(chr, range(33, 1200))) + "a"}, id="trim"),
        pytest.param("context.x | join | wordcount", {"x": ONES}, id="join"),
    ],
)  # fmt: skip
def test_no_filter_is_much_cheaper_than_it_is_slow(expression: str, context: dict[str, Any]) -> None:
    template = f"{{% for a in range(1000) %}}{{% if ({expression}) is none %}}{{% endif %}}{{% endfor %}}"
    check(template)
    began = time.process_time()
    problem(template, **context)
    assert time.process_time() - began < 0.3  # 0.05 to 0.15 on an idle machine


def test_what_is_large_but_bounded_is_rendered() -> None:
    context = [f"order {number:03}" for number in range(CONTEXT_MAX_BYTES // 16)]
    template = "{% for x in context.l %}{{ loop.index }}. {{ x | upper }}: {{ x | length + 1 }}\n{% endfor %}"
    assert rendered(template, l=context).count("\n") == len(context)


def test_a_template_is_compiled_once() -> None:
    template = "{{ context.x }}" * 200
    check(template)
    began = time.process_time()
    for _ in range(20):
        check(template)
    assert time.process_time() - began < 0.05


def test_a_template_that_is_refused_is_read_once() -> None:
    template = "{{ context.x }}" * 600 + "{% set x = 1 %}"
    for attempt in range(200):
        if attempt == 1:
            began = time.process_time()
        with pytest.raises(TemplateError, match=r"^line 1: {% set %} is not allowed in instructions$"):
            check(template)
    assert time.process_time() - began < 0.2
