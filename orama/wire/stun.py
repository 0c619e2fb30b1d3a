"""STUN messages (RFC 8489) with the attributes of TURN (RFC 8656) and ICE (RFC 8445): bytes to values and back.

:func:`parse` is total: any bytes give a :class:`Message` or a :class:`StunError`, in linear time. One
table of attributes serves both directions. Of an attribute that comes twice the first counts, what
follows MESSAGE-INTEGRITY is ignored (RFC 8489, 14.5), padding may be anything on the way in and is
zero on the way out. The classic STUN of RFC 3489 (no magic cookie) is not spoken.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from collections.abc import Iterable, Mapping
from enum import IntEnum
from hashlib import md5, sha256
from typing import Any, Generic, TypeAlias, TypeVar, cast

from attrs import field, frozen

from orama.wire import stun_values as values
from orama.wire.stun_values import COOKIE as COOKIE
from orama.wire.stun_values import Address as Address
from orama.wire.stun_values import Algorithm as Algorithm
from orama.wire.stun_values import Family as Family
from orama.wire.stun_values import Format as Format
from orama.wire.stun_values import PasswordAlgorithm as PasswordAlgorithm
from orama.wire.stun_values import StunError as StunError

HEADER_LENGTH = 20
#: The length field has 16 bits and counts whole words.
MAX_LENGTH = HEADER_LENGTH + 0xFFFC
#: RFC 8489, 14.16.
MAX_DOMAIN = 255

_header = struct.Struct("!HHI12s")
_attribute_header = struct.Struct("!HH")
_FINGERPRINT_XOR = 0x5354554E
_INTEGRITY_LENGTH = 20
_FINGERPRINT_LENGTH = 4
_COOKIE_BYTES = COOKIE.to_bytes(4, "big")

Buffer: TypeAlias = bytes | bytearray | memoryview
T = TypeVar("T")


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


def is_stun(data: Buffer) -> bool:
    """Whether *data* starts like a STUN message: for telling protocols apart, not a check."""
    return len(data) >= HEADER_LENGTH and data[0] < 4 and data[4:8] == _COOKIE_BYTES


# ---- the attributes -----------------------------------------------------------------------------


@frozen
class Attribute(Generic[T]):
    """One row of the table: the type on the wire, the RFC's name, and how the value is written."""

    type: int
    name: str
    format: Format[T] = field(repr=False, eq=False)
    #: Whether more than the first of them counts, as for XOR-PEER-ADDRESS in CreatePermission (RFC 8656, 9.1).
    repeats: bool = False


MAPPED_ADDRESS = Attribute(0x0001, "MAPPED-ADDRESS", values.ADDRESS)
USERNAME = Attribute(0x0006, "USERNAME", values.text())
MESSAGE_INTEGRITY = Attribute(0x0008, "MESSAGE-INTEGRITY", values.octets(_INTEGRITY_LENGTH))
ERROR_CODE = Attribute(0x0009, "ERROR-CODE", values.ERROR)
UNKNOWN_ATTRIBUTES = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", values.TYPES)
CHANNEL_NUMBER = Attribute(0x000C, "CHANNEL-NUMBER", values.U16)
LIFETIME = Attribute(0x000D, "LIFETIME", values.U32)
XOR_PEER_ADDRESS = Attribute(0x0012, "XOR-PEER-ADDRESS", values.XOR_ADDRESS, repeats=True)
DATA = Attribute(0x0013, "DATA", values.bounded(0xFFFF))
REALM = Attribute(0x0014, "REALM", values.text())
NONCE = Attribute(0x0015, "NONCE", values.bounded(values.MAX_TEXT))
#: Twice in the answer of a dual allocation (RFC 8656, 7.2).
XOR_RELAYED_ADDRESS = Attribute(0x0016, "XOR-RELAYED-ADDRESS", values.XOR_ADDRESS, repeats=True)
REQUESTED_ADDRESS_FAMILY = Attribute(0x0017, "REQUESTED-ADDRESS-FAMILY", values.U8)
EVEN_PORT = Attribute(0x0018, "EVEN-PORT", values.EVEN_PORT)
REQUESTED_TRANSPORT = Attribute(0x0019, "REQUESTED-TRANSPORT", values.U8)
DONT_FRAGMENT = Attribute(0x001A, "DONT-FRAGMENT", values.FLAG)
MESSAGE_INTEGRITY_SHA256 = Attribute(0x001C, "MESSAGE-INTEGRITY-SHA256", values.SHA256)
PASSWORD_ALGORITHM = Attribute(0x001D, "PASSWORD-ALGORITHM", values.ALGORITHM)
USERHASH = Attribute(0x001E, "USERHASH", values.octets(32))
XOR_MAPPED_ADDRESS = Attribute(0x0020, "XOR-MAPPED-ADDRESS", values.XOR_ADDRESS)
RESERVATION_TOKEN = Attribute(0x0022, "RESERVATION-TOKEN", values.octets(8))
PRIORITY = Attribute(0x0024, "PRIORITY", values.U32)
USE_CANDIDATE = Attribute(0x0025, "USE-CANDIDATE", values.FLAG)
#: RFC 6062, 6.2.1.
CONNECTION_ID = Attribute(0x002A, "CONNECTION-ID", values.U32)
ADDITIONAL_ADDRESS_FAMILY = Attribute(0x8000, "ADDITIONAL-ADDRESS-FAMILY", values.U8)
ADDRESS_ERROR_CODE = Attribute(0x8001, "ADDRESS-ERROR-CODE", values.ADDRESS_ERROR)
PASSWORD_ALGORITHMS = Attribute(0x8002, "PASSWORD-ALGORITHMS", values.ALGORITHMS)
ALTERNATE_DOMAIN = Attribute(0x8003, "ALTERNATE-DOMAIN", values.text(MAX_DOMAIN, MAX_DOMAIN))
#: Type, code and error data (RFC 8656, 18.13).
ICMP = Attribute(0x8004, "ICMP", values.ICMP)
SOFTWARE = Attribute(0x8022, "SOFTWARE", values.text())
#: One of the client's family, and perhaps one of the other (RFC 8489, 10).
ALTERNATE_SERVER = Attribute(0x8023, "ALTERNATE-SERVER", values.ADDRESS, repeats=True)
FINGERPRINT = Attribute(0x8028, "FINGERPRINT", values.U32)
ICE_CONTROLLED = Attribute(0x8029, "ICE-CONTROLLED", values.U64)
ICE_CONTROLLING = Attribute(0x802A, "ICE-CONTROLLING", values.U64)
#: RFC 8016, 3.3; empty where it asks for one.
MOBILITY_TICKET = Attribute(0x8030, "MOBILITY-TICKET", values.bounded(values.MAX_TEXT))

#: The two of RFC 8656 by the numbers that they had in its drafts, which coturn's client has kept.
DRAFT_ADDITIONAL_ADDRESS_FAMILY = Attribute(0x8032, "ADDITIONAL-ADDRESS-FAMILY", values.U8)
DRAFT_ADDRESS_ERROR_CODE = Attribute(0x8033, "ADDRESS-ERROR-CODE", values.ADDRESS_ERROR)

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
