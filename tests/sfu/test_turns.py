"""A piece for each in turn, and the loop's own turn between."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu._turns import SLICE, Turns


class MemoryLoop:
    """Time goes on when a piece says so; ``turn`` is one turn of the loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Work:
    """So many pieces, of so many seconds."""

    def __init__(self, name: str, loop: MemoryLoop, log: list[str], pieces: int, seconds: float = 0.0) -> None:
        self.name = name
        self.loop = loop
        self.log = log
        self.pieces = pieces
        self.seconds = seconds

    def __call__(self) -> bool:
        self.loop.now += self.seconds
        self.log.append(self.name)
        self.pieces -= 1
        return self.pieces > 0


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.loop = MemoryLoop()
        self.turns = Turns(self.loop)
        self.log: list[str] = []

    def work(self, name: str, pieces: int, seconds: float = 0.0) -> Work:
        return Work(name, self.loop, self.log, pieces, seconds)

    def test_a_piece_each(self) -> None:
        """Who has much to do has no more turns than the others; who enters twice is called once."""
        a, b = self.work("a", 3), self.work("b", 1)
        for each in (a, b, a):
            self.turns.enter(each)
        self.loop.turn()
        self.assertEqual(self.log, ["a", "b", "a", "a"])
        self.assertEqual(self.loop.soon, [])

    def test_the_loop_has_its_turn(self) -> None:
        """After a slice the rest waits for the loop, and goes on where it was."""
        for name in "abc":
            self.turns.enter(self.work(name, 2, SLICE * 0.6))
        self.loop.turn()
        self.assertEqual(self.log, ["a", "b"])
        self.loop.turn()
        self.assertEqual(self.log, ["a", "b", "c", "a"])
        self.loop.turn()
        self.loop.turn()
        self.assertEqual((self.log[4:], self.loop.soon), (["b", "c"], []))

    def test_leaving(self) -> None:
        """Who has left is not called."""
        a = self.work("a", 1)
        self.turns.enter(a)
        self.turns.leave(a)
        self.turns.leave(a)
        self.loop.turn()
        self.assertEqual(self.log, [])

    def test_failure(self) -> None:
        """Work that fails is logged and has no further turn; the others go on."""

        def fail() -> bool:
            raise RuntimeError("by the test")

        self.turns.enter(fail)
        self.turns.enter(self.work("b", 2))
        self.loop.turn()
        self.assertEqual(self.log, ["b", "b"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
