"""Instructions as Jinja templates: checked by the controller, rendered by workers.

Whoever may write an Agent must not be able to hang a worker or fill its memory, so this is a part of Jinja in which every
template ends soon. There are three walls:

- only the syntax, names, filters and tests listed here are allowed: no `set`, macros, imports, slices, calls or methods;
- each loop's rounds and each filter's work are paid from one budget per rendering, sizes being known *before* a value is
  made;
- Jinja's sandbox around it all, for what these two forgot.

Jinja's own sandbox alone is not enough: it keeps a template from Python's internals, not from running for hours.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, nodes
from jinja2.filters import do_title
from jinja2.runtime import Context as JinjaContext
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.visitor import NodeTransformer

from dalang_api.contract import INSTRUCTIONS_MAX_BYTES

NODES_MAX = 2000
"""The most pieces of syntax in one template: some 500 expressions. Text counts as one piece."""
DEPTH_MAX = 60
"""How deep they may nest; also the most terms of one sum."""
LOOP_DEPTH_MAX = 2
RANGE_MAX = 1000
BUDGET = 120_000
"""Work of one rendering, in about microseconds: a round of a loop costs the pieces of syntax in it, a value a part of its
size. Of all filters on all kinds of values the dearest took 1.7 µs for one, most of them less than 1."""
VALUE_MAX = INSTRUCTIONS_MAX_BYTES
"""The longest text or list an expression may make."""
NUMBER_MAX = 2**53
"""Beyond it integers are refused: JSON readers round them, and arithmetic on huge ones takes for ever."""
INDENT_MAX = 100

_CHEAP = 64
"""Characters or items handled at the cost of one piece of syntax, which is about a microsecond."""
_ITEM = 32
"""What looking at one item of a list costs, in characters: half a microsecond."""


class TemplateError(ValueError):
    """The template is not taken or cannot be rendered; the text tells its author the line and the reason."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")


def check(template: str) -> None:
    """Check that a template can be compiled and holds nothing that is not taken. What it will find is not known yet.

    Raises:
        TemplateError: It cannot be used.
    """
    if problem := _verdict(template):
        raise TemplateError(problem)


@lru_cache(maxsize=512)
def _verdict(template: str) -> str | None:
    """Return what is wrong with a template. Remembered, the refusals too: each wake of an Agent asks."""
    try:
        _compile(template)
    except TemplateError as error:
        return str(error)
    return None


def render(template: str, *, context: dict[str, Any], agent: str, run: str, namespace: str) -> str:
    """Return the template's text.

    Args:
        template: A Jinja template; text without `{` is returned as it is.
        context: The context variables, as JSON values.
        agent: Name of the agent.
        run: Name of the AgentRun.
        namespace: Its namespace.

    Raises:
        TemplateError: It cannot be used, a variable is missing, or it takes too much time or room.
    """
    compiled = _compile(template)
    if compiled is None:
        return template
    variables = {"context": _Variables(context), "agent": {"name": agent}, "run": {"name": run, "namespace": namespace}}
    token = _METER.set(_Meter())
    try:
        return _within_bounds(compiled.generate(variables))
    except TemplateError as error:
        raise TemplateError(str(error), _line(error.__traceback__)) from None
    except Exception as error:  # noqa: BLE001  # Jinja's, and what Python raises for `1 < "a"`
        raise TemplateError(str(error) or type(error).__name__, _line(error.__traceback__)) from None
    finally:
        _METER.reset(token)


def _within_bounds(pieces: Iterable[str]) -> str:
    parts: list[str] = []
    size = 0
    for piece in pieces:
        _charge(len(piece))
        size += len(piece.encode(errors="replace"))
        if size > INSTRUCTIONS_MAX_BYTES:
            raise TemplateError(f"the text grows beyond {INSTRUCTIONS_MAX_BYTES} bytes")
        parts.append(piece)
    return "".join(parts)


def _line(traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


@lru_cache(maxsize=128)
def _compile(template: str) -> Template | None:
    """Return the compiled template, or nothing for one that is only text."""
    if len(template.encode(errors="replace")) > INSTRUCTIONS_MAX_BYTES:
        raise TemplateError(f"the template is longer than {INSTRUCTIONS_MAX_BYTES} bytes")
    if "{" not in template:
        return None
    try:
        tree = _ENVIRONMENT.parse(template)
        _check_shape(tree)
        _check_names(tree, frozenset({"context", "agent", "run"}))
        code = _ENVIRONMENT.compile(_Metering().visit(tree))
    except TemplateSyntaxError as error:
        raise TemplateError(error.message or "it is no template", error.lineno) from None
    except (RecursionError, MemoryError):
        raise TemplateError("it nests too deep") from None
    except TemplateError:
        raise
    except (ValueError, ArithmeticError, SyntaxError) as error:  # a literal such as a number of 5,000 digits
        raise TemplateError(f"it cannot be read: {error}") from None
    return Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.globals)


