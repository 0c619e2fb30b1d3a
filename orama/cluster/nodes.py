"""The nodes of the cluster: each writes that it lives, and reads who else does.

A node is alive as long as its row changes, by the clock of whoever looks: what the clocks of two machines show
is never compared. While the database is away nobody is judged, and when it is back everybody gets a fresh start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.errors import Conflict, NotFound
from orama.store import tables
from orama.store.database import Database

ACTIVE = "active"
#: To be emptied, and emptied.
DRAINING = "draining"
DRAINED = "drained"
#: Heartbeats after which a node is dead that we saw no sign of: two, less the time that it takes to see one.
MISSED = 1.7
#: Heartbeats for which a read tells how things are.
FRESH = 1.1
#: Heartbeats between two reads after which we count as blind in between: the others may have lived all the while.
BLIND = 1.5

_log = Logger()


@frozen
class Capacity:
    """What a machine has and how much of it is in use; memory in MiB, load as in ``uptime``."""

    cpus: int = 1
    load: float = 0.0
    memory_mb: int = 0
    memory_free_mb: int = 0
    #: Namespaces that it serves, and media streams that it forwards or relays.
    namespaces: int = 0
    streams: int = 0


@frozen
class NodeRecord:
    """One node as it describes itself."""

    node_id: str
    internal_ip: str
    #: Of node-to-node HTTP.
    internal_port: int
    public_ip: str
    relay_ip: str
    #: Of its gateway, for browsers.
    url: str
    turn_port: int
    turns_port: int
    version: str
    state: str = ACTIVE
    joined_at: float = 0.0
    #: By its own clock.
    last_seen: float = 0.0
    capacity: Capacity = Capacity()

    @property
    def draining(self) -> bool:
        """It takes nobody new."""
        return self.state != ACTIVE


class NodeRegistry:
    """The nodes as this one sees them.

    :param heartbeat: seconds between two calls of :meth:`beat`.
    """

    def __init__(self, database: Database, node_id: str, clock: IReactorTime, heartbeat: float) -> None:
        self.node_id = node_id
        self.heartbeat = heartbeat
        #: As last read, the one that joined first at the front.
        self.nodes: tuple[NodeRecord, ...] = ()
        self._database = database
        self._clock = clock
        self._me: NodeRecord | None = None
        self._left = False
        #: Node → its ``last_seen`` and when we first saw that.
        self._signs: dict[str, tuple[float, float]] = {}
        self._read_at: float | None = None
        #: Numbers of the last look that began, and of the last one that counts.
        self._asked = self._answered = 0

    async def join(self, me: NodeRecord) -> None:
        """Be one of the nodes from now on; whoever was draining before still is."""
        now = self._clock.seconds()
        self._me = evolve(me, joined_at=now, last_seen=now)
        await self._write()
        await self.read()

    async def beat(self, capacity: Capacity) -> None:
        """Write that we live, and read who else does.

        :raises Unavailable: the database does not answer.
        """
        if self._me is not None:
            self._me = evolve(self._me, last_seen=self._clock.seconds(), capacity=capacity)
            await self._write()
        await self.read()

    async def leave(self) -> None:
        """We stop on purpose: everybody may know at once. From now on :meth:`beat` only reads."""
        if self._me is not None:
            self._me, self._left = None, True
            gone = update(tables.nodes).where(tables.nodes.c.id == self.node_id)
            await self._database.write(gone.values(last_seen=0.0))

    async def read(self) -> None:
        """Look who lives."""
        self._asked += 1
        asked = self._asked
        rows = await self._database.read(_all)
        if asked < self._answered:
            return  # somebody who asked later has had an answer
        self._answered = asked
        now = self._clock.seconds()
        if self._read_at is None or now - self._read_at > BLIND * self.heartbeat:
            self._signs.clear()  # we have been blind: nobody is judged for that time
        self._read_at = now
        for row in rows:
            known = self._signs.get(row.id)
            if known is None or known[0] != row.last_seen:
                self._signs[row.id] = row.last_seen, now
        self.nodes = tuple(_record(row) for row in rows)

    @property
    def patience(self) -> float:
        """Seconds of silence that make a node dead."""
        return MISSED * self.heartbeat

    def get(self, node_id: str) -> NodeRecord | None:
        return next((node for node in self.nodes if node.node_id == node_id), None)

    def silence(self, node_id: str) -> float:
        """Seconds since a node was last heard of; infinite when there is none of that name."""
        seen = self._signs.get(node_id)
        if seen is None or self._read_at is None or self.get(node_id) is None:
            return float("inf")
        # While nothing can be read nobody grows silent.
        return min(self._clock.seconds(), self._read_at + FRESH * self.heartbeat) - seen[1]

    def alive(self, node_id: str) -> bool:
        """Whether a node has given a sign of life, and has not left since."""
        if node_id == self.node_id:
            return not self._left
        left = self._signs.get(node_id, (0.0, 0.0))[0] == 0.0
        return not left and self.silence(node_id) <= self.patience

    def live(self) -> tuple[NodeRecord, ...]:
        """Those that are alive."""
        return tuple(node for node in self.nodes if self.alive(node.node_id))

    def active(self) -> tuple[NodeRecord, ...]:
        """Those that are alive and not draining."""
        return tuple(node for node in self.live() if not node.draining)

    @property
    def draining(self) -> bool:
        """Whether this node is to be emptied."""
        me = self.get(self.node_id)
        return me is not None and me.draining

    @property
    def leads(self) -> bool:
        """Whether this node does what one node has to do for all: the active one that joined first does.

        Two may believe it for a moment; whatever they write is guarded by constraints and comparisons.
        """
        first = next(iter(self.active() or self.live()), None)
        return first is not None and first.node_id == self.node_id

    async def set_draining(self, node_id: str, draining: bool) -> None:
        """Empty a node, or take it back into use; one that is drained already stays so.

        :raises NotFound: ``node_not_found``.
        :raises Conflict: ``last_node``: nobody would be left.
        """
        await self.read()
        node = self.get(node_id)
        if node is None:
            raise NotFound("node_not_found", "there is no such node")
        if draining and not any(other.node_id != node_id for other in self.active()):
            raise Conflict("last_node", "no other node could take over: there is none that is alive and active")
        if draining is not node.draining:
            one = update(tables.nodes).where(tables.nodes.c.id == node_id)
            await self._database.write(one.values(state=DRAINING if draining else ACTIVE))
            await self.read()

    async def drained(self) -> None:
        """This node is empty; its roles may go."""
        mine = update(tables.nodes).where(tables.nodes.c.id == self.node_id, tables.nodes.c.state == DRAINING)
        await self._database.write(mine.values(state=DRAINED))
        await self.read()

    async def remove(self, node_id: str, force: bool = False) -> None:
        """Forget a node and all that it was to do; others take over its roles where they can.

        :raises NotFound: ``node_not_found``.
        :raises Conflict: ``node_alive``: it would be back, as a new one, with its next heartbeat.
        :param force: also when it is alive.
        """
        await self.read()
        if self.get(node_id) is None:
            raise NotFound("node_not_found", "there is no such node")
        if self.alive(node_id) and not force:
            raise Conflict("node_alive", "the node is running: stop it first, its people are told then")
        roles = tables.webrtc_roles
        every = (roles, tables.webrtc_port_allocations, tables.webrtc_rooms, tables.dns_records)
        statements = [delete(table).where(table.c.node_id == node_id) for table in every]
        await self._database.write(*statements, delete(tables.nodes).where(tables.nodes.c.id == node_id))
        await self.read()

    async def _write(self) -> None:
        assert self._me is not None
        mine = _columns(self._me)
        one = update(tables.nodes).where(tables.nodes.c.id == self.node_id).values(**mine)
        (count,) = await self._database.write(one)
        if count:
            return
        row = {**mine, "id": self.node_id, "state": self._me.state, "joined_at": self._me.joined_at}
        try:
            await self._database.write(insert(tables.nodes).values(**row))
        except IntegrityError:  # an earlier attempt got through after all
            await self._database.write(one)


def _all(connection: Connection) -> list[Row[Any]]:
    table = tables.nodes
    return list(connection.execute(select(table).order_by(table.c.joined_at, table.c.id)).all())


def _columns(node: NodeRecord) -> dict[str, Any]:
    """What a node writes of itself; the state is others' business, too."""
    capacity = node.capacity
    return {
        "host": node.internal_ip,
        "internal_ip": node.internal_ip,
        "internal_port": node.internal_port,
        "public_ip": node.public_ip,
        "relay_ip": node.relay_ip,
        "url": node.url,
        "turn_port": node.turn_port,
        "turns_port": node.turns_port,
        "version": node.version,
        "last_seen": node.last_seen,
        "cpus": capacity.cpus,
        "load": capacity.load,
        "memory_mb": capacity.memory_mb,
        "memory_free_mb": capacity.memory_free_mb,
        "namespaces": capacity.namespaces,
        "streams": capacity.streams,
    }


