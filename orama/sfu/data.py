"""Data channels inside a room: what one peer sends on a label reaches every other peer (contract, section 4).

WebRTC data channels (RFC 8831, RFC 8832) end at the SFU. For each (sender, label) it opens one channel
to every other peer, with the sender's ordering, reliability and subprotocol, and announces it. A receiver that does
not keep up loses messages (unreliable) or, at last, its channel (reliable), and nobody else notices. A sender that is
faster than its allowance, or than every one of its receivers, finds its window shut (RFC 9260, 6.2): what is reliable
waits here, bounded by that window. It neither stores nor looks into messages, and knows no signalling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from orama.sfu.allowance import Allowance
from orama.sfu.events import DataChannel, Error

Message: TypeAlias = str | bytes

#: Messages a second that one sender has passed on, and at once. What is more waits (reliable) or is lost.
MESSAGE_RATE, MOST_MESSAGES = 2000, 2000
#: Deliveries a second in one room, and at once: each is 7 µs where many share a packet and 40 µs in one of its own
#: (bench/data_channels.py), 5 µs of it here: no room takes a core for itself, nor the loop for more than 5 ms. What is
#: more waits for its turn.
DELIVERY_RATE, MOST_DELIVERIES = 15_000, 1000
#: Seconds after which what waits is looked at again.
PAUSE = 0.02
#: A sender on a reliable channel waits while all its receivers have more than this waiting: so a transfer
#: to one takes that one's pace. With several, the quickest sets it.
PRESSURE = 524288
#: What a message that waits takes of its sender's window beside its bytes.
MESSAGE_COST = 200
#: An unreliable channel with so many bytes waiting loses what comes next. One message of the greatest
#: size may always pass, so that twice as much can wait. Most often its messages are too old before that.
UNRELIABLE_QUEUE = 262144
#: A reliable channel with more than this waiting is closed: its receiver is too slow for its sender.
RELIABLE_QUEUE = 8 << 20
#: So is one with more than ``UNRELIABLE_QUEUE`` waiting of which the oldest has waited so many seconds.
RELIABLE_WAIT = 60.0
#: Bytes waiting for one receiver on all its channels; beyond, reliable channels close and unreliable lose.
RECEIVER_QUEUE = 16 << 20
#: The same in messages: each takes some 200 bytes beside its own.
RECEIVER_MESSAGES = 65536
#: Bytes kept for a peer that is expected but has no SCTP transport yet; what comes beyond is lost to it.
EXPECTED_QUEUE = 1 << 20
#: The same in messages.
EXPECTED_MESSAGES = 4096
#: Different channels (label, protocol, reliability) that one sender can have.
MAX_FLOWS = 64
#: Longest label and protocol, in bytes of UTF-8.
MAX_NAME = 1024

_log = Logger()


class Channel(Protocol):
    """One data channel of one peer, as :class:`orama.sfu._sctp_channels.Channel` is."""

    on_message: Callable[[Message], None]
    on_close: Callable[[], None]

    @property
    def id(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def max_retransmits(self) -> int | None: ...
    @property
    def max_packet_life_time(self) -> int | None: ...
    @property
    def buffered(self) -> int: ...
    @property
    def waited(self) -> float: ...
    def put(self, data: bytes, text: bool) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Transport(Protocol):
    """One peer's SCTP association, as :class:`orama.sfu._sctp_channels.SctpTransport` is."""

    on_channel: Callable[[Channel], None]

    @property
    def buffered(self) -> int: ...
    @property
    def queued(self) -> int: ...
    def hold(self, size: int) -> None: ...
    def open(
        self,
        label: str,
        *,
        protocol: str = "",
        ordered: bool = True,
        max_retransmits: int | None = None,
        max_packet_life_time: int | None = None,
    ) -> Channel: ...


@define
class DataCounters:
    """Messages in from senders, messages out to receivers, and what was lost on the way, by reason."""

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    #: Messages of senders without the permission.
    forbidden: int = 0
    #: Messages that a slow receiver of an unreliable channel lost, or one that was expected for too long.
    lost: int = 0
    #: Reliable channels closed because their receiver was too slow.
    overflowed: int = 0
    #: Messages on unreliable channels beyond their sender's allowance.
    limited: int = 0
    #: Messages that waited for an allowance, or for receivers of which none kept up.
    delayed: int = 0
    #: Messages that a receiver does not take, too long for it.
    oversized: int = 0
    #: Channels refused: too many, or with too long a name.
    refused: int = 0


