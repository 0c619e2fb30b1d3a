"""A program of somebody else's, run to its end beside the reactor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

#: Seconds that a program may take, unless more is said.
PATIENCE = 90.0


@frozen
class Finished:
    """:ivar status: its exit status; None when it was killed."""

    status: int | None
    #: What it said, on stdout and stderr.
    output: str


class _Running(ProcessProtocol):
    def __init__(self, seconds: float, line: Callable[[bytes], None] | None) -> None:
        self.finished: Deferred[Finished] = Deferred(lambda _: self._kill())
        self._seconds = seconds
        self._line = line
        self._rest = b""
        self._said = bytearray()
        self._killing: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._killing = reactor.callLater(self._seconds, self._kill)  # type: ignore[attr-defined]

    def _kill(self) -> None:
        assert self.transport is not None
        self.transport.signalProcess("KILL")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._said += data
        if self._line is not None:
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._line(line)

    def processEnded(self, reason: Failure) -> None:
        if self._killing is not None and self._killing.active():
            self._killing.cancel()
        ended: Any = reason.value
        status = None if ended.signal == signal.SIGKILL else ended.exitCode
        self.finished.callback(Finished(status, self._said.decode(errors="replace")))


def run(
    command: Sequence[str], seconds: float = PATIENCE, line: Callable[[bytes], None] | None = None
) -> Deferred[Finished]:
    """Run *command*, and kill it after *seconds*; fires when it is gone, whatever became of it.

    :param line: called with each line that it says, when it says it.
    """
    running = _Running(seconds, line)
    reactor.spawnProcess(running, command[0], command, env=os.environ)  # type: ignore[attr-defined]
    return running.finished
