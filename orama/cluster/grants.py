"""The statements by which nodes get and lose roles, with the ports and names that go along.

Each is complete in itself and says in its own conditions when it applies, so that any number of them is written in
one step: what is given is given only while the namespace is enabled under the same ``enablement``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from attrs import frozen
from sqlalchemy import ColumnElement, Executable, Table, and_, delete, exists, insert, literal, select

from orama.cluster.desired import KINDS
from orama.cluster.nodes import NodeRecord
from orama.cluster.placement import TURN, Role
from orama.cluster.ports import Allocation
from orama.store import tables

#: Seconds that a resolver may keep an address of ours.
DNS_TTL = 60

_config, _roles = tables.namespace_webrtc_config, tables.webrtc_roles
_ports, _records = tables.webrtc_port_allocations, tables.dns_records


@frozen
class Name:
    """A name of a namespace with the address of one node."""

    fqdn: str
    value: str
    namespace: str
    node_id: str

    @property
    def type(self) -> str:
        return "AAAA" if ip_address(self.value).version == 6 else "A"


def gateway_name(namespace: str, base_domain: str) -> str:
    return f"ns-{namespace}.{base_domain}"


def turn_name(namespace: str, base_domain: str) -> str:
    return f"turn.ns-{namespace}.{base_domain}"


def names_of(namespace: str, roles: Collection[str], node: NodeRecord, base_domain: str) -> list[Name]:
    """The names under which *node* is found: every node is a gateway, and some relay."""
    if not base_domain:
        return []
    names = [gateway_name(namespace, base_domain)]
    if TURN in roles:
        names.append(turn_name(namespace, base_domain))
    return [Name(name, node.public_ip, namespace, node.node_id) for name in names]


def holds(namespace: str, enablement: str) -> ColumnElement[bool]:
    """The namespace is still enabled as it was."""
    return exists(
        select(literal(1)).where(
            _config.c.namespace == namespace, _config.c.enabled.is_(True), _config.c.enablement == enablement
        )
    )


def is_enabled(namespace: str) -> ColumnElement[bool]:
    return exists(select(literal(1)).where(_config.c.namespace == namespace, _config.c.enabled.is_(True)))


def is_disabled(namespace: str) -> ColumnElement[bool]:
    return exists(select(literal(1)).where(_config.c.namespace == namespace, _config.c.enabled.is_(False)))


def grant(
    namespace: str, enablement: str, role: Role, allocations: Iterable[Allocation], now: float
) -> list[Executable]:
    """Give *role* to its node, with ports."""
    row = {"namespace": namespace, "role": role.role, "slot": role.slot, "node_id": role.node_id, "created_at": now}
    given = _insert_if(_roles, row, holds(namespace, enablement))
    return [given, *give_ports(namespace, enablement, allocations, now)]


def give_ports(namespace: str, enablement: str, allocations: Iterable[Allocation], now: float) -> list[Executable]:
    """Ports for a role."""
    statements = []
    for each in allocations:
        ports = {
            "node_id": each.node_id,
            "namespace": namespace,
            "kind": each.kind,
            "host": each.host,
            "block": each.block,
            "first_port": each.first_port,
            "last_port": each.last_port,
            "allocated_at": now,
        }
        statements.append(_insert_if(_ports, ports, holds(namespace, enablement)))
    return statements


def publish(name: Name, condition: ColumnElement[bool], now: float) -> Executable:
    """Let *name* be found, if it is not yet."""
    row = {
        "fqdn": name.fqdn,
        "type": name.type,
        "value": name.value,
        "ttl": DNS_TTL,
        "namespace": name.namespace,
        "node_id": name.node_id,
        "created_at": now,
    }
    there = exists(
        select(literal(1)).where(
            _records.c.fqdn == name.fqdn, _records.c.type == name.type, _records.c.value == name.value
        )
    )
    return _insert_if(_records, row, and_(condition, ~there))


def unpublish(*conditions: ColumnElement[bool]) -> Executable:
    """Take names away."""
    return delete(_records).where(*conditions)


def revoke(namespace: str, role: str, node_id: str, *conditions: ColumnElement[bool]) -> list[Executable]:
    """Take *role* from a node, with its ports and names."""
    statements: list[Executable] = [
        delete(_ports).where(
            _ports.c.namespace == namespace, _ports.c.node_id == node_id, _ports.c.kind.in_(KINDS[role]), *conditions
        ),
        delete(_roles).where(
            _roles.c.namespace == namespace, _roles.c.role == role, _roles.c.node_id == node_id, *conditions
        ),
    ]
    if role == TURN:
        mine = _records.c.namespace == namespace, _records.c.node_id == node_id, _records.c.fqdn.like("turn.%")
        statements.insert(0, unpublish(*mine, *conditions))
    return statements


def reclaim(namespace: str, *conditions: ColumnElement[bool]) -> list[Executable]:
    """Take ports away from nodes that have not the role which they are for."""
    statements: list[Executable] = []
    for role, kinds in KINDS.items():
        holder = exists(
            select(literal(1)).where(
                _roles.c.namespace == _ports.c.namespace, _roles.c.node_id == _ports.c.node_id, _roles.c.role == role
            )
        )
        stray = _ports.c.namespace == namespace, _ports.c.kind.in_(kinds), ~holder
        statements.append(delete(_ports).where(*stray, *conditions))
    return statements


def clear(namespace: str, *conditions: ColumnElement[bool]) -> list[Executable]:
    """Take everything away that belongs to WebRTC in *namespace*."""
    return [delete(table).where(table.c.namespace == namespace, *conditions) for table in (_records, _ports, _roles)]


def _insert_if(table: Table, values: Mapping[str, Any], condition: ColumnElement[bool]) -> Executable:
    row = select(*(literal(value, table.c[name].type) for name, value in values.items())).where(condition)
    return insert(table).from_select(list(values), row)
