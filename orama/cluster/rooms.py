"""Which rooms there are and on which node each lives: one row a room, claimed by one insert.

Who is in a room is the business of the SFU that has it; this directory only knows where that is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from attrs import frozen
from sqlalchemy import Connection, Double, Integer, String, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime

from orama.errors import Conflict, NotFound
from orama.store.database import Database
from orama.store.tables import namespace_webrtc_config as config
from orama.store.tables import webrtc_rooms as table


@frozen
class RoomRecord:
    """One room. ``participants`` is what its node last wrote."""

    namespace: str
    room_id: str
    node_id: str
    max_participants: int
    participants: int
    created_at: float


class RoomDirectory:
    """The rooms of all nodes, as *node_id* sees them.

    :param max_participants: of a room that nobody gave a limit.
    """

    def __init__(self, database: Database, node_id: str, clock: IReactorTime, max_participants: int) -> None:
        self._database = database
        self.node_id = node_id
        self._clock = clock
        self._max_participants = max_participants
        self._locks: dict[tuple[str, str], DeferredLock] = {}

    async def start(self) -> None:
        """Forget the rooms that this node had: they ended with the process that it was."""
        mine = delete(table).where(table.c.node_id == self.node_id)
        await self._database.transact(lambda connection: connection.execute(mine))

    async def claim(
        self, namespace: str, room_id: str, max_participants: int | None = None, explicit: bool = False
    ) -> RoomRecord:
        """Make the room and take it to this node, or find where it is.

        Whoever waits for this may count on the row until it lets go of the reactor: :meth:`release` waits its turn.

        :param explicit: somebody asks for a new room by name; otherwise somebody joins it.
        :raises Conflict: ``room_exists``, only when *explicit*.
        :raises NotFound: ``webrtc_not_enabled``, or ``room_not_found`` where rooms do not come with joining.
        """
        room = RoomRecord(
            namespace, room_id, self.node_id, max_participants or self._max_participants, 0, self._clock.seconds()
        )
        async with self._alone(namespace, room_id):
            return await self._claim(room, explicit)

    async def _claim(self, room: RoomRecord, explicit: bool) -> RoomRecord:
        try:
            made = await self._database.transact(lambda connection: _insert(connection, room, explicit))
        except IntegrityError:
            if explicit:
                raise Conflict("room_exists", "there is a room of that name") from None
            return await self.find(room.namespace, room.room_id) or await self._claim(room, explicit)
        if made:
            return room
        existing = await self.find(room.namespace, room.room_id)
        if existing is not None and not explicit:
            return existing
        if await self._enabled(room.namespace):
            raise NotFound("room_not_found", "there is no such room, and joining does not make one here")
        raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")

    async def release(self, namespace: str, room_id: str, unless: Callable[[], bool] = lambda: False) -> bool:
        """Forget the room; False when there was none, or when it is kept.

        :param unless: whether the room is to be kept after all; asked when whoever claimed it has used it.
        """
        gone = delete(table).where(table.c.namespace == namespace, table.c.room_id == room_id)
        async with self._alone(namespace, room_id):
            # The look into the database gives whoever claimed the room just now its turn of the reactor.
            if await self.find(namespace, room_id) is None or unless():
                return False
            return await self._database.transact(lambda connection: connection.execute(gone).rowcount) == 1

    async def find(self, namespace: str, room_id: str) -> RoomRecord | None:
        one = select(table).where(table.c.namespace == namespace, table.c.room_id == room_id)
        row = await self._database.read(lambda connection: connection.execute(one).first())
        return None if row is None else RoomRecord(**row._mapping)

    async def list(self, namespace: str) -> list[RoomRecord]:
        """All rooms of *namespace*, oldest first."""
        every = select(table).where(table.c.namespace == namespace).order_by(table.c.created_at, table.c.room_id)
        rows = await self._database.read(lambda connection: connection.execute(every).all())
        return [RoomRecord(**row._mapping) for row in rows]

    async def count(self, namespace: str, room_id: str, participants: int) -> None:
        """Write down how many are in a room of this node, for the others to see."""
        row = update(table).where(
            table.c.namespace == namespace, table.c.room_id == room_id, table.c.node_id == self.node_id
        )
        await self._database.transact(lambda connection: connection.execute(row.values(participants=participants)))

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

    async def _enabled(self, namespace: str) -> bool:
        one = select(config.c.enabled).where(config.c.namespace == namespace)
        return bool(await self._database.read(lambda connection: connection.execute(one).scalar()))


def _insert(connection: Connection, room: RoomRecord, explicit: bool) -> bool:
    """One statement that makes the room if its namespace lets it; whether it did."""
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
    statement = insert(table).from_select(columns, values).execution_options(preserve_rowcount=True)
    return connection.execute(statement).rowcount == 1
