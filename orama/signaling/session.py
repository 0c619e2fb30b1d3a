"""One client's socket as a state machine: contract section 4 without a socket, a reactor or a clock of its own.

In come text frames, the passing of time and the events of the SFU; out go frames and a closing code, through
:class:`~orama.signaling.interfaces.Socket`. What one client says is handled strictly in order: a message waits until
the one before it is done, also where that takes a look into the database. Who the client is was settled before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orama.errors import Forbidden, NotFound, OramaError, RateLimited, SignalError, Unavailable
from orama.sfu import events
from orama.signaling import messages
from orama.signaling.codes import (
    CLOSING,
    CODES,
    GOING_AWAY,
    JOIN_TIMEOUT,
    NORMAL,
    NOT_FOUND,
    POLICY_VIOLATION,
    REPLACED,
    SERVICE_RESTART,
    TRY_AGAIN_LATER,
)
from orama.signaling.interfaces import Grant, OwnerGone, Record, Socket, Trunk, Visitor
from orama.signaling.rate import TokenBucket, Verdict
from orama.signaling.requests import CALLS, OWNERS
from orama.signaling.seats import Seat, rights_of

if TYPE_CHECKING:
    from orama.signaling.lobby import Lobby

#: Messages that may wait behind one that takes its time.
MAX_WAITING = 128
#: When credentials are renewed: this part of their time to live.
REFRESH_AT = 0.8
#: Seconds until a renewal that failed is tried again.
REFRESH_AGAIN = 2.0
#: Nodes, or times one node, that are asked to take a client before it is told to try again later.
MAX_ATTEMPTS = 6

_log = Logger()


class State(Enum):
    #: For the first message.
    WAITING = "waiting"
    JOINING = "joining"
    JOINED = "joined"
    #: Its room is on another node, which hears and says everything.
    FORWARDED = "forwarded"
    CLOSED = "closed"


class Session:
    """What one socket has come to.

    :param room_id: the one of ``?room=``; None when there was none.
    :param from_node: another node forwards it: it goes no further, and was held to the limits there.
    """

    def __init__(
        self,
        lobby: Lobby,
        visitor: Visitor,
        room_id: str | None,
        socket: Socket,
        now: float,
        from_node: bool = False,
    ) -> None:
        self.state = State.WAITING
        self.visitor = visitor
        self.from_node = from_node
        self._lobby = lobby
        self._room_id = room_id
        self._socket = socket
        self._now = now
        self._opened = now
        self._bucket = TokenBucket(lobby.settings.message_rate, lobby.settings.message_burst, now)
        self._waiting: list[tuple[messages.Request, str | bytes]] = []
        self._working = False
        #: What is being handled, as it came.
        self._text: str | bytes = ""
        self._seat: Seat | None = None
        self._trunk: Trunk | None = None
        self._refresh_at: float | None = None

    # What happens to us.

    def received(self, text: str | bytes, now: float) -> None:
        """The client sent a text frame."""
        if self.state is State.FORWARDED and not self._working:
            self._pass_on(text, now)
        else:
            self._incoming(lambda: messages.parse(text), now, text)

    def received_binary(self, now: float) -> None:
        """The client sent a binary frame, which nothing here is."""
        self._incoming(_no_binary, now)

    def lost(self, now: float) -> None:
        """The socket is closed, by whomever. The peer stays for a while, unless it left or the node is draining."""
        self._now = now
        self.state = State.CLOSED
        self._hang_up()
        seat, self._seat = self._seat, None
        if seat is not None:
            if self._lobby.drain_of(seat.namespace) is None:
                seat.peer.detach()
                self._lobby.seats.vacate(seat, now)
            else:
                self._lobby.seats.give_up(seat)
                seat.peer.leave()
        self._lobby.forget(self)

    def tick(self, now: float) -> None:
        self._now = now
        if self.state is State.WAITING and now - self._opened >= self._lobby.settings.join_timeout:
            self.end(JOIN_TIMEOUT, "nobody joined")
        elif self._refresh_at is not None and now >= self._refresh_at:
            self._refresh_at = None
            self._run(self._refresh())

    def drain(self, notice: messages.ServerDraining) -> None:
        """The node goes down: whoever is in learns it, whoever is not stays out."""
        if self.state in (State.JOINED, State.FORWARDED):
            self._send(notice)
        elif self.state is State.WAITING:
            self._send(notice)
            self.end(GOING_AWAY, notice.reason)

    def replaced(self) -> None:
        """Another socket has taken our seat."""
        self._seat = None
        self.end(REPLACED, "another connection took this place")

    def end(self, code: int, reason: str) -> None:
        """Close the socket; the peer leaves its room."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._refresh_at = None
        self._lobby.counters.closed[code] += 1
        self._socket.close(code, reason)
        self._hang_up()
        seat, self._seat = self._seat, None
        if seat is not None:
            self._lobby.seats.give_up(seat)
            seat.peer.leave()

    # What the client says.

    def _incoming(self, parse: Callable[[], messages.Request], now: float, text: str | bytes = "") -> None:
        self._now = now
        if self.state is State.CLOSED:
            return
        self._lobby.counters.received += 1
        try:
            self._check_rate(now)
            self._waiting.append((parse(), text))
        except SignalError as error:
            self._complain(error)
            return
        if not self._working:
            self._run(self._work())

    def _pass_on(self, text: str | bytes, now: float) -> None:
        self._now = now
        self._lobby.counters.received += 1
        try:
            self._check_rate(now)
        except SignalError as error:
            self._complain(error)
        else:
            assert self._trunk is not None
            self._trunk.send(text)

    def _check_rate(self, now: float) -> None:
        verdict = Verdict.PASS if self.from_node else self._bucket.take(now)
        if verdict is not Verdict.PASS:
            raise SignalError("rate_limited", "that was too fast", fatal=verdict is Verdict.CLOSE)
        if len(self._waiting) >= MAX_WAITING:
            raise SignalError("rate_limited", "too many messages are waiting")

    async def _work(self) -> None:
        self._working = True
        try:
            while self._waiting:
                request, self._text = self._waiting.pop(0)
                if self.state is State.FORWARDED and self._trunk is not None:
                    self._trunk.send(self._text)
                else:
                    await self._handle(request)
        finally:
            self._working = False
            self._text = ""  # some kilobytes, where it was a description

    async def _handle(self, request: messages.Request) -> None:
        try:
            await _HANDLERS[self.state].get(type(request), _OTHERWISE[self.state])(self, request)
        except SignalError as error:
            self._complain(error)
        except NotFound as error:
            self._complain(SignalError("invalid_join", error.message, fatal=True), NOT_FOUND)
        except Forbidden as error:
            self._complain(SignalError("forbidden", error.message, fatal=True))
        except RateLimited as error:
            self._complain(SignalError("rate_limited", error.message))
        except Unavailable as error:
            _log.warn("{request} has to wait: {code}", request=messages.type_of(request), code=error.code)
            joining = self.state is State.JOINING
            self._complain(SignalError("internal", error.message, fatal=joining), TRY_AGAIN_LATER)
        except OramaError as error:
            _log.warn("{request} failed: {code}", request=messages.type_of(request), code=error.code)
            self._complain(SignalError("internal", error.message))
        except Exception:
            _log.failure("{request} failed", request=messages.type_of(request))
            self._complain(SignalError("internal", "something went wrong here"))
        if self.state is State.JOINING:
            self.state = State.WAITING

    async def _join(self, request: messages.Join) -> None:
        room_id = self._room_of(request)
        self.state = State.JOINING
        user_id = self.visitor.user_id or request.user_id
        seat = self._seat_of(request, room_id, user_id)
        if seat is not None:
            user_id = seat.user_id
        elif user_id is None:
            user_id = f"guest-{self._lobby.new_token()[:8]}"
        grant = await self._lobby.access.issue(self.visitor.namespace, user_id)
        if self.state is not State.JOINING:
            return
        # It may have been taken, or given up, while we waited.
        seat = self._seat_of(request, room_id, user_id)
        if seat is not None:
            self._resume(seat, grant)
        elif not self._refused():
            await self._enter(room_id, user_id, request.metadata, grant)

    def _seat_of(self, request: messages.Join, room_id: str, user_id: str | None) -> Seat | None:
        if request.resume is None:
            return None
        return self._lobby.seats.find(request.resume, self.visitor, room_id, user_id, self._now)

    async def _join_by_offer(self, request: messages.Offer) -> None:
        await self._join(messages.Join())
        if self.state is State.JOINED:
            await self._ask(request)

    def _room_of(self, request: messages.Join) -> str:
        room_id = request.room_id or self._room_id
        if room_id is None:
            raise SignalError("invalid_join", "neither the address nor the message names a room")
        if self._room_id is not None and room_id != self._room_id:
            raise SignalError("room_mismatch", "roomId is not the room of the address")
        if self.visitor.rooms is not None and room_id not in self.visitor.rooms:
            raise SignalError("forbidden", "this token is not for that room", fatal=True)
        return room_id

    def _refused(self) -> bool:
        """Is it too late to come in? Says so to the client."""
        if self.state is not State.JOINING:
            return True
        drain = self._lobby.draining
        if drain is not None:
            self._send(drain.message(self._now))
            self.end(GOING_AWAY, drain.reason)
        return drain is not None

    async def _enter(self, room_id: str, user_id: str, metadata: Any, grant: Grant) -> None:
        """Into the room, wherever it is."""
        gone: set[str] = set()
        for attempt in range(MAX_ATTEMPTS):
            record = await self._lobby.directory.claim(self.visitor.namespace, room_id, gone=gone)
            if self._refused():
                return
            if self._lobby.has(self.visitor.namespace, record):
                self._sit(room_id, user_id, metadata, grant, record)
                return
            if self.from_node and not self._lobby.leads_on(record):
                self.end(SERVICE_RESTART, "the room is on another node")
                return
            if await self._forward(room_id, record, gone) or self.state is not State.JOINING:
                return
            await self._lobby.pause(attempt)
        raise Unavailable("no_sfu", "the node that has the room does not answer")

    def _sit(self, room_id: str, user_id: str, metadata: Any, grant: Grant, record: Record) -> None:
        namespace, rooms = self.visitor.namespace, self._lobby.rooms
        if rooms.get(namespace, room_id) is None:
            rooms.create(namespace, room_id, record.max_participants)
        peer = rooms.join(
            namespace,
            room_id,
            user_id=user_id,
            metadata={} if metadata is None else metadata,
            permissions=self.visitor.permissions,
            owner=self.visitor.role == "owner",
            send=self._event,
        )
        self._lobby.counters.joined += 1
        self._take(Seat(namespace, room_id, user_id, rights_of(self.visitor), peer, self), grant)
        peer.start()

    async def _forward(self, room_id: str, record: Record, gone: set[str]) -> bool:
        """Hand the client over to the node of *record*; whether that is done. A node that is gone goes into *gone*."""
        try:
            trunk = await self._lobby.trunk(record, self.visitor, room_id, self)
        except OwnerGone as error:
            _log.info("{node} has no SFU any more: {why}", node=record.node_id, why=error.message)
            gone.add(record.node_id)
            return False
        except Unavailable as error:
            _log.info("{node} does not take a client: {why}", node=record.node_id, why=error.message)
            return False
        if self._refused():
            trunk.close()
            return True
        self._trunk = trunk
        trunk.send(self._text)
        answered = await trunk.answered
        if not answered:
            self._hang_up()
        elif self.state is State.JOINING:
            self.state = State.FORWARDED
            self._lobby.counters.forwarded += 1
        return answered

    def forwarded(self, text: str) -> None:
        """The SFU of another node has something for the client."""
        if self.state in (State.JOINING, State.FORWARDED):
            self._lobby.counters.sent += 1
            self._socket.send(text)

    def trunk_lost(self, code: int, reason: str) -> None:
        """The other node has closed: with a code that is for the client, or because it is gone."""
        self._trunk = None
        self.end(code, reason)

    def _hang_up(self) -> None:
        trunk, self._trunk = self._trunk, None
        if trunk is not None:
            trunk.close()

    def _resume(self, seat: Seat, grant: Grant) -> None:
        if seat.session is not None:
            seat.session.replaced()
            seat.peer.detach()
        seat.session = self
        self._lobby.counters.resumed += 1
        self._take(seat, grant)
        seat.peer.attach(self._event)
        drain = self._lobby.drain_of(seat.namespace)
        if drain is not None:
            self.drain(drain.message(self._now))

    def _take(self, seat: Seat, grant: Grant) -> None:
        """Sit down, and say the two things that come before everything else."""
        self._seat = seat
        self.state = State.JOINED
        resume = self._lobby.seats.stamp(seat)
        self._send(messages.Welcome(seat.peer.peer_id, seat.room_id, seat.user_id, resume, seat.peer.others()))
        self._send(messages.TurnCredentials(grant.uris, grant.username, grant.password, grant.ttl))
        self._refresh_at = self._now + REFRESH_AT * grant.ttl

    async def _join_again(self, request: messages.Join) -> None:
        raise SignalError("invalid_join", "this socket has joined already")

    async def _not_joined(self, request: messages.Request) -> None:
        raise SignalError("not_joined", "join comes first")

    async def _ignore(self, request: messages.Request) -> None:
        """What was still waiting when the socket closed."""

    async def _ask(self, request: messages.Request) -> None:
        """Something that the peer does."""
        if type(request) in OWNERS and self.visitor.role != "owner":
            raise SignalError("forbidden", "this needs the role owner")
        assert self._seat is not None
        CALLS[type(request)](self._seat.peer, request)

    async def _leave(self, request: messages.Leave) -> None:
        self.end(NORMAL, "left")

    # What we say.

    def _event(self, event: events.Event) -> None:
        """The SFU has something for the client."""
        if self.state is not State.JOINED:
            return
        if isinstance(event, events.Error):
            self._complain(SignalError(event.code, event.message, event.fatal))
            return
        self._send(event)
        if isinstance(event, events.RoomClosed | events.Kicked):
            # The SFU takes the peer out of the room by itself, and says why.
            seat, self._seat = self._seat, None
            if seat is not None:
                self._lobby.seats.give_up(seat)
            self.end(NORMAL, messages.type_of(event))

    def _complain(self, error: SignalError, closing: int | None = None) -> None:
        if self.state is State.CLOSED:
            return
        code = error.code if error.code in CODES else "internal"
        fatal = error.fatal or code == "room_full"
        self._lobby.counters.errors[code] += 1
        self._send(events.Error(code, error.message, fatal))
        if fatal:
            self.end(closing or CLOSING.get(code, POLICY_VIOLATION), error.message)

    def _send(self, message: Any) -> None:
        if self.state is not State.CLOSED:
            self._lobby.counters.sent += 1
            self._socket.send(messages.serialise(message))

    async def _refresh(self) -> None:
        seat = self._seat
        if seat is None:
            return
        try:
            grant = await self._lobby.access.issue(seat.namespace, seat.user_id)
        except Exception:
            _log.failure("credentials could not be renewed")
            self._refresh_at = self._now + REFRESH_AGAIN
            return
        if self.state is State.JOINED:
            self._send(messages.RefreshCredentials(grant.uris, grant.username, grant.password, grant.ttl))
            self._refresh_at = self._now + REFRESH_AT * grant.ttl

    def _run(self, work: Any) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda failure: _log.failure("a session failed", failure))


def _no_binary() -> messages.Request:
    raise SignalError("invalid_message", "messages are text frames")


_Handler = Callable[[Session, Any], Awaitable[None]]
#: What may be said when. JOINING is never looked up: nothing is handled while a join is.
_HANDLERS: dict[State, dict[type[Any], _Handler]] = {
    State.WAITING: {messages.Join: Session._join, messages.Offer: Session._join_by_offer},
    State.JOINED: {
        messages.Join: Session._join_again,
        messages.Leave: Session._leave,
        **dict.fromkeys(CALLS, Session._ask),
    },
    State.FORWARDED: {},
    State.CLOSED: {},
}
_OTHERWISE: dict[State, _Handler] = {
    State.WAITING: Session._not_joined,
    State.JOINED: Session._not_joined,
    State.FORWARDED: Session._ignore,
    State.CLOSED: Session._ignore,
}
