"""RTP and RTCP by hand, straight from RFC 3550, 4585, 4588 and 8285: what a light client says and understands."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from attrs import frozen

SR, RR, SDES, BYE, RTPFB, PSFB = 200, 201, 202, 203, 205, 206
#: Formats of RTPFB and PSFB.
NACK, TRANSPORT_CC = 1, 15
PLI, FIR, REMB = 1, 4, 15
_ONE_BYTE, _TWO_BYTES = 0xBEDE, 0x1000


@frozen
class Packet:
    """One RTP packet."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    marker: bool = False
    extensions: Mapping[int, bytes] = {}

    def serialize(self) -> bytes:
        """With one-byte header extensions (RFC 8285, 4.2)."""
        head = struct.pack(
            "!BBHII",
            0x90 if self.extensions else 0x80,
            self.payload_type | (0x80 if self.marker else 0),
            self.sequence & 0xFFFF,
            self.timestamp & 0xFFFFFFFF,
            self.ssrc,
        )
        if not self.extensions:
            return head + self.payload
        body = b"".join(bytes((name << 4 | len(value) - 1,)) + value for name, value in self.extensions.items())
        body += bytes(-len(body) % 4)
        return head + struct.pack("!HH", _ONE_BYTE, len(body) // 4) + body + self.payload

    @property
    def original(self) -> int:
        """The sequence number that a packet of RTX repeats (RFC 4588, 4)."""
        return int.from_bytes(self.payload[:2], "big")


def parse(raw: bytes) -> Packet:
    first, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", raw)
    at = 12 + 4 * (first & 15)
    extensions: dict[int, bytes] = {}
    if first & 0x10:
        profile, words = struct.unpack_from("!HH", raw, at)
        body = raw[at + 4 : at + 4 + 4 * words]
        at += 4 + 4 * words
        extensions = dict(_extensions(body, profile))
    end = len(raw) - (raw[-1] if first & 0x20 else 0)
    return Packet(second & 127, sequence, timestamp, ssrc, raw[at:end], bool(second & 128), extensions)


def _extensions(body: bytes, profile: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        if not body[at]:
            at += 1
            continue
        if profile == _ONE_BYTE:
            name, size, at = body[at] >> 4, (body[at] & 15) + 1, at + 1
        else:
            name, size, at = body[at], body[at + 1], at + 2
        yield name, body[at : at + size]
        at += size


@frozen
class Control:
    """One packet of a compound: *count* is what the header has beside the type, *body* all after the first word."""

    kind: int
    count: int
    body: bytes

    def numbers(self) -> set[int]:
        """The sequence numbers that a NACK asks for (RFC 4585, 6.2.1)."""
        asked = set()
        for at in range(8, len(self.body), 4):
            first, others = struct.unpack_from("!HH", self.body, at)
            asked |= {first} | {first + bit + 1 & 0xFFFF for bit in range(16) if others >> bit & 1}
        return asked

    @property
    def media(self) -> int:
        """The SSRC that feedback is about."""
        return int.from_bytes(self.body[4:8], "big")


def parse_compound(raw: bytes) -> list[Control]:
    found = []
    while raw:
        first, kind, words = struct.unpack_from("!BBH", raw)
        found.append(Control(kind, first & 31, raw[4 : 4 + 4 * words]))
        raw = raw[4 + 4 * words :]
    return found


def feedback(kind: int, form: int, media: int, body: bytes = b"", sender: int = 1) -> bytes:
    """RFC 4585, 6.1."""
    content = struct.pack("!II", sender, media) + body
    return struct.pack("!BBH", 0x80 | form, kind, len(content) // 4) + content


def nack(media: int, *numbers: int) -> bytes:
    return feedback(RTPFB, NACK, media, b"".join(struct.pack("!HH", number & 0xFFFF, 0) for number in numbers))


def arrivals(body: bytes) -> tuple[int, int, list[int | None]]:
    """Transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01, 3.1).

    :returns: number of the first packet, that of the feedback, and for each packet its time in units of 250 µs, None
        where it did not come.
    """
    base, count = struct.unpack_from("!HH", body, 8)
    reference, number = int.from_bytes(body[12:15], "big"), body[15]
    statuses: list[int] = []
    at = 16
    while len(statuses) < count:
        (chunk,) = struct.unpack_from("!H", body, at)
        at += 2
        if not chunk >> 15:
            statuses += [chunk >> 13 & 3] * (chunk & 0x1FFF)
        elif chunk >> 14 & 1:
            statuses += [chunk >> shift & 3 for shift in range(12, -1, -2)]
        else:
            statuses += [chunk >> shift & 1 for shift in range(13, -1, -1)]
    moment = reference * 256
    times: list[int | None] = []
    for status in statuses[:count]:
        if status == 0:
            times.append(None)
            continue
        moment += body[at] if status == 1 else struct.unpack_from("!h", body, at)[0]
        at += status
        times.append(moment)
    return base, number, times
