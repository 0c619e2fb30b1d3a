"""The SFUs of this node that are processes of their own, as the node sees them: what each is told and what it reports.

A namespace has one of them, or several that are told apart by number and share its rooms (:mod:`orama.cluster.homes`);
who asks for a room need not know which has it.

A worker holds no database. It opens a stream on the control socket and is told there what it has to know, now and
whenever that changes; it claims rooms through the node, and reports every second what it has. While the stream is open
and reports come, it serves. A node that was started anew finds its workers again by their coming, with the rooms that
they have; whether those are still this node's is the business of :mod:`orama.cluster.claims`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from math import inf
from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from cattrs import Converter
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.desired import WebRtcConfig
from orama.cluster.homes import Homes
from orama.errors import Conflict, NotFound, OramaError, Unavailable
from orama.figures import Figures, Sample, total
from orama.settings import AuthSettings, Settings
from orama.sfu.occurrences import Occurrence

#: Seconds between two reports, and without one after which a worker is taken for stuck.
REPORT_INTERVAL = 1.0
SILENCE = 5.0
#: Seconds for which the first of several workers waits for the others with new rooms: the crowd that comes when a node
#: has started is not to be all the first one's.
TOGETHER = 10.0
#: Seconds that a worker gets to do as it is told before it is stopped.
OBEY_TIMEOUT = 2.0
#: Seconds that it gets to say what goes on in a room, and how many such questions may be open.
ANSWER_TIMEOUT, MOST_QUESTIONS = 3.0, 64

_log = Logger()
_converter = Converter(forbid_extra_keys=True)


@frozen
class Assignment:
    """All that a worker has to know."""

    node_id: str
    #: Those of the node, with the ports that it really has; without database, keys and the secrets of webhooks.
    settings: Settings
    config: WebRtcConfig
    #: Where its clients go when it drains; None when there is nowhere else.
    reconnect_url: str | None = None
    #: Path of the Unix socket where it takes clients that its node passes on; empty is the signalling port.
    door: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it travels; there are secrets in it."""
        webhooks = self.settings.webhooks
        own = {name: evolve(each, secret=None) for name, each in webhooks.namespaces.items()}
        settings = evolve(
            self.settings, database="", auth=AuthSettings(), webhooks=evolve(webhooks, secret="", namespaces=own)
        )
        public: dict[str, Any] = _converter.unstructure(evolve(self, settings=settings))
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
    #: Serial number of the last message of the node that was obeyed.
    heard: int = 0
    #: Seconds that new peers took from their join to the keys of their media.
    secured: tuple[float, ...] = ()
    #: Seconds that new video subscriptions took to their first keyframe.
    first_frames: tuple[float, ...] = ()

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


class Directory(Protocol):
    """The rooms of the cluster as this node sees them (``cluster.rooms.RoomDirectory``)."""

    @property
    def node_id(self) -> str: ...
    async def claim(self, namespace: str, room_id: str) -> Any: ...
    async def release(self, namespace: str, room_id: str) -> bool: ...


#: Sends one message to a worker; False when it cannot take it any more.
Say = Callable[[Mapping[str, Any]], bool]


@define(eq=False)
class Worker:
    """One process that has come."""

    namespace: str
    say: Say = field(repr=False)
    #: Which of the processes of the namespace.
    index: int = 0
    #: When it was last heard of; None before its first report.
    reported: float | None = None
    report: Report = field(factory=Report)
    #: Serial number of the last message.
    said: int = 0
    #: Who waits for a message to be obeyed.
    waiting: list[tuple[int, Deferred[None]]] = field(factory=list)
    #: The namespace is not wanted any more.
    unwanted: bool = False
    #: Who waits for an answer, by the serial number of the question.
    asking: dict[int, Deferred[Any]] = field(factory=dict)

    def tell(self, message: Mapping[str, Any]) -> bool:
        """False when the worker cannot be told anything any more."""
        self.said += 1
        return self.say({**message, "serial": self.said})

    def obeyed(self, serial: float) -> None:
        """Every message up to *serial* was; infinity when there will be no other."""
        due = [each for each in self.waiting if each[0] <= serial]
        self.waiting = [each for each in self.waiting if each[0] > serial]
        for _, waiting in due:
            waiting.callback(None)

    def answered(self, question: int, answer: Any) -> None:
        """What the worker says; nothing happens when nobody waits for that any more."""
        asking = self.asking.pop(question, None)
        if asking is not None:
            asking.callback(answer)

    def gone(self) -> None:
        """It will say nothing any more."""
        self.obeyed(inf)
        for question in list(self.asking):
            self.asking.pop(question).errback(Unavailable("sfu_silent", "the SFU of that room has gone"))


