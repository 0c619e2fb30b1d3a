"""The SFUs of this node that are processes of their own, as the node sees them: what each is told and what it reports.

A worker holds no database. It opens a stream on the control socket and is told there what it has to know, now and
whenever that changes; it claims rooms through the node, and reports every second what it has. While the stream is open
and reports come, it serves. A node that was started anew finds its workers again by their coming: the rooms that they
still have stay theirs, and rooms that nobody has any more are forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from cattrs import Converter
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.desired import WebRtcConfig
from orama.errors import Conflict, NotFound, OramaError
from orama.settings import AuthSettings, Settings

#: Seconds between two reports, and without one after which a worker is taken for stuck.
REPORT_INTERVAL = 1.0
SILENCE = 5.0
#: Reports between two looks whether the rooms of a worker are still this node's.
LOOK_EVERY = 5

_log = Logger()
_converter = Converter(forbid_extra_keys=True)


@frozen
class Assignment:
    """All that a worker has to know."""

    node_id: str
    #: Those of the node, with the ports that it really has; without database and keys.
    settings: Settings
    config: WebRtcConfig
    #: Where its clients go when it drains; None when there is nowhere else.
    reconnect_url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it travels; there are secrets in it."""
        public: dict[str, Any] = _converter.unstructure(
            evolve(self, settings=evolve(self.settings, database="", auth=AuthSettings()))
        )
        return public

    @classmethod
    def from_json(cls, value: Any) -> Assignment:
        """:raises ValueError: it is none."""
        try:
            return _converter.structure(value, cls)
        except Exception as error:  # cattrs has a tree of them
            raise ValueError(f"this is no assignment: {type(error).__name__}") from None


@frozen
class LiveRoom:
    """A room that a worker has."""

    room_id: str
    participants: int
    max_participants: int


