"""Clients behind a proxy that speaks the PROXY protocol, over real sockets."""

from __future__ import annotations

import socket
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.net.test_proxy import binary, ipv4, ipv6

BINDING = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)
TENANT = Tenant("myapp", ("north",), (50000, 50799), allowed_peers=(ip_network("127.0.0.0/8"),))
LINE = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 3478\r\n"


class ProxyTests(TestCase):
    timeout = 120

    def started(self, *proxies: str) -> TurnService:
        tenants = Tenants()
        tenants.put(TENANT)
        certificates = ServerCertificates(Path(self.mktemp()), ["127.0.0.1"], reactor)
        turn = TurnSettings(proxy_protocol_from=proxies)
        chosen = evolve(Settings(turn_port=0, turns_port=0), turn=turn)
        service = TurnService(reactor, chosen, tenants, Fabric(reactor), certificates)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def mapped(self, service: TurnService, *pieces: bytes, tls: bool = False) -> Deferred[Any]:
        """The address that Binding tells behind *pieces*, ``own`` for that of the socket, None when it is closed."""

        def ask() -> object:
            port = service.tls_port if tls else service.tcp_port
            with socket.create_connection(("127.0.0.1", port), 5) as plain:
                own = plain.getsockname()[:2]
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    for piece in pieces:
                        plain.sendall(piece)
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                    client = context.wrap_socket(plain, server_hostname="turn.example") if tls else plain
                    client.sendall(BINDING)
                    answer = client.recv(2048)
                except (ConnectionError, ssl.SSLError):
                    return None
                if not answer:
                    return None
                first = answer[: 20 + int.from_bytes(answer[2:4], "big")]
                mapped = stun.parse(first).get(stun.XOR_MAPPED_ADDRESS)
                client.close()
                return "own" if mapped == own else mapped

        return deferToThread(ask)

    async def test_client_behind(self) -> None:
        """The client is who the header says, in both versions, over TCP and before TLS."""
        service = self.started("127.0.0.0/8")
        for tls in (False, True):
            for header, client in (
                (LINE, ("203.0.113.9", 40000)),
                (ipv4(tlvs=b"\x04\0\1\0"), ("203.0.113.9", 40000)),
                (ipv6("2001:db8::9", 7), ("2001:db8::9", 7)),
            ):
                self.assertEqual(await self.mapped(service, header, tls=tls), client)

    async def test_in_pieces(self) -> None:
        """A header may come in pieces, and with the client's first message behind it."""
        service = self.started("127.0.0.0/8")
        header = ipv4()
        pieces = [header[at : at + 1] for at in range(len(header))]
        self.assertEqual(await self.mapped(service, *pieces), ("203.0.113.9", 40000))
        self.assertEqual(await self.mapped(service, header + BINDING), ("203.0.113.9", 40000))

    async def test_health_check(self) -> None:
        """LOCAL and UNKNOWN are the proxy itself."""
        service = self.started("127.0.0.0/8")
        for header in (binary(command=0x20, family=0), b"PROXY UNKNOWN\r\n"):
            self.assertEqual(await self.mapped(service, header), "own")

    async def test_without_a_header(self) -> None:
        """A proxy's connection that begins otherwise is closed at once."""
        service = self.started("127.0.0.0/8")
        self.assertIsNone(await self.mapped(service))
        self.assertIsNone(await self.mapped(service, tls=True))
        self.assertIsNone(await self.mapped(service, b"PROXY TCP4 localhost\r\n"))

    async def test_from_somebody_else(self) -> None:
        """Whoever is not named as a proxy is served without a header, and is closed with one: nobody lies."""
        for service in (self.started(), self.started("192.0.2.0/24")):
            self.assertEqual(await self.mapped(service), "own")
            self.assertEqual(await self.mapped(service, tls=True), "own")
            for header in (LINE, ipv4()):
                self.assertIsNone(await self.mapped(service, header))
                self.assertIsNone(await self.mapped(service, header, tls=True))

    async def test_changed_while_it_runs(self) -> None:
        """Who is a proxy is decided anew for each connection, by the configuration as it is then."""
        service = self.started()
        self.assertEqual(await self.mapped(service), "own")
        service.configure(TurnSettings(proxy_protocol_from=("127.0.0.0/8",)))
        self.assertEqual(await self.mapped(service, LINE), ("203.0.113.9", 40000))
        self.assertIsNone(await self.mapped(service))
