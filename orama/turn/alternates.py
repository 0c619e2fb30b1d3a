"""Where clients are sent while this server makes no allocations: the ALTERNATE-SERVER mechanism (RFC 8489, 10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from orama.net.fabric import Address
from orama.wire.stun import Family


class Alternates(Protocol):
    """Other TURN servers."""

    def __call__(self, namespace: str, family: Family, transport: str) -> Sequence[Address]:
        """Those that serve *namespace* at an address of *family* over *transport* (``udp``, ``tcp`` or ``tls``).

        Over TLS they have to show a certificate for the name that the client came for, since none is sent with them.
        """


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