@frozen
class Report:
    """What a worker has. *samples* are (name, labels, value), for ``/metrics``."""

    rooms: tuple[LiveRoom, ...] = ()
    samples: tuple[tuple[str, dict[str, str], float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = _converter.unstructure(self)
        return value

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """:raises ValueError: it is none."""
        try:
            return _converter.structure(value, cls)
        except Exception as error:
            raise ValueError(f"this is no report: {type(error).__name__}") from None


class Record(Protocol):
    """A row of the directory (``cluster.rooms.RoomRecord``)."""

    @property
    def room_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...


class Directory(Protocol):
    """The rooms of the cluster as this node sees them (``cluster.rooms.RoomDirectory``)."""

    @property
    def node_id(self) -> str: ...
    async def claim(self, namespace: str, room_id: str, max_participants: int | None = None) -> Any: ...
    async def release(self, namespace: str, room_id: str) -> bool: ...
    async def mine(self) -> Mapping[tuple[str, str], Any]: ...
    async def remove(self, room: Any) -> bool: ...
    async def count_all(self, participants: dict[tuple[str, str], int]) -> None: ...


#: Sends one message to a worker; False when it cannot take it any more.
Say = Callable[[Mapping[str, Any]], bool]


@define(eq=False)
class Worker:
    """One process that has come."""

    namespace: str
    say: Say = field(repr=False)
    #: When it was last heard of; None before its first report.
    reported: float | None = None
    report: Report = field(factory=Report)
    _reports: int = 0
    _counted: dict[str, int] = field(factory=dict)


class Workers:
    """The workers of this node.

    :param assign: what a namespace's worker has to know now.
    :raises OramaError: by *assign*: the namespace has no SFU here, or that cannot be found out.
    """

    def __init__(
        self, clock: IReactorTime, directory: Directory, assign: Callable[[str], Awaitable[Assignment]]
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._assign = assign
        self._workers: dict[str, Worker] = {}

    # ---- for the control socket

    async def attach(self, namespace: str, say: Say) -> Worker:
        """A worker has come; it is told what it has to know. One that came before for that namespace is sent away.

        :raises OramaError: it is not wanted.
        """
        assignment = await self._assign(namespace)
        before = self._workers.pop(namespace, None)
        if before is not None:
            before.say({"event": "replaced"})
        worker = self._workers[namespace] = Worker(namespace, say)
        say(_assigned(assignment))
        _log.info("the SFU of {namespace} has come to its node", namespace=namespace)
        return worker

    def detach(self, worker: Worker) -> None:
        """Its stream has ended."""
        if self._workers.get(worker.namespace) is worker:
            del self._workers[worker.namespace]
            _log.info("the SFU of {namespace} has left its node", namespace=worker.namespace)

    async def reported(self, namespace: str, report: Report) -> tuple[str, ...]:
        """Take a report; gives the rooms that are another node's by now.

        :raises Conflict: ``not_attached``: the stream comes first.
        """
        worker = self._worker(namespace)
        first = worker.reported is None
        worker.reported, worker.report = self._clock.seconds(), report
        worker._reports += 1
        try:
            lost = await self._settle(worker, first) if first or worker._reports % LOOK_EVERY == 0 else ()
            await self._count(worker)
        except OramaError as error:  # the database is away: what runs goes on
            worker._reports = LOOK_EVERY - 1
            if first:
                worker.reported = None
                raise
            _log.warn("the rooms of {namespace} are not written down: {why}", namespace=namespace, why=error.message)
            return ()
        return lost

    async def claim(self, namespace: str, room_id: str) -> Any:
        """The record of a room that somebody joins.

        :raises OramaError: as the directory.
        """
        self._worker(namespace)
        return await self._directory.claim(namespace, room_id)

    async def release(self, namespace: str, room_id: str) -> bool:
        """The worker has closed an empty room."""
        self._worker(namespace)
        return await self._directory.release(namespace, room_id)

    # ---- for the node

    def serves(self, namespace: str) -> bool:
        """Whether the namespace's worker has come, is ready, and is not stuck."""
        worker = self._workers.get(namespace)
        if worker is None or worker.reported is None:
            return False
        return self._clock.seconds() - worker.reported <= SILENCE

    async def refresh(self, namespace: str) -> None:
        """Tell the worker of *namespace* what it has to know now, if it is there."""
        worker = self._workers.get(namespace)
        if worker is not None:
            worker.say(_assigned(await self._assign(namespace)))

    async def leave(self, namespace: str) -> None:
        """The worker is about to be stopped: its people are told to go elsewhere, or that their rooms are closed."""
        worker = self._workers.get(namespace)
        if worker is None:
            return
        try:
            worker.say(_assigned(await self._assign(namespace)))
        except NotFound:
            worker.say({"event": "unwanted"})
        except OramaError as error:
            _log.warn("the SFU of {namespace} drains as it is: {why}", namespace=namespace, why=error.message)

    # What REST asks of live rooms (orama.rest.resources.LiveRooms).

    def create(self, namespace: str, room_id: str, max_participants: int) -> None:
        """:raises NotFound: ``webrtc_not_enabled``: there is no worker."""
        worker = self._workers.get(namespace)
        if worker is None or not worker.say(
            {"event": "create", "room_id": room_id, "max_participants": max_participants}
        ):
            raise NotFound("webrtc_not_enabled", "the SFU of this namespace does not run here")

    def close(self, namespace: str, room_id: str, reason: str) -> bool:
        """Send everybody away; False when the room is not here."""
        worker = self._workers.get(namespace)
        return worker is not None and worker.say({"event": "close", "room_id": room_id, "reason": reason})

    def participants(self, namespace: str, room_id: str) -> int:
        return sum(room.participants for room in self.rooms(namespace) if room.room_id == room_id)

    def rooms(self, namespace: str) -> tuple[LiveRoom, ...]:
        """As last reported."""
        worker = self._workers.get(namespace)
        return () if worker is None else worker.report.rooms

    def peers(self) -> int:
        """People in all rooms."""
        return sum(room.participants for worker in self._workers.values() for room in worker.report.rooms)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """What ``/metrics`` shows of them."""
        for worker in self._workers.values():
            yield from worker.report.samples

    # ---- rooms and their rows

    async def _settle(self, worker: Worker, first: bool) -> tuple[str, ...]:
        """Bring the rows of this node and the rooms of a worker together; gives the rooms that others have."""
        namespace = worker.namespace
        rows = {room_id: row for (owner, room_id), row in (await self._directory.mine()).items() if owner == namespace}
        rooms = {room.room_id: room for room in worker.report.rooms}
        if first:  # later on, a room that is claimed may be about to be joined
            for room_id in rows.keys() - rooms.keys():
                await self._directory.remove(rows[room_id])
        return tuple(
            [
                room_id
                for room_id in sorted(rooms.keys() - rows.keys())
                if not await self._have(rooms[room_id], namespace)
            ]
        )

    async def _have(self, room: LiveRoom, namespace: str) -> bool:
        """Whether the room is this node's after another claim."""
        try:
            record = await self._directory.claim(namespace, room.room_id, room.max_participants)
        except NotFound:
            return False
        return bool(record.node_id == self._directory.node_id)

    async def _count(self, worker: Worker) -> None:
        numbers = {room.room_id: room.participants for room in worker.report.rooms}
        changed = {room_id: number for room_id, number in numbers.items() if worker._counted.get(room_id) != number}
        if changed:
            await self._directory.count_all({(worker.namespace, room_id): each for room_id, each in changed.items()})
        worker._counted = numbers

    def _worker(self, namespace: str) -> Worker:
        worker = self._workers.get(namespace)
        if worker is None:
            raise Conflict("not_attached", "no SFU of this namespace has come to this node")
        return worker


def _assigned(assignment: Assignment) -> dict[str, Any]:
    return {"event": "assignment", "assignment": assignment.to_json()}
