"""Namespaces, keys and enablement, the same on SQLite, PostgreSQL and rqlite."""

from __future__ import annotations

import stat
from base64 import b64decode
from typing import Any

from attrs import evolve
from sqlalchemy import text
from twisted.internet.defer import ensureDeferred, gatherResults

from orama.errors import BadRequest, Conflict, InsufficientStorage, NotFound, OramaError, Unavailable
from orama.settings import Settings, TurnSettings
from orama.store.sealing import Seal, new_key
from tests.cluster.nodes import RushingClock, StoredNode
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite


class NamespacesTests(DatabaseCase):
    """What holds on every database."""

    async def setUp(self) -> None:
        await super().setUp()
        self.clock = RushingClock()
        self.clock.advance(1_800_000_000)
        self.node = await StoredNode(self, self.database, self.clock).join()
        self.namespaces = self.node.namespaces

    async def refused(self, kind: type[OramaError], code: str, doing: Any) -> None:
        with self.assertRaises(kind) as caught:
            await doing
        self.assertEqual(caught.exception.code, code)

    async def everything(self) -> str:
        """All that the database holds, as text."""
        tables = ("namespaces", "api_keys", "namespace_webrtc_config", "webrtc_rooms", "webrtc_port_allocations")

        def work(connection: Any) -> str:
            return repr([connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables])

        return await self.database.read(work)

    async def test_first_start(self) -> None:
        """The first start makes ``default`` with WebRTC and an owner key, which stands in a private file."""
        key = await self.namespaces.start()
        assert key is not None
        file = self.node.data / "default.api-key"
        self.assertEqual(file.read_text(), key + "\n")
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        self.assertRegex(key, r"\Aak_[A-Za-z0-9]{30,}:default\Z")
        self.assertEqual(await self.namespaces.role_of(key), ("default", "owner"))
        self.assertTrue((await self.namespaces.status("default")).enabled)

    async def test_second_start(self) -> None:
        """A second start finds it all again and makes nothing."""
        key = await self.namespaces.start()
        before = await self.namespaces.config("default")
        node = await StoredNode(self, self.database, self.clock, seal=self.node.seal).join()
        again = node.namespaces
        self.assertIsNone(await again.start())
        self.assertEqual(await again.config("default"), before)
        self.assertEqual(await again.role_of(key or ""), ("default", "owner"))

    async def test_first_start_cut_short(self) -> None:
        """A first start that ended before ``default`` was enabled is finished by the next; a choice is kept."""
        await self.namespaces.create("default", webrtc=False)
        self.assertIsNone(await self.namespaces.start())
        self.assertFalse((await self.namespaces.status("default")).enabled)
        (self.node.data / "default.api-key").write_text("a key\n")
        self.assertIsNone(await self.namespaces.start())
        self.assertTrue((await self.namespaces.status("default")).enabled)
        await self.namespaces.disable("default")
        self.assertIsNone(await self.namespaces.start())
        self.assertFalse((await self.namespaces.status("default")).enabled)

    async def test_first_start_without_ports(self) -> None:
        """A first start that finds no port leaves nothing, so that the next one is the first again."""
        self.node.busy.update(("turn-relay", 49152 + 800 * block) for block in range(21))
        await self.refused(InsufficientStorage, "no_free_ports", self.namespaces.start())
        self.assertEqual(await self.namespaces.list(), [])
        self.node.busy.clear()
        self.assertIsNotNone(await self.namespaces.start())

    async def test_create(self) -> None:
        """A new namespace works at once: WebRTC is enabled, and only the second one who asks for that is refused."""
        made = await self.namespaces.create("tenant")
        self.assertEqual(await self.namespaces.list(), [made])
        self.assertTrue(made.webrtc)
        await self.namespaces.enable("tenant", "somebody")
        self.assertEqual((await self.namespaces.status("tenant")).enabled_by, "somebody")
        await self.refused(Conflict, "already_enabled", self.namespaces.enable("tenant"))

    async def test_create_without(self) -> None:
        """A namespace may be made without WebRTC and enabled later."""
        made = await self.namespaces.create("tenant", webrtc=False)
        self.assertEqual(await self.namespaces.list(), [made])
        await self.refused(NotFound, "webrtc_not_enabled", self.namespaces.config("tenant"))
        await self.refused(NotFound, "webrtc_not_enabled", self.namespaces.require_webrtc("tenant"))
        await self.refused(Conflict, "not_enabled", self.namespaces.disable("tenant"))
        await self.namespaces.enable("tenant")
        await self.namespaces.require_webrtc("tenant")

    async def test_create_twice(self) -> None:
        """A name is there once, also when two ask for it at the same time."""
        results = await gatherResults(
            [ensureDeferred(self.namespaces.create("tenant")).addErrback(lambda f: f.value.code) for _ in range(3)]
        )
        self.assertEqual(sorted(map(str, results))[1:], ["namespace_exists"] * 2)

    async def test_names(self) -> None:
        """A name is a DNS label of lower case."""
        for name in ("", "A", "a_b", "-a", "a-", "a.b", "ä", "a" * 64, "a\n", "a b"):
            await self.refused(BadRequest, "invalid_namespace", self.namespaces.create(name))
        for name in ("a", "0", "a--b", "a" * 63):
            await self.namespaces.create(name, webrtc=False)

    async def test_names_under_a_domain(self) -> None:
        """Under a base domain ``ns-`` and the name together must be a label."""
        settings = Settings(base_domain="example.org")
        namespaces = (await StoredNode(self, self.database, self.clock, settings).join()).namespaces
        await self.refused(BadRequest, "invalid_namespace", namespaces.create("a" * 61))
        await namespaces.create("a" * 60, webrtc=False)

    async def test_delete(self) -> None:
        """A deleted namespace is gone with its keys, ports and rooms, and its name is free."""
        await self.namespaces.create("tenant")
        key = await self.namespaces.create_key("tenant", "owner")
        await self.node.directory.claim("tenant", "room")
        await self.namespaces.delete("tenant")
        self.assertEqual(await self.everything(), "[[], [], [], [], []]")
        self.assertIsNone(await self.namespaces.role_of(key.text))
        await self.refused(NotFound, "namespace_not_found", self.namespaces.delete("tenant"))
        await self.namespaces.create("tenant")

    async def test_unknown(self) -> None:
        """Whatever is asked of a namespace that is not there is ``namespace_not_found``."""
        for doing in (
            self.namespaces.require("nobody"),
            self.namespaces.require_webrtc("nobody"),
            self.namespaces.status("nobody"),
            self.namespaces.enable("nobody"),
            self.namespaces.disable("nobody"),
            self.namespaces.create_key("nobody", "owner"),
        ):
            await self.refused(NotFound, "namespace_not_found", doing)

    async def test_keys(self) -> None:
        """A key has the role that it was made with; anything else is no key."""
        await self.namespaces.create("tenant", webrtc=False)
        member = await self.namespaces.create_key("tenant", "member")
        owner = await self.namespaces.create_key("tenant", "owner")
        self.assertEqual(await self.namespaces.role_of(member.text), ("tenant", "member"))
        self.assertEqual(await self.namespaces.role_of(owner.text), ("tenant", "owner"))
        changed = member.text.replace(":", ("b" if member.text[-8] == "a" else "a") + ":")
        cut = member.text[:20] + ("b" if member.text[20] == "a" else "a") + member.text[21:]
        for wrong in ("", "ak_", "x", cut, changed, member.text + "x", member.text.replace("tenant", "default")):
            self.assertIsNone(await self.namespaces.role_of(wrong))
        await self.refused(BadRequest, "invalid_request", self.namespaces.create_key("tenant", "king"))

    async def test_only_hashes(self) -> None:
        """Neither a key nor a TURN secret stands in the database."""
        key = await self.namespaces.start()
        config = await self.namespaces.config("default")
        stored = await self.everything()
        assert key is not None
        self.assertNotIn(key[3:30], stored)
        self.assertNotIn(config.turn_secret, stored)
        self.assertNotIn(config.turn_secret, repr(config))
        made = await self.namespaces.create_key("default", "owner")
        self.assertNotIn(made.text, repr(made))

    async def test_config(self) -> None:
        """The secret is the base64 text of 32 bytes; the ttl is the setting's; the blocks are the first ones."""
        await self.namespaces.create("tenant")
        config = await self.namespaces.config("tenant")
        self.assertEqual(len(b64decode(config.turn_secret, validate=True)), 32)
        self.assertEqual(config.credential_ttl, 600)
        self.assertEqual(config.blocks.signaling, (30000, 30000))
        self.assertEqual(config.blocks.media, (20000, 20499))
        self.assertEqual(config.blocks.relay, (49152, 49951))
        settings = Settings(turn=TurnSettings(credential_ttl=20))
        other = StoredNode(self, self.database, self.clock, settings, seal=self.node.seal).namespaces
        self.assertEqual((await other.config("tenant")).credential_ttl, 20)

    async def test_other_key(self) -> None:
        """A secret that another key has sealed is Unavailable, and the other namespaces are served."""
        await self.namespaces.create("one")
        other = await StoredNode(self, self.database, self.clock, seal=Seal(new_key())).join()
        await other.namespaces.create("two")
        await self.refused(Unavailable, "secret_unreadable", other.namespaces.config("one"))
        self.assertEqual((other.up("one"), other.up("two")), (set(), {"sfu", "turn"}))
        self.assertIn("cluster.key", other.reconciler.observed("one")["error"])

    async def test_disable(self) -> None:
        """Disabling gives the ports back and forgets rooms and secret; enabling again makes a new secret."""
        await self.namespaces.create("tenant")
        before = await self.namespaces.config("tenant")
        await self.node.directory.claim("tenant", "room")
        self.clock.advance(5)
        await self.namespaces.disable("tenant")
        status = await self.namespaces.status("tenant")
        self.assertFalse(status.enabled)
        self.assertEqual(status.disabled_at, self.clock.seconds())
        self.assertEqual(await self.namespaces.desired(), {})
        self.assertEqual(await self.node.directory.list("tenant"), [])
        await self.refused(Conflict, "not_enabled", self.namespaces.disable("tenant"))
        await self.namespaces.enable("tenant", "somebody")
        after = await self.namespaces.config("tenant")
        self.assertNotEqual(after.turn_secret, before.turn_secret)
        status = await self.namespaces.status("tenant")
        self.assertEqual((status.enabled, status.enabled_by, status.disabled_at), (True, "somebody", None))

    async def test_services(self) -> None:
        """Creating is done when the services run, and deleting when they have ended."""
        await self.namespaces.create("tenant")
        self.assertEqual(self.node.up("tenant"), {"sfu", "turn"})
        self.assertEqual(self.node.runner.up["tenant", "sfu"], await self.namespaces.config("tenant"))
        await self.namespaces.delete("tenant")
        self.assertEqual(self.node.up("tenant"), set())

    async def test_enable_fails_half_way(self) -> None:
        """When a service does not come up, enabling says why, has done nothing and can be tried again."""
        await self.namespaces.create("tenant", webrtc=False)
        before = await self.everything()
        self.node.runner.broken["tenant", "sfu"] = Unavailable("port_busy", "no socket")
        with self.assertRaises(Unavailable) as caught:
            await self.namespaces.enable("tenant")
        self.assertIn("no socket", caught.exception.message)
        self.assertEqual(self.node.up("tenant"), set())
        self.assertFalse((await self.namespaces.status("tenant")).enabled)
        self.assertEqual(await self.namespaces.desired(), {})
        self.assertNotIn("v1.", (await self.everything())[len(before) // 2 :])
        self.node.runner.broken.clear()
        await self.namespaces.enable("tenant")

    async def test_create_fails_half_way(self) -> None:
        """When a service does not come up, there is no namespace."""
        self.node.runner.broken["tenant", "turn"] = Unavailable("port_busy", "no socket")
        with self.assertRaises(Unavailable):
            await self.namespaces.create("tenant")
        self.assertEqual(await self.namespaces.list(), [])

    async def test_rotate(self) -> None:
        """A new secret, beside which the old one is good for one time to live."""
        await self.namespaces.create("tenant")
        (old,) = (await self.namespaces.config("tenant")).turn_secrets
        await self.namespaces.rotate_secret("tenant")
        new, kept = (await self.namespaces.config("tenant")).turn_secrets
        self.assertEqual(kept, old)
        self.assertNotEqual(new, old)
        await self.node.beat()
        self.assertEqual(self.node.runner.up["tenant", "turn"].turn_secrets, (new, old))
        self.clock.advance(600)
        self.assertEqual((await self.namespaces.config("tenant")).turn_secrets, (new,))
        await self.namespaces.disable("tenant")
        await self.refused(Conflict, "not_enabled", self.namespaces.rotate_secret("tenant"))

    async def test_no_free_ports(self) -> None:
        """When the blocks are used up, creating says so, leaves nothing, and works again after a delete."""
        turn = TurnSettings(relay_ports=(49152, 49152 + 2 * 800 - 1))
        node = await StoredNode(self, self.database, self.clock, evolve(Settings(), turn=turn)).join()
        namespaces = node.namespaces
        await namespaces.create("one")
        await namespaces.create("two")
        await self.refused(InsufficientStorage, "no_free_ports", namespaces.create("three"))
        self.assertEqual([found.name for found in await namespaces.list()], ["one", "two"])
        await namespaces.create("three", webrtc=False)
        await self.refused(InsufficientStorage, "no_free_ports", namespaces.enable("three"))
        await namespaces.delete("one")
        await namespaces.enable("three")
        config = await namespaces.config("three")
        self.assertEqual(config.blocks.relay, (49152, 49951))


class SQLiteNamespacesTests(OnSQLite, NamespacesTests):
    pass


class PostgresNamespacesTests(OnPostgres, NamespacesTests):
    pass


class RqliteNamespacesTests(OnRqlite, NamespacesTests):
    pass


del NamespacesTests
