"""The admission policies that prove who decided an AgentApproval: what is packaged, and whether the cluster has just that.

The API server enforces them, so anything that could weaken them must be seen: an altered rule, a narrower match, a
binding that only warns. Not a list of known weaknesses but equality decides. The packaged manifests have every field
as the API server stores it, and whatever differs, an unknown field included, counts as altered.

Equality says nothing of the time before: a decision written while the policy was missing stays in its object when the
policy comes. `unaltered_since` tells since when the decisions are proven.
"""

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dalang_operator.kube.resources import Json

NAME = "dalang-approvals"
NAMES: Mapping[str, str] = {
    "ValidatingAdmissionPolicy": NAME,
    "ValidatingAdmissionPolicyBinding": NAME,
}
"""Kind and name of the objects that prove who decided; all of `admissionregistration.k8s.io/v1`, cluster-scoped."""

PLURALS: Mapping[str, str] = {
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
    "MutatingAdmissionPolicy": "mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": "mutatingadmissionpolicybindings",
}
"""What the kinds are called in paths."""

INSTALL = "dalang admission-policies | kubectl apply -f -"
"""Installs what is missing. `dalang dev up` has done so."""

BEFORE_1_36 = "before Kubernetes 1.36 with --validating-only"
"""Said beside both commands: an older API server does not know MutatingAdmissionPolicies, so that kubectl fails."""

REPAIR = "dalang admission-policies | kubectl replace -f -"
"""Puts altered ones right; an apply would leave what somebody added, such as a condition."""


def validating_policies() -> list[Json]:
    """Return the policies that refuse, with their bindings. For Kubernetes 1.32 and later."""
    return _manifests("admission_validating.yaml")


def mutating_policies() -> list[Json]:
    """Return the policies that stamp who it was, with their bindings. For Kubernetes 1.36 and later."""
    return _manifests("admission_mutating.yaml")


def policies() -> list[Json]:
    """Return all policies with their bindings."""
    return [*validating_policies(), *mutating_policies()]


def proof_problem(found: Mapping[str, Json | None]) -> str | None:
    """Return why the API server does not prove who decides, or None when it does.

    Args:
        found: The objects of `NAMES` by kind, as the API server has them; None, or no entry, for one that is not there.
    """
    packaged = _packaged_specs()
    for kind, name in NAMES.items():
        current = found.get(kind)
        if current is None:
            return f"{kind} {name} is missing, so nothing proves who decides. Install it ({BEFORE_1_36}): {INSTALL}"
        altered = _altered(current.get("spec") or {}, packaged[kind])
        if altered:
            fields = ", ".join(f"spec.{field}" for field in altered)
            remedy = f"Put it right ({BEFORE_1_36}): {REPAIR}"
            return f"{kind} {name} is altered ({fields}), so nothing proves who decides. {remedy}"
    return None


def unaltered_since(found: Mapping[str, Json | None]) -> datetime | None:
    """Return since when at the earliest the objects of `NAMES` are as they are; None if one is missing.

    At generation 1 that is their creation, whatever was done to their labels. Later it is the newest of their managedFields
    but those of the status: good against accidents, not against one who may edit policies and resets those as well.
    The API server enforces a policy, and forgets a deleted one, within a second (measured on 1.36: 0.2 to 0.95 s).
    """
    times = []
    for kind in NAMES:
        current = found.get(kind)
        if current is None:
            return None
        metadata = current["metadata"]
        times.append(metadata["creationTimestamp"])
        if metadata.get("generation") != 1:
            entries = [entry for entry in metadata.get("managedFields") or [] if entry.get("subresource") != "status"]
            times += [entry["time"] for entry in entries if entry.get("time")]
    return max(datetime.fromisoformat(time).astimezone(UTC) for time in times)


def _altered(current: Json, packaged: Json) -> list[str]:
    """Return the names of the fields that differ, sorted. What is empty counts as absent: so the API server defaults it."""
    current, packaged = _without_empty(current), _without_empty(packaged)
    return sorted(field for field in {*current, *packaged} if current.get(field) != packaged.get(field))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        pruned = {key: _without_empty(member) for key, member in value.items()}
        return {key: member for key, member in pruned.items() if member not in ({}, [], None)}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


@functools.cache
def _packaged_specs() -> Mapping[str, Json]:
    """Return the specs of the objects of `NAMES` by kind. Kept: reading YAML takes 30 ms."""
    return {each["kind"]: each["spec"] for each in validating_policies() if each["metadata"]["name"] == NAME}


def _manifests(file: str) -> list[Json]:
    return list(yaml.safe_load_all((Path(__file__).parent / file).read_text()))
