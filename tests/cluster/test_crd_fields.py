"""Every field of every kind on a real API server, read off the schemas so that a new field cannot be forgotten.

`sample` makes an object with all fields out of a schema, and `VARIANTS` says which of them exclude each other. From both
come the tests that everything is stored as sent, that each bound of each field is kept, and that each field of a run but
`cancel` and `ttlAfterFinished` is immutable.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import crdgen
from dalang_api.v1alpha1 import Agent, AgentApproval, AgentModel, AgentPool, AgentRun, AgentSchedule, AgentSession
from dalang_api.v1alpha1.schema import Resource

if TYPE_CHECKING:
    from tests.cluster.conftest import Objects

Schema = dict[str, Any]
Path = tuple[str | int, ...]

TEXTS = (
    *("word", "other", "7m", "8m", "0.7", "0.8", "https://example.com/v1", "http://example.org", "https://example.com"),
    *("Word", "Other", f"sha256:{'0' * 64}", f"sha256:{'1' * 64}"),
)
"""Texts to choose from: every pattern of the API fits at least two of them."""
ANYTHING = {"word": [1, None, {"other": True}], "other": None}
"""Where an object's fields are somebody else's."""
TIMES = ("2026-01-02T03:04:05Z", "2027-01-02T03:04:05Z")

CHANGEABLE = {"cancel", "ttlAfterFinished"}
IMMUTABLE = "spec: Forbidden: a run's spec is immutable but for cancel and ttlAfterFinished; create another run"


def choices(schema: Schema) -> tuple[Any, Any]:
    """Return two values of a field that has no fields itself; of an enum with one value, that one twice."""
    match schema:
        case {"enum": values}:
            return values[0], values[-1]
        case {"type": "boolean"}:
            return False, True
        case {"type": "integer"}:
            least = schema.get("minimum", 0)
            return least, least + 1
        case {"format": "date-time"}:
            return TIMES
        case {"type": "string"}:
            fitting = [text for text in TEXTS if re.search(schema.get("pattern", ""), text)]
            assert len(fitting) > 1, f"TEXTS needs two texts that match {schema['pattern']}"
            return fitting[0], fitting[1]
    raise AssertionError(f"no value is known for {schema}")


def sample(schema: Schema) -> Any:
    """Return a value with every field there is."""
    match schema["type"]:
        case "object" if "properties" in schema:
            return {name: sample(field) for name, field in schema["properties"].items()}
        case "object" if "additionalProperties" in schema:
            return {TEXTS[0]: sample(schema["additionalProperties"])}
        case "object":
            return ANYTHING
        case "array":
            return [sample(schema["items"])]
        case _:
            return choices(schema)[0]


def fields(schema: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema, bool]]:
    """Yield each field below a schema as it stands in its `sample`: path, schema, whether it is required."""
    for name, field in schema.get("properties", {}).items():
        yield (*path, name), field, name in schema.get("required", [])
        yield from fields(field, (*path, name))
    if "additionalProperties" in schema:
        yield (*path, TEXTS[0]), schema["additionalProperties"], False
    if "items" in schema:
        yield (*path, 0), schema["items"], True
        yield from fields(schema["items"], (*path, 0))


def part_schema(kind: type[Resource], part: str) -> Schema:
    schema: Schema = crdgen.structural_schema(kind)["properties"][part]
    return schema


def spell(path: Path) -> str:
    """Return a path as the API server writes it: `tools[0].name`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def get(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def parse(path: str) -> Path:
    """Read back what `spell` writes."""
    return tuple(int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path))


def has(value: Any, path: Path) -> bool:
    try:
        get(value, path)
    except KeyError:
        return False
    return True


def put(value: Any, path: Path, new: Any) -> Any:
    """Return a copy with a value at a path."""
    changed = copy.deepcopy(value)
    get(changed, path[:-1])[path[-1]] = new
    return changed


