"""The listening sockets of the TURN server, bound and not read yet: a :class:`Front` for each worker.

All workers have the same addresses. The kernel chooses among their sockets by the addresses of both ends
(``SO_REUSEPORT``, socket(7)), so that a client stays with its worker for as long as the sockets are the same: whoever
binds them keeps them open, and a worker that is started anew gets those that it had. The first socket of each address
is bound alone, since two nodes that were given one port must not share it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from attrs import frozen
from twisted.internet.error import CannotListenError

from orama.net.fabric import Address
from orama.net.icmp import udp_socket

#: Connections that may wait to be accepted.
BACKLOG = 511
#: Times to look for a port that is free for both UDP and TCP, where any will do.
ATTEMPTS = 20


@frozen
class Front:
    """The listening sockets of one worker: one of each kind for each address."""

    udp: tuple[socket.socket, ...]
    tcp: tuple[socket.socket, ...]
    tls: tuple[socket.socket, ...]

    @classmethod
    def of_descriptors(cls, descriptors: Iterable[int]) -> Front:
        """The front whose sockets another process gave us, in the order of :meth:`__iter__`."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        hosts = len(sockets) // 3
        return cls(tuple(sockets[:hosts]), tuple(sockets[hosts : 2 * hosts]), tuple(sockets[2 * hosts :]))

    def __iter__(self) -> Iterator[socket.socket]:
        return iter((*self.udp, *self.tcp, *self.tls))

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of UDP, TCP and TLS, as they really are."""
        udp, tcp, tls = (int(sockets[0].getsockname()[1]) for sockets in (self.udp, self.tcp, self.tls))
        return udp, tcp, tls

    def close(self) -> None:
        """Nothing happens the second time."""
        for each in self:
            each.close()


def bind(public_ip: str, port: int, tls_port: int, workers: int = 1) -> list[Front]:
    """Bind everything or nothing: UDP and TCP on *port*, TCP for TLS on *tls_port*; 0 becomes a port that is free.

    :raises CannotListenError: a port is taken.
    """
    for attempt in range(ATTEMPTS, 0, -1):
        try:
            return _bind(listening_hosts(public_ip), port, tls_port, workers)
        except CannotListenError:
            if port or attempt == 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def listening_hosts(public_ip: str) -> list[str]:
    """What to bind so that clients reach us at *public_ip*: everything, or a loopback address alone."""
    if ipaddress.ip_address(public_ip).is_loopback:
        return [public_ip]
    return ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]


def _bind(hosts: list[str], port: int, tls_port: int, workers: int) -> list[Front]:
    columns: list[list[list[socket.socket]]] = [[], [], []]
    with ExitStack() as opened:
        for host in hosts:
            udp = _group(opened, (host, port), socket.SOCK_DGRAM, workers)
            port = udp[0].getsockname()[1]
            tcp = _group(opened, (host, port), socket.SOCK_STREAM, workers)
            tls = _group(opened, (host, tls_port), socket.SOCK_STREAM, workers)
            tls_port = tls[0].getsockname()[1]
            for column, group in zip(columns, (udp, tcp, tls), strict=True):
                column.append(group)
        opened.pop_all()
    return [Front(*(tuple(group[worker] for group in column) for column in columns)) for worker in range(workers)]


def _group(opened: ExitStack, address: Address, kind: int, workers: int) -> list[socket.socket]:
    """As many sockets at one address as there are workers."""
    first = _bound(opened, address, kind, share=False)
    host, port = address[0], int(first.getsockname()[1])
    if workers > 1:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    group = [first, *(_bound(opened, (host, port), kind, share=True) for _ in range(1, workers))]
    if kind == socket.SOCK_STREAM:
        for each in group:
            try:
                each.listen(BACKLOG)
            except OSError as error:  # somebody else listens there by SO_REUSEADDR
                raise CannotListenError(host, port, error) from error
    return group


def _bound(opened: ExitStack, address: Address, kind: int, share: bool) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        make = udp_socket if kind == socket.SOCK_DGRAM else socket.socket
        bound = opened.enter_context(make(family, kind))
        bound.setblocking(False)
        if family == socket.AF_INET6:
            # The system's default may be to serve IPv4 as well, and "::" would then collide with "0.0.0.0".
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        raise CannotListenError(host, port, error) from error
    return bound


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
