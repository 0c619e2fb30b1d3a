"""STUN messages (RFC 8489) with the attributes of TURN (RFC 8656) and ICE (RFC 8445): bytes to values and back.

:func:`parse` is total: any bytes give a :class:`Message` or a :class:`StunError`, in linear time. One
table of attributes serves both directions. Of an attribute that comes twice the first counts, what
follows MESSAGE-INTEGRITY is ignored (RFC 8489, 14.5), padding may be anything on the way in and is
zero on the way out. The classic STUN of RFC 3489 (no magic cookie) is not spoken.
"""

from __future__ import annotations

import hmac
import ipaddress
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from hashlib import md5, sha256
from typing import Any, Generic, TypeAlias, TypeVar, cast

from attrs import field, frozen

COOKIE = 0x2112A442
HEADER_LENGTH = 20
#: The length field has 16 bits and counts whole words.
MAX_LENGTH = HEADER_LENGTH + 0xFFFC
#: RFC 8489, 14.3, 14.9, 14.10 and 14.14: bytes of a text that have to be read, and that may be written.
MAX_TEXT = 763
MAX_WRITTEN = 508

#: RFC 8489, 14.16.
MAX_DOMAIN = 255

_header = struct.Struct("!HHI12s")
_attribute_header = struct.Struct("!HH")
_FINGERPRINT_XOR = 0x5354554E
_INTEGRITY_LENGTH = 20
_FINGERPRINT_LENGTH = 4
_COOKIE_BYTES = COOKIE.to_bytes(4, "big")

#: The IP as canonical text, and the port.
Address: TypeAlias = tuple[str, int]
Buffer: TypeAlias = bytes | bytearray | memoryview
#: A number, which is a :class:`PasswordAlgorithm` where we know it, and its parameters.
Algorithm: TypeAlias = tuple[int, bytes]
T = TypeVar("T")


class StunError(ValueError):
    """The bytes are not a STUN message."""


class Method(IntEnum):
    """The methods of RFC 8489, RFC 8656 and RFC 6062 that we speak."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    #: The three of RFC 6062, 6.1.
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


class Class(IntEnum):
    """RFC 8489, 5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class PasswordAlgorithm(IntEnum):
    """How a key is made of a password (RFC 8489, 18.5)."""

    MD5 = 1
    SHA256 = 2


class Family(IntEnum):
    """RFC 8489, 14.1, and REQUESTED-ADDRESS-FAMILY of RFC 8656, 18.6."""

    IPV4 = 1
    IPV6 = 2


def is_stun(data: Buffer) -> bool:
    """Whether *data* starts like a STUN message: for telling protocols apart, not a check."""
    return len(data) >= HEADER_LENGTH and data[0] < 4 and data[4:8] == _COOKIE_BYTES


# ---- how values are written: pairs of functions (value, transaction id) -> bytes and back ----------


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


def _octets(length: int) -> Format[bytes]:
    return Format(lambda value, _: _exactly(length, value), lambda value, _: _exactly(length, value))


def _bounded(limit: int) -> Format[bytes]:
    def check(value: bytes, _: bytes) -> bytes:
        if len(value) > limit:
            raise StunError(f"{len(value)} bytes where at most {limit} belong")
        return bytes(value)

    return Format(check, check)


def _text(limit: int = MAX_TEXT, written: int = MAX_WRITTEN) -> Format[str]:
    """UTF-8 of at most *limit* bytes on the way in and *written* on the way out."""
    incoming, outgoing = _bounded(limit), _bounded(written)

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
    return family, (hundreds & 7) * 100 + rest


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
    return _attribute_header.pack(number, len(parameters)) + parameters + bytes(-len(parameters) % 4)


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
        number, size = _attribute_header.unpack_from(value, at)
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


_ADDRESS = Format(_pack_address, _unpack_address)
_XOR_ADDRESS = Format(_pack_xor_address, _unpack_xor_address)
_FLAG = Format(_pack_flag, _unpack_flag)
_U8 = _unsigned("!B3x")
_U16 = _unsigned("!H2x")
_U32 = _unsigned("!I")
_U64 = _unsigned("!Q")


# ---- the attributes -----------------------------------------------------------------------------


@frozen
class Attribute(Generic[T]):
    """One row of the table: the type on the wire, the RFC's name, and how the value is written."""

    type: int
    name: str
    format: Format[T] = field(repr=False, eq=False)
    #: Whether more than the first of them counts, as for XOR-PEER-ADDRESS in CreatePermission (RFC 8656, 9.1).
    repeats: bool = False


