"""One DNS message in, one out or none: the zone spoken in bytes (RFC 1035, RFC 6891), without sockets.

Records are written by Twisted Names. Its ``DNSServerFactory`` is not used: it sends a question that it does not like
back as it came, without the bit that marks an answer, so that two such servers talk forever; it answers answers; it
sets AA by what is in the answer section, so that no denial has it; it never truncates, knows no EDNS, and some
datagrams raise out of its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import ip_address
from random import Random
from typing import Any

from attrs import frozen
from twisted.names import dns

from orama.cluster.zone import EXPIRE, REFRESH, RETRY, TTL, Alive, Answer, Resource, Soa, Zone
from orama.wire.dns import IN, PLAIN_SIZE, QUERY, Edns, FormatError, Head, Query, Rcode, Type, read_head, read_query

#: Bytes that pass every path in one piece (RFC 9715, 3.1), which is what we take and send.
DATAGRAM = 1232
#: Bytes of a message on a stream (RFC 1035, 4.2.2).
STREAM = 65535
_DNSSEC_OK = 0x8000
#: Bytes of one string in a TXT record (RFC 1035, 3.3).
_STRING = 255


class Answering:
    """:param zone: the zone as it is now; None while nothing is known of it.

    :param alive: whether a node is.
    """

    def __init__(self, zone: Callable[[], Zone | None], alive: Alive, random: Random) -> None:
        self._zone = zone
        self._alive = alive
        self._random = random

    def respond(self, message: bytes, limit: int | None = None, *, brief: bool = False) -> bytes | None:
        """What goes back to who sent *message*; None is nothing at all.

        :param limit: bytes that the way back takes; None is what a datagram may have by what the query says.
        :param brief: no answer, only that there is one to be had over TCP: never longer than the question.
        """
        head = read_head(message)
        if head is None:
            return None
        if head.opcode != QUERY:
            return _encode(head, Rcode.NOTIMP)
        try:
            query = read_query(head, message)
        except FormatError:
            return _encode(head, Rcode.FORMERR)
        edns = query.edns
        if limit is None:
            limit = min(DATAGRAM, max(PLAIN_SIZE, edns.size if edns else 0))
        if edns and edns.version:
            return _encode(head, Rcode.BADVERS, query)
        zone = self._zone()
        if query.cls != IN:
            answer = Answer(Rcode.REFUSED)
        elif zone is None:
            answer = Answer(Rcode.SERVFAIL)
        else:
            answer = zone.answer(query.name.lower(), query.type, self._alive)
        return self._fitting(query, answer, 0 if brief else limit)

    def _fitting(self, query: Query, answer: Answer, limit: int) -> bytes:
        """*answer* in at most *limit* bytes: whole, or without what is only help, or truncated and empty."""
        # In an order of their own each time, for clients that take the first.
        answers = _headers(query, self._random.sample(answer.answers, len(answer.answers)))
        authority, additional = _headers(query, answer.authority), _headers(query, answer.additional)
        encode = partial(_encode, query.head, answer.rcode, query, auth=answer.authoritative)
        message = encode(answers, authority, additional)
        if len(message) > limit and additional:
            message = encode(answers, authority)
        return message if len(message) <= limit else encode(trunc=True)


@frozen
class _Question:
    """The question as it came: case, and dots within labels, are its own."""

    query: Query

    def encode(self, stream: Any, compression: dict[bytes, int] | None = None) -> None:
        """Write it first in the body, and let later names refer to it."""
        labels = self.query.labels
        for at, label in enumerate(labels):
            if compression is not None and not any(b"." in each for each in labels[at:]):
                compression[b".".join(labels[at:])] = stream.tell() + dns.Message.headerSize
            stream.write(bytes((len(label),)) + label)
        stream.write(b"\0" + self.query.type.to_bytes(2, "big") + self.query.cls.to_bytes(2, "big"))


def _encode(
    head: Head,
    rcode: Rcode,
    query: Query | None = None,
    answers: Iterable[dns.RRHeader] = (),
    authority: Iterable[dns.RRHeader] = (),
    additional: Iterable[dns.RRHeader] = (),
    *,
    auth: bool = False,
    trunc: bool = False,
) -> bytes:
    message = dns.Message(
        head.id, 1, head.opcode, head.recursion_desired, auth=auth, rCode=rcode & 15, trunc=trunc, maxSize=0
    )
    message.answers, message.authority, message.additional = list(answers), list(authority), list(additional)
    if query is not None:
        message.queries = [_Question(query)]  # type: ignore[list-item]
        if query.edns is not None:
            message.additional.append(_opt(query.edns, rcode))
    return message.toStr()


def _opt(edns: Edns, rcode: Rcode) -> dns.RRHeader:
    """Our OPT record (RFC 6891, 6.1.3); DO is given back as it came (RFC 3225, 3)."""
    ttl = rcode >> 4 << 24 | (_DNSSEC_OK if edns.dnssec_ok else 0)
    return dns.RRHeader(b"", Type.OPT, DATAGRAM, ttl)


def _headers(query: Query, records: Iterable[Resource]) -> list[dns.RRHeader]:
    return [
        dns.RRHeader(_spelled(record.name, query), record.type, IN, record.ttl, _payload(record)) for record in records
    ]


def _spelled(name: str, query: Query) -> bytes:
    """*name* in the letters of the question, where it is its name or above it."""
    asked = query.name.lower()
    if asked == name or asked.endswith(f".{name}"):
        return query.name[-len(name) :].encode()
    return name.encode()


def _payload(record: Resource) -> Any:
    value = record.value
    if isinstance(value, Soa):
        return dns.Record_SOA(value.mname.encode(), value.rname.encode(), value.serial, REFRESH, RETRY, EXPIRE, TTL)
    match record.type:
        case Type.A:
            return dns.Record_A(value)
        case Type.AAAA:
            return dns.Record_AAAA(str(ip_address(value)))
        case Type.NS:
            return dns.Record_NS(value.encode())
        case Type.HINFO:
            return dns.Record_HINFO(value.encode(), b"")
        case _:
            text = value.encode()
            return dns.Record_TXT(*(text[at : at + _STRING] for at in range(0, len(text) or 1, _STRING)))
