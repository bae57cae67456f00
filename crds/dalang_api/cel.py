"""CEL, in which Agents and pools say when a human is asked: `args.amount > 100`.

The library is cel-expr-python, Google's cel-cpp: it names what is wrong and where, compares integers with doubles, and ends
comprehensions after 10,000 steps. That alone bounds no time: each step may match a 64 KiB text, and `map` doubles a text at
each step (8 s and gigabytes in 200 characters, tried). So an expression with a comprehension, or more than two `matches`,
is evaluated in a process of its own (~0.1 s), with a limit on time and memory. Any other, which is nearly every one, costs
what it is long, and is evaluated here. `python -m dalang_api.cel` is that process.

Names: `args` and `tool` {name, kind, server, readOnly, destructive, idempotent} of a call, or `output` of an answer; `context`,
`agent` {name} and `run` {name, namespace}. A name that has no value, a missing key, and a result that is neither true nor
false are errors.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

EXPRESSION_MAX_CHARS = 2048
Subject = Literal["call", "answer"]
"""What an expression asks about."""
VARIABLES: dict[Subject, tuple[str, ...]] = {
    "call": ("args", "context", "agent", "run", "tool"),
    "answer": ("output", "context", "agent", "run"),
}
ALL_VARIABLES = tuple(dict.fromkeys(name for names in VARIABLES.values() for name in names))
MEMBERS = {
    "agent": ("name",),
    "run": ("name", "namespace"),
    "tool": ("name", "kind", "server", "readOnly", "destructive", "idempotent"),
}
"""All that these variables have; what the others have is up to the model and to tools."""
CHILD_CPU_SECONDS = 1
CHILD_SECONDS = 3.0
"""How long the process may take, however busy the machine is."""
CHILD_MEMORY_BYTES = 512 * 1024 * 1024
MATCHES_MAX = 2
"""The most `matches` of an expression that is evaluated here: each may take 0.4 s on the 64 KiB of a call's arguments."""
_PROBLEM_MAX_CHARS = 300


class CelError(ValueError):
    """An expression that does not compile, or has no true or false to say. The text is one line."""


def check(expression: str, subject: Subject) -> None:
    """Check that an expression compiles, names only what is known of its subject, and may be true or false.

    Raises:
        CelError: It does not; the text has `line:column: what is wrong`, but for a member that does not exist no place.
    """
    compiled, _ = _compile(expression, VARIABLES[subject])
    for variable, member in _members_read(compiled):
        has = MEMBERS.get(variable)
        if has is not None and member not in has:
            raise CelError(f"there is no {variable}.{member}; {variable} has {', '.join(has)}")


def evaluate(expression: str, variables: dict[str, Any]) -> bool:
    """Return what an expression says, within 1 s of processor time and 3 s in all; call it in a thread.

    Args:
        expression: The expression.
        variables: JSON values by name, of `VARIABLES`. One that is absent is an error where the expression needs it.

    Raises:
        CelError: It does not compile, fails, takes too long, or comes to neither true nor false.
    """
    compiled, is_cheap = _compile(expression)
    return _evaluate(compiled, variables) if is_cheap else _in_child(expression, variables)


@functools.lru_cache(maxsize=256)
def _compile(expression: str, variables: tuple[str, ...] = ALL_VARIABLES) -> tuple[Any, bool]:
    """Return the compiled expression, and whether it costs no more than it is long."""
    if len(expression) > EXPRESSION_MAX_CHARS:
        raise CelError(f"the expression is longer than {EXPRESSION_MAX_CHARS} characters")
    from cel_expr_python import cel

    try:
        compiled = _environment(variables).compile(expression)
    except RuntimeError as error:
        raise CelError(_compile_problem(str(error))) from None
    kind = compiled.return_type()
    if kind not in (cel.Type.BOOL, cel.Type.DYN):
        raise CelError(f"the expression is of type {kind.name().lower()}; it has to be true or false")
    try:
        _environment(variables, without_comprehensions=True).compile(expression)
    except RuntimeError:
        return compiled, False
    return compiled, expression.count("matches") <= MATCHES_MAX


@functools.cache
def _environment(variables: tuple[str, ...], *, without_comprehensions: bool = False) -> Any:
    """Return what compiles expressions; if so, only those without `all`, `exists`, `filter`, `map` and their like."""
    from cel_expr_python import cel

    more: dict[str, Any] = {}
    if without_comprehensions:
        more["config"] = cel.NewEnvConfigFromYaml("stdlib: {include_macros: [has]}")
    return cel.NewEnv(variables=dict.fromkeys(variables, cel.Type.DYN), **more)


