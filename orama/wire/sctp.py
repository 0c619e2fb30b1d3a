"""SCTP packets (RFC 9260, 3) as data channels need them for each message: the checksum, the walk over chunks, and
DATA, SACK and FORWARD TSN (RFC 3758, 3.2). Setting up associations and resetting streams is not here.

Parsers take any bytes and raise :class:`SctpError`, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen
from google_crc32c import value as crc32c

DATA: Final = 0
INIT: Final = 1
SACK: Final = 3
FORWARD_TSN: Final = 192
#: Flags of DATA (RFC 9260, 3.3.1).
LAST: Final = 1
FIRST: Final = 2
UNORDERED: Final = 4
COMMON_HEADER: Final = 12
CHUNK_HEADER: Final = 4
DATA_HEADER: Final = 16
#: A packet of this length fits 1,280 bytes, the least that IPv6 carries, under UDP, DTLS and a TURN channel's header.
MAX_PACKET: Final = 1188
#: What is left for chunks.
MAX_CHUNKS: Final = MAX_PACKET - COMMON_HEADER
#: User data of one DATA chunk.
MAX_FRAGMENT: Final = MAX_CHUNKS - DATA_HEADER
#: Chunks of four bytes that fit the longest datagram that we take.
MOST_CHUNKS: Final = 512

_common = struct.Struct("!HHL")
_checksum = struct.Struct("<L")
_chunk = struct.Struct("!BBH")
_data = struct.Struct("!BBHLHHL")
_data_body = struct.Struct("!LHHL")
_sack = struct.Struct("!BBHLLHH")
_sack_body = struct.Struct("!LLHH")
_tsn = struct.Struct("!L")
_forward = struct.Struct("!BBHL")
_pair = struct.Struct("!HH")
_NO_CHECKSUM = bytes(4)
_PADDING = (b"", bytes(3), bytes(2), bytes(1))


class SctpError(Exception):
    """What came is not SCTP, or breaks its rules."""


@frozen
class Fragment:
    """A DATA chunk. ``tsn`` has 32 bits, ``sequence`` 16."""

    tsn: int
    stream: int
    sequence: int
    protocol: int
    flags: int
    data: bytes


@frozen
class Acknowledgement:
    """A SACK. Gap blocks are first and last TSN beyond the cumulative one, both inside."""

    cumulative: int
    window: int
    gaps: tuple[tuple[int, int], ...]


@frozen
class Forward:
    """A FORWARD TSN; for each ordered stream the last sequence number that is skipped."""

    cumulative: int
    streams: tuple[tuple[int, int], ...]


def split(packet: bytes) -> tuple[int, list[tuple[int, int, int, int]]]:
    """The verification tag, and for each chunk its type, its flags and where its body begins and ends.

    :raises SctpError: too short, the wrong checksum, or a chunk that does not fit.
    """
    size = len(packet)
    if size < COMMON_HEADER + CHUNK_HEADER:
        raise SctpError("too short")
    if _checksum.unpack_from(packet, 8)[0] != crc32c(packet[:8] + _NO_CHECKSUM + packet[12:]):
        raise SctpError("checksum")
    chunks: list[tuple[int, int, int, int]] = []
    at = COMMON_HEADER
    while at + CHUNK_HEADER <= size:
        kind, flags, length = _chunk.unpack_from(packet, at)
        end = at + length
        if length < CHUNK_HEADER or end > size or len(chunks) == MOST_CHUNKS:
            raise SctpError("chunk length")
        chunks.append((kind, flags, at + CHUNK_HEADER, end))
        at = end + -length % 4
    return _tsn.unpack_from(packet, 4)[0], chunks


def packet(source_port: int, destination_port: int, tag: int, chunks: bytes) -> bytes:
    """A whole packet; *chunks* are padded."""
    header = _common.pack(source_port, destination_port, tag)
    return header + _checksum.pack(crc32c(header + _NO_CHECKSUM + chunks)) + chunks


def fragment(packet: bytes, flags: int, start: int, end: int) -> Fragment:
    """
    :raises SctpError: no header, or no user data (RFC 9260, 6.2).
    """
    if end - start <= _data_body.size:
        raise SctpError("DATA without data")
    tsn, stream, sequence, protocol = _data_body.unpack_from(packet, start)
    return Fragment(tsn, stream, sequence, protocol, flags, packet[start + 12 : end])


def data_chunk(tsn: int, stream: int, sequence: int, protocol: int, flags: int, data: bytes) -> bytes:
    """A DATA chunk with its padding."""
    size = len(data)
    return _data.pack(DATA, flags, DATA_HEADER + size, tsn, stream, sequence, protocol) + data + _PADDING[size % 4]


def acknowledgement(packet: bytes, start: int, end: int) -> Acknowledgement:
    """
    :raises SctpError: shorter than it says.
    """
    if end - start < _sack_body.size:
        raise SctpError("SACK without header")
    cumulative, window, gaps, duplicates = _sack_body.unpack_from(packet, start)
    at = start + _sack_body.size
    if end - at < 4 * (gaps + duplicates):
        raise SctpError("SACK shorter than it says")
    return Acknowledgement(cumulative, window, tuple(_pair.iter_unpack(packet[at : at + 4 * gaps])) if gaps else ())


def sack_chunk(
    cumulative: int, window: int, gaps: Iterable[tuple[int, int]] = (), duplicates: Iterable[int] = ()
) -> bytes:
    """A SACK chunk."""
    blocks = [_pair.pack(*gap) for gap in gaps]
    twice = [_tsn.pack(tsn) for tsn in duplicates]
    length = _sack.size + 4 * (len(blocks) + len(twice))
    return b"".join((_sack.pack(SACK, 0, length, cumulative, window, len(blocks), len(twice)), *blocks, *twice))


def forward(packet: bytes, start: int, end: int) -> Forward:
    """
    :raises SctpError: not a number and whole pairs.
    """
    if end - start < 4 or (end - start) % 4:
        raise SctpError("FORWARD TSN length")
    return Forward(_tsn.unpack_from(packet, start)[0], tuple(_pair.iter_unpack(packet[start + 4 : end])))


def forward_chunk(cumulative: int, streams: Mapping[int, int]) -> bytes:
    """A FORWARD TSN chunk; *streams* gives the sequence number skipped last."""
    header = _forward.pack(FORWARD_TSN, 0, _forward.size + 4 * len(streams), cumulative)
    return b"".join((header, *(_pair.pack(stream, sequence) for stream, sequence in streams.items())))


def ahead(tsn: int, of: int) -> int:
    """How far the 32-bit *tsn* is ahead of *of* (RFC 1982), an unbounded number; negative behind."""
    return (tsn - of + 0x80000000) % 0x100000000 - 0x80000000
