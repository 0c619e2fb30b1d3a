"""A certificate authority for a test run, and a server's certificate from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

#: Where TURN is with ``--base-domain localhost``: every name under localhost is this machine for a browser.
TURN_NAME = "turn.ns-default.localhost"


@frozen
class Certificates:
    """Paths of PEM files."""

    authority: Path
    certificate: Path
    private_key: Path


def issue(directory: Path, *more: str) -> Certificates:
    """Certificates for 127.0.0.1, localhost, TURN under it and *more* names, written into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, name = _name("orama tests"), _name("localhost")
    root = (
        _builder(root_name, root_name, root_key)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(_usage(signs=True), True)
        .sign(root_key, hashes.SHA256())
    )
    names = [x509.DNSName(each) for each in ("localhost", TURN_NAME, *more)]
    names.append(x509.IPAddress(ip_address("127.0.0.1")))
    leaf = (
        _builder(name, root_name, key)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(root_key, hashes.SHA256())
    )
    made = Certificates(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    made.authority.write_bytes(root.public_bytes(Encoding.PEM))
    made.certificate.write_bytes(leaf.public_bytes(Encoding.PEM))
    made.private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, signs, signs, False, False)
