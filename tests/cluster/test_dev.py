"""`dalang dev` as its users meet it: commands, real servers, pods as local processes, and nothing left behind."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from dalang_cli.dev.processes import MARKER_VARIABLE, marker_prefix

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]
Value = TypeVar("Value")

SERVERS = {"etcd", "kube-apiserver", "kube-controller-manager", "temporal", "model"}

WEB_SERVER = """
import http.server, os, signal, subprocess, sys
if os.environ.get("CHILD"):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)  # as far away as a child can get
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
os.chdir(os.environ["FILES"])
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def deployment(name: str, *, replicas: int = 1, command: list[str] | None = None, **environment: str) -> Object:
    """A Deployment of web servers that serve the optional Secret `late`."""
    container = {
        "name": "main",
        "image": "none",
        "command": command or ["python3", "-c", WEB_SERVER],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "FILES", "value": "/var/late"},
            *({"name": name, "value": value} for name, value in environment.items()),
        ],
        "volumeMounts": [{"name": "late", "mountPath": "/var/late"}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": "late", "secret": {"secretName": "late", "optional": True}}],
    }
    labels = {"app": name, "dalang.dev/pool": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def eventually(what: str, look: Callable[[], Value], seconds: float = 30.0) -> Value:
    """Return what `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


class Dev:
    """One control plane under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `dalang dev ARGUMENTS`."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dalang_cli.main", "dev", *arguments, "--state-dir", str(self.directory)]

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self("up", "--detach", "--without-operator", *arguments)

    def environment(self) -> dict[str, str]:
        """Return what a shell has after `eval "$(dalang dev env)"`."""
        shell = subprocess.run(
            ["sh", "-c", f"{self('env').stdout}\nenv -0"], check=True, capture_output=True, text=True
        )
        return dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)

    def kubectl(self, *arguments: str, stdin: Object | None = None, check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment(),
            input=json.dumps(stdin) if stdin else None,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def apply(self, body: Object) -> None:
        self.kubectl("apply", "-f", "-", stdin=body)

    def rolled_out(self, name: str) -> None:
        self.kubectl("rollout", "status", f"deployment/{name}", "--timeout=30s")

    def pods(self, name: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", "pods", "-l", f"app={name}", "-o", "json"))["items"]
        return found

    def parts(self) -> dict[str, Object]:
        return {part["name"]: part for part in json.loads(self("status", "-o", "json", check=False).stdout)["parts"]}

    def pid(self, part: str) -> int:
        pid: int = self.parts()[part]["pid"]
        return pid

    def supervisor(self) -> int:
        pid: int = json.loads((self.directory / "state.json").read_text())["pid"]
        return pid

    def processes(self) -> list[psutil.Process]:
        """Return every living process that belongs to this control plane, grandchildren included."""
        prefix, found = marker_prefix(self.directory), []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARKER_VARIABLE, "").startswith(prefix)
                ours = marked or any(str(self.directory) in word for word in process.cmdline())
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A control plane for tests that leave it running."""
    made = Dev(tmp_path_factory.mktemp("dev"))
    made.up()
    yield made
    made("down")
    assert made.processes() == []


@pytest.fixture
def own_dev(tmp_path: Path) -> Iterator[Dev]:
    """A control plane for a test that stops or kills it; not started yet."""
    made = Dev(tmp_path)
    yield made
    made("down")
    assert made.processes() == []


@pytest.fixture
def web(dev: Dev) -> Iterator[str]:
    """A Deployment that is available, with its name."""
    dev.apply(deployment("web", replicas=2))
    dev.rolled_out("web")
    yield "web"
    dev.kubectl("delete", "deployment", "web", "--wait")
    dev.kubectl("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=30s")


def get(ip: str, path: str) -> str:
    """Return what a pod serves, or nothing."""
    return subprocess.run(
        ["curl", "-sf", f"http://{ip}:8080/{path}"], capture_output=True, text=True, check=False
    ).stdout


def test_status_and_environment(dev: Dev) -> None:
    assert {name for name, part in dev.parts().items() if part["ready"]} == SERVERS
    assert "kube-apiserver" in dev("status").stdout
    environment = dev.environment()
    assert environment["TEMPORAL_ADDRESS"].startswith("127.0.0.1:")
    assert environment["DALANG_MODEL_URL"].startswith("http://127.0.0.1:")
    assert dev.kubectl("get", "secret", "openai", "-o", "jsonpath={.data.api-key}")
    dev.kubectl("get", "namespace", "dalang-system")
    dev.kubectl("get", "agentruns", "--all-namespaces")


def test_up_says_that_it_is_already_running(dev: Dev) -> None:
    before = dev.pid("etcd")
    assert "already running" in dev.up().stdout
    assert dev.pid("etcd") == before


def test_the_operator_may_do_its_work_and_no_more(dev: Dev) -> None:
    def may(*question: str) -> bool:
        asked = dev.kubectl("auth", "can-i", *question, "--as=dalang-operator", "-A", check=False)
        return asked.strip() == "yes"

    assert may("patch", "agentruns.dalang.dev", "--subresource=status")
    assert may("patch", "deployments.apps", "--subresource=scale")
    assert may("get", "configmaps")
    assert may("create", "agentapprovals.dalang.dev")
    assert may("delete", "agentapprovals.dalang.dev")
    assert may("patch", "agentapprovals.dalang.dev", "--subresource=status")
    assert may("get", "validatingadmissionpolicies.admissionregistration.k8s.io")
    assert may("get", "validatingadmissionpolicybindings.admissionregistration.k8s.io")
    assert may("create", "events.events.k8s.io")
    assert may("watch", "agentsessions.dalang.dev")
    assert may("patch", "agentsessions.dalang.dev", "--subresource=status")
    assert may("watch", "agentschedules.dalang.dev")
    assert may("patch", "agentschedules.dalang.dev", "--subresource=status")
    assert may("patch", "agentruns.dalang.dev"), "a schedule that replaces its run cancels the old one"
    assert not may("patch", "agentapprovals.dalang.dev")
    assert not may("update", "agentapprovals.dalang.dev")
    assert not may("patch", "agentsessions.dalang.dev")
    assert not may("patch", "agentschedules.dalang.dev")
    assert not may("delete", "agentschedules.dalang.dev")
    assert not may("patch", "validatingadmissionpolicies.admissionregistration.k8s.io")
    assert not may("delete", "validatingadmissionpolicybindings.admissionregistration.k8s.io")
    assert not may("delete", "deployments.apps")
    assert not may("patch", "configmaps")
    assert not may("get", "secrets")
    assert not may("approve", "agentapprovals.dalang.dev")
    assert not may("create", "pods")
    assert not may("create", "serviceaccounts", "--subresource=token")


def test_a_deployment_becomes_available_and_shows_in_status(dev: Dev, web: str) -> None:
    names = {f"worker-default-{pod['metadata']['name']}" for pod in dev.pods(web)}
    parts = dev.parts()
    assert len(names) == 2
    assert all(parts[name]["ready"] and psutil.pid_exists(parts[name]["pid"]) for name in names)
    assert len({pod["status"]["podIP"] for pod in dev.pods(web)}) == 2
    dev("status")


def test_a_rollout_replaces_the_pods(dev: Dev, web: str) -> None:
    before = {pod["metadata"]["uid"] for pod in dev.pods(web)}
    dev.kubectl("set", "env", "deployment/web", "NEW=1")
    dev.rolled_out(web)
    eventually("the old pods are gone", lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in dev.pods(web)))


def test_scaling_to_zero_ends_the_processes(dev: Dev, web: str) -> None:
    pids = [part["pid"] for name, part in dev.parts().items() if name.startswith("worker-default-web")]
    dev.kubectl("scale", "deployment/web", "--replicas=0")
    dev.kubectl("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=30s")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert set(dev.parts()) == SERVERS


def test_an_optional_secret_appears_in_a_running_pod(dev: Dev, web: str) -> None:
    ip = dev.pods(web)[0]["status"]["podIP"]
    assert get(ip, "key") == ""
    dev.kubectl("create", "secret", "generic", "late", "--from-literal=key=one")
    assert eventually("the file appears", lambda: get(ip, "key")) == "one"
    dev.kubectl("patch", "secret", "late", "-p", json.dumps({"stringData": {"key": "two"}}))
    eventually("the file changes", lambda: get(ip, "key") == "two")
    dev.kubectl("delete", "secret", "late")
    eventually("the file goes", lambda: get(ip, "key") == "")


def test_a_pod_gets_a_token_of_its_own_for_an_audience(dev: Dev) -> None:
    body = deployment("identified")
    projection = {"audience": "https://api.example.com", "expirationSeconds": 3600, "path": "token"}
    volume = {"name": "late", "projected": {"sources": [{"serviceAccountToken": projection}]}}
    body["spec"]["template"]["spec"]["volumes"] = [volume]
    dev.apply(body)
    dev.rolled_out("identified")
    (pod,) = dev.pods("identified")
    payload = get(pod["status"]["podIP"], "token").split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims["aud"] == ["https://api.example.com"]
    assert claims["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]
    assert claims["exp"] - time.time() > 3000
    dev.kubectl("delete", "deployment", "identified", "--wait")
    eventually("it is gone", lambda: not dev.pods("identified"))


def test_logs_of_a_pod(dev: Dev, web: str) -> None:
    pod = dev.pods(web)[0]["metadata"]["name"]
    eventually("the probe is logged", lambda: "GET /" in dev("logs", f"worker-default-{pod}").stdout)
    assert "GET /" in dev.kubectl("logs", pod, "--tail=1")


def test_a_container_that_crashes_is_restarted_with_a_delay(dev: Dev) -> None:
    dev.apply(deployment("crash", command=["python3", "-c", "raise SystemExit('no such thing')"]))

    def crashed_twice() -> Object:
        statuses = [status for pod in dev.pods("crash") for status in pod["status"].get("containerStatuses", ())]
        return next((status for status in statuses if status["restartCount"] >= 2), {})

    status = eventually("two restarts", crashed_twice)
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert status["lastState"]["terminated"]["message"] == "no such thing"
    assert not status["ready"]
    eventually(
        "it waits",
        lambda: crashed_twice().get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff",
    )
    assert dev("status", check=False).returncode != 0
    dev.kubectl("delete", "deployment", "crash", "--wait")
    eventually("it is gone", lambda: not dev.pods("crash"))


def test_a_container_that_fails_its_liveness_probe_is_restarted(dev: Dev) -> None:
    body = deployment("sick")
    (container,) = body["spec"]["template"]["spec"]["containers"]
    probe = {"httpGet": {"path": "/missing", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    container["livenessProbe"] = probe
    dev.apply(body)

    def restarts() -> int:
        statuses = [status for pod in dev.pods("sick") for status in pod["status"].get("containerStatuses", ())]
        return max((status["restartCount"] for status in statuses), default=0)

    eventually("a restart", restarts)
    (pod,) = dev.pods("sick")
    assert "liveness probe failed" in dev.kubectl("logs", pod["metadata"]["name"])
    dev.kubectl("delete", "deployment", "sick", "--wait")
    eventually("it is gone", lambda: not dev.pods("sick"))


def test_a_container_without_a_program_says_so(dev: Dev) -> None:
    dev.apply(deployment("image", command=["/no/such/program"]))

    def reason() -> str:
        statuses = [status for pod in dev.pods("image") for status in pod["status"].get("containerStatuses", ())]
        return str(statuses[0]["state"]) if statuses else ""

    assert "not images" in eventually("it waits", reason)
    dev.kubectl("delete", "deployment", "image", "--wait")
    eventually("it is gone", lambda: not dev.pods("image"))


def test_an_api_server_that_is_killed_comes_back_and_pods_go_on(dev: Dev, web: str) -> None:
    before = {part["pid"] for name, part in dev.parts().items() if name.startswith("worker")}
    killed = dev.pid("kube-apiserver")
    os.kill(killed, signal.SIGKILL)
    eventually("a new process", lambda: dev.pid("kube-apiserver") not in {None, killed})
    eventually("it is ready", lambda: dev("status", check=False).returncode == 0)
    assert {part["pid"] for name, part in dev.parts().items() if name.startswith("worker")} == before
    dev.kubectl("scale", "deployment/web", "--replicas=3")
    dev.rolled_out(web)


def test_etcd_that_is_killed_comes_back_with_its_data(dev: Dev, web: str) -> None:
    os.kill(dev.pid("etcd"), signal.SIGKILL)
    eventually("all is ready", lambda: dev("status", check=False).returncode == 0)
    dev.rolled_out(web)


def test_two_side_by_side(dev: Dev, own_dev: Dev) -> None:
    own_dev.up()
    own_dev.apply(deployment("web"))
    own_dev.rolled_out("web")
    assert dev.pods("web") == []
    assert dev.environment()["TEMPORAL_ADDRESS"] != own_dev.environment()["TEMPORAL_ADDRESS"]
    own_dev("down")
    assert own_dev.processes() == []
    dev("status")


def test_a_second_up_goes_on_with_the_data(own_dev: Dev) -> None:
    own_dev.up()
    before = own_dev.environment()
    own_dev.apply(deployment("web"))
    own_dev.rolled_out("web")
    temporal = [str(Path(sys.executable).parent / "temporal"), "workflow"]
    start = [*temporal, "start", "--type", "Any", "--task-queue", "none", "--workflow-id", "kept"]
    subprocess.run(start, env=before, check=True, stdout=subprocess.DEVNULL)
    own_dev("down")
    assert own_dev.processes() == []
    assert own_dev("status", check=False).returncode == 3
    own_dev.up()
    own_dev("status")
    assert own_dev.environment() == before
    subprocess.run([*temporal, "describe", "--workflow-id", "kept"], env=before, check=True, stdout=subprocess.DEVNULL)
    (pod,) = own_dev.pods("web")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1


@pytest.mark.parametrize("detached", [True, False], ids=["in the background", "in the foreground"])
def test_nothing_survives_a_killed_supervisor(own_dev: Dev, detached: bool) -> None:
    foreground: subprocess.Popen[bytes] | None = None
    if detached:
        own_dev.up()
    else:
        command = own_dev.command("up", "--without-operator")
        foreground = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually("it is ready", lambda: own_dev("status", check=False).returncode == 0, seconds=90)
    own_dev.apply(deployment("web", CHILD="1"))
    own_dev.rolled_out("web")
    assert any("sleep" in process.cmdline() for process in own_dev.processes())
    os.kill(own_dev.supervisor(), signal.SIGKILL)
    if foreground is not None:
        foreground.wait()
    eventually("no process is left", lambda: not own_dev.processes(), seconds=10)
    assert own_dev("status", check=False).returncode == 3
    own_dev.up()
    own_dev.rolled_out("web")


def test_interrupting_up_stops_everything(own_dev: Dev) -> None:
    command = own_dev.command("up", "--without-operator")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as foreground:
        eventually("etcd runs", lambda: own_dev.parts().get("etcd", {}).get("pid"))
        foreground.send_signal(signal.SIGINT)
        output, _ = foreground.communicate(timeout=30)
    assert foreground.returncode == 0
    assert "Stopped." in output
    assert "Traceback" not in output
    assert own_dev.processes() == []


def test_the_operator_is_a_part_that_is_started_again(own_dev: Dev) -> None:
    own_dev("up", "--detach", "--operator-arg=--log-level=debug")
    own_dev("status")
    killed = own_dev.pid("operator")
    assert "--log-level=debug" in psutil.Process(killed).cmdline()
    os.kill(killed, signal.SIGKILL)
    eventually("a new process", lambda: own_dev.pid("operator") not in {None, killed})
    eventually("it is ready", lambda: own_dev("status", check=False).returncode == 0)


def test_nothing_survives_a_killed_up_that_was_still_starting(own_dev: Dev) -> None:
    with subprocess.Popen(own_dev.command("up", "--detach", "--without-operator"), stdout=subprocess.DEVNULL) as front:
        eventually("etcd runs", lambda: own_dev.parts().get("etcd", {}).get("pid"))
        front.kill()
    eventually("no process is left", lambda: not own_dev.processes(), seconds=10)


def test_a_part_that_cannot_start_is_explained(own_dev: Dev) -> None:
    (own_dev.directory / "etcd").write_text("in the way")
    failed = own_dev("up", "--detach", "--without-operator", check=False)
    assert failed.returncode == 1
    assert "--state-dir" in failed.stderr
    assert "Traceback" not in failed.stderr
