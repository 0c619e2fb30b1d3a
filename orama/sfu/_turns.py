"""Turns: much to do for many, a piece at a time, so that the loop is never held for long.

A message for a hundred receivers is two hundred packets for each; nobody's media waits until all of them are sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from twisted.logger import Logger

#: Seconds of one turn of the loop. A piece is some 0.5 ms and is never cut short.
SLICE: Final = 0.003

_log = Logger()


class Loop(Protocol):
    """What of an event loop is needed."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[[], None]) -> object: ...


class Turns:
    """Who has something to do. Each does a piece, then the next one, and the loop has its turn after a slice."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[Callable[[], bool], None] = {}
        self._scheduled = False

    def enter(self, work: Callable[[], bool]) -> None:
        """Call *work* soon, and again as long as it says that there is more."""
        self._waiting.setdefault(work)
        self._schedule()

    def leave(self, work: Callable[[], bool]) -> None:
        """Forget *work*."""
        self._waiting.pop(work, None)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        waiting, end = self._waiting, self._loop.time() + SLICE
        while waiting:
            work = next(iter(waiting))
            del waiting[work]
            try:
                if work():
                    waiting[work] = None
            except Exception:  # the others' work is not at fault
                _log.failure("a piece of work failed")
            if self._loop.time() >= end:
                break
        if waiting:
            self._schedule()


_of_loops: WeakKeyDictionary[Loop, Turns] = WeakKeyDictionary()


def turns_of(loop: Loop) -> Turns:
    """The turns of *loop*: its time is what is shared, so it has one."""
    turns = _of_loops.get(loop)
    if turns is None:
        turns = _of_loops[loop] = Turns(loop)
    return turns
