"""TCP allocations, requirement by requirement of RFC 6062; a test's name is its section."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from orama.turn.connections import BIND_TIME, CLOSE_TIME, CONNECT_TIME, MAX_CONNECTIONS
from orama.turn.request import Attributes
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.streams import ROOM, MemoryStream
from tests.turn.tcp_client import TcpClient
from tests.turn.world import MYAPP, OTHER_RELAY, PEER, World, code


class TcpTests(SynchronousTestCase):
    """A world with TCP relays."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.world = World(tcp_relays=True, **self.settings)

    def client(self, port: int = 40000, **who: Any) -> TcpClient:
        """A client with a TCP allocation."""
        client = TcpClient(self.world, port, **who)
        self.assertEqual(code(client.allocate()), 0)
        return client

    def pass_time(self, seconds: float) -> None:
        """Second by second, with the server's look at each."""
        for _ in range(int(seconds)):
            self.world.clock.advance(1)
            self.world.server.tick()

    def turn(self) -> None:
        """Another turn of the reactor."""
        self.world.clock.advance(0)

    def connected(self, client: TcpClient, peer: tuple[str, int] = PEER) -> tuple[MemoryStream, int]:
        """A pending connection to *peer*: the peer's stream, and the CONNECTION-ID."""
        self.assertEqual(client.connect(peer), [])
        stream = self.world.tcp.attempts[-1].succeeds()
        id_ = client.heard().get(stun.CONNECTION_ID)
        assert id_ is not None
        return stream, id_

    def joined(self, client: TcpClient, port: int = 41000, **who: Any) -> tuple[MemoryStream, MemoryStream]:
        """The two streams of a data connection: the peer's, and the client's."""
        peer, id_ = self.connected(client)
        data = TcpClient(self.world, port, **who)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.turn()
        return peer, data.stream

    def connections(self) -> float:
        return self.world.figures().get(("orama_turn_connections", "myapp"), 0)


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


class BindTests(TcpTests):
    def test_5_4_joined(self) -> None:
        """After the ConnectionBind the bytes of each side go to the other as they are."""
        peer, data = self.joined(self.client())
        data.gives(b"\x00\x01GET / HTTP/1.1\r\n")
        self.assertEqual(peer.takes(), b"\x00\x01GET / HTTP/1.1\r\n")
        peer.gives(b"\x40\x00\x00\x00")
        self.assertEqual(data.takes(), b"\x40\x00\x00\x00")

    def test_5_4_answer_comes_first(self) -> None:
        """The answer to the ConnectionBind is sent before anything of the peer."""
        client = self.client()
        peer, id_ = self.connected(client)
        peer.gives(b"early")
        data = TcpClient(self.world, 41000)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.assertEqual(data.stream.takes(), b"")

    def test_5_4_client_on_udp(self) -> None:
        """A ConnectionBind over UDP is 400."""
        _, id_ = self.connected(self.client())
        self.assertEqual(code(self.world.client().ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, id_))), 400)

    def test_5_4_no_such_connection(self) -> None:
        """A ConnectionBind without a CONNECTION-ID, or with one that names no pending connection, is 400: one that
        never was, one that is not connected yet, and one that has been bound."""
        client = self.client()
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(None)), 400)
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(7)), 400)
        _, id_ = self.connected(client)
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(id_)), 0)
        self.assertEqual(code(TcpClient(self.world, 41001).bind_connection(id_)), 400)

    def test_5_4_authenticated(self) -> None:
        """A ConnectionBind by nobody is 401, by another user or namespace 441, and the connection still waits."""
        client = self.client(user="ann")
        _, id_ = self.connected(client)
        stranger = TcpClient(self.world, 41000)
        self.assertEqual(code(stranger.ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, id_), signed=False)), 401)
        for who in ({"user": "bob"}, {"namespace": "other"}, {}):
            self.assertEqual(code(TcpClient(self.world, 41001, **who).bind_connection(id_)), 441)
        self.assertEqual(code(TcpClient(self.world, 41002, user="ann").bind_connection(id_)), 0)

    def test_4_3_nonce(self) -> None:
        """A data connection binds at once with the nonce that its client got on the control connection."""
        client = self.client()
        _, id_ = self.connected(client)
        data = TcpClient(self.world, 41000)
        data.nonce = client.nonce
        self.assertEqual(code(data.bind_connection(id_)), 0)

    def test_5_4_not_on_the_control_connection(self) -> None:
        """A connection that has an allocation becomes no data connection: 400."""
        client = self.client()
        _, id_ = self.connected(client)
        self.assertEqual(code(client.bind_connection(id_)), 400)
        self.assertEqual(code(self.client(40001).bind_connection(id_)), 400)

    def test_5_4_after_another_secret(self) -> None:
        """Connections of an allocation are bound with the credentials that made it, when their secret is another."""
        client = self.client()
        _, id_ = self.connected(client)
        data = TcpClient(self.world, 41000)
        data.challenge()
        self.world.tenants.put(MYAPP.__class__("myapp", ("new",), (50000, 50799), (), MYAPP.allowed_peers))
        self.assertEqual(code(data.bind_connection(id_)), 0)

    def test_back_pressure_to_the_peer(self) -> None:
        """While the client does not read, the peer is not read either, and nothing is lost; then it goes on."""
        peer, data = self.joined(self.client())
        data.stuck = True
        peer.gives(bytes(ROOM))
        self.assertFalse(peer.reading)
        peer.gives(b"more")
        self.assertEqual(peer.unread, 4)
        self.assertEqual(len(data.takes()), ROOM)
        self.turn()
        self.assertEqual(data.takes(), b"more")

    def test_back_pressure_to_the_client(self) -> None:
        """And the other way round."""
        peer, data = self.joined(self.client())
        peer.stuck = True
        data.gives(bytes(ROOM))
        self.assertFalse(data.reading)
        self.assertEqual(len(peer.takes()), ROOM)
        self.turn()
        self.assertTrue(data.reading)


