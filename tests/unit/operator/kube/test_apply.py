"""When an object of ours differs, and whose its fields are."""

from typing import Any

import pytest
from dalang_operator.kube.apply import covers, owned_by_apply


@pytest.mark.parametrize(
    ("current", "desired", "expected"),
    [
        pytest.param({"a": 1, "defaulted": 2}, {"a": 1}, True, id="what the server added is no difference"),
        pytest.param({"a": 1}, {"a": 2}, False, id="another value is"),
        pytest.param({}, {"a": 1}, False, id="a missing one, too"),
        pytest.param(
            [{"name": "sidecar"}, {"name": "w", "image": "x", "pull": "Always"}],
            [{"name": "w", "image": "x"}],
            True,
            id="an injected container is none",
        ),
        pytest.param([{"name": "w", "image": "y"}], [{"name": "w", "image": "x"}], False, id="an edited image is"),
        pytest.param([{"name": "other"}], [{"name": "w"}], False, id="a removed container, too"),
        pytest.param(["worker"], ["dalang", "worker"], False, id="other lists must be equal"),
        pytest.param(["ALL"], ["ALL"], True, id="and may be"),
    ],
)
def test_covers(current: Any, desired: Any, expected: bool) -> None:
    assert covers(current, desired) is expected


def entry(manager: str, operation: str, **more: Any) -> dict[str, Any]:
    return {
        "manager": manager,
        "operation": operation,
        "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}},
        **more,
    }


def test_what_was_created_by_post_is_handed_to_apply_but_for_replicas() -> None:
    others = [entry("kube-controller-manager", "Update"), entry("dalang", "Update", subresource="scale")]
    created = {"metadata": {"managedFields": [entry("dalang", "Update"), *others]}}
    assert owned_by_apply(created) == [
        *others,
        {"manager": "dalang", "operation": "Apply", "fieldsV1": {"f:spec": {"f:template": {}}}},
    ]


def test_what_was_applied_once_is_left_as_it_is() -> None:
    assert (
        owned_by_apply({"metadata": {"managedFields": [entry("dalang", "Apply"), entry("kubectl", "Update")]}}) is None
    )
