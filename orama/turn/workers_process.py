"""One TURN worker as its node sees it: a process that is started, told what to do, listened to, and started again.

A worker that ends by itself is started again, later and later while it does not last; so is one that is not heard of.
Its sockets are the node's, so that its clients are nobody else's in the meantime, and what they send waits there.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from orama.errors import Unavailable
from orama.figures import Figures, Sample
from orama.spawning import ending, environment
from orama.turn.workers_channel import REPORTS, SOCKETS, TABLE, Garbled, Lines, line

MODULE = "orama.turn_worker"
#: Seconds until a worker that has ended is started again: at first, and at most; and how long one lasts that is well.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
LASTING = 60.0
#: Seconds without a report after which a worker is taken for stuck; it reports every second.
SILENCE = 15.0
#: Seconds that a worker gets to end what it has when it is told to stop.
GRACE = 5.0
#: Seconds that a worker gets to answer.
ANSWER_TIMEOUT = 5.0

_log = Logger()


class Home(Protocol):
    """What a worker needs of its node."""

    #: Descriptor of the shared table.
    table: int

    def beginning(self, worker: int) -> Mapping[str, Any]:
        """What it is told first."""

    def died(self, worker: int) -> None:
        """It holds nothing any more."""


class WorkerProcess:
    """Worker number *index*, whatever process it is at the moment.

    :param sockets: what it gets, which stays the node's.
    """

    def __init__(self, reactor: Any, index: int, sockets: Sequence[socket.socket], home: Home) -> None:
        self.index = index
        #: Fires when it serves for the first time.
        self.began: Deferred[None] = Deferred()
        self._reactor = reactor
        self._sockets = sockets
        self._home = home
        self._running: _Running | None = None
        self._pause = FIRST_PAUSE
        self._again: IDelayedCall | None = None
        self._stopping: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None
        self._since = 0.0
        self._heard = 0.0
        self._serves = False
        self._serial = 0
        self._asked: dict[int, Deferred[Any]] = {}
        self._figures = Figures()

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return None if self._running is None else self._running.pid

    def start(self) -> None:
        """Start the process."""
        self._again = None
        self._since = self._heard = self._reactor.seconds()
        self._serves = False
        descriptors = {0: "w", 1: 2, 2: 2, REPORTS: "r", TABLE: self._home.table}
        descriptors |= {SOCKETS + index: each.fileno() for index, each in enumerate(self._sockets)}
        command = [sys.executable, "-P", "-m", MODULE]
        self._running = _Running(self._heard_of, self._ended)
        try:
            self._reactor.spawnProcess(self._running, sys.executable, command, environment(), childFDs=descriptors)
        except OSError as error:
            self._ended(f"cannot be started: {error.strerror}")
            return
        self.tell(order="begin", beginning=self._home.beginning(self.index))

    def stop(self) -> Deferred[None]:
        """End the process; fires when it has gone, which a second or two are enough for."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._running is None:
            return succeed(None)
        self._stopping = Deferred()
        self.tell(order="stop")
        self._kill = self._reactor.callLater(GRACE, self._running.kill)
        return self._stopping

    def tell(self, **message: Any) -> None:
        """Send an order; who is not there hears how things are when it begins."""
        if self._running is not None:
            self._running.write(line(**message))

    async def ask(self, **message: Any) -> Any:
        """Send a question; gives the answer.

        :raises Unavailable: ``worker_unreachable``: there is none.
        """
        if self._running is None:
            raise _no_answer(self.index)
        self._serial += 1
        answer: Deferred[Any] = Deferred()
        self._asked[self._serial] = answer
        serial = self._serial
        answer.addTimeout(ANSWER_TIMEOUT, self._reactor, lambda result, _: Failure(_no_answer(self.index)))
        self.tell(serial=serial, **message)
        try:
            return await answer
        finally:
            self._asked.pop(serial, None)

    def tick(self) -> None:
        """End a process that is stuck; to be called about once a second."""
        if self._running is not None and self._reactor.seconds() - self._heard > SILENCE:
            self._heard = self._reactor.seconds()
            _log.error("TURN worker {worker} is not heard of", worker=self.index)
            self._running.kill()

    def samples(self) -> Iterable[Sample]:
        """Its figures, as it said them last, with what its predecessors have counted."""
        return self._figures.samples()

    def _heard_of(self, message: Mapping[str, Any]) -> None:
        self._heard = self._reactor.seconds()
        report = message.get("report")
        if report == "figures":
            self._figures.say((str(name), dict(labels), float(value)) for name, labels, value in message["samples"])
        elif report == "log":
            self._write(message)
        elif report == "answer":
            self._answered(message)
        elif report == "began":
            self._serves = True
            _log.info("TURN worker {worker} serves", worker=self.index)
            if not self.began.called:
                self.began.callback(None)
        else:
            raise Garbled(f"a report that is not known: {report!r}")

    def _answered(self, message: Mapping[str, Any]) -> None:
        asked = self._asked.pop(message["serial"], None)
        if asked is not None and "error" in message:
            asked.errback(Unavailable("worker_failed", f"TURN worker {self.index}: {message['error']}"))
        elif asked is not None:
            asked.callback(message["answer"])

    def _write(self, message: Mapping[str, Any]) -> None:
        level = LogLevel.levelWithName(message["level"])
        fields = {**message["fields"], "worker": self.index, "text": message["text"]}
        Logger(message["namespace"] or __name__).emit(level, "{text}", **fields)

    def _ended(self, why: str) -> None:
        self._running = None
        self._figures.begin()
        self._home.died(self.index)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.errback(_no_answer(self.index))
        if self._kill is not None and self._kill.active():
            self._kill.cancel()
        if self._stopping is not None:
            self._stopping.callback(None)
            return
        if self._serves and self._reactor.seconds() - self._since > LASTING:
            self._pause = FIRST_PAUSE
        _log.error(
            "TURN worker {worker} {why}; its allocations are gone, and it is started again in {pause} s",
            worker=self.index,
            why=why,
            pause=self._pause,
        )
        self._again = self._reactor.callLater(self._pause, self.start)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class _Running(ProcessProtocol):
    """One process, from its start to its end."""

    def __init__(self, heard: Callable[[Mapping[str, Any]], None], ended: Callable[[str], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._lines = Lines()

    @property
    def pid(self) -> int | None:
        return getattr(self.transport, "pid", None)

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.writeToChild(0, data)

    def kill(self) -> None:
        if self.transport is not None:
            try:
                self.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        try:
            for message in self._lines.feed(data):
                self._heard(message)
        except Exception:  # whoever speaks like this is ill
            _log.failure("a TURN worker cannot be understood")
            self.kill()

    def processEnded(self, reason: Failure) -> None:
        self._ended(ending(reason))


def _no_answer(worker: int) -> Unavailable:
    return Unavailable("worker_unreachable", f"TURN worker {worker} does not answer")
