"""The same control plane on PostgreSQL."""

from __future__ import annotations

import time

from tests.lab import servers
from tests.lab.node import until_true
from tests.lab.people import Phone
from tests.lab.report import report
from tests.lab.stage import LabTestCase, enable, fresh, key_of


class PostgreSQLTests(LabTestCase):
    needs = ("PostgreSQL",)

    def test_call(self) -> None:
        """Three nodes on one PostgreSQL: enabled, called, a node killed, called again, disabled."""
        lab = fresh("pg")
        self.addCleanup(lab.down)
        _, url = servers.postgresql(lab.hosts[0], 1)
        lab.start_nodes(url)
        enable(lab, "tenant")
        node, key = lab.nodes[1], key_of(lab.nodes[1], "tenant")
        phones = []
        for client, order in ((1, (3, 1, 2)), (2, (1, 2, 3))):
            urls = [lab.nodes[number].url for number in order]
            phones.append(Phone(lab.clients[client - 1], urls, key, "room"))
            self.addCleanup(phones[-1].hang_up)
            until_true("the room", 60.0, lambda: node.rooms(key)["room"])
        for each in phones:
            each.until_hearing()
        owner = node.rooms(key)["room"]["node_id"]
        number = next(number for number, each in lab.nodes.items() if each.node_id == owner)
        since = lab.nodes[number].process.kill()
        for each in phones:
            heard = each.until_hearing(50, since + 1.0)
            report().milliseconds(
                "PostgreSQL", "silence when the node of the room is killed", heard.longest_silence(since)
            )
        lab.nodes[number].launch()
        lab.nodes[number].wait()
        began = time.monotonic()
        lab.nodes[2].orama("namespace", "disable", "webrtc", "--namespace", "tenant")
        report().milliseconds("PostgreSQL", "orama namespace disable webrtc", time.monotonic() - began)
        status = node.orama_json("namespace", "webrtc-status", "--namespace", "tenant")
        self.assertFalse(status["desired"]["enabled"])
