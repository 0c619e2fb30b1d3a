"""TCP allocations, requirement by requirement of RFC 6062; a test's name is its section."""

from __future__ import annotations

from orama.turn.connections import BIND_TIME, CONNECT_TIME, MAX_CONNECTIONS
from orama.turn.request import Attributes
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.streams import MemoryStream
from tests.turn.tcp_client import TcpClient, TcpTests
from tests.turn.world import OTHER_RELAY, PEER, World, code


class AllocateTests(TcpTests):
    def test_5_1_tcp_relay(self) -> None:
        """A TCP allocation has a relayed address on which the server takes connections, and none of UDP."""
        client = self.client()
        self.assertIn(client.relay, self.world.tcp.listeners)
        self.assertNotIn(client.relay, self.world.opened)
        self.assertFalse(self.world.fabric.has(client.relay))

    def test_5_1_unsupported_transport(self) -> None:
        """A transport other than UDP and TCP is 442."""
        client = TcpClient(self.world)
        self.assertEqual(code(client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 132))), 442)

    def test_5_1_switched_off(self) -> None:
        """Where the configuration has no TCP relays TCP is an unsupported transport, which is the default."""
        self.world = World()
        self.assertEqual(code(TcpClient(self.world).allocate()), 442)
        self.assertEqual(self.world.tcp.listeners, {})

    def test_5_1_client_on_udp(self) -> None:
        """Who came over UDP gets no TCP allocation: 400."""
        client = self.world.client()
        self.assertEqual(code(client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 6))), 400)

    def test_5_1_attributes_of_packets(self) -> None:
        """DONT-FRAGMENT, EVEN-PORT and RESERVATION-TOKEN with TCP are 400."""
        asked: Attributes = [(stun.DONT_FRAGMENT, True), (stun.EVEN_PORT, False), (stun.RESERVATION_TOKEN, bytes(8))]
        for attribute in asked:
            self.assertEqual(code(TcpClient(self.world).allocate(attribute)), 400, attribute[0].name)

    def test_5_1_no_reservation(self) -> None:
        """The answer has a relayed address, a lifetime and the mapped address, and no RESERVATION-TOKEN."""
        answer = TcpClient(self.world).allocate()
        self.assertEqual(answer.get(stun.LIFETIME), 600)
        self.assertIsNotNone(answer.get(stun.XOR_MAPPED_ADDRESS))
        self.assertNotIn(stun.RESERVATION_TOKEN, answer)

    def test_5_1_taken_port(self) -> None:
        """A port that somebody else listens on is passed over."""
        first = self.client().relay
        self.world = World(tcp_relays=True)
        self.world.tcp.busy.add(first)
        self.assertNotEqual(self.client().relay, first)

    def test_5_1_no_port(self) -> None:
        """Without any port the answer is 508, and nothing is left of the attempt."""
        self.world.tcp.busy.update(("10.0.0.1", port) for port in range(50000, 50800))
        self.assertEqual(code(TcpClient(self.world).allocate()), 508)
        self.assertEqual(self.world.figures()["orama_turn_allocations", "myapp"], 0)

    def test_5_1_quota(self) -> None:
        """TCP allocations count like the others: 486 beyond the quota."""
        self.world = World(tcp_relays=True, allocations_per_namespace=1)
        self.client()
        self.assertEqual(code(TcpClient(self.world, 40001).allocate()), 486)

    def test_no_channels(self) -> None:
        """A channel carries packets, which a TCP allocation does not have: 400, and what is sent goes nowhere."""
        client = self.client()
        self.assertEqual(code(client.bind(0x4000, PEER)), 400)
        self.assertEqual(code(client.permit(PEER)), 0)
        self.assertEqual(client.send(PEER, b"x"), [])
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_relay_port"], 1)


