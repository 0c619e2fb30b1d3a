"""Signalling as a service: the lobby and its sockets, given time and a way to end.

``startService`` begins to tick; ``drain`` tells everybody and waits for the last one; ``stopService`` closes what is
left and waits until it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from secrets import token_urlsafe
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.settings import Settings
from orama.signaling.codes import GOING_AWAY
from orama.signaling.interfaces import Access, Directory, Rooms, Trunks
from orama.signaling.lobby import Lobby
from orama.signaling.session import State
from orama.signaling.websocket import SignalFactory, SignalProtocol

#: Seconds between two looks at the clock: the grain of every timeout here.
TICK = 0.5
#: Seconds that clients get to finish the closing handshake when the node stops.
STOP_TIMEOUT = 1.0

_log = Logger()


class SignalingService(Service):
    """All signalling of a node.

    :param rooms: ``sfu.rooms.Rooms``.
    :param directory: claims rooms for this node.
    :param access: makes TURN credentials.
    :param new_token: makes an unguessable text.
    :param trunks: ways to the SFUs of other nodes, and of other processes of this one; None when there are none.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        rooms: Rooms,
        directory: Directory,
        access: Access,
        new_token: Callable[[], str] = token_urlsafe,
        trunks: Trunks | None = None,
    ) -> None:
        self.lobby = Lobby(settings, rooms, directory, access, new_token, trunks)
        self.factory = SignalFactory(reactor, settings.signaling)
        self.sockets: dict[SignalProtocol, None] = {}
        #: Sockets that were cut because nobody was there any more.
        self.dropped = 0
        self._trunks = trunks
        self._clock: IReactorTime = reactor
        self._timer = TimerService(TICK, self._tick)
        self._timer.clock = reactor
        self._stopped: Deferred[None] | None = None

    def now(self) -> float:
        return float(self._clock.seconds())

    def startService(self) -> None:
        super().startService()
        self.factory.startFactory()
        self._timer.startService()

    async def _stop(self) -> None:
        self.lobby.close("the node is going down")
        for socket in tuple(self.sockets):
            socket.close(GOING_AWAY, "the node is going down")
        if self.sockets:
            self._stopped = Deferred()
            impatience = self._clock.callLater(STOP_TIMEOUT, self._cut)
            await self._stopped
            if impatience.active():
                impatience.cancel()
        if self._trunks is not None:
            await self._trunks.stop()
        await self._timer.stopService()
        self.factory.stopFactory()

    def stopService(self) -> Deferred[None]:
        """Close every socket with 1001; done when none is left."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def drain(self, reason: str, seconds: float, reconnect_url: str | None = None) -> Deferred[None]:
        """Tell every client that the node goes down, and let nobody new in.

        Done when the last one has left, or after *seconds*, when whoever is still there is put out.
        """
        drained: Deferred[None] = Deferred()
        self.lobby.drain(reason, seconds, self.now(), lambda: drained.callback(None), reconnect_url)
        return drained

    def undrain(self) -> None:
        """Let people in again, after a :meth:`drain` that the process outlived."""
        self.lobby.undrain()

    def drain_namespace(
        self, namespace: str, reason: str, seconds: float, reconnect_url: str | None = None
    ) -> Deferred[None]:
        """As :meth:`drain`, for those whose room is in this node's SFU of *namespace*.

        Done like that, or when the namespace is drained again. Who joins is not kept out: the directory must give
        rooms to other nodes by then.
        """
        drained: Deferred[None] = Deferred()
        self.lobby.drain_namespace(
            namespace, reason, seconds, self.now(), lambda: drained.callback(None), reconnect_url
        )
        return drained

    def undrain_namespace(self, namespace: str) -> None:
        """The SFU of *namespace* stays after all."""
        self.lobby.undrain_namespace(namespace)

    def lose_room(self, namespace: str, room_id: str) -> None:
        """The room has gone to another node: send everybody in it after it (1012)."""
        self.lobby.lose_room(namespace, room_id)

    def lose_namespace(self, namespace: str) -> None:
        """The SFU of *namespace* ends here and goes on elsewhere: send everybody after it (1012)."""
        self.lobby.lose_namespace(namespace)

    @property
    def draining(self) -> bool:
        return self.lobby.draining is not None

    def socket_closed(self) -> None:
        """A socket is gone from :attr:`sockets`."""
        if self._stopped is not None and not self.sockets:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def samples(self) -> Iterable[tuple[str, dict[str, str], float]]:
        """What ``/metrics`` shows of signalling: (name, labels, value)."""
        counters = self.lobby.counters
        yield "orama_signaling_sockets", {}, len(self.sockets)
        yield "orama_signaling_joined", {}, sum(session.state is State.JOINED for session in self.lobby)
        yield "orama_signaling_forwarded", {}, sum(session.state is State.FORWARDED for session in self.lobby)
        yield "orama_signaling_seats", {}, len(self.lobby.seats)
        yield "orama_signaling_received_total", {}, counters.received
        yield "orama_signaling_sent_total", {}, counters.sent
        yield "orama_signaling_joins_total", {}, counters.joined
        yield "orama_signaling_resumes_total", {}, counters.resumed
        yield "orama_signaling_forwards_total", {}, counters.forwarded
        yield "orama_signaling_dropped_total", {}, self.dropped
        for error, count in sorted(counters.errors.items()):
            yield "orama_signaling_errors_total", {"code": error}, count
        for code, count in sorted(counters.closed.items()):
            yield "orama_signaling_closed_total", {"code": str(code)}, count

    def _tick(self) -> None:
        # A timer whose function raises never runs again.
        try:
            now = self.now()
            for socket in tuple(self.sockets):
                socket.tick(now)
            self.lobby.tick(now)
            if self._trunks is not None:
                self._trunks.tick(now)
        except Exception:
            _log.failure("signalling stumbled")

    def _cut(self) -> None:
        for socket in tuple(self.sockets):
            socket.abort()
