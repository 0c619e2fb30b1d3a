"""Enabling and disabling on three nodes, where each write, each start and each answer goes wrong once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.placement import ROLES
from orama.errors import Conflict, PreconditionFailed, Unavailable
from orama.store import tables
from tests.cluster.nodes import RushingClock, StoredNode
from tests.cluster.world import SETTINGS, HostNode, World
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite
from tests.store.memory import Fault

#: What a namespace has while it is enabled.
TABLES = (tables.webrtc_roles, tables.webrtc_port_allocations, tables.dns_records, tables.webrtc_rooms)
#: Nodes on which a namespace needs all three.
NODES = 3


class Cluster:
    """Three nodes, a neighbour that is served, and the tenant that something is done with."""

    def __init__(self) -> None:
        self.world = World(NODES)
        self.asked = self.world.node(0)
        for name in ("neighbour", "tenant"):
            assert self.do(self.asked.namespaces.create(name, webrtc=False)) == "done"
        assert self.enable("neighbour") == "done"
        self.beats()
        self._neighbour = self._all_of("neighbour")

    def do(self, work: Any) -> str:
        return self.world.run(self.asked, work)

    def enable(self, name: str = "tenant") -> str:
        return self.do(self.asked.namespaces.enable(name, "somebody", self._note))

    def disable(self) -> str:
        return self.do(self.asked.namespaces.disable("tenant", self._note))

    def beats(self, count: int = 2) -> None:
        for _ in range(count):
            self.world.advance(SETTINGS.cluster.heartbeat)

    def _note(self, step: str, state: str, text: str) -> None:
        assert step and state in ("done", "waiting", "failed") and text

    # -- what there is ------------------------------------------------------------------------------

    def _all_of(self, name: str) -> tuple[Any, ...]:
        """Rows and running services of a namespace, without what a pass may write anew."""
        rows = [{tuple(row) for row in self.world.rows(table) if row.namespace == name} for table in TABLES]
        config = [row for row in self.world.rows(tables.namespace_webrtc_config) if row.namespace == name]
        return rows, config, [(node.node_id, sorted(node.up(name))) for node in self.world.nodes.values() if node.alive]

    def nothing_left(self) -> str:
        """What there is of the tenant that should not be; and what has become of the neighbour."""
        (config,) = (row for row in self.world.rows(tables.namespace_webrtc_config) if row.namespace == "tenant")
        left = [row for table in TABLES for row in self.world.rows(table) if row.namespace == "tenant"]
        up = [(node.node_id, node.up("tenant")) for node in self.world.nodes.values() if node.up("tenant")]
        if left or up or config.enabled or config.turn_secret_encrypted or config.turn_secret_previous_encrypted:
            return f"{left} {up} {config}"
        return self.neighbour()

    def all_there(self) -> str:
        """What is not as it should be when the tenant is enabled."""
        roles = [row for row in self.world.rows(tables.webrtc_roles) if row.namespace == "tenant"]
        wanted = {(row.role, row.node_id) for row in roles}
        up = {(role, node.node_id) for node in self.world.nodes.values() for role in node.up("tenant")}
        if len(roles) != SETTINGS.cluster.sfu_nodes + SETTINGS.cluster.turn_nodes or wanted != up:
            return f"{roles} {up}"
        return self.neighbour()

    def neighbour(self) -> str:
        """What has changed for the neighbour."""
        now = self._all_of("neighbour")
        return "" if now == self._neighbour else f"{now} was {self._neighbour}"


class EnablementTests(SynchronousTestCase):
    def cluster(self) -> Cluster:
        cluster = Cluster()
        self.addCleanup(cluster.world.close)
        return cluster

    def writes(self, prepare: Callable[[Cluster], object], work: Callable[[Cluster], str]) -> list[tuple[int, int]]:
        """(node, number) of every write of a good run."""
        cluster = self.cluster()
        prepare(cluster)
        before = [node.database.writes for node in cluster.world.nodes.values()]
        self.assertEqual(work(cluster), "done")
        after = [node.database.writes for node in cluster.world.nodes.values()]
        found = [
            (index, number)
            for index, (first, last) in enumerate(zip(before, after, strict=True))
            for number in range(last - first)
        ]
        self.assertGreater(len(found), 1)
        return found

    def faulty(
        self, faults: tuple[Fault, ...], prepare: Callable[[Cluster], object], work: Callable[[Cluster], str]
    ) -> Iterator[tuple[str, Cluster, HostNode, str]]:
        """A cluster for each write that can go wrong, after it went wrong: which one, and the outcome."""
        for index, number in self.writes(prepare, work):
            for fault in faults:
                cluster = self.cluster()
                prepare(cluster)
                node = cluster.world.node(index)
                node.database.fault(number, fault)
                outcome = work(cluster)
                node.database.no_faults()
                yield f"write {number} of {node.node_id} {fault.value}: {outcome}", cluster, node, outcome
                cluster.world.close()

    def test_enable_with_a_write_that_fails(self) -> None:
        """Whatever is not written, or is written unheard: all is there or nothing is, as we were told."""
        for what, cluster, _, outcome in self.faulty((Fault.REFUSED, Fault.LOST), lambda _: None, Cluster.enable):
            self.assertIn(outcome, ("done", "store_unavailable"), what)
            cluster.beats()
            if outcome == "done":
                self.assertEqual(cluster.all_there(), "", what)
                continue
            self.assertEqual(cluster.nothing_left(), "", what)
            self.assertEqual(cluster.enable(), "done", what)
            self.assertEqual(cluster.all_there(), "", what)

    def test_enable_while_the_database_goes(self) -> None:
        """When nothing can be taken back for a while it is afterwards, so that the next attempt is not in its way."""
        for index in range(1, NODES):
            cluster = self.cluster()
            away = [node.database for node in cluster.world.nodes.values()]
            cluster.world.node(index).runner.broken["tenant", "sfu"] = Unavailable("broken", "no socket")
            cluster.world.clock.callLater(1, lambda: [setattr(each, "away", True) for each in away])  # noqa: B023
            self.assertIn(cluster.enable(), ("node_failed", "store_unavailable"))
            for each in away:
                each.away = False
            cluster.world.node(index).runner.broken.clear()
            cluster.beats(4)
            self.assertEqual(cluster.nothing_left(), "")
            self.assertEqual(cluster.enable(), "done")
            self.assertEqual(cluster.all_there(), "")

    def test_enable_with_a_service_that_does_not_start(self) -> None:
        """The error names the node and what is wrong there; nothing is left, anywhere."""
        for index in range(NODES):
            for role in ROLES:
                cluster = self.cluster()
                node = cluster.world.node(index)
                if (role, node.node_id) not in self.tenants_places():
                    continue
                node.runner.broken["tenant", role] = Unavailable("broken", f"no socket for {role}")
                error = self.failureResultOf(self.enabling(cluster), Unavailable).value
                self.assertIn(node.node_id, error.message)
                self.assertIn(f"no socket for {role}", error.message)
                self.assertEqual(cluster.nothing_left(), "")
                node.runner.broken.clear()
                self.assertEqual(cluster.enable(), "done")
                self.assertEqual(cluster.all_there(), "")

    def tenants_places(self) -> set[tuple[str, str]]:
        """Who does what when all goes well."""
        cluster = self.cluster()
        self.assertEqual(cluster.enable(), "done")
        rows = cluster.world.rows(tables.webrtc_roles)
        return {(row.role, row.node_id) for row in rows if row.namespace == "tenant"}

    def enabling(self, cluster: Cluster) -> Deferred[None]:
        """Enabling, when its time is over."""
        work = Deferred.fromCoroutine(cluster.asked.namespaces.enable("tenant"))
        for _ in range(60):
            cluster.world.advance(1.0)
        return work

    def test_enable_with_a_node_that_does_not_answer(self) -> None:
        """A node that lives and does not answer is named, and nothing is left of the others' work, or of its."""
        for index in range(NODES):
            cluster = self.cluster()
            node = cluster.world.node(index)
            node.deaf = True
            error = self.failureResultOf(self.enabling(cluster), Unavailable).value
            self.assertEqual(error.code, "node_unreachable")
            self.assertIn(node.node_id, error.message)
            self.assertEqual(cluster.nothing_left(), "")
            node.deaf = False
            self.assertEqual(cluster.enable(), "done")

    def test_enable_with_a_node_that_dies(self) -> None:
        """A node that dies at any write is named; nothing is left with those who live, nor when it is back."""
        faults = (Fault.DIES_BEFORE, Fault.DIES_AFTER)
        for what, cluster, node, outcome in self.faulty(faults, lambda _: None, Cluster.enable):
            if node is not cluster.asked:
                self.assertEqual(outcome, "node_unreachable", what)
            cluster.beats(5)
            others = [each for each in cluster.world.nodes.values() if each.alive]
            if node is not cluster.asked:
                self.assertEqual([each.up("tenant") for each in others], [set(), set()], what)
            cluster.world.boot(node.machine)
            cluster.beats(4)
            cluster.asked = cluster.world.node(0)
            config = next(iter(cluster.world.rows(tables.namespace_webrtc_config)[-1:]))
            self.assertEqual(config.namespace, "tenant")
            if config.enabled:
                self.assertIs(node.machine, cluster.asked.machine, what)
                self.assertEqual(cluster.disable(), "done", what)
                cluster.beats()
            rows = [row for table in TABLES for row in cluster.world.rows(table) if row.namespace == "tenant"]
            self.assertEqual(rows, [], what)
            self.assertEqual(cluster.enable(), "done", what)
            cluster.beats()
            self.assertEqual({role for each in cluster.world.nodes.values() for role in each.up("tenant")}, set(ROLES))

    def test_disable_with_a_write_that_fails(self) -> None:
        """Whatever is not written, or is written unheard: nothing is left in the end, and it can be had again."""

        def prepare(cluster: Cluster) -> None:
            self.assertEqual(cluster.enable(), "done")
            cluster.beats()

        for what, cluster, _, outcome in self.faulty((Fault.REFUSED, Fault.LOST), prepare, Cluster.disable):
            self.assertIn(outcome, ("done", "store_unavailable"), what)
            cluster.beats()
            if outcome == "store_unavailable":
                self.assertIn(cluster.disable(), ("done", "not_enabled"), what)
                cluster.beats()
            self.assertEqual(cluster.nothing_left(), "", what)
            self.assertEqual(cluster.enable(), "done", what)
            self.assertEqual(cluster.all_there(), "", what)

    def test_disable_with_a_node_that_dies(self) -> None:
        """A node that dies in the middle of disabling leaves its part to those that live, once it is given up."""

        def prepare(cluster: Cluster) -> None:
            self.assertEqual(cluster.enable(), "done")
            cluster.beats()

        for what, cluster, node, _ in self.faulty((Fault.DIES_BEFORE, Fault.DIES_AFTER), prepare, Cluster.disable):
            cluster.beats(8)
            cluster.asked = next(each for each in cluster.world.nodes.values() if each.alive)
            (config,) = (row for row in cluster.world.rows(tables.namespace_webrtc_config) if row.namespace == "tenant")
            if config.enabled:
                self.assertIs(node, cluster.world.node(0), what)
                self.assertEqual(cluster.disable(), "done", what)
                cluster.beats()
            rows = [row for table in TABLES for row in cluster.world.rows(table) if row.namespace == "tenant"]
            self.assertEqual(rows, [], what)
            (config,) = (row for row in cluster.world.rows(tables.namespace_webrtc_config) if row.namespace == "tenant")
            self.assertIsNone(config.turn_secret_encrypted, what)
            cluster.world.boot(node.machine, keep=True)
            cluster.beats()
            self.assertEqual([each.up("tenant") for each in cluster.world.nodes.values()], [set()] * NODES, what)

    def test_disable_with_a_service_that_does_not_stop(self) -> None:
        """It is disabled all the same, for everybody; the node that could not follow keeps its ports until it can."""
        cluster = self.cluster()
        self.assertEqual(cluster.enable(), "done")
        node = cluster.world.node(1)
        node.runner.stubborn["tenant", "sfu"] = Unavailable("stubborn", "it will not stop")
        self.assertEqual(cluster.disable(), "done")
        self.assertEqual([each.up("tenant") for each in cluster.world.nodes.values()][::2], [set(), set()])
        held = [row for row in cluster.world.rows(tables.webrtc_port_allocations) if row.namespace == "tenant"]
        self.assertEqual({row.node_id for row in held}, {node.node_id})
        self.assertEqual(cluster.neighbour(), "")
        node.runner.stubborn.clear()
        cluster.world.clock.advance(60)
        cluster.beats()
        self.assertEqual(cluster.nothing_left(), "")

    def test_disable_takes_names_away_first(self) -> None:
        """When the first node stops, nobody finds it any more."""
        cluster = self.cluster()
        self.assertEqual(cluster.enable(), "done")
        seen: list[int] = []

        def note(step: str, state: str, text: str) -> None:
            if step == "wanted":
                seen.append(sum(row.namespace == "tenant" for row in cluster.world.rows(tables.dns_records)))
                seen.append(sum(bool(node.up("tenant")) for node in cluster.world.nodes.values()))

        self.assertEqual(cluster.do(cluster.asked.namespaces.disable("tenant", note)), "done")
        self.assertEqual(seen, [0, NODES])

    def test_enable_while_an_earlier_disable_is_unfinished(self) -> None:
        """A node that has not ended yet what was disabled goes on with it, in the new form."""
        cluster = self.cluster()
        self.assertEqual(cluster.enable(), "done")
        node = cluster.world.node(1)
        node.runner.stubborn["tenant", "sfu"] = Unavailable("stubborn", "it will not stop")
        self.assertEqual(cluster.disable(), "done")
        old = node.runner.up["tenant", "sfu"].turn_secret
        self.assertEqual(cluster.enable(), "done")
        cluster.beats()
        self.assertEqual(cluster.all_there(), "")
        self.assertNotEqual(node.runner.up["tenant", "sfu"].turn_secret, old)

    def test_not_ready(self) -> None:
        """Without what WebRTC needs nothing is written."""
        cluster = self.cluster()
        cluster.asked.missing = PreconditionFailed("cluster_not_ready", "Olric does not answer")
        self.assertEqual(cluster.enable(), "cluster_not_ready")
        self.assertEqual(cluster.nothing_left(), "")

    def test_not_enough_nodes(self) -> None:
        """With a node less than the settings want it says how many there are, and writes nothing."""
        cluster = self.cluster()
        cluster.world.node(2).database.kill()
        cluster.beats(4)
        error = self.failureResultOf(self.enabling(cluster), PreconditionFailed).value
        self.assertEqual(error.code, "not_enough_nodes")
        self.assertIn("3 nodes are needed and 2 of 3", error.message)
        self.assertEqual({row.namespace for row in cluster.world.rows(tables.webrtc_roles)}, {"neighbour"})

    def test_no_free_ports(self) -> None:
        """When one host has no block left of one kind, nothing is taken on the others."""
        cluster = self.cluster()
        for index in range(3):
            self.assertEqual(cluster.do(cluster.asked.namespaces.create(f"other-{index}", webrtc=False)), "done")
            self.assertEqual(cluster.enable(f"other-{index}"), "done")
        self.assertEqual(cluster.enable(), "no_free_ports")
        self.assertEqual(cluster.nothing_left(), "")
        self.assertEqual(cluster.do(cluster.asked.namespaces.delete("other-1")), "done")
        self.assertEqual(cluster.enable(), "done")

    def test_a_namespace_goes_with_all_it_has(self) -> None:
        """A namespace that is deleted behind our back ends on every node, and its names go."""
        cluster = self.cluster()
        self.assertEqual(cluster.enable(), "done")
        gone = tables.namespaces.delete().where(tables.namespaces.c.name == "tenant")
        cluster.world.store.run(lambda connection: connection.execute(gone))
        cluster.beats(3)
        self.assertEqual([node.up("tenant") for node in cluster.world.nodes.values()], [set()] * NODES)
        left = [row for table in TABLES for row in cluster.world.rows(table) if row.namespace == "tenant"]
        self.assertEqual(left, [])
        self.assertEqual(cluster.neighbour(), "")


