"""DNS queries (RFC 1035, 4.1) with EDNS(0) (RFC 6891): the bytes of one query become a value.

Total over any bytes and linear in their number: no compression pointer is followed, because a question that is the
first name of its message has nothing to point to, and other records are only stepped over. Answers are not written
here; Twisted Names does that.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum

from attrs import field, frozen

#: RFC 1035, 2.3.4: bytes of a label, and of a name with its length bytes and the root's.
MAX_LABEL = 63
MAX_NAME = 255
#: The most that fits into a datagram of who says nothing else (RFC 1035, 2.3.4; RFC 6891, 6.2.3).
PLAIN_SIZE = 512
IN = 1
QUERY = 0

_HEAD = struct.Struct("!HH4H")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_OPTION = struct.Struct("!HH")
_ANSWER = 0x8000
_RECURSION = 0x0100
_DNSSEC_OK = 0x8000
_POINTER = 0xC0
#: What a name shows as it is; every other byte is shown as ``\DDD`` (RFC 1035, 5.1).
_SHOWN = re.compile(rb"[^A-Za-z0-9_*-]")


class Type(IntEnum):
    """Types of records and questions that something here knows of."""

    A = 1
    NS = 2
    SOA = 6
    HINFO = 13
    TXT = 16
    AAAA = 28
    OPT = 41
    TKEY = 249
    TSIG = 250
    IXFR = 251
    AXFR = 252
    MAILB = 253
    MAILA = 254
    ANY = 255


class Rcode(IntEnum):
    """RFC 1035, 4.1.1 and RFC 6891, 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class FormatError(ValueError):
    """A query that cannot be read: FORMERR."""


@frozen
class Head:
    """What is needed to answer at all."""

    id: int
    opcode: int
    recursion_desired: bool


@frozen
class Edns:
    """What an OPT record says of who asks."""

    version: int
    #: Bytes that it takes in one datagram.
    size: int
    dnssec_ok: bool


@frozen
class Query:
    """One question; the case of its name is as it came."""

    head: Head
    labels: tuple[bytes, ...]
    type: int
    cls: int
    edns: Edns | None = None
    #: The name as text, ``\\DDD`` for unusual bytes, so that a dot always parts two labels.
    name: str = field(init=False)

    @name.default
    def _name(self) -> str:
        return ".".join(_text(label) for label in self.labels)


def read_head(message: bytes) -> Head | None:
    """The head of a query; None when the bytes are none, or an answer: nobody answers answers."""
    if len(message) < _HEAD.size:
        return None
    ident, flags, *_ = _HEAD.unpack_from(message)
    if flags & _ANSWER:
        return None
    return Head(ident, flags >> 11 & 15, bool(flags & _RECURSION))


def read_query(head: Head, message: bytes) -> Query:
    """The query of which *head* was read from *message*.

    :raises FormatError: it has no question or several (RFC 9619), stray bytes, more than one OPT record.
    """
    _, _, questions, answers, authority, additional = _HEAD.unpack_from(message)
    if questions != 1:
        raise FormatError("one question is needed")
    labels, at = _read_name(message, _HEAD.size)
    kind, cls = _unpack(_QUESTION, message, at)
    at += _QUESTION.size
    for _ in range(answers + authority):
        _, at = _skip_record(message, at)
    edns = None
    for _ in range(additional):
        found, at = _skip_record(message, at)
        if found is not None and edns is not None:
            raise FormatError("two OPT records")
        edns = edns or found
    if at != len(message):
        raise FormatError("stray bytes")
    return Query(head, labels, kind, cls, edns)


def _read_name(message: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of an uncompressed name, and where it ends."""
    labels: list[bytes] = []
    start = at
    while True:
        length = message[at] if at < len(message) else _POINTER
        if length > MAX_LABEL:
            raise FormatError("no name")
        at += 1 + length
        if at > len(message) or at - start > MAX_NAME:
            raise FormatError("no name")
        if not length:
            return tuple(labels), at
        labels.append(message[at - length : at])


def _skip_record(message: bytes, at: int) -> tuple[Edns | None, int]:
    """Where the record at *at* ends, and what it says when it is an OPT record."""
    start = at
    while True:
        length = message[at] if at < len(message) else 0x40
        if length >= _POINTER:
            at += 2
            break
        if length > MAX_LABEL:
            raise FormatError("no record")
        at += 1 + length
        if not length:
            break
    kind, cls, ttl, size = _unpack(_RECORD, message, at)
    end = at + _RECORD.size + size
    if end > len(message):
        raise FormatError("a record is cut off")
    if kind != Type.OPT:
        return None, end
    if at != start + 1:  # RFC 6891, 6.1.2: the name is the root
        raise FormatError("an OPT record has a name")
    _check_options(message[end - size : end])
    return Edns(ttl >> 16 & 255, cls, bool(ttl & _DNSSEC_OK)), end


def _check_options(data: bytes) -> None:
    at = 0
    while at < len(data):
        _, size = _unpack(_OPTION, data, at)
        at += _OPTION.size + size
    if at != len(data):
        raise FormatError("an option is cut off")


def _unpack(form: struct.Struct, message: bytes, at: int) -> tuple[int, ...]:
    if at + form.size > len(message):
        raise FormatError("it is cut off")
    return form.unpack_from(message, at)


def _text(label: bytes) -> str:
    return _SHOWN.sub(lambda found: b"\\%03d" % found[0][0], label).decode()
