"""ChannelData (RFC 8656, 12.4) and how STUN and ChannelData share a byte stream (12.5): bytes, no sockets.

A ChannelData message is four bytes, the channel number and the length, and the payload. Over UDP the
datagram ends it and padding is optional; on a stream each message is padded to four bytes.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from orama.wire.stun import COOKIE, HEADER_LENGTH

HEADER = struct.Struct("!HH")
#: RFC 8656, 12 ends at 0x4FFF, RFC 5766, 11 at 0x7FFF. Clients of the older one are about (coturn's draws from
#: all of its range before 4.16), the number is the client's own to tell apart, and nothing of ours starts there.
FIRST_CHANNEL = 0x4000
LAST_CHANNEL = 0x7FFF

Buffer: TypeAlias = bytes | bytearray | memoryview

_cookie = struct.Struct("!4xI")
#: Bytes that are enough for :func:`frame_length` to judge a STUN message; ChannelData needs four.
START_LENGTH = _cookie.size


class FrameError(ValueError):
    """What stands on the stream is neither STUN nor ChannelData; nothing after it can be read."""


def pack(channel: int, payload: Buffer, *, padded: bool = False) -> bytes:
    """One ChannelData message; *padded* for a stream."""
    padding = bytes(-len(payload) % 4) if padded else b""
    return b"".join((HEADER.pack(channel, len(payload)), payload, padding))


def unpack(packet: Buffer) -> tuple[int, Buffer]:
    """The channel number and the payload (a slice, not a copy where *packet* is a memoryview).

    :raises FrameError: too short, shorter than it says, or no channel number.
    """
    if len(packet) < HEADER.size:
        raise FrameError("shorter than a header")
    channel, length = HEADER.unpack_from(packet)
    if not FIRST_CHANNEL <= channel <= LAST_CHANNEL:
        raise FrameError("no channel number")
    if len(packet) < HEADER.size + length:
        raise FrameError("shorter than it says")
    return channel, packet[HEADER.size : HEADER.size + length]


def frame_length(stream: Buffer, at: int = 0) -> int:
    """Length, padding included, of the message that starts at *at*; 0 when there is too little to tell.

    :raises FrameError: no message starts like that.
    """
    available = len(stream) - at
    if available < HEADER.size:
        return 0
    first: int
    length: int
    first, length = HEADER.unpack_from(stream, at)
    if FIRST_CHANNEL <= first <= LAST_CHANNEL:
        return HEADER.size + length + -length % 4
    if first >= 0x4000 or length % 4:
        raise FrameError("neither STUN nor ChannelData")
    if available < START_LENGTH:
        return 0
    if _cookie.unpack_from(stream, at)[0] != COOKIE:
        raise FrameError("no magic cookie")
    return HEADER_LENGTH + length