# ── What may be written ────────────────────────────────────────────────────────────────────────────────────────────

_TAKEN: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For),
    *(nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test, nodes.Call),
    *(nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat, nodes.Neg, nodes.Pos),
)
_NAMES: dict[type[nodes.Node], str] = {
    nodes.Assign: "{% set %}",
    nodes.AssignBlock: "{% set %}",
    nodes.Slice: "a slice ([1:2]; use truncate, first or last)",
    nodes.Pow: "**",
    nodes.CallBlock: "{% call %}",
    nodes.FilterBlock: "{% filter %}",
    nodes.FromImport: "{% from %}",
    nodes.Scope: "{% autoescape %}",
}
_LOOP_ATTRIBUTES = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth"})


def _check_shape(tree: nodes.Template) -> None:
    """Look at each piece of syntax by itself, without recursion: the tree may be deeper than Python's stack."""
    waiting: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    count = 0
    while waiting:
        node, depth, loops = waiting.pop()
        count += 1
        line = node.lineno
        if not isinstance(node, _TAKEN):
            written = _NAMES.get(type(node), f"{{% {type(node).__name__.lower()} %}}")
            raise TemplateError(f"{written} is not allowed in instructions", line)
        if count > NODES_MAX:
            raise TemplateError(f"the template has more than {NODES_MAX} pieces of syntax", line)
        if depth > DEPTH_MAX:
            raise TemplateError(f"it nests deeper than {DEPTH_MAX}", line)
        if isinstance(node, nodes.For):
            loops += 1
        if problem := _problem(node, loops):
            raise TemplateError(problem, line)
        waiting += [(child, depth + 1, loops) for child in node.iter_child_nodes()]


def _problem(node: nodes.Node, loops: int) -> str | None:
    """Return what is wrong with a piece of syntax, whatever is around it."""
    match node:
        case nodes.For(recursive=True):
            return "a recursive loop is not allowed in instructions"
        case nodes.For() if loops > LOOP_DEPTH_MAX:
            return f"loops nest deeper than {LOOP_DEPTH_MAX}"
        case nodes.Filter(name=name) if name not in _FILTERS:
            return f"there is no filter {name}; there are {', '.join(sorted(_FILTERS))}"
        case nodes.Test(name=name) if name not in _TESTS:
            return f"there is no test {name}; there are {', '.join(sorted(_TESTS))}"
        case nodes.Filter(node=None):
            return "{% filter %} is not allowed in instructions"
        case nodes.Call(node=called) if not (isinstance(called, nodes.Name) and called.name == "range"):
            return "nothing can be called but range(); use a filter, as in {{ context.name | upper }}"
        case nodes.Call(dyn_args=args, dyn_kwargs=more) | nodes.Filter(dyn_args=args, dyn_kwargs=more) if args or more:
            return "* and ** are not allowed in arguments"
        case nodes.Test(dyn_args=args, dyn_kwargs=more) if args or more:
            return "* and ** are not allowed in arguments"
        case nodes.Const(value=int() | float() as number) if not -NUMBER_MAX <= number <= NUMBER_MAX:
            return "the number is too large"
    return None


def _check_names(node: nodes.Node, known: frozenset[str]) -> None:
    """Check that each name is one there is. The depth is bounded by now."""
    if isinstance(node, nodes.Name) and node.name not in known:
        problem = f"there is no variable {node.name}; context variables are written context.{node.name}"
        raise TemplateError(problem, node.lineno)
    if isinstance(node, nodes.Call):  # of range, as _check_shape saw to
        for child in (*node.args, *node.kwargs):
            _check_names(child, known)
        return
    if not isinstance(node, nodes.For):
        for child in node.iter_child_nodes():
            _check_names(child, known)
        return
    targets = {name.name for name in node.target.find_all(nodes.Name)}
    if isinstance(node.target, nodes.Name):
        targets.add(node.target.name)
    if reserved := targets & {"context", "agent", "run", "loop", "range"}:
        raise TemplateError(f"a loop cannot give {reserved.pop()} another meaning", node.lineno)
    inside = known | targets
    _check_names(node.iter, known)
    if node.test is not None:
        _check_names(node.test, inside)
    for child in node.body:
        _check_names(child, inside | {"loop"})
    for child in node.else_:
        _check_names(child, known)


