"""RFC 6062 and RFC 8016: relays that open TCP connections, and allocations that move: whose, where to, and how many."""

from __future__ import annotations

import os
import socket
import struct
import time
from itertools import pairwise
from pathlib import Path

from tests.attacks import probe
from tests.attacks.probe import Probe
from tests.attacks.stage import ALLOCATIONS_OF_USER, AttackTestCase, address, guarded, narrow, opened
from tests.contract import turn
from tests.contract.turn import Address
from tests.node import NodeProcess

GONE = (turn.LIFETIME, bytes(4))
TCP = (turn.REQUESTED_TRANSPORT, probe.TCP)
#: Bytes that the process may grow by for one pipe.
SLOW_GROWTH = 4 << 20
TICKET = (probe.MOBILITY_TICKET, b"")


class ConnectionTestCase(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return opened()

    def allocated_tcp(self, transport: str = "tcp", **more: str) -> Probe:
        """With a TCP allocation; ``self.relayed`` is where."""
        client = self.client(transport, **more)
        answer = client.request(turn.ALLOCATE, [TCP])
        self.assertEqual(answer.code, 0)
        self.relayed = answer.address(turn.XOR_RELAYED_ADDRESS)
        return client

    def connected(self, client: Probe, peer: Address) -> bytes:
        """The id of a connection with *peer*."""
        transaction = os.urandom(12)
        answer = client.request(probe.CONNECT, client.peer(peer, transaction=transaction), transaction)
        self.assertEqual(answer.code, 0)
        return answer.attributes[probe.CONNECTION_ID]

    def like(self, client: Probe) -> Probe:
        """Another stream of the same user, which may become a pipe."""
        stream = probe.Probe(address(self.node, "tcp"), client.username, client.password, "tcp")
        self.addCleanup(stream.socket.close)
        return stream

    def assertNobodyComes(self, *servers: socket.socket) -> None:
        for server in servers:
            with self.assertRaises(TimeoutError):
                server.accept()


def listeners(process: int) -> set[Address]:
    """Where a process takes TCP connections over IPv4 (proc(5), net/tcp)."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.add(descriptor.readlink().name)
        except OSError:  # closed meanwhile
            continue
    found = set()
    for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            ip, _, port = fields[1].partition(":")
            found.add((socket.inet_ntoa(struct.pack("=I", int(ip, 16))), int(port, 16)))
    return found


class InwardTests(ConnectionTestCase):
    """Slack's relay, 2020 (rtcsec): TCP to the inside, through a TURN server that did as it was told."""

    def test_off_by_default(self) -> None:
        """rtcsec on Slack: where nobody has switched it on TCP is no transport for relays: 442, over TCP and TLS."""
        self.node = guarded()
        for transport in ("tcp", "tls"):
            self.assertEqual(self.client(transport).code(turn.ALLOCATE, TCP), 442)

    def test_connections_inside(self) -> None:
        """CVE-2018-4058, CVE-2020-26262: where it is on and no peer is allowed, Connect to the inside is 403.

        In every spelling, and no listener there hears of it.
        """
        self.node = narrow()
        client = self.allocated_tcp(source="127.63.0.1")
        servers = [self.listening(host) for host in ("127.0.0.1", "127.255.255.254")]
        port = servers[0].getsockname()[1]
        for host in (
            "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1",
            "169.254.169.254", "224.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::ffff:127.0.0.2",
            "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1", "fd00::1", "8.8.8.8",
        ):  # fmt: skip
            self.assertEqual(client.connect((host, port)), 403, host)
        self.assertEqual(client.connect(servers[1].getsockname()), 403)
        self.assertNobodyComes(*servers)

    def test_own_services(self) -> None:
        """coturn #1946: where loopback is open, nothing that the node itself listens on is, TURN or HTTP or other."""
        client = self.allocated_tcp()
        host, _, port = self.node.authority.rpartition(":")
        own = listeners(self.node.process.pid)
        self.assertLessEqual(
            {(host, int(port)), address(self.node, "tcp"), address(self.node, "tls"), self.relayed}, own
        )
        for listener in own:
            self.assertEqual(client.connect(listener), 403, listener)

    def test_denied_networks(self) -> None:
        """coturn 6c13608c: what is denied is so for TCP too."""
        server = self.listening("127.66.0.1")
        client = self.allocated_tcp()
        self.assertEqual(client.connect(server.getsockname()), 403)
        self.assertNobodyComes(server)

    def test_peers_that_nobody_permitted(self) -> None:
        """RFC 6062, 5.3: a peer without a permission that connects is closed, and the client is told nothing."""
        client = self.allocated_tcp()
        self.assertEqual(client.permit("127.0.0.9"), 0)
        for source in ("127.0.0.1", "127.66.0.1"):
            try:
                with socket.create_connection(self.relayed, turn.PATIENCE, source_address=(source, 0)) as peer:
                    self.assertEqual(peer.recv(1), b"")
            except ConnectionError:
                pass
        self.silent(client)
        with socket.create_connection(self.relayed, turn.PATIENCE, source_address=("127.0.0.9", 0)) as peer:
            raw = client.receive()
            assert raw is not None
            self.assertEqual(turn.parse(raw).kind, probe.CONNECTION_ATTEMPT | turn.INDICATION)
            self.assertEqual(turn.parse(raw).address(turn.XOR_PEER_ADDRESS), peer.getsockname())


class OwnershipTests(ConnectionTestCase):
    """pion 7a0272f (2026-01-06): a connection is its owner's, who has to prove it."""

    def test_unsigned(self) -> None:
        """pion 7a0272f: Connect and ConnectionBind without credentials are 401; the connection waits on."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        bare = self.client("tcp")
        transaction = os.urandom(12)
        self.assertEqual(
            client.ask(probe.CONNECT, *client.peer(server.getsockname(), transaction=transaction)).code, 401
        )
        self.assertEqual(bare.ask(probe.CONNECTION_BIND, (probe.CONNECTION_ID, connection)).code, 401)
        self.assertEqual(self.like(client).join(connection), 0)

    def test_connections_of_others(self) -> None:
        """pion 7a0272f: another user's ConnectionBind, in any namespace is 441; a wrong password 401."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        for namespace in ("default", "other"):
            self.assertIn(self.client("tcp", namespace=namespace).join(connection), (400, 441))
        liar = self.like(client)
        liar.password = "wrong"
        self.assertEqual(liar.join(connection), 401)
        self.assertEqual(self.like(client).join(connection), 0)

    def test_ids_that_nobody_gave(self) -> None:
        """pion 7a0272f: an id that was guessed, cut or left out is 400; ids follow no pattern."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        number = int.from_bytes(connection, "big")
        for near in (0, number - 1, number + 1, number ^ 0x80000000, 0xFFFFFFFF):
            self.assertEqual(self.like(client).join((near % (1 << 32)).to_bytes(4, "big")), 400)
        for odd in (b"", connection[:3], connection + b"\0"):
            self.assertEqual(self.like(client).join(odd), 400)
        self.assertEqual(self.like(client).code(probe.CONNECTION_BIND), 400)
        ids = [int.from_bytes(self.connected(client, self.listening().getsockname()), "big") for _ in range(8)]
        self.assertEqual(len({second - first for first, second in pairwise(ids)}), 7)

    def test_a_connection_is_joined_once(self) -> None:
        """RFC 6062, 5.4: a second ConnectionBind is 400, and so is one over the allocation's own stream or UDP."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        self.assertEqual(client.join(connection), 400)
        self.assertEqual(self.client(username=client.username).join(connection), 400)
        first = self.like(client)
        self.assertEqual(first.join(connection), 0)
        self.assertEqual(self.like(client).join(connection), 400)
        peer, source = server.accept()
        self.addCleanup(peer.close)
        self.assertEqual(source, self.relayed)
        first.socket.sendall(turn.build(turn.BINDING))
        peer.settimeout(turn.PATIENCE)
        self.assertEqual(len(peer.recv(100)), 20)


class CountTests(ConnectionTestCase):
    def test_refused_connects(self) -> None:
        """RFC 6062, 5.2: the same peer twice is 446, one that refuses 447, port 0 and no peer 400, no TCP relay 437."""
        client, server = self.allocated_tcp(), self.listening()
        self.connected(client, server.getsockname())
        self.assertEqual(client.connect(server.getsockname()), 446)
        with self.listening() as closed:
            nobody = closed.getsockname()
        self.assertEqual(client.connect(nobody), 447)
        self.assertEqual(client.connect(("127.0.0.1", 0)), 400)
        self.assertEqual(client.code(probe.CONNECT), 400)
        self.assertIn(self.allocated(transport="tcp").connect(server.getsockname()), (400, 437))
        self.assertEqual(self.client("tcp").connect(server.getsockname()), 437)

    def test_connections_are_bounded(self) -> None:
        """coturn #1932 in TCP: an allocation has 32 connections, beyond them 508; another has its own."""
        client, neighbour, server = self.allocated_tcp(), self.allocated_tcp(), self.listening()
        servers = [self.listening() for _ in range(40)]
        codes = [client.connect(each.getsockname()) for each in servers]
        self.assertEqual(codes, [0] * 32 + [508] * 8)
        self.assertEqual(neighbour.connect(server.getsockname()), 0)

    def test_peers_that_connect_in_crowds(self) -> None:
        """coturn #1932 in TCP: of 100 connections of a permitted peer 32 are announced, the others are closed."""
        client, others, closed = self.allocated_tcp(), [], 0
        self.assertEqual(client.permit("127.0.0.9"), 0)
        for _ in range(100):
            try:
                other = socket.create_connection(self.relayed, turn.PATIENCE, source_address=("127.0.0.9", 0))
            except ConnectionError:  # so quickly
                closed += 1
                continue
            self.addCleanup(other.close)
            others.append(other)
        attempts = [client.receive() for _ in range(32)]
        self.assertEqual(
            {turn.parse(raw or b"").kind for raw in attempts}, {probe.CONNECTION_ATTEMPT | turn.INDICATION}
        )
        for other in others:
            other.settimeout(turn.SILENCE / 10)
            try:
                closed += not other.recv(1)
            except TimeoutError:
                pass
            except ConnectionError:
                closed += 1
        self.assertEqual(closed, 68)
        self.silent(client)

    def test_ends_that_do_not_read(self) -> None:
        """A peer, or a client, that sends and sends to an end that does not read has to wait: no memory is used."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        joined = self.like(client)
        self.assertEqual(joined.join(connection), 0)
        peer, _ = server.accept()
        self.addCleanup(peer.close)
        before = probe.memory(self.node.process.pid)
        for end, other in ((peer, joined.socket), (joined.socket, peer)):
            end.settimeout(turn.SILENCE)
            sent = 0
            with self.assertRaises(TimeoutError):
                while sent < 200 << 20:
                    sent += end.send(bytes(1 << 16))
            self.assertLess(probe.memory(self.node.process.pid) - before, SLOW_GROWTH)
            other.settimeout(turn.PATIENCE)
            while sent:
                sent -= len(other.recv(1 << 20))
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_everything_ends_with_the_allocation(self) -> None:
        """RFC 6062, 5.1: connections end with their allocation, and nobody listens at its address any more."""
        client, server = self.allocated_tcp(), self.listening()
        connection = self.connected(client, server.getsockname())
        joined = self.like(client)
        self.assertEqual(joined.join(connection), 0)
        peer, _ = server.accept()
        self.addCleanup(peer.close)
        peer.settimeout(turn.PATIENCE)
        self.assertEqual(client.code(turn.REFRESH, GONE), 0)
        for end in (peer, joined.socket):
            try:
                self.assertEqual(end.recv(1), b"")
            except ConnectionError:
                pass
        with self.assertRaises(OSError):
            socket.create_connection(self.relayed, turn.PATIENCE).close()


class MobilityTests(ConnectionTestCase):
    """coturn a97f1924 (4.16.0) and 3c5b2615 (4.17.0): allocations that move escaped their quota, and multiplied."""

    def mobile(self, transport: str = "udp", **more: str) -> tuple[Probe, bytes]:
        client = self.client(transport, **more)
        answer = client.allocate(TICKET)
        self.assertEqual(answer.code, 0)
        self.relayed = answer.address(turn.XOR_RELAYED_ADDRESS)
        return client, answer.attributes[probe.MOBILITY_TICKET]

    def resumed(self, username: str, ticket: bytes) -> tuple[Probe, int, bytes]:
        """A new five-tuple that shows a ticket, the code that it gets, and the next ticket."""
        client = self.client(username=username)
        answer = client.request(turn.REFRESH, [(probe.MOBILITY_TICKET, ticket)])
        return client, answer.code, answer.attributes.get(probe.MOBILITY_TICKET, b"")

    def test_hanging_up_escapes_no_quota(self) -> None:
        """coturn 3c5b2615: allocations whose stream is gone wait for their client, and count: 486 exactly at N+1."""
        self.node = narrow()
        user = f"{int(time.time()) + 60}:default:{os.urandom(4).hex()}"
        tickets, codes = [], []
        for number in range(ALLOCATIONS_OF_USER + 4):
            client = self.client("tcp", username=user, source=f"127.64.0.{1 + number}")
            answer = client.allocate(TICKET)
            codes.append(answer.code)
            if answer.code == 0:
                tickets.append(answer.attributes[probe.MOBILITY_TICKET])
            client.socket.close()
        self.assertEqual(codes, [0] * ALLOCATIONS_OF_USER + [486] * 4)
        for number, ticket in enumerate(tickets):  # nobody else can end them
            client = self.client(username=user, source=f"127.64.1.{1 + number}")
            self.assertEqual(client.code(turn.REFRESH, (probe.MOBILITY_TICKET, ticket)), 0)
            self.assertEqual(client.code(turn.REFRESH, GONE), 0)

    def test_resumes_do_not_multiply(self) -> None:
        """coturn a97f1924: of ten five-tuples that show one ticket after another the last one counts."""
        client, ticket = self.mobile()
        resumed = []
        for _ in range(10):
            each, code, ticket = self.resumed(client.username, ticket)
            self.assertEqual(code, 0)
            resumed.append(each)
        codes = [each.permit("127.0.0.9") for each in resumed]
        self.assertEqual(codes[:-1], [437] * 9)
        peer = self.bound("127.0.0.9")
        resumed[-1].indicate(peer.getsockname(), b"settled")
        self.assertEqual(peer.recv(100), b"settled")
        self.assertEqual(client.code(turn.REFRESH), 437)
        self.assertEqual(resumed[-1].code(turn.REFRESH, GONE), 0)

    def test_old_tickets(self) -> None:
        """RFC 8016, 3.2.2: a ticket that was used is good no more, from wherever it comes; the one after it is."""
        client, first = self.mobile()
        _, code, second = self.resumed(client.username, first)
        self.assertEqual(code, 0)
        for _ in range(3):
            self.assertEqual(self.resumed(client.username, first)[1], 400)
        self.assertEqual(self.resumed(client.username, second)[1], 0)

    def test_tickets_of_others(self) -> None:
        """RFC 8016, 3.2.2 and 5: a stolen ticket is 441 for another user, and opens nothing without credentials."""
        client, ticket = self.mobile()
        for namespace in ("default", "other"):
            thief = self.client(namespace=namespace)
            self.assertEqual(thief.code(turn.REFRESH, (probe.MOBILITY_TICKET, ticket)), 441)
            self.assertEqual(thief.code(turn.REFRESH, (probe.MOBILITY_TICKET, ticket), GONE), 441)
        bare = self.client()
        self.assertEqual(bare.ask(turn.REFRESH, (probe.MOBILITY_TICKET, ticket)).code, 401)
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_forged_tickets(self) -> None:
        """RFC 8016, 5: a ticket of which one bit is another one, a cut one and a made-up one are 400."""
        client, ticket = self.mobile()
        stranger = self.client(username=client.username)
        for at in range(len(ticket)):
            forged = ticket[:at] + bytes((ticket[at] ^ 1,)) + ticket[at + 1 :]
            self.assertEqual(stranger.code(turn.REFRESH, (probe.MOBILITY_TICKET, forged)), 400, at)
        for forged in (b"", ticket[:-1], ticket + b"\0", bytes(len(ticket)), os.urandom(500)):
            self.assertIn(stranger.code(turn.REFRESH, (probe.MOBILITY_TICKET, forged)), (400, 437), forged)
        self.assertEqual(client.code(turn.REFRESH), 0)
        for _ in range(2):
            self.assertEqual(self.client().code(turn.ALLOCATE, (turn.REQUESTED_TRANSPORT, turn.UDP), TICKET), 0)

    def test_tickets_say_nothing(self) -> None:
        """RFC 8016, 5: tickets do not repeat, and neither user, namespace nor address stands in them."""
        tickets = []
        for _ in range(8):
            client, ticket = self.mobile()
            tickets.append(ticket)
            for word in (client.username, "default", self.relayed[0]):
                self.assertNotIn(word.encode(), ticket)
            self.assertNotIn(socket.inet_aton(self.relayed[0]), ticket)
            client.release()
        self.assertEqual(len(set(tickets)), 8)
        self.assertEqual(len({ticket[:8] for ticket in tickets}), 8)
