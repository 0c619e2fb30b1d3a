"""Clients of several TURN processes that come from another address: they are served, whichever they come to then."""

from __future__ import annotations

import socket
import ssl
from threading import Thread

from orama.turn.sessions import Selection
from orama.turn.workers import Workers
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