class ConnectTests(TcpTests):
    def test_5_2_connects_from_the_relayed_address(self) -> None:
        """Connect opens a TCP connection from the relayed address to the peer."""
        client = self.client()
        self.assertEqual(client.connect(PEER), [])
        (attempt,) = self.world.tcp.attempts
        self.assertEqual((attempt.source, attempt.peer), (client.relay, PEER))

    def test_5_2_connection_id(self) -> None:
        """When the connection stands, the answer brings a CONNECTION-ID, and each connection has another."""
        client = self.client()
        ids = {self.connected(client, (PEER[0], port))[1] for port in range(1, 11)}
        self.assertEqual(len(ids), 10)

    def test_5_2_no_allocation(self) -> None:
        """Connect without an allocation is 437, and so it is with one of UDP."""
        client = TcpClient(self.world)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 437)
        client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17))
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 437)

    def test_5_2_wrong_user(self) -> None:
        """Connect by another user is 441, and by nobody 401."""
        client = self.client()
        other = TcpClient(self.world, namespace="other")
        other.stream = other.link = client.stream  # type: ignore[assignment]
        self.assertEqual(code(other.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 441)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER), signed=False)), 401)
        self.assertEqual(self.world.tcp.attempts, [])

    def test_5_2_already_connecting(self) -> None:
        """A second Connect to a peer while the first goes on is 446."""
        client = self.client()
        client.connect(PEER)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 446)

    def test_5_2_already_connected(self) -> None:
        """A Connect to a peer with whom there is a connection, pending or joined, is 446; another port is another
        peer."""
        client = self.client()
        _, id_ = self.connected(client)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 446)
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(id_)), 0)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 446)
        self.connected(client, (PEER[0], PEER[1] + 1))

    def test_5_2_connects_again(self) -> None:
        """When the connection is gone, Connect makes another."""
        client = self.client()
        peer, _ = self.connected(client)
        peer.breaks()
        self.connected(client)

    def test_5_2_no_peer(self) -> None:
        """Connect without XOR-PEER-ADDRESS, or to port 0, is 400."""
        client = self.client()
        self.assertEqual(code(client.ask(Method.CONNECT)), 400)
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, (PEER[0], 0)))), 400)

    def test_5_2_forbidden(self) -> None:
        """Connect reaches whom UDP would reach and nobody else: 403, in any spelling; 443 for the other family."""
        client = self.client()
        for peer, wanted in (
            (("169.254.169.254", 80), 403),
            (("127.0.0.1", 6379), 403),
            (("192.168.0.1", 22), 403),
            (("::ffff:127.0.0.1", 22), 403),
            (OTHER_RELAY, 403),
            (("10.0.0.1", 3478), 403),
            (("2001:4860:4860::8888", 80), 443),
        ):
            self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, peer))), wanted, peer)
        self.assertEqual(self.world.tcp.attempts, [])

    def test_5_2_itself(self) -> None:
        """A relay does not connect to itself, though the rules may open it: 403."""
        client = self.client()
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, client.relay))), 403)

    def test_5_2_failure(self) -> None:
        """A connection that cannot be made is 447, and nothing is left of it."""
        client = self.client()
        client.connect(PEER)
        self.world.tcp.attempts[0].fails()
        self.assertEqual(code(client.heard()), 447)
        self.assertEqual(self.connections(), 0)

    def test_5_2_timeout(self) -> None:
        """An attempt has 30 s, and is 447 then."""
        client = self.client()
        client.connect(PEER)
        self.pass_time(CONNECT_TIME - 1)
        self.assertEqual(client.stream.takes(), b"")
        self.pass_time(1)
        self.assertEqual(code(client.heard()), 447)
        self.assertTrue(self.world.tcp.attempts[0].cancelled)
        self.assertGreaterEqual(CONNECT_TIME, 30)

    def test_5_2_buffers(self) -> None:
        """What the peer sends before the ConnectionBind is not read: it waits in the window of TCP, and comes then."""
        client = self.client()
        peer, id_ = self.connected(client)
        peer.gives(b"early")
        self.turn()
        self.assertEqual(peer.unread, 5)
        data = TcpClient(self.world, 41000)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.turn()
        self.assertEqual(data.stream.takes(), b"early")

    def test_5_2_unbound(self) -> None:
        """Without a ConnectionBind for 30 s the peer's connection is closed."""
        client = self.client()
        peer, id_ = self.connected(client)
        self.pass_time(BIND_TIME - 1)
        self.assertFalse(peer.aborted)
        self.pass_time(1)
        self.assertTrue(peer.aborted)
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(id_)), 400)
        self.assertEqual(BIND_TIME, 30)

    def test_5_2_cap(self) -> None:
        """One allocation has so many connections at a time: 508; others are not touched by that."""
        client, other = self.client(), self.client(40001)
        for port in range(1, MAX_CONNECTIONS + 1):
            client.connect((PEER[0], port))
        self.assertEqual(code(client.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, PEER))), 508)
        self.connected(other)

    def test_gone_while_connecting(self) -> None:
        """When the allocation ends, so does the attempt, and the request is answered with 447."""
        client = self.client()
        client.connect(PEER)
        answer, late = client.give(*self.release(client)), self.world.tcp.attempts[0]
        self.assertEqual(len(answer), 1)
        self.assertTrue(late.cancelled)
        self.assertIn(b"\x04\x2f", answer[0])

    def release(self, client: TcpClient) -> list[bytes]:
        signed: Attributes = [
            (stun.LIFETIME, 0),
            (stun.USERNAME, client.credentials.username),
            (stun.REALM, "orama"),
            (stun.NONCE, client.nonce),
        ]
        return [stun.build(Method.REFRESH, Class.REQUEST, client.transaction(), signed, key=client.key)]


