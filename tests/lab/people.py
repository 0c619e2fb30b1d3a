"""The people who call, as the tests see them: a telephone in a client's machine, and what it has seen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attrs import frozen

from tests.lab.machine import PATIENCE, Machine, until
from tests.node import environment


@frozen
class Report:
    """Times are of the monotonic clock, in seconds."""

    events: list[tuple[float, str]]
    frames: list[float]
    sent: int
    received: int
    lost: int
    relays: list[str]
    peer: str | None

    def longest_silence(self, since: float, end: float | None = None) -> float:
        """Seconds: the longest in which nothing was heard, from *since* to *end* or the last frame."""
        heard = [at for at in self.frames if at >= since and (end is None or at <= end)]
        before = [at for at in self.frames if at < since]
        times = [before[-1] if before else since, *heard, *([] if end is None else [end])]
        return max((later - earlier for earlier, later in pairwise(times)), default=float("inf"))

    def heard_since(self, since: float) -> int:
        return sum(at >= since for at in self.frames)

    def happened(self, since: float = 0.0) -> list[str]:
        return [what for at, what in self.events if at >= since]


class Phone:
    """Somebody in *machine* who calls *room* by way of *gateways*, the first of them first.

    :param plain: by the plain endpoints of the nodes, and not by what stands in front of them.
    """

    def __init__(self, machine: Machine, gateways: Sequence[str], key: str, room: str, plain: bool = True) -> None:
        self._process = machine.spawn(
            "phone",
            sys.executable,
            "-m",
            "tests.lab.phone",
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(machine.directory / "phone.log").open("a"),
            text=True,
        )
        self._tell(json.dumps({"gateways": list(gateways), "key": key, "room": room, "plain": plain}))

    def report(self) -> Report:
        self._tell("report")
        assert self._process.outer.stdout is not None
        line = self._process.outer.stdout.readline()
        assert line, f"the telephone is broken: {self._process.said()[-3000:]}"
        return Report(**json.loads(line))

    def until_hearing(self, frames: int = 25, since: float | None = None, seconds: float = PATIENCE) -> Report:
        """What it reports once it has heard so many frames of 20 ms since then (now, without)."""
        began = time.monotonic() if since is None else since
        last: list[Report] = []

        def reached() -> Report | None:
            last[:] = [self.report()]
            return last[0] if last[0].heard_since(began) >= frames else None

        try:
            return until(reached, "hearing", seconds)
        except AssertionError:
            events = [(round(at - began, 2), what) for at, what in last[0].events]
            raise AssertionError(f"nothing was heard within {seconds:g} s: {events}") from None

    def hang_up(self) -> None:
        if self._process.running:
            self._tell("end")
            self._process.outer.wait(PATIENCE)
        for stream in (self._process.outer.stdin, self._process.outer.stdout):
            if stream is not None:
                stream.close()

    def _tell(self, line: str) -> None:
        stream: Any = self._process.outer.stdin
        stream.write(line + "\n")
        stream.flush()
