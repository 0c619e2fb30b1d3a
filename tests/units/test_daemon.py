"""What the process of a node tells systemd, from its start to its end."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.daemon import Daemon
from orama.errors import StartError
from orama.notify import Notifier
from orama.settings import Settings


class _Reactor(Clock):
    """Time, and calls that are run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.soon: list[Callable[[], None]] = []
        self.stopped = False

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    callFromThread = callWhenRunning

    def stop(self) -> None:
        self.stopped = True

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class _Node:
    """Starts, drains and reloads when the test says so."""

    def __init__(self) -> None:
        self.unready = "waiting for the database"
        self.starting: Deferred[None] = Deferred()
        self.draining: Deferred[None] = Deferred()
        self.reloading: Deferred[None] = Deferred()
        self.stopped = False

    async def start(self) -> None:
        await self.starting
        self.unready = ""

    async def drain(self) -> None:
        self.unready = "draining"
        await self.draining

    async def stop(self) -> None:
        self.stopped = True

    async def reload(self, read: Settings) -> None:
        await self.reloading


class DaemonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = _Reactor()
        self.node = _Node()
        self.told: list[str] = []
        self.refused: list[int] = []
        self.settled: list[bool] = []
        self.stderr = io.StringIO()
        notifier = Notifier("/run/x", 20.0, lambda address, datagram: self.told.extend(datagram.decode().split("\n")))
        self.daemon = Daemon(
            self.reactor,
            Settings(),
            Settings,
            node=self.node,
            notifier=notifier,
            name="orama-worker",
            stderr=self.stderr,
            refuse=self.refused.append,
            settle=lambda: self.settled.append(True),
            monotonic=lambda: 5.0,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.daemon.startService()
        self.reactor.turn()

    def said(self) -> list[str]:
        """What was said since we asked last."""
        said, self.told[:] = list(self.told), []
        return said

    def started(self) -> None:
        self.node.starting.callback(None)
        self.said()

    def signalled(self, number: int) -> None:
        handler: Any = signal.getsignal(number)
        handler(number, None)
        self.reactor.turn()

    def test_long_start(self) -> None:
        """A start that waits says for what, gets more time as long as the reactor turns, and is not ready."""
        self.said()
        self.reactor.advance(10.0)
        self.assertEqual(self.said(), ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=waiting for the database", "WATCHDOG=1"])

    def test_ready(self) -> None:
        """It is ready when it has started, and gives a sign of life twice as often as it has to."""
        self.said()
        self.node.starting.callback(None)
        self.assertEqual(self.said(), ["READY=1", "STATUS=ready"])
        self.reactor.advance(10.0)
        self.assertEqual(self.said(), ["WATCHDOG=1"])

    def test_settled(self) -> None:
        """What has been made until it has started is not looked at for cycles after that."""
        self.assertEqual(self.settled, [])
        self.node.starting.callback(None)
        self.assertEqual(self.settled, [True])

    def test_status(self) -> None:
        """What changes while it runs is in the status."""
        self.started()
        self.node.unready = "RQLite does not answer"
        self.reactor.advance(10.0)
        self.assertEqual(self.said(), ["STATUS=RQLite does not answer", "WATCHDOG=1"])

    def test_drain(self) -> None:
        """A stop is said at once, and a drain gets more time until it is through."""
        self.started()
        self.signalled(signal.SIGTERM)
        self.assertEqual(self.said(), ["STOPPING=1", "STATUS=draining"])
        self.reactor.advance(10.0)
        self.assertEqual(self.said(), ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=draining", "WATCHDOG=1"])
        self.assertFalse(self.reactor.stopped)
        self.node.draining.callback(None)
        self.assertTrue(self.reactor.stopped)

    def test_reload(self) -> None:
        """A reload begins and ends, also one that fails."""
        self.started()
        self.signalled(signal.SIGHUP)
        self.assertEqual(self.said(), ["RELOADING=1", "MONOTONIC_USEC=5000000"])
        self.node.reloading.errback(StartError("no"))
        self.assertEqual(self.said(), ["READY=1"])

    def test_refused(self) -> None:
        """A start that fails says why under the program's own name, and ends with status 1."""
        self.node.starting.errback(StartError("127.0.0.1:1: Address already in use"))
        self.assertEqual(self.stderr.getvalue(), "orama-worker: 127.0.0.1:1: Address already in use\n")
        self.assertEqual((self.refused, self.reactor.stopped), ([1], True))
        self.assertNotIn("READY=1", self.said())

    def test_end(self) -> None:
        """Afterwards nothing is left to happen."""
        self.started()
        self.successResultOf(self.daemon.stopService())
        self.assertTrue(self.node.stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertIn("STOPPING=1", self.said())
