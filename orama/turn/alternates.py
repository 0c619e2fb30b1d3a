"""Where clients are sent while this server makes no allocations: the ALTERNATE-SERVER mechanism (RFC 8489, 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from orama.net.fabric import Address
from orama.wire.stun import Family


class Alternates(Protocol):
    """Other TURN servers."""

    def __call__(self, namespace: str, family: Family, transport: str) -> Sequence[Address]:
        """Those that serve *namespace* at an address of *family* over *transport* (``udp``, ``tcp`` or ``tls``).

        Over TLS they have to show a certificate for the name that the client came for, since none is sent with them.
        """


class Listed:
    """What somebody else has found out (:func:`listed`): each client gets the same servers, beginning with another one.

    :param table: namespace → transport → IPs and ports.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Sequence[Sequence[Any]]]]) -> None:
        self._table = table
        self._asked = 0

    def __call__(self, namespace: str, family: Family, transport: str) -> Sequence[Address]:
        places = self._table.get(namespace, {}).get(transport, ())
        found = [(str(ip), int(port)) for ip, port in places if (":" in ip) == (family == Family.IPV6)]
        self._asked += 1
        first = self._asked % len(found) if found else 0
        return [*found[first:], *found[:first]]


def listed(alternates: Alternates, namespaces: Iterable[str]) -> dict[str, dict[str, list[list[Any]]]]:
    """The table of what *alternates* says about *namespaces*, for :class:`Listed`; in JSON it is the same."""
    return {
        namespace: {
            transport: sorted([ip, port] for family in Family for ip, port in alternates(namespace, family, transport))
            for transport in ("udp", "tcp", "tls")
        }
        for namespace in namespaces
    }


class Configured:
    """The servers of ``turn.alternate_servers``: for everybody, over UDP and TCP.

    :param places: IP and port ("192.0.2.7:3478", "[2001:db8::7]:3478").
    """

    def __init__(self, places: Iterable[str]) -> None:
        self._addresses = [
            (host.strip("[]"), int(port)) for host, _, port in (place.rpartition(":") for place in places)
        ]

    def __call__(self, namespace: str, family: Family, transport: str) -> Sequence[Address]:
        if transport == "tls":
            return ()
        return [address for address in self._addresses if (":" in address[0]) == (family == Family.IPV6)]
