"""Our credentials against coturn's server, a real process. (Its client against our server: ``test_uclient``.)"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.turn import credentials
from tests.interop.program import PATIENCE, Finished, run
from tests.interop.relay_server import HOST, SECRET
from tests.ports import free_port

MESSAGES = 40


class CoturnTests(TestCase):
    timeout = 240
    if shutil.which("turnutils_uclient") is None or shutil.which("turnserver") is None:
        skip = "coturn is not installed"

    def process(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def configuration(self, port: str) -> Path:
        """coturn's, in a directory of its own."""
        directory = Path(self.mktemp())
        directory.mkdir()
        configuration = directory / "turnserver.conf"
        configuration.write_text(
            f"listening-ip=127.0.0.1\nlistening-port={port}\nrelay-ip=127.0.0.1\nmin-port=53200\nmax-port=53999\n"
            f"use-auth-secret\nstatic-auth-secret={SECRET}\nrealm=orama\nallow-loopback-peers\nno-cli\nno-tls\nno-dtls\n"
            f"log-file={directory}/log\npidfile={directory}/pid\nuserdb={directory}/db\n"
        )
        return configuration

    def lossless(self, output: str, packets: int) -> None:
        """The client sent and got back *packets*."""
        figures = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", output)
        self.assertTrue(figures, output[-2000:])
        self.assertEqual({int(value) for value in figures[-1]}, {packets}, output[-2000:])
        self.assertIn("Total lost packets 0 (0.000000%)", output)

    async def test_server(self) -> None:
        """A real coturn with the same secret takes the credentials that we issue, and refuses others."""
        port = str(free_port())
        self.process("turnserver", "-c", str(self.configuration(port)))
        peer = str(free_port())
        self.process("turnutils_peer", "-L", HOST, "-p", peer)
        await deferToThread(listening, int(port))
        common = ("turnutils_uclient", "-e", HOST, "-r", peer, "-p", port, "-c", "-n", str(MESSAGES), "-z", "5")

        def client(issued: credentials.Credentials) -> Deferred[Finished]:
            return run([*common, "-u", issued.username, "-w", issued.password, HOST])

        now = time.time()
        good, with_user, wrong = await gatherResults(
            [
                client(credentials.issue(SECRET, "myapp", 600, now)),
                client(credentials.issue(SECRET, "myapp", 600, now, "ann")),
                client(credentials.issue("another secret", "myapp", 600, now)),
            ]
        )
        self.lossless(good.output, MESSAGES)
        self.lossless(with_user.output, MESSAGES)
        self.assertNotIn("Total lost packets 0", wrong.output)


def listening(port: int) -> None:
    """Come back when *port* takes a connection."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
