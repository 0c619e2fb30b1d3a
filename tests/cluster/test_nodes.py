"""Who lives, who leads, and how nodes leave: on skewed clocks, with a database that is away for a while."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.nodes import ACTIVE, DRAINED, DRAINING, Capacity, NodeRecord, NodeRegistry, machine
from orama.cluster.placement import SFU
from orama.errors import Conflict, NotFound, OramaError, Unavailable
from orama.store import tables
from tests.cluster.world import SkewedClock, World
from tests.store.memory import Fault, MemoryDatabase, Store

HEARTBEAT = 2.0
CAPACITY = Capacity(2, 0.5, 1000, 400, 3, 17)
T = TypeVar("T")


class Machine:
    """A node with a clock that is wrong by *skew* seconds."""

    def __init__(self, store: Store, base: Clock, name: str, skew: float) -> None:
        self.name = name
        self.database = MemoryDatabase(store)
        self.registry = NodeRegistry(self.database, name, SkewedClock(base, skew), HEARTBEAT)
        ip = "10.0.0.1"
        self.record = NodeRecord(name, ip, 6002, "192.0.2.1", ip, "http://n", 3478, 5349, "1")


class NodeRegistryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.store = Store()
        self.addCleanup(self.store.close)
        self.machines = [
            Machine(self.store, self.clock, name, skew) for name, skew in (("a", -7200), ("b", 0), ("c", 86400))
        ]
        self.a, self.b, self.c = self.machines
        for each in self.machines:
            self.do(each.registry.join(each.record))
        self.beats()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def refused(self, kind: type[OramaError], code: str, work: Coroutine[Any, Any, Any]) -> None:
        error = self.failureResultOf(Deferred.fromCoroutine(work), kind).value
        self.assertEqual(error.code, code)

    def beats(self, *beating: Machine, count: int = 1) -> None:
        """Heartbeats pass, in which those machines beat; all of them where none is named."""
        for _ in range(count):
            self.clock.advance(HEARTBEAT)
            for each in beating or self.machines:
                Deferred.fromCoroutine(each.registry.beat(CAPACITY)).addErrback(
                    lambda failure: failure.trap(Unavailable)
                )

    def alive(self, machine: Machine) -> str:
        return "".join(sorted(node.node_id for node in machine.registry.live()))

    def test_alive(self) -> None:
        """Everybody who changes his row lives, however wrong the clocks are; what he says of himself is seen."""
        self.beats(count=5)
        self.assertEqual([self.alive(each) for each in self.machines], ["abc"] * 3)
        found = self.a.registry.get("c")
        assert found is not None
        self.assertEqual(found.capacity, CAPACITY)
        self.assertEqual(found.public_ip, "192.0.2.1")

    def test_dead(self) -> None:
        """Who is silent is dead within two heartbeats after that was seen, and lives with his next one."""
        self.beats(self.a, self.b)
        self.assertEqual(self.alive(self.a), "abc")
        self.beats(self.a, self.b, count=2)
        self.assertEqual([self.alive(each) for each in (self.a, self.b)], ["ab"] * 2)
        self.beats(count=2)
        self.assertEqual(self.alive(self.a), "abc")

    def test_itself(self) -> None:
        """Whoever asks lives."""
        self.clock.advance(3600)
        self.assertTrue(self.a.registry.alive("a"))

    def test_leave(self) -> None:
        """Who leaves on purpose is gone at once, and his next heartbeats only read."""
        self.do(self.c.registry.leave())
        self.do(self.a.registry.read())
        self.assertEqual(self.alive(self.a), "ab")
        self.beats(count=2)
        self.assertEqual(self.alive(self.a), "ab")
        self.do(self.c.registry.join(self.c.record))
        self.do(self.a.registry.read())
        self.assertEqual(self.alive(self.a), "abc")

    def test_database_away(self) -> None:
        """While nobody can be seen nobody is judged, and afterwards everybody gets a fresh start."""
        for each in self.machines:
            each.database.away = True
        self.beats(count=30)
        self.assertEqual([self.alive(each) for each in self.machines], ["abc"] * 3)
        for each in self.machines:
            each.database.away = False
        self.beats(self.a)
        self.assertEqual(self.alive(self.a), "abc")
        self.beats(self.a, self.b)
        self.assertEqual(self.alive(self.a), "abc")
        self.beats(self.a, self.b, count=2)
        self.assertEqual(self.alive(self.a), "ab")

    def test_cut_off(self) -> None:
        """Who alone has no database is dead to the others, and judges nobody himself."""
        self.c.database.away = True
        self.beats(count=4)
        self.assertEqual(self.alive(self.a), "ab")
        self.assertEqual(self.alive(self.c), "abc")

    def test_silence(self) -> None:
        """Silence is counted from the last sign; of somebody unknown it is infinite."""
        self.beats(self.a, count=5)
        self.assertGreaterEqual(self.a.registry.silence("b"), 4 * HEARTBEAT)
        self.assertEqual(self.a.registry.silence("nobody"), float("inf"))
        self.assertFalse(self.a.registry.alive("nobody"))

    def test_leads(self) -> None:
        """The first active one that lives leads, and there is one: when it is drained or dies, the next does."""
        self.assertEqual([each.registry.leads for each in self.machines], [True, False, False])
        self.do(self.a.registry.set_draining("a", True))
        self.beats()
        self.assertEqual([each.registry.leads for each in self.machines], [False, True, False])
        self.beats(self.a, self.c, count=4)
        self.assertEqual([each.registry.leads for each in (self.a, self.c)], [False, True])

    def test_leads_where_all_are_draining(self) -> None:
        """Where nobody is active somebody leads all the same."""
        for name in ("a", "b"):
            self.do(self.c.registry.set_draining(name, True))
        gone = tables.nodes.update().where(tables.nodes.c.id == "c").values(state=DRAINING)
        self.store.run(lambda connection: connection.execute(gone))
        self.beats()
        self.assertEqual([each.registry.leads for each in self.machines], [True, False, False])

    def test_drain(self) -> None:
        """A node is draining until it says that it is empty; taken back into use it is active."""
        registry = self.a.registry
        states = []
        for work in (
            registry.set_draining("b", True),
            registry.set_draining("b", True),
            self.b.registry.drained(),
            registry.set_draining("b", True),
            registry.set_draining("b", False),
            self.b.registry.drained(),
        ):
            self.do(work)
            self.do(registry.read())
            found = registry.get("b")
            assert found is not None
            states.append(found.state)
        self.assertEqual(states, [DRAINING, DRAINING, DRAINED, DRAINED, ACTIVE, ACTIVE])
        self.refused(NotFound, "node_not_found", registry.set_draining("nobody", True))

    def test_draining_is_not_forgotten(self) -> None:
        """A heartbeat or a restart does not take a node back into use."""
        self.do(self.a.registry.set_draining("b", True))
        self.beats(count=2)
        self.do(self.b.registry.join(self.b.record))
        self.assertTrue(self.b.registry.draining)
        self.assertEqual([node.node_id for node in self.b.registry.active()], ["a", "c"])

    def test_last_node(self) -> None:
        """The last one that is alive and active cannot be drained."""
        self.do(self.a.registry.set_draining("b", True))
        self.beats(self.a, self.b, count=4)
        self.refused(Conflict, "last_node", self.a.registry.set_draining("a", True))
        self.beats(count=2)
        self.do(self.a.registry.set_draining("a", True))

    def test_rejoin(self) -> None:
        """A node that starts again keeps its place in the order."""
        before = [node.node_id for node in self.b.registry.nodes]
        self.clock.advance(100)
        self.do(self.a.registry.join(self.a.record))
        self.assertEqual([node.node_id for node in self.a.registry.nodes], before)

    def test_unheard(self) -> None:
        """A row that was written unheard is no reason not to join."""
        late = Machine(self.store, self.clock, "d", 0)
        late.database.fault(1, Fault.LOST)
        self.failureResultOf(Deferred.fromCoroutine(late.registry.join(late.record)), Unavailable)
        self.do(late.registry.join(late.record))
        self.assertEqual(self.alive(late), "abcd")

    def test_remove(self) -> None:
        """A dead node goes with all it had; one that is alive or unknown is not removed."""
        self.refused(NotFound, "node_not_found", self.a.registry.remove("nobody"))
        self.refused(Conflict, "node_alive", self.a.registry.remove("c"))
        self.beats(self.a, self.b, count=4)
        self.do(self.a.registry.remove("c"))
        self.assertEqual([node.node_id for node in self.a.registry.nodes], ["a", "b"])
        self.assertFalse(self.a.registry.alive("c"))

    def test_removed_and_back(self) -> None:
        """A node that was removed while it was cut off is a new one with its next heartbeat: active, with no roles."""
        self.do(self.a.registry.set_draining("c", True))
        self.do(self.a.registry.remove("c", force=True))
        self.beats(count=2)
        self.assertEqual(self.alive(self.a), "abc")
        found = self.a.registry.get("c")
        assert found is not None
        self.assertEqual(found.state, ACTIVE)


class RemovalTests(SynchronousTestCase):
    def test_roles_go_on_elsewhere(self) -> None:
        """What a removed node had to do goes to another; when it is back it stops what it still runs."""
        world = World(4)
        self.addCleanup(world.close)
        node = world.node(0)
        world.advance(5.0)
        self.assertEqual(world.run(node, node.namespaces.create("tenant", webrtc=False)), "done")
        self.assertEqual(world.run(node, node.namespaces.enable("tenant")), "done")
        holder = next(each for each in list(world.nodes.values())[1:] if each.up("tenant"))
        holder.database.away = True
        for _ in range(3):
            world.advance(5.0)
        self.assertEqual(world.run(node, node.registry.remove(holder.node_id)), "done")
        left = (tables.webrtc_roles, tables.webrtc_port_allocations, tables.dns_records, tables.webrtc_rooms)
        rows = [row for table in left for row in world.rows(table) if row.node_id == holder.node_id]
        self.assertEqual(rows, [])
        for _ in range(2):
            world.advance(5.0)
        self.assertTrue(holder.up("tenant"), "calls go on while the database is away")
        others = [each for each in world.nodes.values() if each is not holder]
        self.assertEqual([SFU in each.up("tenant") for each in others], [True] * 3)
        holder.database.away = False
        for _ in range(2):
            world.advance(5.0)
        self.assertEqual(holder.up("tenant"), set())


class MachineTests(SynchronousTestCase):
    def test_meminfo(self) -> None:
        """Memory is what the kernel says is there and to be had, in MiB."""
        text = "MemTotal:        4000000 kB\nMemFree:          100000 kB\nMemAvailable:    2048000 kB\n"
        found = machine(3, 17, lambda: text)
        self.assertEqual((found.memory_mb, found.memory_free_mb), (3906, 2000))
        self.assertEqual((found.namespaces, found.streams), (3, 17))
        self.assertGreaterEqual(found.cpus, 1)

    def test_damaged(self) -> None:
        """What cannot be read is nothing, and no error."""
        for text in ("", "MemTotal\n", "MemTotal: x kB\n", "MemTotal:\n"):
            self.assertEqual(machine(0, 0, lambda text=text: text).memory_mb, 0)

        def missing() -> str:
            raise FileNotFoundError

        self.assertEqual(machine(0, 0, missing).memory_free_mb, 0)
