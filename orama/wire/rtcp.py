"""RTCP packets as values: reports, SDES, BYE, NACK, PLI, FIR, REMB (RFC 3550, 4585, 5104, draft-alvestrand-rmcat-remb).

``parse`` takes a compound or reduced-size packet (RFC 5506) and gives a tuple of values; each value
has ``serialize``. Transport-wide feedback stands in ``wire.transport_cc``. What is well formed but not
known comes back as :class:`Unknown`; extended reports (RFC 3611) are among those.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from attrs import frozen

from orama.wire.transport_cc import TransportFeedback, TransportFeedbackError

Buffer = bytes | bytearray | memoryview

SR, RR, SDES, BYE, APP, RTPFB, PSFB, XR = 200, 201, 202, 203, 204, 205, 206, 207
NACK, TRANSPORT_CC = 1, 15
PLI, FIR, APPLICATION = 1, 4, 15
CNAME = 1
MAX_BLOCKS = 31
#: A datagram of minimal packets holds 16 k of them; nobody sends more than a few together.
MAX_PACKETS = 256

_header = struct.Struct("!BBH")
_pair = struct.Struct("!II")
_block = struct.Struct("!IIIIII")
_sender = struct.Struct("!IQIII")


class RtcpError(ValueError):
    """The bytes are not RTCP, or values do not fit into a packet."""


def packet(kind: int, count: int, body: bytes) -> bytes:
    """One RTCP packet around *body*, which is whole words."""
    return _header.pack(0x80 | count, kind, len(body) // 4) + body


@frozen
class ReportBlock:
    """What a receiver says about one stream (RFC 3550, 6.4.1)."""

    ssrc: int
    #: Of 256.
    fraction_lost: int = 0
    #: Since the start; negative with duplicates.
    packets_lost: int = 0
    #: Extended highest sequence number, 32 bits.
    highest_sequence: int = 0
    #: In timestamp units.
    jitter: int = 0
    #: Middle 32 bits of the last sender report's NTP time, and how long ago it came, in 1/65536 s.
    last_report: int = 0
    delay: int = 0

    def serialize(self) -> bytes:
        lost = max(-0x800000, min(0x7FFFFF, self.packets_lost)) & 0xFFFFFF
        return _block.pack(
            self.ssrc, self.fraction_lost << 24 | lost, self.highest_sequence, self.jitter, self.last_report, self.delay
        )


@frozen
class SenderReport:
    """RFC 3550, 6.4.1; ``ntp_time`` is the 64-bit NTP timestamp."""

    ssrc: int
    ntp_time: int
    rtp_time: int
    packet_count: int
    octet_count: int
    blocks: tuple[ReportBlock, ...] = ()

    def serialize(self) -> bytes:
        body = _sender.pack(self.ssrc, self.ntp_time, self.rtp_time, self.packet_count, self.octet_count)
        return packet(SR, len(self.blocks), body + b"".join(block.serialize() for block in self.blocks))


@frozen
class ReceiverReport:
    """RFC 3550, 6.4.2."""

    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()

    def serialize(self) -> bytes:
        body = self.ssrc.to_bytes(4, "big") + b"".join(block.serialize() for block in self.blocks)
        return packet(RR, len(self.blocks), body)


@frozen
class SourceDescription:
    """RFC 3550, 6.5, the canonical names alone: (ssrc, cname) pairs."""

    chunks: tuple[tuple[int, str], ...]

    def serialize(self) -> bytes:
        body = b""
        for ssrc, cname in self.chunks:
            text = cname.encode()[:255]
            chunk = ssrc.to_bytes(4, "big") + bytes((CNAME, len(text))) + text
            body += chunk + bytes(4 - len(chunk) % 4)  # at least one zero ends the list
        return packet(SDES, len(self.chunks), body)


@frozen
class Goodbye:
    """RFC 3550, 6.6."""

    ssrcs: tuple[int, ...]

    def serialize(self) -> bytes:
        return packet(BYE, len(self.ssrcs), b"".join(ssrc.to_bytes(4, "big") for ssrc in self.ssrcs))


@frozen
class Nack:
    """Sequence numbers asked again (RFC 4585, 6.2.1)."""

    sender_ssrc: int
    media_ssrc: int
    sequence_numbers: tuple[int, ...]

    def serialize(self) -> bytes:
        """Numbers in any order; they should come sorted along the wrap to make few words."""
        body = bytearray(_pair.pack(self.sender_ssrc, self.media_ssrc))
        first, mask = -1, 0
        for number in self.sequence_numbers:
            offset = (number - first - 1) & 0xFFFF
            if first >= 0 and offset < 16:
                mask |= 1 << offset
                continue
            if first >= 0 and number == first:
                continue
            if first >= 0:
                body += first.to_bytes(2, "big") + mask.to_bytes(2, "big")
            first, mask = number, 0
        if first >= 0:
            body += first.to_bytes(2, "big") + mask.to_bytes(2, "big")
        return packet(RTPFB, NACK, bytes(body))


@frozen
class PictureLoss:
    """PLI (RFC 4585, 6.3.1)."""

    sender_ssrc: int
    media_ssrc: int

    def serialize(self) -> bytes:
        return packet(PSFB, PLI, _pair.pack(self.sender_ssrc, self.media_ssrc))


@frozen
class FullIntraRequest:
    """FIR (RFC 5104, 4.3.1): (ssrc, command number) pairs."""

    sender_ssrc: int
    requests: tuple[tuple[int, int], ...]

    def serialize(self) -> bytes:
        body = _pair.pack(self.sender_ssrc, 0)
        return packet(PSFB, FIR, body + b"".join(_pair.pack(ssrc, number << 24) for ssrc, number in self.requests))


@frozen
class ReceiverEstimate:
    """REMB: bits per second that the receiver can take for these sources."""

    sender_ssrc: int
    bitrate: int
    ssrcs: tuple[int, ...]

    def serialize(self) -> bytes:
        exponent = max(0, self.bitrate.bit_length() - 18)
        word = len(self.ssrcs) << 24 | exponent << 18 | self.bitrate >> exponent
        body = _pair.pack(self.sender_ssrc, 0) + b"REMB" + word.to_bytes(4, "big")
        return packet(PSFB, APPLICATION, body + b"".join(ssrc.to_bytes(4, "big") for ssrc in self.ssrcs))


@frozen
class Unknown:
    """A well-formed packet of a kind that is not read here."""

    kind: int
    count: int
    body: bytes

    def serialize(self) -> bytes:
        return packet(self.kind, self.count, self.body)


RtcpPacket: TypeAlias = (
    SenderReport
    | ReceiverReport
    | SourceDescription
    | Goodbye
    | Nack
    | PictureLoss
    | FullIntraRequest
    | ReceiverEstimate
    | TransportFeedback
    | Unknown
)


def serialize(packets: Iterable[RtcpPacket]) -> bytes:
    """A compound packet."""
    return b"".join(each.serialize() for each in packets)


def parse(data: Buffer, *, transport_wide: bool = True) -> tuple[RtcpPacket, ...]:
    """Read a compound or reduced-size packet.

    :param transport_wide: False leaves transport-wide feedback unread, as :class:`Unknown`: its runs say thousands of
        statuses in 24 bytes, 0.16 ms to read.
    :raises RtcpError: any part of it is malformed; then none of it counts.
    """
    view, at = bytes(data), 0
    found: list[RtcpPacket] = []
    if not view:
        raise RtcpError("empty")
    while at < len(view):
        if len(view) - at < 4:
            raise RtcpError("ends inside a header")
        if len(found) == MAX_PACKETS:
            raise RtcpError("too many packets")
        first, kind, words = _header.unpack_from(view, at)
        end = at + 4 + 4 * words
        if first >> 6 != 2 or end > len(view):
            raise RtcpError("not version 2, or longer than the datagram")
        body = view[at + 4 : end]
        if first & 0x20:
            if end != len(view) or not body or not 0 < body[-1] <= len(body):
                raise RtcpError("padding of an impossible length")
            body = body[: -body[-1]]
        count = first & 0x1F
        unread = kind == RTPFB and count == TRANSPORT_CC and not transport_wide
        found.append(Unknown(kind, count, body) if unread else _parse_one(kind, count, body))
        at = end
    return tuple(found)


def _parse_one(kind: int, count: int, body: bytes) -> RtcpPacket:
    if kind == SR:
        if len(body) < 24 + 24 * count:
            raise RtcpError("sender report too short")
        ssrc, ntp_time, rtp_time, packets, octets = _sender.unpack_from(body)
        return SenderReport(ssrc, ntp_time, rtp_time, packets, octets, _blocks(body, 24, count))
    if kind == RR:
        if len(body) < 4 + 24 * count:
            raise RtcpError("receiver report too short")
        return ReceiverReport(int.from_bytes(body[:4], "big"), _blocks(body, 4, count))
    if kind == SDES:
        return _source_description(body, count)
    if kind == BYE:
        if len(body) < 4 * count:
            raise RtcpError("goodbye too short")
        return Goodbye(struct.unpack_from(f"!{count}I", body))
    if kind in (RTPFB, PSFB):
        if len(body) < 8:
            raise RtcpError("feedback too short")
        return _transport_feedback(count, body) if kind == RTPFB else _payload_feedback(count, body)
    return Unknown(kind, count, body)


def _blocks(body: bytes, at: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for start in range(at, at + 24 * count, 24):
        ssrc, lost, highest, jitter, last, delay = _block.unpack_from(body, start)
        total = lost & 0xFFFFFF
        blocks.append(
            ReportBlock(ssrc, lost >> 24, total - (total >> 23 << 24), highest, jitter, last, delay),
        )
    return tuple(blocks)


def _source_description(body: bytes, count: int) -> SourceDescription:
    chunks, at = [], 0
    for _ in range(count):
        if at + 4 > len(body):
            raise RtcpError("source description too short")
        ssrc, name, at = int.from_bytes(body[at : at + 4], "big"), "", at + 4
        while at < len(body) and body[at]:
            if at + 2 > len(body) or at + 2 + body[at + 1] > len(body):
                raise RtcpError("source description item too long")
            end = at + 2 + body[at + 1]
            if body[at] == CNAME:
                name = body[at + 2 : end].decode("utf-8", "replace")
            at = end
        if at >= len(body):
            raise RtcpError("source description without an end")
        at = (at // 4 + 1) * 4
        chunks.append((ssrc, name))
    return SourceDescription(tuple(chunks))


def _transport_feedback(count: int, body: bytes) -> RtcpPacket:
    if count == NACK:
        sender, media = _pair.unpack_from(body)
        return Nack(sender, media, tuple(_nack_numbers(body[8:])))
    if count == TRANSPORT_CC:
        try:
            return TransportFeedback.parse(body)
        except TransportFeedbackError as error:
            raise RtcpError(str(error)) from None
    return Unknown(RTPFB, count, body)


def _nack_numbers(words: bytes) -> list[int]:
    if len(words) % 4:
        raise RtcpError("NACK of half a word")
    numbers = []
    for at in range(0, len(words), 4):
        first, mask = words[at] << 8 | words[at + 1], words[at + 2] << 8 | words[at + 3]
        numbers.append(first)
        while mask:
            bit = mask & -mask
            numbers.append((first + bit.bit_length()) & 0xFFFF)
            mask ^= bit
    return numbers


def _payload_feedback(count: int, body: bytes) -> RtcpPacket:
    sender, media = _pair.unpack_from(body)
    if count == PLI:
        return PictureLoss(sender, media)
    if count == FIR:
        if len(body) % 8:
            raise RtcpError("FIR of half an entry")
        entries = (_pair.unpack_from(body, at) for at in range(8, len(body), 8))
        return FullIntraRequest(sender, tuple((ssrc, word >> 24) for ssrc, word in entries))
    if count == APPLICATION and body[8:12] == b"REMB":
        if len(body) < 16 or len(body) < 16 + 4 * body[12]:
            raise RtcpError("REMB too short")
        word = int.from_bytes(body[12:16], "big")
        bitrate = (word & 0x3FFFF) << (word >> 18 & 0x3F)
        return ReceiverEstimate(sender, bitrate, struct.unpack_from(f"!{body[12]}I", body, 16))
    return Unknown(PSFB, count, body)


def reports(ssrc: int, blocks: Sequence[ReportBlock]) -> list[ReceiverReport]:
    """Receiver reports for any number of blocks, 31 in each; one empty report for none."""
    return [ReceiverReport(ssrc, tuple(blocks[at : at + MAX_BLOCKS])) for at in range(0, len(blocks) or 1, MAX_BLOCKS)]
