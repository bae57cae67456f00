"""What a container is started with: environment, command line and local paths."""

import base64
from pathlib import Path
from typing import Any

import pytest
from dalang_cli.dev.pod_spec import (
    MissingSource,
    PodFacts,
    command_line,
    container_environment,
    expand,
    local_mounts,
    referenced_sources,
    rewrite,
    volume_files,
)

FACTS = PodFacts(
    name="web-1",
    namespace="shop",
    uid="u-1",
    ip="127.1.2.3",
    node="dalang-dev",
    service_account="default",
    labels={"dalang.dev/pool": "default"},
    annotations={},
)


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


SOURCES = {
    ("Secret", "openai"): secret(**{"api-key": "sk-1"}),
    ("ConfigMap", "settings"): {
        "data": {"COLOUR": "red"},
        "binaryData": {"logo": base64.b64encode(b"\x00\x01").decode()},
    },
}


def find(kind: str, name: str) -> dict[str, Any] | None:
    return SOURCES.get((kind, name))


def environment(*variables: dict[str, Any], env_from: list[dict[str, Any]] | None = None) -> dict[str, str]:
    return container_environment({"env": list(variables), "envFrom": env_from or []}, FACTS, find)


def secret_key(name: str, key: str, **more: bool) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key, **more}}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        pytest.param("$(A)/x", "1/x", id="a known name is replaced"),
        pytest.param("$(B)", "$(B)", id="an unknown name stays"),
        pytest.param("$$(A)", "$(A)", id="a doubled dollar sign is literal"),
        pytest.param("$A ${A}", "$A ${A}", id="what a shell would expand stays"),
        pytest.param("$(A)$(A)", "11", id="every occurrence is replaced"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param({"value": "plain"}, "plain", id="a value"),
        pytest.param({}, "", id="a name alone is an empty value"),
        pytest.param({"value": "$(BEFORE):80"}, "yes:80", id="an earlier variable"),
        pytest.param({"value": "$(AFTER)"}, "$(AFTER)", id="a later variable is not known yet"),
        pytest.param({"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, "127.1.2.3", id="the pod's address"),
        pytest.param({"valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}, "u-1", id="the pod's uid"),
        pytest.param(
            {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['dalang.dev/pool']"}}}, "default", id="a label"
        ),
        pytest.param({"valueFrom": secret_key("openai", "api-key")}, "sk-1", id="a key of a Secret"),
        pytest.param(
            {"valueFrom": {"configMapKeyRef": {"name": "settings", "key": "COLOUR"}}}, "red", id="a key of a ConfigMap"
        ),
        pytest.param({"valueFrom": secret_key("none", "x", optional=True)}, None, id="an optional missing Secret"),
        pytest.param({"valueFrom": secret_key("openai", "x", optional=True)}, None, id="an optional missing key"),
    ],
)
def test_variable(variable: dict[str, Any], value: str | None) -> None:
    resolved = environment(
        {"name": "BEFORE", "value": "yes"}, {"name": "IT", **variable}, {"name": "AFTER", "value": "no"}
    )
    assert resolved.get("IT") == value


@pytest.mark.parametrize(
    "variable",
    [
        pytest.param(secret_key("none", "x"), id="a missing Secret"),
        pytest.param(secret_key("openai", "x"), id="a missing key"),
    ],
)
def test_required_reference_must_exist(variable: dict[str, Any]) -> None:
    with pytest.raises(MissingSource):
        environment({"name": "IT", "valueFrom": variable})


def test_env_from_comes_first_with_its_prefix() -> None:
    resolved = environment(
        {"name": "MY_COLOUR", "value": "$(MY_COLOUR)ish"},
        env_from=[
            {"configMapRef": {"name": "settings"}, "prefix": "MY_"},
            {"secretRef": {"name": "none", "optional": True}},
        ],
    )
    assert resolved["MY_COLOUR"] == "redish"


MOUNTS = {"/etc/tools": Path("/state/a"), "/etc/tools/deep": Path("/state/b")}


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        pytest.param("/etc/tools", "/state/a", id="the mount path"),
        pytest.param("/etc/tools/x.py", "/state/a/x.py", id="a path below"),
        pytest.param("/etc/tools/deep/x.py", "/state/b/x.py", id="the longest mount path wins"),
        pytest.param("/etc/toolsmith", "/etc/toolsmith", id="only at a path boundary"),
        pytest.param("/lib:/etc/tools", "/lib:/state/a", id="an element of a search path"),
        pytest.param("--file=/etc/tools/x", "--file=/state/a/x", id="the value of an option"),
        pytest.param("see /etc/tools", "see /etc/tools", id="not inside a text"),
        pytest.param("/root/etc/tools", "/root/etc/tools", id="not inside another path"),
    ],
)
def test_rewrite(text: str, rewritten: str) -> None:
    assert rewrite(text, MOUNTS) == rewritten


def test_mounts_of_a_container() -> None:
    container = {
        "volumeMounts": [
            {"name": "a", "mountPath": "/etc/a/"},
            {"name": "a", "mountPath": "/etc/one", "subPath": "one.txt"},
            {"name": "unknown", "mountPath": "/x"},
        ]
    }
    assert local_mounts(container, {"a": Path("/s/a")}) == {"/etc/a": Path("/s/a"), "/etc/one": Path("/s/a/one.txt")}


def test_command_line_uses_the_entrypoint_only_without_a_command() -> None:
    container = {"args": ["worker", "--port=$(PORT)", "/etc/tools/x"]}
    assert command_line(container, ["dalang"], {"PORT": "1"}, MOUNTS) == ["dalang", "worker", "--port=1", "/state/a/x"]
    assert command_line({**container, "command": ["mine"]}, ["dalang"], {}, {})[0] == "mine"


def token_of(projection: dict[str, Any]) -> bytes:
    return f"token for {projection['audience']}".encode()


@pytest.mark.parametrize(
    ("volume", "files"),
    [
        pytest.param({"secret": {"secretName": "openai"}}, {"api-key": b"sk-1"}, id="a Secret"),
        pytest.param({"secret": {"secretName": "none", "optional": True}}, {}, id="an optional missing Secret"),
        pytest.param(
            {"configMap": {"name": "settings"}},
            {"COLOUR": b"red", "logo": b"\x00\x01"},
            id="a ConfigMap with binary data",
        ),
        pytest.param(
            {"configMap": {"name": "settings", "items": [{"key": "COLOUR", "path": "a/b"}]}},
            {"a/b": b"red"},
            id="items",
        ),
        pytest.param(
            {
                "projected": {
                    "sources": [
                        {"secret": {"name": "openai"}},
                        {"configMap": {"name": "none", "optional": True}},
                        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                        {"serviceAccountToken": {"path": "for-the-api"}},
                        {"serviceAccountToken": {"path": "token", "audience": "https://api.example.com"}},
                    ]
                }
            },
            {"api-key": b"sk-1", "ns": b"shop", "token": b"token for https://api.example.com"},
            id="a projection; of tokens those for others than the API server",
        ),
        pytest.param({"emptyDir": {}}, {}, id="an empty directory"),
    ],
)
def test_volume_files(volume: dict[str, Any], files: dict[str, bytes]) -> None:
    assert volume_files({"name": "v", **volume}, FACTS, find, token_of) == files


def test_a_required_volume_must_exist() -> None:
    with pytest.raises(MissingSource, match='secret "none" not found'):
        volume_files({"name": "v", "secret": {"secretName": "none"}}, FACTS, find, token_of)


def test_referenced_sources_are_found_everywhere() -> None:
    spec = {
        "containers": [
            {
                "env": [{"name": "A", "valueFrom": secret_key("one", "k")}, {"name": "B", "value": "x"}],
                "envFrom": [{"configMapRef": {"name": "two"}}],
            }
        ],
        "volumes": [
            {"name": "v", "secret": {"secretName": "three"}},
            {"name": "w", "projected": {"sources": [{"configMap": {"name": "four"}}]}},
            {"name": "x", "emptyDir": {}},
        ],
    }
    assert referenced_sources(spec) == {
        ("Secret", "one"),
        ("ConfigMap", "two"),
        ("Secret", "three"),
        ("ConfigMap", "four"),
    }
