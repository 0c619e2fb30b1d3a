"""One descriptor of the reactor for all sockets that move packets, and when to look at them again.

A wake-up costs more than a packet: 18 µs in an epoll and 23 µs out of a sleep on a virtual machine, where sending a
burst of ten takes 9 µs and a turn of the reactor 10 µs more. So the sockets stand in an epoll of their own. While
packets are few each wakes the reactor and is read at once. When they come by the thousand a second this waits for them
itself, up to a turn. When several come in a pause, it sleeps between two looks instead of waking up for each, as a
network card does that moderates its interrupts: what came meanwhile is read, handed on and sent in bursts.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from orama.net.fabric import Fabric

#: Reads a second from which on they are waited for here.
OFTEN = 1000.0
#: Reads in a pause from which on it is worth its sleep. Of 5,000 bursts of ten a second, where 1.25 come in a pause, a
#: packet cost 2.7 to 5.3 µs with pauses and 4.4 to 6.2 µs woken up for each; the delay's median was 200 and 60 µs.
WORTH = 1.0
#: Seconds after which the reactor has its turn, however much there is to read.
TURN = 0.002
#: Descriptors in one round, and rounds of one look.
MAX_EVENTS = 256
MAX_ROUNDS = 4
_READABLE = select.EPOLLIN | select.EPOLLHUP

_log = Logger()


class Pollable(Protocol):
    """A socket in a poll."""

    def fileno(self) -> int: ...

    def read(self, deep: bool) -> None:
        """Read and hand on: all that is there when *deep*, else what one call brings."""

    def room(self) -> None:
        """There is room to write."""

    def failed(self) -> None:
        """The kernel has an error for this socket, which has to be fetched."""


@implementer(IReadDescriptor)
class Poll:
    """The sockets of one process.

    :param fabric: its drains are the rounds here.
    :param pause: seconds between two looks while many packets come; 0 leaves all waiting to the reactor.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        fabric: Fabric,
        pause: float = 0.0,
        *,
        seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.fabric = fabric
        self.pause = pause
        self._reactor = reactor
        self._seconds = seconds
        self._sleep = sleep
        self._epoll: select.epoll | None = None
        self._sockets: dict[int, Pollable] = {}
        self._descriptor = -1
        #: Reads so far: one for each visit of a socket; who reads several in one adds the others.
        self.reads = 0
        #: When the last turn began, how many reads it had, and how many a second that makes.
        self._began = 0.0
        self._last = 0
        self._rate = 0.0

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, socket: Pollable, *, writing: bool = False) -> None:
        """Read *socket* from now on, and with *writing* tell it when there is room to write."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._descriptor = self._epoll.fileno()
            self._reactor.addReader(self)
        number = socket.fileno()
        events = select.EPOLLIN | (select.EPOLLOUT if writing else 0)
        if self._sockets.get(number) is socket:
            self._epoll.modify(number, events)
        else:
            self._epoll.register(number, events)
            self._sockets[number] = socket

    def hold(self, socket: Pollable, *, writing: bool = False) -> None:
        """Do not read *socket* until :meth:`add`, so that its sender has to wait."""
        if self._epoll is not None and self._sockets.get(socket.fileno()) is socket:
            self._epoll.modify(socket.fileno(), select.EPOLLOUT if writing else 0)

    def remove(self, socket: Pollable) -> None:
        """Forget *socket*, which is still open; nothing happens when it is not here."""
        number = socket.fileno()
        if self._epoll is None or self._sockets.get(number) is not socket:
            return
        del self._sockets[number]
        self._epoll.unregister(number)
        if not self._sockets:
            self.connectionLost(None)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "poll"

    def connectionLost(self, reason: Failure | None) -> None:
        """There is nothing to look at any more."""
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll, self._descriptor = None, -1

    def doRead(self) -> None:
        """Look, and look again as packets come, until they are few or the reactor's turn has come."""
        began, reads = self._seconds(), self.reads
        self._rate = self._last / max(began - self._began, TURN / 10)
        until = began + TURN
        while True:
            rounds = self._look(until)
            left = until - self._seconds()
            if left <= 0:
                break
            if rounds < MAX_ROUNDS and not self._wait(left):
                break
        self._last = self.reads - reads
        self._began = began

    def _wait(self, left: float) -> bool:
        """Wait for more, at most *left* seconds; False when that is the reactor's to do."""
        if not self.pause or self._rate < OFTEN:
            return False
        if self._rate * self.pause >= WORTH:
            self._sleep(self.pause)
            return True
        return self._epoll is not None and bool(self._epoll.poll(left))

    def _look(self, until: float) -> int:
        """Read what is there; in how many rounds, 0 when nothing was. At *until* it is enough.

        A lone packet is the rule, so the first round reads each socket once: to ask the epoll again takes 1 µs, to
        find a socket empty 2 µs. What a later round finds is read to its end.
        """
        seen: set[int] = set()
        self.fabric.begin(self._seconds())
        try:
            for rounds in range(MAX_ROUNDS):
                ready = self._epoll.poll(0, MAX_EVENTS) if self._epoll is not None else ()
                if not ready:
                    return rounds
                for number, events in ready:
                    socket = self._sockets.get(number)
                    if socket is not None:  # else it was closed by one before it
                        self._serve(socket, events, number in seen)
                        seen.add(number)
                if self._seconds() >= until:
                    break
            return MAX_ROUNDS
        finally:
            self.fabric.end()

    def _serve(self, socket: Pollable, events: int, deep: bool) -> None:
        try:
            if events & select.EPOLLERR:
                socket.failed()
            if events & select.EPOLLOUT:
                socket.room()
            if events & _READABLE:
                self.reads += 1
                socket.read(deep)
        except Exception:  # the other sockets are somebody else's packets
            _log.failure("a socket failed")
