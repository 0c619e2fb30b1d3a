"""SFUs as children of the node (``cluster.runner = "processes"``)."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from orama.children import process_count
from orama.cluster.children import FIRST_PAUSE, GRACE, LONGEST_PAUSE, MOST_SILENT, SOUND, ChildRunner
from orama.cluster.placement import SFU, TURN
from orama.cluster.runner import InlineRunner
from orama.errors import Unavailable
from orama.settings import SfuSettings
from tests.units.test_runner import config

DRAIN = 5.0


class Process:
    """A process that does what the test says; the transport of its protocol."""

    def __init__(self, protocol: Any, arguments: list[str]) -> None:
        self.arguments = arguments
        self.signals: list[str] = []
        self.ended = False
        self._protocol = protocol
        protocol.makeConnection(self)

    def signalProcess(self, name: str) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(name)

    def say(self, text: str) -> None:
        self._protocol.childDataReceived(1, text.encode())

    def end(self, status: int = 0) -> None:
        self.ended = True
        self._protocol.processEnded(Failure(ProcessTerminated(status) if status else ProcessDone(0)))


class Reactor(Clock):
    """Time, and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.full = False

    def spawnProcess(self, protocol: Any, program: str, arguments: list[str], environment: dict[str, str]) -> Process:
        if self.full:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.processes.append(Process(protocol, arguments[1:]))
        return self.processes[-1]


class CountTests(SynchronousTestCase):
    def test_count(self) -> None:
        """As many as are asked for; with 0 one for each core, and no more than there are media ports."""
        cores = len(os.sched_getaffinity(0))
        self.assertEqual([process_count(SfuSettings(workers=each)) for each in (0, 1, 5)], [min(cores, 64), 1, 5])
        self.assertEqual(process_count(SfuSettings(workers=0, media_block=1)), 1)


class ChildRunnerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.serving: set[str] = set()
        self.told: list[str] = []
        self.left: list[str] = []
        self.taken: dict[str, str] = {}
        self.turn: list[str] = []
        self.runner = self.made()

    def made(self, count: int = 1, **more: Any) -> ChildRunner:
        return ChildRunner(
            self.reactor,
            lambda namespace, index: ["-m", "orama.worker", namespace, str(index)],
            InlineRunner(self.apply, self.config),
            lambda: DRAIN,
            self.serving.__contains__,
            self.tell,
            self.leave,
            lambda namespace: self.taken.pop(namespace, None),
            count,
            **more,
        )

    async def apply(self, namespace: str, given: object) -> None:
        (self.turn.remove if given is None else self.turn.append)(namespace)

    async def config(self, namespace: str) -> Any:
        return config(namespace)

    async def tell(self, namespace: str) -> None:
        self.told.append(namespace)

    async def leave(self, namespace: str) -> None:
        self.left.append(namespace)

    def now(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def refused(self, coroutine: Any) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(coroutine), Unavailable).value.code)

    def begin(self, namespace: str = "demo") -> Process:
        self.now(self.runner.start(namespace, SFU))
        return self.reactor.processes[-1]

    def survey(self) -> Any:
        return self.now(self.runner.survey())

    def test_roles(self) -> None:
        """An SFU is a process and TURN is served in here; an SFU runs when its process has come and serves."""
        process = self.begin()
        self.assertEqual(process.arguments, ["-m", "orama.worker", "demo", "0"])
        self.assertFalse(self.runner.running("demo", SFU))
        self.serving.add("demo")
        self.assertTrue(self.runner.running("demo", SFU))
        self.now(self.runner.start("demo", TURN))
        self.assertEqual((self.turn, len(self.reactor.processes)), (["demo"], 1))
        self.assertTrue(self.runner.running("demo", TURN))
        self.assertEqual(self.survey(), {("demo", SFU), ("demo", TURN)})
        self.now(self.runner.stop("demo", TURN))
        self.assertEqual(self.turn, [])

    def test_started_already(self) -> None:
        """A process that runs and does not serve is told anew what it has to know, and no second one is started."""
        self.begin()
        self.now(self.runner.start("demo", SFU))
        self.assertEqual((len(self.reactor.processes), self.told), (1, ["demo", "demo"]))

    def test_port_taken(self) -> None:
        """An SFU that found its port taken is said to have, once."""
        self.begin()
        self.taken["demo"] = "127.0.0.1:30000 is in use"
        self.assertEqual(self.refused(self.runner.start("demo", SFU)), "port_in_use")
        self.now(self.runner.start("demo", SFU))

    def test_crash(self) -> None:
        """A process that ends is started again, ever later while it ends soon, and soon again once it has lived."""
        self.begin().end(1)
        self.assertEqual(self.refused(self.runner.start("demo", SFU)), "sfu_failed")
        pause, pauses = FIRST_PAUSE, []
        while pause < LONGEST_PAUSE:
            self.reactor.advance(pause - 0.01)
            self.assertTrue(self.reactor.processes[-1].ended)
            self.reactor.advance(0.02)
            self.assertFalse(self.reactor.processes[-1].ended)
            self.reactor.processes[-1].end(1)
            pauses.append(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.assertEqual(pauses, [1.0, 2.0, 4.0, 8.0, 16.0])
        self.reactor.advance(LONGEST_PAUSE)
        self.reactor.advance(SOUND)
        self.reactor.processes[-1].end(1)
        self.reactor.advance(FIRST_PAUSE)
        self.assertFalse(self.reactor.processes[-1].ended)

    def test_stop(self) -> None:
        """An SFU is told whether its people can go elsewhere, drains, and is there until it has; then it can come
        back."""
        process = self.begin()
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual((self.left, process.signals, self.survey()), (["demo"], ["TERM"], {("demo", SFU)}))
        self.assertEqual(self.refused(self.runner.start("demo", SFU)), "sfu_draining")
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual(process.signals, ["TERM"])
        process.end()
        self.assertEqual((self.survey(), self.reactor.getDelayedCalls()), (frozenset(), []))
        self.assertIsNot(self.begin(), process)

    def test_stuck(self) -> None:
        """One that is not through with its drain in time is killed."""
        process = self.begin()
        self.now(self.runner.stop("demo", SFU))
        self.reactor.advance(DRAIN + GRACE - 0.1)
        self.assertEqual(process.signals, ["TERM"])
        self.reactor.advance(0.2)
        self.assertEqual(process.signals, ["TERM", "KILL"])

    def test_stop_while_waiting(self) -> None:
        """One that waits to be started again is not."""
        self.begin().end(1)
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual((self.survey(), self.reactor.getDelayedCalls()), (frozenset(), []))

    def test_node_stops(self) -> None:
        """With the node all of them end, at once, and none is started any more."""
        first, second = self.begin(), self.begin("other")
        self.now(self.runner.stop("other", SFU))
        stopped = self.runner.stop_all()
        self.assertEqual((first.signals, second.signals), (["TERM", "INT"], ["TERM", "TERM", "INT"]))
        first.end()
        self.assertNoResult(stopped)
        second.end()
        self.successResultOf(stopped)
        self.now(self.runner.start("demo", SFU))
        self.assertEqual((len(self.reactor.processes), self.reactor.getDelayedCalls()), (2, []))

    def test_cannot_be_started(self) -> None:
        """Where the machine has no room for a process it is tried again as after a crash."""
        self.reactor.full = True
        self.now(self.runner.start("demo", SFU))
        self.assertEqual(self.refused(self.runner.start("demo", SFU)), "sfu_failed")
        self.reactor.full = False
        self.reactor.advance(FIRST_PAUSE)
        self.assertEqual(len(self.reactor.processes), 1)

    def test_not_heard_of(self) -> None:
        """One that serves and is not heard of any more for some looks is killed, and started again; one that has yet to
        come is not, nor one that was heard of in between."""
        heard: list[float | None] = [None]
        self.runner = self.made(heard=lambda namespace, index: heard[-1])
        process = self.begin()
        for value in (None, 1.0, 2.0):
            heard.append(value)
            for _ in range(MOST_SILENT):
                self.runner.tick()
            self.assertEqual(process.signals, [])
        self.runner.tick()
        self.assertEqual(process.signals, ["KILL"])
        process.end(9)
        heard.append(None)
        self.reactor.advance(FIRST_PAUSE)
        for _ in range(2 * MOST_SILENT):
            self.runner.tick()
        self.assertEqual((len(self.reactor.processes), self.reactor.processes[-1].signals), (2, []))

    def test_several(self) -> None:
        """Of several that share a namespace one that ends is started again by itself, while the others go on."""
        self.runner = self.made(3)
        self.begin()
        self.assertEqual([each.arguments[-1] for each in self.reactor.processes], ["0", "1", "2"])
        self.serving.add("demo")
        self.reactor.processes[1].end(1)
        self.assertTrue(self.runner.running("demo", SFU))
        self.reactor.advance(FIRST_PAUSE)
        self.assertEqual([each.arguments[-1] for each in self.reactor.processes[3:]], ["1"])
        self.assertEqual([each.signals for each in self.reactor.processes], [[]] * 4)

    def test_several_end(self) -> None:
        """Only when all have ended is there none: then that is said, and they can come back."""
        ended: list[str] = []
        self.runner = self.made(2, ended=ended.append)
        self.begin()
        first, second = self.reactor.processes
        first.end(1)
        self.now(self.runner.start("demo", SFU))
        second.end(1)
        self.assertEqual(self.refused(self.runner.start("demo", SFU)), "sfu_failed")
        self.reactor.advance(FIRST_PAUSE)
        first, second = self.reactor.processes[2:]
        self.now(self.runner.stop("demo", SFU))
        self.assertEqual((self.left, first.signals, second.signals), (["demo"], ["TERM"], ["TERM"]))
        second.end()
        self.assertEqual((self.refused(self.runner.start("demo", SFU)), ended), ("sfu_draining", []))
        first.end()
        self.assertEqual((self.survey(), ended, self.reactor.getDelayedCalls()), (frozenset(), ["demo"], []))
        self.begin()
        self.assertEqual(len(self.reactor.processes), 6)

    def test_log(self) -> None:
        """What a process writes is in the node's log, by lines, however long or strange."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        process = self.begin()
        process.say("one\ntw")
        process.say("o\n" + "x" * 100_000 + "\n{strange}\n")
        texts = [each["text"] for each in events if each.get("namespace") == "demo" and "text" in each]
        self.assertEqual((texts[:2], texts[-1]), (["one", "two"], "{strange}"))
        self.assertLess(sum(map(len, texts)), 20_000)
