"""HTTP endpoints: what is announced, what is refused, and certificates that change."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.errors import StartError
from orama.listening import listen, page_url, require_local, server_endpoints
from orama.net.tls import ServerCertificates


class FakePort:
    def __init__(self, address: object) -> None:
        self.getHost = lambda: address


class PageUrlTests(SynchronousTestCase):
    def url(self, description: str, address: object) -> str:
        return page_url(description, FakePort(address), "192.0.2.1")  # type: ignore[arg-type]

    def test_address(self) -> None:
        """The announced address is one that a browser can open: scheme, bracketed IPv6, no wildcard."""
        for description, address, url in (
            ("tcp:1", IPv4Address("TCP", "127.0.0.1", 6001), "http://127.0.0.1:6001/?room=lobby&join=1"),
            ("ssl:1", IPv4Address("TCP", "127.0.0.1", 6001), "https://127.0.0.1:6001/?room=lobby&join=1"),
            ("tls:1", IPv4Address("TCP", "0.0.0.0", 443), "https://192.0.2.1:443/?room=lobby&join=1"),
            ("tcp:1", IPv6Address("TCP", "::1", 6001), "http://[::1]:6001/?room=lobby&join=1"),
            ("unix:/run/x", UNIXAddress("/run/x"), "unix:/run/x"),
        ):
            self.assertEqual(self.url(description, address), url)


class EndpointTests(SynchronousTestCase):
    def refused(self, description: str) -> str:
        return self.assertRaises(StartError, server_endpoints, reactor, [description]).message

    def test_kinds(self) -> None:
        """Any endpoint that Twisted knows is taken."""
        endpoints = server_endpoints(reactor, ["tcp:0", "tcp6:0", "unix:/x"])
        self.assertIsInstance(endpoints["tcp:0"], TCP4ServerEndpoint)

    def test_refusals(self) -> None:
        """What is none is named with the reason."""
        self.assertIn("is no endpoint", self.refused("nonsense"))
        self.assertIn("is no endpoint", self.refused("tcp:port"))
        self.assertEqual(
            self.refused("ssl:1:privateKey=/nowhere/k:certKey=/nowhere/c"),
            "--http ssl:1:privateKey=/nowhere/k:certKey=/nowhere/c: /nowhere/c: No such file or directory",
        )

    def test_address_of_another_machine(self) -> None:
        """An address that is not this machine's is refused before anything is bound."""
        require_local("--internal-ip", "127.0.0.1")
        error = self.assertRaises(StartError, require_local, "--internal-ip", "192.0.2.1")
        self.assertEqual(error.message, "--internal-ip 192.0.2.1: Cannot assign requested address")


class CertificateTests(TestCase):
    timeout = 120

    async def test_changed_certificate(self) -> None:
        """An ``ssl:`` endpoint serves a changed certificate at the next handshake."""
        first, second = self.certificate("first"), self.certificate("second")
        served, key = Path(self.mktemp()), Path(self.mktemp())
        served.write_bytes(first[0].read_bytes())
        key.write_bytes(first[1].read_bytes())
        description = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={served}"
        [endpoint] = server_endpoints(reactor, [description]).values()
        self.assertIsInstance(endpoint, SSL4ServerEndpoint)
        port = await listen(description, endpoint, Factory.forProtocol(Protocol))
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.shown(port.getHost().port), _der(first[0]))
        key.write_bytes(second[1].read_bytes())
        served.write_bytes(second[0].read_bytes())
        self.assertEqual(await self.shown(port.getHost().port), _der(second[0]))

    def certificate(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        directory = Path(self.mktemp())
        ServerCertificates(directory, (name,), reactor)
        return directory / "self-signed.crt", directory / "self-signed.key"

    def shown(self, port: int) -> Deferred[bytes]:
        """The certificate that a client gets to see."""

        def look() -> bytes:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                context.wrap_socket(plain) as secured,
            ):
                return secured.getpeercert(binary_form=True) or b""

        found: Deferred[bytes] = deferToThread(look)
        return found


def _der(pem: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.read_text())
