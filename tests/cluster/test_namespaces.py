"""Namespaces, keys and enablement, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import stat
from base64 import b64decode
from typing import Any

from attrs import evolve
from sqlalchemy import text
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from orama.cluster.namespaces import WebRtcConfig
from orama.errors import BadRequest, Conflict, InsufficientStorage, NotFound, OramaError, Unavailable
from orama.settings import Settings, TurnSettings
from orama.store.sealing import Seal, new_key
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnPostgres, OnSQLite


class NamespacesTests(DatabaseCase):
    """What holds on every database."""

    async def setUp(self) -> None:
        await super().setUp()
        self.node = StoredNode(self, self.database, self.clock)
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
        again = StoredNode(self, self.database, self.clock, seal=self.node.seal).namespaces
        self.assertIsNone(await again.start())
        self.assertEqual(await again.config("default"), before)
        self.assertEqual(await again.role_of(key or ""), ("default", "owner"))

    async def test_first_start_without_ports(self) -> None:
        """A first start that finds no port leaves nothing, so that the next one is the first again."""
        self.node.busy.update(("turn-relay", 49152 + 800 * block) for block in range(21))
        await self.refused(InsufficientStorage, "no_free_ports", self.namespaces.start())
        self.assertEqual(await self.namespaces.list(), [])
        self.node.busy.clear()
        self.assertIsNotNone(await self.namespaces.start())

    async def test_create(self) -> None:
        """A new namespace works at once: WebRTC is enabled, and enabling it again is a conflict."""
        made = await self.namespaces.create("tenant")
        self.assertEqual(await self.namespaces.list(), [made])
        self.assertTrue(made.webrtc)
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
        namespaces = StoredNode(self, self.database, self.clock, settings).namespaces
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

    async def test_other_node_key(self) -> None:
        """A secret that another node key sealed is Unavailable, and the other namespaces are served."""
        await self.namespaces.create("one")
        other = StoredNode(self, self.database, self.clock, seal=Seal(new_key())).namespaces
        await other.create("two")
        await self.refused(Unavailable, "secret_unreadable", other.config("one"))
        self.assertEqual([config.namespace for config in await other.configs()], ["two"])

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
        self.assertIsNone(await self.node.ports.of("tenant"))
        self.assertEqual(await self.node.directory.list("tenant"), [])
        await self.refused(Conflict, "not_enabled", self.namespaces.disable("tenant"))
        after = await self.namespaces.enable("tenant", "somebody")
        self.assertNotEqual(after.turn_secret, before.turn_secret)
        status = await self.namespaces.status("tenant")
        self.assertEqual((status.enabled, status.enabled_by, status.disabled_at), (True, "somebody", None))

    async def test_told(self) -> None:
        """Who runs the services is told of every change, after it is written, and waited for."""
        told: list[tuple[str, WebRtcConfig | None]] = []
        waiting: Deferred[None] = Deferred()

        def changed(name: str, config: WebRtcConfig | None) -> Any:
            told.append((name, config))
            return waiting if config is not None else None

        self.namespaces.changed.append(changed)
        creating = ensureDeferred(self.namespaces.create("tenant"))
        await self.until(lambda: told)
        self.assertNoResult(creating)
        waiting.callback(None)
        await creating
        self.assertEqual(told, [("tenant", await self.namespaces.config("tenant"))])
        await self.namespaces.delete("tenant")
        self.assertEqual(told[1:], [("tenant", None)])

    async def test_enable_fails_half_way(self) -> None:
        """When the services do not come up, enabling has done nothing and can be tried again."""
        await self.namespaces.create("tenant", webrtc=False)
        told: list[bool] = []

        async def changed(name: str, config: WebRtcConfig | None) -> None:
            told.append(config is not None)
            if config is not None and len(told) == 1:
                raise OSError("no socket")

        self.namespaces.changed.append(changed)
        with self.assertRaises(OSError):
            await self.namespaces.enable("tenant")
        self.assertEqual(told, [True, False])
        self.assertFalse((await self.namespaces.status("tenant")).enabled)
        self.assertIsNone(await self.node.ports.of("tenant"))
        await self.namespaces.enable("tenant")

    async def test_create_fails_half_way(self) -> None:
        """When the services do not come up, there is no namespace."""

        async def changed(name: str, config: WebRtcConfig | None) -> None:
            if config is not None:
                raise OSError("no socket")

        self.namespaces.changed.append(changed)
        with self.assertRaises(OSError):
            await self.namespaces.create("tenant")
        self.assertEqual(await self.namespaces.list(), [])

    async def test_stop_fails(self) -> None:
        """A service that does not stop cleanly is logged and keeps nobody's ports."""
        await self.namespaces.create("tenant")

        async def changed(name: str, config: WebRtcConfig | None) -> None:
            raise OSError("no socket")

        self.namespaces.changed.append(changed)
        await self.namespaces.disable("tenant")
        self.assertIsNone(await self.node.ports.of("tenant"))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_no_free_ports(self) -> None:
        """When the blocks are used up, creating says so, leaves nothing, and works again after a delete."""
        turn = TurnSettings(relay_ports=(49152, 49152 + 2 * 800 - 1))
        namespaces = StoredNode(self, self.database, self.clock, evolve(Settings(), turn=turn)).namespaces
        await namespaces.create("one")
        await namespaces.create("two")
        await self.refused(InsufficientStorage, "no_free_ports", namespaces.create("three"))
        self.assertEqual([found.name for found in await namespaces.list()], ["one", "two"])
        await namespaces.create("three", webrtc=False)
        await self.refused(InsufficientStorage, "no_free_ports", namespaces.enable("three"))
        await namespaces.delete("one")
        config = await namespaces.enable("three")
        self.assertEqual(config.blocks.relay, (49152, 49951))

    async def until(self, condition: Any) -> None:
        """Wait for the threads of the database until *condition* holds."""
        while not condition():
            await self.database.read(lambda connection: None)


class SQLiteNamespacesTests(OnSQLite, NamespacesTests):
    pass


class PostgresNamespacesTests(OnPostgres, NamespacesTests):
    pass


del NamespacesTests
