"""TURN over a byte stream: framing, and the bounds on clients that talk too little, too much, or do not listen."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Buffer
from orama.net.run import Run
from orama.net.stream import Flow
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


class Wire:
    """A connection in memory that remembers being dropped."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.dropped = self.paused = self.finished = False
        self.records: list[bytes] = []

    def send(self, parts: Sequence[Buffer]) -> None:
        self.records += map(bytes, parts)

    def write(self, data: Buffer) -> None:
        self.send((data,))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.dropped = True

    def take(self) -> bytes:
        """What was written since the last call."""
        records, self.records = self.records, []
        return b"".join(records)


class RawFlow:
    """Keeps what comes of a raw connection."""

    def __init__(self) -> None:
        self.events: list[bytes | str] = []

    def received(self, data: Buffer) -> None:
        self.events.append(bytes(data))

    def ended(self) -> None:
        self.events.append("ended")

    def lost(self) -> None:
        self.events.append("lost")

    def full(self) -> None:
        self.events.append("full")

    def drained(self) -> None:
        self.events.append("drained")


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.clients = StreamClients(self.world.clock, self.world.server, self.world.fabric)

    def connect(self, host: str = "203.0.113.9", port: int = 40000) -> tuple[StreamClient, Wire]:
        client = self.clients.arrive((host, port), "tcp")
        client.begin(wire := Wire(client))
        return client, wire

    def signed(self, nonce: bytes, method: int, *attributes: tuple[stun.Attribute[object], object]) -> bytes:
        credentials = self.world.credentials()
        key = stun.long_term_key(credentials.username, REALM, credentials.password)
        parts = [*attributes, (stun.USERNAME, credentials.username), (stun.REALM, REALM), (stun.NONCE, nonce)]
        return stun.build(method, Class.REQUEST, b"t" * 12, parts, key=key)

    def allocated(self, port: int = 40000) -> tuple[StreamClient, Wire, bytes]:
        """A client with an allocation and channel 0x4000 to PEER."""
        client, wire = self.connect(port=port)
        client.received(stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [(stun.REQUESTED_TRANSPORT, 17)]))
        nonce = stun.parse(wire.take()).get(stun.NONCE) or b""
        client.received(self.signed(nonce, Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17)))
        self.relay = stun.parse(wire.take()).get(stun.XOR_RELAYED_ADDRESS) or ("", 0)
        client.received(
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
        client.received(BINDING)
        self.assertEqual(stun.parse(wire.take()).get(stun.XOR_MAPPED_ADDRESS), ("203.0.113.9", 40000))

    def test_relays_bursts(self) -> None:
        """All ChannelData of one read leaves as one burst; what comes back is padded to four bytes."""
        client, wire, _ = self.allocated()
        payloads = [b"a", b"bb", b"ccc", b"dddd", b""]
        client.received(b"".join(channeldata.pack(0x4000, each, padded=True) for each in payloads))
        self.assertEqual(self.relayed(), [payloads])
        self.from_peer(*payloads)
        self.assertEqual(wire.take(), b"".join(channeldata.pack(0x4000, each, padded=True) for each in payloads))

    def test_equal_messages_are_one_run(self) -> None:
        """Messages of one channel and length in a row are relayed as one run, and others between them as they are."""
        client, _, _ = self.allocated()
        bursts: list[tuple[bool, list[bytes]]] = []

        def received(link: object, packets: Sequence[Buffer], address: object, verified: bool) -> None:
            bursts.append((type(packets) is Run, [bytes(packet[4:]) for packet in packets]))

        self.world.server.received = received  # type: ignore[method-assign,assignment]
        sizes = [100, 100, 100, 40, 40, 100, 7]
        stream = b"".join(channeldata.pack(0x4000, bytes([i]) * size, padded=True) for i, size in enumerate(sizes))
        client.received(stream)
        packets = [bytes([i]) * size + bytes(-size % 4) for i, size in enumerate(sizes)]
        self.assertEqual(bursts, [(True, packets[:3]), (True, packets[3:5]), (False, packets[5:])])

    def test_raw_connection(self) -> None:
        """What a ConnectionBind makes raw gets what follows it, as it came, and is no stranger."""
        client, wire = self.connect()
        raw = RawFlow()
        received = self.world.server.received

        def bind(link: StreamClient, packets: Sequence[Buffer], address: object, verified: bool) -> None:
            if packets[-1][:2] == b"\0\x0b":
                self.assertIs(link.pipe(raw), wire)
                link.send((b"\x01\x0b answer",), ("", 0))
            else:
                received(link, packets, link.address, verified=verified)

        self.world.server.received = bind  # type: ignore[method-assign,assignment]
        client.received(BINDING + stun.build(Method.CONNECTION_BIND, Class.REQUEST, b"t" * 12) + b"raw bytes")
        client.received(b" and more")
        self.assertEqual(raw.events, [b"raw bytes", b" and more"])
        self.assertTrue(wire.take().endswith(b"answer"))
        self.world.clock.advance(2 * STRANGER_TIME)
        self.clients.tick()
        self.assertFalse(wire.dropped)
        client.full()
        client.drained()
        client.ended()
        self.assertFalse(wire.dropped)
        client.lost()
        self.assertEqual(raw.events[2:], ["full", "drained", "ended", "lost"])
        self.assertEqual(len(self.clients), 0)

    def test_bind_that_fails(self) -> None:
        """What follows a ConnectionBind that is refused is read as messages."""
        client, wire = self.connect()
        client.received(stun.build(Method.CONNECTION_BIND, Class.REQUEST, b"t" * 12) + BINDING + BINDING[:7])
        client.received(BINDING[7:])
        answers = [bytes(record) for record in wire.records]
        self.assertEqual([stun.parse(answer).method for answer in answers][1:], [Method.BINDING] * 2)

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
                client.received(stream[at:place])
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
            client.received(bytes((byte,)))
        self.assertEqual(self.relayed(), [[payload]])

    def test_junk(self) -> None:
        """What cannot be a message ends the connection at once; what came before it is still answered."""
        for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n", b"\xff" * 8, b"\0\1\0\0" + bytes(16)):
            client, wire = self.connect()
            client.received(BINDING + junk)
            self.assertEqual((len(wire.take()), wire.dropped), (32, True), junk)

    def test_too_long_for_a_stranger(self) -> None:
        """A stranger's message has a small bound; nothing of it is kept."""
        client, wire = self.connect()
        client.received(channeldata.HEADER.pack(0x4000, STRANGER_LENGTH))
        self.assertTrue(wire.dropped)

    def test_too_many_for_a_stranger(self) -> None:
        """So has the number of a stranger's messages."""
        client, wire = self.connect()
        for _ in range(STRANGER_MESSAGES):
            client.received(BINDING)
        self.assertFalse(wire.dropped)
        client.received(BINDING)
        self.assertTrue(wire.dropped)

    def test_silent(self) -> None:
        """Who has no allocation in time is dropped, whatever it says; who has one stays."""
        client, wire = self.connect(port=1)
        _, half_open = self.connect(port=2)
        _, known, _ = self.allocated(port=3)
        for _ in range(int(STRANGER_TIME)):
            self.assertFalse(wire.dropped or half_open.dropped)
            self.world.clock.advance(1)
            client.received(BINDING)
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
        client.received(channeldata.HEADER.pack(0x4000, 1000))
        for _ in range(int(MESSAGE_TIME)):
            self.assertFalse(wire.dropped)
            client.received(b"x")
            self.world.clock.advance(1)
            self.clients.tick()
        self.assertTrue(wire.dropped)

    def test_steady_client(self) -> None:
        """A client whose reads always end inside a message is not slow."""
        client, wire, _ = self.allocated()
        message = channeldata.pack(0x4000, bytes(96))
        client.received(message[:50])
        for _ in range(3 * int(MESSAGE_TIME)):
            client.received(message[50:] + message[:50])
            self.world.clock.advance(1)
            self.clients.tick()
        self.assertFalse(wire.dropped)

    def test_not_reading(self) -> None:
        """While the client does not read, relayed packets are lost and counted, and answers still go out."""
        client, wire, nonce = self.allocated()
        client.full()
        self.from_peer(b"x", b"y")
        self.assertEqual(wire.take(), b"")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "slow_client"], 2)
        client.received(self.signed(nonce, Method.REFRESH))
        self.assertEqual(stun.parse(wire.take()).method, Method.REFRESH)
        client.drained()
        self.from_peer(b"x", b"y")
        self.assertEqual(len(wire.take()), 16)

    def test_not_reading_data_indications(self) -> None:
        """Data indications are relayed packets too."""
        client, wire, _ = self.allocated()
        client.full()
        self.world.opened[self.relay][1]([b"x"], (PEER[0], 9))
        self.assertEqual(wire.take(), b"")
        client.drained()
        self.world.opened[self.relay][1]([b"x"], (PEER[0], 9))
        self.assertEqual(stun.parse(wire.take()).method, Method.DATA)

    def test_asking_without_reading(self) -> None:
        """Who asks and asks and never reads the answers is dropped."""
        client, wire, _ = self.allocated()
        client.full()
        for _ in range(MAX_WAITING_ANSWERS):
            client.received(BINDING)
        self.assertFalse(wire.dropped)
        client.received(BINDING)
        self.assertTrue(wire.dropped)

    def test_gone(self) -> None:
        """With the connection its allocation ends, and what a peer still sends goes nowhere."""
        client, wire, _ = self.allocated()
        client.lost()
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
                client.lost()
        self.assertTrue(wires[0][1].dropped)
        self.assertFalse(wires[-1][1].dropped or known.dropped or neighbour.dropped)

    def test_many_strangers(self) -> None:
        """So in all: a thousand half-open connections never hold more than the bound."""
        for number in range(2 * MAX_STRANGERS):
            client, wire = self.connect(f"198.51.{number >> 8}.{number & 255}")
            for each in list(self.clients._clients):
                if each._closing:
                    each.lost()
        self.assertLessEqual(len(self.clients), MAX_STRANGERS)
        self.assertFalse(wire.dropped or client._closing)

    def test_stop(self) -> None:
        """Stopping drops every connection and says when the last is gone."""
        pairs = [self.connect(port=number) for number in (1, 2)]
        stopped = self.clients.stop()
        self.assertTrue(all(wire.dropped for _, wire in pairs))
        self.assertNoResult(stopped)
        for client, _ in pairs:
            client.lost()
        self.successResultOf(stopped)
        self.successResultOf(self.clients.stop())
