"""The few calls the approval commands make, with the caller's kubeconfig."""

import contextlib
import time
from collections.abc import Iterator

from dalang_api.v1alpha1.agentapproval import AgentApproval

from dalang_cli.cluster import JSON_PATCH, ClusterError, Connection, Json

AGAIN_SECONDS = 1.0
"""Between two attempts to list after a watch broke."""


class Cluster(Connection):
    """AgentApprovals of one namespace, or of all."""

    def get(self, name: str) -> Json:
        """Return one AgentApproval.

        Raises:
            ClusterError: Also where there is none.
        """
        return self.read(AgentApproval, name)

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
        return self.patch(AgentApproval, metadata["name"], operations, JSON_PATCH)

    def list_all(self, *, everywhere: bool) -> tuple[list[Json], str]:
        """Return all AgentApprovals, and the version from which a watch goes on.

        Raises:
            ClusterError: The API server refused.
        """
        return self.read_all(AgentApproval, everywhere=everywhere)

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
                if not error.may_pass:
                    raise
                items, version = self._list_again(everywhere=everywhere)
                yield from items

    def _list_again(self, *, everywhere: bool) -> tuple[list[Json], str]:
        while True:
            time.sleep(AGAIN_SECONDS)
            with contextlib.suppress(ClusterError):
                return self.list_all(everywhere=everywhere)

    def _events(self, version: str, *, everywhere: bool) -> Iterator[Json]:
        return self.events(AgentApproval, version, everywhere=everywhere)
