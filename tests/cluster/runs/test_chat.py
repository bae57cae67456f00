"""`dalang chat` and `dalang transcript` with everything real, and no worker left when the transcript is read."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Shop

pytestmark = pytest.mark.timeout(150)


def dalang(shop: "Shop", command: str, name: str, *more: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dalang_cli.main", command, name, "-n", shop.namespace, *more],
        env=shop.system.environment,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_conversation_and_its_transcript(shop: "Shop") -> None:
    shop.pool("p")
    shop.model("desk", {"text": "You said: {{last_user}}"}, loop=True)
    shop.agent("desk", pool="p")
    code, out, err = dalang(shop, "chat", "desk", stdin="I am Ada\nWho am I?\n")
    assert (code, out) == (0, "You said: I am Ada\nYou said: Who am I?\n"), err
    session = shop.all("AgentSession")[0]["metadata"]["name"]
    assert f"dalang chat session/{session} -n {shop.namespace}" in err
    assert dalang(shop, "chat", session, stdin="Still there?\n")[:2] == (0, "You said: Still there?\n")

    shop.delete("AgentPool", "p")
    shop.system.wait_for("no worker", lambda: not shop.pods("p") or None)
    code, out, err = dalang(shop, "transcript", session, "-o", "json")
    assert (code, err) == (0, "")
    said = [
        (entry["kind"], entry["text"]) for entry in json.loads(out)["entries"] if entry["kind"] in {"User", "Assistant"}
    ]
    asked = ("I am Ada", "Who am I?", "Still there?")
    assert said == [each for words in asked for each in (("User", words), ("Assistant", f"You said: {words}"))]

    run = shop.all("AgentRun", "fieldSelector=spec.sessionRef.name=" + session)[-1]["metadata"]["name"]
    code, out, err = dalang(shop, "transcript", f"run/{run}")
    assert (code, err) == (0, "")
    assert [line[9:] for line in out.splitlines() if "user:" in line or "desk:" in line][1].startswith(
        "desk: You said: "
    )