def cut(value: Any, path: Path) -> Any:
    """Return a copy without the value at a path."""
    changed = copy.deepcopy(value)
    del get(changed, path[:-1])[path[-1]]
    return changed


@dataclasses.dataclass(frozen=True)
class Variant:
    """A valid spec: the sample without the fields that exclude others, and with values that go together."""

    cuts: str = ""
    """Paths, as `spell` writes them, between spaces."""
    puts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TEMPERATURE = "parameters.temperature"
FIRST = "tools[0]"
OTHER_MODEL = {"fallbackModelRefs[0].name": "another-model"}
SERVER = "mcpServers[0]"
TRANSPORTS = {"streamableHTTP": "headers", "sse": "headers", "stdio": "env"}
"""Each with its list of named values."""


TASK = "runTemplate.spec"
TIMES_THAT_FIT = {
    "schedule.cron[0]": "0 9 * * 1-5",
    "schedule.intervals[0].every": "8m",
    "schedule.endAt": TIMES[1],
}


def pool_variant(transport: str, excluded_source: str, excluded_place: str) -> Variant:
    """Return a pool whose MCP server has that transport."""
    others = [f"{SERVER}.{other}" for other in TRANSPORTS if other != transport]
    source = f"{SERVER}.{transport}.{TRANSPORTS[transport]}[0].{excluded_source}"
    return Variant(" ".join([*others, source, f"retrievers[0].qdrant.{excluded_place}"]))


VARIANTS: Mapping[type[Resource], Mapping[str, Variant]] = {
    AgentModel: {
        "OpenAI": Variant("azureOpenAI anthropic bedrock auth.workloadIdentity", {"provider": "OpenAI"}),
        "OpenAI by identity": Variant(
            "azureOpenAI anthropic bedrock auth.apiKey auth.workloadIdentity.anthropic", {"provider": "OpenAI"}
        ),
        "AzureOpenAI": Variant("openAI anthropic bedrock auth.workloadIdentity", {"provider": "AzureOpenAI"}),
        "Anthropic by identity": Variant(
            f"openAI azureOpenAI bedrock auth.apiKey auth.workloadIdentity.openAI {TEMPERATURE}",
            {"provider": "Anthropic"},
        ),
        "Bedrock": Variant(
            f"openAI azureOpenAI anthropic auth.workloadIdentity {TEMPERATURE}", {"provider": "Bedrock"}
        ),
    },
    AgentPool: {
        f"{transport} with {what}": pool_variant(transport, *excluded)
        for transport in TRANSPORTS
        for what, excluded in {"a value": ("valueFrom", "path"), "a secret": ("value", "url")}.items()
    },
    Agent: {
        "a function": Variant(
            f"{FIRST}.mcp {FIRST}.agentRef instructionsFrom", {"toolChoice.mode": "Tool", **OTHER_MODEL}
        ),
        "MCP": Variant(
            f"{FIRST}.function {FIRST}.agentRef instructions instructionsFrom.function",
            {"toolChoice.mode": "Tool", **OTHER_MODEL},
        ),
        "an agent": Variant(
            f"{FIRST}.function {FIRST}.mcp instructions instructionsFrom.configMapKeyRef toolChoice.tool", OTHER_MODEL
        ),
    },
    AgentRun: {"input": Variant("messages sessionRef"), "messages": Variant("input agentRef")},
    AgentSession: {"a session": Variant()},
    AgentSchedule: {
        "input": Variant(f"{TASK}.messages {TASK}.sessionRef", TIMES_THAT_FIT),
        "messages": Variant(f"{TASK}.input {TASK}.agentRef", TIMES_THAT_FIT),
    },
    AgentApproval: {
        "undecided": Variant("decision reason override decidedBy"),
        "decided": Variant("", {"decision": "Approve", "decidedBy": "dalang-dev-admin"}),
    },
}
"""Every field stands in at least one variant of its kind."""


