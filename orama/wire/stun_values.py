"""How the values of STUN's attributes are written (RFC 8489, 14; RFC 8656, 18): pairs of functions, there and back.

Each takes the transaction id besides, under which addresses are masked. Reading raises :class:`StunError`, or
``struct.error`` for what is too short; it never takes more than linear time.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Generic, TypeAlias, TypeVar, cast

from attrs import frozen

COOKIE = 0x2112A442
#: RFC 8489, 14.3, 14.9, 14.10 and 14.14: bytes of a text that have to be read, and that may be written.
MAX_TEXT = 763
MAX_WRITTEN = 508

_pair = struct.Struct("!HH")
_COOKIE_BYTES = COOKIE.to_bytes(4, "big")

#: The IP as canonical text, and the port.
Address: TypeAlias = tuple[str, int]
#: A number, which is a :class:`PasswordAlgorithm` where we know it, and its parameters.
Algorithm: TypeAlias = tuple[int, bytes]
T = TypeVar("T")


class StunError(ValueError):
    """The bytes are not a STUN message."""


class PasswordAlgorithm(IntEnum):
    """How a key is made of a password (RFC 8489, 18.5)."""

    MD5 = 1
    SHA256 = 2


class Family(IntEnum):
    """RFC 8489, 14.1, and REQUESTED-ADDRESS-FAMILY of RFC 8656, 18.6."""

    IPV4 = 1
    IPV6 = 2


@frozen
class Format(Generic[T]):
    """How one kind of value is written. ``unpack`` raises StunError, or struct.error when it is too short."""

    pack: Callable[[T, bytes], bytes]
    unpack: Callable[[bytes, bytes], T]


def _exactly(length: int, value: bytes) -> bytes:
    if len(value) != length:
        raise StunError(f"{len(value)} bytes where {length} belong")
    return value


def _unsigned(layout: str) -> Format[int]:
    codec = struct.Struct(layout)

    def unpack(value: bytes, _: bytes) -> int:
        return cast(int, codec.unpack(value)[0])

    return Format(lambda value, _: codec.pack(value), unpack)


def octets(length: int) -> Format[bytes]:
    return Format(lambda value, _: _exactly(length, value), lambda value, _: _exactly(length, value))


def bounded(limit: int) -> Format[bytes]:
    def check(value: bytes, _: bytes) -> bytes:
        if len(value) > limit:
            raise StunError(f"{len(value)} bytes where at most {limit} belong")
        return bytes(value)

    return Format(check, check)


def text(limit: int = MAX_TEXT, written: int = MAX_WRITTEN) -> Format[str]:
    """UTF-8 of at most *limit* bytes on the way in and *written* on the way out."""
    incoming, outgoing = bounded(limit), bounded(written)

    def unpack(value: bytes, transaction_id: bytes) -> str:
        try:
            return incoming.unpack(value, transaction_id).decode("utf-8")
        except UnicodeDecodeError:
            raise StunError("text that is not UTF-8") from None

    return Format(lambda value, transaction_id: outgoing.pack(value.encode("utf-8"), transaction_id), unpack)


def _pack_flag(_: bool, __: bytes) -> bytes:
    return b""


def _unpack_flag(value: bytes, _: bytes) -> bool:
    _exactly(0, value)
    return True


def _pack_address(address: Address, _: bytes) -> bytes:
    host, port = address
    if ":" in host:
        return struct.pack("!xBH", Family.IPV6, port) + ipaddress.IPv6Address(host).packed
    return struct.pack("!xBH", Family.IPV4, port) + bytes(map(int, host.split(".")))


def _unpack_address(value: bytes, _: bytes) -> Address:
    family, port = struct.unpack_from("!xBH", value)
    if family == Family.IPV4 and len(value) == 8:
        return ".".join(map(str, value[4:])), port
    if family == Family.IPV6 and len(value) == 20:
        return str(ipaddress.IPv6Address(value[4:])), port
    raise StunError(f"address family {family} in {len(value)} bytes")


def _mask(value: bytes, transaction_id: bytes) -> bytes:
    """RFC 8489, 14.2: the port is XORed with the cookie's upper half, the IP with cookie and transaction id."""
    rest = value[2:]
    key = (_COOKIE_BYTES[:2] + _COOKIE_BYTES + transaction_id)[: len(rest)]
    masked = int.from_bytes(rest, "big") ^ int.from_bytes(key, "big")
    return value[:2] + masked.to_bytes(len(rest), "big")


def _pack_xor_address(address: Address, transaction_id: bytes) -> bytes:
    return _mask(_pack_address(address, transaction_id), transaction_id)


def _unpack_xor_address(value: bytes, transaction_id: bytes) -> Address:
    if len(value) not in (8, 20):
        raise StunError(f"an address in {len(value)} bytes")
    return _unpack_address(_mask(value, transaction_id), transaction_id)


