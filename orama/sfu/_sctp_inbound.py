"""The receiving half of an SCTP association (RFC 9260, 6.2 and 6.9; RFC 3758, 3.6): numbers, messages, the window.

DATA and FORWARD TSN go in, whole messages and SACKs come out; no clock, no socket. All it keeps is within the window.
A number and a message are found in constant time however much is missing, where aiortc sorts and walks lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import define, field, frozen

from orama.wire import sctp
from orama.wire.sctp import Forward, Fragment, SctpError

#: Bytes that a client may have on their way to us and in half-finished messages.
WINDOW: Final = 1 << 20
#: How far beyond the last TSN in order a DATA chunk may lie, and how many chunks may wait to be put
#: together. The window counts bytes alone, and a chunk costs some 500 bytes beside its own.
MAX_CHUNKS: Final = 4096
#: Stream identifiers in each direction; every channel of ours takes an odd one, the client's an even one.
MAX_STREAMS: Final = 1024
#: Gap blocks and duplicates that fit a SACK beside each other in one packet.
MAX_GAPS: Final = 240
MAX_DUPLICATES: Final = 32


@frozen
class Incoming:
    """A whole message."""

    stream: int
    protocol: int
    data: bytes


@define(eq=False)
class _Piece:
    """Fragments of one message with consecutive numbers."""

    start: int
    end: int
    flags: int
    sequence: int
    protocol: int
    stream: int
    parts: list[bytes]
    size: int


@define(eq=False)
class _Ordering:
    """What one stream delivers next, and what is whole but comes later."""

    expected: int = 0
    whole: dict[int, Incoming] = field(factory=dict)


class Inbound:
    """What one client sends.

    TSNs are 32 bits outside and count on without end inside.

    :param last: the client's next TSN is the one after it.
    """

    def __init__(self, last: int) -> None:
        #: The last TSN in order.
        self.last = last
        #: Chunks that were beyond what we keep; the client sends them again.
        self.dropped = 0
        #: Chunks since the last SACK.
        self.unacknowledged = 0
        #: The window of the last SACK.
        self.told = WINDOW
        self._orderings: dict[int, _Ordering] = {}
        #: What came beyond the last in order; and its runs, by first and by last number.
        self._beyond: set[int] = set()
        self._runs: dict[int, int] = {}
        self._run_ends: dict[int, int] = {}
        self._duplicates: list[int] = []
        self._by_start: dict[int, _Piece] = {}
        self._by_end: dict[int, _Piece] = {}
        self._chunks = 0
        self._bytes = 0
        self._held = 0

    @property
    def window(self) -> int:
        """Bytes that the client may send now."""
        return max(0, WINDOW - self._bytes - self._held)

    def hold(self, size: int) -> None:
        """*size* bytes of what was delivered are not done with; a negative number gives them back."""
        self._held += size

    def reset(self, stream: int) -> None:
        """The client begins the stream anew (RFC 6525, 5.2.2)."""
        ordering = self._orderings.pop(stream, None)
        if ordering is not None:
            self._free(ordering.whole.values())

    def data(self, chunk: Fragment) -> list[Incoming]:
        """Take a DATA chunk; the messages that are whole and in order now.

        :raises SctpError: a stream that does not exist, or a message that cannot ever fit the window.
        """
        if chunk.stream >= MAX_STREAMS:
            raise SctpError("stream identifier")
        self.unacknowledged += 1
        ahead = sctp.ahead(chunk.tsn, self.last)
        tsn = self.last + ahead
        if ahead == 1 and not self._beyond and chunk.flags & 3 == 3:
            # The usual one, whole and in order, is through here without being kept.
            ordering = self._ordering(chunk.stream)
            if chunk.flags & sctp.UNORDERED or (chunk.sequence == ordering.expected and not ordering.whole):
                self.last = tsn
                if not chunk.flags & sctp.UNORDERED:
                    ordering.expected = (chunk.sequence + 1) % 0x10000
                return [Incoming(chunk.stream, chunk.protocol, chunk.data)]
        if ahead <= 0 or tsn in self._beyond:
            if len(self._duplicates) < MAX_DUPLICATES:
                self._duplicates.append(chunk.tsn)
            return []
        if ahead > MAX_CHUNKS or self._chunks >= MAX_CHUNKS or len(chunk.data) > self.window:
            if ahead == 1 and self._held == 0:
                raise SctpError("a message that does not fit the window")
            self.dropped += 1
            return []
        self._mark(tsn)
        return self._keep(tsn, chunk)

    def forward(self, chunk: Forward) -> list[Incoming]:
        """The client gives up what is missing up to a number; the messages that waited for it.

        :raises SctpError: a stream that does not exist.
        """
        if any(stream >= MAX_STREAMS for stream, _ in chunk.streams):
            raise SctpError("stream identifier")
        self.unacknowledged += 1
        ahead = sctp.ahead(chunk.cumulative, self.last)
        if ahead <= 0:
            return []
        point = self.last + ahead
        self._skip(point)
        for piece in [piece for piece in self._by_start.values() if piece.start <= point]:
            # A message that reaches the point without a hole was not given up (RFC 3758, 3.6).
            if piece.end < point or not piece.flags & sctp.FIRST:
                self._remove(piece)
                self._bytes -= piece.size
                self._chunks -= len(piece.parts)
        delivered: list[Incoming] = []
        for stream, sequence in chunk.streams:
            ordering = self._ordering(stream)
            ready = [number for number in ordering.whole if _behind(number, sequence)]
            ready.sort(key=lambda number: (number - sequence - 1) % 0x10000)
            delivered += [ordering.whole.pop(number) for number in ready]
            following = (sequence + 1) % 0x10000
            if not _behind(following, ordering.expected):
                ordering.expected = following
            self._follow(ordering, delivered)
        self._free(delivered)
        return delivered

    def sack(self) -> bytes:
        """A SACK chunk of how things are."""
        last, window = self.last, self.window
        gaps = [(first - last, end - last) for first, end in sorted(self._runs.items())[:MAX_GAPS]]
        chunk = sctp.sack_chunk(last % 0x100000000, window, gaps, self._duplicates)
        self._duplicates.clear()
        self.unacknowledged = 0
        self.told = window
        return chunk

    @property
    def broken(self) -> bool:
        """Whether the client should hear of a hole or of a duplicate at once (RFC 9260, 6.7)."""
        return bool(self._beyond or self._duplicates)

    def kept(self) -> int:
        """Bytes of what is not whole, or not in order."""
        return self._bytes

    # ---- numbers

    def _mark(self, tsn: int) -> None:
        first = self._run_ends.pop(tsn - 1, tsn)
        end = self._runs.pop(tsn + 1, tsn)
        if end != tsn:
            del self._run_ends[end]
        if tsn == self.last + 1:
            self._beyond.difference_update(range(tsn + 1, end + 1))
            self.last = end
        else:
            self._beyond.add(tsn)
            self._runs[first] = end
            self._run_ends[end] = first

    def _skip(self, point: int) -> None:
        for first in sorted(self._runs):
            if first > point + 1:
                break
            end = self._runs.pop(first)
            del self._run_ends[end]
            self._beyond.difference_update(range(first, end + 1))
            point = max(point, end)
        self.last = point

    # ---- messages

    def _keep(self, tsn: int, chunk: Fragment) -> list[Incoming]:
        """Put a fragment to its neighbours; what becomes whole and is in order leaves."""
        data, flags = chunk.data, chunk.flags
        self._bytes += len(data)
        self._chunks += 1
        before = None if flags & sctp.FIRST else self._by_end.get(tsn - 1)
        if before is not None and not before.flags & sctp.LAST:
            piece = before
            del self._by_end[piece.end]
            piece.end = tsn
            piece.parts.append(data)
            piece.size += len(data)
            piece.flags |= flags & sctp.LAST
        else:
            piece = _Piece(tsn, tsn, flags, chunk.sequence, chunk.protocol, chunk.stream, [data], len(data))
            self._by_start[tsn] = piece
        after = None if flags & sctp.LAST else self._by_start.get(tsn + 1)
        if after is not None and not after.flags & sctp.FIRST:
            self._remove(after)
            piece.end = after.end
            piece.parts += after.parts
            piece.size += after.size
            piece.flags |= after.flags & sctp.LAST
        if piece.flags & 3 != 3:
            self._by_end[piece.end] = piece
            return []
        del self._by_start[piece.start]
        self._chunks -= len(piece.parts) - 1
        message = Incoming(piece.stream, piece.protocol, b"".join(piece.parts))
        delivered = self._whole(piece.flags, piece.sequence, message)
        self._free(delivered)
        return delivered

    def _remove(self, piece: _Piece) -> None:
        del self._by_start[piece.start]
        del self._by_end[piece.end]

    def _free(self, messages: Iterable[Incoming]) -> None:
        for message in messages:
            self._bytes -= len(message.data)
            self._chunks -= 1

    def _whole(self, flags: int, sequence: int, message: Incoming) -> list[Incoming]:
        """What can be delivered now that *message* is whole: nothing, when an earlier one of its stream is missing."""
        if flags & sctp.UNORDERED:
            return [message]
        ordering = self._ordering(message.stream)
        if sequence == ordering.expected:
            ordering.expected = (sequence + 1) % 0x10000
            delivered = [message]
            self._follow(ordering, delivered)
            return delivered
        if _behind(sequence, ordering.expected):
            return [message]
        ordering.whole[sequence] = message
        return []

    def _ordering(self, stream: int) -> _Ordering:
        ordering = self._orderings.get(stream)
        if ordering is None:
            ordering = self._orderings[stream] = _Ordering()
        return ordering

    def _follow(self, ordering: _Ordering, delivered: list[Incoming]) -> None:
        while ordering.expected in ordering.whole:
            delivered.append(ordering.whole.pop(ordering.expected))
            ordering.expected = (ordering.expected + 1) % 0x10000


def _behind(sequence: int, other: int) -> bool:
    """Whether *sequence* comes before *other* (RFC 1982), or is it."""
    return (other - sequence) % 0x10000 < 0x8000
