"""Which rooms there are and on which node each lives: one row a room, claimed by one insert.

A claim is never shared and never asked for twice at a time: a row names one node, and it changes hands by comparing and
setting, so that of all who want to take it over one does. It is taken over when its node is dead, drains, serves the
namespace no more, or was seen not to answer; by whom is decided here. Who is in a room is the business of the SFU that
has it; what an SFU has to do when it has lost a room is in :mod:`orama.cluster.claims`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from attrs import evolve, frozen
from sqlalchemy import Double, Executable, Integer, String, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.nodes import ACTIVE
from orama.errors import Conflict, NotFound, Unavailable
from orama.store.database import Database
from orama.store.tables import namespace_webrtc_config as config
from orama.store.tables import nodes
from orama.store.tables import webrtc_rooms as table

#: Times that a claim is tried again because others were faster.
MAX_TRIES = 10

_log = Logger()


@frozen
class RoomRecord:
    """One room. ``participants`` is what its node last wrote."""

    namespace: str
    room_id: str
    node_id: str
    max_participants: int
    participants: int
    created_at: float


class Node(Protocol):
    """What the directory asks of one node (``cluster.nodes.NodeRecord``)."""

    @property
    def node_id(self) -> str: ...
    @property
    def capacity(self) -> Any:
        """With ``streams``."""


class Registry(Protocol):
    """Who is there (``cluster.nodes.NodeRegistry``)."""

    @property
    def node_id(self) -> str:
        """This node's."""

    def alive(self, node_id: str) -> bool: ...
    def active(self) -> Sequence[Node]:
        """Those that are alive and not draining."""

    async def read(self) -> None:
        """Look anew."""