MAPPED_ADDRESS = Attribute(0x0001, "MAPPED-ADDRESS", _ADDRESS)
USERNAME = Attribute(0x0006, "USERNAME", _text())
MESSAGE_INTEGRITY = Attribute(0x0008, "MESSAGE-INTEGRITY", _octets(_INTEGRITY_LENGTH))
ERROR_CODE = Attribute(0x0009, "ERROR-CODE", Format(_pack_error, _unpack_error))
UNKNOWN_ATTRIBUTES = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", Format(_pack_types, _unpack_types))
CHANNEL_NUMBER = Attribute(0x000C, "CHANNEL-NUMBER", _U16)
LIFETIME = Attribute(0x000D, "LIFETIME", _U32)
XOR_PEER_ADDRESS = Attribute(0x0012, "XOR-PEER-ADDRESS", _XOR_ADDRESS, repeats=True)
DATA = Attribute(0x0013, "DATA", _bounded(0xFFFF))
REALM = Attribute(0x0014, "REALM", _text())
NONCE = Attribute(0x0015, "NONCE", _bounded(MAX_TEXT))
#: Twice in the answer of a dual allocation (RFC 8656, 7.2).
XOR_RELAYED_ADDRESS = Attribute(0x0016, "XOR-RELAYED-ADDRESS", _XOR_ADDRESS, repeats=True)
REQUESTED_ADDRESS_FAMILY = Attribute(0x0017, "REQUESTED-ADDRESS-FAMILY", _U8)
EVEN_PORT = Attribute(0x0018, "EVEN-PORT", Format(_pack_even_port, _unpack_even_port))
REQUESTED_TRANSPORT = Attribute(0x0019, "REQUESTED-TRANSPORT", _U8)
DONT_FRAGMENT = Attribute(0x001A, "DONT-FRAGMENT", _FLAG)
MESSAGE_INTEGRITY_SHA256 = Attribute(0x001C, "MESSAGE-INTEGRITY-SHA256", Format(_pack_sha256, _unpack_sha256))
PASSWORD_ALGORITHM = Attribute(0x001D, "PASSWORD-ALGORITHM", Format(_pack_algorithm, _unpack_algorithm))
USERHASH = Attribute(0x001E, "USERHASH", _octets(32))
XOR_MAPPED_ADDRESS = Attribute(0x0020, "XOR-MAPPED-ADDRESS", _XOR_ADDRESS)
RESERVATION_TOKEN = Attribute(0x0022, "RESERVATION-TOKEN", _octets(8))
PRIORITY = Attribute(0x0024, "PRIORITY", _U32)
USE_CANDIDATE = Attribute(0x0025, "USE-CANDIDATE", _FLAG)
#: RFC 6062, 6.2.1.
CONNECTION_ID = Attribute(0x002A, "CONNECTION-ID", _U32)
ADDITIONAL_ADDRESS_FAMILY = Attribute(0x8000, "ADDITIONAL-ADDRESS-FAMILY", _U8)
ADDRESS_ERROR_CODE = Attribute(0x8001, "ADDRESS-ERROR-CODE", Format(_pack_address_error, _unpack_address_error))
PASSWORD_ALGORITHMS = Attribute(0x8002, "PASSWORD-ALGORITHMS", Format(_pack_algorithms, _unpack_algorithms))
ALTERNATE_DOMAIN = Attribute(0x8003, "ALTERNATE-DOMAIN", _text(MAX_DOMAIN, MAX_DOMAIN))
#: Type, code and error data (RFC 8656, 18.13).
ICMP = Attribute(0x8004, "ICMP", Format(_pack_icmp, _unpack_icmp))
SOFTWARE = Attribute(0x8022, "SOFTWARE", _text())
#: One of the client's family, and perhaps one of the other (RFC 8489, 10).
ALTERNATE_SERVER = Attribute(0x8023, "ALTERNATE-SERVER", _ADDRESS, repeats=True)
FINGERPRINT = Attribute(0x8028, "FINGERPRINT", _U32)
ICE_CONTROLLED = Attribute(0x8029, "ICE-CONTROLLED", _U64)
ICE_CONTROLLING = Attribute(0x802A, "ICE-CONTROLLING", _U64)
#: RFC 8016, 3.3; empty where it asks for one.
MOBILITY_TICKET = Attribute(0x8030, "MOBILITY-TICKET", _bounded(MAX_TEXT))

