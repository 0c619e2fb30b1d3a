"""Turning WebRTC on and off in a namespace, and putting right what has become wrong since.

Turning on is one step into the database: secret, roles, ports and names, all or nothing. From then on it is wanted, and
whoever asked waits until every node says that it does its part; when one cannot, everything is taken back.
Turning off is one step as well, which takes the names away first of all; each node then ends what it has and gives its
ports back, and the last step forgets the secret. A crash between any two steps leaves something that
:meth:`Enablement.repair`, which the leading node calls again and again, brings to an end.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Literal, Protocol

from sqlalchemy import Executable, and_, delete, exists, literal, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.desired import KINDS, DesiredNamespace
from orama.cluster.grants import (
    clear,
    give_ports,
    grant,
    holds,
    is_disabled,
    names_of,
    publish,
    reclaim,
    revoke,
    unpublish,
)
from orama.cluster.nodes import NodeRecord, NodeRegistry
from orama.cluster.placement import ROLES, SFU, TURN, Change, Role, best, place, repair, wanted
from orama.cluster.ports import Allocation, PortBlocks, Taken, read_taken
from orama.errors import Conflict, InsufficientStorage, OramaError, PreconditionFailed, Unavailable
from orama.settings import Settings
from orama.store import tables
from orama.store.database import Database
from orama.store.sealing import Seal
from orama.store.tables import namespace_webrtc_config as config_table

#: Who enabled a namespace that came with WebRTC; whoever asks for it then is not told that it is there already.
WITH_THE_NAMESPACE = "namespace create"
_SECRET_BYTES = 32
#: Times that ports are chosen anew because another node was faster.
ATTEMPTS = 50

_log = Logger()

State = Literal["done", "waiting", "failed"]


class Progress(Protocol):
    """Where work tells how far it is: which step, how that stands, and a sentence for a person."""

    def __call__(self, step: str, state: State, text: str) -> None: ...


class Settle(Protocol):
    """Waits until every node does what is wanted of it in a namespace (``cluster.settling``)."""

    async def up(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        """:raises OramaError: a node cannot, or does not answer in time."""

    async def down(self, namespace: str, roles: Collection[Role], progress: Progress) -> None:
        """Done when every node that answers has stopped, or its time is over."""


def nobody_looks(step: str, state: State, text: str) -> None:
    """For progress that nobody looks at."""


class Enablement:
    """:param require_ready: tells of each thing that WebRTC needs; raises PreconditionFailed while one is not there."""

    def __init__(
        self,
        database: Database,
        seal: Seal,
        registry: NodeRegistry,
        ports: PortBlocks,
        settings: Settings,
        clock: IReactorTime,
        settle: Settle,
        require_ready: Callable[[Progress], Awaitable[None]],
    ) -> None:
        self._database = database
        self._seal = seal
        self._registry = registry
        self._ports = ports
        self._settings = settings
        self._clock = clock
        self.settle = settle
        self._require_ready = require_ready
        #: Enablings that failed and could not be taken back yet, by namespace.
        self._unfinished: dict[str, str] = {}
        #: Namespaces for which there are no ports, of which somebody has been told.
        self._short: set[str] = set()

    # -- on ---------------------------------------------------------------------------------------

    async def enable(self, namespace: str, by: str, progress: Progress = nobody_looks) -> None:
        """:raises Conflict: ``already_enabled``.

        :raises PreconditionFailed: ``cluster_not_ready`` or ``not_enough_nodes``.
        :raises InsufficientStorage: ``no_free_ports``.
        :raises OramaError: what kept a node from doing its part; then nothing is left.
        """
        await self._require_ready(progress)
        await self.finish()
        enablement, roles = await self._write(namespace, by)
        where = {role: sum(each.role == role for each in roles) for role in ROLES}
        progress("wanted", "done", f"secret, ports, SFU on {where[SFU]} and TURN on {where[TURN]} nodes are written")
        try:
            await self.settle.up(namespace, roles, progress)
        except BaseException:
            progress("taken-back", "waiting", "a node could not: everything is taken back")
            await self._take_back(namespace, enablement, roles)
            raise
        _log.info("WebRTC is enabled in {namespace}", namespace=namespace)

    async def _write(self, namespace: str, by: str) -> tuple[str, list[Role]]:
        await self._registry.read()
        active = self._registry.active()
        counts = self.counts(self._registry.nodes)
        if len(active) < max(counts.values()):
            raise PreconditionFailed(
                "not_enough_nodes",
                f"{max(counts.values())} nodes are needed and {len(active)} of {len(self._registry.nodes)} can take it",
            )
        roles = place(counts, active)
        enablement = secrets.token_hex(16)
        for _ in range(ATTEMPTS):
            statements = await self._enabling(namespace, by, enablement, counts, roles, active)
            try:
                changed, *_ = await self._database.write(*statements)
            except IntegrityError:  # another namespace has taken one of the blocks since we looked
                continue
            except Unavailable:  # it may have been written all the same
                await self._take_back(namespace, enablement, roles)
                raise
            if not changed:
                raise Conflict("already_enabled", "WebRTC is enabled in this namespace already")
            return enablement, roles
        raise InsufficientStorage("no_free_ports", "ports are given away faster than they can be taken: try again")

    async def _enabling(
        self,
        namespace: str,
        by: str,
        enablement: str,
        counts: dict[str, int],
        roles: list[Role],
        active: Collection[NodeRecord],
    ) -> list[Executable]:
        taken = await self._database.read(lambda connection: read_taken(connection, self._ports.kinds, namespace))
        secret, now = b64encode(secrets.token_bytes(_SECRET_BYTES)).decode(), self._clock.seconds()
        on = {
            "enabled": True,
            "enablement": enablement,
            "turn_secret_encrypted": self._seal.seal(secret, namespace),
            "turn_secret_previous_encrypted": None,
            "turn_secret_rotated_at": None,
            "sfu_node_count": counts[SFU],
            "turn_node_count": counts[TURN],
            "enabled_by": by,
            "enabled_at": now,
            "disabled_at": None,
        }
        off = update(config_table).where(config_table.c.namespace == namespace, config_table.c.enabled.is_(False))
        condition = holds(namespace, enablement)
        # What an earlier disabling could not take away, because a node did not answer, goes now.
        statements: list[Executable] = [off.values(**on), *clear(namespace, condition)]
        nodes = {node.node_id: node for node in active}
        for role in roles:
            allocations = self._allocate(taken, nodes[role.node_id], KINDS[role.role])
            statements += grant(namespace, enablement, role, allocations, now)
        for node in active:
            mine = {role.role for role in roles if role.node_id == node.node_id}
            for name in names_of(namespace, mine, node, self._settings.base_domain):
                statements.append(publish(name, condition, now))
        return statements

    def counts(self, nodes: Collection[NodeRecord]) -> dict[str, int]:
        """How many nodes each role is to have."""
        usable = [node for node in nodes if not node.draining]
        return {
            SFU: wanted(self._settings.cluster.sfu_nodes, usable),
            TURN: wanted(self._settings.cluster.turn_nodes, usable),
        }

    def _allocate(self, taken: Taken, node: NodeRecord, kinds: Iterable[str]) -> list[Allocation]:
        def free(kind: str) -> Callable[[int], bool]:
            if node.node_id != self._registry.node_id:
                return lambda port: True
            return lambda port: self._ports.probe(kind, port)

        return [taken.take(node.node_id, node.internal_ip, kind, free(kind)) for kind in kinds]

    async def _take_back(self, namespace: str, enablement: str, roles: Collection[Role]) -> None:
        self._unfinished[namespace] = enablement
        try:
            await self.finish()
            await self.settle.down(namespace, roles, nobody_looks)
            await self._forget(namespace)
        except OramaError as error:
            _log.warn("{namespace} is taken back later: {why}", namespace=namespace, why=error.message)

    async def finish(self) -> None:
        """Take back what could not be taken back when it failed; asked again and again.

        :raises Unavailable: the database still does not answer.
        """
        for namespace, enablement in list(self._unfinished.items()):
            await self._switch_off(namespace, config_table.c.enablement == enablement)
            if self._unfinished.get(namespace) == enablement:
                del self._unfinished[namespace]

    # -- off --------------------------------------------------------------------------------------

    async def disable(self, namespace: str, progress: Progress = nobody_looks) -> None:
        """:raises Conflict: ``not_enabled``."""
        desired = await self._roles(namespace)
        if not await self._switch_off(namespace):
            raise Conflict("not_enabled", "WebRTC is not enabled in this namespace")
        progress("wanted", "done", "it is wanted no more, and its names are taken away")
        await self.settle.down(namespace, desired, progress)
        await self._forget(namespace)
        _log.info("WebRTC is disabled in {namespace}", namespace=namespace)

    async def _roles(self, namespace: str) -> list[Role]:
        roles = tables.webrtc_roles
        mine = select(roles).where(roles.c.namespace == namespace)
        rows = await self._database.read(lambda connection: connection.execute(mine).all())
        return [Role(row.role, row.slot, row.node_id) for row in rows]

    async def _switch_off(self, namespace: str, *conditions: object) -> bool:
        on = update(config_table).where(config_table.c.namespace == namespace, config_table.c.enabled.is_(True))
        off = on.where(*conditions).values(enabled=False, enablement=None, disabled_at=self._clock.seconds())  # type: ignore[arg-type]
        names = unpublish(tables.dns_records.c.namespace == namespace, is_disabled(namespace))
        changed, _ = await self._database.write(off, names)
        return bool(changed)

    async def stopped(self, namespace: str) -> None:
        """This node has ended its part of a namespace that is disabled: its roles and ports go."""
        await self._drop(namespace, self._registry.node_id)

    async def _drop(self, namespace: str, node_id: str) -> None:
        unwanted = is_disabled(namespace)
        statements: list[Executable] = []
        for role in ROLES:
            statements += revoke(namespace, role, node_id, unwanted)
        await self._database.write(*statements)

    async def _forget(self, namespace: str) -> None:
        """The rooms, and once no node has a role any more the secret."""
        roles, rooms = tables.webrtc_roles, tables.webrtc_rooms
        left = exists(select(literal(1)).where(roles.c.namespace == namespace))
        none = {"turn_secret_encrypted": None, "turn_secret_previous_encrypted": None, "turn_secret_rotated_at": None}
        off = and_(config_table.c.namespace == namespace, config_table.c.enabled.is_(False), ~left)
        await self._database.write(
            delete(rooms).where(rooms.c.namespace == namespace, is_disabled(namespace)),
            update(config_table).where(off).values(**none),
        )

    # -- another secret ---------------------------------------------------------------------------

    async def rotate_secret(self, namespace: str) -> None:
        """A new TURN secret; the old one is good for one more time to live of credentials.

        :raises Conflict: ``not_enabled``.
        """
        secret = b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        on = update(config_table).where(config_table.c.namespace == namespace, config_table.c.enabled.is_(True))
        new = on.values(
            turn_secret_previous_encrypted=config_table.c.turn_secret_encrypted,
            turn_secret_encrypted=self._seal.seal(secret, namespace),
            turn_secret_rotated_at=self._clock.seconds(),
        )
        (changed,) = await self._database.write(new)
        if not changed:
            raise Conflict("not_enabled", "WebRTC is not enabled in this namespace")
        _log.info("{namespace} has a new TURN secret", namespace=namespace)

    async def reseal(self) -> int:
        """Seal every secret with the current key; how many there were that an older one had sealed."""
        columns = config_table.c.turn_secret_encrypted, config_table.c.turn_secret_previous_encrypted
        every = select(config_table.c.namespace, *columns)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        statements = []
        for row in rows:
            for column, sealed in zip(columns, row[1:], strict=True):
                if sealed is not None and self._seal.needs_reseal(sealed, row.namespace):
                    fresh = self._seal.seal(self._seal.open(sealed, row.namespace), row.namespace)
                    mine = update(config_table).where(config_table.c.namespace == row.namespace, column == sealed)
                    statements.append(mine.values({column: fresh}))
        if statements:
            await self._database.write(*statements)
        return len(statements)

    # -- putting right ----------------------------------------------------------------------------

    async def repair(self, desired: Collection[DesiredNamespace]) -> int:
        """What one node does for all: roles move away from nodes that are gone, and unfinished business is finished.

        :return: how many namespaces were changed.
        """
        registry, changed = self._registry, 0
        known = {node.node_id for node in registry.nodes}
        pending: Counter[str] = Counter()
        for each in desired:
            if not each.enabled:
                holders = {role.node_id for role in each.roles} | set(each.blocks)
                gone = [node_id for node_id in sorted(holders) if node_id not in known or self._gone(node_id)]
                for node_id in gone:
                    await self._drop(each.namespace, node_id)
                if gone or not each.roles:
                    await self._forget(each.namespace)
                    changed += bool(gone)
                continue
            counts = self.counts(registry.nodes)
            changes = repair(counts, each.roles, registry.nodes, best(registry.active(), pending), self._gone)
            same = (each.sfu_nodes, each.turn_nodes) == (counts[SFU], counts[TURN])
            if changes or not same or self._lacking(each, changes) or _stray(each):
                changed += await self._change(each, counts, changes)
                pending.update(change.after for change in changes if change.after is not None)
        await self._unpublish_gone(known)
        return changed

    def _gone(self, node_id: str) -> bool:
        return self._registry.silence(node_id) > max(self._settings.cluster.replace_after, self._registry.patience)

    def _lacking(self, each: DesiredNamespace, changes: Collection[Change]) -> list[Role]:
        """Roles that stay where they are and have lost their ports."""
        active = {node.node_id for node in self._registry.active()}
        moving = {(change.role, change.slot) for change in changes}
        return [
            role
            for role in each.roles
            if role.node_id in active
            and (role.role, role.slot) not in moving
            and not each.blocks.get(role.node_id, {}).keys() >= set(KINDS[role.role])
        ]

    async def _change(self, each: DesiredNamespace, counts: dict[str, int], changes: Collection[Change]) -> bool:
        namespace = each.namespace
        # A namespace that was enabled by an older program has no token yet.
        enablement = each.enablement or secrets.token_hex(16)
        taken = await self._database.read(lambda connection: read_taken(connection, self._ports.kinds))
        was = config_table.c.enablement == each.enablement if each.enablement else config_table.c.enablement.is_(None)
        same = update(config_table).where(config_table.c.namespace == namespace, config_table.c.enabled.is_(True), was)
        numbers = {"sfu_node_count": counts[SFU], "turn_node_count": counts[TURN], "enablement": enablement}
        statements: list[Executable] = [same.values(**numbers)]
        condition, now = holds(namespace, enablement), self._clock.seconds()
        try:
            for change in changes:
                statements += self._moving(each, enablement, change, taken)
            for role in self._lacking(each, changes):
                allocations = self._missing(each, taken, role)
                statements += give_ports(namespace, enablement, allocations, now)
        except InsufficientStorage as error:
            if namespace not in self._short:
                _log.error("{namespace} has too few nodes: {why}", namespace=namespace, why=error.message)
            self._short.add(namespace)
            return False
        self._short.discard(namespace)
        statements += reclaim(namespace, condition)
        try:
            await self._database.write(*statements)
        except IntegrityError:  # somebody else was at it; the next look will show
            return False
        for change in changes:
            _log.info(
                "{role} of {namespace} goes to {after} (was {before})",
                role=change.role,
                namespace=namespace,
                after=change.after or "nobody",
                before=change.before or "nobody",
            )
        return True

    def _moving(self, each: DesiredNamespace, enablement: str, change: Change, taken: Taken) -> list[Executable]:
        namespace, statements = each.namespace, []
        condition, now = holds(namespace, enablement), self._clock.seconds()
        if change.before is not None:
            statements += revoke(namespace, change.role, change.before, condition)
        node = self._registry.get(change.after) if change.after is not None else None
        if node is not None:
            role = Role(change.role, change.slot, node.node_id)
            statements += grant(namespace, enablement, role, self._missing(each, taken, role), now)
            # Where it relays is told by the node itself, when its firewall lets people in.
            for name in names_of(namespace, (), node, self._settings.base_domain):
                statements.append(publish(name, condition, now))
        return statements

    def _missing(self, each: DesiredNamespace, taken: Taken, role: Role) -> list[Allocation]:
        """Ports that *role* needs, beside those that its node still has of an earlier time."""
        node, held = self._registry.get(role.node_id), each.blocks.get(role.node_id, {})
        return [] if node is None else self._allocate(taken, node, [k for k in KINDS[role.role] if k not in held])

    async def _unpublish_gone(self, known: Collection[str]) -> None:
        """Names of nodes that are dead, draining or unknown."""
        column = tables.dns_records.c.node_id
        here = {node.node_id for node in self._registry.active()}
        rows = await self._database.read(
            lambda connection: connection.execute(select(column).where(column.is_not(None)).distinct()).scalars().all()
        )
        statements = [unpublish(column == node_id) for node_id in rows if node_id not in here]
        if statements:
            await self._database.write(*statements)


def _stray(each: DesiredNamespace) -> bool:
    """Whether a node has ports for a role that it has not."""
    roles = {(role.node_id, kind) for role in each.roles for kind in KINDS[role.role]}
    return any((node_id, kind) not in roles for node_id, held in each.blocks.items() for kind in held)
