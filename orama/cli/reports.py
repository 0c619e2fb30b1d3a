"""What a node says of itself (``GET /v1/internal/report``) as values, read from JSON that may be anything.

What the checks rest on must be there and of its type, or the whole report counts for nothing: a service must not seem
to be up because a field is missing. What is only shown may be missing, and what is new is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import frozen

T = TypeVar("T")
_REQUIRED: Any = object()


@frozen
class Prerequisite:
    name: str
    ok: bool
    required: bool
    detail: str


@frozen
class ServedNamespace:
    """One namespace on one node.

    :ivar roles: what this node shall do for it: ``sfu``, ``turn``.
    :ivar sfu_wanted: on how many nodes the SFU shall run; ``turn_wanted`` likewise.
    :ivar sfu_nodes: the nodes that shall run the SFU, as this one knows; ``turn_nodes`` likewise.
    :ivar secret: eight hex digits of a digest of the TURN secret; empty where there is none.
    """

    name: str
    enabled: bool
    roles: frozenset[str]
    sfu_wanted: int
    turn_wanted: int
    sfu_nodes: tuple[str, ...]
    turn_nodes: tuple[str, ...]
    sfu_up: bool
    turn_up: bool
    rooms: int
    participants: int
    allocations: int
    error: str
    secret: str

    def up(self, role: str) -> bool:
        return self.sfu_up if role == "sfu" else self.turn_up

    def wanted(self, role: str) -> int:
        return self.sfu_wanted if role == "sfu" else self.turn_wanted

    def nodes(self, role: str) -> tuple[str, ...]:
        return self.sfu_nodes if role == "sfu" else self.turn_nodes


@frozen
class CertificateSource:
    """Where the certificate of a TURN host comes from."""

    host: str
    source: str
    error: str


@frozen
class Listener:
    name: str
    proto: str
    port: int


@frozen
class NodeReport:
    """One node. ``ready`` is why it is not; ``now`` its clock, Unix seconds.

    :ivar state: ``active``, ``draining`` or ``drained``.
    :ivar zone: what its DNS server serves; empty when it has none.
    """

    node_id: str
    version: str
    state: str
    ready: str
    public_ip: str
    internal_ip: str
    now: float
    prerequisites: tuple[Prerequisite, ...]
    namespaces: tuple[ServedNamespace, ...]
    certificates: tuple[CertificateSource, ...]
    dns_listening: bool
    zone: str
    dns_error: str
    firewall_state: str
    firewall_detail: str
    listeners: tuple[Listener, ...]

    @property
    def active(self) -> bool:
        """It has not been taken out of service."""
        return self.state == "active"

    def namespace(self, name: str) -> ServedNamespace | None:
        return next((each for each in self.namespaces if each.name == name), None)

    def port(self, name: str, proto: str) -> int | None:
        """Where the listener *name* is."""
        return next((each.port for each in self.listeners if (each.name, each.proto) == (name, proto)), None)


def read_report(value: Any) -> NodeReport:
    """:raises ValueError: the text says what is wrong with it."""
    node = _mapping(value, "node")
    dns = _mapping(value, "dns", optional=True)
    firewall = _mapping(value, "firewall", optional=True)
    return NodeReport(
        node_id=_field(node, "node_id", str),
        version=_field(node, "version", str),
        state=_field(node, "state", str),
        ready=_field(node, "ready", str),
        public_ip=_field(node, "public_ip", str),
        internal_ip=_field(node, "internal_ip", str),
        now=_number(node, "now"),
        prerequisites=_all(value, "prerequisites", _prerequisite),
        namespaces=_all(value, "namespaces", _namespace),
        certificates=_all(value, "certificates", _certificate),
        dns_listening=_field(dns, "listening", bool, False),
        zone=_text(dns, "zone").strip(".").lower(),
        dns_error=_text(dns, "error"),
        firewall_state=_text(firewall, "state"),
        firewall_detail=_text(firewall, "detail"),
        listeners=_all(value, "listeners", _listener),
    )


def _prerequisite(item: Mapping[str, Any]) -> Prerequisite:
    return Prerequisite(
        _field(item, "name", str), _field(item, "ok", bool), _field(item, "required", bool), _text(item, "detail")
    )


def _namespace(item: Mapping[str, Any]) -> ServedNamespace:
    return ServedNamespace(
        name=_field(item, "namespace", str),
        enabled=_field(item, "enabled", bool),
        roles=frozenset(_texts(item, "roles")),
        sfu_wanted=_field(item, "sfu_wanted", int),
        turn_wanted=_field(item, "turn_wanted", int),
        sfu_nodes=_texts(item, "sfu_nodes", []),
        turn_nodes=_texts(item, "turn_nodes", []),
        sfu_up=_field(item, "sfu_up", bool),
        turn_up=_field(item, "turn_up", bool),
        rooms=_field(item, "rooms", int, 0),
        participants=_field(item, "participants", int, 0),
        allocations=_field(item, "allocations", int, 0),
        error=_text(item, "error"),
        secret=_text(item, "secret"),
    )


def _certificate(item: Mapping[str, Any]) -> CertificateSource:
    return CertificateSource(_field(item, "host", str), _text(item, "source"), _text(item, "error"))


def _listener(item: Mapping[str, Any]) -> Listener:
    return Listener(_field(item, "name", str), _field(item, "proto", str), _field(item, "port", int))


def _mapping(value: Any, name: str, optional: bool = False) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it is no JSON object")
    found = value.get(name)
    if found is None and optional:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} is missing or no object")
    return found


def _all(value: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any]], T]) -> tuple[T, ...]:
    items = value.get(name)
    if not isinstance(items, list):
        raise ValueError(f"{name} is missing or no list")
    found = []
    for number, item in enumerate(items):
        try:
            if not isinstance(item, Mapping):
                raise ValueError("it is no object")
            found.append(read(item))
        except ValueError as error:
            raise ValueError(f"{name}[{number}]: {error}") from None
    return tuple(found)


def _field(item: Mapping[str, Any], name: str, kind: type[T], default: Any = _REQUIRED) -> T:
    value = item.get(name)
    if value is None and default is not _REQUIRED:
        value = default
    # A bool is an int for isinstance, and no number here.
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ValueError(f"{name} is missing or of another type")
    return value


def _text(item: Mapping[str, Any], name: str) -> str:
    return _field(item, name, str, "")


def _texts(item: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> tuple[str, ...]:
    values = _field(item, name, list, default)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} are texts")
    return tuple(values)


def _number(item: Mapping[str, Any], name: str) -> float:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is missing or no number")
    return float(value)