class Workers:
    """The workers of this node.

    :param assign: what a namespace's worker has to know now.
    :param door: namespace and number → where that worker takes clients, as in :class:`Assignment`.
    :param count: how many each namespace is to have.
    :raises OramaError: by *assign*: the namespace has no SFU here, or that cannot be found out.
    """

    def __init__(
        self,
        clock: IReactorTime,
        directory: Directory,
        assign: Callable[[str], Awaitable[Assignment]],
        door: Callable[[str, int], str] = lambda namespace, index: "",
        count: int = 1,
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._assign = assign
        self._door = door
        self._count = count
        #: Namespace → when the first of those that are here has come; long ago, once all were here together.
        self._since: dict[str, float] = {}
        self._workers: dict[tuple[str, int], Worker] = {}
        self._homes: Homes[Worker] = Homes()
        self._figures: dict[tuple[str, int], Figures] = {}
        #: Namespace → why a worker of it could not open its ports.
        self._taken: dict[str, str] = {}
        #: As ``sfu.rooms.Rooms.on_secured``.
        self.on_secured: Callable[[float], object] = _ignore
        self.on_first_frame: Callable[[float], object] = _ignore

        #: As ``sfu.rooms.Rooms.on_occurrence``.
        self.on_occurrence: Callable[[Occurrence], object] = _ignore

    @property
    def node_id(self) -> str:
        return self._directory.node_id

    # ---- for the control socket

    async def attach(self, namespace: str, say: Say, index: int = 0, run: str | None = None) -> Worker:
        """A worker has come; it is told what it has to know. One that came before as the same is sent away.

        :param run: which process it is: the same as before comes with the counters that it had.
        :raises OramaError: it is not wanted.
        """
        assignment = await self._assign(namespace)
        if assignment.config.blocks.media is None:
            raise NotFound("not_assigned", "the namespace has no SFU on this node")
        key = namespace, index
        before = self._workers.pop(key, None)
        if before is not None:
            self._homes.forget(before)
            before.tell({"event": "replaced"})
        worker = self._workers[key] = Worker(namespace, say, index)
        self._since.setdefault(namespace, self._clock.seconds())
        self._figures.setdefault(key, Figures()).begin(run)
        self._tell(worker, assignment)
        _log.info("the SFU of {namespace} has come to its node", namespace=namespace, worker=index)
        return worker

    def detach(self, worker: Worker) -> None:
        """Its stream has ended."""
        worker.gone()
        key = worker.namespace, worker.index
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._homes.forget(worker)
            self._figures[key].end()
            if not self._of(worker.namespace):
                del self._since[worker.namespace]
            if worker.unwanted:
                del self._figures[key]
            _log.info("the SFU of {namespace} has left its node", namespace=worker.namespace, worker=worker.index)

    def reported(self, namespace: str, report: Report, index: int = 0) -> None:
        """Take a report: the worker serves.

        :raises Conflict: ``not_attached``: the stream comes first.
        """
        worker = self._worker(namespace, index)
        now = self._clock.seconds()
        worker.reported, worker.report = now, report
        if len(self._serving(namespace)) >= self._count:
            self._since[namespace] = -inf
        self._figures[namespace, index].say(report.samples)
        rooms = (((namespace, room.room_id), room.participants) for room in report.rooms)
        for _, room_id in self._homes.reported(worker, rooms, now):
            _log.warn("{room} of {namespace} is in two processes", room=room_id, namespace=namespace, worker=index)
            worker.tell({"event": "lose", "room_id": room_id})
        worker.obeyed(report.heard)
        for seconds in report.secured:
            self.on_secured(seconds)
        for seconds in report.first_frames:
            self.on_first_frame(seconds)

    def occurred(self, namespace: str, occurrences: Any) -> None:
        """What happened in the rooms of *namespace*; its worker need not be attached any more to say its last.

        :raises ValueError: these are no occurrences of that namespace.
        """
        try:
            found = _converter.structure(occurrences, tuple[Occurrence, ...])
        except Exception:
            raise ValueError("these are no occurrences") from None
        if any(each.namespace != namespace for each in found):
            raise ValueError("these are another namespace's")
        for each in found:
            self.on_occurrence(each)

    def answered(self, namespace: str, question: int, answer: Any, index: int = 0) -> None:
        """What a worker of *namespace* was asked."""
        self._worker(namespace, index).answered(question, answer)

    def cannot_listen(self, namespace: str, why: str, index: int = 0) -> None:
        """A port of the namespace is somebody else's."""
        self._worker(namespace, index)
        self._taken[namespace] = why

    async def claim(self, namespace: str, room_id: str, index: int = 0) -> Any:
        """The record of a room that somebody joins.

        :raises Unavailable: ``room_elsewhere``: another worker has it.
        :raises OramaError: as the directory.
        """
        worker = self._worker(namespace, index)
        if self._homes.choose((namespace, room_id), [worker], self._clock.seconds()) is not worker:
            raise Unavailable("room_elsewhere", "the room is in another process of its node")
        return await self._directory.claim(namespace, room_id)

    async def release(self, namespace: str, room_id: str, index: int = 0) -> bool:
        """The worker has closed an empty room."""
        self._worker(namespace, index)
        return await self._directory.release(namespace, room_id)

    # ---- for the node

    def serves(self, namespace: str) -> bool:
        """Whether the workers of the namespace have come, or their time for that is over; one at least is not stuck."""
        return bool(self._able(namespace))

    def heard(self, namespace: str, index: int) -> float | None:
        """When that worker of *namespace* has reported last; None when it has not come, or not reported yet."""
        worker = self._workers.get((namespace, index))
        return None if worker is None else worker.reported

    def way(self, namespace: str, room_id: str) -> str | None:
        """The door of the process that has a room, or gets it now; None when none has come.

        :raises Unavailable: ``sfu_silent``: none serves yet.
        """
        able = self._able(namespace)
        home = self._homes.find((namespace, room_id))
        if home is None and not able:
            if not self._of(namespace):
                return None
            raise Unavailable("sfu_silent", f"the SFU of {namespace} does not serve yet")
        worker = self._homes.choose((namespace, room_id), able, self._clock.seconds())
        return self._door(namespace, worker.index)

    def taken(self, namespace: str) -> str | None:
        """Why a worker of *namespace* could not open its ports; it is said once."""
        return self._taken.pop(namespace, None)

    async def refresh(self, namespace: str) -> None:
        """Tell the workers of *namespace* what they have to know now, if they are there."""
        if self._of(namespace):
            assignment = await self._assign(namespace)
            for worker in self._of(namespace):
                self._tell(worker, assignment)

    async def refresh_all(self) -> None:
        """:meth:`refresh` for all that are here: the settings are other ones."""
        for namespace in sorted({namespace for namespace, _ in self._workers}):
            try:
                await self.refresh(namespace)
            except OramaError as error:
                _log.warn("the SFU of {namespace} is not told: {why}", namespace=namespace, why=error.message)

    async def leave(self, namespace: str) -> None:
        """The workers are about to be stopped: they have to know whether their people can go elsewhere, and where.

        Returns when they do, or cannot be told.
        """
        if not self._of(namespace):
            return
        try:
            assignment = await self._assign(namespace)
        except NotFound:
            assignment = None
        except OramaError as error:
            _log.warn("the SFU of {namespace} drains as it is: {why}", namespace=namespace, why=error.message)
            return
        leaving = self._of(namespace)
        for worker in leaving:
            if assignment is not None:
                self._tell(worker, assignment)
            else:
                worker.unwanted = True
                worker.tell({"event": "unwanted"})
        for told in [self._obeyed(worker) for worker in leaving if self._workers.get(_key(worker)) is worker]:
            await told

    def _obeyed(self, worker: Worker) -> Deferred[None]:
        """Fires when *worker* has done all that it was told, or its time for that is over."""
        told: Deferred[None] = Deferred()
        worker.waiting.append((worker.said, told))
        impatience = self._clock.callLater(OBEY_TIMEOUT, worker.obeyed, worker.said)

        def calm(_: None) -> None:
            if impatience.active():
                impatience.cancel()

        return told.addCallback(calm)

    # What is asked of orama.sfu.rooms.Rooms where the SFU is in this process. Numbers are as last reported.

    def create(self, namespace: str, room_id: str, max_participants: int) -> None:
        """:raises NotFound: ``webrtc_not_enabled``: there is no worker."""
        able = self._able(namespace) or self._of(namespace)
        message = {"event": "create", "room_id": room_id, "max_participants": max_participants}
        if not able or not self._homes.choose((namespace, room_id), able, self._clock.seconds()).tell(message):
            raise NotFound("webrtc_not_enabled", "the SFU of this namespace does not run here")

    def get(self, namespace: str, room_id: str) -> LiveRoom | None:
        return next((room for room in self.all(namespace) if room.room_id == room_id), None)

    def all(self, namespace: str) -> tuple[LiveRoom, ...]:
        return tuple(room for worker in self._of(namespace) for room in worker.report.rooms)

    def close(self, namespace: str, room_id: str, reason: str = "room-closed") -> None:
        """Send everybody away; nothing happens when the room is not here."""
        self._say(namespace, {"event": "close", "room_id": room_id, "reason": reason})

    async def stats(self, namespace: str, room_id: str, peer_id: str | None = None) -> Mapping[str, Any] | None:
        """What goes on in a room, as its worker says now; None when it is not here.

        :raises Unavailable: ``sfu_silent``: it does not say.
        """
        worker = self._homes.find((namespace, room_id))
        if worker is None:
            return None
        silent = Unavailable("sfu_silent", "the SFU of that room does not say what goes on there")
        if len(worker.asking) >= MOST_QUESTIONS:
            raise silent
        if not worker.tell({"event": "stats", "room_id": room_id, "peer_id": peer_id}):
            raise silent
        asking: Deferred[Any] = Deferred()
        worker.asking[worker.said] = asking
        impatience = self._clock.callLater(ANSWER_TIMEOUT, self._unanswered, worker, worker.said, silent)
        try:
            found: Mapping[str, Any] | None = await asking
        finally:
            if impatience.active():
                impatience.cancel()
        return found

    def _unanswered(self, worker: Worker, question: int, silent: Unavailable) -> None:
        asking = worker.asking.pop(question, None)
        if asking is not None:
            asking.errback(silent)

    def lose(self, namespace: str, room_id: str) -> None:
        """The room is another node's: everybody is to join it there."""
        self._say(namespace, {"event": "lose", "room_id": room_id})

    def live(self) -> dict[tuple[str, str], int]:
        """How many are in each room, by namespace and room id."""
        return {
            (worker.namespace, room.room_id): room.participants
            for worker in self._workers.values()
            for room in worker.report.rooms
        }

    def peers(self) -> int:
        """People in all rooms."""
        return sum(self.live().values())

    def samples(self) -> Iterator[Sample]:
        """What ``/metrics`` shows of them: the sums of what the workers of each namespace have."""
        yield from total(figures.samples() for figures in self._figures.values())
        for namespace in sorted({namespace for namespace, _ in self._figures}):
            yield "orama_sfu_processes", {"namespace": namespace}, float(len(self._serving(namespace)))

    def _say(self, namespace: str, message: Mapping[str, Any]) -> None:
        """Tell whoever has the room that *message* is about."""
        worker = self._homes.find((namespace, message["room_id"]))
        if worker is not None:
            worker.tell(message)

    def _tell(self, worker: Worker, assignment: Assignment) -> None:
        own = evolve(assignment, door=self._door(worker.namespace, worker.index))
        worker.tell({"event": "assignment", "assignment": own.to_json()})

    def _of(self, namespace: str) -> list[Worker]:
        """Those that have come, by their numbers."""
        return [self._workers[key] for key in sorted(self._workers) if key[0] == namespace]

    def _serving(self, namespace: str) -> list[Worker]:
        """Those of them that are ready and not stuck."""
        now = self._clock.seconds()
        return [each for each in self._of(namespace) if each.reported is not None and now - each.reported <= SILENCE]

    def _able(self, namespace: str) -> list[Worker]:
        """Those that may be given rooms."""
        serving = self._serving(namespace)
        alone = len(serving) < self._count and self._clock.seconds() - self._since.get(namespace, 0.0) < TOGETHER
        return [] if alone else serving

    def _worker(self, namespace: str, index: int) -> Worker:
        worker = self._workers.get((namespace, index))
        if worker is None:
            raise Conflict("not_attached", "no SFU of this namespace has come to this node")
        return worker


def _key(worker: Worker) -> tuple[str, int]:
    return worker.namespace, worker.index


def _ignore(_: object) -> None:
    """Nobody listens."""
