"""TURN over TLS as its clients meet it, over real sockets: names, protocols, certificates that change."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenants
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.net.test_tls import common_name, write_certificate

reactor: Any = _reactor
BINDING = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)


class TlsTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.certificates = ServerCertificates(
            self.directory / "own", ["127.0.0.1"], reactor, protocols=("stun.turn", "stun.nat-discovery")
        )
        settings = Settings(turn_port=0, turns_port=0)
        self.service = TurnService(reactor, settings, Tenants(), Fabric(reactor), self.certificates)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def met(self, name: str | None = None, protocols: Sequence[str] = ()) -> tuple[str, str | None]:
        """The subject of the certificate and the protocol of one connection, on which Binding is answered."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(list(protocols))
        with (
            socket.create_connection(("127.0.0.1", self.service.tls_port), 5) as plain,
            context.wrap_socket(plain, server_hostname=name) as client,
        ):
            client.sendall(BINDING)
            assert stun.parse(client.recv(2048)).cls == Class.SUCCESS
            shown = x509.load_der_x509_certificate(client.getpeercert(True) or b"")
            return common_name(shown), client.selected_alpn_protocol()

    async def test_protocols(self) -> None:
        """``stun.turn`` and ``stun.nat-discovery`` are taken (RFC 7443, 3), and so is nothing at all."""
        for offered, taken in (
            (["stun.turn"], "stun.turn"),
            (["h2", "stun.nat-discovery"], "stun.nat-discovery"),
            ([], None),
        ):
            self.assertEqual((await deferToThread(self.met, None, offered))[1], taken)

    async def test_foreign_protocols(self) -> None:
        """Who speaks none of them is told so by an alert, and the connection ends (RFC 7301, 3.2)."""
        error = await self.assertFailure(deferToThread(self.met, None, ["h2", "http/1.1"]), ssl.SSLError)
        self.assertIn("no application protocol", str(error).lower().replace("_", " "))
        self.assertEqual((await deferToThread(self.met))[0], "127.0.0.1")

    async def test_certificates(self) -> None:
        """The certificate is the name's; a changed file is shown to the next client, to nobody before."""
        self.certificates.add("a.example", *write_certificate(self.directory, "a"))
        self.assertEqual((await deferToThread(self.met, "a.example"))[0], "a")
        self.assertEqual((await deferToThread(self.met, "b.example"))[0], "127.0.0.1")
        for file, suffix in zip(write_certificate(self.directory, "new"), ("crt", "key"), strict=True):
            file.replace(self.directory / f"a.{suffix}")
        self.assertEqual((await deferToThread(self.met, "a.example"))[0], "new")

    async def test_name_of_bytes(self) -> None:
        """A name that is not ASCII is refused by an alert."""

        def ask() -> None:
            with socket.create_connection(("127.0.0.1", self.service.tls_port), 5) as plain:
                plain.setblocking(True)
                client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), plain)
                client.set_connect_state()
                client.set_tlsext_host_name(b"\xff\xfe\n")
                client.do_handshake()

        error = await self.assertFailure(deferToThread(ask), SSL.Error)
        self.assertIn("unrecognized name", str(error))

    async def test_hello_in_pieces(self) -> None:
        """A ClientHello may come byte by byte."""

        def ask() -> bytes:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["stun.turn"])
            client = context.wrap_bio(incoming, outgoing)
            with socket.create_connection(("127.0.0.1", self.service.tls_port), 5) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                done = False
                while not done:
                    try:
                        client.do_handshake()
                        done = True
                    except ssl.SSLWantReadError:
                        pass
                    hello = outgoing.read()
                    for at in range(len(hello)):
                        plain.sendall(hello[at : at + 1])
                    if not done:
                        incoming.write(plain.recv(1 << 16))
            return (client.selected_alpn_protocol() or "").encode()

        self.assertEqual(await deferToThread(ask), b"stun.turn")
