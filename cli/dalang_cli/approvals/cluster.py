"""The few calls the approval commands make, with the caller's kubeconfig, over the official client.

Its loader knows contexts, merged KUBECONFIGs, tokens and exec plugins; its models are not used.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import urllib3
from dalang_api import GROUP, VERSION
from dalang_api.v1alpha1.agentapproval import AgentApproval
from kubernetes import client, config

from dalang_cli.approvals.show import Json

JSON_PATCH = "application/json-patch+json"
TIMEOUT_SECONDS = 15.0
WATCH_SECONDS = 300
PAGE_SIZE = 250
"""Each may have 64 KiB of arguments."""
AGAIN_SECONDS = 1.0
"""Between two attempts to list after a watch broke."""

_T = TypeVar("_T")


class ConfigError(Exception):
    """There is no kubeconfig to use, or not that context."""


class ClusterError(Exception):
    """The API server refused a request, or could not be reached (`status` 0); the text is its message, whole."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """AgentApprovals of one namespace, or of all."""

    def __init__(self, kubeconfig: str | None, context: str | None, namespace: str | None) -> None:
        """Read the kubeconfig; the server is not asked yet. Without a namespace the context's is taken.

        Raises:
            ConfigError: There is none, or not that context.
        """
        file = kubeconfig or os.environ.get("KUBECONFIG")
        # On a refused connection one message, at once, instead of three warnings before it.
        configuration = client.Configuration()
        configuration.retries = False
        try:
            contexts, current = config.list_kube_config_contexts(config_file=file)
            api = config.new_client_from_config(file, context, client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ConfigError(str(error)) from None
        chosen = next((each for each in contexts if each["name"] == context), current)
        self.namespace: str = namespace or chosen["context"].get("namespace") or "default"
        self._api = api
        self._objects = client.CustomObjectsApi(api)

    def close(self) -> None:
        """Let the connections go."""
        self._api.close()

    def get(self, name: str) -> Json:
        """Return one AgentApproval.

        Raises:
            ClusterError: Also where there is none.
        """
        place = (GROUP, VERSION, self.namespace, AgentApproval.PLURAL, name)
        found: Any = _call(self._objects.get_namespaced_custom_object, *place)
        return dict(found)

    def who_am_i(self) -> str | None:
        """Return the name by which the API server knows the caller; None where it does not say."""
        try:
            review = client.AuthenticationV1Api(self._api).create_self_subject_review
            answer: Any = _call(review, client.V1SelfSubjectReview())
        except ClusterError as error:
            if error.status in {403, 404}:
                return None
            raise
        return str(answer.status.user_info.username)

    def decide(self, asked: Json, decision: Json) -> Json:
        """Write a decision into the very object that was shown; returns it.

        A JSON patch: a merge patch would drop every null from `override` (RFC 7396). It tests the uid, lest something else
        of that name be decided.

        Raises:
            ClusterError: The API server refused.
        """
        metadata = asked["metadata"]
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            *({"op": "add", "path": f"/spec/{name}", "value": value} for name, value in decision.items()),
        ]
        place = (GROUP, VERSION, metadata["namespace"], AgentApproval.PLURAL, metadata["name"])
        patch = self._objects.patch_namespaced_custom_object
        written: Any = _call(patch, *place, operations, _content_type=JSON_PATCH)
        return dict(written)

    def list_all(self, *, everywhere: bool) -> tuple[list[Json], str]:
        """Return all AgentApprovals, and the version from which a watch goes on.

        Raises:
            ClusterError: The API server refused.
        """
        items: list[Json] = []
        following: str | None = None
        while True:
            page: Any = self._list(everywhere, limit=PAGE_SIZE, _continue=following, _request_timeout=TIMEOUT_SECONDS)
            items += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return items, page["metadata"]["resourceVersion"]

    def watch(self, version: str, *, everywhere: bool) -> Iterator[Json]:
        """Yield each AgentApproval that is made or changed from a version on, for ever.

        After a broken connection everything is listed, and so yielded, again.

        Raises:
            ClusterError: The API server refuses.
        """
        while True:
            try:
                for event in self._events(version, everywhere=everywhere):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] in {"ADDED", "MODIFIED"}:
                        yield event["object"]
            except ClusterError as error:
                if error.status not in {0, 410, 429} and error.status < 500:
                    raise
                items, version = self._list_again(everywhere=everywhere)
                yield from items

    def _list_again(self, *, everywhere: bool) -> tuple[list[Json], str]:
        while True:
            time.sleep(AGAIN_SECONDS)
            with contextlib.suppress(ClusterError):
                return self.list_all(everywhere=everywhere)

    def _events(self, version: str, *, everywhere: bool) -> Iterator[Json]:
        response: Any = self._list(
            everywhere,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=WATCH_SECONDS,
            # Bookmarks come about every minute, so silence for two means a dead connection.
            _request_timeout=(TIMEOUT_SECONDS, 130.0),
            _preload_content=False,
        )
        try:
            buffer = b""
            for chunk in response.stream(amt=None):
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ClusterError(event["object"].get("code", 500), event["object"].get("message", ""))
                    yield event
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterError(0, str(error)) from None
        finally:
            response.close()

    def _list(self, everywhere: bool, **options: Any) -> object:
        if everywhere:
            return _call(self._objects.list_cluster_custom_object, GROUP, VERSION, AgentApproval.PLURAL, **options)
        return _call(
            self._objects.list_namespaced_custom_object,
            *(GROUP, VERSION, self.namespace, AgentApproval.PLURAL),
            **options,
        )


def _call(call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Make a call of the official client; its errors become ours."""
    try:
        return call(*arguments, **{"_request_timeout": TIMEOUT_SECONDS, **options})
    except client.ApiException as error:
        raise ClusterError(error.status or 0, _message(error)) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ClusterError(0, f"the API server could not be reached: {error}") from None


def _message(error: client.ApiException) -> str:
    """Return what the API server says, whole."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        if error.status == 404:
            return "this cluster knows no AgentApprovals: is Dalang installed?"
        return f"HTTP {error.status} {error.reason}: {error.body or ''}".rstrip(": ")
