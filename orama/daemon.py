"""One node as a process: start, signals, what systemd is told, the last line and the exit status.

SIGTERM and SIGINT drain the node and then stop it with status 0; a second one stops at once. SIGHUP
re-reads the configuration. A start that fails says why in one line on stderr and ends with status 1.
Under systemd the process is ready when it has started, says what it waits for, has the time of a start or a
drain extended while it makes progress, and gives a sign of life from the reactor, so that a stuck one is killed.
What a node is made of stands in ``hierarchy``; the SFU of one namespace is run by the same (``worker``).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TextIO

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from orama import interpreter
from orama.errors import ConfigurationError, OramaError
from orama.hierarchy import Node
from orama.logs import observer
from orama.notify import Notifier
from orama.settings import Settings


def leave_with(status: int) -> None:
    """Make this process end with *status* when the reactor is through.

    ``twistd`` returns from the reactor to its own end and knows no status for "it could not start".
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)


class Runs(Protocol):
    """What a process is for (``hierarchy.Node``, ``worker.Worker``)."""

    @property
    def unready(self) -> str:
        """Why it takes no calls; empty when it does."""

    async def start(self) -> None:
        """:raises OramaError: why not, in one line."""

    async def drain(self) -> None: ...
    async def stop(self) -> None: ...
    async def reload(self, read: Settings) -> None:
        """:raises OramaError: why not; then nothing changes."""


class Daemon(Service):
    """The service that ``twistd`` runs.

    :param load: reads the settings anew, for SIGHUP.
    :param node: what is run; a node without it.
    :param notifier: tells systemd.
    :param name: stands before the line that says why it cannot start.
    :param log_stream: where the log goes; None leaves that to twistd.
    :param refuse: called with the exit status when the start has failed.
    :param settle: called when the process has started.
    """

    _log = Logger()
    name = "orama"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        load: Callable[[], Settings],
        *,
        node: Runs | None = None,
        notifier: Notifier | None = None,
        name: str = "orama-webrtc",
        log_stream: TextIO | None = None,
        stderr: TextIO | None = None,
        refuse: Callable[[int], None] = leave_with,
        settle: Callable[[], None] = interpreter.settle,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._load = load
        self._log_stream = log_stream
        self._stderr = sys.stderr if stderr is None else stderr
        self._refuse = refuse
        self._settle = settle
        self._starting: Deferred[None] | None = None
        self._draining = self._ending = False
        self._handlers: dict[int, Any] = {}
        self._program = name
        self._monotonic = monotonic
        self._notifier = Notifier() if notifier is None else notifier
        self._status = ""
        self._pulse = TimerService(self._notifier.interval, self._beat)
        self._pulse.clock = reactor
        self.node: Runs = Node(reactor, settings) if node is None else node

    def setServiceParent(self, parent: Any) -> None:
        """Join the application and bring the observer of its log, before twistd begins to log."""
        if self._log_stream is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, observer(self._settings.log_format, self._log_stream))
        super().setServiceParent(parent)

    def startService(self) -> None:
        super().startService()
        self._reactor.callWhenRunning(self._start)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._notifier.stopping("stopping")
        if self._starting is not None:
            self._starting.cancel()
        stopping = Deferred.fromCoroutine(self.node.stop())
        return stopping.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        self._restore_signals()
        if not self._pulse.running:
            return result
        pulse: Deferred[None] = self._pulse.stopService()
        return pulse.addCallback(lambda _: result)

    def _start(self) -> None:
        if not self.running:
            return
        self._take_signals()
        if self._notifier.address:
            self._pulse.startService()
        self._starting = Deferred.fromCoroutine(self.node.start())
        self._starting.addCallbacks(self._started, self._failed)

    def _started(self, _: None) -> None:
        self._starting = None
        self._settle()
        self._status = self.node.unready or "ready"
        self._notifier.ready(self._status)

    def _beat(self) -> None:
        """Tell systemd how it goes, from the reactor: who is stuck says nothing."""
        status = self.node.unready or "ready"
        if self._starting is not None or self._draining or not self.running:
            self._notifier.extend(status)
        elif status != self._status:
            self._notifier.status(status)
        self._status = status
        if self._notifier.watchdog:
            self._notifier.alive()

    def _failed(self, failure: Failure) -> None:
        """Say why in one line; twistd then stops what was started."""
        self._starting = None
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if isinstance(error, OramaError):
            why = error.message
        else:
            self._log.failure("the start failed", failure)
            why = f"{type(error).__name__}: {failure.getErrorMessage()}"
        self._stderr.write(f"{self._program}: {' '.join(why.split())}\n")
        self._stderr.flush()
        self._refuse(1)
        self._reactor.stop()

    # -- signals: handlers run between two bytecodes, so they only hand over to the reactor -------

    def _take_signals(self) -> None:
        for number, act in ((signal.SIGTERM, self._leave), (signal.SIGINT, self._leave), (signal.SIGHUP, self._reload)):
            self._handlers[number] = signal.signal(number, self._handing_over(act))

    def _restore_signals(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def _handing_over(self, act: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
        return lambda number, frame: self._reactor.callFromThread(act)

    def _leave(self) -> None:
        if self._draining or self._starting is not None:
            self._stop()
            return
        self._draining = True
        self._notifier.stopping("draining")
        draining = Deferred.fromCoroutine(self.node.drain())
        draining.addErrback(lambda failure: self._log.failure("the drain failed", failure))
        draining.addCallback(lambda _: self._stop())

    def _stop(self) -> None:
        if self.running and not self._ending:
            self._ending = True  # a second signal may come in the very turn in which the drain is over
            self._reactor.stop()

    def _reload(self) -> None:
        if self._starting is not None or self._draining:
            return
        try:
            settings = self._load()
        except ConfigurationError as error:
            self._log.error("the configuration stays as it was: {why}", why=error.message)
            return
        self._notifier.reloading(self._monotonic())
        reloading = Deferred.fromCoroutine(self.node.reload(settings))
        reloading.addErrback(self._not_reloaded)
        reloading.addBoth(lambda _: self._notifier.ready())

    def _not_reloaded(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, OramaError):
            self._log.error("the configuration stays as it was: {why}", why=error.message)
        else:
            self._log.failure("the reload failed", failure)
