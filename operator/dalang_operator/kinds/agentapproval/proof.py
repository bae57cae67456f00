"""Whether the cluster proves who decides: the admission policies, read live before each delivery.

No answer is kept for a while: whoever removed a policy within that time could decide under any name. Instead a read is
shared by all that ask before it begins, so a hundred decisions at once cost a few reads, each later than its decision.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from dalang_operator import admission
from dalang_operator.kinds.agentapproval.plan import Proof
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import Json, Resource


class ReadPort(Protocol):
    """What a read needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...


_RESOURCES = {
    kind: Resource("admissionregistration.k8s.io", "v1", admission.PLURALS[kind], kind) for kind in admission.NAMES
}


@dataclass
class ProofReader:
    """Reads the policies. Belongs to one event loop."""

    kube: ReadPort
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _begun: int = 0
    _last: tuple[int, Proof] | None = None
    """The number of the last read, and what it found."""
    _judged: tuple[tuple[str, ...], Proof] | None = None
    """Versions of the objects of the last judgement, which takes 35 ms."""

    async def read(self) -> Proof:
        """Return what the policies say, by a read that begins after this call.

        Raises:
            ApiError: The API server refused or did not answer.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._last is None or self._last[0] < wanted:
                self._begun += 1
                number = self._begun
                self._last = (number, await self._read())
            return self._last[1]

    async def _read(self) -> Proof:
        found = {kind: await self._get(kind) for kind in admission.NAMES}
        versions = tuple(_version(each) for each in found.values())
        if self._judged is None or self._judged[0] != versions:
            proof = Proof(admission.proof_problem(found), admission.unaltered_since(found))
            self._judged = (versions, proof)
        return self._judged[1]

    async def _get(self, kind: str) -> Json | None:
        try:
            return await self.kube.get(_RESOURCES[kind], None, admission.NAMES[kind])
        except NotFound:
            return None


def _version(obj: Json | None) -> str:
    return f"{obj['metadata']['uid']}/{obj['metadata']['resourceVersion']}" if obj else ""