def valid_spec(kind: type[Resource], variant: str) -> Any:
    """Return a spec with every field that a variant of the kind has."""
    wanted = VARIANTS[kind][variant]
    spec = sample(part_schema(kind, "spec"))
    for path in wanted.cuts.split():
        spec = cut(spec, parse(path))
    for path, value in wanted.puts.items():
        spec = put(spec, parse(path), value)
    return spec


def variants(*kinds: type[Resource]) -> list[Any]:
    """Return kind and variant, as parameters of a test."""
    return [pytest.param(kind, variant, id=f"{kind.KIND}: {variant}") for kind in kinds for variant in VARIANTS[kind]]


@pytest.mark.parametrize("kind", crdgen.KINDS, ids=lambda kind: kind.KIND)
def test_every_field_stands_in_a_variant(kind: type[Resource]) -> None:
    specs = [valid_spec(kind, variant) for variant in VARIANTS[kind]]
    absent = [
        spell(path) for path, _, _ in fields(part_schema(kind, "spec")) if not any(has(one, path) for one in specs)
    ]
    assert absent == []


# ── Everything is stored as sent ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "variant"), variants(*crdgen.KINDS))
def test_every_field_is_stored_and_read_back(kind: type[Resource], variant: str, objects: "Objects") -> None:
    spec, status = valid_spec(kind, variant), sample(part_schema(kind, "status"))
    if variant == "decided":  # not from the start: the admission policy refuses it
        created = objects.create(kind, valid_spec(kind, "undecided"))
        created = objects.replace(kind, {**created, "spec": spec})
    else:
        created = objects.create(kind, spec)
    stored = objects.replace_status(kind, {**created, "status": status})
    assert (stored["spec"], stored["status"]) == (spec, status)
    assert kind.model_validate(stored).to_wire() == {"spec": spec, "status": status}


# ── Bounds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def out_of_bounds(schema: Schema, value: Any) -> Iterator[tuple[Any, str]]:
    """Yield values that the schema excludes, each with a part of what the API server says."""
    other_type = 1 if schema["type"] == "string" else "1"
    is_time = schema.get("format") == "date-time"
    yield other_type, f"must be of type {'date-time' if is_time else schema['type']}"
    for keyword, excess, complaint in EXCESSES:
        if keyword in schema:
            yield excess(schema[keyword], value), complaint.format(schema[keyword])
    if schema.get("x-kubernetes-list-type") in ("set", "map"):
        yield value * 2, "Duplicate value"


EXCESSES: tuple[tuple[str, Callable[[Any, Any], Any], str], ...] = (
    ("enum", lambda _, __: "Another", 'Unsupported value: "Another"'),
    ("pattern", lambda _, __: "~" * 8, "should match"),
    ("minLength", lambda least, _: "a" * (least - 1), "should be at least {} chars long"),
    ("maxLength", lambda most, _: "a" * (most + 1), "Too long: may not be more than {} bytes"),
    ("minimum", lambda least, _: least - 1, "should be greater than or equal to {}"),
    ("maximum", lambda most, _: most + 1, "should be less than or equal to {}"),
    ("minItems", lambda _, __: [], "should have at least {} items"),
    ("maxItems", lambda most, value: value * (most + 1), "must have at most {} items"),
    (
        "maxProperties",
        lambda most, value: {f"word{number}": value[TEXTS[0]] for number in range(most + 1)},
        "must have at most {} items",
    ),
)


def bad_values(schema: Schema, value: Any) -> Iterator[tuple[Path, Any, str]]:
    """Yield the value once with each bound of each field broken: where, the value, the complaint."""
    for path, field, required in fields(schema):
        if not has(value, path):
            continue
        for bad, complaint in out_of_bounds(field, get(value, path)):
            yield path, put(value, path, bad), complaint
        if required and not isinstance(path[-1], int):
            yield path, cut(value, path), "Required value"


