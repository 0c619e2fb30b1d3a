"""Rooms that are here against rows that say so: a node that has lost one finds out, and nothing stays behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import create_engine
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.claims import ORPHANS_EVERY, RoomClaims, RoomName
from orama.cluster.rooms import RoomDirectory, RoomRecord
from orama.errors import NotFound, Unavailable
from orama.store.tables import metadata
from tests.cluster.test_rooms import Nodes, add_namespace
from tests.store.databases import DatabaseCase, OnSQLite

LINGER = 60.0


class Sfu:
    """The SFU of one node: rooms and how many are in each."""

    def __init__(self, nodes: Nodes, database: Any, clock: Any) -> None:
        self.nodes = nodes
        self.directory = RoomDirectory(database, nodes, clock, 100, nodes.places)
        self.rooms: dict[RoomName, int] = {}
        self.gone: list[tuple[str, str]] = []
        self.claims = RoomClaims(
            self.directory,
            clock,
            1.0,
            LINGER,
            lambda: self.rooms,
            lambda *name: self.end("lost", name),
            lambda *name: self.end("closed", name),
        )

    def end(self, how: str, name: RoomName) -> None:
        del self.rooms[name]
        self.gone.append((how, name[1]))


class ClaimsTests(OnSQLite, DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        await add_namespace(self.database, "tenant")
        self.one, self.two = (Sfu(Nodes(name), self.database, self.clock) for name in ("node-1", "node-2"))

    async def joined(self, sfu: Sfu, room_id: str = "r", participants: int = 1) -> None:
        record = await sfu.directory.claim("tenant", room_id)
        self.assertEqual(record.node_id, sfu.nodes.node_id)
        sfu.rooms["tenant", room_id] = participants

    async def rooms(self) -> dict[str, tuple[str, int]]:
        return {room.room_id: (room.node_id, room.participants) for room in await self.one.directory.list("tenant")}

    async def test_counts(self) -> None:
        """How many are in a room is written when it has changed."""
        await self.joined(self.one, participants=3)
        await self.one.claims.look()
        self.assertEqual(await self.rooms(), {"r": ("node-1", 3)})
        self.one.rooms["tenant", "r"] = 2
        await self.one.claims.look()
        self.assertEqual(await self.rooms(), {"r": ("node-1", 2)})

    async def test_lost(self) -> None:
        """A node that was taken for dead gives up the rooms that others have taken over, and keeps the rest."""
        for room_id in ("kept", "taken"):
            await self.joined(self.one, room_id)
        self.two.nodes.dead.add("node-1")
        await self.joined(self.two, "taken")
        for _ in range(2):
            await self.one.claims.look()
        self.assertEqual(self.one.gone, [("lost", "taken")])
        self.assertEqual(list(self.one.rooms), [("tenant", "kept")])
        for _ in range(2):
            await self.two.claims.look()
        self.assertEqual(self.two.gone, [])

    async def test_closed_elsewhere(self) -> None:
        """A room whose row was deleted is closed."""
        await self.joined(self.one)
        await self.two.directory.delete("tenant", "r")
        for _ in range(2):
            await self.one.claims.look()
        self.assertEqual(self.one.gone, [("closed", "r")])

    async def test_a_claim_that_crosses(self) -> None:
        """A row that comes while we look, or that an old leader does not show yet, is no reason to close anything."""
        self.one.rooms["tenant", "r"] = 1
        await self.one.claims.look()
        await self.joined(self.one)
        for _ in range(2):
            await self.one.claims.look()
        self.assertEqual(self.one.gone, [])

    async def test_row_without_a_room(self) -> None:
        """A room that was made for us and that nobody came to goes after as long as an empty room stays."""
        await self.one.directory.claim("tenant", "r", explicit=True)
        for seconds in (0, 59):
            self.clock.advance(seconds)
            await self.one.claims.look()
            self.assertEqual(await self.rooms(), {"r": ("node-1", 0)})
        self.clock.advance(1)
        await self.one.claims.look()
        self.assertEqual(await self.rooms(), {})

    async def test_rows_of_the_dead(self) -> None:
        """What a dead node leaves goes likewise, unless somebody takes it over or the node is back."""
        for room_id in ("left", "taken"):
            await self.joined(self.two, room_id)
        self.one.nodes.dead.add("node-2")
        await self.one.claims.look()
        self.clock.advance(LINGER)
        await self.joined(self.one, "taken")
        for _ in range(ORPHANS_EVERY):
            await self.one.claims.look()
        self.assertEqual(await self.rooms(), {"taken": ("node-1", 1)})

    async def test_database_away(self) -> None:
        """While the database does not answer nothing is concluded, and the looking goes on."""
        await self.joined(self.one)
        self.one.claims.startService()
        await self.database.stop()
        for _ in range(3):
            self.clock.advance(1)
        with self.assertRaises(Unavailable):
            await self.one.claims.look()
        await self.one.claims.stopService()
        self.assertEqual(self.one.gone, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Cluster(RuleBasedStateMachine):
    """Three nodes over one database, in any order of joins, deaths, returns, drains and looks.

    A node can be cut off (it believes the others dead and is believed dead), crash between any two steps, and come
    back; whoever joins goes where the claim says and, when nobody is there, says so.
    """

    names = st.sampled_from(["node-1", "node-2", "node-3"])
    rooms_ids = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.directory = tempfile.TemporaryDirectory(dir=Path.cwd())
        self.database = _Immediate(f"sqlite:///{self.directory.name}/cluster.sqlite")
        self.sfus: dict[str, Sfu] = {}

    @initialize()
    def begin(self) -> None:
        self.run(add_namespace(self.database, "tenant"))  # type: ignore[arg-type]
        for name in ("node-1", "node-2", "node-3"):
            self.sfus[name] = Sfu(Nodes(name), self.database, self.clock)
        #: Processes that do not run.
        self.down: set[str] = set()
        #: Whom everybody else takes for dead though they run.
        self.cut: set[str] = set()

    def teardown(self) -> None:
        if self.sfus:
            self.settle()
        self.database.close()
        self.directory.cleanup()

    @staticmethod
    def run(doing: Any) -> Any:
        """The result of a coroutine that never has to wait."""
        try:
            doing.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("it waits")

    def known(self) -> None:
        """Everybody learns who lives."""
        for name, sfu in self.sfus.items():
            others = set(self.sfus) - {name}
            sfu.nodes.dead = others if name in self.cut else (self.down | self.cut) - {name}

    @rule(gateways=st.permutations(["node-1", "node-2", "node-3"]), room_id=rooms_ids)
    def crowd(self, gateways: list[str], room_id: str) -> None:
        """Somebody joins at every node."""
        for gateway in gateways:
            self.join(gateway, room_id)

    @rule(gateway=names, room_id=rooms_ids)
    def join(self, gateway: str, room_id: str) -> None:
        if gateway in self.down:
            return
        gone: set[str] = set()
        for _ in range(5):
            try:
                record = self.run(self.sfus[gateway].directory.claim("tenant", room_id, gone=gone))
            except Unavailable:
                return
            owner = record.node_id
            if owner in self.down:
                gone.add(owner)
                continue
            if owner != gateway:
                try:  # the owner looks for itself before it lets anybody in
                    there = self.run(self.sfus[owner].directory.claim("tenant", room_id))
                except Unavailable:
                    return
                if there.node_id != owner:
                    continue
            rooms = self.sfus[owner].rooms
            rooms["tenant", room_id] = rooms.get(("tenant", room_id), 0) + 1
            return

    @rule(name=names, room_id=rooms_ids)
    def empty(self, name: str, room_id: str) -> None:
        if name not in self.down and self.sfus[name].rooms.pop(("tenant", room_id), None) is not None:
            self.run(self.sfus[name].directory.release("tenant", room_id))

    @rule(name=names, room_id=rooms_ids)
    def delete(self, name: str, room_id: str) -> None:
        if name not in self.down:
            try:
                self.run(self.sfus[name].directory.delete("tenant", room_id))
            except NotFound:
                pass

    @rule(name=names, noticed=st.booleans())
    def crash(self, name: str, noticed: bool) -> None:
        self.down.add(name)
        self.cut.discard(name)
        self.sfus[name] = Sfu(self.sfus[name].nodes, self.database, self.clock)
        if noticed:
            self.known()

    @rule(name=names)
    def restart(self, name: str) -> None:
        if name in self.down:
            self.down.remove(name)
            self.run(self.sfus[name].directory.start())
            self.known()

    @rule(name=names)
    def cut_off(self, name: str) -> None:
        if name not in self.down:
            self.cut.add(name)
            self.known()

    @rule(name=names)
    def heal(self, name: str) -> None:
        self.cut.discard(name)
        self.known()

    @rule(name=names, draining=st.booleans())
    def drain(self, name: str, draining: bool) -> None:
        for sfu in self.sfus.values():
            sfu.nodes.draining = sfu.nodes.draining | {name} if draining else sfu.nodes.draining - {name}

    @rule(name=names, seconds=st.sampled_from([0.0, 1.0, 61.0]))
    def look(self, name: str, seconds: float) -> None:
        self.clock.advance(seconds)
        if name not in self.down and name not in self.cut:
            self.run(self.sfus[name].claims.look())

    @rule()
    def settle(self) -> None:
        """With everybody back and two looks of each, every room is where its row says, and nowhere else."""
        for name in tuple(self.down):
            self.restart(name)
        self.cut.clear()
        self.known()
        for _ in range(2):
            for sfu in self.sfus.values():
                self.run(sfu.claims.look())
        believed = [(room, name) for name, sfu in self.sfus.items() for room in sfu.rooms]
        self.assert_equal(len(believed), len({room for room, _ in believed}))
        rows = {(row.namespace, row.room_id): row for row in self.run(self.sfus["node-1"].directory.list("tenant"))}
        for room, name in believed:
            row: RoomRecord = rows[room]
            self.assert_equal((row.node_id, row.participants), (name, self.sfus[name].rooms[room]))

    @staticmethod
    def assert_equal(one: object, other: object) -> None:
        assert one == other, f"{one} is not {other}"


class _Immediate:
    """A database that answers at once: the real one's statements without its threads."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        metadata.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def read(self, work: Any) -> Any:
        with self._engine.connect() as connection:
            return succeed(work(connection))

    def write(self, *statements: Any) -> Any:
        with self._engine.begin() as connection:
            kept = {"preserve_rowcount": True}
            return succeed([connection.execute(each, execution_options=kept).rowcount for each in statements])


class ClusterTests(SynchronousTestCase):
    def test_any_history(self) -> None:
        """After any history of crashes, cuts and drains two live nodes never go on believing in one room."""
        options = settings(
            max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(Cluster, settings=options)
