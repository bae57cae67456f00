"""Which object a name on the command line means."""

from typing import Any

import pytest
from dalang_api.v1alpha1.agent import Agent
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_api.v1alpha1.agentsession import AgentSession
from dalang_cli.cluster import ClusterError, Kind
from dalang_cli.naming import NameProblem, find

Json = dict[str, Any]


class Shelf:
    """Objects by kind; of a forbidden kind nothing can be read."""

    namespace = "shop"

    def __init__(self, *objects: tuple[Kind, str], forbidden: Kind | None = None) -> None:
        self.objects = objects
        self.forbidden = forbidden

    def read(self, kind: Kind, name: str) -> Json:
        if kind is self.forbidden:
            raise ClusterError(403, f"cannot get resource {kind.PLURAL}")
        if (kind, name) not in self.objects:
            raise ClusterError(404, f'{kind.PLURAL}.dalang.dev "{name}" not found')
        return {"metadata": {"name": name}}

    def read_all(self, kind: Kind) -> tuple[list[Json], str]:
        if kind is self.forbidden:
            raise ClusterError(403, f"cannot list resource {kind.PLURAL}")
        return [{"metadata": {"name": name}} for each, name in self.objects if each is kind], "1"


BOTH = Shelf((Agent, "x"), (AgentSession, "x"), (AgentSession, "y"))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("y", AgentSession),
        ("agent/x", Agent),
        ("agents/x", Agent),
        ("ag/x", Agent),
        ("session/x", AgentSession),
        ("AgentSession/x", AgentSession),
        ("agentsessions.dalang.dev/x", AgentSession),
        ("agsess/x", AgentSession),
    ],
)
def test_found(given: str, kind: Kind) -> None:
    found, body = find(BOTH, given, (AgentSession, Agent))
    assert (found, body["metadata"]["name"]) == (kind, given[-1])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param("x", "x is both an AgentSession and an Agent: write session/x or agent/x", id="both"),
        pytest.param(
            "z",
            "there is no AgentSession or Agent 'z' in namespace shop. There is: AgentSession x, y; Agent x",
            id="neither",
        ),
        pytest.param(
            "agent/y",
            "there is no Agent 'y' in namespace shop. There is: Agent x",
            id="not of the kind that is written",
        ),
        pytest.param(
            "pod/x", "'pod' is no kind that is meant here: write session/NAME or agent/NAME", id="another kind"
        ),
    ],
)
def test_not_found(given: str, problem: str) -> None:
    with pytest.raises(NameProblem) as raised:
        find(BOTH, given, (AgentSession, Agent))
    assert str(raised.value) == problem


def test_many_are_not_all_told() -> None:
    shelf = Shelf(*((AgentRun, f"r{number}") for number in range(12)))
    with pytest.raises(NameProblem, match=r"AgentRun r0, .*, r9, and 2 more$"):
        find(shelf, "x", (AgentRun,))


def test_what_may_not_be_read_hides_nothing_else() -> None:
    shelf = Shelf((AgentSession, "y"), forbidden=Agent)
    assert find(shelf, "y", (AgentSession, Agent))[0] is AgentSession
    with pytest.raises(ClusterError, match="cannot get resource agents"):
        find(shelf, "z", (AgentSession, Agent))
