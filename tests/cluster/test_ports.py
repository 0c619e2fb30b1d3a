"""Blocks of ports: never two holders on one host, whoever asks and when."""

from __future__ import annotations

import socket

from attrs import evolve
from sqlalchemy import select
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import MEDIA, RELAY, SIGNALING, Blocks
from orama.cluster.ports import bindable
from orama.settings import Settings, SfuSettings
from orama.store.tables import webrtc_port_allocations as table
from tests.cluster.nodes import RushingClock, StoredNode
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite

FIRST = Blocks((30000, 30000), (20000, 20499), (49152, 49951))
SECOND = Blocks((30001, 30001), (20500, 20999), (49952, 50751))


class PortBlocksTests(DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.clock = RushingClock()
        self.clock.advance(1_800_000_000)
        self.node = await StoredNode(self, self.database, self.clock).join()
        for name in ("one", "two", "three"):
            await self.node.namespaces.create(name, webrtc=False)

    async def blocks(self, name: str, node: StoredNode | None = None) -> Blocks:
        desired = (await self.node.namespaces.desired(name))[name]
        return desired.of((node or self.node).node_id)

    async def test_lowest_free(self) -> None:
        """The lowest free block of each kind; a returned one goes to the next who asks."""
        await self.node.namespaces.enable("one")
        await self.node.namespaces.enable("two")
        self.assertEqual((await self.blocks("one"), await self.blocks("two")), (FIRST, SECOND))
        await self.node.namespaces.disable("one")
        self.assertEqual(await self.node.namespaces.desired("one"), {})
        await self.node.namespaces.enable("three")
        self.assertEqual(await self.blocks("three"), FIRST)

    async def test_busy(self) -> None:
        """A block whose first port another program has is passed over."""
        self.node.busy.update({(MEDIA, 20000), (RELAY, 49152), (SIGNALING, 30000)})
        await self.node.namespaces.enable("one")
        self.assertEqual(await self.blocks("one"), SECOND)

    async def test_ten_at_once_from_three_nodes(self) -> None:
        """Ten namespaces enabled at once from three nodes get disjoint blocks on every host."""
        among = {self.node.node_id: self.node}
        nodes = [self.node]
        for number in (2, 3):
            nodes.append(
                await StoredNode(
                    self,
                    self.database,
                    self.clock,
                    node_id=f"node-{number}",
                    host="127.0.0.1" if number == 2 else "10.0.0.3",
                    seal=self.node.seal,
                    among=among,
                ).join()
            )
        self.node._among.update(among)
        names = [f"tenant-{number}" for number in range(10)]
        for name in names:
            await self.node.namespaces.create(name, webrtc=False)
        await gatherResults(
            [ensureDeferred(nodes[number % 3].namespaces.enable(name)) for number, name in enumerate(names)]
        )
        held: list[tuple[str, str, int]] = []
        for name in names:
            for node in nodes:
                blocks = await self.blocks(name, node)
                for kind in ("signaling", "media", "relay"):
                    block = getattr(blocks, kind)
                    held += [(node.host, kind, block[0])] if block else []
        self.assertEqual(len(held), len(set(held)))
        self.assertEqual(len(held), 10 * (3 + 3 + 2))

    async def test_moved(self) -> None:
        """Ports that cannot be bound any more are changed for others, and no other namespace's."""
        await self.node.namespaces.enable("one")
        await self.node.namespaces.enable("two")
        self.node.busy.update({(SIGNALING, 30000), (MEDIA, 20000), (MEDIA, 21000)})
        await self.node.ports.move_sfu("one")
        moved = Blocks((30002, 30002), (21500, 21999), FIRST.relay)
        self.assertEqual((await self.blocks("one"), await self.blocks("two")), (moved, SECOND))

    async def test_changed_settings(self) -> None:
        """Blocks of other ranges, or of an address that the node had before, are taken anew at the start."""
        await self.node.namespaces.enable("one")
        await self.node.ports.forget_elsewhere()
        self.assertEqual(await self.blocks("one"), FIRST)
        settings = evolve(Settings(), sfu=SfuSettings(media_ports=(21000, 21999)))
        changed = StoredNode(self, self.database, self.clock, settings)
        await changed.ports.forget_elsewhere()
        self.assertEqual(await self.blocks("one"), evolve(FIRST, media=(21000, 21499)))
        moved = StoredNode(self, self.database, self.clock, settings, host="10.0.0.7")
        await moved.ports.forget_elsewhere()
        mine = select(table.c.host).where(table.c.namespace == "one")
        hosts = await self.database.read(lambda connection: connection.execute(mine).scalars().all())
        self.assertEqual(set(hosts), {"10.0.0.7"})


class SQLitePortBlocksTests(OnSQLite, PortBlocksTests):
    pass


class PostgresPortBlocksTests(OnPostgres, PortBlocksTests):
    pass


class RqlitePortBlocksTests(OnRqlite, PortBlocksTests):
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
