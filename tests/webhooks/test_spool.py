"""Events that outlive the process."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from orama.webhooks.letter import Letter
from orama.webhooks.spool import WASTE, Spool


def made(number: int, body: str = '{"text":"\\n"}') -> Letter:
    return Letter(f"ev_{number}", "room_started", float(number), "default", "r", body)


class SpoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.spool = self.open()

    def open(self) -> Spool:
        spool = Spool(self.path)
        self.addCleanup(spool.close)
        return spool

    def test_restart(self) -> None:
        """What was not done with is there again, in order and as it was; a second restart changes nothing."""
        for number in range(4):
            self.spool.add(made(number))
        self.spool.done(made(1))
        for _ in range(2):
            self.assertEqual(self.open().found, [made(0), made(2), made(3)])

    def test_nothing_found(self) -> None:
        """A file that is not there is an empty one, and can be read by its owner alone: users' metadata are in it."""
        self.assertEqual(self.spool.found, [])
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_emptied(self) -> None:
        """When nothing waits the file is empty."""
        self.spool.add(made(0))
        self.spool.add(made(1))
        self.spool.done(made(0))
        self.spool.done(made(1))
        self.assertEqual(self.path.stat().st_size, 0)
        self.spool.add(made(2))
        self.assertEqual(self.open().found, [made(2)])

    def test_cut_short(self) -> None:
        """A line that was cut short costs that line alone."""
        self.spool.add(made(0))
        self.spool.add(made(1))
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[:-5])
        spool = self.open()
        self.assertEqual(spool.found, [made(0)])
        os.truncate(self.path, self.path.stat().st_size - 7)
        spool.add(made(2))
        self.assertEqual(self.open().found, [made(2)])

    def test_foreign_lines(self) -> None:
        """Whatever stands in the file, it can be opened."""
        self.path.write_bytes(
            b'\xff\n[]\n{}\n1\n{"id":1}\n{"done":[]}\n{"id":"","event":1,"at":1.0,"namespace":"","room_id":"","body":""}\n{"done":"ev_7"}\n'
            + b"[" * 10_000
        )
        self.assertEqual(self.open().found, [])

    def test_written_anew(self) -> None:
        """A file that is mostly waste is written anew while events wait."""
        self.spool.add(made(0))
        body = "x" * (1 << 20)
        for number in range(1, 1 + WASTE // len(body)):
            self.spool.add(made(number, body))
            self.spool.done(made(number, body))
        self.assertGreater(self.path.stat().st_size, WASTE)
        self.spool.tidy([made(0)])
        self.assertLess(self.path.stat().st_size, 1000)
        self.spool.add(made(99))
        self.assertEqual(self.open().found, [made(0), made(99)])
