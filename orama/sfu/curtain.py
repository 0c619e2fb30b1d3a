"""What still passes of a video that has just been muted: the rest of the frame that is under way.

So the last picture that everybody has is whole, and no decoder waits for its other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orama.sfu.packet import Packet

if TYPE_CHECKING:
    from orama.sfu.stream import Stream

#: Seconds until nothing passes: a frame takes less, with one NACK of it answered.
FALL = 0.2


def nothing(stream: Stream, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
    """The gate of a muted audio track."""
    return ()


class Curtain:
    """The gate of a muted video track.

    :param streams: the track's, as they are at that moment.
    """

    __slots__ = ("_last", "_until")

    def __init__(self, streams: Iterable[Stream], now: float) -> None:
        self._last = {stream: stream.last_timestamp for stream in streams if stream.last_timestamp >= 0}
        self._until = now + FALL

    def __call__(self, stream: Stream, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
        """What of *packets* is of the last frame, or of one before it."""
        last = self._last.get(stream)
        if last is None or now >= self._until:
            return ()
        return [packet for packet in packets if (last - packet.timestamp) & 0xFFFFFFFF < 0x80000000]
