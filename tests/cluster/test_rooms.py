"""The room directory."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from twisted.internet.defer import ensureDeferred, gatherResults

from orama.errors import Conflict, NotFound, OramaError
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnPostgres, OnSQLite


class RoomDirectoryTests(DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.node = StoredNode(self, self.database, self.clock)
        self.rooms = self.node.directory
        await self.node.namespaces.create("tenant")

    async def refused(self, kind: type[OramaError], code: str, doing: Any) -> None:
        with self.assertRaises(kind) as caught:
            await doing
        self.assertEqual(caught.exception.code, code)

    async def test_join_makes_a_room(self) -> None:
        """Joining makes a room here with the default limit; joining again finds it."""
        room = await self.rooms.claim("tenant", "r")
        self.assertEqual((room.node_id, room.max_participants, room.participants), ("node-1", 100, 0))
        self.assertEqual(room.created_at, self.clock.seconds())
        self.clock.advance(10)
        self.assertEqual(await self.rooms.claim("tenant", "r"), room)
        self.assertEqual(await self.rooms.find("tenant", "r"), room)

    async def test_explicit(self) -> None:
        """A room that is asked for by name must be new."""
        room = await self.rooms.claim("tenant", "r", 5, explicit=True)
        self.assertEqual(room.max_participants, 5)
        await self.refused(Conflict, "room_exists", self.rooms.claim("tenant", "r", explicit=True))
        self.assertEqual((await self.rooms.claim("tenant", "r")).max_participants, 5)

    async def test_one_node_wins(self) -> None:
        """Whoever joins first, on whichever node: all are sent to the same one."""
        other = StoredNode(self, self.database, self.clock, node_id="node-2").directory
        found = await gatherResults(
            [ensureDeferred(rooms.claim("tenant", "r")) for rooms in (self.rooms, other) for _ in range(5)]
        )
        self.assertEqual(len({room.node_id for room in found}), 1)

    async def test_rooms_on_join_off(self) -> None:
        """Where joining makes no rooms, one that was made explicitly can be joined."""
        off = text("UPDATE namespace_webrtc_config SET rooms_on_join = false")
        await self.database.transact(lambda connection: connection.execute(off))
        await self.refused(NotFound, "room_not_found", self.rooms.claim("tenant", "r"))
        room = await self.rooms.claim("tenant", "r", explicit=True)
        self.assertEqual(await self.rooms.claim("tenant", "r"), room)

    async def test_not_enabled(self) -> None:
        """There is no room where WebRTC is not enabled, nor where there is no namespace."""
        await self.node.namespaces.disable("tenant")
        for explicit in (False, True):
            doing = self.rooms.claim("tenant", "r", explicit=explicit)
            await self.refused(NotFound, "webrtc_not_enabled", doing)
        await self.refused(NotFound, "webrtc_not_enabled", self.rooms.claim("nobody", "r"))

    async def test_list(self) -> None:
        """A namespace sees its own rooms, the oldest first."""
        await self.node.namespaces.create("other")
        await self.rooms.claim("tenant", "b")
        self.clock.advance(1)
        await self.rooms.claim("tenant", "a")
        await self.rooms.claim("other", "c")
        self.assertEqual([room.room_id for room in await self.rooms.list("tenant")], ["b", "a"])

    async def test_release(self) -> None:
        """A released room is gone; releasing it again says that there was none."""
        await self.rooms.claim("tenant", "r")
        self.assertTrue(await self.rooms.release("tenant", "r"))
        self.assertFalse(await self.rooms.release("tenant", "r"))
        self.assertIsNone(await self.rooms.find("tenant", "r"))

    async def test_release_and_claim_cross(self) -> None:
        """A room that is joined while it is given up has its row afterwards, whichever comes first."""
        for order in (1, -1):
            made: set[str] = set()

            async def join(made: set[str] = made) -> None:
                made.add((await self.rooms.claim("tenant", "r")).room_id)

            async def give_up(made: set[str] = made) -> None:
                await self.rooms.release("tenant", "r", unless=lambda: "r" in made)

            await self.rooms.claim("tenant", "r")
            await gatherResults([ensureDeferred(each()) for each in (join, give_up)[::order]])
            self.assertEqual(made, {"r"})
            self.assertIsNotNone(await self.rooms.find("tenant", "r"))

    async def test_release_unless_it_is_back(self) -> None:
        """A room that is to be kept after all is kept."""
        await self.rooms.claim("tenant", "r")
        self.assertFalse(await self.rooms.release("tenant", "r", unless=lambda: True))
        self.assertIsNotNone(await self.rooms.find("tenant", "r"))

    async def test_count(self) -> None:
        """A node writes how many are in its rooms, for the others to see."""
        other = StoredNode(self, self.database, self.clock, node_id="node-2").directory
        await self.rooms.claim("tenant", "r")
        await self.rooms.count("tenant", "r", 3)
        await other.count("tenant", "r", 9)
        self.assertEqual([room.participants for room in await other.list("tenant")], [3])

    async def test_start(self) -> None:
        """A node that starts has no rooms yet; those of others stay."""
        other = StoredNode(self, self.database, self.clock, node_id="node-2").directory
        await self.rooms.claim("tenant", "mine")
        await other.claim("tenant", "theirs")
        await self.rooms.start()
        self.assertEqual([room.room_id for room in await self.rooms.list("tenant")], ["theirs"])


class SQLiteRoomDirectoryTests(OnSQLite, RoomDirectoryTests):
    pass


class PostgresRoomDirectoryTests(OnPostgres, RoomDirectoryTests):
    pass


del RoomDirectoryTests
