"""node-datachannel (libdatachannel) as an adversary: it leaves the relay wherever it can."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.browser.netns import Network, available, node_options
from tests.browser.stage import directory, end
from tests.interop.npm import PACKAGES, install
from tests.node import NodeProcess

SCRIPT = Path(__file__).with_name("node_datachannel.mjs")
MESSAGES = 200


class NodeDatachannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reason := install("node-datachannel", "0.33") or available():
            raise SkipTest(reason)
        self.network = Network()
        self.addCleanup(self.network.close)
        inside = self.network.inside()
        inside.__enter__()
        self.addCleanup(inside.__exit__, None, None, None)
        self.node = NodeProcess(directory() / "node-datachannel", *node_options()).start()
        self.addCleanup(end, self.node)

    def test_stays_on_the_relay(self) -> None:
        """It tries the SFU's own address, gets not one datagram from there, and talks by the relay all the same."""
        asked = {
            "packages": str(PACKAGES),
            "url": self.node.url.partition("/?")[0],
            "room": "probe",
            "key": self.node.key,
            "count": MESSAGES,
        }
        command = ["node", str(SCRIPT), json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        for told in json.loads(done.stdout):
            self.assertEqual(told["pair"]["local"]["type"], "relay")
            self.assertIn("invalid_candidate", told["errors"])
        counts = self.network.counts()
        self.assertGreater(counts["to the sfu"], 0)
        self.assertEqual(counts["from the sfu"], 0)
        self.assertGreater(counts["to turn"], MESSAGES)
        self.assertGreater(counts["from turn"], MESSAGES)
