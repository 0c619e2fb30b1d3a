"""A second reading of STUN (RFC 8489, 5 and 14), written from the RFC for comparison: slow, plain, and nothing shared.

It knows of each attribute which values are well formed, and reads the whole message before it judges.
"""

from __future__ import annotations

import binascii
import ipaddress
from collections.abc import Callable, Mapping

from attrs import define, field

_MAGIC = bytes.fromhex("2112a442")
INTEGRITY, SHA256, FINGERPRINT = 0x0008, 0x001C, 0x8028
PEER = 0x0012
#: Of which more than the first counts.
REPEATED = frozenset({PEER, 0x0016, 0x8023})

Check = Callable[[bytes], bool]


def _exactly(length: int) -> Check:
    return lambda value: len(value) == length


def _at_most(length: int) -> Check:
    return lambda value: len(value) <= length


def _text(length: int) -> Check:
    def check(value: bytes) -> bool:
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            return False
        return len(value) <= length

    return check


def _address(value: bytes) -> bool:
    return (len(value), value[1:2]) in ((8, b"\1"), (20, b"\2"))


def _error(value: bytes) -> bool:
    return 4 <= len(value) <= 767 and 3 <= value[2] % 8 <= 6 and value[3] < 100


def _algorithms(value: bytes) -> int | None:
    """How many algorithms with their parameters (RFC 8489, 14.11) there are; None when they do not fit."""
    count = at = 0
    while at < len(value):
        size = int.from_bytes(value[at + 2 : at + 4], "big")
        if at + 4 + size > len(value):
            return None
        at, count = at + 4 + (size + 3) // 4 * 4, count + 1
    return count


#: Of the attributes that this reader knows: whether a value is well formed.
KNOWN: Mapping[int, Check] = {
    0x0001: _address,
    0x0006: _text(763),
    INTEGRITY: _exactly(20),
    0x0009: _error,
    0x000A: lambda value: len(value) % 2 == 0,
    0x000C: _exactly(4),
    0x000D: _exactly(4),
    PEER: _address,
    0x0013: _at_most(65535),
    0x0014: _text(763),
    0x0015: _at_most(763),
    0x0016: _address,
    0x0017: _exactly(4),
    0x0018: _exactly(1),
    0x0019: _exactly(4),
    0x001A: _exactly(0),
    SHA256: lambda value: len(value) in (16, 20, 24, 28, 32),
    0x001D: lambda value: _algorithms(value) == 1,
    0x001E: _exactly(32),
    0x0020: _address,
    0x0022: _exactly(8),
    0x0024: _exactly(4),
    0x0025: _exactly(0),
    0x002A: _exactly(4),
    0x8000: _exactly(4),
    0x8001: lambda value: _error(value[:4]),
    0x8002: lambda value: _algorithms(value) is not None,
    0x8003: _text(255),
    0x8004: _exactly(8),
    0x8022: _text(763),
    0x8023: _address,
    FINGERPRINT: _exactly(4),
    0x8029: _exactly(8),
    0x802A: _exactly(8),
    0x8030: _at_most(763),
}
XORED = frozenset({PEER, 0x0016, 0x0020})
ADDRESSES = XORED | {0x0001, 0x8023}
NUMBERS: Mapping[int, slice] = {
    0x000C: slice(0, 2),
    0x000D: slice(0, 4),
    0x0017: slice(0, 1),
    0x0019: slice(0, 1),
    0x0024: slice(0, 4),
    0x002A: slice(0, 4),
    0x8000: slice(0, 1),
    0x8029: slice(0, 8),
    0x802A: slice(0, 8),
}
TEXTS = frozenset({0x0006, 0x0014, 0x8003, 0x8022})
OCTETS = frozenset({0x0013, 0x0015, 0x001E, 0x0022, 0x8030, INTEGRITY, SHA256})


@define
class Reading:
    """What a message says."""

    kind: int
    transaction: bytes
    #: Type and value of every attribute that counts, in their order: the first of each type, or all.
    counted: list[tuple[int, bytes]] = field(factory=list)
    #: Every byte that is padding, whether it counts or not.
    padding: bytes = b""

    def value(self, kind: int) -> bytes | None:
        """The first value of a type."""
        return next((value for found, value in self.counted if found == kind), None)


def attributes(message: bytes) -> list[tuple[int, int, bytes, bytes]] | None:
    """Offset, type, value and padding of everything up to a FINGERPRINT (RFC 8489, 14.7: it is the last one).

    None when they do not fill the message.
    """
    found = []
    at = 20
    while at != len(message):
        kind, size = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
        value, end = message[at + 4 : at + 4 + size], at + 4 + (size + 3) // 4 * 4
        if len(message) < at + 4 or end > len(message):
            return None
        found.append((at, kind, value, message[at + 4 + size : end]))
        if kind == FINGERPRINT:
            break
        at = end
    return found


def read(message: bytes) -> Reading | None:
    """What *message* says; None when it is no STUN message."""
    if len(message) < 20 or message[0] >= 0x40 or message[4:8] != _MAGIC:
        return None
    if int.from_bytes(message[2:4], "big") + 20 != len(message) or len(message) % 4:
        return None
    everything = attributes(message)
    if everything is None:
        return None
    return _count(message, everything, Reading(int.from_bytes(message[:2], "big"), message[8:20]))


def _count(message: bytes, everything: list[tuple[int, int, bytes, bytes]], reading: Reading) -> Reading | None:
    seen: set[int] = set()
    for at, kind, value, padding in everything:
        reading.padding += padding
        if kind != FINGERPRINT and (SHA256 in seen or (INTEGRITY in seen and kind != SHA256)):
            continue
        if kind == FINGERPRINT:
            length = (at + 8 - 20).to_bytes(2, "big")
            crc = binascii.crc32(message[:2] + length + message[4:at]) ^ int.from_bytes(b"STUN", "big")
            if value != crc.to_bytes(4, "big"):
                return None
            reading.counted.append((kind, value))
            return reading
        if kind not in seen or kind in REPEATED:
            reading.counted.append((kind, value))
        seen.add(kind)
    return reading


def address(kind: int, value: bytes, transaction: bytes) -> tuple[str, int]:
    """IP and port in a well-formed value of one of :data:`ADDRESSES`."""
    port, ip = value[2:4], value[4:]
    if kind in XORED:
        port = bytes(a ^ b for a, b in zip(port, _MAGIC, strict=False))
        ip = bytes(a ^ b for a, b in zip(ip, _MAGIC + transaction, strict=False))
    return str(ipaddress.ip_address(ip)), int.from_bytes(port, "big")
