"""Writes the CustomResourceDefinitions from the pydantic models: `python -m dalang_api.crdgen [--check] [DIR]`.

pydantic writes JSON Schema; the API server takes only its *structural* part: no `$ref`, no `anyOf` with null, no `const`,
one `type` everywhere. `_StructuralSchema` makes pydantic leave out what has no meaning there, `_structural` puts the
definitions in place of their references and **raises on every keyword it does not know**, since the API server would
drop such a keyword without a word and with it the rule somebody wrote.

A pydantic default never becomes a schema default: those rewrite what is stored, for ever. The one exception is asked for
by name, with `json_schema_extra={"default": ...}` on a model (the status each object is born with).
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dalang_api import GROUP, VERSION
from dalang_api.v1alpha1 import Agent, AgentApproval, AgentModel, AgentPool, AgentRun, AgentSchedule, AgentSession
from dalang_api.v1alpha1.schema import Resource

KINDS: tuple[type[Resource], ...] = (Agent, AgentApproval, AgentModel, AgentPool, AgentRun, AgentSchedule, AgentSession)

_HEADER = "# Generated from crds/dalang_api/v1alpha1 by `make generate`. Do not edit.\n"

_COPIED = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "default",
    "required",
)
"""What means the same to pydantic and to the API server, in the order it is written."""

_SAYS_TYPE = ("type", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")

_ROOT_PROPERTIES: Mapping[str, Any] = {
    "apiVersion": {
        "description": "APIVersion defines the versioned schema of this representation of an object. "
        "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
        "type": "string",
    },
    "kind": {
        "description": "Kind is a string value representing the REST resource this object represents. "
        "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
        "type": "string",
    },
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
}
"""What every object has; the texts are those of Kubernetes' own types."""


class UnsupportedSchemaError(Exception):
    """A model says something that a structural schema cannot say."""


def custom_resource_definitions() -> list[dict[str, Any]]:
    """Return the CustomResourceDefinition of every kind, ordered by kind."""
    return [custom_resource_definition(kind) for kind in KINDS]


def custom_resource_definition(kind: type[Resource]) -> dict[str, Any]:
    """Return one kind's CustomResourceDefinition.

    Raises:
        UnsupportedSchemaError: The model says something that a structural schema cannot say.
    """
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": kind.COLUMNS,
        "schema": {"openAPIV3Schema": _root_schema(kind)},
    }
    if kind.SELECTABLE:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.SELECTABLE]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "dalang"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.KIND,
                "listKind": f"{kind.KIND}List",
                "plural": kind.PLURAL,
                "singular": kind.KIND.lower(),
                "shortNames": [kind.SHORT],
                "categories": ["dalang"],
            },
            "versions": [version],
        },
    }


def _root_schema(kind: type[Resource]) -> dict[str, Any]:
    schema = structural_schema(kind)
    schema["properties"] = {**_ROOT_PROPERTIES, **schema["properties"]}
    schema["x-kubernetes-validations"] = [
        {
            "rule": f"size(self.metadata.name) <= {kind.NAME_MAX}",
            "message": f"{kind.KIND} names may have at most {kind.NAME_MAX} characters",
            "fieldPath": ".metadata.name",
        },
        *schema.get("x-kubernetes-validations", []),
    ]
    return schema


def structural_schema(model: type[Resource]) -> dict[str, Any]:
    """Return a model's structural schema.

    Raises:
        UnsupportedSchemaError: The model says something that a structural schema cannot say.
    """
    generated = model.model_json_schema(schema_generator=_StructuralSchema)
    definitions = generated.pop("$defs", {})
    return _structural(generated, definitions, path=model.__name__, within=())


class _StructuralSchema(GenerateJsonSchema):
    """pydantic's generator without titles, defaults and nulls: an optional field is one that may be absent."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = schema["schema"]
        if inner["type"] == "nullable":
            inner = inner["schema"]
        return self.generate_inner(inner)

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        raise UnsupportedSchemaError("a field that may be null needs the default None: absent, not null")

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        if not all(isinstance(value, str) for value in schema["expected"]):
            raise UnsupportedSchemaError(f"an enum's values must be strings: {schema['expected']}")
        return {"type": "string", "enum": list(schema["expected"])}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        """Keep the models' order."""
        return value


def _structural(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], *, path: str, within: tuple[str, ...]
) -> dict[str, Any]:
    """Return the schema with references replaced; `within` names the definitions it stands in."""
    remaining = dict(schema)
    if reference := remaining.pop("$ref", None):
        name = str(reference).removeprefix("#/$defs/")
        if name in within:
            raise UnsupportedSchemaError(f"{path}: {name} contains itself, which a structural schema cannot say")
        return _structural({**definitions[name], **remaining}, definitions, path=path, within=(*within, name))

    remaining.pop("title", None)
    if remaining.get("additionalProperties") is False:
        del remaining["additionalProperties"]

    structural = {keyword: remaining.pop(keyword) for keyword in _COPIED if keyword in remaining}
    if "description" in structural:
        structural["description"] = _unwrapped(structural["description"])
    if (properties := remaining.pop("properties", None)) is not None:
        structural["properties"] = {
            name: _structural(property_, definitions, path=f"{path}.{name}", within=within)
            for name, property_ in properties.items()
        }
    if (values := remaining.pop("additionalProperties", None)) is not None:
        if values is True and structural.get("x-kubernetes-preserve-unknown-fields"):
            return structural
        if values is True:
            raise UnsupportedSchemaError(f"{path}: the values of a map need a type")
        structural["additionalProperties"] = _structural(values, definitions, path=f"{path}[*]", within=within)
    if (items := remaining.pop("items", None)) is not None:
        structural["items"] = _structural(items, definitions, path=f"{path}[]", within=within)
    if remaining:
        raise UnsupportedSchemaError(f"{path}: no structural schema has {', '.join(sorted(remaining))}")
    if not any(structural.get(keyword) for keyword in _SAYS_TYPE):
        raise UnsupportedSchemaError(f"{path}: a structural schema needs a type")
    return structural


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: each file can be read from top to bottom."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _unwrapped(text: str) -> str:
    """Return the text with each paragraph on one line, as `kubectl explain` breaks lines itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _files() -> dict[str, str]:
    """Return the text of each generated file, by name."""
    return {
        f"{GROUP}_{definition['spec']['names']['plural']}.yaml": _HEADER
        + yaml.dump(definition, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        for definition in custom_resource_definitions()
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with `--check` compare them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dalang_api.crdgen", description="Write Dalang's CRDs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent.parent, metavar="DIR")
    options = parser.parse_args(arguments)
    files = _files()

    stale = [file.name for file in sorted(options.directory.glob(f"{GROUP}_*.yaml")) if file.name not in files]
    if options.check:
        differing = [
            name
            for name, text in files.items()
            if not (file := options.directory / name).is_file() or file.read_text(encoding="utf-8") != text
        ]
        if differing or stale:
            names = ", ".join(sorted(differing + stale))
            sys.stderr.write(f"{names} in {options.directory} do not fit the models; run `make generate`\n")
            return 1
        return 0

    options.directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (options.directory / name).write_text(text, encoding="utf-8")
    for name in stale:
        (options.directory / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
