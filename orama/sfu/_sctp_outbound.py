"""The sending half of an SCTP association (RFC 9260, 6 and 7; RFC 3758): messages in, chunks out.

Sans-IO: every call brings the time. Beside what aiortc's half does it holds to the client's window, takes turns among
streams, lets what is unreliable grow old and go, and costs the same for each chunk whatever is on its way.

Fragments of one message have consecutive numbers, and without RFC 8260 (which neither aiortc nor browsers have
switched on) nothing can go between them: a message waits for the rest of one other, and then for its share.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from attrs import define, field

from orama.wire import sctp
from orama.wire.sctp import MAX_FRAGMENT, Acknowledgement, SctpError

#: Bytes on their way at first (RFC 6928: ten packets; so does libwebrtc), at least after a loss, and at most.
FIRST_WINDOW: Final = 10 * MAX_FRAGMENT
LEAST_WINDOW: Final = 4 * MAX_FRAGMENT
MAX_WINDOW: Final = 4 << 20
#: How many packets one acknowledgement lets the window grow in slow start (RFC 9260, 7.2.1; RFC 3465).
GROWTH: Final = 2 * MAX_FRAGMENT
#: Seconds: RFC 9260, 16 but for the least, which is libwebrtc's; a client acknowledges within 0.2 s.
FIRST_TIMEOUT: Final = 1.0
MIN_TIMEOUT: Final = 0.4
MAX_TIMEOUT: Final = 10.0
#: Acknowledgements that report a chunk missing before it is sent again.
STRIKES: Final = 3
#: What a message costs its stream beside its bytes when streams take turns.
MESSAGE_COST: Final = 64
#: Streams in one FORWARD TSN.
MAX_SKIPPED: Final = 256


@define(eq=False)
class _Message:
    stream: int
    protocol: int
    data: bytes
    ordered: bool
    queued: float
    #: When it is too old to begin, and to be sent at all; and how often each of its chunks may be sent again.
    stale: float | None
    expires: float | None
    max_retransmits: int | None
    sequence: int = 0
    #: The first of its numbers, and how many bytes have left.
    first: int = 0
    at: int = 0
    abandoned: bool = False


@define(eq=False)
class _Chunk:
    tsn: int
    message: _Message
    start: int
    size: int
    flags: int
    sent_at: float
    #: Counts everything that leaves, so that only what left later can tell that this is lost.
    order: int
    sends: int = 1
    strikes: int = 0
    flying: bool = True
    acknowledged: bool = False
    lost: bool = False


@define(eq=False)
class _Stream:
    messages: deque[_Message] = field(factory=deque)
    #: Bytes that wait, with what is left of the message that is leaving.
    waiting: int = 0
    #: Bytes that it was served, as far as turns are concerned.
    served: float = 0.0
    turning: bool = False
    sequence: int = 0


class Outbound:
    """What one client is sent.

    :param first: its TSN.
    """

    def __init__(self, first: int) -> None:
        #: Seconds until what is not acknowledged is sent again.
        self.timeout = FIRST_TIMEOUT
        #: When :meth:`expire` wants to be called.
        self.deadline: float | None = None
        #: Since when nothing has been acknowledged though it should have been.
        self.silent_since: float | None = None
        #: Whether the client understands FORWARD TSN.
        self.partial = False
        #: Whole messages that wait, and their bytes on all streams together.
        self.messages = 0
        self.waiting = 0
        #: Messages that were too old before they left, and that were given up on the way.
        self.stale = 0
        self.abandoned = 0
        self._next = first
        self._acked = first - 1
        #: What was given up reaches up to here.
        self._point = first - 1
        self._forward_due = False
        self._streams: dict[int, _Stream] = {}
        self._turns: list[tuple[float, int]] = []
        self._served = 0.0
        self._current: _Message | None = None
        self._sent: dict[int, _Chunk] = {}
        self._lost: list[int] = []
        self._gaps: tuple[tuple[int, int], ...] = ()
        self._order = 0
        self._flight = 0
        self._client_window = LEAST_WINDOW
        self._window: float = FIRST_WINDOW
        self._threshold: float = MAX_WINDOW
        self._recovery: int | None = None
        #: The first packet after a loss leaves whatever is on its way (RFC 9260, 7.2.4).
        self._urgent = False
        self._rtt: float | None = None
        self._deviation = 0.0
        self._last_sent = 0.0
        #: When something was last kept from leaving by a window.
        self._refused = 0.0

    @property
    def next(self) -> int:
        """The next TSN, in 32 bits."""
        return self._next % 0x100000000

    @property
    def flight(self) -> int:
        """Bytes on their way."""
        return self._flight

    @property
    def window(self) -> float:
        """Bytes that may be on their way for all that the network has shown."""
        return self._window

    def allow(self, window: int) -> None:
        """The client's window, as its INIT says."""
        self._client_window = window

    def buffered(self, stream: int) -> int:
        """Bytes that wait on *stream*."""
        found = self._streams.get(stream)
        return 0 if found is None else found.waiting

    def waited(self, stream: int, now: float) -> float:
        """Seconds that the oldest message on *stream* has waited for its turn."""
        found = self._streams.get(stream)
        return 0.0 if found is None or not found.messages else now - found.messages[0].queued

    def busy(self, stream: int) -> bool:
        """Whether anything on *stream* has not left yet."""
        found = self._streams.get(stream)
        if found is not None and found.messages:
            return True
        return self._current is not None and self._current.stream == stream

    def queue(
        self,
        stream: int,
        protocol: int,
        data: bytes,
        now: float,
        *,
        ordered: bool = True,
        max_retransmits: int | None = None,
        lifetime: float | None = None,
        patience: float | None = None,
    ) -> None:
        """Send *data*, of one byte at least.

        :param lifetime: seconds after which it is not sent again, nor for the first time.
        :param patience: seconds after which it does not begin to leave.
        """
        found = self._streams.setdefault(stream, _Stream())
        expires = None if lifetime is None else now + lifetime
        stale = expires if patience is None else now + patience
        found.messages.append(_Message(stream, protocol, data, ordered, now, stale, expires, max_retransmits))
        found.waiting += len(data)
        self.waiting += len(data)
        self.messages += 1
        if not found.turning:
            found.turning = True
            found.served = max(found.served, self._served)
            heapq.heappush(self._turns, (found.served, stream))

    def discard(self, stream: int, but: int) -> None:
        """Forget what waits on *stream*, but for messages of the protocol *but*."""
        found = self._streams.get(stream)
        if found is None:
            return
        gone = [message for message in found.messages if message.protocol != but]
        found.messages = deque(message for message in found.messages if message.protocol == but)
        for message in gone:
            self._left(found, len(message.data))
        self.messages -= len(gone)
        current = self._current
        if self.partial and current is not None and current.stream == stream and current.protocol != but:
            self._abandon(current)
            self._advance()

    def reset(self, stream: int) -> None:
        """*stream* begins anew (RFC 6525)."""
        found = self._streams.get(stream)
        if found is not None:
            found.sequence = 0

    # ---- what leaves

    def take(self, room: int, now: float) -> bytes:
        """Chunks of *room* bytes at most that may leave now; nothing when there is nothing, or nothing may."""
        parts: list[bytes] = []
        if self._forward_due:
            self._forward_due = False
            parts.append(self._forward())
            room -= len(parts[0])
            self._arm(now)
        while self._lost and room > sctp.DATA_HEADER:
            chunk = self._sent.get(self._lost[0])
            if chunk is None or not chunk.lost:
                heapq.heappop(self._lost)
                continue
            if sctp.DATA_HEADER + chunk.size > room or not (self._urgent or self._may(chunk.size)):
                self._refused = now
                return b"".join(parts)
            heapq.heappop(self._lost)
            self._urgent = chunk.lost = False
            chunk.sends += 1
            chunk.strikes = 0
            parts.append(self._fly(chunk, now))
            room -= len(parts[-1])
        while room > sctp.DATA_HEADER:
            message = self._current or self._choose(now)
            if message is None:
                break
            data, at = message.data, message.at
            size = min(MAX_FRAGMENT, len(data) - at)
            if sctp.DATA_HEADER + size > room:
                break
            if not self._may(size):
                self._refused = now
                break
            if not at:
                self._begin(message)
            flags = (0 if at else sctp.FIRST) | (sctp.LAST if at + size == len(data) else 0)
            chunk = _Chunk(self._next, message, at, size, flags if message.ordered else flags | sctp.UNORDERED, now, 0)
            self._sent[self._next] = chunk
            self._next += 1
            message.at = at + size
            self._current = None if flags & sctp.LAST else message
            self._left(self._streams[message.stream], size)
            parts.append(self._fly(chunk, now))
            room -= len(parts[-1])
        return b"".join(parts)

    def _may(self, size: int) -> bool:
        """Whether *size* more bytes may be on their way; one chunk always may (RFC 9260, 6.1, A)."""
        flight = self._flight
        return not flight or (flight < self._window and flight + size <= self._client_window)

    def _fly(self, chunk: _Chunk, now: float) -> bytes:
        if not self._flight and now - self._last_sent > self.timeout:
            self._window = max(self._window / 2, FIRST_WINDOW)  # nobody knows the network any more (RFC 9260, 7.2.1)
        self._order += 1
        chunk.order = self._order
        chunk.sent_at = self._last_sent = now
        chunk.flying = True
        self._flight += chunk.size
        self._arm(now)
        message = chunk.message
        return sctp.data_chunk(
            chunk.tsn % 0x100000000,
            message.stream,
            message.sequence,
            message.protocol,
            chunk.flags,
            message.data[chunk.start : chunk.start + chunk.size],
        )

    def _choose(self, now: float) -> _Message | None:
        """The next message: of the stream that was served least.

        Self-clocked fair queueing (Golestani, INFOCOM 1994): a stream that has slept has no claim to the past.
        """
        while self._turns:
            stream = self._streams[self._turns[0][1]]
            while stream.messages:
                message = stream.messages[0]
                # Too old is what was kept from leaving, and not what a busy machine has come to late.
                if message.stale is None or message.stale >= now or message.queued > self._refused:
                    return message
                stream.messages.popleft()
                self._left(stream, len(message.data))
                self.messages -= 1
                self.stale += 1
            heapq.heappop(self._turns)
            stream.turning = False
        return None

    def _begin(self, message: _Message) -> None:
        """What was chosen leaves now."""
        served, number = heapq.heappop(self._turns)
        stream = self._streams[number]
        stream.messages.popleft()
        self.messages -= 1
        self._served = served
        stream.served = served + len(message.data) + MESSAGE_COST
        stream.turning = bool(stream.messages)
        if stream.turning:
            heapq.heappush(self._turns, (stream.served, number))
        message.first = self._next
        if message.ordered:
            message.sequence = stream.sequence
            stream.sequence = (stream.sequence + 1) % 0x10000

    def _left(self, stream: _Stream, size: int) -> None:
        stream.waiting -= size
        self.waiting -= size

    # ---- what the client says

    def acknowledge(self, sack: Acknowledgement, now: float) -> None:
        """Take a SACK.

        :raises SctpError: it acknowledges what was not sent, or its gap blocks make no sense.
        """
        cumulative = self._acked + sctp.ahead(sack.cumulative, self._acked)
        flight = self._next - 1 - cumulative
        if flight < 0:
            raise SctpError("an acknowledgement of what was not sent")
        last = 0
        for first, end in sack.gaps:
            if not last < first <= end <= flight:
                raise SctpError("gap blocks")
            last = end
        if cumulative < self._acked:
            return
        full = self._flight + MAX_FRAGMENT > self._window
        before, newest, done = self._acked, 0, 0
        self.silent_since = None
        self._client_window = sack.window
        for tsn in range(before + 1, cumulative + 1):
            chunk = self._sent.pop(tsn)
            if not chunk.acknowledged:
                newest = max(newest, chunk.order)
                done += chunk.size
                self._land(chunk)
                if tsn == cumulative and chunk.sends == 1 and chunk.size:
                    self._measure(now - chunk.sent_at)
        self._acked = cumulative
        gaps = tuple((cumulative + first, cumulative + end) for first, end in sack.gaps)
        if gaps:
            known = dict(self._gaps)
            for first, end in gaps:
                # A block that grows at its end is walked from where it ended before.
                for tsn in range(min(end, known.get(first, first - 1)) + 1, end + 1):
                    chunk = self._sent[tsn]
                    if not chunk.acknowledged:
                        chunk.acknowledged = True
                        chunk.lost = False
                        newest = max(newest, chunk.order)
                        done += chunk.size
                        self._land(chunk)
        self._gaps = gaps
        lost = bool(gaps) and newest > 0 and self._strike(gaps, newest, now)
        self._adapt(cumulative, done if full and cumulative > before else 0, lost)
        self._advance()
        if not self._flight and self._point <= self._acked and not self._lost:
            self.deadline = None
        elif cumulative > before:
            self.deadline = None
            self._arm(now)

    def expire(self, now: float) -> None:
        """The deadline has passed: what is on its way counts as lost (RFC 9260, 6.3.3)."""
        self.deadline = None
        if self.silent_since is None:
            self.silent_since = now
        self.timeout = min(2 * self.timeout, MAX_TIMEOUT)
        self._threshold = max(self._window / 2, LEAST_WINDOW)
        self._window = MAX_FRAGMENT
        self._recovery = None
        for chunk in list(self._sent.values()):
            if chunk.flying:
                self._lose(chunk, now)
        self._advance()
        if self._point > self._acked:
            self._forward_due = True
        self._arm(now)

    def _arm(self, now: float) -> None:
        if self.deadline is None and (self._sent or self._point > self._acked):
            self.deadline = now + self.timeout

    def _land(self, chunk: _Chunk) -> None:
        if chunk.flying:
            chunk.flying = False
            self._flight -= chunk.size

    def _strike(self, gaps: tuple[tuple[int, int], ...], newest: int, now: float) -> bool:
        """Count what is missing though later ones have come (RFC 9260, 7.2.4); whether something is lost."""
        lost = False
        missing = self._acked + 1
        for first, end in gaps:
            for tsn in range(missing, first):
                chunk = self._sent[tsn]
                if chunk.flying and chunk.order < newest:
                    chunk.strikes += 1
                    if chunk.strikes >= STRIKES:
                        lost = True
                        self._lose(chunk, now)
            missing = end + 1
        return lost

    def _lose(self, chunk: _Chunk, now: float) -> None:
        """*chunk* is to be sent again, or given up with its message."""
        self._land(chunk)
        message = chunk.message
        if self.partial and (
            (message.max_retransmits is not None and chunk.sends > message.max_retransmits)
            or (message.expires is not None and message.expires < now)
        ):
            self._abandon(message)
        elif not message.abandoned:
            chunk.lost = True
            heapq.heappush(self._lost, chunk.tsn)

    def _abandon(self, message: _Message) -> None:
        if message.abandoned:
            return
        message.abandoned = True
        self.abandoned += 1
        if message is self._current:
            # The rest never leaves, but has a number, for the client to hear that the message has an end.
            self._current = None
            self._left(self._streams[message.stream], len(message.data) - message.at)
            rest = _Chunk(self._next, message, message.at, 0, sctp.LAST, 0.0, 0, flying=False)
            self._sent[self._next] = rest
            self._next += 1
        tsn = max(message.first, self._acked + 1)
        while (chunk := self._sent.get(tsn)) is not None and chunk.message is message:
            chunk.lost = False
            self._land(chunk)
            tsn += 1

    def _advance(self) -> None:
        """Move the point up to which chunks are given up (RFC 3758, 3.5, C)."""
        self._point = max(self._point, self._acked)
        while (chunk := self._sent.get(self._point + 1)) is not None and chunk.message.abandoned:
            self._point += 1
        self._forward_due = self._point > self._acked

    def _forward(self) -> bytes:
        skipped: dict[int, int] = {}
        point = self._acked
        while point < self._point:
            message = self._sent[point + 1].message
            if message.ordered:
                if message.stream not in skipped and len(skipped) == MAX_SKIPPED:
                    break
                skipped[message.stream] = message.sequence
            point += 1
        return sctp.forward_chunk(point % 0x100000000, skipped)

    # ---- how much at a time

    def _adapt(self, cumulative: int, done: int, lost: bool) -> None:
        if self._recovery is not None:
            if cumulative >= self._recovery:
                self._recovery = None
        elif lost:
            self._threshold = self._window = max(self._window / 2, LEAST_WINDOW)
            self._recovery = self._next - 1
            self._urgent = True
        elif done:
            if self._window < self._threshold:
                self._window += min(done, GROWTH)
            else:
                self._window += MAX_FRAGMENT * done / self._window
            self._window = min(self._window, MAX_WINDOW)

    def _measure(self, rtt: float) -> None:
        """RFC 9260, 6.3.1."""
        if self._rtt is None:
            self._rtt, self._deviation = rtt, rtt / 2
        else:
            self._deviation += (abs(self._rtt - rtt) - self._deviation) / 4
            self._rtt += (rtt - self._rtt) / 8
        self.timeout = max(MIN_TIMEOUT, min(self._rtt + 4 * self._deviation, MAX_TIMEOUT))
