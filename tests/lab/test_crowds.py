"""Many at once, from all three nodes: ports never meet, and of those who want the same thing one gets it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise, repeat
from typing import Any

from orama.cli.control import Control, Failed
from tests.lab import addresses, servers
from tests.lab.servers import RQLITE_PORT
from tests.lab.stage import ClusterTestCase

_NAMES = [f"crowd{number}" for number in range(10)]
#: Kinds of ports by what has them: an SFU two, a TURN server one.
_BLOCKS = 3 * 2 + 2


class CrowdTests(ClusterTestCase):
    needs = ("RQLite",)

    def control(self, number: int) -> Control:
        """What the command line of a node uses."""
        return Control(self.nodes[number].data)

    def change(self, number: int, what: str, name: str) -> str:
        """The code of the error, or nothing when it is done."""
        try:
            self.control(number).post(f"webrtc/{what}", namespace=name)
        except Failed as error:
            return error.code
        return ""

    def rows(self, question: str) -> list[list[Any]]:
        own = addresses.mesh(1)
        status, body = servers.fetch(self.lab.hosts[0], own, RQLITE_PORT, "/db/query?level=strong", [question])
        self.assertEqual(status, 200, body)
        found: list[list[Any]] = json.loads(body)["results"][0].get("values", [])
        return found

    def test_ten_namespaces(self) -> None:
        """Ten namespaces, enabled at once from three nodes, get blocks that do not meet; disabled at once, they leave
        nothing."""
        before = self.rows("SELECT COUNT(*) FROM webrtc_port_allocations")
        for name in _NAMES:
            self.control(1).post("namespaces", {"name": name})
            self.addCleanup(self.control(1).delete, "namespaces", {"name": name})
        began = time.monotonic()
        with ThreadPoolExecutor(len(_NAMES)) as pool:
            answers = list(pool.map(self.change, cycle(self.nodes), repeat("enable"), _NAMES, timeout=120))
        self.assertEqual(answers, [""] * len(_NAMES))
        self.report.milliseconds("Crowds", "ten namespaces enabled at once", time.monotonic() - began)
        blocks = self.rows("SELECT host, first_port, last_port, namespace FROM webrtc_port_allocations ORDER BY 1, 2")
        ours = [block for block in blocks if block[3] in _NAMES]
        self.assertEqual(len(ours), len(_NAMES) * _BLOCKS)
        for (host, _, last, _), (next_host, first, _, _) in pairwise(blocks):
            self.assertTrue(host != next_host or last < first, (host, last, first))
        began = time.monotonic()
        with ThreadPoolExecutor(len(_NAMES)) as pool:
            answers = list(pool.map(self.change, cycle(self.nodes), repeat("disable"), _NAMES, timeout=120))
        self.assertEqual(answers, [""] * len(_NAMES))
        self.report.milliseconds("Crowds", "the same ten disabled at once", time.monotonic() - began)
        self.assertEqual(self.rows("SELECT COUNT(*) FROM webrtc_port_allocations"), before)

    def test_one_namespace(self) -> None:
        """Of three nodes that enable the same namespace at once one does, and the others hear that it is enabled."""
        name = _NAMES[0]
        self.control(1).post("namespaces", {"name": name})
        self.addCleanup(self.control(1).delete, "namespaces", {"name": name})
        for what, code in (("enable", "already_enabled"), ("disable", "not_enabled")):
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                answers = list(pool.map(self.change, self.nodes, repeat(what), repeat(name), timeout=60))
            self.assertEqual(sorted(answers), ["", code, code])
