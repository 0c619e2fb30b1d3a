"""The relay is enforced by the server, not by the client's good will: datagrams are counted on every leg."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.browser.chromium import MISSING, Chromium
from tests.browser.files import Files
from tests.browser.netns import Network, available, node_options
from tests.browser.stage import directory, end
from tests.node import NodeProcess


class RelayEnforcedTests(SynchronousTestCase):
    skip = MISSING or None

    def setUp(self) -> None:
        if reason := available():
            raise SkipTest(reason)
        self.network = Network()
        self.addCleanup(self.network.close)
        inside = self.network.inside()
        inside.__enter__()
        self.addCleanup(inside.__exit__, None, None, None)
        self.files = Files()
        self.addCleanup(self.files.close)
        origins = f'[limits]\norigins = ["{self.files.origin}"]\n'
        self.node = NodeProcess(directory() / "enforced", *node_options(), config=origins).start()
        self.addCleanup(end, self.node)
        self.browser = Chromium()
        self.addCleanup(self.browser.quit)

    def call(self, policy: str) -> dict[str, int]:
        """Two bare clients see and hear each other; the datagrams of that."""
        base = self.node.url.partition("/?")[0]
        asked = {"node": base, "key": self.node.key, "room": policy, "policy": policy, "transport": "udp"}
        address = f"{self.files.origin}/bare.html?{urlencode(asked, quote_via=quote)}"
        pages = [self.browser.page().open(address) for _ in range(2)]
        for page in pages:
            self.assertEqual(page.media(audio=1, video=1)["local"], {"type": "relay", "relayProtocol": "udp"})
        faults = [fault for page in pages for fault in page.run("return faults")]
        self.assertEqual(any("invalid_candidate" in fault for fault in faults), policy == "all", faults)
        counts = self.network.counts()
        for page in pages:
            page.close()
        return counts

    def test_willing(self) -> None:
        """With ``iceTransportPolicy: relay`` not one datagram goes anywhere but to and from TURN."""
        counts = self.call("relay")
        self.assertEqual((counts["to the sfu"], counts["from the sfu"]), (0, 0))
        self.assertGreater(counts["to turn"], 200)
        self.assertGreater(counts["from turn"], 200)

    def test_unwilling(self) -> None:
        """With ``iceTransportPolicy: all`` the client tries the direct way, gets no answer, and talks by the relay."""
        counts = self.call("all")
        self.assertGreater(counts["to the sfu"], 0)
        self.assertEqual(counts["from the sfu"], 0)
        self.assertGreater(counts["to turn"], 200)
        self.assertGreater(counts["from turn"], 200)
