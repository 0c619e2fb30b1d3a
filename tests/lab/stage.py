"""The lab that the tests of a run share: brought up when first needed, gone when the interpreter ends."""

from __future__ import annotations

import atexit
import os
from functools import cache

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.lab.lab import Lab, labs


@cache
def lacking() -> dict[str, str]:
    """As :meth:`Lab.lacking`, asked once."""
    return Lab.lacking()


@cache
def lab() -> Lab:
    """What an earlier run has left behind goes first."""
    for name in labs():
        if (left := Lab(name)).abandoned():
            left.down()
    made = Lab(f"test{os.getpid()}")
    atexit.register(made.down)
    made.up()
    return made


class LabTestCase(SynchronousTestCase):
    """:cvar needs: pieces of the lab, as :meth:`Lab.lacking` calls them, without which a test is skipped."""

    needs: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.require("machines", "WireGuard", *self.needs)
        self.lab = lab()

    def require(self, *pieces: str) -> None:
        """:raises SkipTest: one of these cannot be had, and why."""
        for piece in pieces:
            if reason := lacking().get(piece):
                raise SkipTest(reason)
