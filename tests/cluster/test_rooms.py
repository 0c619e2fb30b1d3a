"""The room directory: claims of one node and of several, and what becomes of them."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen
from sqlalchemy import String, insert, text, update
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from orama.cluster.rooms import LocalNode, Registry, RoomDirectory
from orama.errors import Conflict, NotFound, OramaError, Unavailable
from orama.store import tables
from orama.store.database import Database
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite


@frozen
class Load:
    streams: int = 0


@frozen
class Somewhere:
    """A node, and the place of its SFU."""

    node_id: str
    capacity: Load = Load()
    ip: str = "127.0.0.1"
    signaling_port: int = 0


@define
class Nodes:
    """What one node knows of all of them."""

    node_id: str
    all: tuple[str, ...] = ("node-1", "node-2", "node-3")
    dead: set[str] = field(factory=set)
    draining: set[str] = field(factory=set)
    streams: dict[str, int] = field(factory=dict)
    #: Nodes that have begun to drain since we looked.
    late: set[str] = field(factory=set)
    #: Nodes with an SFU for the namespace.
    sfus: tuple[str, ...] = ("node-1", "node-2", "node-3")

    def alive(self, node_id: str) -> bool:
        return node_id not in self.dead

    def active(self) -> tuple[Somewhere, ...]:
        up = (name for name in self.all if name not in self.dead | self.draining)
        return tuple(Somewhere(name, Load(self.streams.get(name, 0))) for name in up)

    async def read(self) -> None:
        self.draining |= self.late

    def places(self, namespace: str) -> tuple[Somewhere, ...]:
        return tuple(map(Somewhere, self.sfus))


async def add_namespace(database: Database, name: str) -> None:
    """*name*, with WebRTC."""
    await database.write(
        insert(tables.namespaces).values(name=name, created_at=0.0),
        insert(tables.namespace_webrtc_config).values(
            namespace=name, enabled=True, rooms_on_join=True, sfu_node_count=3, turn_node_count=2
        ),
    )


class RoomsCase(DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        await add_namespace(self.database, "tenant")
        self.rooms = self.directory(LocalNode("node-1"))

    def directory(self, registry: Registry, **options: Any) -> RoomDirectory:
        return RoomDirectory(self.database, registry, self.clock, 100, **options)

    def member(self, node_id: str, **known: Any) -> tuple[Nodes, RoomDirectory]:
        nodes = Nodes(node_id, **known)
        return nodes, self.directory(nodes, places=nodes.places)

    async def execute(self, statement: str) -> None:
        await self.database.write(text(statement))

    async def refused(self, kind: type[OramaError], code: str, doing: Any) -> None:
        with self.assertRaises(kind) as caught:
            await doing
        self.assertEqual(caught.exception.code, code)


class RoomDirectoryTests(RoomsCase):
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

    async def test_new_owner(self) -> None:
        """A node that has been given the SFU since we looked keeps its rooms: who would take one over looks first."""
        _, its = self.member("node-3")
        room = await its.claim("tenant", "r")
        nodes = Nodes("node-1", sfus=("node-1", "node-2"))

        async def look() -> None:
            nodes.sfus = ("node-1", "node-2", "node-3")

        ours = self.directory(nodes, places=nodes.places, refresh=look)
        self.assertEqual(await ours.claim("tenant", "r"), room)

    async def test_one_node_wins(self) -> None:
        """Whoever joins first, on whichever node: all are sent to the same one."""
        members = [self.member(name)[1] for name in ("node-1", "node-2", "node-3")]
        found = await gatherResults([ensureDeferred(rooms.claim("tenant", "r")) for rooms in members for _ in range(5)])
        self.assertEqual(len({room.node_id for room in found}), 1)

    async def test_one_explicit_wins(self) -> None:
        """Of all who ask for the same new room at once, one gets it."""
        members = [self.member(name)[1] for name in ("node-1", "node-2", "node-3")]

        async def ask(rooms: RoomDirectory) -> str:
            try:
                return (await rooms.claim("tenant", "r", explicit=True)).node_id
            except Conflict:
                return ""

        found = await gatherResults([ensureDeferred(ask(rooms)) for rooms in members for _ in range(3)])
        self.assertEqual(sum(bool(node_id) for node_id in found), 1)

    async def test_rooms_on_join_off(self) -> None:
        """Where joining makes no rooms, one that was made explicitly can be joined."""
        await self.execute("UPDATE namespace_webrtc_config SET rooms_on_join = false")
        await self.refused(NotFound, "room_not_found", self.rooms.claim("tenant", "r"))
        room = await self.rooms.claim("tenant", "r", explicit=True)
        self.assertEqual(await self.rooms.claim("tenant", "r"), room)

    async def test_not_enabled(self) -> None:
        """There is no room where WebRTC is not enabled, nor where there is no namespace."""
        await self.execute("UPDATE namespace_webrtc_config SET enabled = false")
        for explicit in (False, True):
            doing = self.rooms.claim("tenant", "r", explicit=explicit)
            await self.refused(NotFound, "webrtc_not_enabled", doing)
        await self.refused(NotFound, "webrtc_not_enabled", self.rooms.claim("nobody", "r"))

    async def test_list(self) -> None:
        """A namespace sees its own rooms, the oldest first."""
        await add_namespace(self.database, "other")
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

    async def test_release_is_for_our_own(self) -> None:
        """A node releases no room that has become another's; deleting finds it wherever it is."""
        _, other = self.member("node-2")
        room = await other.claim("tenant", "r")
        self.assertFalse(await self.rooms.release("tenant", "r"))
        self.assertEqual(await self.rooms.delete("tenant", "r"), room)
        await self.refused(NotFound, "room_not_found", self.rooms.delete("tenant", "r"))

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
        """A node writes how many are in its rooms, for the others to see; nobody is in those of a dead node."""
        nodes, other = self.member("node-2")
        await self.rooms.claim("tenant", "r")
        await self.rooms.count("tenant", "r", 3)
        await other.count("tenant", "r", 9)
        self.assertEqual([room.participants for room in await other.list("tenant")], [3])
        nodes.dead.add("node-1")
        self.assertEqual([room.participants for room in await other.list("tenant")], [0])

    async def test_start(self) -> None:
        """A node that starts has no rooms yet; those of others stay."""
        _, other = self.member("node-2")
        await self.rooms.claim("tenant", "mine")
        await other.claim("tenant", "theirs")
        await self.rooms.start()
        self.assertEqual([room.room_id for room in await self.rooms.list("tenant")], ["theirs"])

    async def test_forget(self) -> None:
        """An SFU that starts has none of its namespace."""
        await add_namespace(self.database, "other")
        for namespace in ("tenant", "other"):
            await self.rooms.claim(namespace, "r")
        await self.rooms.forget("tenant")
        self.assertEqual(list(await self.rooms.mine()), [("other", "r")])


