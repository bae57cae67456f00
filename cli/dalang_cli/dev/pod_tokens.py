"""The service account tokens of a pod's projected volumes: asked of the API server, and renewed before they end.

Only those with an audience, which prove the pod to somebody outside. What every pod gets to reach the API server itself is
left out: its processes would look for it at a path of the system's.
"""

import time
from datetime import datetime
from typing import NamedTuple

from dalang_cli.dev.api import Api, Object
from dalang_cli.dev.pod_spec import MissingSource, PodFacts

RENEWED_AFTER = 0.8
"""The part of its time after which a token is replaced, as the kubelet does."""
DEFAULT_SECONDS = 3600


class Token(NamedTuple):
    """A token, and when to replace it."""

    text: str
    due: float


class PodTokens:
    """The tokens of one pod, by audience and lifetime."""

    def __init__(self, api: Api, facts: PodFacts, spec: Object) -> None:
        self._api = api
        self._facts = facts
        self._tokens: dict[tuple[str, int], Token | None] = {
            _identify(source["serviceAccountToken"]): None
            for volume in spec.get("volumes") or []
            for source in (volume.get("projected") or {}).get("sources") or []
            if source.get("serviceAccountToken", {}).get("audience")
        }

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def __call__(self, projection: Object) -> bytes:
        """Return the token of a projection.

        Raises:
            MissingSource: it was not asked for yet.
        """
        token = self._tokens.get(_identify(projection))
        if token is None:
            raise MissingSource(f"there is no token for {projection['audience']} yet")
        return token.text.encode()

    async def refresh(self) -> None:
        """Ask for the tokens that are missing, or whose time is mostly over.

        Raises:
            ApiError: the API server refused, such as where there is no such service account.
        """
        facts = self._facts
        path = f"/api/v1/namespaces/{facts.namespace}/serviceaccounts/{facts.service_account}/token"
        pod = {"kind": "Pod", "apiVersion": "v1", "name": facts.name, "uid": facts.uid}
        for (audience, seconds), token in self._tokens.items():
            now = time.time()
            if token is not None and now < token.due:
                continue
            spec = {"audiences": [audience], "expirationSeconds": seconds, "boundObjectRef": pod}
            body: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            status = (await self._api.create(path, body))["status"]
            expires = datetime.fromisoformat(status["expirationTimestamp"]).timestamp()
            self._tokens[audience, seconds] = Token(status["token"], now + (expires - now) * RENEWED_AFTER)


def _identify(projection: Object) -> tuple[str, int]:
    return projection.get("audience", ""), projection.get("expirationSeconds", DEFAULT_SECONDS)
