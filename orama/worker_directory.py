"""The rooms of the cluster as an SFU that is a process of its own sees them: asked of its node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.internet.task import deferLater

from orama.attachment import Attachment
from orama.cluster.rooms import RoomRecord
from orama.errors import Unavailable


class WorkerDirectory:
    """The rooms of the cluster, asked of the node.

    :param me: who asks: namespace and number.
    :param live: the record of a room that this process has.
    """

    def __init__(
        self,
        clock: Any,
        attachment: Attachment,
        node_id: str,
        me: Mapping[str, Any],
        live: Callable[[str, str], RoomRecord | None],
    ) -> None:
        self.node_id = node_id
        self._me = me
        self._clock = clock
        self._attachment = attachment
        self._live = live
        self._locks: dict[tuple[str, str], DeferredLock] = {}

    async def claim(self, namespace: str, room_id: str, *, gone: Collection[str] = ()) -> RoomRecord:
        """As ``cluster.rooms.RoomDirectory.claim``; a room that people are in is ours also while the node is away.

        :param gone: makes no difference: who comes here was sent by a gateway, which knows better.
        :raises OramaError: the node's.
        """
        async with self._locks.setdefault((namespace, room_id), DeferredLock()):
            try:
                found = await self._attachment.post("worker/claim", {**self._me, "room_id": room_id})
            except Unavailable:
                record = self._live(namespace, room_id)
                if record is None:
                    raise
                return record
        return RoomRecord(**found)

    async def release(self, namespace: str, room_id: str) -> None:
        """Give up an empty room, unless somebody has come into it."""
        lock = self._locks.setdefault((namespace, room_id), DeferredLock())
        async with lock:
            # Whoever claimed it just now has its turn of the reactor first.
            await deferLater(self._clock, 0)
            if self._live(namespace, room_id) is None:
                await self._attachment.post("worker/release", {**self._me, "room_id": room_id})
        if not lock.locked and self._live(namespace, room_id) is None:
            self._locks.pop((namespace, room_id), None)