@frozen
class Manner:
    """What makes two channels of one sender the same to a receiver."""

    label: str
    protocol: str
    ordered: bool
    max_retransmits: int | None
    max_packet_life_time: int | None

    @classmethod
    def of(cls, channel: Channel) -> Manner:
        return cls(
            channel.label, channel.protocol, channel.ordered, channel.max_retransmits, channel.max_packet_life_time
        )

    @property
    def reliable(self) -> bool:
        return self.max_retransmits is None and self.max_packet_life_time is None


@define(eq=False)
class _Flow:
    """What one peer sends in one manner: the channels that it comes by, and the one to each receiver."""

    manner: Manner
    sources: set[int] = field(factory=set)
    outputs: dict[str, Channel] = field(factory=dict)
    #: What has come and is not passed on yet.
    waiting: deque[tuple[bytes, bool]] = field(factory=deque)
    #: Whether it ends with the last message that waits.
    ending: bool = False


@define(eq=False)
class _Member:
    peer_id: str
    transport: Transport
    announce: Callable[[DataChannel | Error], None]
    may_send: Callable[[], bool]
    allowance: Allowance
    flows: dict[Manner, _Flow] = field(factory=dict)


@define(eq=False)
class _Expected:
    """What was said on reliable channels to a peer that has no transport yet."""

    messages: list[tuple[_Flow, bytes, bool]] = field(factory=list)
    size: int = 0


