"""What is wanted, as one look into the database found it: a snapshot, and what follows from it for one node.

The snapshot is a value: two that are equal ask for the same, so that whoever brings it about can compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen
from sqlalchemy import Connection, Select, Table, select

from orama.cluster.nodes import NodeRecord
from orama.cluster.placement import SFU, TURN, Role
from orama.store import tables

#: Kinds of port blocks.
SIGNALING = "sfu-signaling"
MEDIA = "sfu-media"
RELAY = "turn-relay"
#: What a role needs.
KINDS: Mapping[str, tuple[str, ...]] = {SFU: (SIGNALING, MEDIA), TURN: (RELAY,)}

Block = tuple[int, int]


@frozen
class Blocks:
    """The ports of one namespace on one node, each as first and last; None where it has not that role."""

    signaling: Block | None = None
    media: Block | None = None
    relay: Block | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        sfu = self.signaling is not None and self.media is not None
        return (*([SFU] if sfu else []), *([TURN] if self.relay is not None else []))


@frozen
class SfuPlace:
    """Where a node forwards the media of a namespace."""

    node_id: str
    ip: str
    signaling_port: int
    media: Block


@frozen
class TurnPlace:
    """Where a node relays for a namespace."""

    node_id: str
    public_ip: str
    relay_ip: str
    relay: Block
    turn_port: int
    turns_port: int


@frozen
class WebRtcConfig:
    """All that a node needs to do its part for one namespace."""

    namespace: str
    #: Base64 texts; the text is the HMAC key. The current one comes first.
    turn_secrets: tuple[str, ...] = field(repr=False)
    #: Seconds.
    credential_ttl: int
    rooms_on_join: bool
    #: Those of this node.
    blocks: Blocks
    sfus: tuple[SfuPlace, ...] = ()
    turns: tuple[TurnPlace, ...] = ()

    @property
    def turn_secret(self) -> str:
        return self.turn_secrets[0]


@frozen
class DesiredNamespace:
    """One namespace's rows."""

    namespace: str
    enabled: bool
    enablement: str | None
    #: Sealed; the one before with the time until which it is good.
    secret: str | None = field(repr=False)
    previous: tuple[str, float] | None = field(repr=False)
    credential_ttl: int
    rooms_on_join: bool
    sfu_nodes: int
    turn_nodes: int
    roles: tuple[Role, ...]
    #: Node → kind → block.
    blocks: Mapping[str, Mapping[str, Block]]

    def of(self, node_id: str) -> Blocks:
        """The blocks of a node, as far as its roles go."""
        found = self.blocks.get(node_id, {})
        mine = {role.role for role in self.roles if role.node_id == node_id}
        signaling, media = found.get(SIGNALING), found.get(MEDIA)
        if SFU not in mine or signaling is None or media is None:
            signaling = media = None
        return Blocks(signaling, media, found.get(RELAY) if TURN in mine else None)

    def nodes(self, role: str) -> tuple[str, ...]:
        return tuple(each.node_id for each in self.roles if each.role == role)

    def config(
        self, node_id: str, nodes: Mapping[str, NodeRecord], open_secret: Callable[[str], str], now: float
    ) -> WebRtcConfig:
        """What *node_id* needs to know.

        :param open_secret: unseals; what it raises goes through.
        """
        secrets = [open_secret(self.secret or "")]
        if self.previous is not None and now < self.previous[1]:
            secrets.append(open_secret(self.previous[0]))
        return WebRtcConfig(
            self.namespace,
            tuple(secrets),
            self.credential_ttl,
            self.rooms_on_join,
            self.of(node_id),
            self.sfu_places(nodes),
            self.turn_places(nodes),
        )

    def sfu_places(self, nodes: Mapping[str, NodeRecord]) -> tuple[SfuPlace, ...]:
        places = []
        for node_id in self.nodes(SFU):
            blocks, node = self.of(node_id), nodes.get(node_id)
            if node is not None and blocks.signaling is not None and blocks.media is not None:
                places.append(SfuPlace(node_id, node.internal_ip, blocks.signaling[0], blocks.media))
        return tuple(places)

    def turn_places(self, nodes: Mapping[str, NodeRecord]) -> tuple[TurnPlace, ...]:
        places = []
        for node_id in self.nodes(TURN):
            relay, node = self.of(node_id).relay, nodes.get(node_id)
            if node is not None and relay is not None:
                places.append(TurnPlace(node_id, node.public_ip, node.relay_ip, relay, node.turn_port, node.turns_port))
        return tuple(places)


def read_desired(connection: Connection, default_ttl: int, only: str | None = None) -> dict[str, DesiredNamespace]:
    """Every namespace that has WebRTC, or still has something of it, by name.

    :param only: the one namespace that is asked for.
    """
    config, ports, roles = tables.namespace_webrtc_config, tables.webrtc_port_allocations, tables.webrtc_roles

    def some(table: Table) -> Select[Any]:
        return select(table) if only is None else select(table).where(table.c.namespace == only)

    given: dict[str, list[Role]] = {}
    for row in connection.execute(some(roles).order_by(roles.c.role, roles.c.slot)):
        given.setdefault(row.namespace, []).append(Role(row.role, row.slot, row.node_id))
    blocks: dict[str, dict[str, dict[str, Block]]] = {}
    for row in connection.execute(some(ports).order_by(ports.c.node_id, ports.c.kind)):
        held = blocks.setdefault(row.namespace, {}).setdefault(row.node_id, {})
        held[row.kind] = row.first_port, row.last_port
    found = {}
    for row in connection.execute(some(config).order_by(config.c.namespace)):
        name = row.namespace
        secret = row.turn_secret_encrypted or row.turn_secret_previous_encrypted
        if row.enabled or secret or name in given or name in blocks:
            found[name] = _desired(row, tuple(given.get(name, ())), blocks.get(name, {}), default_ttl)
    return found


def _desired(
    row: Any, roles: tuple[Role, ...], blocks: Mapping[str, Mapping[str, Block]], default_ttl: int
) -> DesiredNamespace:
    ttl = row.turn_credential_ttl or default_ttl
    previous = None
    if row.turn_secret_previous_encrypted and row.turn_secret_rotated_at is not None:
        previous = row.turn_secret_previous_encrypted, row.turn_secret_rotated_at + ttl
    return DesiredNamespace(
        row.namespace,
        bool(row.enabled),
        row.enablement,
        row.turn_secret_encrypted,
        previous,
        ttl,
        bool(row.rooms_on_join),
        row.sfu_node_count,
        row.turn_node_count,
        roles,
        blocks,
    )