class ClosingTests(TcpTests):
    def test_5_5_allocation_ends(self) -> None:
        """With the allocation end its data connections, pending and joined, on both sides."""
        for end in (
            lambda client: client.refresh((stun.LIFETIME, 0)),
            lambda client: self.world.server.disconnected(client.stream, client.address),
            lambda client: self.pass_time(600),
            lambda client: self.world.tenants.remove("myapp"),
        ):
            self.setUp()
            client = self.client()
            peer, data = self.joined(client)
            pending, _ = self.connected(client, (PEER[0], 9))
            end(client)
            self.assertTrue(peer.aborted and data.aborted and pending.aborted)
            self.assertEqual(self.connections(), 0)

    def test_5_5_client_closes(self) -> None:
        """When the client's side is gone, the peer's is closed behind what it is still to get."""
        peer, data = self.joined(self.client())
        data.gives(b"last")
        data.breaks()
        self.assertEqual((peer.takes(), peer.finished), (b"last", True))
        peer.breaks()
        self.assertEqual(self.connections(), 0)

    def test_5_5_peer_closes(self) -> None:
        """When the peer's side is gone, the client's is closed behind what it is still to get."""
        peer, data = self.joined(self.client())
        peer.gives(b"last")
        peer.breaks()
        self.assertEqual((data.takes(), data.finished), (b"last", True))
        data.breaks()
        self.assertEqual(self.connections(), 0)

    def test_5_5_pending_peer_closes(self) -> None:
        """A pending connection that the peer gives up is there no more."""
        client = self.client()
        peer, id_ = self.connected(client)
        peer.breaks()
        self.assertEqual(code(TcpClient(self.world, 41000).bind_connection(id_)), 400)

    def test_5_5_reads_to_the_end(self) -> None:
        """A side that was held because the other one did not read is read again when that one is gone, so that its own
        end is heard."""
        peer, data = self.joined(self.client())
        peer.stuck = True
        data.gives(bytes(ROOM))
        self.assertFalse(data.reading)
        peer.breaks()
        self.turn()
        self.assertTrue(data.reading)
        data.gives(b"into the void")
        data.breaks()
        self.assertEqual(self.connections(), 0)

    def test_5_5_does_not_take_the_last(self) -> None:
        """Who does not take what is left has 30 s for it."""
        peer, data = self.joined(self.client())
        peer.gives(b"last")
        peer.breaks()
        self.pass_time(CLOSE_TIME - 1)
        self.assertFalse(data.aborted)
        self.pass_time(1)
        self.assertTrue(data.aborted)

    def test_half_closed(self) -> None:
        """Who sends no more can still be sent to: a request that ends with the end of its stream gets its answer."""
        peer, data = self.joined(self.client())
        data.gives(b"request")
        data.ends()
        self.assertEqual((peer.takes(), peer.finished), (b"request", True))
        peer.gives(b"answer")
        peer.ends()
        self.assertEqual((data.takes(), data.finished), (b"answer", True))

    def test_half_closed_while_pending(self) -> None:
        """What a peer sent before it ended its stream reaches the client that binds later, and then the end."""
        client = self.client()
        peer, id_ = self.connected(client)
        peer.gives(b"all")
        peer.ends()
        data = TcpClient(self.world, 41000)
        self.assertEqual(code(data.bind_connection(id_)), 0)
        self.turn()
        self.assertEqual((data.stream.takes(), data.stream.finished), (b"all", True))

    def test_shut_peer(self) -> None:
        """When the rules shut a peer, its connections end; those of others go on."""
        client = self.client()
        peer, data = self.joined(client)
        stays, _ = self.connected(client, ("10.0.0.2", 20007))
        self.world.tenants.put(MYAPP.__class__("myapp", MYAPP.secrets, MYAPP.relay_ports, MYAPP.sfu_media))
        self.assertTrue(peer.aborted and data.aborted)
        self.assertFalse(stays.aborted)

    def test_stop(self) -> None:
        """When the server stops, everything is closed."""
        client = self.client()
        peer, data = self.joined(client)
        self.world.server.stop()
        self.assertTrue(peer.aborted and data.aborted and self.world.tcp.listeners[client.relay].closed)


