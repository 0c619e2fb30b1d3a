"""Contract, section 4: what happens by itself, with the times that the contract names."""

from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from tests.contract import turn
from tests.contract.rest import gauges
from tests.contract.signalling import connect, join
from tests.contract.stage import end, shared, started, strict, toml
from tests.node import NodeProcess


class TimeTests(SynchronousTestCase):
    def node_with(self, **tables: str) -> NodeProcess:
        """A node of the test's own."""
        node = started(config=toml(**tables))
        self.addCleanup(end, node)
        return node

    def test_defaults(self) -> None:
        """4408 after 10 s without a join, ``timeout`` 15 s after a socket dropped, a ping after 20 s; and meanwhile
        ``refresh-credentials`` at 80 % of the ttl, again and again, each good for an allocation of the same user.
        """
        node = shared()
        watcher, dropped, silent = join(node, "times"), join(node, "times"), connect(node, "times")
        for client in (watcher, silent):
            self.addCleanup(client.close)
        began = time.monotonic()
        dropped.drop()
        self.refreshed()
        self.assertEqual(silent.until_closed(12), 4408)
        self.assertTrue(9.5 < time.monotonic() - began < 11.5)
        left = watcher.until("peer-left", 10)
        self.assertEqual((left["peerId"], left["reason"]), (dropped.received[0]["peerId"], "timeout"))
        self.assertTrue(14.5 < time.monotonic() - began < 16.5)
        late = connect(node, "times")
        self.addCleanup(late.close)
        late.say("join", resume=dropped.received[0]["resume"])
        self.assertNotEqual(late.until("welcome")["peerId"], dropped.received[0]["peerId"])
        watcher.listen(began + 21.5 - time.monotonic())
        self.assertEqual(len(watcher.pings), 1)
        self.assertTrue(19.5 < watcher.pings[0] - began < 21.5)
        self.assertIsNone(watcher.code)

    def refreshed(self) -> None:
        """Two renewals of credentials with a ttl of 3 s."""
        node = strict()
        client = join(node, "refreshed", userId="ann")
        self.addCleanup(client.close)
        began = time.monotonic()
        first = client.received[1]
        relay = turn.of(first)
        self.addCleanup(relay.release)
        self.assertEqual(relay.allocate().code, 0)
        for number in (1, 2):
            fresh = client.until("refresh-credentials", 5)
            self.assertTrue(2.4 * number - 0.2 < time.monotonic() - began < 2.4 * number + 1.2)
            self.assertEqual(set(fresh), set(first))
            self.assertGreater(fresh["username"], first["username"])
            self.assertEqual(fresh["username"].partition(":")[2], first["username"].partition(":")[2])
        # The allocation lives on: its user may refresh it, with the old credentials and with the new.
        self.assertEqual(relay.request(turn.REFRESH).code, 0)
        relay.username, relay.password = fresh["username"], fresh["password"]
        self.assertEqual(relay.request(turn.REFRESH).code, 0)
        late = turn.of(first)
        self.addCleanup(late.socket.close)
        self.assertEqual(late.allocate().code, 401)

    def test_stalled_reader(self) -> None:
        """Whoever does not read is dropped, and nobody waits for it."""
        node = self.node_with(signaling="send_queue = 65536\nmessage_rate = 100000\nmessage_burst = 100000")
        stalled, other = join(node, "stalled"), join(node, "stalled")
        self.addCleanup(other.close)
        deadline = time.monotonic() + 60
        # Each one is answered with an error that it does not read.
        with self.assertRaises(OSError):
            while time.monotonic() < deadline:
                for _ in range(1000):
                    stalled.say("x" * 40)
                began = time.monotonic()
                other.settled()
                self.assertLess(time.monotonic() - began, 10)
        self.assertEqual(gauges(node, "orama_signaling_dropped_total"), {"orama_signaling_dropped_total": 1})
        other.settled()
