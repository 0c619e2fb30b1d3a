"""The WebSocket of one client (RFC 6455): frames between Autobahn and the session, limits, pings, and the way out.

Nothing is decided here but when a connection is as good as dead: it does not answer a ping, does not read what it is
sent, or does not finish the closing handshake. All of that is seen on the service's tick, so that a socket has no timer
of its own. Autobahn's own timers, extensions and log are off; it gets to see neither the query nor a credential.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from orama.settings import SignalingSettings
from orama.signaling.interfaces import Visitor
from orama.signaling.session import Session

if TYPE_CHECKING:
    from orama.signaling.service import SignalingService

#: The subprotocol that is selected when it is offered.
SUBPROTOCOL = "orama"
#: Seconds that a client has to answer our closing frame.
CLOSE_TIMEOUT = 3.0
#: A closing frame is a control frame of 125 bytes at most, two of them the code (RFC 6455, 5.5).
MAX_REASON = 123
#: RFC 6455, 5.2.
_CONTINUATION, _TEXT = 0, 1

_log = Logger()


@frozen
class Admitted:
    """Who comes in, and the room of ``?room=``; *from_node* when another node forwards them."""

    visitor: Visitor
    room_id: str | None
    from_node: bool = False


@frozen
class Refused:
    """The socket is accepted, so that a browser's page learns the code, and closed with it."""

    code: int
    reason: str


class NoLog:
    """Takes Autobahn's log events, which hold whole requests, and leaves them."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@implementer(IPushProducer)
class Backlog:
    """Counts what waits in the transport: bytes written since it said that it is full."""

    def __init__(self) -> None:
        self.full = False
        self.waiting = 0

    def wrote(self, size: int) -> None:
        if self.full:
            self.waiting += size

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        self.waiting = 0

    def stopProducing(self) -> None:
        self.full = True


class SignalProtocol(WebSocketServerProtocol):
    """One socket; the session's :class:`~orama.signaling.interfaces.Socket`."""

    log = NoLog()
    transport: Any

    def __init__(self, service: SignalingService, verdict: Admitted | Refused, headers: dict[str, str]) -> None:
        super().__init__()
        self._service = service
        self._verdict = verdict
        self._headers = headers
        self._session: Session | None = None
        self._backlog = Backlog()
        self._heard = self._pinged = service.now()
        self._closing: float | None = None
        self._cut = False

    # From Autobahn.

    def connectionMade(self) -> None:
        # The HTTP channel, whose transport this was, registered itself; it has nothing to do with it any more.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self._backlog, True)
        self._service.sockets[self] = None
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self._heard = self._service.now()
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        # Its result is this very protocol.
        self.is_closed = None

    def onConnect(self, request: ConnectionRequest) -> tuple[str | None, dict[str, str]]:
        headers, self._headers = self._headers, {}
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None, headers

    def onOpen(self) -> None:
        if isinstance(self._verdict, Refused):
            self._service.lobby.counters.closed[self._verdict.code] += 1
            self.close(self._verdict.code, self._verdict.reason)
        else:
            verdict = self._verdict
            self._session = self._service.lobby.open(
                verdict.visitor, verdict.room_id, self, self._service.now(), verdict.from_node
            )

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._session is None:
            return
        if isBinary:
            self._session.received_binary(self._service.now())
        else:
            self._session.received(payload, self._service.now())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._service.sockets.pop(self, None)
        if self._session is not None:
            self._session.lost(self._service.now())
            self._session = None
        self._service.socket_closed()

    # From the session and the service.

    def send(self, text: str) -> None:
        if self.state != self.STATE_OPEN:
            return
        # What UTF-8 cannot say (half a surrogate pair) is left as the escape that JSON has for it.
        payload = text.encode("utf-8", "backslashreplace")
        # Not sendMessage, which holds what we say to the limit of what we take: a description of a full room is longer.
        size = self._settings.max_frame
        for begin in range(0, len(payload), size):
            opcode = _CONTINUATION if begin else _TEXT
            self.sendFrame(opcode, payload[begin : begin + size], fin=begin + size >= len(payload))
        self._backlog.wrote(len(payload))
        if self._backlog.waiting > self._settings.send_queue:
            self._abort("it does not read")

    def close(self, code: int, reason: str) -> None:
        if self.state == self.STATE_OPEN:
            # Not sendClose, which knows neither 1001 nor 1013.
            self.sendCloseFrame(code, reason.encode()[:MAX_REASON].decode(errors="ignore").encode())

    def tick(self, now: float) -> None:
        """Look whether the client is still there."""
        if self.state == self.STATE_OPEN:
            if self._heard >= self._pinged:
                if now - self._pinged >= self._settings.ping_interval:
                    self._pinged = now
                    self.sendPing(b"")
            elif now - self._pinged >= self._settings.ping_timeout:
                self._abort("it does not answer")
        elif self._closing is None:
            self._closing = now
        elif now - self._closing >= CLOSE_TIMEOUT:
            self._abort("it does not close")

    def abort(self) -> None:
        """Cut the connection at once."""
        self.transport.abortConnection()

    @property
    def _settings(self) -> SignalingSettings:
        return self._service.lobby.settings

    def _abort(self, why: str) -> None:
        if self._cut:
            return
        self._cut = True
        _log.info("a signalling socket of {peer} is dropped: {why}", peer=self.peer, why=why)
        self._service.dropped += 1
        self.abort()


class SignalFactory(WebSocketServerFactory):
    """Autobahn's options, all of them set."""

    log = NoLog()
    noisy = False

    def __init__(self, reactor: Any, settings: SignalingSettings) -> None:
        super().__init__(url=None, server=None, reactor=reactor)
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            maxFramePayloadSize=settings.max_frame,
            maxMessagePayloadSize=settings.max_frame,
            # The client is to learn what was wrong from the closing code.
            failByDrop=False,
            echoCloseCodeReason=True,
            tcpNoDelay=True,
            perMessageCompressionAccept=lambda offers: None,
            # Timers are ours (see tick); the opening handshake is over when a socket gets here.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            autoPingTimeout=0,
            # Origins have been looked at before (signaling.resource).
            allowedOrigins=["*"],
            allowNullOrigin=True,
            maxConnections=0,
            trustXForwardedFor=0,
        )
