"""What ICMP has to say about the datagrams of a UDP socket, and whether routers may cut them: Linux's own options.

With ``IP_RECVERR`` the kernel keeps the errors about what a socket sent in a queue (``ip(7)``), each with the
address that the datagram was for. ``IP_MTU_DISCOVER`` decides about DF: the kernel's default sets it as it
sees fit, which is nothing that a relay may do (RFC 8656, 14).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from orama.net.fabric import Address

#: Of ``linux/in.h`` and ``linux/in6.h``; the ``socket`` module does not name them.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
IP_RECVERR, IPV6_RECVERR = 11, 25
#: ``SO_EE_ORIGIN_LOCAL`` and its like, of ``linux/errqueue.h``.
_LOCAL, _ICMP, _ICMP6 = 1, 2, 3
#: errno, origin, type, code, padding, info, data: the head of ``struct sock_extended_err``.
_error = struct.Struct("=IBBBBII")
#: RFC 8656, 11.5: what a client is told of. Destination unreachable and time exceeded; with ICMPv6 too big as well.
TYPES = {_ICMP: frozenset({3, 11}), _ICMP6: frozenset({1, 2, 3})}
#: Fragmentation needed (RFC 792), and packet too big (RFC 4443): those that carry an MTU.
FRAGMENTATION_NEEDED, PACKET_TOO_BIG = (3, 4), (2, 0)
#: Errors in one look; the rest waits for the next one.
MAX_ERRORS = 64


@frozen
class IcmpError:
    """An error about a datagram that was sent: ICMP's type and code, or ICMPv6's where *to* is IPv6."""

    #: Where the datagram was sent.
    to: Address
    kind: int
    code: int
    #: Bytes that the next hop takes where the datagram was too big, else 0.
    mtu: int = 0


def udp_socket(family: int, kind: int) -> socket.socket:
    """A socket whose datagrams may be fragmented by whom they have to pass."""
    made = socket.socket(family, kind)
    _fragment(made, PMTUDISC_DONT)
    return made


def relay_socket(family: int, kind: int) -> socket.socket:
    """The same that keeps errors for :func:`errors`."""
    made = udp_socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    return made


@contextmanager
def whole(sock: socket.socket) -> Iterator[None]:
    """What is sent meanwhile is not fragmented: it has DF, or is refused with EMSGSIZE."""
    _fragment(sock, PMTUDISC_DO)
    try:
        yield
    finally:
        _fragment(sock, PMTUDISC_DONT)


def errors(sock: socket.socket) -> Iterator[IcmpError]:
    """Take what is in the queue of errors, at most :data:`MAX_ERRORS`, and give what a client is told of."""
    for _ in range(MAX_ERRORS):
        try:
            _data, ancillary, _flags, to = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return
        for level, kind, value in ancillary:
            if (level, kind) in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
                error = _read(value, to[:2])
                if error is not None:
                    yield error


def _read(value: bytes, to: Address) -> IcmpError | None:
    if len(value) < _error.size:
        return None
    number, origin, kind, code, _padding, info, _data = _error.unpack_from(value)
    if origin == _LOCAL and number == errno.EMSGSIZE:  # our own link is the next hop
        kind, code = PACKET_TOO_BIG if ":" in to[0] else FRAGMENTATION_NEEDED
    elif kind not in TYPES.get(origin, ()):
        return None
    return IcmpError(to, kind, code, info if number == errno.EMSGSIZE else 0)


def _fragment(sock: socket.socket, mode: int) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)
