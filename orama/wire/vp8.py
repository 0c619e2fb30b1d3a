"""The VP8 payload descriptor (RFC 7741, 4.2): which picture and temporal layer an RTP payload belongs to.

What is behind the descriptor, the frame itself, is ``wire.video``'s as far as anybody's.
"""

from __future__ import annotations

from attrs import define

from orama.wire.video import Buffer, PayloadError


@define
class Descriptor:
    """One descriptor; None for what it does not have."""

    #: S and PID: the first packet of a partition, and which partition.
    start: bool
    partition: int
    #: N: no other frame depends on this one.
    discardable: bool = False
    picture_id: int | None = None
    #: Whether the picture id has 15 bits, 7 otherwise.
    long: bool = False
    #: TL0PICIDX: counts pictures of the lowest temporal layer.
    base: int | None = None
    #: TID.
    temporal: int | None = None
    #: Y: depends on the lowest temporal layer alone.
    sync: bool = False
    #: KEYIDX: counts key frames, modulo 32.
    key_index: int | None = None
    #: Octets that the descriptor takes.
    size: int = 1

    def serialize(self) -> bytes:
        """As RFC 7741, 4.2 has it."""
        out = bytearray([self.discardable << 5 | self.start << 4 | self.partition])
        layered = self.temporal is not None or self.key_index is not None
        if self.picture_id is None and self.base is None and not layered:
            return bytes(out)
        out[0] |= 0x80
        flags = (self.picture_id is not None) << 7 | (self.base is not None) << 6
        out.append(flags | (self.temporal is not None) << 5 | (self.key_index is not None) << 4)
        if self.picture_id is not None:
            out += (self.picture_id | 0x8000).to_bytes(2, "big") if self.long else bytes((self.picture_id,))
        if self.base is not None:
            out.append(self.base)
        if layered:
            out.append((self.temporal or 0) << 6 | self.sync << 5 | (self.key_index or 0))
        return bytes(out)


def parse(payload: Buffer) -> Descriptor:
    """Read the descriptor at the start of *payload*.

    :raises PayloadError: it ends too early.
    """
    size = len(payload)
    if not size:
        raise PayloadError("empty")
    first = payload[0]
    found = Descriptor(bool(first & 0x10), first & 0x07, bool(first & 0x20))
    if not first & 0x80:
        return found
    try:
        flags, at = payload[1], 2
        if flags & 0x80:
            found.picture_id, at = payload[at] & 0x7F, at + 1
            if payload[at - 1] & 0x80:
                found.picture_id, found.long, at = found.picture_id << 8 | payload[at], True, at + 1
        if flags & 0x40:
            found.base, at = payload[at], at + 1
        if flags & 0x30:
            octet, at = payload[at], at + 1
            if flags & 0x20:
                found.temporal, found.sync = octet >> 6, bool(octet & 0x20)
            if flags & 0x10:
                found.key_index = octet & 0x1F
    except IndexError:
        raise PayloadError("the VP8 descriptor is cut off") from None
    found.size = at
    return found


def renumbered(payload: bytes, found: Descriptor, picture: int, base: int, key: int) -> bytes:
    """The payload with other numbers where it has any, as long as before: of the picture, modulo its 7 or 15 bits,
    of the lowest temporal layer modulo 256, and of the key frame modulo 32.

    :param found: what :func:`parse` says of it.
    """
    if found.size == 1:
        return payload
    front, at = bytearray(payload[: found.size]), 2
    if found.picture_id is not None:
        if found.long:
            front[2:4] = (picture & 0x7FFF | 0x8000).to_bytes(2, "big")
            at = 4
        else:
            front[2] = picture & 0x7F
            at = 3
    if found.base is not None:
        front[at] = base & 0xFF
        at += 1
    if found.key_index is not None:
        front[at] = front[at] & 0xE0 | key & 0x1F
    return bytes(front) + payload[found.size :]