@pytest.mark.parametrize(("kind", "variant"), variants(*crdgen.KINDS))
def test_every_bound_of_a_spec_is_kept(kind: type[Resource], variant: str, objects: "Objects") -> None:
    def write(value: Any) -> None:
        objects.create(kind, value, dry_run=True)

    tried, kept = try_bad_values(part_schema(kind, "spec"), valid_spec(kind, variant), "spec", write, objects)
    assert kept == tried


@pytest.mark.parametrize("kind", crdgen.KINDS, ids=lambda kind: kind.KIND)
def test_every_bound_of_a_status_is_kept(kind: type[Resource], objects: "Objects") -> None:
    schema = part_schema(kind, "status")
    created = objects.create(kind, valid_spec(kind, next(iter(VARIANTS[kind]))))

    def write(value: Any) -> None:
        objects.replace_status(kind, {**created, "status": value}, dry_run=True)

    tried, kept = try_bad_values(schema, sample(schema), "status", write, objects)
    assert kept == tried


def try_bad_values(
    schema: Schema, good: Any, part: str, write: Callable[[Any], None], objects: "Objects"
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return where and what was to be refused, and what was; of what was not, the words instead."""
    tried, kept = [], []
    for path, bad, complaint in bad_values(schema, good):
        where = f"{part}.{spell(path)}"
        tried.append((where, complaint))
        try:
            write(bad)
        except objects.refused as refusal:
            causes = [cause for cause in refusal.causes if cause.startswith(where) and complaint in cause]
            kept.append((where, complaint) if causes else (where, str(refusal)))
    return tried, kept


# ── A run is immutable ─────────────────────────────────────────────────────────────────────────────────────────────

Change = tuple[Any, Any]
"""A spec before and after."""


def changes() -> Iterator[tuple[str, str, Change]]:
    """Yield every way to add, change or remove one field of a run: its id, the field of the spec, the change."""
    schema = part_schema(AgentRun, "spec")
    seen = set()
    for task in ("input", "messages"):
        full = valid_spec(AgentRun, task)
        for path, field, required in fields(schema):
            if path in seen or path[0] not in full:
                continue
            seen.add(path)
            name, top = spell(path), str(path[0])
            if not required:
                yield f"{name} is added", top, (cut(full, path), full)
                yield f"{name} is removed", top, (full, cut(full, path))
            if field["type"] == "array":
                yield f"{name} gets longer", top, (full, put(full, path, get(full, path) * 2))
            elif field["type"] != "object":
                yield f"{name} is changed", top, (full, put(full, path, choices(field)[1]))
    assert {path[0] for path in seen} == set(schema["properties"])


def possible(change: Change) -> bool:
    """Whether both specs are valid by themselves: one with neither or with both of a pair never gets that far."""
    pairs = (("input", "messages"), ("agentRef", "sessionRef"))
    return all((one in spec) != (other in spec) for spec in change for one, other in pairs)


@pytest.mark.parametrize(
    ("field", "change"),
    [pytest.param(field, change, id=name) for name, field, change in changes() if possible(change)],
)
def test_a_run_is_immutable(field: str, change: Change, objects: "Objects") -> None:
    before, after = change
    run = objects.create(AgentRun, before)
    if field in CHANGEABLE:
        assert objects.replace(AgentRun, {**run, "spec": after})["spec"] == after
    else:
        with pytest.raises(objects.refused) as refusal:
            objects.replace(AgentRun, {**run, "spec": after})
        assert IMMUTABLE in refusal.value.causes


@pytest.mark.parametrize(("before", "after"), [("input", "messages"), ("messages", "input")])
def test_a_run_keeps_the_form_of_its_task(before: str, after: str, objects: "Objects") -> None:
    run = objects.create(AgentRun, valid_spec(AgentRun, before))
    with pytest.raises(objects.refused) as refusal:
        objects.replace(AgentRun, {**run, "spec": valid_spec(AgentRun, after)})
    assert refusal.value.causes == [IMMUTABLE]
