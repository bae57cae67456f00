"""Bad input gets a clear answer: what the conditions say, what the model is told, and what mends it.

All cases of a table are started together and served by one worker; each test waits for its own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(150)

Object = dict[str, Any]

KEY = "sk-proj-Never5hownT0Anyb0dy"
REFUSED = {"openAI": {"baseURL": "http://127.0.0.1:9/v1"}}
DONE = {"text": "Done."}
BLOCK_SECONDS = 15.0


def keyed(secret: str, key: str = "api-key") -> Object:
    return {"auth": {"apiKey": {"secretKeyRef": {"name": secret, "key": key}}}}


def answers(status: int, message: str, code: str | None = None, **headers: str) -> Object:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return {
        "status": status,
        "body": {"error": error},
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
    }


def calls(tool: str, **arguments: Any) -> Object:
    return {"toolCalls": [{"name": tool, "arguments": arguments}]}


# ── The model's endpoint and its key ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A run with something wrong about its model."""

    id: str
    end: tuple[str, str]
    """Regular expression for phase, reason and message at the end; a tuple of phase/reason and message."""
    script: Object = field(default_factory=dict)
    model: Object = field(default_factory=lambda: keyed("key"))
    meanwhile: tuple[str, str] | None = None
    """Reason and message before that."""
    mend: Callable[["Shop", str], None] | None = None
    timeout: str = "5m"
    requests: int | None = None
    """How often the model is asked."""

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.id.lower()).strip("-")


ANSWERED = ("Succeeded/Answered", "")

