"""coturn's test client against our server, and our credentials against coturn's server: real processes."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings
from orama.turn import credentials
from orama.turn.listeners import TurnService, listening_hosts
from orama.turn.tenants import Tenant, Tenants

SECRET = "bm9ydGg="
MESSAGES = 40
PATIENCE = 30.0


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def uclient(*arguments: str) -> str:
    """Run coturn's client to its end; what it printed."""
    done = subprocess.run(
        ["turnutils_uclient", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
        text=True,
        errors="replace",
    )
    return done.stdout


class CoturnTests(TestCase):
    timeout = 60
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

    async def test_client(self) -> None:
        """turnutils_uclient over UDP, TCP and TLS, over IPv4 and IPv6, by channels and by Send, relayed to a peer
        and to another client of the namespace, loses nothing."""
        tenants = Tenants()
        tenants.put(Tenant("myapp", (SECRET,), (51600, 52399), allowed_peers=(ip_network("127.0.0.0/8"),)))
        certificates = ServerCertificates(Path(self.mktemp()), ["127.0.0.1"], reactor)
        settings = evolve(Settings(), turn_port=0, turns_port=0, public_ip="192.0.2.1")
        service = TurnService(reactor, settings, tenants, Fabric(reactor), certificates)
        service.startService()
        self.addCleanup(service.stopService)
        peer = str(free_port(socket.SOCK_DGRAM))
        self.process("turnutils_peer", "-L", "127.0.0.1", "-p", peer)
        common = (
            "-W",
            SECRET,
            "-u",
            "myapp",
            "-e",
            "127.0.0.1",
            "-r",
            peer,
            "-n",
            str(MESSAGES),
            "-z",
            "5",
            "-l",
            "500",
        )
        udp, tcp, tls = (("-p", str(port)) for port in (service.udp_port, service.tcp_port, service.tls_port))
        ways: list[tuple[str, ...]] = [
            (*udp, "-c", "127.0.0.1"),
            (*udp, "-c", "-s", "127.0.0.1"),
            (*tcp, "-c", "-t", "127.0.0.1"),
            (*tcp, "-c", "-t", "-s", "127.0.0.1"),
            (*tls, "-c", "-t", "-S", "127.0.0.1"),
            (*tls, "-c", "-t", "-S", "-s", "127.0.0.1"),
            (*udp, "-g", "127.0.0.1"),
            (*udp, "-y", "-c", "127.0.0.1"),
        ]
        if len(listening_hosts("192.0.2.1")) > 1:
            ways.append((*udp, "-X", "-c", "::1"))
        outputs: list[str] = await gatherResults([deferToThread(uclient, *common, *way) for way in ways])
        for way, output in zip(ways, outputs, strict=True):
            # Without -c the client has a second relay for RTCP, on the port that EVEN-PORT reserved; with -y
            # there are two clients, who meet relay to relay.
            self.lossless(output, MESSAGES if "-c" in way and "-y" not in way else 2 * MESSAGES)

    async def test_server(self) -> None:
        """A real coturn with the same secret takes the credentials that we issue, and refuses others."""
        port = str(free_port(socket.SOCK_STREAM))
        self.process("turnserver", "-c", str(self.configuration(port)))
        peer = str(free_port(socket.SOCK_DGRAM))
        self.process("turnutils_peer", "-L", "127.0.0.1", "-p", peer)
        await deferToThread(listening, int(port))
        common = ("-e", "127.0.0.1", "-r", peer, "-p", port, "-c", "-n", str(MESSAGES), "-z", "5")

        def run(issued: credentials.Credentials) -> Deferred[str]:
            return deferToThread(uclient, *common, "-u", issued.username, "-w", issued.password, "127.0.0.1")

        now = time.time()
        good, with_user, wrong = await gatherResults(
            [
                run(credentials.issue(SECRET, "myapp", 600, now)),
                run(credentials.issue(SECRET, "myapp", 600, now, "ann")),
                run(credentials.issue("another secret", "myapp", 600, now)),
            ]
        )
        self.lossless(good, MESSAGES)
        self.lossless(with_user, MESSAGES)
        self.assertNotIn("Total lost packets 0", wrong)


def listening(port: int) -> None:
    """Come back when *port* takes a connection."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
