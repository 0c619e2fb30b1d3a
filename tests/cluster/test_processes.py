"""Other programs run to their end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.cluster.processes import MAX_OUTPUT, NOT_FOUND, TIMED_OUT, last_line, processes


class ProcessTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.run = processes(reactor, 20)

    async def test_status_and_output(self) -> None:
        """Status, stdout and stderr come back; stdin is closed, and the output is in plain C."""
        script = "import os, sys; print(sys.stdin.read(), os.environ['LC_ALL']); sys.stderr.write('e'); sys.exit(3)"
        status, output = await self.run([sys.executable, "-c", script])
        self.assertEqual(status, 3)
        self.assertEqual(sorted(output.decode().split()), ["C", "e"])

    async def test_not_there(self) -> None:
        """A program that is not installed, or is none, has a status and a text, not an exception."""
        self.assertEqual(await self.run(["no-such-program", "x"]), (NOT_FOUND, b"no-such-program is not installed"))

    async def test_time_limit(self) -> None:
        """What hangs is killed, and nobody waits for others that hold its pipe."""
        run = processes(reactor, 0.5)
        pidfile = Path(self.mktemp()).resolve()
        status, output = await run(["sh", "-c", f"sleep 60 & echo $! > {pidfile}; exec sleep 60"])
        self.assertEqual((status, output), (TIMED_OUT, b"it took longer than 0.5 s"))
        # What it started itself still has the other end of the pipe, and was not waited for.
        os.kill(int(pidfile.read_text()), signal.SIGKILL)

    async def test_cancelled(self) -> None:
        """Cancelled, the process is gone."""
        pidfile = Path(self.mktemp()).resolve()
        running = self.run(["sh", "-c", f"echo $$ > {pidfile}.new; mv {pidfile}.new {pidfile}; exec sleep 60"])
        while not pidfile.exists():
            await self.run(["true"])
        running.cancel()  # type: ignore[attr-defined]
        with self.assertRaises(CancelledError):
            await running
        pid = int(pidfile.read_text())
        while Path(f"/proc/{pid}").exists():
            await self.run(["true"])
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    async def test_much_output(self) -> None:
        """Output past the limit is dropped, and does not stop the program."""
        status, output = await self.run(["head", "-c", str(MAX_OUTPUT + 100_000), "/dev/zero"])
        self.assertEqual((status, len(output)), (0, MAX_OUTPUT))


class LastLineTests(SynchronousTestCase):
    def test_last_line(self) -> None:
        """What is said last, on one line, bounded, and with nothing in it that steers a terminal."""
        self.assertEqual(last_line(b"one\ntwo \n\n"), "two")
        self.assertEqual(last_line(b""), "it said nothing")
        self.assertEqual(last_line(b"a\x1b[31mb\xff"), "a[31mb\ufffd")
        self.assertEqual(len(last_line(b"x" * 10_000)), 300)
