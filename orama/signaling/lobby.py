"""What the sessions of a node share: who is there, the seats, the counters, and whether the node is draining.

Sans-IO like the sessions: ``now`` comes in as an argument. :class:`orama.signaling.service.SignalingService` gives it
the time and a reactor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil

from attrs import define, field, frozen

from orama.errors import Unavailable
from orama.settings import Settings
from orama.signaling.codes import GOING_AWAY, SERVICE_RESTART
from orama.signaling.interfaces import Access, Directory, Hop, Record, Rooms, Socket, Trunk, Trunks, Visitor
from orama.signaling.messages import ServerDraining
from orama.signaling.seats import Seat, Seats
from orama.signaling.session import Session, State


@define
class SignalingCounters:
    """Totals since the start."""

    #: Messages of clients, good or not.
    received: int = 0
    sent: int = 0
    joined: int = 0
    resumed: int = 0
    #: Clients that were handed over to the node of their room.
    forwarded: int = 0
    #: ``error`` messages by code, and sockets that we closed by closing code.
    errors: Counter[str] = field(factory=Counter)
    closed: Counter[int] = field(factory=Counter)


@frozen
class Drain:
    """Part of the node goes down.

    :ivar done: to be called when the last one is gone.
    """

    reason: str
    #: When what is still there is closed; the clock of ``now``.
    deadline: float
    reconnect_url: str | None
    done: Callable[[], None]

    def message(self, now: float) -> ServerDraining:
        return ServerDraining(self.reason, max(0, ceil((self.deadline - now) * 1000)), self.reconnect_url)


class Lobby:
    """All sessions of this node.

    :param directory: claims rooms for this node.
    :param access: makes TURN credentials.
    :param new_token: makes an unguessable text, for resume tokens and for users without a name.
    :param trunks: ways to SFUs that are elsewhere.
    """

    def __init__(
        self,
        settings: Settings,
        rooms: Rooms,
        directory: Directory,
        access: Access,
        new_token: Callable[[], str],
        trunks: Trunks | None = None,
    ) -> None:
        self.settings = settings.signaling
        self.rooms = rooms
        self.directory = directory
        self.access = access
        self.new_token = new_token
        self.seats = Seats(settings.sfu.resume_timeout, new_token)
        self.counters = SignalingCounters()
        #: The whole node goes down; stays when everybody has gone.
        self.draining: Drain | None = None
        self._drains: dict[str, Drain] = {}
        self._done = True
        self._trunks = trunks
        self._sessions: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions))

    def open(
        self, visitor: Visitor, room_id: str | None, socket: Socket, now: float, from_node: bool = False
    ) -> Session:
        """Somebody has been let in; *room_id* is the one of ``?room=``.

        :param from_node: another node has let them in, and forwards them.
        """
        session = Session(self, visitor, room_id, socket, now, from_node)
        self._sessions[session] = None
        return session

    def has(self, namespace: str, record: Record) -> bool:
        """Whether the room of *record* is in the SFU of this process."""
        return record.node_id == self.directory.node_id and self.rooms.serves(namespace)

    def leads_on(self, record: Record) -> bool:
        """Whether whom another node has sent here goes a step further: to the process of this node with the room."""
        return record.node_id == self.directory.node_id and self._trunks is not None and self._trunks.inward

    async def trunk(self, record: Record, visitor: Visitor, room_id: str, hop: Hop) -> Trunk:
        """A way to the room of *record*; see :class:`~orama.signaling.interfaces.Trunks`."""
        if self._trunks is None:
            raise Unavailable("no_sfu", "the room is on another node")
        return await self._trunks.connect(record, visitor, room_id, hop)

    async def pause(self, attempt: int) -> None:
        if self._trunks is not None:
            await self._trunks.pause(attempt)

    def forget(self, session: Session) -> None:
        """*session*'s socket is closed."""
        self._sessions.pop(session, None)
        self._drained()

    def tick(self, now: float) -> None:
        """Time goes by; call it often enough (every half second is)."""
        self.seats.expire(now)
        for session in self:
            session.tick(now)
        if self.draining is not None and now >= self.draining.deadline:
            self.close("the node is going down")
        for namespace, drain in tuple(self._drains.items()):
            if now >= drain.deadline:
                self._empty(namespace, GOING_AWAY, drain.reason)
        self._drained()

    def drain_of(self, namespace: str) -> Drain | None:
        """What goes down under a peer of *namespace*."""
        return self.draining or self._drains.get(namespace)

    def drain(
        self, reason: str, seconds: float, now: float, done: Callable[[], None], reconnect_url: str | None = None
    ) -> None:
        """Tell everybody, take nobody new, and say *done* when the last has left or after *seconds*.

        A peer whose socket is away at that moment has left: nothing could tell it, and nobody waits for it.
        """
        self.draining, self._done = Drain(reason, now + seconds, reconnect_url, done), False
        for session in self:
            session.drain(self.draining.message(now))
        for seat in self.seats:
            if seat.session is None:
                self._vacate(seat)
        self._drained()

    def undrain(self) -> None:
        """Take people again; whoever waits for the drain to be done waits no more."""
        drain, self.draining = self.draining, None
        if drain is not None and not self._done:
            self._done = True
            drain.done()

    def drain_namespace(
        self,
        namespace: str,
        reason: str,
        seconds: float,
        now: float,
        done: Callable[[], None],
        reconnect_url: str | None = None,
    ) -> None:
        """:meth:`drain` for the seats of *namespace* alone; who joins finds its rooms elsewhere."""
        self.undrain_namespace(namespace)
        drain = self._drains[namespace] = Drain(reason, now + seconds, reconnect_url, done)
        for seat in self._seats_of(namespace):
            if seat.session is None:
                self._vacate(seat)
            else:
                seat.session.drain(drain.message(now))
        self._drained()

    def undrain_namespace(self, namespace: str) -> None:
        drain = self._drains.pop(namespace, None)
        if drain is not None:
            drain.done()

    def lose_room(self, namespace: str, room_id: str) -> None:
        """The room is another node's: everybody is to join it there. Whom a drain has told so already has its time."""
        if self.drain_of(namespace) is None:
            self._empty(namespace, SERVICE_RESTART, "the room is on another node", room_id)

    def lose_namespace(self, namespace: str) -> None:
        """All rooms of *namespace* leave this node: everybody is to join them where they are then."""
        self._empty(namespace, SERVICE_RESTART, "the rooms of this node are on another one")
        self._drained()

    def close(self, reason: str) -> None:
        """Everybody out, now."""
        for session in self:
            session.end(GOING_AWAY, reason)
        for seat in self.seats:
            self._vacate(seat)
        self._drained()

    def _empty(self, namespace: str, code: int, reason: str, room_id: str | None = None) -> None:
        """Out with everybody who has a seat in *namespace*, or in one room of it."""
        for seat in self._seats_of(namespace):
            if room_id not in (None, seat.room_id):
                continue
            if seat.session is None:
                self._vacate(seat)
            else:
                seat.session.end(code, reason)

    def _seats_of(self, namespace: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.namespace == namespace]

    def _vacate(self, seat: Seat) -> None:
        self.seats.give_up(seat)
        seat.peer.leave()

    def _drained(self) -> None:
        """Say of every drain that is through that it is."""
        unsettled = any(session.state in (State.JOINING, State.FORWARDED) for session in self)
        if self.draining is not None and not self._done and not self.seats and not unsettled:
            self._done = True
            self.draining.done()
        for namespace, drain in tuple(self._drains.items()):
            if not self._seats_of(namespace):
                del self._drains[namespace]
                drain.done()
