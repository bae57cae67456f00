"""The tokens of a pod's projected volumes: asked for once, renewed in time."""

import time
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from dalang_cli.dev.api import Api
from dalang_cli.dev.pod_spec import MissingSource, PodFacts
from dalang_cli.dev.pod_tokens import PodTokens

FACTS = PodFacts("worker-1", "shop", "uid-1", "127.1.0.1", "dalang-dev", "default", {}, {})
TOKEN = {"audience": "https://api.example.com", "expirationSeconds": 3600, "path": "token"}


class FakeApi:
    """Issues tokens that are numbered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.seconds = 3600.0

    async def create(self, path: str, body: Any) -> Any:
        self.asked.append((path, body["spec"]))
        expires = datetime.fromtimestamp(time.time() + self.seconds, UTC)
        return {"status": {"token": f"t{len(self.asked)}", "expirationTimestamp": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}}


def tokens_of(api: FakeApi, *projections: dict[str, Any]) -> PodTokens:
    sources = [{"serviceAccountToken": projection} for projection in projections]
    volumes = [{"name": "v", "projected": {"sources": sources}}, {"name": "w", "emptyDir": {}}]
    return PodTokens(cast(Api, api), FACTS, {"volumes": volumes})


async def test_a_token_is_bound_to_the_pod_and_asked_for_once() -> None:
    api = FakeApi()
    tokens = tokens_of(api, TOKEN)
    await tokens.refresh()
    await tokens.refresh()
    assert tokens(TOKEN) == b"t1"
    pod = {"kind": "Pod", "apiVersion": "v1", "name": "worker-1", "uid": "uid-1"}
    spec = {"audiences": ["https://api.example.com"], "expirationSeconds": 3600, "boundObjectRef": pod}
    assert api.asked == [("/api/v1/namespaces/shop/serviceaccounts/default/token", spec)]


async def test_a_token_is_renewed_when_four_fifths_of_its_time_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    api, now = FakeApi(), time.time()
    tokens = tokens_of(api, TOKEN)
    for after, expected in ((0, b"t1"), (2870, b"t1"), (2890, b"t2")):
        monkeypatch.setattr(time, "time", lambda after=after: now + after)
        await tokens.refresh()
        assert tokens(TOKEN) == expected


async def test_what_every_pod_gets_for_the_api_server_is_left_out() -> None:
    api = FakeApi()
    tokens = tokens_of(api, {"path": "token"})
    await tokens.refresh()
    assert not tokens
    assert api.asked == []


def test_a_token_that_was_not_asked_for_yet_is_waited_for() -> None:
    with pytest.raises(MissingSource, match=r"no token for https://api[.]example[.]com yet"):
        tokens_of(FakeApi(), TOKEN)(TOKEN)
