"""/healthz, /readyz and /metrics of operator and worker."""

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop, System

pytestmark = pytest.mark.timeout(90)


def endpoints(mall: "Shop", part: str) -> str:
    """Return the address of a part's endpoints."""
    if part == "operator":
        return mall.system.address("operator")
    (pod,) = mall.pods()
    return f"{pod['status']['podIP']}:8080"


def promised(document: str, part: str) -> set[str]:
    """Return the metrics that the table of docs/operations.md names of a part; a name that begins with … is left out."""
    rows = [line.split("|") for line in document.splitlines() if line.startswith("| `")]
    cells = [row[1] for row in rows if len(row) == 5 and part in row[2]]
    return {name for cell in cells for name in re.findall(r"`([a-z]\w*)", cell)}


@pytest.mark.parametrize("part", ["operator", "worker"])
def test_a_part_tells_that_it_is_well_and_has_the_metrics_that_the_docs_name(
    part: str, mall: "Shop", system: "System", request: pytest.FixtureRequest
) -> None:
    call = {"toolCalls": [{"name": "stamp", "arguments": {"key": f"measured-by-{part}"}}]}
    mall.task(f"measured-by-{part}", call, {"text": "Done."}, tools=("stamp",)).answered()
    address = endpoints(mall, part)
    assert system.get(f"http://{address}/healthz") == (200, "ok\n")
    assert system.get(f"http://{address}/readyz") == (200, "ok\n")
    status, text = system.get(f"http://{address}/metrics")
    assert status == 200
    names = promised((request.config.rootpath / "docs" / "operations.md").read_text(), part)
    assert len(names) >= 3
    assert [name for name in sorted(names) if f"# TYPE {name} " not in text] == []
