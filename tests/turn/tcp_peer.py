"""The other side of a real TCP connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """The other side of a connection: collects what comes, and fires what somebody waits for."""

    transport: Any

    def __init__(self) -> None:
        self.got = bytearray()
        self.over = False
        self.lost = False
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires when *condition* holds after something has happened here."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._look()
        return waiting

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self._look()

    def readConnectionLost(self) -> None:
        self.over = True
        self._look()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.over = self.lost = True
        self._look()

    def _look(self) -> None:
        for pair in [pair for pair in self._waiting if pair[0]()]:
            self._waiting.remove(pair)
            pair[1].callback(None)
