"""How a node and its TURN workers speak: one JSON object a line, orders one way and reports the other.

The worker has its orders on its standard input and reports on descriptor 3, both of them pipes that nobody else has;
secrets of tenants go over them. The end of either is the end of whoever was there. What an order or a report says is
known where it is obeyed (:mod:`orama.turn_worker`, :mod:`orama.turn.workers`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeVar

from attrs import frozen
from cattrs import Converter

from orama.settings import Settings
from orama.turn.tenants import Tenant

#: Descriptors of a worker beside the standard ones: where it reports, the shared table, and its first socket.
REPORTS = 3
TABLE = 4
SOCKETS = 5
#: A line longer than this is not one: all sessions of a worker, a hundred bytes each, are far below.
MAX_LINE = 64 << 20

T = TypeVar("T")


class Garbled(ValueError):
    """The other side does not speak as it should."""


class Lines:
    """Puts together what comes in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The objects that are whole now.

        :raises Garbled: a line is no object, or has no end.
        """
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > MAX_LINE:
                raise Garbled("a line without an end")
            return []
        *whole, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [_object(line) for line in whole]


def line(**message: Any) -> bytes:
    """One message as it goes over the pipe."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


@frozen
class Beginning:
    """What a worker has to know before it can serve."""

    #: Which one it is, from 1, and how many there are with the node's own, which is 0.
    worker: int
    workers: int
    #: Of the shared table, and of the crew; hexadecimal.
    table_key: str
    key: str
    #: Those of the node, with the ports that it really has; without database and keys.
    settings: Settings
    tenants: tuple[Tenant, ...]
    #: Listening sockets that it was given: descriptors from :data:`SOCKETS` on. Its inbox and all outboxes follow.
    sockets: int
    #: Certificate and private key by the name that they are for; that of no name is the default.
    certificates: Mapping[str, tuple[str, str]]
    #: Those of ALPN.
    protocols: tuple[str, ...] = ()
    #: Namespaces that get no new allocations, and whether nobody does.
    drained: tuple[str, ...] = ()
    draining: bool = False


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(IPv4Network | IPv6Network, lambda text, _: ip_network(text))
    for kind in (IPv4Network, IPv6Network):
        converter.register_unstructure_hook(kind, str)
    return converter


_CONVERTER = _converter()


def to_json(value: object) -> Any:
    """A value (:class:`Beginning`, a tenant, settings) as it travels."""
    return _CONVERTER.unstructure(value)


def from_json(kind: type[T], value: Any) -> T:
    """:raises Garbled: *value* is no *kind*."""
    try:
        return _CONVERTER.structure(value, kind)
    except Exception as error:  # cattrs has a tree of them
        raise Garbled(f"this is no {kind.__name__}: {error!r}") from None


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Garbled(f"this is no message: {text[:80]!r}")
    return found