# ── What it may cost ───────────────────────────────────────────────────────────────────────────────────────────────


class _Meter:
    """What is left of one rendering's budget."""

    def __init__(self) -> None:
        self.left = BUDGET


_METER: ContextVar[_Meter] = ContextVar("_METER")
"""Unset while a template is compiled: Jinja then gives up working constants out, which would be work without a budget."""


def _charge(size: int, each: int = 1) -> None:
    meter = _METER.get()
    meter.left -= 1 + size * each // _CHEAP
    if meter.left < 0:
        raise TemplateError("it takes too long: fewer rounds, or less in each of them")


def _bounded(size: int) -> None:
    """Pay for a text or list of that size, before it is made."""
    if size > VALUE_MAX:
        raise TemplateError(f"a text or list would grow beyond {VALUE_MAX} characters or items")
    _charge(size)


def _size(value: Any) -> int:
    """Return how long a value is when it is written, roughly.

    Lists and objects are paid for here, as going through them takes longer than writing them does.

    Raises:
        TemplateError: It is longer than any value may be; what is beyond is not looked at.
    """
    waiting = [value]
    size = 0
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            size += len(current)
        elif isinstance(current, dict):
            _charge(len(current), _ITEM)
            size += 2 + sum(len(key) + 4 if isinstance(key, str) else 4 for key in current)
            waiting += current.values()
        elif isinstance(current, list | tuple):
            _charge(len(current), _ITEM)
            size += 2 + 2 * len(current)
            waiting += current
        else:
            size += 1 + current.bit_length() // 3 if isinstance(current, int) else 16
        if size > VALUE_MAX:
            raise TemplateError(f"a text or list is larger than {VALUE_MAX} characters or items")
    return size


class _Metering(NodeTransformer):
    """Puts the meter into a template: around each loop's values, and each operation that Jinja lets nobody intercept."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        cost = sum(1 for _ in node.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _call("loop values", node.iter, [nodes.Const(cost)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_CondExpr(self, node: nodes.CondExpr) -> nodes.CondExpr:
        """Let `{{ "," if not loop.last }}` say nothing otherwise, as it does with StrictUndefined itself."""
        self.generic_visit(node)
        if node.expr2 is None:
            node.expr2 = nodes.Const("", lineno=node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _call("compared", operand.expr)
        node.expr = _call("compared", node.expr)
        return node


def _call(name: str, node: nodes.Node, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    """Return a call of a filter whose name nobody can write, since it is no identifier."""
    return nodes.Filter(cast("nodes.Expr", node), name, args or [], [], None, None, lineno=node.lineno)


def _loop_values(values: Any, cost: int) -> Iterator[Any]:
    for value in _items(values):
        _charge(cost, _CHEAP)
        yield value


def _compared(value: Any) -> Any:
    if isinstance(value, Undefined):
        return value
    _charge(_size(value), 1 if isinstance(value, str) else 8)  # a list of numbers takes longer than text of its size
    return value


# ── Filters, tests, operators ──────────────────────────────────────────────────────────────────────────────────────
# Own ones: Jinja's make Markup, take any object, and know no bounds.


def _text(value: Any) -> str:
    """Return a value as it is written, and pay for it."""
    if isinstance(value, Undefined):
        str(value)  # raises
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        raise TemplateError("only text, numbers, lists and objects can be written")
    _bounded(_size(value))
    return str(value)


def _items(value: Any) -> list[Any]:
    """Return what a loop over the value gives: a list's items, an object's names, a text's characters."""
    if isinstance(value, Undefined):
        iter(value)  # raises
    if not isinstance(value, list | tuple | dict | str):
        raise TemplateError(f"{_kind(value)} cannot be gone through; only lists, objects and text can")
    _bounded(len(value))
    return list(value)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "nothing" if value is None else "this")


def _whole(value: Any, limit: int) -> int:
    if not isinstance(value, int) or not -limit <= value <= limit:
        raise TemplateError(f"a whole number of at most {limit} is expected here")
    return value


def _default(value: Any, other: Any = "", boolean: bool = False) -> Any:
    return other if isinstance(value, Undefined) or (boolean and not value) else value


