"""Blocks of ports: never two holders on one host, whoever asks and when."""

from __future__ import annotations

import socket

from attrs import evolve
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.ports import MEDIA, RELAY, SIGNALING, Blocks, bindable
from orama.settings import Settings, SfuSettings
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnPostgres, OnSQLite

FIRST = Blocks((30000, 30000), (20000, 20499), (49152, 49951))
SECOND = Blocks((30001, 30001), (20500, 20999), (49952, 50751))


class PortBlocksTests(DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.node = StoredNode(self, self.database, self.clock)
        for name in ("one", "two", "three"):
            await self.node.namespaces.create(name, webrtc=False)

    async def test_lowest_free(self) -> None:
        """The lowest free block of each kind; the same again for who has one; a returned one goes to the next."""
        ports = self.node.ports
        self.assertEqual(await ports.claim("one"), FIRST)
        self.assertEqual(await ports.claim("two"), SECOND)
        self.assertEqual(await ports.claim("one"), FIRST)
        await ports.release("one")
        self.assertIsNone(await ports.of("one"))
        self.assertEqual(await ports.claim("three"), FIRST)

    async def test_busy(self) -> None:
        """A block whose first port another program has is passed over."""
        self.node.busy.update({(MEDIA, 20000), (RELAY, 49152), (SIGNALING, 30000)})
        self.assertEqual(await self.node.ports.claim("one"), SECOND)

    async def test_two_nodes_of_a_host(self) -> None:
        """Two nodes on one host never get one block, even when they ask at the same time."""
        other = StoredNode(self, self.database, self.clock, node_id="node-2")
        claims = [node.ports.claim(name) for name in ("one", "two", "three") for node in (self.node, other)]
        blocks = await gatherResults([ensureDeferred(claim) for claim in claims])
        for kind in ("signaling", "media", "relay"):
            self.assertEqual(len({getattr(block, kind) for block in blocks}), 6)

    async def test_two_hosts(self) -> None:
        """Another host has its own ports."""
        other = StoredNode(self, self.database, self.clock, node_id="node-2", host="10.0.0.2")
        self.assertEqual(await self.node.ports.claim("one"), FIRST)
        self.assertEqual(await other.ports.claim("one"), FIRST)

    async def test_claims_at_once(self) -> None:
        """One namespace claimed twice at the same time has one set of blocks."""
        both = await gatherResults([ensureDeferred(self.node.ports.claim("one")) for _ in range(2)])
        self.assertEqual(both, [FIRST, FIRST])

    async def test_changed_settings(self) -> None:
        """Blocks of other ranges, or of an address that the node had before, are given back at the start."""
        await self.node.ports.claim("one")
        await self.node.ports.forget_elsewhere()
        self.assertEqual(await self.node.ports.of("one"), FIRST)
        settings = evolve(Settings(), sfu=SfuSettings(media_ports=(21000, 21999)))
        changed = StoredNode(self, self.database, self.clock, settings)
        await changed.ports.forget_elsewhere()
        self.assertEqual(await changed.ports.claim("one"), evolve(FIRST, media=(21000, 21499)))
        moved = StoredNode(self, self.database, self.clock, settings, host="10.0.0.7")
        await moved.ports.forget_elsewhere()
        self.assertIsNone(await moved.ports.of("one"))


class SQLitePortBlocksTests(OnSQLite, PortBlocksTests):
    pass


class PostgresPortBlocksTests(OnPostgres, PortBlocksTests):
    pass


del PortBlocksTests


class BindableTests(SynchronousTestCase):
    def test_asks_the_kernel(self) -> None:
        """A port that somebody has is not bindable, by its own transport only."""
        probe = bindable(Settings())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            self.assertFalse(probe(MEDIA, port))
            self.assertFalse(probe(RELAY, port))
            self.assertTrue(probe(SIGNALING, port))
        self.assertTrue(probe(MEDIA, port))
