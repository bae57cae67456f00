"""crdgen on small models: what it writes for each thing a model can say, and that it refuses everything else."""

import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional

import pytest
from dalang_api import crdgen
from dalang_api.v1alpha1.schema import (
    ANY_OBJECT,
    ApiModel,
    Resource,
    Timestamp,
    immutable_except,
    list_map,
    rule,
    rules,
)
from pydantic import ConfigDict, Field, create_model

Text = Annotated[str, Field(max_length=8)]


class Spoken(ApiModel):
    """Something said."""

    name: Text
    """Who said it."""


class Status(ApiModel):
    """How it went."""

    model_config = ConfigDict(json_schema_extra={"default": {"phase": "Pending"}})

    phase: Literal["Pending", "Done"] = "Pending"
    """The state."""


class Puppet(Resource):
    """A puppet of the play,
    made of leather.

    It has a shadow.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(rule("self.spec.name != 'x'", "x is no name", field_path=".spec"))
    )

    KIND: ClassVar[str] = "Puppet"
    PLURAL: ClassVar[str] = "puppets"
    SHORT: ClassVar[str] = "pu"
    NAME_MAX: ClassVar[int] = 7
    SELECTABLE: ClassVar[list[str]] = [".spec.name"]
    COLUMNS: ClassVar[list[dict[str, Any]]] = [{"name": "Name", "type": "string", "jsonPath": ".spec.name"}]

    spec: Spoken
    """What it says."""
    status: Status | None = None
    """How it went."""


def schema_of(annotation: Any, default: Any = ...) -> dict[str, Any]:
    """Return the schema of a field of this type."""
    field = crdgen.structural_schema(create_model("Model", __base__=Resource, field=(annotation, default)))
    schema: dict[str, Any] = field["properties"]["field"]
    return schema


def test_a_definition_is_complete() -> None:
    definition = crdgen.custom_resource_definition(Puppet)
    properties = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert [properties.pop(name)["type"] for name in ("apiVersion", "kind")] == ["string", "string"]
    assert definition == {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "puppets.dalang.dev", "labels": {"app.kubernetes.io/part-of": "dalang"}},
        "spec": {
            "group": "dalang.dev",
            "scope": "Namespaced",
            "names": {
                "kind": "Puppet",
                "listKind": "PuppetList",
                "plural": "puppets",
                "singular": "puppet",
                "shortNames": ["pu"],
                "categories": ["dalang"],
            },
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [{"name": "Name", "type": "string", "jsonPath": ".spec.name"}],
                    "selectableFields": [{"jsonPath": ".spec.name"}],
                    "schema": {
                        "openAPIV3Schema": {
                            "description": "A puppet of the play, made of leather.\n\nIt has a shadow.",
                            "type": "object",
                            "x-kubernetes-validations": [
                                {
                                    "rule": "size(self.metadata.name) <= 7",
                                    "message": "Puppet names may have at most 7 characters",
                                    "fieldPath": ".metadata.name",
                                },
                                {"rule": "self.spec.name != 'x'", "message": "x is no name", "fieldPath": ".spec"},
                            ],
                            "required": ["spec"],
                            "properties": {
                                "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
                                "spec": {
                                    "description": "What it says.",
                                    "type": "object",
                                    "required": ["name"],
                                    "properties": {
                                        "name": {"description": "Who said it.", "type": "string", "maxLength": 8}
                                    },
                                },
                                "status": {
                                    "description": "How it went.",
                                    "type": "object",
                                    "default": {"phase": "Pending"},
                                    "properties": {
                                        "phase": {
                                            "description": "The state.",
                                            "type": "string",
                                            "enum": ["Pending", "Done"],
                                        }
                                    },
                                },
                            },
                        }
                    },
                }
            ],
        },
    }


SAID = {
    "description": "Something said.",
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"description": "Who said it.", "type": "string", "maxLength": 8}},
}


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        pytest.param(Text | None, None, {"type": "string", "maxLength": 8}, id="an optional field is not nullable"),
        pytest.param(Text, "a", {"type": "string", "maxLength": 8}, id="a default of pydantic's is none of the schema"),
        pytest.param(Literal["A"], ..., {"type": "string", "enum": ["A"]}, id="one literal is an enum of one"),
        pytest.param(Literal["B", "A"], "A", {"type": "string", "enum": ["B", "A"]}, id="literals keep their order"),
        pytest.param(Timestamp, ..., {"type": "string", "format": "date-time", "maxLength": 32}, id="a time"),
        pytest.param(Spoken, ..., SAID, id="a reference is replaced by what it names"),
        pytest.param(
            Annotated[list[Spoken], Field(max_length=2, json_schema_extra=list_map("name"))],
            [],
            {
                "type": "array",
                "maxItems": 2,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": SAID,
            },
            id="a list keeps its list type and its items their text",
        ),
        pytest.param(
            Annotated[dict[str, Text], Field(max_length=3)],
            {},
            {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string", "maxLength": 8}},
            id="a map",
        ),
        pytest.param(
            Annotated[dict[str, Any], Field(json_schema_extra=ANY_OBJECT)],
            ...,
            {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            id="an object whose fields are somebody else's, where it says so",
        ),
    ],
)
def test_a_field_becomes(annotation: Any, default: Any, expected: dict[str, Any]) -> None:
    assert schema_of(annotation, default) == expected


@pytest.mark.parametrize(
    ("default", "required"),
    [pytest.param(..., ["field"], id="without default"), pytest.param(None, None, id="with default")],
)
def test_a_field_is_required_when_it_has_no_default(default: Any, required: list[str] | None) -> None:
    model = create_model("Model", __base__=Resource, field=(Text | None if default is None else Text, default))
    assert crdgen.structural_schema(model).get("required") == required


class Recursive(ApiModel):
    """A thing that holds its like."""

    inner: Optional["Recursive"] = None
    """Its like."""


@pytest.mark.parametrize(
    ("annotation", "refusal"),
    [
        pytest.param(
            Annotated[int, Field(multiple_of=2)], "Model.field: no structural schema has multipleOf", id="step"
        ),
        pytest.param(Annotated[int, Field(gt=0)], "no structural schema has exclusiveMinimum", id="exclusive bound"),
        pytest.param(set[Text], "no structural schema has uniqueItems", id="unique items"),
        pytest.param(tuple[Text, int], "no structural schema has prefixItems", id="tuple"),
        pytest.param(Text | int, "no structural schema has anyOf", id="string or number"),
        pytest.param(
            Annotated[Text, Field(json_schema_extra={"x-kubernetes-listtype": "set"})],
            "no structural schema has x-kubernetes-listtype",
            id="extension that is misspelt",
        ),
        pytest.param(
            dict[Annotated[str, Field(pattern="^a")], Text],
            "no structural schema has patternProperties",
            id="bounded keys",
        ),
        pytest.param(list[Annotated[int, Field(multiple_of=2)]], r"Model.field\[\]: .*multipleOf", id="in a list"),
        pytest.param(
            dict[str, Annotated[int, Field(multiple_of=2)]], r"Model.field\[\*\]: .*multipleOf", id="in a map"
        ),
        pytest.param(dict[str, Any], "Model.field: the values of a map need a type", id="map of anything"),
        pytest.param(Any, "Model.field: a structural schema needs a type", id="anything"),
        pytest.param(Text | None, "a field that may be null needs the default None", id="required but null"),
        pytest.param(Literal[1, 2], "an enum's values must be strings", id="enum of numbers"),
        pytest.param(Recursive, "Model.field.inner: Recursive contains itself", id="recursive model"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_refused(annotation: Any, refusal: str) -> None:
    with pytest.raises(crdgen.UnsupportedSchemaError, match=refusal):
        schema_of(annotation)


def test_immutability_covers_every_field_but_the_changeable() -> None:
    class Spec(ApiModel):
        model_config = ConfigDict(json_schema_extra=rules(immutable_except(["free"], "it is done")))
        needed: Text
        optional: Text | None = None
        free: Text | None = None

    schema = schema_of(Spec)
    assert schema["x-kubernetes-validations"] == [
        {
            "rule": "self.needed == oldSelf.needed && "
            "has(self.optional) == has(oldSelf.optional) && (!has(self.optional) || self.optional == oldSelf.optional)",
            "message": "it is done",
            "reason": "FieldValueForbidden",
        }
    ]


def test_generating_twice_gives_the_same() -> None:
    first = copy.deepcopy(crdgen.custom_resource_definitions())
    assert crdgen.custom_resource_definitions() == first
    assert [definition["spec"]["names"]["kind"] for definition in first] == [
        "Agent",
        "AgentApproval",
        "AgentModel",
        "AgentPool",
        "AgentRun",
        "AgentSchedule",
        "AgentSession",
    ]


class TestCheck:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        assert crdgen.main([str(tmp_path / "crds")]) == 0
        return tmp_path / "crds"

    def test_passes_on_what_was_written(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert crdgen.main(["--check", str(directory)]) == 0
        assert capsys.readouterr() == ("", "")

    def test_names_the_file_that_differs_and_the_command(
        self, directory: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (directory / "dalang.dev_agents.yaml").open("a") as file:
            file.write("# mine\n")
        assert crdgen.main(["--check", str(directory)]) == 1
        assert capsys.readouterr().err == (
            f"dalang.dev_agents.yaml in {directory} do not fit the models; run `make generate`\n"
        )

    def test_fails_when_a_file_is_missing(self, directory: Path) -> None:
        (directory / "dalang.dev_agents.yaml").unlink()
        assert crdgen.main(["--check", str(directory)]) == 1

    def test_fails_on_the_file_of_a_kind_that_is_gone(self, directory: Path) -> None:
        stale = directory / "dalang.dev_puppets.yaml"
        stale.touch()
        assert crdgen.main(["--check", str(directory)]) == 1
        assert crdgen.main([str(directory)]) == 0
        assert not stale.exists()

    def test_writes_who_wrote_it_into_the_first_line(self, directory: Path) -> None:
        for file in directory.iterdir():
            assert file.read_text().splitlines()[0] == (
                "# Generated from crds/dalang_api/v1alpha1 by `make generate`. Do not edit."
            )