class ConcurrencyTests(DatabaseCase):
    """What two nodes do at the same time, on every database."""

    async def setUp(self) -> None:
        await super().setUp()
        self.clock = RushingClock()
        self.clock.advance(1_800_000_000)
        among: dict[str, StoredNode] = {}
        self.nodes = []
        for number in (1, 2):
            seal = self.nodes[0].seal if self.nodes else None
            node = StoredNode(self, self.database, self.clock, None, f"node-{number}", f"10.0.0.{number}", seal, among)
            self.nodes.append(await node.join())
        await self.nodes[0].registry.read()
        await self.nodes[0].namespaces.create("tenant", webrtc=False)

    async def both(self, work: Callable[[StoredNode], Any]) -> list[str]:
        """How it went for each, in the order of words."""

        async def one(node: StoredNode) -> str:
            try:
                await work(node)
            except Conflict as error:
                return error.code
            return "done"

        return sorted(await gatherResults([Deferred.fromCoroutine(one(node)) for node in self.nodes]))

    async def test_enable(self) -> None:
        """Of two who enable a namespace at once one does, and the other is told that it is."""
        for _ in range(5):
            outcomes = await self.both(lambda node: node.namespaces.enable("tenant"))
            self.assertEqual(outcomes, ["already_enabled", "done"])
            self.assertEqual([node.up("tenant") for node in self.nodes], [{"sfu", "turn"}] * 2)
            await self.nodes[1].namespaces.disable("tenant")
            self.assertEqual([node.up("tenant") for node in self.nodes], [set(), set()])
            self.assertEqual(await self.nodes[0].namespaces.desired(), {})

    async def test_disable(self) -> None:
        """Of two who disable a namespace at once one does, and nothing is left."""
        for _ in range(5):
            await self.nodes[0].namespaces.enable("tenant")
            outcomes = await self.both(lambda node: node.namespaces.disable("tenant"))
            self.assertEqual(outcomes, ["done", "not_enabled"])
            self.assertEqual([node.up("tenant") for node in self.nodes], [set(), set()])
            self.assertEqual(await self.nodes[0].namespaces.desired(), {})


class SQLiteConcurrencyTests(OnSQLite, ConcurrencyTests):
    pass


class PostgresConcurrencyTests(OnPostgres, ConcurrencyTests):
    pass


class RqliteConcurrencyTests(OnRqlite, ConcurrencyTests):
    pass


del ConcurrencyTests
