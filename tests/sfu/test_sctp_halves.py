"""The two halves of an SCTP association against each other over a link in virtual time, and each by itself.

No sockets and no sleeping: a link with delay, loss, order and rate of its own carries real packets' chunks.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu._sctp_inbound import MAX_CHUNKS, MAX_STREAMS, WINDOW, Inbound, Incoming
from orama.sfu._sctp_outbound import (
    FIRST_WINDOW,
    MAX_TIMEOUT,
    MIN_TIMEOUT,
    Outbound,
)
from orama.wire import sctp
from orama.wire.sctp import DATA, FIRST, FORWARD_TSN, LAST, MAX_FRAGMENT, SACK, UNORDERED, Fragment, SctpError

ROOM = sctp.MAX_CHUNKS
BINARY = 53


@define(eq=False)
class Link:
    """One direction: *delay* seconds, *rate* bits a second with a queue of *depth* seconds, *loss* and *jitter*."""

    chance: random.Random
    delay: float = 0.02
    rate: float = 1e9
    depth: float = 0.5
    loss: float = 0.0
    jitter: float = 0.0
    #: Packets that are lost whatever the chance, by number.
    drops: set[int] = field(factory=set)
    free: float = 0.0
    count: int = 0

    def arrival(self, size: int, now: float) -> float | None:
        """When a packet of *size* bytes comes out; ``None`` when it does not."""
        start = max(now, self.free)
        self.count += 1
        if start - now > self.depth or self.chance.random() < self.loss or self.count - 1 in self.drops:
            return None
        self.free = start + size * 8 / self.rate
        return self.free + self.delay + self.chance.random() * self.jitter


class Association:
    """One sender, one receiver, a link each way, and the time."""

    def __init__(self, seed: int, tsn: int = 2**32 - 50, **options: float) -> None:
        self.chance = random.Random(seed)
        self.down = Link(self.chance, **options)
        self.up = Link(self.chance, delay=self.down.delay, loss=self.down.loss, jitter=self.down.jitter)
        self.now = 1000.0
        self.out = Outbound(tsn)
        self.out.partial = True
        self.out.allow(WINDOW)
        self.into = Inbound(tsn - 1)
        self.received: list[tuple[float, Incoming]] = []
        self.packets = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.most_flight = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), what))

    def send(self, stream: int, data: bytes, **options: object) -> None:
        self.out.queue(stream, BINARY, data, self.now, **options)  # type: ignore[arg-type]

    def flush(self) -> None:
        while chunks := self.out.take(ROOM, self.now):
            assert len(chunks) <= ROOM
            self.packets += 1
            arrival = self.down.arrival(len(chunks) + 60, self.now)
            if arrival is not None:
                self.at(arrival, lambda chunks=chunks: self.arrive(chunks))  # type: ignore[misc]
        self.most_flight = max(self.most_flight, self.out.flight)

    def arrive(self, chunks: bytes) -> None:
        packet = sctp.packet(1, 2, 3, chunks)
        for kind, flags, start, end in sctp.split(packet)[1]:
            if kind == DATA:
                messages = self.into.data(sctp.fragment(packet, flags, start, end))
            else:
                assert kind == FORWARD_TSN
                messages = self.into.forward(sctp.forward(packet, start, end))
            self.received += [(self.now, message) for message in messages]
        assert self.into.kept() <= WINDOW
        sack = sctp.packet(2, 1, 4, self.into.sack())
        arrival = self.up.arrival(len(sack), self.now)
        if arrival is not None:
            self.at(arrival, lambda: self.acknowledged(sack))

    def acknowledged(self, packet: bytes) -> None:
        ((kind, _, start, end),) = sctp.split(packet)[1]
        assert kind == SACK
        self.out.acknowledge(sctp.acknowledgement(packet, start, end), self.now)

    def run(self, seconds: float = 600.0) -> None:
        """Until nothing happens any more, or so much time has passed."""
        end = self.now + seconds
        self.flush()
        while True:
            deadline = self.out.deadline
            event = self._events[0][0] if self._events else None
            times = [time for time in (deadline, event) if time is not None]
            if not times or min(times) > end:
                self.now = end if times else self.now
                return
            self.now = max(self.now, min(times))
            if event is not None and event <= self.now:
                heapq.heappop(self._events)[2]()
            elif deadline is not None:
                self.out.expire(self.now)
            self.flush()

    def heard(self, stream: int) -> list[bytes]:
        return [message.data for _, message in self.received if message.stream == stream]


def numbered(count: int, size: int, chance: random.Random) -> list[bytes]:
    return [i.to_bytes(4, "big") + bytes(chance.randrange(size)) for i in range(count)]


class TogetherTests(SynchronousTestCase):
    """What a sender and a receiver do over a link."""

    def test_everything_arrives_in_order(self) -> None:
        """What is reliable arrives once, whole and, where ordered, in order, at any loss and order of the link."""
        for seed in range(40):
            chance = random.Random(seed)
            call = Association(seed, loss=chance.choice((0, 0.02, 0.2)), jitter=chance.choice((0, 0.05)))
            streams = {stream: numbered(40, chance.choice((10, 3000, 20000)), chance) for stream in (1, 3, 5)}
            for messages in zip(*streams.values(), strict=True):
                for stream, data in zip(streams, messages, strict=True):
                    call.send(stream, data, ordered=stream != 5)
            call.run()
            for stream, messages_of_stream in streams.items():
                heard = call.heard(stream)
                self.assertEqual(heard if stream != 5 else sorted(heard), messages_of_stream, (seed, stream))
            self.assertEqual((call.out.flight, call.out.waiting, call.out.messages), (0, 0, 0), seed)
            self.assertEqual((call.into.kept(), call.into.window), (0, WINDOW), seed)
            self.assertIsNone(call.out.deadline, seed)

    def test_unreliable(self) -> None:
        """What may be lost is lost whole or not at all, stays in order where it shall, and nothing waits for it."""
        for seed in range(40):
            chance = random.Random(1000 + seed)
            call = Association(seed, loss=0.1, jitter=chance.choice((0, 0.05)))
            kinds: dict[int, dict[str, object]] = {
                1: {"max_retransmits": 0},
                3: {"max_retransmits": 1, "ordered": False},
                5: {"lifetime": 0.3},
                7: {},
            }
            sent = {stream: numbered(60, chance.choice((10, 3000)), chance) for stream in kinds}
            for i in range(60):
                for stream, options in kinds.items():
                    call.send(stream, sent[stream][i], **options)
                call.run(0.05)
            call.run()
            for stream in kinds:
                heard = call.heard(stream)
                self.assertEqual(len(set(heard)), len(heard), seed)
                self.assertLessEqual(set(heard), set(sent[stream]), seed)
                if stream != 3:
                    self.assertEqual(heard, sorted(heard), (seed, stream))
            self.assertEqual(call.heard(7), sent[7], seed)
            self.assertGreater(len(call.heard(1)), 15)
            self.assertEqual((call.out.flight, call.into.kept()), (0, 0), seed)
            self.assertIsNone(call.out.deadline, seed)
        self.assertGreater(call.out.abandoned, 0)

    def test_fills_the_link(self) -> None:
        """A long transfer takes three quarters of a link of 20 Mbit/s and 50 ms, and keeps the queue within bounds."""
        call = Association(3, rate=20e6, delay=0.025, depth=0.1)
        for _ in range(40):
            call.send(1, bytes(262144))
        start = call.now
        call.run()
        self.assertEqual(len(call.heard(1)), 40)
        rate = 40 * 262144 * 8 / (call.received[-1][0] - start)
        self.assertGreater(rate, 15e6)

    def test_one_loss_costs_no_timeout(self) -> None:
        """A single loss in a flow is repaired by three reports, within two round trips."""
        call = Association(1, delay=0.05)
        call.down.drops = {5}
        for _ in range(30):
            call.send(1, bytes(MAX_FRAGMENT))
        start = call.now
        call.run()
        self.assertEqual(len(call.heard(1)), 30)
        self.assertLess(call.received[-1][0] - start, 0.5)
        self.assertEqual(call.packets, 31)

    def test_streams_take_turns(self) -> None:
        """A small message waits for the message that is leaving, and for no other, however much waits elsewhere."""
        call = Association(5, rate=10e6)
        for _ in range(20):
            call.send(1, bytes(262144))
        call.run(1.0)
        asked = call.now
        call.send(3, b"small")
        before = len(call.heard(1))
        call.run()
        when = next(now for now, message in call.received if message.stream == 3)
        between = [now for now, message in call.received if message.stream == 1 and asked < now < when]
        self.assertLessEqual(len(between), 2 + WINDOW // 262144)
        self.assertLess(when - asked, 3 * 262144 * 8 / 10e6 + 0.5)
        self.assertEqual(len(call.heard(1)), 20)
        self.assertGreater(20 - before, 5)

    def test_shares(self) -> None:
        """Two streams that both have enough get the same bytes, whatever the size of their messages."""
        call = Association(6, rate=10e6)
        for _ in range(10):
            call.send(1, bytes(100_000))
        for _ in range(100):
            call.send(3, bytes(10_000))
        call.run(0.8)
        big, small = (sum(map(len, call.heard(stream))) for stream in (1, 3))
        self.assertGreater(min(big, small), 300_000)
        self.assertLess(abs(big - small), 110_000)

    def test_the_clients_window(self) -> None:
        """No more is on its way than the client says it takes; shut, one chunk asks; open, everything goes on."""
        call = Association(7)
        call.into.hold(WINDOW - 20_000)
        for _ in range(10):
            call.send(1, bytes(30_000))
        call.out.allow(20_000)
        call.run(5.0)
        self.assertLessEqual(call.most_flight, 20_000 + MAX_FRAGMENT)
        call.into.hold(20_000)
        call.run(5.0)
        self.assertLessEqual(call.out.flight, MAX_FRAGMENT)
        call.into.hold(-WINDOW)
        call.acknowledged(sctp.packet(2, 1, 4, call.into.sack()))
        call.run()
        self.assertEqual(len(call.heard(1)), 10)


class OutboundTests(SynchronousTestCase):
    """The sending half by itself."""

    def setUp(self) -> None:
        self.out = Outbound(100)
        self.out.allow(WINDOW)
        self.out.partial = True

    def chunks(self, now: float = 0.0) -> list[Fragment]:
        """The DATA chunks of the next packet."""
        taken = self.out.take(ROOM, now)
        packet = sctp.packet(1, 2, 3, taken)
        chunks = sctp.split(packet)[1] if taken else []
        return [sctp.fragment(packet, flags, start, end) for kind, flags, start, end in chunks if kind == DATA]

    def acknowledge(self, cumulative: int, *gaps: tuple[int, int], now: float = 0.1, window: int = WINDOW) -> None:
        self.out.acknowledge(sctp.Acknowledgement(cumulative, window, gaps), now)

    def test_small_messages_share_a_packet(self) -> None:
        """Many small messages leave in few packets."""
        for i in range(30):
            self.out.queue(1, BINARY, bytes([i]), 0.0)
        self.assertEqual([chunk.data[0] for chunk in self.chunks()], list(range(30)))
        self.assertEqual(self.chunks(), [])

    def test_first_window(self) -> None:
        """At first ten packets are on their way, then as many more as were acknowledged."""
        self.out.queue(1, BINARY, bytes(100 * MAX_FRAGMENT), 0.0)
        count = 0
        while self.chunks():
            count += 1
        self.assertEqual(count, FIRST_WINDOW // MAX_FRAGMENT)
        self.acknowledge(101)
        count = 0
        while self.chunks():
            count += 1
        self.assertEqual(count, 4)

    def test_old_messages_do_not_leave(self) -> None:
        """A message kept from leaving for its patience or its lifetime never does, and leaves no hole in the order."""
        self.out.queue(5, BINARY, bytes(FIRST_WINDOW), 1.0)
        while self.chunks(1.0):
            pass
        self.out.queue(1, BINARY, b"old", 1.01, patience=0.1, max_retransmits=0)
        self.out.queue(3, BINARY, b"old too", 1.01, lifetime=0.1)
        self.assertEqual(self.chunks(1.02), [])
        self.out.queue(1, BINARY, b"new", 1.15, patience=0.1, max_retransmits=0)
        self.acknowledge(100 + 9, now=1.2)
        chunks = self.chunks(1.2)
        self.assertEqual([(chunk.data, chunk.sequence) for chunk in chunks], [(b"new", 0)])
        self.assertEqual((self.out.stale, self.out.messages, self.out.waiting), (2, 0, 0))

    def test_a_busy_machine(self) -> None:
        """What nothing kept from leaving leaves, also when its time has passed before anybody came to send it."""
        self.out.queue(1, BINARY, b"late", 1.0, patience=0.1, max_retransmits=0)
        self.assertEqual([chunk.data for chunk in self.chunks(2.0)], [b"late"])
        self.assertEqual(self.out.stale, 0)

    def test_wrong_acknowledgements(self) -> None:
        """A SACK of what was not sent, or with gap blocks that overlap, are empty or reach too far, is an error."""
        self.out.queue(1, BINARY, bytes(3 * MAX_FRAGMENT), 0.0)
        for _ in range(3):
            self.chunks()
        for cumulative, gaps in (
            (103, ()),
            (99, ((1, 4),)),
            (99, ((2, 1),)),
            (99, ((0, 1),)),
            (99, ((1, 2), (2, 3))),
            (98, ((1, 1), (1, 1))),
        ):
            with self.assertRaises(SctpError):
                self.acknowledge(cumulative, *gaps)
        self.acknowledge(98)  # an old one
        self.assertEqual(self.out.flight, 3 * MAX_FRAGMENT)
        self.acknowledge(102)
        self.assertEqual((self.out.flight, self.out.deadline), (0, None))

    def test_abandoned_message_has_an_end(self) -> None:
        """A message given up in the middle is skipped with a number for the rest that never left (RFC 3758, 3.5)."""
        self.out.queue(1, BINARY, bytes(20 * MAX_FRAGMENT), 0.0, max_retransmits=0, patience=0.1)
        self.out.queue(1, BINARY, b"next", 0.0)
        while self.chunks():
            pass
        self.acknowledge(99, (2, 2))
        self.acknowledge(99, (2, 3))
        self.acknowledge(99, (2, 4))
        packet = sctp.packet(1, 2, 3, self.out.take(ROOM, 0.2))
        (kind, _, start, end), *rest = sctp.split(packet)[1]
        forward = sctp.forward(packet, start, end)
        self.assertEqual((kind, forward), (FORWARD_TSN, sctp.Forward(100 + 10, ((1, 0),))))
        (following,) = [sctp.fragment(packet, *chunk[1:]) for chunk in rest]
        self.assertEqual((following.tsn, following.sequence, following.data), (111, 1, b"next"))
        self.assertEqual((self.out.abandoned, self.out.waiting), (1, 0))

    def test_a_client_without_forward_tsn(self) -> None:
        """For a client that cannot be told of a gap nothing is given up on the way."""
        self.out.partial = False
        self.out.queue(1, BINARY, b"x", 0.0, max_retransmits=0, patience=0.1)
        self.assertEqual(len(self.chunks()), 1)
        self.out.expire(1.0)
        self.assertEqual(len(self.chunks(1.0)), 1)

    def test_timeouts(self) -> None:
        """Each timeout doubles the next, within bounds, and says since when nothing comes; an answer ends that."""
        self.out.queue(1, BINARY, b"x", 0.0)
        self.chunks()
        now = 0.0
        for _ in range(8):
            assert self.out.deadline is not None
            now = self.out.deadline
            self.out.expire(now)
            self.assertEqual(len(self.chunks(now)), 1)
        self.assertEqual((self.out.timeout, self.out.silent_since), (MAX_TIMEOUT, 1.0))
        self.acknowledge(100, now=now)
        self.assertEqual((self.out.silent_since, self.out.deadline), (None, None))
        self.out.queue(1, BINARY, b"y", now)
        self.chunks(now)
        self.acknowledge(101, now=now + 0.01)
        self.assertEqual(self.out.timeout, MIN_TIMEOUT)

    def test_discard(self) -> None:
        """What waits on one stream can be forgotten, with what is half on its way; other streams and openings stay."""
        self.out.queue(1, 50, b"open", 0.0)
        self.out.queue(1, BINARY, bytes(30 * MAX_FRAGMENT), 0.0)
        self.out.queue(1, BINARY, b"later", 0.0)
        self.out.queue(3, BINARY, b"other", 0.0)
        for _ in range(5):
            self.chunks()
        self.assertTrue(self.out.busy(1))
        self.out.discard(1, 50)
        self.assertEqual((self.out.buffered(1), self.out.busy(1)), (0, False))
        self.assertEqual(self.out.buffered(3), 0)
        fresh = Outbound(0)
        fresh.queue(1, 50, b"open", 0.0)
        fresh.queue(1, BINARY, b"gone", 0.0)
        fresh.discard(1, 50)
        self.assertEqual((fresh.messages, fresh.waiting, fresh.busy(1)), (1, 4, True))

    def test_after_a_pause(self) -> None:
        """After a pause longer than a timeout the window is what nobody has tested (RFC 9260, 7.2.1)."""
        self.out.queue(1, BINARY, bytes(400 * MAX_FRAGMENT), 0.0)
        last = 99
        while self.out.waiting:
            while chunks := self.chunks():
                last = chunks[-1].tsn
            self.acknowledge(last)
        self.assertEqual(self.out.flight, 0)
        grown = self.out.window
        self.assertGreater(grown, 2 * FIRST_WINDOW)
        self.out.queue(1, BINARY, b"x", 60.0)
        self.chunks(60.0)
        self.assertEqual(self.out.window, grown / 2)

    def test_a_loss_leaves_at_once(self) -> None:
        """What is found lost is sent again whatever is on its way, once; a later loss in the same window waits."""
        self.out.queue(1, BINARY, bytes(10 * MAX_FRAGMENT), 0.0)
        while self.chunks():
            pass
        for end in (2, 3, 4):
            self.assertEqual(self.chunks(), [])
            self.acknowledge(99, (2, end))
        self.assertGreater(self.out.flight, self.out.window)
        self.assertEqual([chunk.tsn for chunk in self.chunks()], [100])
        self.assertEqual(self.chunks(), [])

    def test_after_a_timeout(self) -> None:
        """A timeout sends one packet, and what that brings back doubles it (RFC 9260, 7.2.3)."""
        self.out.queue(1, BINARY, bytes(10 * MAX_FRAGMENT), 0.0)
        while self.chunks():
            pass
        self.out.expire(1.0)
        self.assertEqual([chunk.tsn for chunk in self.chunks(1.0)], [100])
        self.assertEqual(self.chunks(1.0), [])
        self.acknowledge(100, now=1.1)
        self.assertEqual([chunk.tsn for _ in range(3) for chunk in self.chunks(1.1)], [101, 102])


class InboundTests(SynchronousTestCase):
    """The receiving half by itself."""

    def setUp(self) -> None:
        self.into = Inbound(99)

    def data(
        self, tsn: int, data: bytes = b"x", flags: int = FIRST | LAST, stream: int = 0, sequence: int = 0
    ) -> list[bytes]:
        chunk = Fragment(tsn, stream, sequence, BINARY, flags, data)
        return [message.data for message in self.into.data(chunk)]

    def sack(self) -> sctp.Acknowledgement:
        chunk = sctp.packet(0, 0, 0, self.into.sack())
        ((_, _, start, end),) = sctp.split(chunk)[1]
        return sctp.acknowledgement(chunk, start, end)

    def test_fragments_in_any_order(self) -> None:
        """A message is whole when the last of its fragments has come, whichever that is, and nothing of it is kept."""
        for order in itertools.permutations(range(5)):
            self.into = Inbound(99)
            whole: list[bytes] = []
            for i in order:
                flags = (FIRST if i == 0 else 0) | (LAST if i == 4 else 0)
                whole += self.data(100 + i, bytes([i]), flags)
            self.assertEqual(whole, [bytes(range(5))], order)
            self.assertEqual((self.into.last, self.into.kept(), self.sack().gaps), (104, 0, ()))

    def test_a_hole_holds_up_its_own_stream_alone(self) -> None:
        """With a TSN missing, other streams and what is unordered are delivered; its own stream waits."""
        self.assertEqual(self.data(101, b"b", sequence=1), [])
        self.assertEqual(self.data(102, b"other", stream=2), [b"other"])
        self.assertEqual(self.data(103, b"loose", FIRST | LAST | UNORDERED), [b"loose"])
        self.assertEqual(self.sack(), sctp.Acknowledgement(99, WINDOW - 1, ((2, 4),)))
        self.assertEqual(self.data(100, b"a"), [b"a", b"b"])
        self.assertEqual(self.sack(), sctp.Acknowledgement(103, WINDOW, ()))

    def test_duplicates(self) -> None:
        """What comes twice is delivered once, and told."""
        self.assertEqual(self.data(100), [b"x"])
        self.assertEqual(self.data(102, stream=1), [b"x"])
        self.assertEqual((self.data(100), self.data(102, stream=1)), ([], []))
        self.assertTrue(self.into.broken)
        chunk = self.into.sack()
        self.assertEqual(chunk[-8:], (100).to_bytes(4, "big") + (102).to_bytes(4, "big"))

    def test_skipped(self) -> None:
        """After FORWARD TSN what waited is delivered, in order, and pieces of what was given up are dropped."""
        self.data(101, b"half", FIRST, sequence=1)
        self.assertEqual(self.data(104, b"third", sequence=3), [])
        self.assertEqual(self.data(103, b"second", sequence=2), [])
        messages = self.into.forward(sctp.Forward(102, ((0, 1),)))
        self.assertEqual([message.data for message in messages], [b"second", b"third"])
        self.assertEqual((self.into.last, self.into.kept()), (104, 0))
        self.assertEqual(self.data(105, b"fourth", sequence=4), [b"fourth"])
        self.assertEqual(self.into.forward(sctp.Forward(101, ((0, 1),))), [])

    def test_message_across_the_point(self) -> None:
        """A message that has begun before the point of a FORWARD TSN and goes on behind it is kept (RFC 3758, 3.6)."""
        self.data(101, b"a", FIRST)
        self.assertEqual(self.into.forward(sctp.Forward(101, ())), [])
        self.assertEqual(self.data(102, b"b", LAST), [b"ab"])

    def test_window(self) -> None:
        """What is kept and what is held leave the window; what does not fit is dropped, and a message that never can is
        an error."""
        self.data(101, bytes(1000), FIRST)
        self.into.hold(500)
        self.assertEqual(self.sack().window, WINDOW - 1500)
        self.into.hold(WINDOW)
        self.assertEqual((self.sack().window, self.data(103, b"x"), self.into.dropped), (0, [], 1))
        self.assertEqual(self.data(100, b"x", FIRST), [])
        self.into.hold(-WINDOW - 500)
        self.into = Inbound(99)
        for i in range(WINDOW // 1000):
            self.data(100 + i, bytes(1000), 0 if i else FIRST)
        with self.assertRaises(SctpError):
            self.data(100 + WINDOW // 1000, bytes(1000), 0)

    def test_order_that_jumps(self) -> None:
        """Messages whose turn never comes are within the window too, and bounded in number."""
        with self.assertRaises(SctpError):
            for i in range(MAX_CHUNKS + 1):
                self.data(100 + i, b"x", sequence=5 + i)
        self.assertEqual(self.into.kept(), MAX_CHUNKS)

    def test_reset(self) -> None:
        """A stream that is reset counts from zero, and keeps nothing."""
        self.data(100, b"a")
        self.data(101, b"waits", sequence=7)
        self.into.reset(0)
        self.assertEqual(self.into.kept(), 0)
        self.assertEqual(self.data(102, b"anew"), [b"anew"])

    def test_no_such_stream(self) -> None:
        """A stream that was not negotiated is an error."""
        with self.assertRaises(SctpError):
            self.data(100, stream=MAX_STREAMS)
        with self.assertRaises(SctpError):
            self.into.forward(sctp.Forward(100, ((MAX_STREAMS, 0),)))
