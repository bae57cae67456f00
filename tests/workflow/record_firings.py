"""Records the histories of firings that `test_schedules.py` replays: `.venv/bin/pytest tests/workflow/record_firings.py`.

As `record.py`, which see: not collected unless named, and what a release has written stays for ever.
"""

import json
from pathlib import Path

from dalang_api import process
from temporalio.client import Client

from tests.workflow.office import Office, fire_in_every_shape

FIRINGS = Path(__file__).parent / "histories" / "firings"


async def test_firings(temporal_address: str) -> None:
    client = await Client.connect(temporal_address, data_converter=process.data_converter())
    FIRINGS.mkdir(exist_ok=True)
    for shape, workflow_id in (await fire_in_every_shape(Office(client))).items():
        history = await client.get_workflow_handle(workflow_id).fetch_history()
        content = {"workflowId": workflow_id, **history.to_json_dict()}
        # Stack traces name files by where this checkout stands.
        text = json.dumps(content, indent=1, ensure_ascii=False).replace(f"{Path(__file__).parents[2]}/", "")
        (FIRINGS / f"{shape}.json").write_text(f"{text}\n")
