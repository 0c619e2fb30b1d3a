"""Certificates of TURN over TLS: Caddy's at first, a better one by DNS-01 through our own DNS, and its renewal."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

from cryptography import x509

from tests.lab import addresses
from tests.lab.acme import Authority, serial
from tests.lab.machine import until
from tests.lab.stage import NAMESPACE, ClusterTestCase

_TURNS = 5349
HOST = f"turn.ns-{NAMESPACE}.{addresses.DOMAIN}"


class CertificateTests(ClusterTestCase):
    def connect(self, number: int) -> ssl.SSLSocket:
        """A TLS connection from a client to the TURN server of a node."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain: socket.socket = self.lab.clients[0].connect(addresses.public(number), _TURNS)
        made = context.wrap_socket(plain, server_hostname=HOST)
        self.addCleanup(made.close)
        return made

    def served(self, number: int) -> x509.Certificate:
        """The certificate that a new connection is shown."""
        with self.connect(number) as connection:
            der = connection.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)

    def names(self, certificate: x509.Certificate) -> list[str]:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(found.get_values_for_type(x509.DNSName))

    def answers(self, connection: ssl.SSLSocket) -> bool:
        """Whether a STUN Binding is answered on a connection that is open."""
        connection.sendall(bytes.fromhex("000100002112a442") + b"twelve bytes")
        return connection.recv(1024)[:2] == stun_success()

    def test_caddy(self) -> None:
        """Each TURN node serves a certificate for its host that Caddy has got for it."""
        self.require("Caddy")
        for number in self.relaying():
            certificate = until(lambda number=number: self._by_caddy(number), "Caddy's certificate", 60.0, 0.3)
            self.assertEqual(self.names(certificate), [HOST])

    def _by_caddy(self, number: int) -> x509.Certificate | None:
        certificate = self.served(number)
        return certificate if "Caddy" in certificate.issuer.rfc4514_string() else None

    def test_acme(self) -> None:
        """lego proves by DNS that the host is ours; the certificate is served at the next handshake, and so is its
        renewal, while a connection that is open and a call that goes on do not notice."""
        self.require("Pebble", "Lego")
        number = self.relaying()[0]
        node = self.nodes[number]
        authority = Authority(self.lab.internet, addresses.public(number))
        self.addCleanup(authority.process.stop)
        lego = node.machine.directory / "lego"
        place = node.machine.directory / "certificates"
        began = time.monotonic()
        certificate = self._issue(authority, number, lego)
        self.report.milliseconds("Certificates", "lego gets one by DNS-01", time.monotonic() - began)
        first = self._served_from(certificate, place, number, "a new certificate is served after")

        call = [self.phone(1, 1), self.phone(2, 2)]
        for each in call:
            each.until_hearing()
        since = time.monotonic()
        with self.connect(number) as connection:
            self.assertTrue(self.answers(connection))
            renewed = self._issue(authority, number, lego, renew=True)
            second = self._served_from(renewed, place, number, "a renewed certificate is served after")
            self.assertNotEqual(first, second)
            self.assertTrue(self.answers(connection), "the open connection was dropped")
        for each in call:
            found = each.report()
            self.assertEqual((found.lost, found.happened(since)), (0, []))
            self.report.milliseconds(
                "Certificates", "longest silence while one is renewed", found.longest_silence(since)
            )
            self.assertLess(found.longest_silence(since), 0.5)

    def _issue(self, authority: Authority, number: int, lego: Path, renew: bool = False) -> Path:
        node = self.nodes[number]
        password = (node.data / "acme.password").read_text().strip()
        endpoint = f"http://{addresses.mesh(number)}:6002/v1/internal/acme"
        return authority.issue(node.machine, endpoint, password, lego, HOST, renew)

    def _served_from(self, certificate: Path, place: Path, number: int, what: str) -> int:
        """Put it where the node looks, and wait until it is served; its serial number."""
        began = time.monotonic()
        for suffix in (".key", ".crt"):
            self.addCleanup((place / f"{HOST}{suffix}").unlink, missing_ok=True)
            fresh = place / f".{HOST}{suffix}"
            fresh.write_bytes(certificate.with_suffix(suffix).read_bytes())
            fresh.rename(place / f"{HOST}{suffix}")
        wanted = serial(certificate)
        until(lambda: self.served(number).serial_number == wanted, "the certificate is served", 120.0, 0.1)
        self.report.milliseconds("Certificates", what, time.monotonic() - began)
        return wanted


def stun_success() -> bytes:
    """The first two bytes of a Binding success response (RFC 8489, 5)."""
    return (0x0101).to_bytes(2, "big")
