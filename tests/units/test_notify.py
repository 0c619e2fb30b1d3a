"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import socket
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.notify import EXTENSION, MAX_STATUS, Notifier

PID = 4711


class Systemd:
    """The other end of ``NOTIFY_SOCKET``."""

    def __init__(self, case: SynchronousTestCase, abstract: bool = False) -> None:
        directory = Path(mkdtemp(prefix="orama-"))
        case.addCleanup(rmtree, directory)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self._socket.close)
        path = str(directory / "notify")
        self._socket.bind("\0" + path if abstract else path)
        self._socket.setblocking(False)
        self.address = f"@{path}" if abstract else path

    def told(self) -> list[str]:
        """The assignments of all datagrams so far."""
        found: list[str] = []
        while True:
            try:
                found += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return found


class EnvironmentTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        """Without the variables nothing is sent, and nothing is wrong."""
        notifier = Notifier.from_environment({}, PID)
        self.assertEqual((notifier.address, notifier.watchdog), ("", 0.0))
        self.assertTrue(notifier.ready("fine"))

    def test_taken_out(self) -> None:
        """The variables are gone afterwards: a program that the service starts must not speak for it."""
        environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID), "PATH": "/bin"}
        notifier = Notifier.from_environment(environment, PID)
        self.assertEqual((notifier.address, notifier.watchdog), ("/run/x", 30.0))
        self.assertEqual(environment, {"PATH": "/bin"})

    def test_watchdog_of_another(self) -> None:
        """A watchdog for another process is not ours; a number that is none is no watchdog."""
        for whose, microseconds in (("1", "30000000"), (str(PID), "soon"), (str(PID), "-5"), (str(PID), "٣")):
            environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": whose}
            self.assertEqual(Notifier.from_environment(environment, PID).watchdog, 0.0)

    def test_address(self) -> None:
        """Only paths and abstract addresses are spoken to (no vsock)."""
        self.assertEqual(Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1"}, PID).address, "")

    def test_interval(self) -> None:
        """Signs of life come twice as often as they have to, and extensions three times."""
        self.assertEqual(Notifier("/x", 10.0).interval, 5.0)
        self.assertEqual(Notifier("/x", 300.0).interval, EXTENSION / 3)
        self.assertEqual(Notifier("/x").interval, EXTENSION / 3)


class TellingTests(SynchronousTestCase):
    def test_words(self) -> None:
        """Every state in the words of sd_notify(3)."""
        systemd = Systemd(self)
        notifier = Notifier(systemd.address)
        notifier.status("waiting")
        notifier.ready("ready")
        notifier.reloading(12.5)
        notifier.alive()
        notifier.extend("draining")
        notifier.stopping("bye")
        self.assertEqual(
            systemd.told(),
            [
                *("STATUS=waiting", "READY=1", "STATUS=ready", "RELOADING=1", "MONOTONIC_USEC=12500000", "WATCHDOG=1"),
                *("EXTEND_TIMEOUT_USEC=30000000", "STATUS=draining", "STOPPING=1", "STATUS=bye"),
            ],
        )

    def test_abstract(self) -> None:
        """An abstract address begins with @ in the environment and with a zero byte in the kernel."""
        systemd = Systemd(self, abstract=True)
        Notifier(systemd.address).ready()
        self.assertEqual(systemd.told(), ["READY=1"])

    def test_nobody_there(self) -> None:
        """A socket that is gone is no reason to fail."""
        self.assertFalse(Notifier("/nowhere/notify").ready())

    @given(st.text())
    def test_status_is_one_line(self, text: str) -> None:
        """Whatever the status says, it is one assignment: nobody can say READY through it."""
        sent: list[bytes] = []
        Notifier("/x", send=lambda address, datagram: sent.append(datagram)).status(text)
        for datagram in sent:
            line = datagram.decode()
            self.assertTrue(line.startswith("STATUS=") and "\n" not in line)
            self.assertLessEqual(len(line), MAX_STATUS + len("STATUS="))
