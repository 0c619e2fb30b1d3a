"""Clients of several TURN processes that come from another address: they are served, whichever they come to then."""

from __future__ import annotations

import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from threading import Thread

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Address, Buffer, Burst
from orama.turn.sessions import Selection
from orama.turn.shared import Crew, SharedTable, make_memory
from orama.turn.workers import Workers
from orama.turn.workers_passing import CLOSE_TIME, MAX_ROUTES, ROUTE_TIME, SAY_TIME, Joint, Passing
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.plain_client import Client
from tests.turn.test_workers import CLIENTS, WorkersTestCase, each

TICKET = (stun.MOBILITY_TICKET, b"")
UDP, TCP = 17, 6


def connected(service: Workers, transport: str) -> socket.socket:
    """A connection to the service; over UDP one that has an address."""
    if transport == "udp":
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.connect(("127.0.0.1", service.udp_port))
    else:
        plain = socket.create_connection(("127.0.0.1", service.tls_port if transport == "tls" else service.tcp_port))
    plain.settimeout(10)
    if transport != "tls":
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


#: A client, and how a Refresh of it begins whose ticket is the worker's that follows.
ANN = ("203.0.113.9", 40000)
REFRESH = b"\x00\x04"


class Nothing:
    """A poll that does not look: the test does."""

    def add(self, pollable: object) -> None:
        """Everything is read when the test says so."""

    remove = add


class Served:
    """A server that keeps what it gets, and has the allocations that the test says."""

    def __init__(self) -> None:
        self.packets: list[tuple[str, list[bytes], Address]] = []
        self.allocations: set[tuple[str, Address]] = set()

    def received(self, front: str, packets: Burst, client: Address) -> None:
        self.packets.append((front, [bytes(packet) for packet in packets], client))

    def has_allocation(self, front: str, client: Address) -> bool:
        return (front, client) in self.allocations

    def elsewhere(self, packet: Buffer) -> int | None:
        return packet[2] if len(packet) > 2 else None

    def taken(self) -> list[tuple[str, list[bytes], Address]]:
        packets, self.packets = self.packets, []
        return packets


