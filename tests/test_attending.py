"""The names of a node: there while it takes people, put back when they are lost, and nobody else's touched."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, insert
from twisted.trial.unittest import SynchronousTestCase

from orama.attending import Names
from orama.store import tables
from tests.cluster.world import SETTINGS, World

RECORDS = tables.dns_records


class NamesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(3)
        self.addCleanup(self.world.close)
        self.world.advance(SETTINGS.cluster.heartbeat)
        self.node = self.world.node(0)
        self.assertEqual(self.run_on(self.node.namespaces.create("tenant", webrtc=False)), "done")
        self.assertEqual(self.run_on(self.node.namespaces.enable("tenant")), "done")
        self.changed = 0
        self.start = self.records()

    def run_on(self, work: Any) -> str:
        return self.world.run(self.node, work)

    def records(self) -> set[tuple[str, str, str]]:
        return {(row.fqdn, row.type, row.value) for row in self.world.rows(RECORDS)}

    def mine(self) -> set[str]:
        """Names under which the node is found."""
        return {row.fqdn for row in self.world.rows(RECORDS) if row.node_id == self.node.node_id}

    def execute(self, statement: Any) -> None:
        self.world.store.run(lambda connection: connection.execute(statement))

    def attend(self, base_domain: str = SETTINGS.base_domain) -> None:
        """One pass's worth."""

        async def work() -> None:
            desired = await self.node.namespaces.desired()
            names = Names(
                self.node.database, self.node.registry, base_domain, lambda: desired, lambda: 5.0, self.note_change
            )
            await names.attend({})

        before = self.node.database.writes
        self.assertEqual(self.run_on(work()), "done")
        self.writes = self.node.database.writes - before

    def note_change(self) -> None:
        self.changed += 1

    def test_nothing_to_do(self) -> None:
        """Where all is as it should be nothing is written, and nobody is told."""
        self.attend()
        self.assertEqual((self.writes, self.changed), (0, 0))
        self.assertEqual(self.mine(), {"ns-tenant.example.test", "turn.ns-tenant.example.test"})

    def test_put_back(self) -> None:
        """A row of its own that somebody removed is put back as it was, once; the others' are theirs to put back."""
        self.execute(delete(RECORDS))
        self.attend()
        self.assertEqual({row.node_id for row in self.world.rows(RECORDS)}, {self.node.node_id})
        self.assertLess(self.records(), self.start)
        self.assertEqual(len(self.mine()), 2)
        self.assertEqual({row.ttl for row in self.world.rows(RECORDS)}, {60})
        self.assertEqual(self.changed, 1)
        self.attend()
        self.assertEqual((self.writes, self.changed), (0, 1))

    def test_draining(self) -> None:
        """A node that is to be empty is found no more, and again when it takes people; the others are all the while."""
        others = {record for record in self.records() if record[2] != self.node.host}
        for draining, expected in ((True, others), (False, self.start)):
            other = self.world.node(1)
            self.assertEqual(self.world.run(other, other.registry.set_draining(self.node.node_id, draining)), "done")
            self.assertEqual(self.run_on(self.node.registry.read()), "done")
            self.attend()
            self.assertEqual(self.records(), expected)

    def test_role_lost(self) -> None:
        """Who relays no more is found as a gateway alone."""
        roles = tables.webrtc_roles
        self.execute(delete(roles).where(roles.c.role == "turn", roles.c.node_id == self.node.node_id))
        self.attend()
        self.assertEqual(self.mine(), {"ns-tenant.example.test"})

    def test_disabled_meanwhile(self) -> None:
        """A pass that read what was wanted before it was disabled publishes nothing any more."""

        async def work() -> None:
            desired = await self.node.namespaces.desired()
            await self.node.namespaces.disable("tenant")
            node = self.node
            names = Names(
                node.database, node.registry, SETTINGS.base_domain, lambda: desired, lambda: 5.0, self.note_change
            )
            await names.attend({})

        self.assertEqual(self.run_on(work()), "done")
        self.assertEqual(self.records(), set())

    def test_foreign(self) -> None:
        """Rows of other nodes, and of nobody, are left alone; one of its own that it should not have goes."""
        foreign = {"type": "A", "ttl": 60, "namespace": None, "created_at": 0.0}
        for fqdn, owner in (("www.example.test", None), ("x.example.test", "node-2"), ("y.example.test", "node-1")):
            row = {**foreign, "fqdn": fqdn, "value": "192.0.2.9", "node_id": owner}
            self.execute(insert(RECORDS).values(**row))
        challenge = {**foreign, "fqdn": "_acme-challenge.turn.ns-tenant.example.test", "type": "TXT", "value": "token"}
        self.execute(insert(RECORDS).values(**challenge, node_id=None))
        self.attend()
        added = {record[0] for record in self.records() - self.start}
        self.assertEqual(added, {"www.example.test", "x.example.test", "_acme-challenge.turn.ns-tenant.example.test"})

    def test_without_a_domain(self) -> None:
        """Without a base domain there are no names, and none are touched."""
        self.execute(delete(RECORDS))
        self.attend("")
        self.assertEqual((self.writes, self.records()), (0, set()))
