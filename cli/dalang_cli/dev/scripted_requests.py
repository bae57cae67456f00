"""What the scripted model was asked: the requests that `GET /requests` shows."""

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

MAX_RECORDED = 20_000
MAX_RECORDED_BYTES = 256 * 1024 * 1024


@dataclass
class Recorded:
    """One request to a model; the body stays bytes until somebody asks."""

    model: str
    body: bytes
    time: float
    authorized: bool
    """A key came along, in whichever header the provider wants it."""
    api: str
    """"chat", "embeddings", "messages" or "bedrock"."""
    path: str
    """As it was sent: a model's name in it is URL-encoded; without the query."""
    api_version: str | None = None
    """Azure's `api-version`, Anthropic's `anthropic-version` (for Bedrock, that of the body)."""
    aborted: bool = False
    """The client went away before it got its answer, or all of it."""

    def to_json(self) -> Json:
        """Return what `GET /requests` shows; never the key itself."""
        return {
            "model": self.model,
            "api": self.api,
            "path": self.path,
            "apiVersion": self.api_version,
            "time": self.time,
            "authorization": self.authorized,
            "aborted": self.aborted,
            "body": json.loads(self.body),
        }


class Recorder:
    """The last requests, bounded in number and in bytes."""

    def __init__(self) -> None:
        self.requests: deque[Recorded] = deque()
        self._bytes = 0

    def add(self, request: Recorded) -> None:
        self.requests.append(request)
        self._bytes += len(request.body)
        while len(self.requests) > MAX_RECORDED or self._bytes > MAX_RECORDED_BYTES:
            self._bytes -= len(self.requests.popleft().body)

    def clear(self, model: str | None) -> None:
        """Forget the requests of one model, or all."""
        self.requests = deque(each for each in self.requests if model is not None and each.model != model)
        self._bytes = sum(len(each.body) for each in self.requests)
