"""Holding an SFU to its claims: every heartbeat the rooms that are here are compared with the rows that say so.

A room whose row names another node has been taken over while this node was taken for dead: whoever is in it is sent
after it. A room without a row was closed somewhere else. A row without a room goes when nobody has come for as long as
an empty room stays, and so do the rows of dead nodes. How many are in each room is written when it has changed. While
the database is away nothing is concluded, and calls go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.cluster.rooms import RoomDirectory, RoomRecord
from orama.errors import Unavailable

#: Looks at what one node has for every look at what dead nodes have left.
ORPHANS_EVERY = 10

#: Namespace and room id.
RoomName: TypeAlias = tuple[str, str]
_Since: TypeAlias = dict[tuple[str, str, str], float]

_log = Logger()


class RoomClaims(Service):
    """:param interval: seconds between two looks.

    :param linger: seconds that a row without a room stays.
    :param live: the rooms of this node's SFU, and how many are in each.
    :param lost: called with namespace and room id of a room that is another node's now.
    :param closed: called with those of a room that is nobody's any more.
    """

    def __init__(
        self,
        directory: RoomDirectory,
        clock: IReactorTime,
        interval: float,
        linger: float,
        live: Callable[[], Mapping[RoomName, int]],
        lost: Callable[[str, str], object],
        closed: Callable[[str, str], object],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._linger = linger
        self._live = live
        self._lost = lost
        self._closed = closed
        self._looks = 0
        #: Rooms that had no row when we last looked.
        self._missing: set[RoomName] = set()
        #: Rows without a room, by the node that they name: ours and those of dead nodes; and since when.
        self._idle: _Since = {}
        self._orphaned: _Since = {}
        self._timer = TimerService(interval, self._tick)
        self._timer.clock = clock

    def startService(self) -> None:
        super().startService()
        self._timer.startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        stopping: Deferred[None] = self._timer.stopService()
        return stopping

    async def look(self) -> None:
        """Compare once.

        :raises Unavailable: the database does not answer; nothing was concluded.
        """
        here = dict(self._live())
        rows = await self._directory.mine()
        changed = {name: number for name, number in here.items() if name in rows and rows[name].participants != number}
        await self._directory.count_all(changed)
        await self._give_up([name for name in here if name not in rows])
        idle = [row for name, row in rows.items() if name not in here]
        self._idle = await self._outlived(self._idle, idle, self._release)
        if self._looks % ORPHANS_EVERY == 0:
            orphans = await self._directory.orphans()
            self._orphaned = await self._outlived(self._orphaned, orphans, self._directory.remove)
        self._looks += 1

    async def _give_up(self, missing: list[RoomName]) -> None:
        """Part with the rooms that had no row twice in a row: a claim may have come after we looked."""
        again, self._missing = self._missing.intersection(missing), set(missing)
        for namespace, room_id in sorted(again):
            row = await self._directory.find(namespace, room_id)
            if (namespace, room_id) not in self._live():
                continue
            if row is None:
                _log.info("room {room} of {namespace} was closed elsewhere", room=room_id, namespace=namespace)
                self._closed(namespace, room_id)
            elif row.node_id != self._directory.node_id:
                _log.info("room {room} of {namespace} is lost", room=room_id, namespace=namespace, to=row.node_id)
                self._lost(namespace, room_id)

    async def _outlived(
        self, since: _Since, rows: Iterable[RoomRecord], forget: Callable[[RoomRecord], Awaitable[bool]]
    ) -> _Since:
        """Forget what has been without a room for too long; gives back the rest, and since when."""
        now = self._clock.seconds()
        rest: _Since = {}
        for row in rows:
            key = row.namespace, row.room_id, row.node_id
            begin = since.get(key, now)
            if now - begin < self._linger:
                rest[key] = begin
            else:
                await forget(row)
        return rest

    async def _release(self, row: RoomRecord) -> bool:
        name = row.namespace, row.room_id
        return await self._directory.release(*name, unless=lambda: name in self._live())

    def _tick(self) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            if failure.check(Unavailable) is None:
                _log.failure("the claims of rooms could not be looked at", failure=failure)

        return Deferred.fromCoroutine(self.look()).addErrback(failed)
