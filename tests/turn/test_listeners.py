"""The service with real sockets: what it binds, what it gives back, and that all three transports serve."""

from __future__ import annotations

import socket
import ssl
from ipaddress import ip_network
from pathlib import Path

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.poll import Poll
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.fronts import listening_hosts
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.stun import Class, Method

BINDING = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)
TENANT = Tenant("myapp", ("north",), (50000, 50799), allowed_peers=(ip_network("127.0.0.0/8"),))


class ListenersTests(TestCase):
    timeout = 120

    def service(self, **settings: object) -> TurnService:
        tenants = Tenants()
        tenants.put(TENANT)
        certificates = ServerCertificates(Path(self.mktemp()), ["127.0.0.1"], reactor)
        chosen = evolve(Settings(turn_port=0, turns_port=0, turn=TurnSettings()), **settings)
        return TurnService(reactor, chosen, tenants, Fabric(reactor), certificates)

    def started(self, **settings: object) -> TurnService:
        service = self.service(**settings)
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    def binding_udp(self, family: int, address: tuple[str, int]) -> Deferred[object]:
        def ask() -> object:
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect(address)
                client.send(BINDING)
                return stun.parse(client.recv(2048)).get(stun.XOR_MAPPED_ADDRESS), client.getsockname()[:2]

        return deferToThread(ask)

    def binding_stream(self, port: int, *, tls: bool) -> Deferred[object]:
        def ask() -> object:
            with socket.create_connection(("127.0.0.1", port), 5) as plain:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                client = context.wrap_socket(plain, server_hostname="turn.example") if tls else plain
                client.sendall(BINDING)
                answer = stun.parse(client.recv(2048)).get(stun.XOR_MAPPED_ADDRESS), client.getsockname()[:2]
                client.close()
                return answer

        return deferToThread(ask)

    async def test_transports(self) -> None:
        """Binding is answered over UDP, TCP and TLS with the client's own address."""
        service = self.started()
        self.assertEqual(service.udp_port, service.tcp_port)
        for asked in (
            self.binding_udp(socket.AF_INET, ("127.0.0.1", service.udp_port)),
            self.binding_stream(service.tcp_port, tls=False),
            self.binding_stream(service.tls_port, tls=True),
        ):
            mapped, own = await asked
            self.assertEqual(mapped, own)

    async def test_both_families(self) -> None:
        """Where the public IP is not loopback, every IPv4 and IPv6 address is bound on the same ports."""
        if len(listening_hosts("203.0.113.1")) == 1:
            self.skipTest("no IPv6 here")
        service = self.started(public_ip="203.0.113.1")
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            mapped, own = await self.binding_udp(family, (host, service.udp_port))
            self.assertEqual(mapped, own)

    def test_hosts(self) -> None:
        """A loopback public IP binds that address alone."""
        self.assertEqual(listening_hosts("127.0.0.1"), ["127.0.0.1"])
        self.assertEqual(listening_hosts("::1"), ["::1"])
        self.assertEqual(listening_hosts("203.0.113.1")[0], "0.0.0.0")

    async def test_busy_port(self) -> None:
        """A busy port fails the start, and nothing stays bound."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as taken:
                taken.bind(("127.0.0.1", 0))
                if kind == socket.SOCK_STREAM:
                    taken.listen()
                port = taken.getsockname()[1]
                for settings in ({"turn_port": port}, {"turns_port": port}):
                    if kind == socket.SOCK_DGRAM and "turns_port" in settings:
                        continue
                    service = self.service(**settings)
                    self.assertRaises(CannotListenError, service.startService)
                    self.assertFalse(service.running)
                await settled()
                self.assertEqual(sockets(), [])

    async def test_restart_on_the_same_port(self) -> None:
        """After a stop the ports are free, though a client was connected; a new service takes them at once."""
        first = self.started()
        with socket.create_connection(("127.0.0.1", first.tcp_port), 5):
            await self.binding_stream(first.tcp_port, tls=False)
            await first.stopService()
        second = self.started(turn_port=first.udp_port)
        self.assertEqual(second.tcp_port, first.udp_port)

    async def test_stop_leaves_nothing(self) -> None:
        """A stopped service leaves no socket in the reactor, nor a delayed call (trial itself looks for those)."""
        service = self.started()
        await self.binding_stream(service.tls_port, tls=True)
        await service.stopService()
        await settled()
        self.assertEqual(sockets(), [])

    async def test_record_for_each_message(self) -> None:
        """Over TLS each message is a record of its own, for clients that read a record as a message."""
        service = self.started()

        def ask() -> list[int]:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", service.tls_port), 5) as plain,
                context.wrap_socket(plain) as client,
            ):
                client.sendall(BINDING * 5)
                return [len(client.recv(4096)) for _ in range(5)]

        self.assertEqual(await deferToThread(ask), [32] * 5)

    async def test_tls_versions(self) -> None:
        """TLS 1.1 is refused."""
        service = self.started()

        def ask() -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            with socket.create_connection(("127.0.0.1", service.tls_port), 5) as plain:
                context.wrap_socket(plain).close()

        await self.assertFailure(deferToThread(ask), ssl.SSLError)

    async def test_figures(self) -> None:
        """The service's figures name each namespace once, and count its clients."""
        service = self.started()
        names = [(name, tuple(labels.items())) for name, labels, _ in service.samples()]
        self.assertEqual(len(names), len(set(names)))
        self.assertIn(("orama_turn_allocations", (("namespace", "myapp"),)), names)
        self.assertEqual(service.allocations(), 0)


def sockets() -> list[object]:
    """What the reactor watches, but for its own wakers."""
    watched = {*reactor.getReaders(), *reactor.getWriters()}
    return [each for each in watched if isinstance(each, Poll)]


def settled() -> Deferred[object]:
    """Two turns of the reactor later, when what was closed has been told so."""
    turns: list[Deferred[None]] = [Deferred(), Deferred()]
    reactor.callLater(0, turns[0].callback, None)
    reactor.callLater(0.01, turns[1].callback, None)
    return DeferredList(turns)
