"""Data connections of TCP allocations: RFC 6062, 4.3, 5.4 and 5.5, and what they cost; a test's name is its section."""

from __future__ import annotations

from orama.turn.connections import CLOSE_TIME
from orama.wire import stun
from orama.wire.stun import Method
from tests.turn.streams import ROOM
from tests.turn.tcp_client import TcpClient, TcpTests
from tests.turn.world import MYAPP, PEER, code


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
