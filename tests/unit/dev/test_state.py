"""The files through which the commands of `dalang dev` learn of the supervisor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dalang_cli.dev.errors import DevError
from dalang_cli.dev.logs import last_lines, matching
from dalang_cli.dev.main import main
from dalang_cli.dev.state import (
    PartStatus,
    Snapshot,
    StateDirectory,
    SupervisorLock,
    current_snapshot,
    default_state_directory,
    dev_command,
    lock_holder,
    read_snapshot,
    write_snapshot,
)


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "state")
    made.create()
    return made


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"DALANG_DEV_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}, "/a", id="our own variable"),
        pytest.param({"XDG_STATE_HOME": "/b"}, "/b/dalang/dev", id="the XDG variable"),
        pytest.param({}, f"{Path.home()}/.local/state/dalang/dev", id="the default"),
    ],
)
def test_default_state_directory(environment: dict[str, str], expected: str) -> None:
    assert str(default_state_directory(environment)) == expected


@pytest.mark.parametrize(
    ("environment", "root", "option"),
    [
        pytest.param({}, f"{Path.home()}/.local/state/dalang/dev", "", id="the default"),
        pytest.param({}, "/a b", " --state-dir '/a b'", id="another"),
        pytest.param({"DALANG_DEV_STATE_DIR": "/a"}, "/a", " --state-dir /a", id="this shell's variable"),
        pytest.param({"XDG_STATE_HOME": "/b"}, "/b/dalang/dev", " --state-dir /b/dalang/dev", id="its XDG variable"),
    ],
)
def test_a_command_that_is_shown_works_in_another_shell(
    environment: dict[str, str], root: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DALANG_DEV_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dev_command("status", StateDirectory(Path(root))) == f"dalang dev status{option}"


def test_a_snapshot_survives_the_file(directory: StateDirectory) -> None:
    snapshot = Snapshot(phase="running", pid=1, ports={"etcd": 2}, parts=(PartStatus("etcd", pid=3, ready=True),))
    write_snapshot(directory, snapshot)
    assert read_snapshot(directory) == snapshot


def test_a_dead_supervisor_is_not_running_whatever_its_file_says(directory: StateDirectory) -> None:
    write_snapshot(directory, Snapshot(phase="running", pid=1, ports={"etcd": 2}, parts=(PartStatus("etcd"),)))
    assert current_snapshot(directory) == Snapshot(phase="stopped", ports={"etcd": 2})


def test_the_lock_tells_who_holds_it_and_excludes_others(directory: StateDirectory) -> None:
    lock = SupervisorLock(directory)
    assert lock_holder(directory) is None
    assert lock.acquire()
    assert lock_holder(directory) == os.getpid()
    assert not SupervisorLock(directory).acquire()
    lock.release()
    assert lock_holder(directory) is None


def test_a_damaged_snapshot_names_the_remedy(directory: StateDirectory) -> None:
    directory.snapshot_file.write_text("{")
    with pytest.raises(DevError, match="Remove it"):
        read_snapshot(directory)


def test_status_of_nothing(directory: StateDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-o", "json", "--state-dir", str(directory.root)]) == 3
    assert capsys.readouterr().out == '{"parts": []}\n'.replace('{"parts": []}', '{\n "parts": []\n}')


def test_env_of_nothing_prints_no_exports(directory: StateDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--state-dir", str(directory.root)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "dalang dev up" in captured.err


def test_a_log_is_chosen_by_the_beginning_of_its_name() -> None:
    names = ["etcd", "worker-default-a-1", "worker-default-a-2"]
    assert matching("etc", names) == {"etcd"}
    with pytest.raises(DevError, match="worker-default-a-1, worker-default-a-2"):
        matching("worker", names)
    with pytest.raises(DevError, match="not a part"):
        matching("nothing", names)


def test_last_lines() -> None:
    assert last_lines("a\nb\nc\n", 2) == "b\nc\n"
    assert last_lines("a\n", 0) == ""
    assert last_lines("a\nb", None) == "a\nb"


def test_the_command_imports_no_subcommand_it_does_not_run() -> None:
    code = "import sys, dalang_cli.main as m; m.main(['--help']); print(sorted(set(sys.modules) & {'aiohttp', 'temporalio', 'kopf'}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