CASES = [
    Case(
        "a missing Secret is waited for",
        model=keyed("late"),
        meanwhile=("SecretNotFound", r"Secret 'late' .*'api-key'"),
        mend=lambda shop, _: shop.put("Secret", "late", stringData={"api-key": KEY}),
        end=ANSWERED,
        requests=1,
    ),
    Case(
        "a missing key of a Secret is waited for",
        model=keyed("key", "other-key"),
        meanwhile=("SecretNotFound", r"Secret 'key' has no key 'other-key'"),
        mend=lambda shop, _: shop.put("Secret", "key", stringData={"other-key": KEY}),
        end=ANSWERED,
        requests=1,
    ),
    Case(
        "a missing Secret ends in the timeout, which names it",
        model=keyed("never"),
        timeout="6s",
        end=("Failed/Timeout", r"6s .*Secret 'never'.*'api-key'"),
        requests=0,
    ),
    Case(
        "401 is final and its message does not repeat the key",
        script={"alwaysError": answers(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key")},
        end=("Failed/ModelFailed", r"401.*Incorrect API key provided"),
        requests=1,
    ),
    Case(
        "403 is final",
        script={"alwaysError": answers(403, "Country not supported")},
        end=("Failed/ModelFailed", r"403.*Country not supported"),
        requests=1,
    ),
    Case(
        "404 is final",
        script={"alwaysError": answers(404, "The model does not exist", "model_not_found")},
        end=("Failed/ModelFailed", r"404.*The model does not exist"),
        requests=1,
    ),
    Case(
        "a used-up quota is final",
        script={"alwaysError": answers(429, "You exceeded your current quota", "insufficient_quota")},
        end=("Failed/ModelFailed", r"You exceeded your current quota"),
        requests=1,
    ),
    Case(
        "429 is tried again when it says",
        script={"errors": [answers(429, "Slow down", retry_after="1")] * 4},
        meanwhile=("ModelRetrying", r"429.*Slow down"),
        end=ANSWERED,
        requests=5,
    ),
    Case(
        "503 is tried again",
        script={"errors": [answers(503, "Overloaded")] * 3},
        meanwhile=("ModelRetrying", r"503.*Overloaded"),
        end=ANSWERED,
        requests=4,
    ),
    Case(
        "503 without end ends in the timeout, which says so",
        script={"alwaysError": answers(503, "Overloaded")},
        timeout="8s",
        meanwhile=("ModelRetrying", r"503.*Overloaded"),
        end=("Failed/Timeout", r"8s .*the model.*503.*Overloaded"),
    ),
    Case(
        "a connection that breaks is tried again",
        script={"errors": [{"drop": True}] * 2},
        end=ANSWERED,
        requests=3,
    ),
    Case(
        "a refused connection ends in the timeout, which names it",
        model=REFUSED,
        timeout="8s",
        meanwhile=("ModelRetrying", r"127\.0\.0\.1:9"),
        end=("Failed/Timeout", r"8s .*127\.0\.0\.1:9"),
    ),
]


@pytest.fixture(scope="module")
def cases(mall: "Shop", system: "System") -> dict[str, "Run"]:
    """Every case, started."""
    mall.put("Secret", "key", stringData={"api-key": KEY})
    runs = {}
    for case in CASES:
        mall.model(case.name, DONE, spec=case.model, **case.script)
        mall.agent(case.name)
    for case in CASES:
        runs[case.id] = mall.run(case.name, limits={"timeout": case.timeout})
    runs["blocking"] = mall.task("blocking", calls("block", seconds=BLOCK_SECONDS), DONE, tools=("block",))
    system.wait_for("the tool blocks", lambda: any(call["tool"] == "block" for call in mall.calls))
    late = {**DONE, "latencySeconds": BLOCK_SECONDS - 3}
    for name, answer in (("quick", DONE), ("patient", late)):
        runs[name] = mall.task(name, calls("stamp", key=name), answer, tools=("stamp",))
    return runs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_of_its_model(case: Case, cases: dict[str, "Run"], mall: "Shop") -> None:
    run = cases[case.id]
    if case.meanwhile and not run.status.get("finishedAt"):
        reason, message = case.meanwhile
        assert re.search(message, run.waits(reason))
    if case.mend:
        case.mend(mall, case.name)
    status = run.ended()
    assert f"{status['phase']}/{run.succeeded['reason']}" == case.end[0]
    assert re.search(case.end[1], run.succeeded["message"])
    if case.requests is not None:
        assert len(run.asked) == case.requests


def test_the_key_is_shown_to_nobody(cases: dict[str, "Run"], mall: "Shop", system: "System") -> None:
    """After the cases above, one of which has the provider repeat it."""
    for run in cases.values():
        run.ended()
    shown = {
        "kubectl": mall.kubectl("get", "agentruns,agents,agentmodels,agentpools,events,deployments,pods", "-o", "yaml"),
        **{str(path): text for path, text in system.logs().items()},
        **{run.name: repr(run.events) for run in cases.values()},
    }
    assert [where for where, text in shown.items() if KEY in text] == []
    assert "[key]" in cases["401 is final and its message does not repeat the key"].succeeded["message"]


# ── Tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_model_does_wrong_with_tools_it_is_told(mall: "Shop") -> None:
    run = mall.task(
        "clumsy",
        calls("stmp", key="letter"),
        {"toolCalls": [{"name": "stamp", "arguments": '{"key": '}]},
        calls("stamp", kee="letter"),
        calls("explode", key="letter"),
        DONE,
        tools=("stamp", "explode"),
    )
    assert run.answered()["turns"] == 5
    told = [message["content"] for message in run.asked[-1]["body"]["messages"] if message["role"] == "tool"]
    wanted = ["There is no tool 'stmp'.*explode, stamp", "JSON", "key", "ValueError: out of paper"]
    assert len(told) == len(wanted)
    for text, pattern in zip(told, wanted, strict=True):
        assert re.search(pattern, text, re.DOTALL), text
    assert [call["tool"] for call in mall.calls if call["key"] == "letter"] == ["explode"]


def test_output_that_is_too_long_or_not_utf8_is_cut_with_a_mark(mall: "Shop") -> None:
    turn = {"toolCalls": [{"name": "flood", "arguments": {}}, {"name": "garble", "arguments": {}}]}
    run = mall.task("flooded", turn, DONE, tools=("flood", "garble"))
    run.answered()
    flood, garble = (message["content"] for message in run.asked[-1]["body"]["messages"][-2:])
    assert flood.startswith("xxx")
    assert len(flood.encode()) <= 16 * 1024
    assert re.search(r"\[.*(5,?000,?000|cut).*\]", flood.replace("x", "")), flood[-200:]
    assert "UTF-8" in garble
    assert "caf�" in garble


def test_a_tool_that_blocks_its_loop_disturbs_no_other_run(cases: dict[str, "Run"], mall: "Shop") -> None:
    """The other two were created when it began: one needs the tools' loop, the other a model that answers late."""
    blocking, quick, patient = (cases[name] for name in ("blocking", "quick", "patient"))
    for run in (blocking, quick, patient):
        run.answered()
        assert len(run.asked) == 2
    assert quick.status["finishedAt"] < blocking.status["finishedAt"]
    assert seconds_of(blocking) >= BLOCK_SECONDS > seconds_of(quick) * 1.5
    assert [call["tool"] for call in mall.calls].count("block") == 1


def seconds_of(run: "Run") -> float:
    """Return how long a run took, by status times: whole seconds, both cut."""
    start, end = (datetime.fromisoformat(run.status[name]) for name in ("startedAt", "finishedAt"))
    return (end - start).total_seconds()


# ── Agents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_of_an_agent_that_is_not_valid_starts_when_it_is_mended(mall: "Shop") -> None:
    """So does one of an agent that only reaches it."""
    for name in ("muddled", "front-of-muddled"):
        mall.model(name, DONE)
    mall.agent("muddled", output={"schema": {"type": "string"}})
    mall.agent("front-of-muddled", handoffs=[{"agentRef": {"name": "muddled"}}])
    runs = [mall.run(name) for name in ("muddled", "front-of-muddled")]
    for run in runs:
        assert run.waits("InvalidSpec").startswith("Agent muddled: output.schema is no JSON schema: type: ")
        assert run.status["phase"] == "Pending"
    assert mall.waits("Agent", "front-of-muddled", "InvalidSpec").startswith("Agent muddled: output.schema is no ")
    mall.patch("Agent", "muddled", {"spec": {"output": None}})
    mall.waits("Agent", "front-of-muddled", "Resolved")
    for run in runs:
        run.answered()


# ── Pools ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_module_that_does_not_import_is_named_and_its_worker_keeps_running(mall: "Shop", system: "System") -> None:
    mall.pool("broken", tools={"broken.py": "import no_such_thing\n", "shop.py": "from dalang import tool\n"})
    run = mall.task("unlucky", DONE, pool="broken")
    message = mall.waits("AgentPool", "broken", "ImportFailed", condition="ToolsLoaded")
    assert "module broken: ModuleNotFoundError: No module named 'no_such_thing'" in message
    assert mall.waits("AgentPool", "broken", "ImportFailed") == message
    run.answered()
    (pod,) = mall.pods("broken")
    assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]
    assert "no_such_thing" in mall.kubectl("get", "agentpool", "broken", "-o", "wide") + message


def test_a_function_that_nobody_registers_is_named_with_the_nearest(mall: "Shop", system: "System") -> None:
    mall.model("speller", DONE)
    mall.agent("speller", tools=("stampp",))
    run = mall.run("speller")
    message = mall.waits("Agent", "speller", "ToolNotFound")
    assert "stampp" in message
    assert "stamp" in message.replace("stampp", "")
    assert "stampp" in run.waits("ToolNotFound")
    mall.put("ConfigMap", "speller-tools", data={"speller.py": "from dalang import tool\n"})
    mall.patch("Agent", "speller", {"spec": {"tools": [{"name": "stampp", "function": {"name": "stamp"}}]}})
    mall.waits("Agent", "speller", "Resolved")
    run.cancel()
    run.ended()


NEW_TOOL = """
from dalang import tool


@tool
def fresh() -> str:
    \"\"\"Say something new.\"\"\"
    return "new"
"""


def test_a_changed_module_reaches_the_workers(mall: "Shop", system: "System") -> None:
    mall.pool("rolling", tools={"rolling.py": NEW_TOOL.replace("fresh", "stale")})
    mall.model("rolling", calls("fresh"), {"text": "{{last_tool}}"})
    mall.agent("rolling", pool="rolling", tools=("fresh",))
    assert "fresh" in mall.waits("Agent", "rolling", "ToolNotFound")
    (before,) = mall.pods("rolling")
    mall.put("ConfigMap", "rolling-tools", data={"rolling.py": NEW_TOOL})
    mall.waits("Agent", "rolling", "Resolved")
    assert mall.run("rolling").answered()["output"] == "new"
    system.wait_for(
        "the old worker is gone",
        lambda: [pod["metadata"]["uid"] for pod in mall.pods("rolling")].count(before["metadata"]["uid"]) == 0,
    )
    copies = [
        found["metadata"]["name"]
        for found in mall.all("ConfigMap")
        if found["metadata"]["name"].startswith("dalang-rolling-")
    ]
    assert copies


def test_a_missing_config_map_is_named_and_waited_for(mall: "Shop") -> None:
    mall.create("AgentPool", "waiting", {"tools": ["waiting"], "toolsFrom": [{"configMapRef": {"name": "waiting"}}]})
    mall.model("waiting", calls("fresh"), DONE)
    mall.agent("waiting", pool="waiting", tools=("fresh",))
    run = mall.run("waiting")
    assert "ConfigMap waiting" in mall.waits("AgentPool", "waiting", "ConfigMapNotFound")
    mall.put("ConfigMap", "waiting", data={"waiting.py": NEW_TOOL})
    run.answered()


def test_a_strangers_deployment_of_the_pools_name_is_left_alone(mall: "Shop", system: "System") -> None:
    template = {
        "metadata": {"labels": {"app": "stranger"}},
        "spec": {"containers": [{"name": "main", "image": "none", "command": ["sleep", "1000"]}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "stranger"}}, "template": template}
    before = mall.create("Deployment", "dalang-taken", spec)
    mall.pool("taken")
    mall.model("taken", DONE)
    mall.agent("taken", pool="taken")
    run = mall.run("taken")
    assert "dalang-taken" in mall.waits("AgentPool", "taken", "NameConflict")
    system.wait_for("the run is started", lambda: run.status.get("workflow"))
    assert mall.get("Deployment", "dalang-taken")["spec"] == before["spec"]
    mall.delete("Deployment", "dalang-taken")
    mall.patch("AgentPool", "taken", {"spec": {"slots": 10}})
    run.answered()
