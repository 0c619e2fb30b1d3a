"""Random histories of a cluster: whatever happens, and wherever a node dies in the middle of it, it ends well.

A history is a list of steps over a few nodes and namespaces. After each of them what must never be is looked for; at
its end everything is mended, some heartbeats pass, and what is wanted must be what runs and what stands in the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, delete
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.backoff import LONGEST
from orama.cluster.desired import KINDS, MEDIA, SIGNALING
from orama.cluster.grants import gateway_name, turn_name
from orama.cluster.nodes import ACTIVE, NodeRegistry
from orama.cluster.placement import ROLES, SFU, TURN
from orama.cluster.ports import ranges
from orama.errors import Unavailable
from orama.store import tables
from tests.cluster.world import SETTINGS, HostNode, World
from tests.store.memory import Fault

NAMESPACES = ("red", "green", "blue")
RANGES = ranges(SETTINGS)


@frozen
class Step:
    """One thing that happens: what, on or to which node, in which namespace, with which write of it going wrong."""

    what: str
    node: int = 0
    namespace: str = NAMESPACES[0]
    number: int = 0
    fault: Fault | None = None

    def __repr__(self) -> str:
        fault = "" if self.fault is None else f", fault={self.fault}"
        return f"Step({self.what!r}, {self.node}, {self.namespace!r}, {self.number}{fault})"


#: What somebody asks for, which takes several writes; and what happens by itself.
ASKED = ("enable", "disable", "rotate", "delete")
HAPPENS = (
    *("beats", "beats", "one beat", "wait", "die", "boot", "boot kept", "cut", "mend", "away", "back"),
    *("drain", "activate", "remove", "force", "no role", "no name", "no port", "busy", "idle", "breaks", "works"),
)


def steps() -> st.SearchStrategy[Step]:
    asked = st.builds(
        Step,
        st.sampled_from((*ASKED, "enable", "disable", "one beat")),
        st.integers(0, 4),
        st.sampled_from(NAMESPACES),
        st.integers(0, 3),
        st.sampled_from((None, *Fault)),
    )
    happens = st.builds(
        Step, st.sampled_from(HAPPENS), st.integers(0, 4), st.sampled_from(NAMESPACES), st.integers(0, 6)
    )
    return asked | happens


class History:
    """A world to which things happen."""

    def __init__(self, size: int, enabled: int = 0) -> None:
        self.world = World(size)
        #: Namespaces that somebody was told could not be enabled, and by whom.
        self.refused: dict[str, HostNode] = {}
        for name in NAMESPACES:
            node = self.world.node(0)
            assert self.world.run(node, node.namespaces.create(name, webrtc=False)) == "done"
        for name in NAMESPACES[:enabled]:
            self.take(Step("enable", 0, name))

    def take(self, step: Step) -> None:
        node = self.world.node(step.node)
        if step.fault is not None:
            node.database.fault(step.number, step.fault)
        getattr(self, f"_{step.what.replace(' ', '_')}")(step, node)
        node.database.no_faults()
        self.look()

    # -- what must never be -------------------------------------------------------------------------

    def look(self) -> None:
        assert not self.world.wrong, self.world.wrong[0].getTraceback()
        for node in self.world.nodes.values():
            assert not node.runner.overlaps, (node.node_id, node.runner.overlaps)
        taken: Counter[tuple[str, str, int]] = Counter()
        for row in self.world.rows(tables.webrtc_port_allocations):
            taken.update((row.host, row.kind, port) for port in {row.first_port, row.last_port})
        assert all(number == 1 for number in taken.values()), taken

    # -- what somebody asks for ---------------------------------------------------------------------

    def _ask(self, step: Step, node: HostNode, work: Callable[[], Coroutine[Any, Any, Any]]) -> str:
        """What came of it, or nothing when there is nobody to ask."""
        return self.world.run(node, work()) if node.alive else ""

    def _enable(self, step: Step, node: HostNode) -> None:
        was = self.enabled(step.namespace)
        outcome = self._ask(step, node, lambda: node.namespaces.enable(step.namespace, "somebody"))
        if outcome in ("done", "died"):
            self.refused.pop(step.namespace, None)
        if outcome == "done":
            assert self.enabled(step.namespace)
        elif outcome not in ("", "died") and not was:
            self.refused[step.namespace] = node

    def _disable(self, step: Step, node: HostNode) -> None:
        if self._ask(step, node, lambda: node.namespaces.disable(step.namespace)) == "done":
            assert not self.enabled(step.namespace)

    def _rotate(self, step: Step, node: HostNode) -> None:
        self._ask(step, node, lambda: node.namespaces.rotate_secret(step.namespace))

    def _delete(self, step: Step, node: HostNode) -> None:
        """And make it anew."""
        if self._ask(step, node, lambda: node.namespaces.delete(step.namespace)) == "done" and node.alive:
            self.world.run(node, node.namespaces.create(step.namespace, webrtc=False))

    # -- what happens -------------------------------------------------------------------------------

    def _beats(self, step: Step, node: HostNode) -> None:
        self.world.advance(SETTINGS.cluster.heartbeat)

    def _one_beat(self, step: Step, node: HostNode) -> None:
        self.world.beat(node)

    def _wait(self, step: Step, node: HostNode) -> None:
        for _ in range(5):
            self.world.advance(SETTINGS.cluster.heartbeat)

    def _die(self, step: Step, node: HostNode) -> None:
        if node.alive:
            node.database.kill()

    def _boot(self, step: Step, node: HostNode) -> None:
        self.world.boot(node.machine)

    def _boot_kept(self, step: Step, node: HostNode) -> None:
        self.world.boot(node.machine, keep=True)

    def _cut(self, step: Step, node: HostNode) -> None:
        node.database.away = True

    def _mend(self, step: Step, node: HostNode) -> None:
        node.database.away = False

    def _away(self, step: Step, node: HostNode) -> None:
        for each in self.world.nodes.values():
            each.database.away = True

    def _back(self, step: Step, node: HostNode) -> None:
        for each in self.world.nodes.values():
            each.database.away = False

    def _drain(self, step: Step, node: HostNode) -> None:
        self._through(step, node, lambda registry: registry.set_draining(node.node_id, True))

    def _activate(self, step: Step, node: HostNode) -> None:
        self._through(step, node, lambda registry: registry.set_draining(node.node_id, False))

    def _remove(self, step: Step, node: HostNode) -> None:
        self._through(step, node, lambda registry: registry.remove(node.node_id))

    def _force(self, step: Step, node: HostNode) -> None:
        self._through(step, node, lambda registry: registry.remove(node.node_id, force=True))

    def _through(self, step: Step, node: HostNode, work: Callable[[NodeRegistry], Coroutine[Any, Any, None]]) -> None:
        other = self.world.node(step.number)
        if other.alive and other is not node:
            self.world.run(other, work(other.registry))

    def _no_role(self, step: Step, node: HostNode) -> None:
        self._lose(tables.webrtc_roles, step.number)

    def _no_name(self, step: Step, node: HostNode) -> None:
        self._lose(tables.dns_records, step.number)

    def _no_port(self, step: Step, node: HostNode) -> None:
        self._lose(tables.webrtc_port_allocations, step.number)

    def _lose(self, table: Table, number: int) -> None:
        """Somebody deletes a row by hand."""
        rows = self.world.rows(table)
        if rows:
            key = [column == getattr(rows[number % len(rows)], column.name) for column in table.primary_key]
            self.world.store.run(lambda connection: connection.execute(delete(table).where(*key)))

    def _busy(self, step: Step, node: HostNode) -> None:
        """A program takes the first port of a block; what has it already keeps it."""
        kind = (SIGNALING, MEDIA)[step.number % 2]
        node.busy.add((kind, RANGES[kind].block(step.number // 2)[0]))

    def _idle(self, step: Step, node: HostNode) -> None:
        node.busy.clear()

    def _breaks(self, step: Step, node: HostNode) -> None:
        error = Unavailable("broken", "it does not work")
        target = node.runner.broken if step.number % 3 else node.runner.stubborn
        target[step.namespace, ROLES[step.number % 2]] = error

    def _works(self, step: Step, node: HostNode) -> None:
        node.runner.broken.clear()
        node.runner.stubborn.clear()

    # -- how it ends --------------------------------------------------------------------------------

    def enabled(self, namespace: str) -> bool:
        return any(row.enabled for row in self.world.rows(tables.namespace_webrtc_config) if row.namespace == namespace)

    def mend(self) -> None:
        """Everything works, everybody lives, and time passes."""
        for node in list(self.world.nodes.values()):
            node.database.away = False
            node.busy.clear()
            node.runner.broken.clear()
            node.runner.stubborn.clear()
        for host in self.world.hosts:
            self.world.boot(host)
        for seconds in (LONGEST, LONGEST, 0):
            for _ in range(2):
                self.world.advance(SETTINGS.cluster.heartbeat)
            self.world.clock.advance(seconds)
        self.look()

    def end(self) -> None:
        self.mend()
        for namespace, node in self.refused.items():
            assert not node.alive or not self.enabled(namespace), f"{namespace} was refused and is enabled"
        self.agree()
        node = self.world.node(0)
        for namespace in NAMESPACES:
            if self.enabled(namespace):
                outcome = self.world.run(node, node.namespaces.disable(namespace))
                assert outcome == "done", outcome
        self.agree()
        for _ in range(2):
            self.world.advance(SETTINGS.cluster.heartbeat)
        self.agree()
        assert not self.world.rows(tables.webrtc_roles)

    def agree(self) -> None:
        """What is wanted stands in the tables with all that belongs to it, and runs; and nothing else does."""
        world = self.world
        nodes = {row.id: row for row in world.rows(tables.nodes)}
        usable = {node_id for node_id, row in nodes.items() if row.state == ACTIVE}
        assert nodes.keys() == world.nodes.keys()
        counts = {
            SFU: min(SETTINGS.cluster.sfu_nodes, len(usable)),
            TURN: min(SETTINGS.cluster.turn_nodes, len(usable)),
        }
        roles, ports, names = set(), set(), set()
        for row in world.rows(tables.namespace_webrtc_config):
            assert bool(row.enabled) == (row.turn_secret_encrypted is not None), row
            assert row.enabled or row.turn_secret_previous_encrypted is None, row
            if not row.enabled:
                continue
            assert (row.sfu_node_count, row.turn_node_count) == (counts[SFU], counts[TURN]), row
            for role, count in counts.items():
                mine = [
                    each
                    for each in world.rows(tables.webrtc_roles)
                    if (each.namespace, each.role) == (row.namespace, role)
                ]
                assert len(mine) == count, (row.namespace, mine)
                assert {each.node_id for each in mine} <= usable, mine
                roles |= {(row.namespace, role, each.node_id) for each in mine}
                ports |= {(row.namespace, kind, each.node_id) for each in mine for kind in KINDS[role]}
            names |= {(gateway_name(row.namespace, SETTINGS.base_domain), node_id) for node_id in usable}
        names |= {(turn_name(name, SETTINGS.base_domain), node_id) for name, role, node_id in roles if role == TURN}
        assert {(row.namespace, row.role, row.node_id) for row in world.rows(tables.webrtc_roles)} == roles
        found = world.rows(tables.webrtc_port_allocations)
        assert {(row.namespace, row.kind, row.node_id) for row in found} == ports, (found, ports)
        records = world.rows(tables.dns_records)
        assert {(row.fqdn, row.node_id) for row in records} == names, (records, names)
        assert all(row.value == nodes[row.node_id].public_ip for row in records), records
        up = {(namespace, role, node_id) for node_id, node in world.nodes.items() for namespace, role in node.runner.up}
        assert up == roles, (up, roles)
        for node in world.nodes.values():
            for namespace, _ in node.runner.up:
                assert node.runner.up[namespace, _] == node.reconciler.configs[namespace]


class HistoryTests(SynchronousTestCase):
    @settings(max_examples=80, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(3, 5), st.integers(0, 2), st.lists(steps(), min_size=5, max_size=14))
    def test_ends_well(self, size: int, enabled: int, taken: list[Step]) -> None:
        """No port is given twice; in the end what is wanted runs, and of all else nothing is left."""
        history = History(size, enabled)
        try:
            for step in taken:
                history.take(step)
            history.end()
        finally:
            history.world.close()
        self.assertEqual(self.flushLoggedErrors(), [])