class DataFanout:
    """The data channels of one room.

    ``join`` a peer when its SCTP transport has been started, whether the association is up or not;
    ``leave`` it when it goes. In between everything happens by itself:

    - A channel that a peer opens makes a channel of the same label, protocol, ordering and reliability
      to every other peer, and ``announce`` is called with ``DataChannel(sender, label, id)``: the channel
      ``id`` of the *receiver's* connection carries what *sender* sends. A peer that joins later gets all
      that exist. Two channels of one sender in the same manner share it.
    - ``expect`` a peer whose data m-line is being negotiated: what is said on reliable channels in the
      meantime waits for it, bounded, so that the first words of a room are not lost to those who have
      never opened a channel.
    - A receiver that opened the label itself gets the others' messages on these channels all the same,
      one per sender, never on its own: so it always knows who speaks.
    - What a peer sends on a channel that we opened counts as sent on a channel of its own with that
      label: it reaches everybody else, the first sender among them, by a channel of *this* sender.
    - When the sender closes its channel, or leaves, the receivers' channels close.
    - ``may_send`` is asked for each message; without the permission messages are dropped and counted.
    - A slow receiver: see the limits at the head of this module. A channel closed for slowness stays
      closed until the sender opens one in that manner anew; its receiver is told by an error ``rate_limited``.
    - A fast sender: see there.
    """

    def __init__(self, clock: IReactorTime, counters: DataCounters | None = None) -> None:
        self.counters = DataCounters() if counters is None else counters
        self._clock = clock
        self._allowance = Allowance(DELIVERY_RATE, MOST_DELIVERIES, clock.seconds())
        self._members: dict[str, _Member] = {}
        self._expected: dict[str, _Expected] = {}
        #: Flows with messages that wait, in the order of their turns.
        self._waiting: dict[_Flow, _Member] = {}
        self._call: IDelayedCall | None = None

    def expect(self, peer_id: str) -> None:
        """Keep reliable messages for *peer_id* until it joins or leaves. Nothing happens when it has joined."""
        if peer_id not in self._members:
            self._expected.setdefault(peer_id, _Expected())

    def join(
        self,
        peer_id: str,
        sctp: Transport,
        announce: Callable[[DataChannel | Error], None],
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take *peer_id* in; it takes over ``sctp.on_channel``. A second join replaces the first."""
        expected = self._expected.pop(peer_id, None)
        self.leave(peer_id)
        allowance = Allowance(MESSAGE_RATE, MOST_MESSAGES, self._clock.seconds())
        member = _Member(peer_id, sctp, announce, may_send, allowance)
        sctp.on_channel = lambda channel: self._opened(member, channel)
        others = list(self._members.values())
        self._members[peer_id] = member
        for other in others:
            for flow in list(other.flows.values()):
                self._connect(other, flow, member)
        for flow, data, text in expected.messages if expected is not None else ():
            output = flow.outputs.get(peer_id)
            if output is not None:
                self._forward(flow, peer_id, output, data, text)

    def leave(self, peer_id: str) -> None:
        """Forget *peer_id*, and close what carried its messages. Nothing happens when it is not here."""
        self._expected.pop(peer_id, None)
        member = self._members.pop(peer_id, None)
        if member is None:
            return
        for flow in [*member.flows.values(), *(flow for flow, of in self._waiting.items() if of is member)]:
            self._waiting.pop(flow, None)
            member.transport.hold(-sum(len(wire) + MESSAGE_COST for wire, _ in flow.waiting))
            self._end(flow)
        member.flows.clear()
        member.transport.on_channel = _nobody
        for flow in [*(flow for other in self._members.values() for flow in other.flows.values()), *self._waiting]:
            channel = flow.outputs.pop(peer_id, None)
            if channel is not None:
                channel.close()
        if not self._waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def channels(self) -> int:
        """How many channels we hold open towards receivers."""
        return sum(len(flow.outputs) for member in self._members.values() for flow in member.flows.values())

    def _opened(self, member: _Member, channel: Channel) -> None:
        """*member* opened a channel."""
        if self._flow(member, channel) is None:
            self.counters.refused += 1
            _log.debug("data channel of {peer_id} refused", peer_id=member.peer_id)
            channel.close()
            return
        channel.on_message = lambda data: self._received(member, channel, data)
        channel.on_close = lambda: self._closed(member, channel)

    def _flow(self, member: _Member, channel: Channel) -> _Flow | None:
        """The flow that *channel* feeds, made and connected to everybody when it is new; None if refused."""
        manner = Manner.of(channel)
        flow = member.flows.get(manner)
        if flow is None:
            named = len(manner.label.encode()) <= MAX_NAME and len(manner.protocol.encode()) <= MAX_NAME
            if not named or len(member.flows) >= MAX_FLOWS:
                return None
            flow = member.flows[manner] = _Flow(manner)
        if channel.id not in flow.sources:
            flow.sources.add(channel.id)
            for other in self._others(member):
                if other.peer_id not in flow.outputs:
                    self._connect(member, flow, other)
        return flow

    def _others(self, member: _Member) -> Iterator[_Member]:
        return (other for other in list(self._members.values()) if other is not member)

    def _connect(self, sender: _Member, flow: _Flow, receiver: _Member) -> None:
        manner = flow.manner
        try:
            channel = receiver.transport.open(
                manner.label,
                protocol=manner.protocol,
                ordered=manner.ordered,
                max_retransmits=manner.max_retransmits,
                max_packet_life_time=manner.max_packet_life_time,
            )
        except ConnectionError:
            self.counters.refused += 1
            return
        flow.outputs[receiver.peer_id] = channel

        def replied(data: Message) -> None:
            self._received(receiver, channel, data)

        def closed() -> None:
            if flow.outputs.get(receiver.peer_id) is channel:
                del flow.outputs[receiver.peer_id]
            self._closed(receiver, channel)

        channel.on_message = replied
        channel.on_close = closed
        receiver.announce(DataChannel(sender.peer_id, manner.label, channel.id))

    def _received(self, member: _Member, channel: Channel, data: Message) -> None:
        counters = self.counters
        text = isinstance(data, str)
        wire = data.encode() if isinstance(data, str) else data
        counters.messages_in += 1
        counters.bytes_in += len(wire)
        if self._members.get(member.peer_id) is not member:
            return
        if not member.may_send():
            counters.forbidden += 1
            return
        flow = self._flow(member, channel)
        if flow is None:
            counters.refused += 1
            return
        now = self._clock.seconds()
        if not flow.manner.reliable and not member.allowance.take(1, now):
            counters.limited += 1
            return
        if flow not in self._waiting:
            if self._passes(member, flow, now):
                self._pass(flow, wire, text)
                return
            self._waiting[flow] = member
            self._look_again()
        counters.delayed += 1
        flow.waiting.append((wire, text))
        member.transport.hold(len(wire) + MESSAGE_COST)

    def _passes(self, member: _Member, flow: _Flow, now: float) -> bool:
        """Whether the next message of *flow* may go to its receivers now."""
        if flow.manner.reliable and flow.outputs and self._pressed(flow):
            return False
        if flow.manner.reliable and not member.allowance.take(1, now):
            return False
        return self._allowance.spend(len(flow.outputs), now)

    def _pressed(self, flow: _Flow) -> bool:
        """Whether none of the receivers keeps up; those that do not move at all lose their channel."""
        for peer_id, output in list(flow.outputs.items()):
            if output.buffered <= PRESSURE:
                return False
            if output.waited > RELIABLE_WAIT:
                self._overflow(flow, peer_id, output)
        return bool(flow.outputs)

    def _look_again(self) -> None:
        if self._call is None:
            self._call = self._clock.callLater(PAUSE, self._resume)

    def _resume(self) -> None:
        """A message of each flow in turn, while any may go."""
        self._call = None
        blocked: set[_Flow] = set()
        now = self._clock.seconds()
        while len(blocked) < len(self._waiting):
            for flow, member in list(self._waiting.items()):
                if flow in blocked or flow not in self._waiting:
                    continue
                if not self._passes(member, flow, now):
                    blocked.add(flow)
                    continue
                wire, text = flow.waiting.popleft()
                self._pass(flow, wire, text)
                if not flow.waiting:
                    self._waiting.pop(flow, None)
                    if flow.ending:
                        self._end(flow)
                member.transport.hold(-len(wire) - MESSAGE_COST)
        if self._waiting:
            self._look_again()

    def _pass(self, flow: _Flow, wire: bytes, text: bool) -> None:
        for peer_id, output in list(flow.outputs.items()):
            self._forward(flow, peer_id, output, wire, text)
        if flow.manner.reliable:
            for expected in self._expected.values():
                self._keep(expected, flow, wire, text)

    def _keep(self, expected: _Expected, flow: _Flow, data: bytes, text: bool) -> None:
        if expected.size + len(data) > EXPECTED_QUEUE or len(expected.messages) >= EXPECTED_MESSAGES:
            self.counters.lost += 1
            return
        expected.messages.append((flow, data, text))
        expected.size += len(data)

    def _forward(self, flow: _Flow, peer_id: str, output: Channel, data: bytes, text: bool) -> None:
        waiting = output.buffered
        if waiting:
            reliable = flow.manner.reliable
            receiver = self._members.get(peer_id)
            if (
                waiting > (RELIABLE_QUEUE if reliable else UNRELIABLE_QUEUE)
                or (receiver is not None and _full(receiver.transport))
                or (reliable and waiting > UNRELIABLE_QUEUE and output.waited > RELIABLE_WAIT)
            ):
                if reliable:
                    self._overflow(flow, peer_id, output)
                else:
                    self.counters.lost += 1
                return
        try:
            output.put(data, text)
        except ValueError:
            self.counters.oversized += 1
        except ConnectionError:
            self.counters.lost += 1
        else:
            self.counters.messages_out += 1
            self.counters.bytes_out += len(data)

    def _overflow(self, flow: _Flow, peer_id: str, output: Channel) -> None:
        """The receiver is too slow: it loses what waits, and the channel."""
        self.counters.overflowed += 1
        label, waiting = flow.manner.label, output.buffered
        _log.info(
            "data channel {label} to {peer_id} closed: {waiting} bytes wait for a slow receiver",
            label=label,
            peer_id=peer_id,
            waiting=waiting,
        )
        del flow.outputs[peer_id]
        output.abort()
        receiver = self._members.get(peer_id)
        if receiver is not None:
            text = f"The data channel {output.id} ({label}) is closed: {waiting} bytes waited for you."
            receiver.announce(Error("rate_limited", text))

    def _closed(self, member: _Member, channel: Channel) -> None:
        """A channel that *member* may have sent on is gone; the last of its manner ends the flow."""
        flow = member.flows.get(Manner.of(channel))
        if flow is None or channel.id not in flow.sources:
            return
        flow.sources.discard(channel.id)
        if not flow.sources:
            del member.flows[flow.manner]
            if flow in self._waiting:
                flow.ending = True
            else:
                self._end(flow)

    def _end(self, flow: _Flow) -> None:
        flow.waiting.clear()
        outputs, flow.outputs = flow.outputs, {}
        for channel in outputs.values():
            channel.close()


def _nobody(_: Channel) -> None:
    """Its client is gone."""


def _full(transport: Transport) -> bool:
    return transport.queued > RECEIVER_MESSAGES or transport.buffered > RECEIVER_QUEUE
