"""What the sessions of a node share: who is there, the seats, the counters, and whether the node is draining.

Sans-IO like the sessions: ``now`` comes in as an argument. :class:`orama.signaling.service.SignalingService` gives it
the time and a reactor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil

from attrs import define, field, frozen

from orama.settings import Settings
from orama.signaling.interfaces import Access, Directory, Rooms, Socket, Visitor
from orama.signaling.messages import ServerDraining
from orama.signaling.seats import Seat, Seats
from orama.signaling.session import GOING_AWAY, Session, State


@define
class SignalingCounters:
    """Totals since the start."""

    #: Messages of clients, good or not.
    received: int = 0
    sent: int = 0
    joined: int = 0
    resumed: int = 0
    #: ``error`` messages by code, and sockets that we closed by closing code.
    errors: Counter[str] = field(factory=Counter)
    closed: Counter[int] = field(factory=Counter)


@frozen
class Drain:
    reason: str
    #: When what is still there is closed; the clock of ``now``.
    deadline: float
    reconnect_url: str | None

    def message(self, now: float) -> ServerDraining:
        return ServerDraining(self.reason, max(0, ceil((self.deadline - now) * 1000)), self.reconnect_url)


class Lobby:
    """All sessions of this node.

    :param directory: claims rooms for this node.
    :param access: makes TURN credentials.
    :param new_token: makes an unguessable text, for resume tokens and for users without a name.
    """

    def __init__(
        self, settings: Settings, rooms: Rooms, directory: Directory, access: Access, new_token: Callable[[], str]
    ) -> None:
        self.settings = settings.signaling
        self.rooms = rooms
        self.directory = directory
        self.access = access
        self.new_token = new_token
        self.seats = Seats(settings.sfu.resume_timeout, new_token)
        self.counters = SignalingCounters()
        self.draining: Drain | None = None
        self._done: Callable[[], None] | None = None
        self._sessions: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions))

    def open(self, visitor: Visitor, room_id: str | None, socket: Socket, now: float) -> Session:
        """Somebody has been let in; *room_id* is the one of ``?room=``."""
        session = Session(self, visitor, room_id, socket, now)
        self._sessions[session] = None
        return session

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
        self._drained()

    def drain(
        self, reason: str, seconds: float, now: float, done: Callable[[], None], reconnect_url: str | None = None
    ) -> None:
        """Tell everybody, take nobody new, and say *done* when the last has left or after *seconds*.

        A peer whose socket is away at that moment has left: nothing could tell it, and nobody waits for it.
        """
        self.draining, self._done = Drain(reason, now + seconds, reconnect_url), done
        for session in self:
            session.drain(self.draining.message(now))
        for seat in self.seats:
            if seat.session is None:
                self._vacate(seat)
        self._drained()

    def close(self, reason: str) -> None:
        """Everybody out, now."""
        for session in self:
            session.end(GOING_AWAY, reason)
        for seat in self.seats:
            self._vacate(seat)
        self._drained()

    def _vacate(self, seat: Seat) -> None:
        self.seats.give_up(seat)
        seat.peer.leave()

    def _drained(self) -> None:
        if self._done is not None and not self.seats and not any(session.state is State.JOINING for session in self):
            done, self._done = self._done, None
            done()
