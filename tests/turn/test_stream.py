"""TURN over a byte stream: framing, and the bounds on clients that talk too little, too much, or do not listen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.stream import (
    MAX_STRANGERS,
    MAX_STRANGERS_OF_ADDRESS,
    MAX_WAITING_ANSWERS,
    MESSAGE_TIME,
    STRANGER_LENGTH,
    STRANGER_MESSAGES,
    STRANGER_TIME,
    StreamClient,
    StreamClients,
)
from orama.wire import channeldata, stun
from orama.wire.stun import Class, Method
from tests.turn.world import PEER, REALM, World

BINDING = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)


class Wire(StringTransport):
    """A transport that remembers being dropped."""

    def __init__(self, host: str = "203.0.113.9", port: int = 40000) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, port))
        self.dropped = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def abortConnection(self) -> None:
        self.dropped = True

    def take(self) -> bytes:
        """What was written since the last call."""
        value: bytes = self.value()
        self.clear()
        return value


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.clients = StreamClients(self.world.clock, self.world.server, self.world.fabric)

    def connect(self, host: str = "203.0.113.9", port: int = 40000) -> tuple[StreamClient, Wire]:
        client, wire = self.clients.buildProtocol(None), Wire(host, port)
        client.makeConnection(wire)
        return client, wire

    def signed(self, nonce: bytes, method: int, *attributes: tuple[stun.Attribute[object], object]) -> bytes:
        credentials = self.world.credentials()
        key = stun.long_term_key(credentials.username, REALM, credentials.password)
        parts = [*attributes, (stun.USERNAME, credentials.username), (stun.REALM, REALM), (stun.NONCE, nonce)]
        return stun.build(method, Class.REQUEST, b"t" * 12, parts, key=key)

    def allocated(self, port: int = 40000) -> tuple[StreamClient, Wire, bytes]:
        """A client with an allocation and channel 0x4000 to PEER."""
        client, wire = self.connect(port=port)
        client.dataReceived(stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [(stun.REQUESTED_TRANSPORT, 17)]))
        nonce = stun.parse(wire.take()).get(stun.NONCE) or b""
        client.dataReceived(self.signed(nonce, Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17)))
        self.relay = stun.parse(wire.take()).get(stun.XOR_RELAYED_ADDRESS) or ("", 0)
        client.dataReceived(
            self.signed(nonce, Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, 0x4000), (stun.XOR_PEER_ADDRESS, PEER))
        )
        self.assertEqual(stun.parse(wire.take()).cls, Class.SUCCESS)
        return client, wire, nonce

    def relayed(self) -> list[list[bytes]]:
        link, _ = self.world.opened[self.relay]
        bursts = [packets for packets, _ in link.sent]
        link.sent.clear()
        return bursts

    def from_peer(self, *payloads: bytes) -> None:
        self.world.opened[self.relay][1](payloads, PEER)

    def test_mapped_address(self) -> None:
        """Binding over a stream tells the client's address."""
        client, wire = self.connect()
        client.dataReceived(BINDING)
        self.assertEqual(stun.parse(wire.take()).get(stun.XOR_MAPPED_ADDRESS), ("203.0.113.9", 40000))

    def test_relays_bursts(self) -> None:
        """All ChannelData of one read leaves as one burst; what comes back is padded to four bytes."""
        client, wire, _ = self.allocated()
        payloads = [b"a", b"bb", b"ccc", b"dddd", b""]
        client.dataReceived(b"".join(channeldata.pack(0x4000, each, padded=True) for each in payloads))
        self.assertEqual(self.relayed(), [payloads])
        self.from_peer(*payloads)
        self.assertEqual(wire.take(), b"".join(channeldata.pack(0x4000, each, padded=True) for each in payloads))

    def test_any_cut(self) -> None:
        """However the stream is cut into reads, the same messages come out."""
        client, wire, _ = self.allocated()
        payloads = [b"", b"a", b"bb" * 100, b"ccc"]
        stream = BINDING.join(channeldata.pack(0x4000, each, padded=True) for each in payloads)

        @given(st.lists(st.integers(0, len(stream)), max_size=12))
        def cut(places: list[int]) -> None:
            wire.take()
            at = 0
            for place in [*sorted(places), len(stream)]:
                client.dataReceived(stream[at:place])
                at = place
            self.assertEqual([each for burst in self.relayed() for each in burst], payloads)
            self.assertEqual(len(wire.take()), 3 * 32)

        cut()
        self.assertFalse(wire.dropped)

    def test_byte_by_byte(self) -> None:
        """The longest message, a byte at a time, is put together in linear time and relayed once."""
        client, _, _ = self.allocated()
        payload = bytes(65000)
        for byte in channeldata.pack(0x4000, payload, padded=True):
            client.dataReceived(bytes((byte,)))
        self.assertEqual(self.relayed(), [[payload]])

    def test_junk(self) -> None:
        """What cannot be a message ends the connection at once; what came before it is still answered."""
        for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n", b"\xff" * 8, b"\0\1\0\0" + bytes(16)):
            client, wire = self.connect()
            client.dataReceived(BINDING + junk)
            self.assertEqual((len(wire.take()), wire.dropped), (32, True), junk)

    def test_too_long_for_a_stranger(self) -> None:
        """A stranger's message has a small bound; nothing of it is kept."""
        client, wire = self.connect()
        client.dataReceived(channeldata.HEADER.pack(0x4000, STRANGER_LENGTH))
        self.assertTrue(wire.dropped)

    def test_too_many_for_a_stranger(self) -> None:
        """So has the number of a stranger's messages."""
        client, wire = self.connect()
        for _ in range(STRANGER_MESSAGES):
            client.dataReceived(BINDING)
        self.assertFalse(wire.dropped)
        client.dataReceived(BINDING)
        self.assertTrue(wire.dropped)

    def test_silent(self) -> None:
        """Who has no allocation in time is dropped, whatever it says; who has one stays."""
        client, wire = self.connect(port=1)
        _, half_open = self.connect(port=2)
        _, known, _ = self.allocated(port=3)
        for _ in range(int(STRANGER_TIME)):
            self.assertFalse(wire.dropped or half_open.dropped)
            self.world.clock.advance(1)
            client.dataReceived(BINDING)
            self.clients.tick()
        self.assertEqual((wire.dropped, half_open.dropped, known.dropped), (True, True, False))

    def test_after_the_allocation(self) -> None:
        """When the allocation has expired the client is a stranger again, with a stranger's time."""
        _, wire, _ = self.allocated()
        for _ in range(600 + int(STRANGER_TIME) - 2):
            self.world.clock.advance(1)
            self.world.server.tick()
            self.clients.tick()
        self.assertFalse(wire.dropped)
        self.world.clock.advance(1)
        self.clients.tick()
        self.assertTrue(wire.dropped)

    def test_slow_message(self) -> None:
        """A message that does not become whole in time ends the connection, though bytes trickle in."""
        client, wire, _ = self.allocated()
        client.dataReceived(channeldata.HEADER.pack(0x4000, 1000))
        for _ in range(int(MESSAGE_TIME)):
            self.assertFalse(wire.dropped)
            client.dataReceived(b"x")
            self.world.clock.advance(1)
            self.clients.tick()
        self.assertTrue(wire.dropped)

    def test_steady_client(self) -> None:
        """A client whose reads always end inside a message is not slow."""
        client, wire, _ = self.allocated()
        message = channeldata.pack(0x4000, bytes(96))
        client.dataReceived(message[:50])
        for _ in range(3 * int(MESSAGE_TIME)):
            client.dataReceived(message[50:] + message[:50])
            self.world.clock.advance(1)
            self.clients.tick()
        self.assertFalse(wire.dropped)

    def test_not_reading(self) -> None:
        """While the client does not read, relayed packets are lost and counted, and answers still go out."""
        client, wire, nonce = self.allocated()
        client.pauseProducing()
        self.from_peer(b"x", b"y")
        self.assertEqual(wire.take(), b"")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "slow_client"], 2)
        client.dataReceived(self.signed(nonce, Method.REFRESH))
        self.assertEqual(stun.parse(wire.take()).method, Method.REFRESH)
        client.resumeProducing()
        self.from_peer(b"x", b"y")
        self.assertEqual(len(wire.take()), 16)

    def test_not_reading_data_indications(self) -> None:
        """Data indications are relayed packets too."""
        client, wire, _ = self.allocated()
        client.pauseProducing()
        self.world.opened[self.relay][1]([b"x"], (PEER[0], 9))
        self.assertEqual(wire.take(), b"")
        client.resumeProducing()
        self.world.opened[self.relay][1]([b"x"], (PEER[0], 9))
        self.assertEqual(stun.parse(wire.take()).method, Method.DATA)

    def test_asking_without_reading(self) -> None:
        """Who asks and asks and never reads the answers is dropped."""
        client, wire, _ = self.allocated()
        client.pauseProducing()
        for _ in range(MAX_WAITING_ANSWERS):
            client.dataReceived(BINDING)
        self.assertFalse(wire.dropped)
        client.dataReceived(BINDING)
        self.assertTrue(wire.dropped)

    def test_producer(self) -> None:
        """The transport knows whom to tell when its buffer is full."""
        client, wire = self.connect()
        self.assertIs(wire.producer, client)
        self.assertTrue(wire.streaming)

    def test_gone(self) -> None:
        """With the connection its allocation ends, and what a peer still sends goes nowhere."""
        client, wire, _ = self.allocated()
        client.connectionLost()
        self.assertEqual(len(self.world.server), 0)
        self.assertEqual(len(self.clients), 0)
        self.from_peer(b"x")
        self.assertEqual(wire.take(), b"")

    def test_many_strangers_of_an_address(self) -> None:
        """Beyond so many strangers from one address the oldest makes room; others and the allocated stay."""
        _, known, _ = self.allocated(port=1)
        _, neighbour = self.connect("198.51.100.1", 1)
        wires = [self.connect(port=100 + number) for number in range(MAX_STRANGERS_OF_ADDRESS + 10)]
        for client, wire in wires:
            if wire.dropped:
                client.connectionLost()
        self.assertTrue(wires[0][1].dropped)
        self.assertFalse(wires[-1][1].dropped or known.dropped or neighbour.dropped)

    def test_many_strangers(self) -> None:
        """So in all: a thousand half-open connections never hold more than the bound."""
        for number in range(2 * MAX_STRANGERS):
            client, wire = self.connect(f"198.51.{number >> 8}.{number & 255}")
            for each in list(self.clients._strangers):
                if each._closing:
                    each.connectionLost()
        self.assertLessEqual(len(self.clients), MAX_STRANGERS)
        self.assertFalse(wire.dropped or client._closing)

    def test_stop(self) -> None:
        """Stopping drops every connection and says when the last is gone."""
        pairs = [self.connect(port=number) for number in (1, 2)]
        stopped = self.clients.stop()
        self.assertTrue(all(wire.dropped for _, wire in pairs))
        self.assertNoResult(stopped)
        for client, _ in pairs:
            client.connectionLost()
        self.successResultOf(stopped)
        self.successResultOf(self.clients.stop())