class OwnerTests(RoomsCase):
    """Which node gets a room, and when it loses it."""

    async def setUp(self) -> None:
        await super().setUp()
        self.nodes, self.rooms = self.member("node-1")

    async def owner(self, room_id: str = "r", gone: tuple[str, ...] = ()) -> str:
        return (await self.rooms.claim("tenant", room_id, gone=gone)).node_id

    async def test_here_first(self) -> None:
        """The node that is asked takes the room when it has an SFU of the namespace, however busy it is."""
        self.nodes.streams["node-1"] = 1000
        self.assertEqual(await self.owner(), "node-1")

    async def test_the_least_busy(self) -> None:
        """Otherwise the one with the fewest streams does."""
        self.nodes.sfus = ("node-2", "node-3")
        self.nodes.streams.update({"node-2": 5, "node-3": 4})
        self.assertEqual(await self.owner("a"), "node-3")
        self.nodes.streams["node-3"] = 6
        self.assertEqual(await self.owner("b"), "node-2")
        self.assertEqual(await self.owner("a"), "node-3")

    async def test_draining_here(self) -> None:
        """A node that is to be emptied gives its rooms away, new ones and those that it has."""
        self.assertEqual(await self.owner("old"), "node-1")
        self.nodes.draining.add("node-1")
        self.assertEqual(await self.owner("new"), "node-2")
        self.assertEqual(await self.owner("old"), "node-2")

    async def test_drains_since(self) -> None:
        """So does another node that drains, or has left, since the last heartbeat told us of it."""
        for number, left in enumerate(({"state": "draining"}, {"last_seen": 0.0})):
            owner = f"node-{2 + number}"
            _, other = self.member(owner)
            await other.claim("tenant", owner)
            row: dict[str, Any] = {column.name: "" for column in tables.nodes.c}
            row |= {column.name: 1 for column in tables.nodes.c if not isinstance(column.type, String)}
            row |= {"id": owner, "state": "active"}
            await self.database.write(insert(tables.nodes).values(**row))
            self.assertEqual(await self.owner(owner), owner)
            self.nodes.late.add(owner)
            self.assertEqual(await self.owner(owner), owner)
            await self.database.write(update(tables.nodes).where(tables.nodes.c.id == owner).values(**left))
            self.assertEqual(await self.owner(owner), "node-1")

    async def test_nobody_else(self) -> None:
        """When no other node could have a room, it stays where its people are, and no new one is made."""
        self.assertEqual(await self.owner("old"), "node-1")
        self.nodes.draining.update(self.nodes.all)
        self.assertEqual(await self.owner("old"), "node-1")
        await self.refused(Unavailable, "no_sfu", self.owner("new"))

    async def test_dead_owner(self) -> None:
        """A dead node loses its room to the next who joins, with the room's limit and age, and nobody in it."""
        _, other = self.member("node-2")
        room = await other.claim("tenant", "r", 7, explicit=True)
        await other.count("tenant", "r", 5)
        self.clock.advance(5)
        self.assertEqual(await self.owner(), "node-2")
        self.nodes.dead.add("node-2")
        taken = await self.rooms.claim("tenant", "r")
        self.assertEqual((taken.node_id, taken.participants), ("node-1", 0))
        self.assertEqual((taken.max_participants, taken.created_at), (7, room.created_at))
        self.assertEqual(await self.rooms.find("tenant", "r"), taken)

    async def test_owner_whose_sfu_is_gone(self) -> None:
        """So does one that nobody listens on, whatever else is known of it: also when it is this one."""
        _, other = self.member("node-2")
        await other.claim("tenant", "r")
        self.assertEqual(await self.owner(gone=("node-2",)), "node-1")
        self.assertEqual(await self.owner(gone=("node-1", "node-2")), "node-3")
        await self.refused(Unavailable, "no_sfu", self.owner(gone=self.nodes.all))

    async def test_owner_without_the_role(self) -> None:
        """So does one that is no SFU of the namespace any more."""
        _, other = self.member("node-2")
        await other.claim("tenant", "r")
        self.nodes.sfus = ("node-1", "node-3")
        self.assertEqual(await self.owner(), "node-1")

    async def test_one_heir(self) -> None:
        """When all take over at once, one gets it and the others learn who."""
        _, dead = self.member("node-9", sfus=("node-9",), all=("node-9",))
        await dead.claim("tenant", "r")
        heirs = [self.member(name, dead={"node-9"})[1] for name in ("node-1", "node-2", "node-3")]
        found = await gatherResults([ensureDeferred(rooms.claim("tenant", "r")) for rooms in heirs for _ in range(4)])
        self.assertEqual(len({room.node_id for room in found}), 1)

    async def test_back_and_forth(self) -> None:
        """Nodes that disagree about who lives come to an end."""
        heirs = [
            self.member("node-1", dead={"node-2", "node-3"})[1],
            self.member("node-2", dead={"node-1", "node-3"})[1],
        ]
        claims: list[Deferred[Any]] = [ensureDeferred(rooms.claim("tenant", "r")) for rooms in heirs for _ in range(10)]
        for room in await gatherResults(claims):
            self.assertIn(room.node_id, ("node-1", "node-2"))

    async def test_orphans(self) -> None:
        """What dead nodes have left can be found, and forgotten unless somebody has taken it."""
        _, other = self.member("node-2")
        for room_id in ("a", "b"):
            await other.claim("tenant", room_id)
        self.assertEqual(await self.rooms.orphans(), [])
        self.nodes.dead.add("node-2")
        first, second = sorted(await self.rooms.orphans(), key=lambda room: room.room_id)
        await self.rooms.claim("tenant", "a")
        self.assertEqual((await self.rooms.remove(first), await self.rooms.remove(second)), (False, True))


class SQLiteRoomDirectoryTests(OnSQLite, RoomDirectoryTests):
    pass


class PostgresRoomDirectoryTests(OnPostgres, RoomDirectoryTests):
    pass


class SQLiteOwnerTests(OnSQLite, OwnerTests):
    pass


class PostgresOwnerTests(OnPostgres, OwnerTests):
    pass


class RqliteRoomDirectoryTests(OnRqlite, RoomDirectoryTests):
    pass


class RqliteOwnerTests(OnRqlite, OwnerTests):
    pass


del RoomsCase, RoomDirectoryTests, OwnerTests
