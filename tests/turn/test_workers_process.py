"""One TURN worker as its node sees it: started again, taken for stuck, given up. The processes are pretended ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import Unavailable
from orama.settings import NamespaceTurnSettings, Settings, TurnSettings
from orama.turn.tenants import Tenant
from orama.turn.workers_channel import MAX_LINE, REPORTS, Beginning, Garbled, Lines, from_json, line, to_json
from orama.turn.workers_process import (
    ANSWER_TIMEOUT,
    FIRST_PAUSE,
    GRACE,
    LASTING,
    LONGEST_PAUSE,
    SILENCE,
    WorkerProcess,
)


class Process:
    """A process that does what the test says; the transport of its protocol."""

    def __init__(self, protocol: Any, pid: int) -> None:
        self.protocol = protocol
        self.pid = pid
        self.orders: list[dict[str, Any]] = []
        self.killed = False
        self.ended = False
        protocol.makeConnection(self)

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        assert descriptor == 0
        self.orders += Lines().feed(data)

    def signalProcess(self, name: str) -> None:
        if self.ended:
            raise ProcessExitedAlready
        assert name == "KILL"
        self.killed = True

    def report(self, **message: Any) -> None:
        self.protocol.childDataReceived(REPORTS, line(**message))

    def end(self, reason: Exception | None = None) -> None:
        self.ended = True
        self.protocol.processEnded(Failure(reason or ProcessTerminated(status=9, signal=9)))


class Reactor(Clock):
    """Time, and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        #: Why no process can be made.
        self.refusal: OSError | None = None

    def spawnProcess(self, protocol: Any, *arguments: Any, **options: Any) -> Process:
        if self.refusal is not None:
            raise self.refusal
        self.processes.append(Process(protocol, 1000 + len(self.processes)))
        return self.processes[-1]


class Home:
    """The node."""

    table = 4

    def __init__(self) -> None:
        self.dead: list[int] = []

    def beginning(self, worker: int) -> Mapping[str, Any]:
        return {"worker": worker}

    def died(self, worker: int) -> None:
        self.dead.append(worker)


class WorkerProcessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor, self.home = Reactor(), Home()
        self.worker = WorkerProcess(self.reactor, 1, (), self.home)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    @property
    def process(self) -> Process:
        return self.reactor.processes[-1]

    def starts_after(self, pause: float) -> None:
        """Another process is started when *pause* is over, and not before."""
        count = len(self.reactor.processes)
        self.reactor.advance(pause - 0.001)
        self.assertEqual(len(self.reactor.processes), count)
        self.reactor.advance(0.002)
        self.assertEqual(len(self.reactor.processes), count + 1)

    def test_beginning(self) -> None:
        """A worker is told how things are before anything else, and again when it is another process."""
        self.worker.start()
        self.assertEqual(self.process.orders, [{"order": "begin", "beginning": {"worker": 1}}])
        self.assertNoResult(self.worker.began)
        self.process.report(report="began")
        self.successResultOf(self.worker.began)
        self.process.end()
        self.worker.tell(order="drain")  # nobody hears it
        self.starts_after(FIRST_PAUSE)
        self.assertEqual([order["order"] for order in self.process.orders], ["begin"])
        self.worker.tell(order="drain")
        self.assertEqual([order["order"] for order in self.process.orders], ["begin", "drain"])
        self.process.report(report="began")

    def test_started_again(self) -> None:
        """A worker that ends is started again: each time later while it does not last, at once when it has lasted."""
        self.worker.start()
        pause = FIRST_PAUSE
        for _ in range(12):
            self.process.end(ProcessDone(0))
            self.starts_after(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.assertEqual(pause, LONGEST_PAUSE)
        self.process.report(report="began")
        self.reactor.advance(LASTING + 1)
        self.process.end()
        self.starts_after(FIRST_PAUSE)
        self.assertEqual(self.home.dead, [1] * 13)
        said = [event for event in self.events if event.get("pause") is not None]
        self.assertEqual(len(said), 13)
        self.assertEqual((said[0]["why"], said[-1]["why"]), ("has ended", "was ended by signal 9"))

    def test_cannot_be_started(self) -> None:
        """A process that cannot be made is tried again like one that has ended."""
        self.reactor.refusal = OSError(11, "Resource temporarily unavailable")
        self.worker.start()
        self.reactor.refusal = None
        self.starts_after(FIRST_PAUSE)
        self.assertEqual(self.home.dead, [1])

    def test_stuck(self) -> None:
        """A worker that does not report is killed; one that reports is not."""
        self.worker.start()
        for _ in range(3):
            self.reactor.advance(SILENCE)
            self.worker.tick()
            self.assertFalse(self.process.killed)
            self.process.report(report="figures", samples=[])
        self.reactor.advance(SILENCE + 1)
        self.worker.tick()
        self.assertTrue(self.process.killed)
        self.process.end()
        self.starts_after(FIRST_PAUSE)

    def test_garbled(self) -> None:
        """A worker that does not speak as it should is killed."""
        for said in (b"{}\n", b"[1]\n", b"\xff\n", b'{"report": "figures"}\n', b"x" * (MAX_LINE + 1)):
            self.worker.start()
            self.process.protocol.childDataReceived(REPORTS, said)
            self.assertTrue(self.process.killed, said[:30])
        self.assertEqual(len(self.flushLoggedErrors()), 5)

    def test_stop(self) -> None:
        """A worker is told to stop and waited for; it is killed when it takes too long, and not started again."""
        self.worker.start()
        stopped = self.worker.stop()
        self.assertEqual(self.process.orders[-1], {"order": "stop"})
        self.reactor.advance(GRACE - 0.1)
        self.assertFalse(self.process.killed)
        self.assertNoResult(stopped)
        self.reactor.advance(0.2)
        self.assertTrue(self.process.killed)
        self.process.end()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_in_time(self) -> None:
        """A worker that stops leaves nothing behind, and neither does one that was about to be started again."""
        self.worker.start()
        stopped = self.worker.stop()
        self.process.end(ProcessDone(0))
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        other = WorkerProcess(self.reactor, 2, (), self.home)
        other.start()
        self.process.end()
        self.successResultOf(other.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_figures(self) -> None:
        """Counters go on where the process before has ended, gauges begin anew."""

        def figures() -> dict[tuple[str, ...], float]:
            return {(name, *labels.values()): value for name, labels, value in self.worker.samples()}

        self.worker.start()
        self.process.report(report="figures", samples=[("a_total", {"n": "x"}, 5), ("b", {}, 7), ("c_total", {}, 1)])
        self.assertEqual(figures(), {("a_total", "x"): 5, ("b",): 7, ("c_total",): 1})
        self.process.end()
        self.assertEqual(figures(), {("a_total", "x"): 5, ("c_total",): 1})
        self.starts_after(FIRST_PAUSE)
        self.process.report(report="figures", samples=[("a_total", {"n": "x"}, 2), ("b", {}, 1)])
        self.assertEqual(figures(), {("a_total", "x"): 7, ("b",): 1, ("c_total",): 1})
        self.process.end()
        self.assertEqual(figures(), {("a_total", "x"): 7, ("c_total",): 1})

    def test_questions(self) -> None:
        """A question has its answer, or Unavailable: when the worker fails, ends, does not answer, or is not there."""

        def asked() -> Deferred[Any]:
            return Deferred.fromCoroutine(self.worker.ask(order="sessions"))

        self.failureResultOf(asked(), Unavailable)
        self.worker.start()
        first, second = asked(), asked()
        self.process.report(report="answer", serial=self.process.orders[-1]["serial"], answer=[2])
        self.process.report(report="answer", serial=self.process.orders[-2]["serial"], answer=[1])
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), ([1], [2]))
        fails, late = asked(), asked()
        self.process.report(report="answer", serial=self.process.orders[-2]["serial"], error="no")
        self.failureResultOf(fails, Unavailable)
        self.reactor.advance(ANSWER_TIMEOUT + 0.1)
        self.failureResultOf(late, Unavailable)
        self.process.report(report="answer", serial=self.process.orders[-1]["serial"], answer=[])  # nobody waits for it
        ends = asked()
        self.process.end()
        self.failureResultOf(ends, Unavailable)

    def test_log(self) -> None:
        """What a worker says is in the log with its fields, whatever they are called or hold."""
        self.worker.start()
        text = "allocation of {x} \u2028 ended"
        fields = {"namespace": "myapp", "user": "{user.__class__}", "reason": "released"}
        self.process.report(report="log", level="warn", namespace="orama.turn.x", text=text, fields=fields)
        (event,) = [event for event in self.events if event.get("reason") == "released"]
        self.assertEqual((event["log_level"].name, event["log_namespace"]), ("warn", "orama.turn.x"))
        self.assertEqual((event["text"], event["user"], event["worker"]), (text, "{user.__class__}", 1))


class ChannelTests(SynchronousTestCase):
    def test_pieces(self) -> None:
        """Messages are put together from any pieces."""
        data = line(order="a", text="\n\u2028é") + line(order="b")
        for size in (1, 7, len(data)):
            lines = Lines()
            found = [each for at in range(0, len(data), size) for each in lines.feed(data[at : at + size])]
            self.assertEqual(found, [{"order": "a", "text": "\n\u2028é"}, {"order": "b"}])

    def test_beginning(self) -> None:
        """Everything that a worker has to know survives the way."""
        tenant = Tenant("myapp", ("s",), (1, 2), (("10.0.0.1", 1, 2),), (ip_network("10.0.0.0/8"), ip_network("::/0")))
        special = NamespaceTurnSettings(allowed_peers=("10.0.0.0/8",), allocations_per_user=3)
        settings = Settings(turn=TurnSettings(namespaces={"myapp": special}))
        beginning = Beginning(1, 2, "00", "ff", settings, (tenant,), 6, {"": ("c", "k")}, ("stun.turn",), ("x",), True)
        self.assertEqual(from_json(Beginning, json.loads(json.dumps(to_json(beginning)))), beginning)
        self.assertRaises(Garbled, from_json, Tenant, {})