def _join(value: Any, separator: Any = "", attribute: str | None = None) -> str:
    parts = [_text(part) for part in (_items(value) if attribute is None else _map(value, attribute=attribute))]
    between = _text(separator)
    _bounded(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _joined(parts: list[Any]) -> str:
    return _join(parts)


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, before, after = _text(value), _text(old), _text(new)
    found = text.count(before) if count < 0 else min(text.count(before), count)
    _bounded(len(text) + found * max(0, len(after) - len(before)))
    return text.replace(before, after, count)


def _to_json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, Undefined):
        str(value)  # raises
    width = 0 if indent is None else _whole(indent, 8)
    if indent is not None:
        _size(value)  # a second time: with an indent Python's own encoder writes it, not the one in C
    _bounded(_size(value) * (1 + max(0, width)))
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _first(value: Any) -> Any:
    items = _items(value)
    return items[0] if items else _ENVIRONMENT.undefined("there is no first item: the list is empty")


def _last(value: Any) -> Any:
    items = _items(value)
    return items[-1] if items else _ENVIRONMENT.undefined("there is no last item: the list is empty")


def _order(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _sort(value: Any, reverse: bool = False, attribute: str | None = None) -> list[Any]:
    items = _items(value)
    _charge(_size(items), 20)
    if attribute is not None:
        _charge_paths(items, attribute)
    return sorted(
        items, key=lambda item: _order(item if attribute is None else _path(item, attribute)), reverse=bool(reverse)
    )


def _unique(value: Any) -> list[Any]:
    seen: dict[str, Any] = {}
    items = _items(value)
    _charge(_size(items), 4)
    _charge(len(items), 5 * _CHEAP)  # an encoder is made for each
    for item in items:
        seen.setdefault(json.dumps(item, sort_keys=True), item)
    return list(seen.values())


def _map(value: Any, *, attribute: str) -> list[Any]:
    items = _items(value)
    _charge_paths(items, attribute)
    return [_path(item, attribute) for item in items]


def _charge_paths(items: list[Any], attribute: Any) -> None:
    steps = 1 + min(8, attribute.count(".")) if isinstance(attribute, str) else 1
    _charge(len(items), (1 + steps) * _CHEAP)


def _path(item: Any, attribute: str) -> Any:
    if not isinstance(attribute, str):
        raise TemplateError("attribute has to be a name, in quotes")
    for name in attribute.split(".", 8):
        item = _ENVIRONMENT.getattr(item, name)
    return item


def _round(value: Any, precision: int = 0) -> float:
    if not isinstance(value, int | float):
        raise TemplateError(f"{_kind(value)} cannot be rounded")
    return round(float(value), _whole(precision, 15))


def _int(value: Any, default: Any = 0) -> Any:
    number = _float(value, None)
    return default if number is None or not -NUMBER_MAX <= number <= NUMBER_MAX else int(number)


def _float(value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, Undefined):
        str(value)  # raises
    if isinstance(value, str) and len(value) > 100:
        return default
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _length(value: Any) -> int:
    return len(_items(value))


def _entries(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Undefined):
        return []  # as Jinja's own
    if not isinstance(value, dict):
        raise TemplateError(f"{_kind(value)} has no items; only an object has")
    _bounded(len(value))
    return list(value.items())


def _dict_sort(value: Any, reverse: bool = False) -> list[tuple[str, Any]]:
    entries = _entries(value)
    _charge(len(entries), _CHEAP)
    return sorted(entries, key=lambda entry: entry[0].lower(), reverse=bool(reverse))


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(value)
    margin = width if isinstance(width, str) and len(width) <= INDENT_MAX else " " * max(0, _whole(width, INDENT_MAX))
    _bounded(len(text) + (text.count("\n") + 1) * len(margin))
    _charge(text.count("\n"), 16)
    lines = text.split("\n")
    indented = [margin + line if line or blank else line for line in lines]
    return "\n".join(indented if first else [lines[0], *indented[1:]])


def _truncate(value: Any, length: int = 255, killwords: bool = False, end: Any = "...") -> str:
    text, mark = _text(value), _text(end)
    most = _whole(length, VALUE_MAX)
    if len(text) <= most:
        return text
    kept = text[: max(0, most - len(mark))]
    return (kept if killwords or " " not in kept else kept.rsplit(" ", 1)[0]) + mark


def _trim(value: Any, characters: Any = None) -> str:
    text = _text(value)
    if characters is None:
        return text.strip()
    trimmed = _text(characters)
    _charge(len(text), 1 + len(trimmed) // 16)  # each character is looked for among these
    return text.strip(trimmed)


def _title(value: Any) -> str:
    text = _text(value)
    _charge(len(text), 16)  # word by word, and a word may be one character
    return do_title(text)


def _range(*bounds: Any) -> list[int]:
    numbers = range(*(_whole(bound, NUMBER_MAX) for bound in bounds))
    if len(numbers) > RANGE_MAX:
        raise TemplateError(f"range() gives more than {RANGE_MAX} numbers")
    _charge(len(numbers))
    return list(numbers)


_FILTERS: dict[str, Callable[..., Any]] = {
    "capitalize": lambda value: _text(value).capitalize(),
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dict_sort,
    "first": _first,
    "float": _float,
    "indent": _indent,
    "int": _int,
    "items": _entries,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": _items,
    "lower": lambda value: _text(value).lower(),
    "map": _map,
    "replace": _replace,
    "round": _round,
    "sort": _sort,
    "string": _text,
    "title": _title,
    "tojson": _to_json,
    "trim": _trim,
    "truncate": _truncate,
    "unique": _unique,
    "upper": lambda value: _text(value).upper(),
    "wordcount": lambda value: len(_text(value).split()),
}
_UNWRITABLE: dict[str, Callable[..., Any]] = {"loop values": _loop_values, "joined": _joined, "compared": _compared}


def _paid(test: Callable[..., bool]) -> Callable[..., bool]:
    def paid(*values: Any) -> bool:
        for value in values:
            _compared(value)
        return test(*values)

    return paid


_JINJA_TESTS = cast("dict[str, Callable[..., bool]]", JINJA_TESTS)
_TESTS: dict[str, Callable[..., Any]] = {
    name: _JINJA_TESTS[name] if name in ("defined", "undefined") else _paid(_JINJA_TESTS[name])
    for name in (
        *("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence"),
        *("true", "false", "odd", "even", "divisibleby", "lower", "upper"),
        *("in", "eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge"),
    )
}


class _Variables(dict[str, Any]):
    """The context variables: what is missing here is told by its full name."""


class _Missing(StrictUndefined):
    """Raises what its hint says, wherever it is used but in `default` and `is defined`."""

    __slots__ = ()


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an object's entry, never a method: `context.items` is the variable called so."""
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in _LOOP_ATTRIBUTES else self._missing(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            str(obj)  # raises what is missing
        is_found = isinstance(obj, dict) and isinstance(argument, str) and argument in obj
        if isinstance(obj, list | tuple | str) and isinstance(argument, int):
            is_found = -len(obj) <= argument < len(obj)
        return obj[argument] if is_found else self._missing(obj, argument)

    def call_binop(self, context: JinjaContext, operator: str, left: Any, right: Any) -> Any:
        for operand in (left, right):
            if isinstance(operand, Undefined):
                str(operand)  # raises
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _bounded(len(left) + len(right))
            return left + right
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            _bounded(len(left) + len(right))
            return left + right
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            hint = "; use ~ to put text together" if operator == "+" else ""
            raise TemplateError(f"{operator} takes numbers, not {_kind(left)} and {_kind(right)}{hint}")
        if any(isinstance(operand, int) and abs(operand) > NUMBER_MAX for operand in (left, right)):
            raise TemplateError("the number is too large")
        return super().call_binop(context, operator, left, right)

    def _missing(self, obj: Any, name: Any) -> Undefined:
        shown = str(name)[:80] if isinstance(name, str | int) else "this"
        if isinstance(obj, _Variables):
            return self.undefined(
                f"context.{shown} is not set: set spec.context.{shown} of the run, "
                f'or write {{{{ context.{shown} | default("…") }}}}'
            )
        return self.undefined(f'there is no {shown} in {_kind(obj)}; write … | default("…") where it may be missing')


def _make_environment() -> _Environment:
    """Return the environment: lines that hold only a tag leave nothing behind, all other text stays as it is."""
    made = _Environment(
        undefined=_Missing,
        autoescape=False,
        finalize=_text,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        cache_size=0,
    )
    made.globals = {"range": _range}
    made.filters = {**_FILTERS, **_UNWRITABLE}
    made.tests = dict(_TESTS)
    return made


_ENVIRONMENT = _make_environment()
