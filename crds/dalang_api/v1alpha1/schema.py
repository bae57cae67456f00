"""The vocabulary the API models are written in: base classes, bounded types, list types, CEL rules.

What pydantic can say (patterns, maxima, required) is said with pydantic; what only Kubernetes knows (list types, CEL,
columns) travels in `json_schema_extra` under its own `x-kubernetes-*` name, so `dalang_api.crdgen` copies it unchanged.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict, JsonValue

from dalang_api.contract import CONTEXT_MAX_BYTES

DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""What the API server takes as `metadata.name`, dots included: `gpt-5.1`."""


class ApiModel(BaseModel):
    """A piece of the API. Attribute docstrings become the schema's descriptions, so `kubectl explain` prints them."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        frozen=True,
        extra="ignore",
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object the API server stores: camelCase, absent instead of null."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


class Resource(ApiModel):
    """The root of a kind: its schema, and beside it what only the CustomResourceDefinition knows."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    SHORT: ClassVar[str]
    """Short name for `kubectl get`."""
    NAME_MAX: ClassVar[int]
    """The most characters of `metadata.name`."""
    SELECTABLE: ClassVar[list[str]]
    """JSON paths that field selectors may name."""
    COLUMNS: ClassVar[list[dict[str, Any]]]
    """Columns of `kubectl get`, as `additionalPrinterColumns`."""


Rule = Callable[[JsonDict], JsonDict]
"""Makes one entry of `x-kubernetes-validations` for the object schema it is given."""


def rule(cel: str, message: str, *, field_path: str | None = None, forbidden: bool = False) -> Rule:
    """A CEL rule of an object; one naming `oldSelf` is checked on updates only.

    `field_path` (such as `.spec.cancel`) is the field a violation is reported at, the object itself by default.
    `forbidden` makes it read "Forbidden: …" instead of "Invalid value: …".
    """
    entry: JsonDict = {"rule": cel, "message": message}
    if field_path:
        entry["fieldPath"] = field_path
    if forbidden:
        entry["reason"] = "FieldValueForbidden"
    return lambda _: entry


def immutable_except(changeable: list[str], message: str) -> Rule:
    """One CEL rule, for the parent object: every field but the changeable ones keeps its presence and its value.

    A transition rule on an optional field itself is not evaluated when the field is added or removed, so it would let
    `timeout` be added later. At the parent both count as a change. The fields are read
    off the schema, so that a new one is immutable until somebody says otherwise.
    """

    def generate(schema: JsonDict) -> JsonDict:
        properties, required = cast(JsonDict, schema["properties"]), cast(list[str], schema.get("required", []))
        clauses = [
            f"self.{name} == oldSelf.{name}"
            if name in required
            else f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
            for name in properties
            if name not in changeable
        ]
        return rule(" && ".join(clauses), message, forbidden=True)(schema)

    return generate


def rules(*entries: Rule) -> Callable[[JsonDict], None]:
    """The CEL rules of an object, for its `json_schema_extra`."""

    def add(schema: JsonDict) -> None:
        schema["x-kubernetes-validations"] = [entry(schema) for entry in entries]

    return add


def list_map(key: str) -> JsonDict:
    """A list whose items are merged by this key under server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


LIST_ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}
LIST_SET: JsonDict = {"x-kubernetes-list-type": "set"}
MAP_ATOMIC: JsonDict = {"x-kubernetes-map-type": "atomic"}
"""An object that server-side apply replaces as a whole, as Kubernetes' own references are."""

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_SUBDOMAIN)]
"""The name of another object of the same namespace."""

Duration = Annotated[str, Field(max_length=32, pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]
"""A duration in the grammar of GEP-2257, such as `90s` or `1h30m`."""


def readable(*fields: str) -> str:
    """Return the beginning of a CEL rule that reads durations: it holds where one has not the pattern, which is told anyway."""
    return "".join(f"!{field}.matches('^([0-9]+(h|ms|m|s))+$') || " for field in fields)


Decimal = Annotated[str, Field(max_length=24, pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?$")]
"""A decimal number as a string, since the API conventions forbid floats."""

ANY_OBJECT: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}
"""An object whose fields are somebody else's, such as a JSON schema."""

ContextVariables = Annotated[
    dict[
        str,
        Annotated[str, Field(max_length=4096)],
    ],
    Field(max_length=64),
]
"""Context variables by name; a value that is JSON is read as such, any other is text."""

CONTEXT_RULES = (
    rule(
        "!has(self.context) || self.context.all(name, name.matches('^[a-zA-Z_][a-zA-Z0-9_]{0,63}$'))",
        "names in context begin with a letter or _ and have at most 64 letters, digits and _",
        field_path=".context",
    ),
    rule(
        "!has(self.context) || self.context.map(name, size(name) + size(bytes(self.context[name]))).sum() "
        f"<= {CONTEXT_MAX_BYTES}",
        f"context may have at most {CONTEXT_MAX_BYTES} bytes together",
        field_path=".context",
    ),
)
"""What holds of a spec with `context`."""

Timestamp = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""A time in RFC 3339, UTC, whole seconds."""


class LocalReference(ApiModel):
    """A reference to another object in the same namespace."""

    model_config = ConfigDict(json_schema_extra=MAP_ATOMIC)

    name: Name
    """Name of the object; it need not exist yet."""


class SecretKeyReference(ApiModel):
    """One key of a Secret in the same namespace."""

    model_config = ConfigDict(json_schema_extra=MAP_ATOMIC)

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key within the Secret whose value is used."""


class ApprovalPolicy(ApiModel):
    """When a human decides first, and what happens if nobody does."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.timeout) || self.timeout.matches('[1-9]')",
                "timeout must be longer than 0s",
                field_path=".timeout",
            )
        )
    )

    when: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """A CEL expression that is true when a human has to be asked, such as `args.amount > 100`. It sees `args` and `tool` of a
    call, or the `output` of an answer; and `context`, `agent` and `run`. One that fails when it is evaluated means that a human
    is asked. Default: always."""
    question: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """What the human is asked. Where more than one asks, the pool's question comes first, then that of the tool's author,
    then the Agent's. Default: made of the names of the agent, the tool and what is behind it."""
    timeout: Duration | None = None
    """How long to wait for a decision, such as `12h`. Meanwhile the run's own `limits.timeout` stands still. Where more than
    one asks it is the shortest, or the longest where its end approves the call. Default: for ever."""
    on_timeout: Literal["Reject", "Approve", "Fail"] | None = None
    """What an expired approval comes to. Reject: the model is told that nobody approved. Approve: as if approved. Fail: the
    run fails. Default: Reject."""


class Condition(ApiModel):
    """One observation of an object's state, as `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """What is observed, such as `Ready` or `Succeeded`."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    """Why, in one CamelCase word for machines."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, in one sentence for people: it says where to look next."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` this observation is of."""


Conditions = Annotated[list[Condition], Field(max_length=8, json_schema_extra=list_map("type"))]

_DURATION_PART = re.compile(r"([0-9]+)(h|ms|m|s)")
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(duration: str) -> float:
    """Return a GEP-2257 duration in seconds: `1h30m` is 5400.0."""
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(duration))


def pending_conditions(*types: str, message: str = "Waiting for the controller") -> list[JsonValue]:
    """The conditions a new object is born with by schema default, so that the first state costs no write.

    The time is the epoch, as Gateway API does it: a default cannot ask a clock.
    """
    return [
        {
            "type": type_,
            "status": "False" if type_ == "Ready" else "Unknown",
            "reason": "Pending",
            "message": message,
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
        for type_ in types
    ]