def _pack_error(error: tuple[int, str], _: bytes) -> bytes:
    code, reason = error
    return struct.pack("!HBB", 0, code // 100, code % 100) + reason.encode("utf-8")


def _unpack_error(value: bytes, _: bytes) -> tuple[int, str]:
    hundreds, rest = struct.unpack_from("!xxBB", value)
    hundreds &= 7
    if not 3 <= hundreds <= 6 or rest > 99 or len(value) > 4 + MAX_TEXT:
        raise StunError("an error code outside 300 to 699")
    return hundreds * 100 + rest, value[4:].decode("utf-8", "replace")


def _pack_address_error(error: tuple[int, int], _: bytes) -> bytes:
    family, code = error
    return struct.pack("!BxBB", family, code // 100, code % 100)


def _unpack_address_error(value: bytes, _: bytes) -> tuple[int, int]:
    family, hundreds, rest = struct.unpack_from("!BxBB", value)
    hundreds &= 7
    if not 3 <= hundreds <= 6 or rest > 99:
        raise StunError("an error code outside 300 to 699")
    return family, hundreds * 100 + rest


def _pack_types(types: Sequence[int], _: bytes) -> bytes:
    return struct.pack(f"!{len(types)}H", *types)


def _unpack_types(value: bytes, _: bytes) -> Sequence[int]:
    return struct.unpack(f"!{len(value) // 2}H", value)


def _pack_even_port(reserve: bool, _: bytes) -> bytes:
    return b"\x80" if reserve else b"\x00"


def _unpack_even_port(value: bytes, _: bytes) -> bool:
    return _exactly(1, value)[0] & 0x80 != 0


def _pack_sha256(value: bytes, _: bytes) -> bytes:
    return value


def _unpack_sha256(value: bytes, _: bytes) -> bytes:
    if not 16 <= len(value) <= 32 or len(value) % 4:  # RFC 8489, 14.6
        raise StunError("a SHA-256 integrity of a wrong length")
    return value


def _pack_algorithm(algorithm: Algorithm, _: bytes) -> bytes:
    number, parameters = algorithm
    return _pair.pack(number, len(parameters)) + parameters + bytes(-len(parameters) % 4)


def _unpack_algorithm(value: bytes, _: bytes) -> Algorithm:
    algorithms = _unpack_algorithms(value, _)
    if len(algorithms) != 1:
        raise StunError(f"{len(algorithms)} algorithms where one belongs")
    return algorithms[0]


def _pack_algorithms(algorithms: Sequence[Algorithm], _: bytes) -> bytes:
    return b"".join(_pack_algorithm(algorithm, _) for algorithm in algorithms)


def _unpack_algorithms(value: bytes, _: bytes) -> tuple[Algorithm, ...]:
    """RFC 8489, 14.11: number, length of the parameters, the parameters, padding."""
    algorithms = []
    at = 0
    while at < len(value):
        number, size = _pair.unpack_from(value, at)
        if at + 4 + size > len(value):
            raise StunError("parameters that run over the end")
        algorithms.append((number, value[at + 4 : at + 4 + size]))
        at += 4 + size + -size % 4
    return tuple(algorithms)


def _pack_icmp(error: tuple[int, int, int], _: bytes) -> bytes:
    """RFC 8656, 18.13: by its figure the type has seven bits and the code nine."""
    kind, code, data = error
    if kind > 0x7F or code > 0x1FF:
        raise StunError("an ICMP type of more than 7 bits or a code of more than 9")
    return struct.pack("!xxHI", kind << 9 | code, data)


def _unpack_icmp(value: bytes, _: bytes) -> tuple[int, int, int]:
    both, data = struct.unpack("!xxHI", value)
    return both >> 9, both & 0x1FF, data


#: Formats, for the table of attributes.
ADDRESS = Format(_pack_address, _unpack_address)
XOR_ADDRESS = Format(_pack_xor_address, _unpack_xor_address)
FLAG = Format(_pack_flag, _unpack_flag)
U8 = _unsigned("!B3x")
U16 = _unsigned("!H2x")
U32 = _unsigned("!I")
U64 = _unsigned("!Q")
ERROR = Format(_pack_error, _unpack_error)
ADDRESS_ERROR = Format(_pack_address_error, _unpack_address_error)
TYPES = Format(_pack_types, _unpack_types)
EVEN_PORT = Format(_pack_even_port, _unpack_even_port)
SHA256 = Format(_pack_sha256, _unpack_sha256)
ALGORITHM = Format(_pack_algorithm, _unpack_algorithm)
ALGORITHMS = Format(_pack_algorithms, _unpack_algorithms)
ICMP = Format(_pack_icmp, _unpack_icmp)
