"""A Temporal client whose workflows answer queries out of what a test gives them, and an activity's environment to it."""

from dataclasses import dataclass, field, replace
from typing import Any

from dalang_api import contract, process
from dalang_api.contract import Message, Retrying, Snapshot, TranscriptPage, TranscriptRequest
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.converter import DataConverter
from temporalio.testing import ActivityEnvironment


@dataclass
class Workflow:
    """What one workflow holds, and what it was told."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(agents=[], models=[]))
    messages: list[Message] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Names of the queries, in order."""
    told: list[Retrying] = field(default_factory=list)

    async def query(self, name: str, *, args: list[Any], **_: object) -> object:
        self.asked.append(name)
        if name == contract.SNAPSHOT_QUERY:
            return RawValue(process.data_converter().payload_converter.to_payload(self.snapshot))
        (wanted,) = args
        assert isinstance(wanted, TranscriptRequest)
        return TranscriptPage(messages=self.messages[wanted.start : wanted.start + wanted.count])

    async def signal(self, _: str, retrying: Retrying) -> None:
        self.told.append(retrying)


class OneWorkflow(Client):
    """A client to whom there is one workflow, whatever its id."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow

    def get_workflow_handle(self, *_: object, **__: object) -> Workflow:  # type: ignore[override]
        return self._workflow

    @property
    def data_converter(self) -> DataConverter:
        return process.data_converter()


def environment_of(workflow_id: str, attempt: int = 1) -> ActivityEnvironment:
    """Return the environment of an activity of that workflow."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=workflow_id, attempt=attempt)
    return environment
