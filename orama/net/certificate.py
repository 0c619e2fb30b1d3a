"""What a certificate is good for: its names and its dates, read from PEM files together with their key.

Names are matched as clients of TLS do (RFC 9525): a DNS name as it is or by the wildcard one label up, an
address as it is; the subject is not looked at. Whether a client trusts the issuer is not known here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from orama.errors import ConfigurationError

#: Seconds before its end at which a certificate ends soon: sooner than that whoever renews it should have.
SOON = 21 * 86400.0
#: The same for short-lived certificates, as a part of their life. ACME clients renew at a third.
SOON_PART = 0.25


@frozen
class Certificate:
    """``names`` are lower-case DNS names and addresses, the dates seconds since 1970."""

    names: tuple[str, ...]
    not_before: float
    not_after: float

    @classmethod
    def of(cls, leaf: x509.Certificate) -> Certificate:
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            found: tuple[str, ...] = ()
        else:
            dns = (name.lower() for name in names.get_values_for_type(x509.DNSName))
            found = (*dns, *map(str, names.get_values_for_type(x509.IPAddress)))
        return cls(found, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())

    @classmethod
    def read(cls, certificate: Path, private_key: Path) -> Certificate:
        """The first certificate of the one file, to which the other has the key.

        :raises ConfigurationError: a file cannot be read, holds something else, or they do not belong together.
        """
        chain, key = _content(certificate), _content(private_key)
        try:
            leaf = x509.load_pem_x509_certificate(chain)
            made = cls.of(leaf)
            public = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        except Exception:
            raise ConfigurationError(f"{certificate}: no PEM certificate") from None
        try:
            own = load_pem_private_key(key, None).public_key()
            matches = own.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) == public
        except Exception:
            raise ConfigurationError(f"{private_key}: no PEM private key without a passphrase") from None
        if not matches:
            raise ConfigurationError(f"{private_key}: not the private key of {certificate}")
        return made

    def covers(self, host: str) -> bool:
        host = host.lower().rstrip(".")
        try:
            return str(ip_address(host)) in self.names
        except ValueError:
            return host in self.names or "*." + host.partition(".")[2] in self.names

    def unfit(self, host: str, now: float) -> str:
        """Why this cannot be served as *host* now; empty when it can."""
        if not self.covers(host):
            return f"is for {', '.join(self.names) or 'no name'}, not for {host}"
        if now < self.not_before:
            return f"is not valid before {day(self.not_before)}"
        if now >= self.not_after:
            return f"expired on {day(self.not_after)}"
        return ""

    def ends_soon(self, now: float) -> bool:
        """Whether it should have been renewed by now."""
        return self.not_after - now < min(SOON, (self.not_after - self.not_before) * SOON_PART)


def day(seconds: float) -> str:
    """A time for a person."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
