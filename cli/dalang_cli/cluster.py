"""The cluster as the commands see it: with the caller's kubeconfig, over the official client.

Its loader knows contexts, merged KUBECONFIGs, tokens and exec plugins; its models are not used.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import urllib3
import yaml
from dalang_api import GROUP, VERSION
from dalang_api.v1alpha1.schema import Resource
from kubernetes import client, config

Json = dict[str, Any]
"""A Kubernetes object as the API server sends it."""
Kind = type[Resource]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
DEFAULT_KUBECONFIG = "~/.kube/config"
"""What the client reads where none is named."""
TIMEOUT_SECONDS = 15.0
WATCH_SECONDS = 300
SILENCE_SECONDS = 130.0
"""Bookmarks come about every minute, so silence for two means a dead connection."""
PAGE_SIZE = 250
"""An AgentApproval may have 64 KiB of arguments."""

_T = TypeVar("_T")


class ConfigError(Exception):
    """There is no kubeconfig to use, or not that context; the text names the file."""


class ClusterError(Exception):
    """The API server refused a request, or could not be reached (`status` 0); the text is its message, whole."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status in {0, 410, 429} or self.status >= 500


class Silence(ClusterError):
    """A watch is well, as far as anybody knows, and nothing came for as long as was asked for."""

    def __init__(self) -> None:
        super().__init__(0, "nothing came from the API server")


class Connection:
    """Our objects in one namespace or, where a call takes `everywhere`, in all."""

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
        except (config.ConfigException, OSError, yaml.YAMLError) as error:
            raise ConfigError(f"kubeconfig {file or DEFAULT_KUBECONFIG}: {error}") from None
        chosen = next((each for each in contexts if each["name"] == context), current)
        self.namespace: str = namespace or chosen["context"].get("namespace") or "default"
        self.server: str = configuration.host
        self._api = api
        self._objects = client.CustomObjectsApi(api)

    def close(self) -> None:
        """Let the connections go."""
        self._api.close()

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

    def read(self, kind: Kind, name: str) -> Json:
        """Return one object.

        Raises:
            ClusterError: Also where there is none (404); likewise below, where the API server refuses.
        """
        found: Any = _call(self._objects.get_namespaced_custom_object, *self._place(kind), name)
        return dict(found)

    def create(self, kind: Kind, body: Json) -> Json:
        """Create an object; returns it."""
        made: Any = _call(self._objects.create_namespaced_custom_object, *self._place(kind), body)
        return dict(made)

    def patch(self, kind: Kind, name: str, patch: Json | list[Json], content_type: str = MERGE_PATCH) -> Json:
        """Change an object; returns it."""
        change = self._objects.patch_namespaced_custom_object
        changed: Any = _call(change, *self._place(kind), name, patch, _content_type=content_type)
        return dict(changed)

    def read_all(
        self, kind: Kind, *, everywhere: bool = False, field_selector: str | None = None
    ) -> tuple[list[Json], str]:
        """Return all objects of a kind, and the version from which a watch goes on."""
        items: list[Json] = []
        following: str | None = None
        while True:
            options = {"limit": PAGE_SIZE, "_continue": following, "_request_timeout": TIMEOUT_SECONDS}
            page: Any = self._list(kind, everywhere, field_selector=field_selector, **options)
            items += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return items, page["metadata"]["resourceVersion"]

    def events(
        self,
        kind: Kind,
        version: str,
        *,
        everywhere: bool = False,
        field_selector: str | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Iterator[Json]:
        """Yield the events of one watch, bookmarks included; it ends after some minutes by itself.

        Raises:
            Silence: Nothing came for so many seconds; another watch goes on from the last version.
            ClusterError: It broke, was refused, or the version is too old (410).
        """
        response: Any = self._list(
            kind,
            everywhere,
            field_selector=field_selector,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=(TIMEOUT_SECONDS, silence_seconds),
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
        except urllib3.exceptions.ReadTimeoutError:
            raise Silence from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterError(0, str(error)) from None
        finally:
            response.close()

    def _place(self, kind: Kind) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, kind.PLURAL

    def _list(self, kind: Kind, everywhere: bool, **options: Any) -> object:
        options = {name: value for name, value in options.items() if value is not None}
        if everywhere:
            return _call(self._objects.list_cluster_custom_object, GROUP, VERSION, kind.PLURAL, **options)
        return _call(self._objects.list_namespaced_custom_object, *self._place(kind), **options)


def command_parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options that say which cluster and namespace."""
    program = "kubectl dalang" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "dalang"
    parser = argparse.ArgumentParser(
        prog=f"{program} {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", "--namespace", metavar="NS", help="default: the context's")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig; default: its current one")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")
    return parser


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
            return "this cluster does not know Dalang's objects: is Dalang installed?"
        return f"HTTP {error.status} {error.reason}: {error.body or ''}".rstrip(": ")
