"""Keys and certificates of a control plane."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from dalang_cli.dev.certificates import LIFETIME, Certificate, ensure_certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def load(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.certificate_pem)


def subject(certificate: Certificate) -> tuple[str, list[str]]:
    name = load(certificate).subject
    common_name = name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return str(common_name), [str(each.value) for each in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]


def test_servers_are_known_by_every_name_they_are_called(tmp_path: Path) -> None:
    server = load(ensure_certificates(tmp_path, NOW).server)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "kubernetes.default.svc"} <= set(names.get_values_for_type(x509.DNSName))
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("10.0.0.1"),
    }


def test_identities(tmp_path: Path) -> None:
    pki = ensure_certificates(tmp_path, NOW)
    assert subject(pki.admin) == ("dalang-dev-admin", ["system:masters"])
    assert subject(pki.operator) == ("dalang-operator", [])


def test_no_api_client_is_trusted_by_etcd(tmp_path: Path) -> None:
    pki = ensure_certificates(tmp_path, NOW)
    load(pki.etcd).verify_directly_issued_by(load(pki.etcd_authority))
    assert load(pki.operator).issuer == load(pki.authority).subject != load(pki.etcd_authority).subject


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, NOW)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}


def test_certificates_are_kept_until_they_are_about_to_expire(tmp_path: Path) -> None:
    first = ensure_certificates(tmp_path, NOW).admin.certificate_pem
    assert ensure_certificates(tmp_path, NOW + timedelta(days=1)).admin.certificate_pem == first
    later = ensure_certificates(tmp_path, NOW + LIFETIME - timedelta(days=1))
    assert later.admin.certificate_pem != first
    load(later.admin).verify_directly_issued_by(load(later.authority))
