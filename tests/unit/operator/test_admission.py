import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from dalang_operator import admission

Spec = dict[str, Any]
Found = dict[str, Any]
POLICY = "ValidatingAdmissionPolicy"
BINDING = "ValidatingAdmissionPolicyBinding"
INSTALL = "dalang admission-policies | kubectl apply -f -"


def installed() -> Found:
    """The objects as the API server has them."""
    packaged = {each["kind"]: each for each in admission.policies() if each["metadata"]["name"] == "dalang-approvals"}
    found = {kind: copy.deepcopy(packaged[kind]) for kind in admission.NAMES}
    for each in found.values():
        each["metadata"] |= {"uid": "1", "generation": 1, "annotations": {"a": "b"}}
    found[POLICY]["status"] = {"observedGeneration": 1, "typeChecking": {}}
    return found


def test_what_is_packaged_proves() -> None:
    assert admission.proof_problem(installed()) is None


@pytest.mark.parametrize("kind", admission.NAMES)
@pytest.mark.parametrize("absent", [None, "no entry"])
def test_each_is_needed(kind: str, absent: str | None) -> None:
    found = {**installed(), kind: None}
    if absent:
        del found[kind]
    assert admission.proof_problem(found) == (
        f"{kind} dalang-approvals is missing, so nothing proves who decides. Install it (before Kubernetes 1.36 with --validating-only): {INSTALL}"
    )


def test_what_the_server_adds_or_leaves_out_is_no_alteration() -> None:
    found = installed()
    spec = found[POLICY]["spec"]
    del spec["matchConstraints"]["namespaceSelector"], spec["matchConstraints"]["objectSelector"]
    spec |= {"matchConditions": [], "auditAnnotations": None}
    spec["matchConstraints"]["excludeResourceRules"] = []
    found[BINDING]["spec"]["matchResources"] = {}
    assert admission.proof_problem(found) is None


def narrow(**constraints: Any) -> Callable[[Spec], None]:
    return lambda spec: spec["matchConstraints"].update(constraints)


def narrow_rule(**members: Any) -> Callable[[Spec], None]:
    return lambda spec: spec["matchConstraints"]["resourceRules"][0].update(members)


RULE = {"apiGroups": ["dalang.dev"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}
SELECTOR = {"matchLabels": {"approvals": "proven"}}


@pytest.mark.parametrize(
    ("kind", "alter", "field"),
    [
        pytest.param(POLICY, lambda s: s.update(failurePolicy="Ignore"), "failurePolicy", id="errors let through"),
        pytest.param(POLICY, lambda s: s["validations"].pop(), "validations", id="a rule removed"),
        pytest.param(POLICY, lambda s: s.update(validations=[]), "validations", id="no rules"),
        pytest.param(
            POLICY,
            lambda s: s["validations"][0].update(expression="true"),
            "validations",
            id="a rule that always holds",
        ),
        pytest.param(
            POLICY, lambda s: s["validations"].append({"expression": "true"}), "validations", id="a rule added"
        ),
        pytest.param(
            POLICY, lambda s: s["variables"][0].update(expression="false"), "variables", id="a variable changed"
        ),
        pytest.param(POLICY, lambda s: s.pop("variables"), "variables", id="variables removed"),
        pytest.param(
            POLICY,
            lambda s: s.update(matchConditions=[{"name": "no", "expression": "false"}]),
            "matchConditions",
            id="conditions added",
        ),
        pytest.param(POLICY, lambda s: s.update(paramKind={"kind": "A"}), "paramKind", id="parameters"),
        pytest.param(POLICY, lambda s: s.update(newInLaterVersions=True), "newInLaterVersions", id="an unknown field"),
        pytest.param(POLICY, lambda s: s.clear(), "failurePolicy", id="nothing left"),
        pytest.param(POLICY, narrow(matchPolicy="Exact"), "matchConstraints", id="only one version"),
        pytest.param(POLICY, narrow(namespaceSelector=SELECTOR), "matchConstraints", id="some namespaces"),
        pytest.param(POLICY, narrow(objectSelector=SELECTOR), "matchConstraints", id="some objects"),
        pytest.param(POLICY, narrow(excludeResourceRules=[RULE]), "matchConstraints", id="an exception"),
        pytest.param(POLICY, narrow_rule(operations=["CREATE"]), "matchConstraints", id="only when created"),
        pytest.param(POLICY, narrow_rule(resources=["agentruns"]), "matchConstraints", id="another resource"),
        pytest.param(POLICY, narrow_rule(resourceNames=["x"]), "matchConstraints", id="some names"),
        pytest.param(POLICY, narrow_rule(scope="Cluster"), "matchConstraints", id="another scope"),
        pytest.param(BINDING, lambda s: s.update(validationActions=["Warn"]), "validationActions", id="warns only"),
        pytest.param(BINDING, lambda s: s.update(policyName="another"), "policyName", id="binds another policy"),
        pytest.param(
            BINDING,
            lambda s: s.update(matchResources={"objectSelector": SELECTOR}),
            "matchResources",
            id="bound to some",
        ),
        pytest.param(BINDING, lambda s: s.update(paramRef={"name": "a"}), "paramRef", id="bound with parameters"),
    ],
)
def test_any_alteration_is_a_problem(kind: str, alter: Callable[[Spec], None], field: str) -> None:
    found = installed()
    alter(found[kind]["spec"])
    problem = admission.proof_problem(found)
    assert problem
    assert problem.startswith(f"{kind} dalang-approvals is altered (")
    assert f"spec.{field}" in problem
    assert problem.endswith(
        "so nothing proves who decides. Put it right (before Kubernetes 1.36 with --validating-only): "
        "dalang admission-policies | kubectl replace -f -"
    )


def test_since_when_they_are_as_they_are() -> None:
    found = installed()
    for each in found.values():
        each["metadata"] |= {
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [
                {"operation": "Update", "time": "2026-01-02T03:05:00Z"},
                {"operation": "Update", "subresource": "status", "time": "2026-01-02T03:06:00Z"},
            ],
        }
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert admission.unaltered_since(found) == created, "a label was written, no spec"
    found[BINDING]["metadata"]["generation"] = 2
    assert admission.unaltered_since(found) == datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
    assert admission.unaltered_since({**found, POLICY: None}) is None
