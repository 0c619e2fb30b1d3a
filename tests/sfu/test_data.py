"""Data channels inside a room: with channels in memory, and with three clients of aiortc."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.data import (
    DELIVERY_RATE,
    EXPECTED_MESSAGES,
    EXPECTED_QUEUE,
    MAX_FLOWS,
    MAX_NAME,
    MESSAGE_COST,
    MOST_DELIVERIES,
    MOST_MESSAGES,
    PAUSE,
    PRESSURE,
    RECEIVER_MESSAGES,
    RECEIVER_QUEUE,
    RELIABLE_QUEUE,
    RELIABLE_WAIT,
    UNRELIABLE_QUEUE,
    DataFanout,
    Message,
)
from orama.sfu.data import Channel as AnyChannel
from orama.sfu.events import DataChannel, Error
from tests.sfu.calls import LoopCase, SctpCall, on_loop


@define(eq=False)
class MemoryChannel:
    """Keeps what is sent; ``stalled`` lets it wait instead."""

    id: int
    label: str
    protocol: str = ""
    ordered: bool = True
    max_retransmits: int | None = None
    max_packet_life_time: int | None = None
    longest: int = 1 << 30
    stalled: bool = False
    sent: list[Message] = field(factory=list)
    waiting: int = 0
    waited: float = 0.0
    queued: int = 0
    closed: bool = False
    aborted: bool = False
    on_message: Callable[[Message], None] = lambda data: None
    on_close: Callable[[], None] = lambda: None

    @property
    def buffered(self) -> int:
        return self.waiting

    def put(self, data: bytes, text: bool) -> None:
        if self.closed:
            raise ConnectionError("closed")
        if len(data) > self.longest:
            raise ValueError("too long")
        if self.stalled:
            self.waiting += len(data)
            self.queued += 1
        else:
            self.sent.append(data.decode() if text else data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.on_close()

    def abort(self) -> None:
        self.aborted = True
        self.close()


class MemoryTransport:
    """A client's SCTP association: ``client`` opens from the other side."""

    def __init__(self) -> None:
        self.on_channel: Callable[[AnyChannel], None] = lambda channel: None
        self.opened: list[MemoryChannel] = []
        self.refuses = False
        self.held = 0
        self._next = 0

    @property
    def buffered(self) -> int:
        return sum(channel.buffered for channel in self.opened)

    @property
    def queued(self) -> int:
        return sum(channel.queued for channel in self.opened)

    def hold(self, size: int) -> None:
        self.held += size

    def open(
        self,
        label: str,
        *,
        protocol: str = "",
        ordered: bool = True,
        max_retransmits: int | None = None,
        max_packet_life_time: int | None = None,
    ) -> MemoryChannel:
        if self.refuses:
            raise ConnectionError("no stream left")
        number = 2 * len(self.opened) + 1
        channel = MemoryChannel(number, label, protocol, ordered, max_retransmits, max_packet_life_time)
        self.opened.append(channel)
        return channel

    def client(self, label: str, **options: object) -> MemoryChannel:
        """The client opens a channel."""
        channel = MemoryChannel(self._next, label, **options)  # type: ignore[arg-type]
        self._next += 2
        self.on_channel(channel)
        return channel


class Member:
    """One peer of the room."""

    def __init__(self, fanout: DataFanout, peer_id: str) -> None:
        self.fanout = fanout
        self.peer_id = peer_id
        self.sctp = MemoryTransport()
        self.announced: list[DataChannel] = []
        self.errors: list[Error] = []
        self.may_send = True
        fanout.join(peer_id, self.sctp, self._announce, lambda: self.may_send)

    def _announce(self, event: DataChannel | Error) -> None:
        if isinstance(event, Error):
            self.errors.append(event)
        else:
            self.announced.append(event)

    def channel(self, sender: str, label: str) -> MemoryChannel:
        """Our channel to this peer that carries *sender*'s label, as announced."""
        number = next(e.id for e in reversed(self.announced) if (e.peer_id, e.label) == (sender, label))
        return next(channel for channel in self.sctp.opened if channel.id == number)

    def heard(self, sender: str, label: str) -> list[Message]:
        return self.channel(sender, label).sent


class FanoutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.fanout = DataFanout(self.clock)
        self.ann, self.bob, self.cid = (Member(self.fanout, name) for name in ("ann", "bob", "cid"))

    def test_reaches_everybody_else(self) -> None:
        """What a peer sends reaches every other peer, text as text and binary as binary, and not itself."""
        chat = self.ann.sctp.client("chat")
        for message in ("text", b"binary", "", b""):
            chat.on_message(message)
        for member in (self.bob, self.cid):
            self.assertEqual(member.heard("ann", "chat"), ["text", b"binary", "", b""])
            self.assertEqual(member.announced, [DataChannel("ann", "chat", 1)])
        self.assertEqual(self.ann.sctp.opened, [])
        counters = self.fanout.counters
        self.assertEqual((counters.messages_in, counters.messages_out), (4, 8))
        self.assertEqual((counters.bytes_in, counters.bytes_out), (10, 20))

    def test_expected(self) -> None:
        """Who is expected hears what was said on reliable channels before it joined, in order, and only since then."""
        chat = self.ann.sctp.client("chat")
        loose = self.ann.sctp.client("loose", max_retransmits=0)
        chat.on_message("before")
        self.fanout.expect("dan")
        for message in ("first", b"second"):
            chat.on_message(message)
            loose.on_message(message)
        dan = Member(self.fanout, "dan")
        chat.on_message("third")
        self.assertEqual(dan.heard("ann", "chat"), ["first", b"second", "third"])
        self.assertEqual(dan.heard("ann", "loose"), [])

    def test_expected_in_vain(self) -> None:
        """What waits for who never joins is bounded, and gone when it leaves."""
        chat = self.ann.sctp.client("chat")
        self.fanout.expect("dan")
        for _ in range(5):
            chat.on_message(bytes(EXPECTED_QUEUE // 4))
        self.assertEqual(self.fanout.counters.lost, 1)
        self.fanout.leave("dan")
        dan = Member(self.fanout, "dan")
        self.assertEqual(dan.heard("ann", "chat"), [])
        self.fanout.expect("eve")
        for _ in range(EXPECTED_MESSAGES + 1):
            chat.on_message(b"")
            self.clock.advance(0.001)
        self.assertEqual(self.fanout.counters.lost, 2)

    def test_manner(self) -> None:
        """The receivers' channels have the sender's label, protocol, ordering and reliability."""
        self.ann.sctp.client("größe", protocol="json", ordered=False, max_retransmits=3)
        self.ann.sctp.client("timed", max_packet_life_time=200)
        first, second = self.bob.sctp.opened
        self.assertEqual(
            (first.label, first.protocol, first.ordered, first.max_retransmits), ("größe", "json", False, 3)
        )
        self.assertEqual((second.ordered, second.max_packet_life_time, second.max_retransmits), (True, 200, None))

    def test_same_label_on_both_sides(self) -> None:
        """Two peers with one label have a channel each towards the other, apart from their own."""
        mine, theirs = self.ann.sctp.client("chat"), self.bob.sctp.client("chat")
        mine.on_message("from ann")
        theirs.on_message("from bob")
        self.assertEqual(self.bob.heard("ann", "chat"), ["from ann"])
        self.assertEqual(self.ann.heard("bob", "chat"), ["from bob"])
        self.assertEqual(self.cid.heard("ann", "chat"), ["from ann"])
        self.assertEqual(self.cid.heard("bob", "chat"), ["from bob"])
        self.assertEqual((mine.sent, theirs.sent), ([], []))

    def test_two_channels_of_one_label(self) -> None:
        """One sender's channels of one label share a channel where they are alike, and have two where not."""
        first, second = self.ann.sctp.client("chat"), self.ann.sctp.client("chat")
        lossy = self.ann.sctp.client("chat", ordered=False, max_retransmits=0)
        first.on_message("1")
        second.on_message("2")
        lossy.on_message("3")
        self.assertEqual([channel.sent for channel in self.bob.sctp.opened], [["1", "2"], ["3"]])
        first.close()
        self.assertFalse(self.bob.sctp.opened[0].closed)
        second.close()
        self.assertTrue(self.bob.sctp.opened[0].closed)
        self.assertFalse(self.bob.sctp.opened[1].closed)

    def test_late_comer(self) -> None:
        """Who comes later gets a channel for everything that is open."""
        chat = self.ann.sctp.client("chat")
        self.bob.sctp.client("files")
        dan = Member(self.fanout, "dan")
        self.assertEqual({(e.peer_id, e.label) for e in dan.announced}, {("ann", "chat"), ("bob", "files")})
        chat.on_message("hello dan")
        self.assertEqual(dan.heard("ann", "chat"), ["hello dan"])

    def test_reply(self) -> None:
        """What a peer sends on a channel of ours is its own word on that label, for everybody else."""
        self.ann.sctp.client("chat")
        self.bob.channel("ann", "chat").on_message("bob replies")
        self.assertEqual(self.ann.heard("bob", "chat"), ["bob replies"])
        self.assertEqual(self.cid.heard("bob", "chat"), ["bob replies"])
        self.cid.channel("ann", "chat").on_message("so does cid")
        self.assertEqual(self.bob.heard("cid", "chat"), ["so does cid"])
        self.assertEqual(self.fanout.channels(), 6)

    def test_leaving(self) -> None:
        """Who leaves takes its channels along; nothing more is sent to it, and nobody else is touched."""
        chat, files = self.ann.sctp.client("chat"), self.bob.sctp.client("files")
        mine = self.ann.channel("bob", "files")
        self.fanout.leave("ann")
        self.fanout.leave("ann")
        self.assertTrue(self.bob.channel("ann", "chat").closed)
        self.assertTrue(self.cid.channel("ann", "chat").closed)
        self.assertTrue(mine.closed)
        chat.on_message("too late")
        files.on_message("still here")
        self.assertEqual(mine.sent, [])
        self.assertEqual(self.cid.heard("bob", "files"), ["still here"])
        self.assertEqual(self.bob.heard("ann", "chat"), [])
        for name in ("bob", "cid"):
            self.fanout.leave(name)
        self.assertEqual(self.fanout.channels(), 0)

    def test_joining_again(self) -> None:
        """A peer with a new association takes the old one's place."""
        self.ann.sctp.client("chat")
        self.bob.sctp.client("chat").on_message("old")
        again = Member(self.fanout, "bob")
        self.assertEqual([(e.peer_id, e.label) for e in again.announced], [("ann", "chat")])
        self.assertTrue(self.ann.channel("bob", "chat").closed)

    def test_permission(self) -> None:
        """Without the permission messages are dropped and counted, from one moment to the next."""
        chat = self.ann.sctp.client("chat")
        self.ann.may_send = False
        chat.on_message("secret")
        self.bob.channel("ann", "chat").on_message("bob may")
        self.ann.channel("bob", "chat").on_message("ann may not reply either")
        self.assertEqual(self.bob.heard("ann", "chat"), [])
        self.assertEqual(self.ann.heard("bob", "chat"), ["bob may"])
        self.assertEqual(self.fanout.counters.forbidden, 2)
        self.ann.may_send = True
        chat.on_message("now")
        self.assertEqual(self.bob.heard("ann", "chat"), ["now"])

    def test_slow_receiver_of_unreliable(self) -> None:
        """A slow receiver of an unreliable channel loses messages; the others get all of them."""
        chat = self.ann.sctp.client("lossy", ordered=False, max_retransmits=0)
        slow = self.bob.channel("ann", "lossy")
        slow.stalled = True
        for _ in range(100):
            chat.on_message(b"x" * 60000)
        self.assertLessEqual(slow.waiting, UNRELIABLE_QUEUE + 60000)
        self.assertEqual(self.fanout.counters.lost, 100 - slow.waiting // 60000)
        self.assertEqual(len(self.cid.heard("ann", "lossy")), 100)
        slow.stalled, slow.waiting = False, 0
        chat.on_message("again")
        self.assertEqual(slow.sent, ["again"])

    def test_slow_receiver_of_reliable(self) -> None:
        """A slow receiver of a reliable channel loses the channel once the bound is passed; the others nothing."""
        chat = self.ann.sctp.client("files")
        slow = self.bob.channel("ann", "files")
        slow.stalled = True
        count = RELIABLE_QUEUE // 100_000 + 5
        for _ in range(count):
            chat.on_message(b"x" * 100_000)
        self.assertTrue(slow.aborted)
        self.assertEqual([(error.code, error.fatal) for error in self.bob.errors], [("rate_limited", False)])
        self.assertEqual((self.ann.errors, self.cid.errors), ([], []))
        self.assertLessEqual(slow.waiting, RELIABLE_QUEUE + 100_000)
        self.assertEqual(self.fanout.counters.overflowed, 1)
        self.assertEqual(len(self.cid.heard("ann", "files")), count)
        self.ann.sctp.client("files").on_message("anew")
        self.assertEqual(self.bob.heard("ann", "files"), ["anew"])

    def test_one_receiver_many_channels(self) -> None:
        """What waits for one receiver is bounded over all its channels together."""
        chats = [self.ann.sctp.client(f"files{i}") for i in range(8)]
        for channel in self.bob.sctp.opened:
            channel.stalled = True
        for _ in range(RELIABLE_QUEUE // 200_000 - 1):
            for chat in chats:
                chat.on_message(b"x" * 200_000)
        self.assertLessEqual(self.bob.sctp.buffered, RECEIVER_QUEUE + 8 * 200_000)
        self.assertGreater(self.fanout.counters.overflowed, 0)

    def test_tiny_messages(self) -> None:
        """Messages of a byte are bounded by their number: each takes far more than its byte."""
        files, lossy = self.ann.sctp.client("files"), self.ann.sctp.client("lossy", ordered=False, max_retransmits=0)
        slow = self.bob.channel("ann", "files"), self.bob.channel("ann", "lossy")
        slow[1].stalled = True
        lossy.on_message(b"x")
        slow[1].queued = RECEIVER_MESSAGES + 1
        lossy.on_message(b"x")
        self.assertEqual((slow[1].waiting, self.fanout.counters.lost), (1, 1))
        slow[0].waiting = 1
        files.on_message(b"x")
        self.assertTrue(slow[0].aborted)

    def test_too_long_for_a_receiver(self) -> None:
        """A message that one receiver does not take is counted, and reaches the others."""
        chat = self.ann.sctp.client("chat")
        self.bob.channel("ann", "chat").longest = 10
        chat.on_message("x" * 11)
        self.assertEqual(self.bob.heard("ann", "chat"), [])
        self.assertEqual(self.cid.heard("ann", "chat"), ["x" * 11])
        self.assertEqual(self.fanout.counters.oversized, 1)

    def test_receiver_is_gone(self) -> None:
        """A channel that closed under us, or could not be opened, costs its receiver alone."""
        chat = self.ann.sctp.client("chat")
        self.bob.channel("ann", "chat").closed = True
        chat.on_message("1")
        self.bob.channel("ann", "chat").on_close()
        chat.on_message("2")
        self.assertEqual(self.cid.heard("ann", "chat"), ["1", "2"])
        self.assertEqual(self.fanout.counters.lost, 1)
        self.cid.sctp.refuses = True
        self.ann.sctp.client("more").on_message("3")
        self.assertEqual(self.bob.heard("ann", "more"), ["3"])
        self.assertEqual(self.fanout.counters.refused, 1)

    def test_limits(self) -> None:
        """A peer has a bounded number of kinds of channel, with names of bounded length; more are closed."""
        channels = [self.ann.sctp.client(f"{i}") for i in range(MAX_FLOWS + 3)]
        self.assertEqual([channel.closed for channel in channels], [False] * MAX_FLOWS + [True] * 3)
        long = self.bob.sctp.client("ö" * (MAX_NAME // 2 + 1))
        fits = self.bob.sctp.client("ö" * (MAX_NAME // 2))
        self.assertEqual((long.closed, fits.closed), (True, False))
        self.assertEqual(self.fanout.counters.refused, 4)
        channels[0].close()
        self.assertFalse(self.ann.sctp.client("one more").closed)


class PaceTests(SynchronousTestCase):
    """Who sends more than it may, or than anybody takes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.fanout = DataFanout(self.clock)
        self.ann, self.bob, self.cid = (Member(self.fanout, name) for name in ("ann", "bob", "cid"))

    def advance(self, seconds: float) -> None:
        self.clock.pump([PAUSE] * round(seconds / PAUSE))

    def test_many_tiny_messages(self) -> None:
        """Beyond a sender's rate reliable messages wait, out of its window, and arrive in order; others are lost."""
        chat, lossy = self.ann.sctp.client("chat"), self.ann.sctp.client("lossy", max_retransmits=0)
        for i in range(MOST_MESSAGES + 100):
            chat.on_message(str(i))
            self.advance(PAUSE * (i % 20 == 0))
        sent = self.bob.heard("ann", "chat")
        waiting = MOST_MESSAGES + 100 - len(sent)
        self.assertEqual(len(self.cid.heard("ann", "chat")), len(sent))
        for _ in range(5 * MOST_MESSAGES):
            lossy.on_message("x")
        counters = self.fanout.counters
        self.assertGreater(counters.limited, 4 * MOST_MESSAGES)
        for i in range(100):
            chat.on_message(str(MOST_MESSAGES + 100 + i))
        self.assertGreater(counters.delayed, 90)
        self.assertGreater(self.ann.sctp.held, 90 * MESSAGE_COST + waiting)
        self.advance(1.0)
        self.assertEqual(sent, [str(i) for i in range(MOST_MESSAGES + 200)])
        self.assertEqual((self.ann.sctp.held, self.clock.getDelayedCalls()), (0, []))

    def test_the_quiet_are_heard(self) -> None:
        """While one sender floods the room, another's message waits for one turn among senders, not for the flood."""
        flood, quiet = self.ann.sctp.client("flood"), self.bob.sctp.client("quiet")
        for _ in range(MOST_MESSAGES):
            flood.on_message("x")
        quiet.on_message("now")
        self.advance(3 * PAUSE)
        self.assertEqual(self.cid.heard("bob", "quiet"), ["now"])
        self.assertLess(len(self.cid.heard("ann", "flood")), MOST_MESSAGES)

    def test_deliveries_at_once(self) -> None:
        """In a large room no turn of the loop has more deliveries than the room's allowance."""
        members = [Member(self.fanout, f"{i}") for i in range(100)]
        chat = self.ann.sctp.client("chat")
        for _ in range(50):
            chat.on_message("x")
        before = self.fanout.counters.messages_out
        self.assertLess(before, MOST_DELIVERIES + 102)
        while self.clock.getDelayedCalls():
            self.clock.advance(PAUSE)
            now = self.fanout.counters.messages_out
            self.assertLess(now - before, DELIVERY_RATE * PAUSE + 2 * 102)
            before = now
        self.assertEqual(len(members[7].heard("ann", "chat")), 50)

    def test_the_pace_of_the_quickest(self) -> None:
        """While every receiver has much waiting the sender's window shuts; when one has less, all goes on, and nothing
        is lost."""
        files = self.ann.sctp.client("files")
        slow, slower = self.bob.channel("ann", "files"), self.cid.channel("ann", "files")
        slow.stalled = slower.stalled = True
        for i in range(20):
            files.on_message(bytes([i]) + bytes(99_999))
        self.assertLessEqual(slow.waiting, PRESSURE + 100_000)
        self.assertEqual(self.ann.sctp.held, (20 - slow.queued) * (100_000 + MESSAGE_COST))
        self.advance(1.0)
        held = self.ann.sctp.held
        self.assertGreater(held, 1_000_000)
        slow.waiting, slow.stalled = 0, False
        self.advance(1.0)
        self.assertEqual(self.ann.sctp.held, 0)
        self.assertEqual([message[0] for message in slow.sent], list(range(slow.queued, 20)))
        self.assertEqual(slower.waiting, 2_000_000)

    def test_nobody_moves(self) -> None:
        """A sender whose receivers take nothing at all waits for as long as they are given, and no longer."""
        files = self.ann.sctp.client("files")
        channels = self.bob.channel("ann", "files"), self.cid.channel("ann", "files")
        for channel in channels:
            channel.stalled = True
        for _ in range(10):
            files.on_message(bytes(100_000))
        self.advance(1.0)
        self.assertGreater(self.ann.sctp.held, 0)
        for channel in channels:
            channel.waited = RELIABLE_WAIT + 1
        self.advance(1.0)
        self.assertTrue(all(channel.aborted for channel in channels))
        self.assertEqual((self.ann.sctp.held, len(self.bob.errors), len(self.cid.errors)), (0, 1, 1))

    def test_closed_with_much_to_say(self) -> None:
        """What waits when its sender closes the channel is passed on before the receivers' channels close."""
        chat = self.ann.sctp.client("chat")
        channel = self.bob.channel("ann", "chat")
        for i in range(MOST_DELIVERIES):
            chat.on_message(str(i))
        self.assertLess(len(channel.sent), MOST_DELIVERIES)
        chat.close()
        self.assertFalse(channel.closed)
        self.advance(1.0)
        self.assertTrue(channel.closed)
        self.assertEqual(channel.sent, [str(i) for i in range(MOST_DELIVERIES)])

    def test_leaving_with_much_to_say(self) -> None:
        """Who leaves takes what waits along, and no timer stays; so does a receiver."""
        chat = self.ann.sctp.client("chat")
        for i in range(MOST_DELIVERIES):
            chat.on_message(str(i))
        self.fanout.leave("bob")
        self.assertGreater(self.ann.sctp.held, 0)
        self.fanout.leave("ann")
        self.assertEqual((self.clock.getDelayedCalls(), self.ann.sctp.held), ([], 0))
        self.assertTrue(self.cid.channel("ann", "chat").closed)


class RealClients(LoopCase):
    """Three aiortc clients in one room."""

    @on_loop
    async def test_room(self) -> None:
        """Text, binary and the longest message pass from one client to the others, reliable and not; all ends clean."""
        fanout = DataFanout(reactor)  # type: ignore[arg-type]
        calls = {name: SctpCall() for name in ("ann", "bob", "cid")}
        announced: dict[str, list[DataChannel]] = {name: [] for name in calls}
        for name, call in calls.items():
            await call.connect()
            fanout.join(name, call.sctp, announced[name].append)  # type: ignore[arg-type]
        ann, bob, cid = calls.values()
        chat = ann.client_open("chat")
        lossy = ann.client_open("lossy", ordered=False, maxRetransmits=0)
        await ann.until(lambda: chat.readyState == lossy.readyState == "open")
        messages: list[tuple[str, str | bytes]] = [
            ("chat", "hello"),
            ("chat", b"\x00\x01"),
            # Before the long one: behind it, on a machine that is busy, it may grow too old to leave.
            ("lossy", "lossy"),
            ("chat", b"z" * 262144),
        ]
        for label, data in messages:
            ann.client_channels[label].send(data)
        for call in (bob, cid):
            await call.until(lambda call=call: len(call.client_received) == 4)
            self.assertEqual([m for m in call.client_received if m[0] == "chat"], messages[:2] + messages[3:])
            self.assertIn(messages[2], call.client_received)
            self.assertEqual(call.client_channels["lossy"].maxRetransmits, 0)
            self.assertFalse(call.client_channels["lossy"].ordered)
        ids = {(e.peer_id, e.label): e.id for e in announced["bob"]}
        self.assertEqual(ids[("ann", "chat")], bob.client_channels["chat"].id)

        bob.client_channels["chat"].send("reply")
        await ann.until(lambda: ("chat", "reply") in ann.client_received)
        await cid.until(lambda: ("chat", "reply") in cid.client_received)

        fanout.leave("ann")
        await bob.until(lambda: set(bob.client_lost) == {"chat", "lossy"})
        for name, call in calls.items():
            fanout.leave(name)
            await call.close()
        self.assertEqual(fanout.channels(), 0)
        await self.assert_nothing_left()

    @on_loop
    async def test_stalled_client(self) -> None:
        """A client that takes nothing delays nobody, and keeps no more than the bound."""
        fanout = DataFanout(reactor)  # type: ignore[arg-type]
        calls = {name: SctpCall() for name in ("ann", "bob", "cid")}
        for name, call in calls.items():
            await call.connect()
            fanout.join(name, call.sctp, lambda event: None)  # type: ignore[arg-type]
        ann, bob, cid = calls.values()
        files = ann.client_open("files")
        await cid.until(lambda: "files" in cid.client_channels)
        await bob.until(lambda: "files" in bob.client_channels)
        bob.wire.lose = lambda datagram, up: True
        count = (RELIABLE_QUEUE >> 18) + 6
        for i in range(count):
            files.send(bytes(262144))
            await cid.until(lambda i=i: len(cid.client_received) == i + 1)
        self.assertEqual(fanout.counters.overflowed, 1)
        self.assertEqual(bob.sctp.buffered, 0)
        for call in calls.values():
            await call.close()
        await self.assert_nothing_left()