class RouteTests(SynchronousTestCase):
    """Datagrams, with two workers in this process."""

    def setUp(self) -> None:
        self.clock = Clock()
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.inboxes, self.outboxes = zip(*pairs, strict=True)
        for end in (*self.inboxes, *self.outboxes):
            end.setblocking(False)
            self.addCleanup(end.close)
        self.memory = make_memory(2)
        self.addCleanup(os.close, self.memory)
        self.drops: Counter[str] = Counter()
        self.servers = [Served(), Served()]
        self.workers = [self.worker(index) for index in range(2)]
        self.here, self.there = self.servers

    def worker(self, index: int) -> Passing:
        table = SharedTable(self.memory, 2, index, bytes(32))
        self.addCleanup(table.close)
        crew = Crew(table, bytes(32), self.inboxes[index], self.outboxes)
        server, fronts = self.servers[index], ("v4", "v6")
        return Passing(crew, Nothing(), self.clock, server, None, fronts, self.drops)  # type: ignore[arg-type]

    def come(self, *packets: bytes, client: Address = ANN, front: int = 0) -> None:
        """What comes to worker 0; both hear what they tell each other."""
        self.workers[0].receiver(front)(packets, client)
        self.hear()

    def hear(self) -> None:
        for worker in (*reversed(self.workers), *reversed(self.workers)):
            worker.read(True)

    def wait(self, seconds: float, tick: tuple[int, ...] = (0, 1)) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)
            for index in tick:
                self.workers[index].tick()
            self.hear()

    def test_passed_on(self) -> None:
        """A Refresh with the other worker's ticket goes there, and so does all that comes from that address to that
        socket from then on; what others send stays here."""
        self.there.allocations.add(("v6", ANN))
        self.come(REFRESH + b"\x01first", client=ANN, front=1)
        self.come(b"@\x00data", b"@\x00more", front=1)
        self.assertEqual(
            self.there.taken(),
            [("v6", [REFRESH + b"\x01first"], ANN), ("v6", [b"@\x00data"], ANN), ("v6", [b"@\x00more"], ANN)],
        )
        self.assertEqual(self.here.taken(), [])
        for front, client in ((0, ANN), (1, (ANN[0], 40001))):
            self.come(b"@\x00data", client=client, front=front)
        self.assertEqual(len(self.here.taken()), 2)
        self.assertEqual(self.there.taken(), [])

    def test_ours_stays(self) -> None:
        """A Refresh without a ticket stays here, and so does one of a client that has an allocation here."""
        self.come(REFRESH)
        self.here.allocations.add(("v4", ANN))
        self.come(REFRESH + b"\x01")
        self.assertEqual(len(self.here.taken()), 2)
        self.assertEqual(self.there.taken(), [])

    def test_refused(self) -> None:
        """Where the other worker makes nothing of it, the address is ours again within seconds."""
        self.come(REFRESH + b"\x01")
        self.come(b"@\x00data")
        self.assertEqual(len(self.there.taken()), 2)
        self.wait(SAY_TIME)
        self.come(b"@\x00data")
        self.assertEqual((len(self.here.taken()), self.there.taken()), (1, []))

    def test_lasts(self) -> None:
        """The route is there for as long as the allocation is, though nothing comes; then the address is ours."""
        self.there.allocations.add(("v4", ANN))
        self.come(REFRESH + b"\x01")
        self.wait(3 * ROUTE_TIME)
        self.come(b"@\x00data")
        self.assertEqual(len(self.there.taken()), 2)
        self.there.allocations.clear()
        self.wait(1)
        self.come(b"@\x00data")
        self.assertEqual((len(self.here.taken()), self.there.taken()), (1, []))

    def test_started_again(self) -> None:
        """A worker that is another process learns its routes again; the routes to one that is gone are forgotten."""
        self.there.allocations.add(("v4", ANN))
        self.come(REFRESH + b"\x01")
        self.workers[0] = self.worker(0)
        self.wait(SAY_TIME)
        self.there.taken()
        self.come(b"@\x00data")
        self.assertEqual(len(self.there.taken()), 1)
        self.wait(ROUTE_TIME + 1, tick=(0,))
        self.come(b"@\x00data")
        self.assertEqual((len(self.here.taken()), self.there.taken()), (1, []))

    def test_bounded(self) -> None:
        """There are never more routes than the limit; the oldest goes."""
        received = self.workers[0].receiver(0)
        for port in range(1, MAX_ROUTES + 2):
            received((REFRESH + b"\x01",), (ANN[0], port))
            self.workers[1].read(True)
        self.there.taken()
        self.come(b"@\x00data", client=(ANN[0], 1))
        self.come(b"@\x00data", client=(ANN[0], 2))
        self.assertEqual((len(self.here.taken()), len(self.there.taken())), (1, 1))

    def test_full(self) -> None:
        """What the other worker does not take in time is lost and counted, and nobody waits."""
        received = self.workers[0].receiver(0)
        for _ in range(2000):
            received((REFRESH + b"\x01" + bytes(1000),), ANN)
        lost = self.drops["not_passed_on"]
        self.assertGreater(lost, 0)
        while len(self.there.packets) < 2000 - lost:
            self.workers[1].read(True)
        received((b"@\x00data",), ANN)
        self.workers[1].read(True)
        self.assertEqual(self.there.taken()[-1], ("v4", [b"@\x00data"], ANN))

    def test_not_understood(self) -> None:
        """A message that makes no sense costs nothing but itself."""
        for message in (
            b"x",
            b"\x01\x00\x09\x00\x01\x00",
            b"\x09\x00\x00\x00\x01\x01\xff",
            b"\x04\x00\x01\x00\x01\x00",
        ):
            self.outboxes[1].send(message)
        self.come(REFRESH + b"\x01")
        self.assertEqual(len(self.there.taken()), 1)
        self.assertEqual(len(self.flushLoggedErrors()), 3)


