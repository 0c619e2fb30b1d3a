"""Certificates for tests, in files as lego and Caddy leave them."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

DAY = 86400.0


def write_pair(
    directory: Path, stem: str, *names: str, start: float, end: float, other_key: bool = False
) -> tuple[Path, Path]:
    """``stem.crt`` for *names* and ``stem.key``; with *other_key* the latter belongs to something else.

    :param start: seconds since 1970, as *end*.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, stem[:64])])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(_date(start)).not_valid_after(_date(end))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
    files = directory / f"{stem}.crt", directory / f"{stem}.key"
    files[0].write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    kept = ec.generate_private_key(ec.SECP256R1()) if other_key else key
    files[1].write_bytes(kept.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
