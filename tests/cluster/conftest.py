"""A real API server for the tests of this folder: `dalang dev` without the operator, started once, with our CRDs applied."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from dalang_api import API_VERSION, GROUP, VERSION
from dalang_api.v1alpha1.schema import Resource
from kubernetes import client, config

Object = dict[str, Any]


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    kubeconfig: Path
    environment: dict[str, str]
    """What a user's shell has after `eval "$(dalang dev env)"`."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it printed."""
        done = subprocess.run(
            ["kubectl", *arguments], env=self.environment, input=stdin, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    directory = tmp_path_factory.mktemp("dalang-dev")

    def dalang_dev(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "dalang_cli.main", "dev", *arguments, "--state-dir", str(directory)]

    try:
        subprocess.run(dalang_dev("up", "--detach", "--without-operator"), check=True)
        exports = subprocess.run(dalang_dev("env"), check=True, capture_output=True, text=True).stdout
        shell = subprocess.run(["sh", "-c", f"{exports}\nenv -0"], check=True, capture_output=True, text=True)
        environment = dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)
        yield ControlPlane(Path(environment["KUBECONFIG"]), environment)
    finally:
        subprocess.run(dalang_dev("down"), check=True)


@pytest.fixture(scope="session")
def api_client(control_plane: ControlPlane) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(control_plane.kubeconfig)) as api:
        yield api


@pytest.fixture
def namespace(api_client: client.ApiClient) -> str:
    """A namespace of the test's own."""
    wanted = client.V1Namespace(metadata=client.V1ObjectMeta(generate_name="test-"))
    created = client.CoreV1Api(api_client).create_namespace(wanted)
    assert created.metadata
    assert created.metadata.name
    return created.metadata.name


class Refused(Exception):
    """The API server refused an object; `causes` is why, each as "field: message"."""

    def __init__(self, error: client.ApiException) -> None:
        status = json.loads(error.body or "{}")
        super().__init__(status["message"])
        causes = status.get("details", {}).get("causes", [])
        self.causes = [f"{cause['field']}: {cause['message']}" for cause in causes]


class Objects:
    """Our objects in one namespace. Unknown fields are refused, as by kubectl; `dry_run` changes nothing."""

    refused = Refused
    """For `pytest.raises`: a test cannot import from a conftest."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api = client.CustomObjectsApi(api)
        self.namespace = namespace

    def create(
        self, kind: type[Resource], spec: object, *, name: str = "x", dry_run: bool = False, **more: Any
    ) -> Object:
        """Create an object; a spec of None is left out, `more` are further fields beside it."""
        body = {"apiVersion": API_VERSION, "kind": kind.KIND, "metadata": {"name": name}, **more}
        if spec is not None:
            body["spec"] = spec
        return self._written(self._api.create_namespaced_custom_object, kind, body, dry_run=dry_run)

    def replace(self, kind: type[Resource], body: Object, *, dry_run: bool = False) -> Object:
        """Write a whole object back, but for its status."""
        name = body["metadata"]["name"]
        return self._written(self._api.replace_namespaced_custom_object, kind, name, body, dry_run=dry_run)

    def replace_status(self, kind: type[Resource], body: Object, *, dry_run: bool = False) -> Object:
        """Write an object's status back."""
        name = body["metadata"]["name"]
        return self._written(self._api.replace_namespaced_custom_object_status, kind, name, body, dry_run=dry_run)

    def get(self, kind: type[Resource], name: str = "x") -> Object:
        """Read an object."""
        return cast(Object, self._api.get_namespaced_custom_object(GROUP, VERSION, self.namespace, kind.PLURAL, name))

    def select(self, kind: type[Resource], field_selector: str) -> list[str]:
        """Return the names of the objects that a field selector finds."""
        found = self._api.list_namespaced_custom_object(
            GROUP, VERSION, self.namespace, kind.PLURAL, field_selector=field_selector
        )
        return [item["metadata"]["name"] for item in cast(Object, found)["items"]]

    def _written(self, call: Callable[..., object], kind: type[Resource], *arguments: object, dry_run: bool) -> Object:
        options = {"dry_run": "All"} if dry_run else {}
        try:
            written = call(
                GROUP, VERSION, self.namespace, kind.PLURAL, *arguments, field_validation="Strict", **options
            )
        except client.ApiException as error:
            raise Refused(error) from error
        return cast(Object, written)


@pytest.fixture
def objects(api_client: client.ApiClient, namespace: str) -> Objects:
    return Objects(api_client, namespace)