_TABLE: Mapping[int, Attribute[Any]] = {
    value.type: value for value in list(globals().values()) if isinstance(value, Attribute)
}
#: What may still count after MESSAGE-INTEGRITY (RFC 8489, 14.5), and after MESSAGE-INTEGRITY-SHA256 (14.6).
_AFTER_INTEGRITY = frozenset({MESSAGE_INTEGRITY_SHA256.type, FINGERPRINT.type})
_AFTER_SHA256 = frozenset({FINGERPRINT.type})


# ---- messages -----------------------------------------------------------------------------------


@frozen(eq=False)
class Message:
    """A STUN message as it came."""

    #: A :class:`Method` where we know it.
    method: int
    cls: Class
    transaction_id: bytes
    #: Type to value, of the attributes that are in the table and well formed; the first of each type.
    attributes: Mapping[int, Any]
    #: Comprehension-required types that are not in the table, in their order.
    unknown: tuple[int, ...] = ()
    #: Types in the table whose value makes no sense.
    malformed: tuple[int, ...] = ()
    #: Second and later values of the attributes that may repeat.
    repeated: tuple[tuple[int, Any], ...] = ()
    raw: bytes = field(default=b"", repr=False)
    #: Offsets of the two integrity attributes in ``raw``, 0 where there is none.
    integrity_at: int = field(default=0, repr=False)
    sha256_at: int = field(default=0, repr=False)

    def get(self, attribute: Attribute[T]) -> T | None:
        """The value of *attribute*, None when it is not there."""
        return cast("T | None", self.attributes.get(attribute.type))

    def all(self, attribute: Attribute[T]) -> list[T]:
        """Every value of an attribute that may repeat, in their order."""
        first = self.get(attribute)
        return [] if first is None else [first, *(value for type_, value in self.repeated if type_ == attribute.type)]

    def __contains__(self, attribute: Attribute[Any]) -> bool:
        return attribute.type in self.attributes

    @property
    def protected(self) -> bool:
        """Whether there is an integrity attribute at all; :meth:`verify` says whether it is right."""
        return bool(self.integrity_at or self.sha256_at)

    def verify(self, key: bytes, *, shortest: int = 32) -> bool:
        """Whether the integrity attribute was made with *key*; False when there is none.

        Of two the stronger one counts (RFC 8489, 9.2.4).

        :param shortest: bytes that MESSAGE-INTEGRITY-SHA256 has at least: all of them, unless the usage of STUN allows
            less, which neither ICE nor TURN does (14.6).
        """
        if self.sha256_at:
            found = self.attributes[MESSAGE_INTEGRITY_SHA256.type]
            return len(found) >= shortest and self._matches(key, self.sha256_at, "sha256", found)
        if self.integrity_at:
            return self._matches(key, self.integrity_at, "sha1", self.attributes[MESSAGE_INTEGRITY.type])
        return False

    def _matches(self, key: bytes, at: int, algorithm: str, found: bytes) -> bool:
        # RFC 8489, 14.5: the length field counts up to the end of the integrity attribute itself.
        length = at + 4 + len(found) - HEADER_LENGTH
        signed = self.raw[:2] + length.to_bytes(2, "big") + self.raw[4:at]
        return hmac.compare_digest(hmac.digest(key, signed, algorithm)[: len(found)], found)


def parse(data: Buffer) -> Message:
    """Read one whole message. A wrong FINGERPRINT is an error; integrity is the caller's to verify.

    :raises StunError: these bytes are not one STUN message.
    """
    raw = bytes(data)
    if len(raw) < HEADER_LENGTH:
        raise StunError("shorter than a header")
    kind, length, cookie, transaction_id = _header.unpack_from(raw)
    if kind & 0xC000 or cookie != COOKIE:
        raise StunError("no STUN header")
    if length % 4 or length != len(raw) - HEADER_LENGTH:
        raise StunError("a length that does not fit")
    attributes: dict[int, Any] = {}
    unknown: dict[int, None] = {}
    malformed: dict[int, None] = {}
    repeated: list[tuple[int, Any]] = []
    integrity_at = sha256_at = 0
    allowed: frozenset[int] | None = None
    at = HEADER_LENGTH
    while at < len(raw):
        if at + 4 > len(raw):
            raise StunError("half an attribute header")
        type_, size = _attribute_header.unpack_from(raw, at)
        end = at + 4 + size
        if end > len(raw):
            raise StunError("an attribute that runs over the end")
        if allowed is None or type_ in allowed:
            attribute = _TABLE.get(type_)
            if attribute is None:
                if type_ < 0x8000:
                    unknown[type_] = None
            elif type_ not in malformed and (type_ not in attributes or attribute.repeats):
                try:
                    value = attribute.format.unpack(raw[at + 4 : end], transaction_id)
                except (StunError, struct.error):
                    malformed[type_] = None
                else:
                    if type_ in attributes:
                        repeated.append((type_, value))
                    else:
                        attributes[type_] = value
                if type_ == MESSAGE_INTEGRITY.type:
                    allowed, integrity_at = _AFTER_INTEGRITY, at
                elif type_ == MESSAGE_INTEGRITY_SHA256.type:
                    allowed, sha256_at = _AFTER_SHA256, at
                elif type_ == FINGERPRINT.type:
                    _check_fingerprint(raw, at, attributes.get(type_))
                    break  # RFC 8489, 14.7: it is the last attribute
        at = end + (-size % 4)
    return Message(
        method=_method(kind),
        cls=Class((kind >> 4 & 1) | (kind >> 7 & 2)),
        transaction_id=transaction_id,
        attributes=attributes,
        unknown=tuple(unknown),
        malformed=tuple(malformed),
        repeated=tuple(repeated),
        raw=raw,
        integrity_at=integrity_at if MESSAGE_INTEGRITY.type in attributes else 0,
        sha256_at=sha256_at if MESSAGE_INTEGRITY_SHA256.type in attributes else 0,
    )