class ArrivalTests(TcpTests):
    def arrived(self) -> tuple[TcpClient, MemoryStream, int]:
        """A peer that has connected: the client, the peer's stream, the CONNECTION-ID."""
        client = self.client()
        client.permit(PEER)
        peer = self.world.tcp.arrives(client.relay, PEER)
        indication = client.heard()
        self.assertEqual((indication.method, indication.cls), (Method.CONNECTION_ATTEMPT, Class.INDICATION))
        self.assertEqual(indication.get(stun.XOR_PEER_ADDRESS), PEER)
        id_ = indication.get(stun.CONNECTION_ID)
        assert id_ is not None
        return client, peer, id_

    def test_5_3_connection_attempt(self) -> None:
        """A peer's connection is told to the client by an indication with its address and a CONNECTION-ID."""
        _, peer, _ = self.arrived()
        self.assertFalse(peer.aborted)

    def test_5_3_bound(self) -> None:
        """A ConnectionBind joins it, with all that the peer has sent by then."""
        _, peer, id_ = self.arrived()
        peer.gives(b"hello")
        data = TcpClient(self.world, 41000)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.turn()
        self.assertEqual(data.stream.takes(), b"hello")
        data.stream.gives(b"you")
        self.assertEqual(peer.takes(), b"you")

    def test_5_3_no_permission(self) -> None:
        """Without a permission for the peer, or with one that has expired, its connection is closed at once and the
        client hears nothing."""
        client = self.client()
        for wait in (0, 300):
            self.pass_time(wait)
            self.assertTrue(self.world.tcp.arrives(client.relay, PEER).aborted)
            self.assertEqual(client.stream.takes(), b"")
            client.permit(PEER)
            client.stream.takes()
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_permission"], 2)

    def test_5_3_forbidden_port(self) -> None:
        """A permission opens an IP; a port of it that the rules shut stays shut."""
        client = self.client()
        client.permit(OTHER_RELAY)
        self.assertTrue(self.world.tcp.arrives(client.relay, OTHER_RELAY).aborted)
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "forbidden_peer"], 1)

    def test_5_3_unbound(self) -> None:
        """Without a ConnectionBind for 30 s it is closed."""
        _, peer, _ = self.arrived()
        self.pass_time(BIND_TIME)
        self.assertTrue(peer.aborted)
        self.assertEqual(self.connections(), 0)

    def test_5_3_cap(self) -> None:
        """Beyond so many connections of an allocation those of peers are closed."""
        client = self.client()
        client.permit(PEER)
        streams = [self.world.tcp.arrives(client.relay, (PEER[0], port)) for port in range(1, MAX_CONNECTIONS + 2)]
        self.assertEqual([stream.aborted for stream in streams], [False] * MAX_CONNECTIONS + [True])

    def test_5_3_short_of_descriptors(self) -> None:
        """A port that could take no connection for want of descriptors is told every second to try again."""
        client = self.client()
        self.pass_time(3)
        self.assertEqual(self.world.tcp.listeners[client.relay].resumed, 3)
        client.refresh((stun.LIFETIME, 0))
        self.pass_time(3)
        self.assertEqual(self.world.tcp.listeners[client.relay].resumed, 3)

    def test_5_3_not_after_the_allocation(self) -> None:
        """With the allocation the port is closed."""
        client = self.client()
        client.refresh((stun.LIFETIME, 0))
        self.assertTrue(self.world.tcp.listeners[client.relay].closed)
