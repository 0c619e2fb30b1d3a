"""What the cluster stands on: wires, WireGuard, RQLite, Olric and UFW, each as real as on three machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.lab import addresses, network
from tests.lab.lab import Lab, directory_of, labs
from tests.lab.machine import holders, missing
from tests.lab.servers import RQLITE_PORT, fetch
from tests.lab.stage import LabTestCase
from tests.node import environment


class SubstrateTests(LabTestCase):
    def test_mesh(self) -> None:
        """Every node reaches every other one through WireGuard, and clients do not reach it."""
        for number in addresses.NODES:
            for other in set(addresses.NODES) - {number}:
                self.assertTrue(network.reaches(self.lab.hosts[number - 1], addresses.mesh(other)))
        self.assertFalse(network.reaches(self.lab.clients[0], addresses.mesh(1)))
        handshakes = self.lab.hosts[0].run("wg", "show", "wg0", "latest-handshakes").split()[1::2]
        self.assertEqual(len(handshakes), len(addresses.NODES) - 1)
        self.assertNotIn("0", handshakes)

    def test_internet(self) -> None:
        """The two clients reach each other over the router, as strangers on the Internet do."""
        self.assertTrue(network.reaches(self.lab.clients[0], addresses.home(2)))

    def test_firewall(self) -> None:
        """Each node has a UFW of its own, which is active, and the machine that this runs on has none of it."""
        self.require("UFW")
        before = subprocess.run(["ufw", "status"], capture_output=True, text=True).stdout
        for node in self.lab.hosts:
            self.assertIn("Status: active", node.run("ufw", "status"))
        self.lab.hosts[0].run("ufw", "allow", "9999/udp")
        self.addCleanup(self.lab.hosts[0].run, "ufw", "delete", "allow", "9999/udp")
        self.assertIn("9999/udp", self.lab.hosts[0].run("ufw", "status"))
        self.assertNotIn("9999/udp", self.lab.hosts[1].run("ufw", "status"))
        self.assertEqual(subprocess.run(["ufw", "status"], capture_output=True, text=True).stdout, before)
        self.assertFalse(network.reaches(self.lab.clients[0], addresses.public(1)), "the firewall lets all in")

    def test_rqlite(self) -> None:
        """The three agree on a leader, and what one is told another one knows; foreign keys are on."""
        self.require("RQLite")
        leaders = {self.lab.rqlite.leader(number) for number in addresses.NODES}
        self.assertEqual(len(leaders), 1)
        self.assertIn(leaders.pop(), addresses.NODES)

        def ask(number: int, path: str, *statements: str) -> list[dict[str, object]]:
            status, body = fetch(
                self.lab.hosts[number - 1], addresses.mesh(number), RQLITE_PORT, path, list(statements)
            )
            self.assertEqual(status, 200, body)
            results: list[dict[str, object]] = json.loads(body)["results"]
            return results

        ask(1, "/db/execute", "CREATE TABLE probe (word TEXT)", "INSERT INTO probe VALUES ('there')")
        self.assertEqual(ask(3, "/db/query?level=strong", "SELECT word FROM probe")[0]["values"], [["there"]])
        ask(2, "/db/execute", "DROP TABLE probe")
        self.assertEqual(ask(2, "/db/query", "PRAGMA foreign_keys")[0]["values"], [[1]])

    def test_olric(self) -> None:
        """Each of the three answers PING, and they have found each other."""
        self.require("Olric")
        for number in addresses.NODES:
            self.assertTrue(self.lab.olric.pings(number))


class LeavingNothingTests(SynchronousTestCase):
    if reason := missing() or network.wireguard_missing():
        skip = reason

    name = f"gone{os.getpid()}"

    def setUp(self) -> None:
        self.addCleanup(Lab(self.name).down)

    def assertNothing(self) -> None:
        self.assertEqual(holders(self.name), {})
        self.assertFalse(directory_of(self.name).exists())
        self.assertNotIn(self.name, labs())
        named = [path for path in Path("/proc").glob("[0-9]*/cmdline") if self.name.encode() in _read(path)]
        self.assertEqual(named, [])
        self.assertNotIn(self.name, Path("/proc/mounts").read_text())

    def test_two_at_once(self) -> None:
        """A lab of another name beside the first is no trouble; taken down by name, it leaves nothing."""
        made = Lab(self.name)
        made.up()
        again = Lab(self.name)
        self.assertEqual([machine.pid for machine in again.machines], [machine.pid for machine in made.machines])
        self.assertRaises(FileExistsError, again.up)
        again.down()
        self.assertNothing()

    def test_killed(self) -> None:
        """One that was killed while it came up is taken down all the same."""
        starting = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "--name", self.name, "up"],
            env=environment(),
            cwd=tempfile.gettempdir(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not holders(self.name):
            self.assertIsNone(starting.poll())
        starting.kill()
        starting.wait()
        Lab(self.name).down()
        self.assertNothing()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