class CountingTests(TcpTests):
    def test_traffic(self) -> None:
        """The bytes of data connections count in the namespace's traffic, in their direction."""
        peer, data = self.joined(self.client())
        data.gives(bytes(100))
        peer.gives(bytes(1000))
        figures = self.world.figures()
        self.assertEqual(figures["orama_turn_bytes_total", "myapp", "up"], 100)
        self.assertEqual(figures["orama_turn_bytes_total", "myapp", "down"], 1000)

    def test_gauge(self) -> None:
        """Connections are counted by namespace as long as they are there."""
        client = self.client()
        self.connected(client)
        self.connected(client, (PEER[0], 9))
        self.assertEqual(self.connections(), 2)
        client.refresh((stun.LIFETIME, 0))
        figures = self.world.figures()
        self.assertEqual([figures["orama_turn_connections", name] for name in ("myapp", "other")], [0, 0])


class BandwidthTests(TcpTests):
    settings = {"bandwidth_per_namespace": 100_000}

    def test_bandwidth(self) -> None:
        """Beyond the bandwidth a stream is slowed down and not cut: in ten seconds ten seconds' worth arrives, in order
        and whole in the end."""
        peer, data = self.joined(self.client())
        sent, got = bytes(range(256)) * 8000, b""
        at, seconds = 0, 0.0
        while len(got) < len(sent):
            while peer.reading and at < len(sent):
                peer.gives(sent[at : at + 20_000])
                at += 20_000
            got += data.takes()
            self.world.clock.advance(0.05)
            seconds += 0.05
        self.assertEqual(got, sent)
        # A second's worth is there at the start.
        self.assertLess(abs(seconds - (len(sent) / 100_000 - 1)), 2)

    def test_bandwidth_and_the_end(self) -> None:
        """The end of a stream is told behind what waited for bandwidth."""
        peer, data = self.joined(self.client())
        for _ in range(2):
            peer.gives(bytes(400_000))
        peer.ends()
        self.assertFalse(data.finished)
        self.world.clock.pump([0.1] * 200)
        self.assertEqual((len(data.takes()), data.finished), (800_000, True))

    def test_end_in_the_same_read(self) -> None:
        """So it is when the end comes with what has to wait, as it may over TLS."""
        peer, data = self.joined(self.client())
        peer.gives(bytes(400_000))
        peer.gives(b"last")
        assert peer.flow is not None
        peer.flow.ended()
        self.assertEqual((len(data.takes()), data.finished), (400_000, False))
        self.world.clock.pump([0.1] * 100)
        self.assertEqual((data.takes(), data.finished), (b"last", True))

    def test_gone_while_it_waits(self) -> None:
        """What waits for bandwidth when its sender goes is passed on at once: there is nobody left to slow down."""
        peer, data = self.joined(self.client())
        peer.gives(bytes(400_000))
        peer.gives(b"last")
        peer.breaks()
        self.assertEqual((data.takes()[400_000:], data.finished), (b"last", True))

    def test_bandwidth_and_a_slow_reader(self) -> None:
        """A side that is slow as well is waited for when there is bandwidth again."""
        peer, data = self.joined(self.client())
        peer.gives(bytes(400_000))
        data.takes()
        data.stuck = True
        peer.gives(bytes(ROOM))
        self.world.clock.pump([0.1] * 100)
        self.assertFalse(peer.reading)
        self.assertEqual(len(data.takes()), ROOM)
        self.assertTrue(peer.reading)

    def test_no_timer_left(self) -> None:
        """A connection that waits for bandwidth leaves no call behind when it ends."""
        client = self.client()
        peer, _ = self.joined(client)
        for _ in range(2):
            peer.gives(bytes(400_000))
        client.refresh((stun.LIFETIME, 0))
        self.turn()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
