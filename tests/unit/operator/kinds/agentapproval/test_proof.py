"""The admission policies are read after each decision, and no oftener than that takes."""

import asyncio
from dataclasses import dataclass, field

from dalang_operator import admission
from dalang_operator.kinds.agentapproval.proof import ProofReader
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import Json, Resource

from tests.build import LONG_AGO


@dataclass
class FakeKube:
    """The packaged policies as the API server has them, or without some kind; a read waits until it is let go."""

    missing: set[str] = field(default_factory=set)
    reads: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.reads.append(resource.path(namespace, name))
        await self.gate.wait()
        if resource.kind in self.missing:
            raise NotFound(name)
        [found] = [
            each
            for each in admission.validating_policies()
            if each["kind"] == resource.kind and each["metadata"]["name"] == name
        ]
        server = {"uid": resource.kind, "resourceVersion": "1", "creationTimestamp": LONG_AGO}
        return {**found, "metadata": {**found["metadata"], **server}}


def opened(*missing: str) -> FakeKube:
    kube = FakeKube(set(missing))
    kube.gate.set()
    return kube


async def test_packaged_policies_prove() -> None:
    kube = opened()
    proof = await ProofReader(kube).read()
    assert proof.problem is None
    assert proof.since is not None
    assert kube.reads == [
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/dalang-approvals",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/dalang-approvals",
    ]


async def test_a_binding_that_is_gone_is_noticed_by_the_next_read() -> None:
    kube = opened()
    reader = ProofReader(kube)
    assert (await reader.read()).problem is None
    kube.missing.add("ValidatingAdmissionPolicyBinding")
    proof = await reader.read()
    assert proof.problem is not None
    assert admission.INSTALL in proof.problem
    assert proof.since is None


async def test_many_that_ask_at_once_share_a_read_that_begins_after_they_asked() -> None:
    kube = FakeKube()
    reader = ProofReader(kube)
    asking = [asyncio.create_task(reader.read())]
    await asyncio.sleep(0)
    asking += [asyncio.create_task(reader.read()) for _ in range(99)]  # the first read is under way, and too early
    await asyncio.sleep(0)
    kube.gate.set()
    proofs = await asyncio.gather(*asking)
    assert {proof.problem for proof in proofs} == {None}
    assert len(kube.reads) == 4, "two reads of two objects"