def _record(row: Row[Any]) -> NodeRecord:
    return NodeRecord(
        node_id=row.id,
        internal_ip=row.internal_ip,
        internal_port=row.internal_port,
        public_ip=row.public_ip,
        relay_ip=row.relay_ip,
        url=row.url,
        turn_port=row.turn_port,
        turns_port=row.turns_port,
        version=row.version,
        state=row.state,
        joined_at=row.joined_at,
        last_seen=row.last_seen,
        capacity=Capacity(
            row.cpus, row.load, row.memory_mb, row.memory_free_mb, namespaces=row.namespaces, streams=row.streams
        ),
    )


def machine(namespaces: int, streams: int, read: Callable[[], str] | None = None) -> Capacity:
    """What this machine has, by Linux's ``/proc/meminfo`` and the load of the last minute."""
    memory = {"MemTotal": 0, "MemAvailable": 0}
    try:
        text = read() if read is not None else _meminfo()
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in memory:
                memory[name] = int(value.split()[0]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return Capacity(
        os.cpu_count() or 1,
        os.getloadavg()[0],
        memory["MemTotal"],
        memory["MemAvailable"],
        namespaces,
        streams,
    )


def _meminfo() -> str:
    with open("/proc/meminfo", encoding="ascii") as file:
        return file.read()