def build(
    method: int,
    cls: Class,
    transaction_id: bytes,
    attributes: Iterable[tuple[Attribute[Any], Any]] = (),
    *,
    key: bytes | None = None,
    sha256: bool = False,
    fingerprint: bool = False,
) -> bytes:
    """Write one message: *attributes* in their order, then MESSAGE-INTEGRITY by *key*, then FINGERPRINT.

    :param sha256: sign with MESSAGE-INTEGRITY-SHA256 instead of SHA-1.
    :raises StunError: a value does not fit its attribute.
    """
    kind = (method & 0xF80) << 2 | (method & 0x070) << 1 | method & 0x00F | (cls & 2) << 7 | (cls & 1) << 4
    body = b"".join(
        _attribute(attribute.type, attribute.format.pack(value, transaction_id)) for attribute, value in attributes
    )
    if len(body) + 64 > MAX_LENGTH - HEADER_LENGTH:
        raise StunError("more than fits into one message")

    def head(length: int) -> bytes:
        return _header.pack(kind, length, COOKIE, transaction_id)

    if key is not None:
        row, algorithm, size = (
            (MESSAGE_INTEGRITY_SHA256, "sha256", 32) if sha256 else (MESSAGE_INTEGRITY, "sha1", _INTEGRITY_LENGTH)
        )
        signature = hmac.digest(key, head(len(body) + 4 + size) + body, algorithm)
        body += _attribute(row.type, signature)
    if fingerprint:
        checksum = zlib.crc32(head(len(body) + 4 + _FINGERPRINT_LENGTH) + body) ^ _FINGERPRINT_XOR
        body += _attribute(FINGERPRINT.type, checksum.to_bytes(4, "big"))
    return head(len(body)) + body


def long_term_key(
    username: str, realm: str, password: str, algorithm: PasswordAlgorithm = PasswordAlgorithm.MD5
) -> bytes:
    """The key of the long-term credential mechanism (RFC 8489, 9.2.2 and 18.5.1): 16 bytes of MD5 or 32 of SHA-256."""
    text = f"{username}:{realm}:{password}".encode()
    return sha256(text).digest() if algorithm == PasswordAlgorithm.SHA256 else md5(text, usedforsecurity=False).digest()


def userhash(username: str, realm: str) -> bytes:
    """What stands in USERHASH in the place of a user name (RFC 8489, 14.4)."""
    return sha256(f"{username}:{realm}".encode()).digest()


def _attribute(type_: int, value: bytes) -> bytes:
    return _attribute_header.pack(type_, len(value)) + value + bytes(-len(value) % 4)


def _method(kind: int) -> int:
    return kind >> 2 & 0xF80 | kind >> 1 & 0x070 | kind & 0x00F


def _check_fingerprint(raw: bytes, at: int, found: int | None) -> None:
    # RFC 8489, 14.7: the length field counts up to the end of the FINGERPRINT.
    length = at + 4 + _FINGERPRINT_LENGTH - HEADER_LENGTH
    counted = raw[:2] + length.to_bytes(2, "big") + raw[4:at]
    if found != zlib.crc32(counted) ^ _FINGERPRINT_XOR:
        raise StunError("a wrong FINGERPRINT")
