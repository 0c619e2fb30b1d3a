"""The poll, with sockets of the kernel, a clock in the test's hand, and a reactor that only remembers."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Fabric
from orama.net.poll import MAX_ROUNDS, OFTEN, TURN, WORTH, Poll

PAUSE = 0.00025


class Tap:
    """One end of a pair of datagram sockets; counts what is read from it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.visits: list[bool] = []
        self.got: list[bytes] = []
        self.wrote = 0
        self.on_read: Any = lambda: None

    def fileno(self) -> int:
        return self.ours.fileno()

    def read(self, deep: bool) -> None:
        self.visits.append(deep)
        while True:
            try:
                self.got.append(self.ours.recv(100))
            except BlockingIOError:
                break
            self.on_read()
            if not deep:
                break

    def room(self) -> None:
        self.wrote += 1

    def failed(self) -> None:
        raise AssertionError("no error was made")

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class PollTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.fabric = Fabric(self.reactor)
        self.now = 100.0
        self.slept: list[float] = []
        #: Runs in each pause.
        self.meanwhile: Any = lambda: None
        self.poll = Poll(self.reactor, self.fabric, PAUSE, seconds=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()

    def tap(self) -> Tap:
        tap = Tap()
        self.poll.add(tap)
        self.addCleanup(tap.close)
        self.addCleanup(self.poll.remove, tap)
        return tap

    def wake(self, after: float = 1.0) -> None:
        self.now += after
        self.poll.doRead()

    def come(self, tap: Tap, rate: float) -> None:
        """Let a turn pass in which *rate* packets a second are read, and the next one begin with a packet."""
        before = tap.on_read

        def many() -> None:
            self.poll.reads += round(rate * TURN) - 1

        tap.on_read = many
        tap.theirs.send(b"x")
        self.wake()
        tap.on_read = before
        self.now += TURN
        tap.theirs.send(b"x")
        tap.got.clear()
        self.slept.clear()

    def test_in_the_reactor_while_there_are_sockets(self) -> None:
        """The reactor reads one descriptor, from the first socket to the last."""
        first, second = self.tap(), self.tap()
        self.assertEqual(self.reactor.getReaders(), [self.poll])
        self.poll.remove(first)
        self.poll.remove(first)
        self.assertEqual(self.reactor.getReaders(), [self.poll])
        self.poll.remove(second)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual((self.poll.fileno(), len(self.poll)), (-1, 0))
        self.tap()
        self.assertEqual(self.reactor.getReaders(), [self.poll])

    def test_few_packets_do_not_wait(self) -> None:
        """While packets are few each is read at once, and the waiting is the reactor's."""
        tap = self.tap()
        for count in range(1, 4):
            tap.theirs.send(b"x")
            self.wake(after=2 / OFTEN)
            self.assertEqual(len(tap.got), count)
        self.assertEqual(self.slept, [])

    def test_many_packets_are_waited_for_here(self) -> None:
        """When they come often, but not several in a pause, the poll waits for the next one, and reads it at once."""
        tap = self.tap()
        self.come(tap, 2 * OFTEN)
        sent = iter(range(3))

        def answer() -> None:
            if next(sent, None) is not None:
                tap.theirs.send(b"more")

        tap.on_read = answer
        self.poll.doRead()
        self.assertEqual((len(tap.got), self.slept), (4, []))

    def test_more_packets_are_gathered(self) -> None:
        """When several come in a pause, it reads at once, and then once a pause until the turn is over."""
        tap = self.tap()
        self.come(tap, 2 * WORTH / PAUSE)
        arriving = [b"second", b"", b"third"]

        def meanwhile() -> None:
            if arriving and (packet := arriving.pop(0)):
                tap.theirs.send(packet)

        self.meanwhile = meanwhile
        began = self.now
        self.poll.doRead()
        self.assertEqual(tap.got, [b"x", b"second", b"third"])
        self.assertEqual(set(self.slept), {PAUSE})
        self.assertTrue(TURN <= self.now - began < TURN + 1.1 * PAUSE)

    def test_they_become_few_again(self) -> None:
        """A turn in which next to nothing came is the last one that pauses."""
        tap = self.tap()
        self.come(tap, 2 * WORTH / PAUSE)
        self.poll.doRead()
        self.assertNotEqual(self.slept, [])
        self.slept.clear()
        tap.theirs.send(b"x")
        self.poll.doRead()
        self.assertEqual(self.slept, [])

    def test_no_pause_when_there_is_none(self) -> None:
        """With a pause of 0 all waiting is the reactor's, however many packets come."""
        self.poll.pause = 0.0
        tap = self.tap()
        self.come(tap, 10 * WORTH / PAUSE)
        tap.on_read = lambda: None
        self.poll.doRead()
        self.assertEqual((len(tap.got), self.slept), (1, []))

    def test_reactor_gets_its_turn(self) -> None:
        """A stream of packets without end keeps the reactor waiting for TURN seconds and one pause at most."""
        tap = self.tap()
        self.come(tap, 2 * WORTH / PAUSE)
        self.meanwhile = lambda: tap.theirs.send(b"x")
        began = self.now
        self.poll.doRead()
        self.assertTrue(TURN <= self.now - began < TURN + 1.1 * PAUSE)

    def test_rounds_end_with_the_turn(self) -> None:
        """One look does not go on to another round when the reactor's turn has come."""
        tap = self.tap()

        def read(deep: bool) -> None:
            tap.ours.recv(100)
            tap.theirs.send(b"more")
            tap.visits.append(deep)
            self.now += TURN

        tap.read = read  # type: ignore[method-assign]
        tap.theirs.send(b"x")
        self.wake()
        self.assertEqual(tap.visits, [False])

    def test_backlog_does_not_pause(self) -> None:
        """While there is always more, nothing pauses: reads follow each other until the turn is over."""
        tap = self.tap()
        self.come(tap, 2 * WORTH / PAUSE)

        def more() -> None:
            self.now += TURN / 10
            tap.theirs.send(b"x")

        def read(deep: bool) -> None:
            tap.ours.recv(100)
            more()

        tap.read = read  # type: ignore[method-assign]
        self.poll.doRead()
        self.assertEqual(self.slept, [])

    def test_second_round_reads_to_the_end(self) -> None:
        """A socket is read once; if it is ready again in the same look, to its end."""
        tap = self.tap()
        for _ in range(5):
            tap.theirs.send(b"x")
        self.wake()
        self.assertEqual((tap.visits, len(tap.got)), ([False, True], 5))

    def test_one_drain_a_look(self) -> None:
        """What reads ask for by ``later`` runs once, after all that a look found."""
        first, second = self.tap(), self.tap()
        flushed: list[int] = []

        def flush() -> None:
            flushed.append(len(first.got) + len(second.got))

        first.on_read = second.on_read = lambda: self.fabric.later(flush)
        for tap in (first, second, first):
            tap.theirs.send(b"x")
        self.wake()
        self.assertEqual(flushed, [3])

    def test_room_to_write(self) -> None:
        """A socket that waits to write is told of room, and one that is held is not read."""
        tap = self.tap()

        def room() -> None:
            tap.wrote += 1
            self.now += TURN / MAX_ROUNDS

        tap.room = room  # type: ignore[method-assign]
        tap.theirs.send(b"x")
        self.poll.hold(tap, writing=True)
        self.poll.doRead()
        self.assertEqual((tap.got, tap.wrote), ([], MAX_ROUNDS))
        self.poll.add(tap)
        self.poll.doRead()
        self.assertEqual((tap.got, tap.wrote), ([b"x"], MAX_ROUNDS))

    def test_socket_closed_by_another(self) -> None:
        """A socket that one before it removed is not read any more."""
        first, second = self.tap(), self.tap()
        first.on_read = lambda: self.poll.remove(second)
        second.on_read = lambda: self.poll.remove(first)
        first.theirs.send(b"x")
        second.theirs.send(b"x")
        self.wake()
        self.assertEqual(len(first.got) + len(second.got), 1)

    def test_socket_that_fails(self) -> None:
        """An exception of one socket is logged, and the others are read."""
        first, second = self.tap(), self.tap()

        def fail() -> None:
            raise RuntimeError("by the test")

        first.on_read = fail
        first.theirs.send(b"x")
        second.theirs.send(b"x")
        self.wake()
        self.assertEqual(second.got, [b"x"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
