"""node-datachannel (libdatachannel) as an adversary: it leaves the relay wherever it can."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.browser.netns import Network, available, node_options
from tests.browser.stage import directory, end
from tests.node import NodeProcess

PACKAGE = "node-datachannel@0.33"
SCRIPT = Path(__file__).with_name("node_datachannel.mjs")
#: Where npm installs it, once for a checkout.
PACKAGES = Path(__file__).resolve().parent.parent.parent / "build" / "node"
MESSAGES = 200


def install() -> str:
    """Have the package; why not, else."""
    lacking = [name for name in ("node", "npm") if not shutil.which(name)]
    if lacking:
        return f"{' and '.join(lacking)} not installed"
    if not (PACKAGES / "node_modules" / "node-datachannel").is_dir():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(PACKAGES), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"npm could not install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}"
    return ""


class NodeDatachannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reason := install() or available():
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