def _evaluate(compiled: Any, variables: dict[str, Any]) -> bool:
    from cel_expr_python import cel

    try:
        result = compiled.eval(data=variables)
        value, kind = result.value(), result.type()
    except RuntimeError as error:
        raise CelError(_problem(str(error))) from None
    if kind == cel.Type.BOOL:
        return bool(value)
    if kind == cel.Type.ERROR:
        raise CelError(_problem(str(value)))
    raise CelError(f"the expression comes to type {kind.name().lower()}; it has to be true or false")


def _compile_problem(text: str) -> str:
    """Return the first problem of the compiler's, as `line:column: words`."""
    found = re.search(r"ERROR: <input>:(-?\d+:-?\d+): ([^\n]*)", text)
    if found is None:
        return _problem(text)
    place, words = found.group(1), _problem(found.group(2).replace(" (in container '')", ""))
    return words if place.startswith("-") else f"{place}: {words}"


def _problem(text: str) -> str:
    words = re.sub(r"^[A-Z_]+: |\s*\[[A-Z_]+\]\s*$", "", text)
    return " ".join(words.split())[:_PROBLEM_MAX_CHARS]


# ── What is read ───────────────────────────────────────────────────────────────────────────────────────────────────

# Numbers of fields in `cel.expr.CheckedExpr`, the only form in which the library shows what it has parsed.
_CHECKED_EXPR, _EXPR = 2, 4
_IDENT, _SELECT, _CALL, _LIST, _STRUCT, _COMPREHENSION = 4, 5, 6, 7, 8, 9


def _members_read(compiled: Any) -> Iterator[tuple[str, str]]:
    """Return each variable of which a member is read, as `agent.name` or `has(agent.name)`, and the member."""
    checked = dict(_fields(compiled.serialize()))[_CHECKED_EXPR]
    return _members_in(dict(_fields(checked))[_EXPR], frozenset())


def _members_in(expr: bytes, hidden: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Return those in a part of it; `hidden` are names that a comprehension gives another meaning there."""
    for kind, content in _fields(expr):
        fields = list(_fields(content))
        if kind == _SELECT:
            operand, member = dict(fields)[1], dict(fields)[2].decode()
            ident = dict(_fields(operand)).get(_IDENT)
            name = dict(_fields(ident))[1].decode() if ident is not None else None
            if name is not None and name not in hidden:
                yield name, member
        elif kind == _STRUCT:
            fields = [field for _, entry in fields for field in _fields(entry)]
        elif kind == _COMPREHENSION:
            variables = {name.decode() for number, name in fields if number in (1, 3, 8)}
            for number, part in fields:
                if number in (5, 6, 7):
                    yield from _members_in(part, hidden | variables)
        for number, part in fields:
            if number in _PARTS.get(kind, ()):
                yield from _members_in(part, hidden)


_PARTS = {_SELECT: (1,), _CALL: (1, 3), _LIST: (1,), _STRUCT: (3, 4), _COMPREHENSION: (2, 4)}
"""By the kind of an expression, its fields that are expressions in which names mean what they do outside."""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Return number and content of each field of a message of Protocol Buffers that is text or a message itself."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.unknown_fields import UnknownFieldSet

    fields: Any = UnknownFieldSet(Empty.FromString(message))  # a sequence, which its stubs do not say
    return ((one.field_number, one.data) for one in fields if one.wire_type == 2)


# ── The process ────────────────────────────────────────────────────────────────────────────────────────────────────


def _in_child(expression: str, variables: dict[str, Any]) -> bool:
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "dalang_api.cel"],
            input=json.dumps([expression, variables]).encode(),
            capture_output=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CelError(f"the expression took longer than {CHILD_SECONDS:g} s") from None
    except (OSError, ValueError, TypeError) as error:
        raise CelError(f"the expression could not be evaluated: {error}") from None
    if child.returncode != 0:
        raise CelError("the expression took too much time or memory")
    try:
        result, problem = json.loads(child.stdout)
    except ValueError:
        raise CelError("the expression could not be evaluated") from None
    if problem is not None:
        raise CelError(problem)
    return bool(result)


def _main() -> None:
    """Evaluate what stands on standard input, within limits, and write `[result, problem]`."""
    import resource

    expression, variables = json.load(sys.stdin)
    compiled, _ = _compile(expression)
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_CPU_SECONDS, CHILD_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    result, problem = None, None
    try:
        result = _evaluate(compiled, variables)
    except CelError as error:
        problem = str(error)
    sys.stdout.write(json.dumps([result, problem]))


if __name__ == "__main__":
    _main()