class Pipe:
    """One stream, as a list of what was done to it."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def pipe(self, flow: object) -> Pipe:
        return self

    def write(self, data: bytes) -> None:
        self.done.append(bytes(data))

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


class JointTests(SynchronousTestCase):
    """Two streams that are joined."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client, self.stream = Pipe(), Pipe()
        self.gone: list[Joint] = []
        self.joint = Joint(self.gone.append, self.clock)
        self.joint.join(self.client, self.stream)  # type: ignore[arg-type]

    def test_bytes(self) -> None:
        """What one says, the other is told; who cannot write makes the other wait."""
        self.joint.near.received(b"up")
        self.joint.far.received(b"down")
        self.joint.near.full()
        self.joint.near.drained()
        self.joint.far.full()
        self.joint.near.ended()
        self.assertEqual(self.stream.done, [b"up", "pause", "resume", "finish"])
        self.assertEqual(self.client.done, [b"down", "pause"])

    def test_lost(self) -> None:
        """Where one is gone, the other gets to take what there is, and some time; then the joint is over."""
        self.joint.far.lost()
        self.joint.near.received(b"late")
        self.clock.advance(CLOSE_TIME - 1)
        self.joint.check(self.clock.seconds())
        self.assertEqual(self.client.done, ["finish"])
        self.clock.advance(1)
        self.joint.check(self.clock.seconds())
        self.assertEqual(self.client.done[-1], "abort")
        self.assertEqual(self.gone, [])
        self.joint.near.lost()
        self.assertEqual(self.gone, [self.joint])
        self.assertEqual(self.stream.done, [])


class PassingTestCase(WorkersTestCase):
    def elsewhere(self, service: Workers, client: Client, transport: str) -> Client:
        """The same client at another address."""
        other = Client(service.udp_port)
        other.close()
        other.socket, other.relay = connected(service, transport), client.relay
        self.addCleanup(other.close)
        return other


class MobilityTests(PassingTestCase):
    async def _move(self, before: str, after: str) -> None:
        service = await self.started()
        clients = self.clients(service)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)

            def move(client: Client) -> int:
                client.close()
                client.socket = connected(service, before)
                assert client.signed(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, UDP), TICKET) == 0
                ticket = client.answer.get(stun.MOBILITY_TICKET)
                assert ticket is not None
                code = client.signed(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, peer.getsockname()))
                assert code == 0, code
                moved = self.elsewhere(service, client, after)
                assert moved.signed(Method.REFRESH, (stun.MOBILITY_TICKET, ticket)) == 0
                sent = [(stun.XOR_PEER_ADDRESS, peer.getsockname()), (stun.DATA, b"ping")]
                moved.socket.send(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, sent))
                data, relay = peer.recvfrom(100)
                assert (data, relay) == (b"ping", client.relay)
                peer.sendto(b"pong", relay)
                assert stun.parse(moved.socket.recv(2048)).get(stun.DATA) == b"pong"
                if before != "udp":
                    client.close()
                return moved.signed(Method.REFRESH)

            self.assertEqual(await each(clients, move), [0] * CLIENTS)
        self.assertEqual(service.allocations(), CLIENTS)
        self.assertEqual({s.transport for s in await service.sessions(Selection())}, {after})

    async def test_udp(self) -> None:
        """From one UDP address to another."""
        await self._move("udp", "udp")

    async def test_streams(self) -> None:
        """From a TCP connection to one of TLS."""
        await self._move("tcp", "tls")


class ConnectionTests(PassingTestCase):
    async def test_connection_bind(self) -> None:
        """A data connection is joined to the peer's, whichever process its client connects to, over TCP and over TLS:
        a megabyte each way arrives, and so does the end."""
        service = await self.started(tcp_relays=True)
        clients = self.clients(service)
        size = 1 << 20
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)

            def call(client: Client) -> int:
                transport = "tls" if clients.index(client) % 2 else "tcp"
                client.close()
                client.socket = connected(service, "tcp")
                assert client.signed(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, TCP)) == 0
                assert client.signed(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, server.getsockname())) == 0
                assert client.signed(Method.CONNECT, (stun.XOR_PEER_ADDRESS, server.getsockname())) == 0
                id_ = client.answer.get(stun.CONNECTION_ID)
                assert id_ is not None
                peer, source = server.accept()
                peer.settimeout(10)
                assert source == client.relay
                data = self.elsewhere(service, client, transport)
                assert data.signed(Method.CONNECTION_BIND, (stun.CONNECTION_ID, id_)) == 0
                with peer:
                    for one, other in ((data.socket, peer), (peer, data.socket)):
                        sender = Thread(target=one.sendall, args=(bytes(range(256)) * (size >> 8),))
                        sender.start()
                        assert received(other, size) == bytes(range(256)) * (size >> 8)
                        sender.join()
                    peer.shutdown(socket.SHUT_WR)
                    assert data.socket.recv(1) == b""
                    data.close()
                    assert peer.recv(1) == b""
                return 0

            self.assertEqual(await each(clients, call), [0] * CLIENTS)


def received(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := stream.recv(1 << 16)):
        data += more
    return bytes(data)
