"""Keys, certificates and kubeconfigs of one control plane; made once per state directory and kept.

Two authorities: one for the Kubernetes API and one for etcd. With a single one, every client certificate of the API (the
operator's, say) would also open etcd, behind the back of RBAC.
"""

import base64
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dalang_cli.dev.state import write_atomically

LIFETIME = timedelta(days=3650)
RENEW_BEFORE = timedelta(days=30)
SERVICE_RANGE = "10.0.0.0/24"
SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
SERVER_ADDRESSES = ("127.0.0.1", "10.0.0.1")
"""Loopback, and the first address of the service range: the one of the Service `kubernetes`."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its private key, both PEM, and the files that hold them."""

    certificate_file: Path
    key_file: Path

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate_file.read_bytes()

    @property
    def key_pem(self) -> bytes:
        return self.key_file.read_bytes()


@dataclass(frozen=True)
class Certificates:
    """Everything the parts are started with."""

    authority: Certificate
    server: Certificate
    """Serves the API server, the controller manager and the kubelet."""
    admin: Certificate
    """The user's, and the supervisor's: group `system:masters`."""
    controller_manager: Certificate
    operator: Certificate
    """CN `dalang-operator`, no group: what it may do is in operator_rbac.yaml."""
    kubelet_client: Certificate
    """With which the API server asks the kubelet for logs."""
    etcd_authority: Certificate
    etcd: Certificate
    """Server and client at once: etcd and the API server are the only ones who hold it."""
    service_account_key: Path


def ensure_certificates(directory: Path, now: datetime | None = None) -> Certificates:
    """Return the certificates of a state directory, making those that are missing or about to expire."""
    maker = _Maker(directory, now or datetime.now(UTC))
    authority = maker.authority("ca", "dalang-dev-ca")
    etcd_authority = maker.authority("etcd-ca", "dalang-dev-etcd-ca")
    masters = "system:masters"
    return Certificates(
        authority=authority,
        server=maker.issue("server", authority, common_name="dalang-dev", serves=True),
        admin=maker.issue("admin", authority, common_name="dalang-dev-admin", organization=masters),
        # In `system:masters` because without per-controller service accounts (slower to start) its own role is too small.
        controller_manager=maker.issue(
            "controller-manager", authority, common_name="system:kube-controller-manager", organization=masters
        ),
        operator=maker.issue("operator", authority, common_name="dalang-operator"),
        kubelet_client=maker.issue("kubelet-client", authority, common_name="kube-apiserver-kubelet-client"),
        etcd_authority=etcd_authority,
        etcd=maker.issue("etcd", etcd_authority, common_name="dalang-dev-etcd", serves=True),
        service_account_key=maker.key_file("service-account"),
    )


def kubeconfig(server: str, authority: Certificate, client: Certificate, user: str) -> bytes:
    """Return a kubeconfig (JSON, which is YAML) that holds the certificates themselves, so it may be copied anywhere."""

    def encode(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dalang-dev",
        "clusters": [
            {
                "name": "dalang-dev",
                "cluster": {"server": server, "certificate-authority-data": encode(authority.certificate_pem)},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": encode(client.certificate_pem),
                    "client-key-data": encode(client.key_pem),
                },
            }
        ],
        "contexts": [
            {"name": "dalang-dev", "context": {"cluster": "dalang-dev", "user": user, "namespace": "default"}}
        ],
    }
    return json.dumps(content, indent=1).encode() + b"\n"


class _Maker:
    """Makes what is missing in one directory; what was issued by a replaced authority is issued again."""

    def __init__(self, directory: Path, now: datetime) -> None:
        self._directory = directory
        self._now = now

    def key_file(self, name: str) -> Path:
        path = self._directory / f"{name}.key"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            # Not PKCS8: of a service account's key, the API server reads the public half only from this format.
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
            write_atomically(path, pem)
        return path

    def authority(self, name: str, common_name: str) -> Certificate:
        made = Certificate(self._directory / f"{name}.crt", self.key_file(name))
        if not self._is_current(made, issuer=made):
            key = _load_key(made)
            subject = _name(common_name)
            builder = (
                self._builder(subject, subject, key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_key_usage(signs_certificates=True), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            )
            write_atomically(made.certificate_file, _pem(builder.sign(key, hashes.SHA256())))
        return made

    def issue(
        self, name: str, issuer: Certificate, *, common_name: str, organization: str | None = None, serves: bool = False
    ) -> Certificate:
        made = Certificate(self._directory / f"{name}.crt", self.key_file(name))
        if self._is_current(made, issuer):
            return made
        issuer_certificate = _load_certificate(issuer)
        issuer_key = _load_key(issuer)
        public_key = _load_key(made).public_key()
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])
        builder = (
            self._builder(_name(common_name, organization), issuer_certificate.subject, public_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if serves:
            builder = builder.add_extension(_alternative_names(SERVER_NAMES, SERVER_ADDRESSES), critical=False)
        write_atomically(made.certificate_file, _pem(builder.sign(issuer_key, hashes.SHA256())))
        return made

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(hours=1))
            .not_valid_after(self._now + LIFETIME)
        )

    def _is_current(self, made: Certificate, issuer: Certificate) -> bool:
        if not made.certificate_file.exists():
            return False
        certificate = _load_certificate(made)
        try:
            certificate.verify_directly_issued_by(_load_certificate(issuer))
        except (ValueError, TypeError, InvalidSignature):
            return False
        return certificate.not_valid_after_utc > self._now + RENEW_BEFORE


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _alternative_names(names: Sequence[str], addresses: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [*(x509.DNSName(name) for name in names), *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses)]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_certificate(made: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made.certificate_pem)


def _load_key(made: Certificate) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(made.key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
