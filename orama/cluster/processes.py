"""Other programs (ufw, caddy) run to their end: argument list in, exit status and output out.

What runs them comes in as an argument where it is used, so that logic is tested without programs. They see
the C locale, since their output is read, and a search path with the system directories in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

#: Command → exit status and what it wrote, stdout and stderr as they came.
Run = Callable[[list[str]], Awaitable[tuple[int, bytes]]]
#: Exit statuses as a shell gives them: no such program, and ended by our time limit.
NOT_FOUND = 127
TIMED_OUT = 124
#: Bytes of output that are kept; the rest is read and dropped.
MAX_OUTPUT = 1 << 20

_SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def processes(reactor: Any, timeout: float = 60.0) -> Run:
    """Run real processes; one that takes longer than *timeout* seconds, or is cancelled, is killed.

    :param reactor: with processes and time.
    """

    def run(command: list[str]) -> Deferred[tuple[int, bytes]]:
        environment = _environment()
        program = shutil.which(command[0], path=environment["PATH"])
        running = _Running(reactor, timeout)
        if program is None:
            running.ended.callback((NOT_FOUND, f"{command[0]} is not installed".encode()))
        else:
            try:
                reactor.spawnProcess(running, program, [program, *command[1:]], env=environment)
            except OSError as error:
                running.ended.callback((NOT_FOUND, f"{program}: {error.strerror}".encode()))
        return running.ended

    return run


def last_line(output: bytes) -> str:
    """What a program that failed said last, for a report on one line."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return "".join(letter for letter in lines[-1] if letter.isprintable())[:300] if lines else "it said nothing"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    path = dict.fromkeys([*kept.get("PATH", "").split(os.pathsep), *_SYSTEM])
    return {**kept, "LC_ALL": "C", "PATH": os.pathsep.join(each for each in path if each)}


class _Running(ProcessProtocol):
    """One process; ``ended`` fires when it has gone and its pipes are closed."""

    def __init__(self, reactor: Any, timeout: float) -> None:
        self.ended: Deferred[tuple[int, bytes]] = Deferred(lambda _: self._kill())
        self._reactor = reactor
        self._timeout = timeout
        self._output = bytearray()
        self._late: Any = None
        self._timed_out = False

    def connectionMade(self) -> None:
        self.transport.closeStdin()  # type: ignore[union-attr]
        self._late = self._reactor.callLater(self._timeout, self._expire)

    def outReceived(self, data: bytes) -> None:
        self._output += data[: MAX_OUTPUT - len(self._output)]

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self.ended.called:
            return
        if self._timed_out:
            self.ended.callback((TIMED_OUT, f"it took longer than {self._timeout:g} s".encode()))
            return
        status = 0 if reason.check(ProcessDone) else getattr(reason.value, "exitCode", None)
        self.ended.callback((1 if status is None else status, bytes(self._output)))

    def _expire(self) -> None:
        self._timed_out = True
        self._kill()

    def _kill(self) -> None:
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass
        # A grandchild may hold the pipes open; without them processEnded comes all the same.
        self.transport.loseConnection()  # type: ignore[union-attr]