class SfuPlace(Protocol):
    """Where a namespace's SFU answers on one node (``cluster.namespaces.SfuPlace``)."""

    @property
    def node_id(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def signaling_port(self) -> int: ...


#: The SFUs of a namespace; None where that is not asked, because this node is the only one.
Places = Callable[[str], Sequence[SfuPlace] | None]


@frozen
class LocalNode:
    """The registry of a node that is alone."""

    node_id: str

    def alive(self, node_id: str) -> bool:
        return node_id == self.node_id

    def active(self) -> tuple[Node, ...]:
        return ()

    async def read(self) -> None:
        """There is nothing to see."""


class RoomDirectory:
    """The rooms of all nodes, as the node of *registry* sees them.

    :param registry: who lives; a node id stands for a node that is alone.
    :param max_participants: of a room that nobody gave a limit.
    :param places: which nodes have an SFU for a namespace.
    :param refresh: has *registry* and *places* tell how things are now.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry | str,
        clock: IReactorTime,
        max_participants: int,
        places: Places = lambda namespace: None,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._registry = LocalNode(registry) if isinstance(registry, str) else registry
        self._clock = clock
        self._max_participants = max_participants
        self._places = places
        self._refresh = _nothing if refresh is None else refresh
        self._locks: dict[tuple[str, str], DeferredLock] = {}

    @property
    def node_id(self) -> str:
        return self._registry.node_id

    async def start(self) -> None:
        """Forget the rooms that this node had: they ended with the process that it was."""
        await self._database.write(delete(table).where(table.c.node_id == self.node_id))

    async def forget(self, namespace: str) -> None:
        """Forget this node's rooms of *namespace*: they ended with the process of its SFU."""
        mine = table.c.node_id == self.node_id, table.c.namespace == namespace
        await self._database.write(delete(table).where(*mine))

    # ---- claims

    async def claim(
        self,
        namespace: str,
        room_id: str,
        max_participants: int | None = None,
        explicit: bool = False,
        gone: Collection[str] = (),
    ) -> RoomRecord:
        """Make the room and give it to a node, find where it is, or take it from a node that cannot have it any more.

        Whoever waits for this may count on the row until it lets go of the reactor: :meth:`release` waits its turn.

        :param explicit: somebody asks for a new room by name; otherwise somebody joins it.
        :param gone: nodes whose SFU of this namespace was seen to be gone, whatever is known of the nodes otherwise.
        :raises Conflict: ``room_exists``, only when *explicit*.
        :raises NotFound: ``webrtc_not_enabled``, or ``room_not_found`` where rooms do not come with joining.
        :raises Unavailable: ``no_sfu``: no node can have the room now.
        """
        limit = max_participants or self._max_participants
        async with self._alone(namespace, room_id):
            for _ in range(MAX_TRIES):
                record = await self._try(namespace, room_id, limit, explicit, gone)
                if record is not None:
                    return record
        raise Unavailable("room_contested", "the room goes from hand to hand; try again")

    async def _try(
        self, namespace: str, room_id: str, limit: int, explicit: bool, gone: Collection[str]
    ) -> RoomRecord | None:
        """One attempt at a claim; None when somebody else was faster."""
        existing = await self.find(namespace, room_id)
        if existing is None:
            return await self._make(namespace, room_id, limit, explicit, gone)
        if explicit:
            raise Conflict("room_exists", "there is a room of that name")
        if existing.node_id != self.node_id and await self._has_turned_away(existing.node_id):
            await self._registry.read()
        if self._may_keep(existing, gone):
            return existing
        # What we know may be older than what made that node the owner.
        await self._refresh()
        if self._may_keep(existing, gone):
            return existing
        return await self._take_over(existing, gone)

    async def _make(
        self, namespace: str, room_id: str, limit: int, explicit: bool, gone: Collection[str]
    ) -> RoomRecord | None:
        await self._require_enabled(namespace, explicit)
        room = RoomRecord(namespace, room_id, self._choose(namespace, gone), limit, 0, self._clock.seconds())
        try:
            (made,) = await self._database.write(_insert(room, explicit))
        except IntegrityError:
            if explicit:
                raise Conflict("room_exists", "there is a room of that name") from None
            return None
        return room if made else None

    async def _take_over(self, room: RoomRecord, gone: Collection[str]) -> RoomRecord | None:
        """Give *room* to another node, unless somebody does so first."""
        heir = self._choose(room.namespace, gone)
        if heir == room.node_id:
            return room
        row = update(table).where(
            table.c.namespace == room.namespace, table.c.room_id == room.room_id, table.c.node_id == room.node_id
        )
        (taken,) = await self._database.write(row.values(node_id=heir, participants=0))
        if not taken:
            return None
        _log.info(
            "room {room} of {namespace} goes from {old} to {new}",
            room=room.room_id,
            namespace=room.namespace,
            old=room.node_id,
            new=heir,
        )
        return evolve(room, node_id=heir, participants=0)

    async def _has_turned_away(self, node_id: str) -> bool:
        """Whether a node that we take for a good one drains by now, or has left.

        Its people are told to come to us before the next heartbeat tells us.
        """
        if all(node.node_id != node_id for node in self._registry.active()):
            return False
        one = select(nodes.c.state, nodes.c.last_seen).where(nodes.c.id == node_id)
        row = await self._database.read(lambda connection: connection.execute(one).first())
        return row is not None and (row.state != ACTIVE or row.last_seen == 0.0)

    def _may_keep(self, room: RoomRecord, gone: Collection[str]) -> bool:
        """Whether the room stays with its node."""
        owner = room.node_id
        if owner in gone or not self._registry.alive(owner):
            return False
        return owner in self._candidates(room.namespace) or not self._others_can(room.namespace, {owner, *gone})

    def _others_can(self, namespace: str, but: Collection[str]) -> bool:
        """Whether somebody else could have a room whose node goes down in good order.

        Where nobody could, its people stay where they are until the end.
        """
        return any(node_id not in but for node_id in self._candidates(namespace))

    def _candidates(self, namespace: str) -> dict[str, int]:
        """The nodes that may be given a room of *namespace*, and how many streams each has."""
        places = self._places(namespace)
        if places is None:
            return {self.node_id: 0}
        streams = {node.node_id: node.capacity.streams for node in self._registry.active()}
        return {place.node_id: streams[place.node_id] for place in places if place.node_id in streams}

    def _choose(self, namespace: str, gone: Collection[str]) -> str:
        """Who gets a room: this node when it can have it, else the one with the fewest streams."""
        able = {node_id: streams for node_id, streams in self._candidates(namespace).items() if node_id not in gone}
        if self.node_id in able:
            return self.node_id
        if not able:
            raise Unavailable("no_sfu", "no node of the cluster can have the room now")
        return min(able, key=lambda node_id: (able[node_id], node_id))

    async def _require_enabled(self, namespace: str, explicit: bool) -> None:
        one = select(config.c.enabled, config.c.rooms_on_join).where(config.c.namespace == namespace)
        row = await self._database.read(lambda connection: connection.execute(one).first())
        if row is None or not row.enabled:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        if not explicit and not row.rooms_on_join:
            raise NotFound("room_not_found", "there is no such room, and joining does not make one here")

    # ---- the rest of a room's life

    async def release(self, namespace: str, room_id: str, unless: Callable[[], bool] = lambda: False) -> bool:
        """Forget a room of this node; False when it has none of that name, or when it is kept.

        :param unless: whether the room is to be kept after all; asked when whoever claimed it has used it.
        """
        async with self._alone(namespace, room_id):
            # The look into the database gives whoever claimed the room just now its turn of the reactor.
            room = await self.find(namespace, room_id)
            if room is None or room.node_id != self.node_id or unless():
                return False
            return await self.remove(room)

    async def delete(self, namespace: str, room_id: str) -> RoomRecord:
        """Forget a room, on whichever node it is; whoever is in it has yet to be told.

        :raises NotFound: ``room_not_found``.
        """
        for _ in range(MAX_TRIES):
            room = await self.find(namespace, room_id)
            if room is None:
                raise NotFound("room_not_found", "there is no such room")
            if await self.remove(room):
                return room
        raise Unavailable("room_contested", "the room goes from hand to hand; try again")

    async def remove(self, room: RoomRecord) -> bool:
        """Forget *room* if it is still that node's."""
        same = (getattr(table.c, name) == getattr(room, name) for name in ("namespace", "room_id", "node_id"))
        (gone,) = await self._database.write(delete(table).where(*same))
        return gone == 1

    async def find(self, namespace: str, room_id: str) -> RoomRecord | None:
        one = select(table).where(table.c.namespace == namespace, table.c.room_id == room_id)
        row = await self._database.read(lambda connection: connection.execute(one).first())
        return None if row is None else RoomRecord(**row._mapping)

    async def list(self, namespace: str) -> list[RoomRecord]:
        """All rooms of *namespace*, oldest first. Nobody is in the rooms of a dead node."""
        every = select(table).where(table.c.namespace == namespace).order_by(table.c.created_at, table.c.room_id)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        found = [RoomRecord(**row._mapping) for row in rows]
        return [room if self._registry.alive(room.node_id) else evolve(room, participants=0) for room in found]

    async def count(self, namespace: str, room_id: str, participants: int) -> None:
        """Write down how many are in a room of this node, for the others to see."""
        await self.count_all({(namespace, room_id): participants})

    # ---- for orama.cluster.claims

    async def mine(self) -> dict[tuple[str, str], RoomRecord]:
        """The rooms of this node, by namespace and room id."""
        every = select(table).where(table.c.node_id == self.node_id)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        return {(row.namespace, row.room_id): RoomRecord(**row._mapping) for row in rows}

    async def orphans(self) -> list[RoomRecord]:  # type: ignore[valid-type]
        """The rooms of dead nodes."""
        every = select(table).where(table.c.node_id != self.node_id)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        return [RoomRecord(**row._mapping) for row in rows if not self._registry.alive(row.node_id)]

    async def count_all(self, participants: dict[tuple[str, str], int]) -> None:
        """:meth:`count` for several rooms in one step."""
        statements: list[Executable] = [  # type: ignore[valid-type]
            update(table)
            .where(table.c.namespace == namespace, table.c.room_id == room_id, table.c.node_id == self.node_id)
            .values(participants=number)
            for (namespace, room_id), number in participants.items()
        ]
        if statements:
            await self._database.write(*statements)

    @asynccontextmanager
    async def _alone(self, namespace: str, room_id: str) -> AsyncIterator[None]:
        """One after the other: who claims or releases the same room of this node."""
        key = namespace, room_id
        lock = self._locks.setdefault(key, DeferredLock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked:
                self._locks.pop(key, None)


async def _nothing() -> None:
    """Things are as they are known."""


def _insert(room: RoomRecord, explicit: bool) -> Executable:
    """One statement that makes the room if its namespace lets it."""
    values = select(
        config.c.namespace,
        literal(room.room_id, String),
        literal(room.node_id, String),
        literal(room.max_participants, Integer),
        literal(room.participants, Integer),
        literal(room.created_at, Double),
    ).where(config.c.namespace == room.namespace, config.c.enabled)
    if not explicit:
        values = values.where(config.c.rooms_on_join)
    columns = ["namespace", "room_id", "node_id", "max_participants", "participants", "created_at"]
    return insert(table).from_select(columns, values)
