"""One control plane for all examples, as their READMEs start it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

Object = dict[str, Any]

ROOT = Path(__file__).parents[3]
OURS = ("DALANG_", "OPENAI_")
"""Beginnings of environment variables that would change what is under test."""


@dataclass(frozen=True)
class Machine:
    """This machine after `dalang dev up`, in a shell that has evaluated `dalang dev env`."""

    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command in the checkout; return what it printed."""
        done = subprocess.run(command, env=self.environment, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.run("kubectl", "get", kind, name, "-o", "json"))
        return found

    def instructions(self, words: str) -> list[str]:
        """Return the system prompts with these words that the scripted model was sent, the first one first."""
        return [text for text in map(_instructions, self._chats()) if words in text]

    def offered(self, words: str) -> list[dict[str, str]]:
        """Return names and descriptions of the tools that came with each of these prompts."""
        asked = [chat for chat in self._chats() if words in _instructions(chat)]
        functions = [[tool["function"] for tool in chat.get("tools", [])] for chat in asked]
        return [{each["name"]: each["description"] for each in some} for some in functions]

    def _chats(self) -> list[Object]:
        url = f"{self.environment['DALANG_MODEL_URL']}/requests"
        return [each["body"] for each in urllib3.request("GET", url).json()["requests"] if each["api"] == "chat"]


def _instructions(chat: Object) -> str:
    first: Object = chat["messages"][0]
    return str(first["content"]) if first["role"] == "system" else ""


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("examples")

    def dev(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "dalang_cli.main", "dev", *arguments, "--state-dir", str(directory / "state")]

    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    try:
        with (directory / "up").open("w+") as output:  # a file, since what `up` leaves behind keeps a pipe open
            done = subprocess.run(dev("up", "--detach"), env=clean, stdout=output, stderr=output, check=False)
            output.seek(0)
            assert done.returncode == 0, output.read()
        exports = subprocess.run(dev("env"), check=True, capture_output=True, text=True).stdout
        shell = subprocess.run(
            ["sh", "-c", f"{exports}\nenv -0"], env=clean, check=True, capture_output=True, text=True
        )
        yield Machine(dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry))
    finally:
        subprocess.run(dev("down"), check=True, capture_output=True)
