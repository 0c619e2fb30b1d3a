"""docs/operate.rst is right: its commands, run as they stand there, give a cluster in which people call each other."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.lab import addresses, manual, servers
from tests.lab.node import until_true
from tests.lab.people import Phone
from tests.lab.stage import LabTestCase, fresh
from tests.node import READY


class ManualTests(LabTestCase):
    needs = ("RQLite", "Olric", "UFW", "Caddy")

    def setUp(self) -> None:
        self.require("machines", "WireGuard", *self.needs)
        if reason := manual.missing(Path(tempfile.mkdtemp(prefix="orama-"))):
            raise SkipTest(reason)
        self.lab = fresh("manual", bare=True)
        for host in self.lab.hosts:
            manual.furnish(host)
        self.reader = manual.Reader(self.lab.hosts, {**self.lab.environment(), "HOME": "/var/lib"})

    def ready(self, name: str) -> None:
        """Return once what has just been started is of use to what comes next."""
        if name == "rqlited":
            self.lab.rqlite.wait()
        elif name == "olric-server":
            self.lab.olric.wait()
        else:
            for process in self.reader.running[name]:
                process.wait_for({"caddy": "serving initial configuration", "orama": READY}[name], 180.0)

    def test_three_machines(self) -> None:
        """From three machines with nothing but WireGuard to a call, and back."""
        key = node = ""
        for block in manual.blocks():
            if block.label.endswith("at the end"):
                self.call(key)
            if block.label.endswith("in a moment"):
                until_true("the cluster has settled", 120.0, lambda block=block: self.reader.do(block))
            said = self.reader.do(block, NODE=node)
            if block.background:
                self.ready(block.background)
            if found := re.search(r"ak_\S+:myapp", "".join(said)):
                key = found[0]
            if "orama node list" in block.text:
                node = self.node_id()
        answer = self.lab.hosts[0].run(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"X-API-Key: {key}",
            f"http://{addresses.mesh(1)}:6001/v1/webrtc/rooms",
        )  # fmt: skip
        self.assertEqual(answer, "404")

    def node_id(self) -> str:
        """Of the last of the three."""
        _, body = servers.fetch(self.lab.hosts[2], addresses.mesh(3), 6001, "/health")
        return str(json.loads(body)["node_id"])

    def call(self, key: str) -> None:
        phones = []
        for client, machine in enumerate(self.lab.clients, 1):
            phones.append(Phone(machine, [f"https://{addresses.site(client)}"], key, "lobby", plain=False))
            self.addCleanup(phones[-1].hang_up)
        for each in phones:
            until_true("they hear each other", 60.0, each.until_hearing)
