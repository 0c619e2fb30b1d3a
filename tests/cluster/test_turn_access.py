"""TURN credentials as they are given out."""

from __future__ import annotations

import hmac
from base64 import b64encode

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks, TurnPlace, WebRtcConfig
from orama.cluster.turn_access import TurnAccess
from orama.errors import NotFound
from orama.settings import Settings
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnSQLite


class TurnAccessTests(OnSQLite, DatabaseCase):
    async def access(self, settings: Settings) -> TurnAccess:
        self.node = await StoredNode(self, self.database, self.clock, settings, host=settings.public_ip).join()
        await self.node.namespaces.create("tenant")
        return TurnAccess(settings, self.node.namespaces, self.clock)

    async def test_form(self) -> None:
        """The three URIs in order, ``{expiry}:{namespace}``, and the HMAC over it with the secret's text."""
        grant = await (await self.access(Settings(public_ip="192.0.2.7", turn_port=13478))).issue("tenant")
        expected = ("turn:192.0.2.7:13478?transport=udp", "turn:192.0.2.7:13478?transport=tcp", "turns:192.0.2.7:5349")
        self.assertEqual(grant.uris, expected)
        self.assertEqual(grant.ttl, 600)
        self.assertEqual(grant.username, f"{int(self.clock.seconds()) + 600}:tenant")
        secret = (await self.node.namespaces.config("tenant")).turn_secret
        digest = hmac.digest(secret.encode(), grant.username.encode(), "sha1")
        self.assertEqual(grant.password, b64encode(digest).decode())
        self.assertNotIn(grant.password, repr(grant))

    async def test_domain(self) -> None:
        """With a base domain the URIs name the namespace's own host."""
        grant = await (await self.access(Settings(base_domain="example.org"))).issue("tenant")
        self.assertEqual(grant.uris[2], "turns:turn.ns-tenant.example.org:5349")

    async def test_user(self) -> None:
        """A user is named after a second colon, as a digest when the name could not stand there."""
        access = await self.access(Settings())
        self.assertTrue((await access.issue("tenant", "anna@x")).username.endswith(":tenant:anna@x"))
        self.assertRegex((await access.issue("tenant", "a:b ü")).username, r"\A\d+:tenant:[0-9a-f]{32}\Z")

    async def test_told(self) -> None:
        """Who wants to know user names by their hash is told of each one that is issued."""
        told: list[str] = []
        await self.access(Settings())
        access = TurnAccess(Settings(), self.node.namespaces, self.clock, issued=told.append)
        self.assertEqual([(await access.issue("tenant", user)).username for user in (None, "ann")], told)

    async def test_not_enabled(self) -> None:
        """A namespace without WebRTC has no credentials."""
        access = await self.access(Settings())
        await self.node.namespaces.disable("tenant")
        with self.assertRaises(NotFound):
            await access.issue("tenant")


class Fixed:
    """A namespace with TURN on *nodes*."""

    def __init__(self, *nodes: str) -> None:
        places = (TurnPlace(name, f"192.0.2.{name}", "10.0.0.1", (50000, 50799), 3478, 5349) for name in nodes)
        self._config = WebRtcConfig("tenant", ("secret",), 600, True, Blocks(), turns=tuple(places))

    async def config(self, name: str) -> WebRtcConfig:
        return self._config


class SeveralNodesTests(SynchronousTestCase):
    dead: frozenset[str] = frozenset()

    def uris(self, base_domain: str, *nodes: str) -> list[str]:
        settings = Settings(base_domain=base_domain)
        access = TurnAccess(settings, Fixed(*nodes), Clock(), lambda node_id: node_id not in self.dead)
        grant = self.successResultOf(ensureDeferred(access.issue("tenant")))
        return [uri.removeprefix("turn:").removesuffix("?transport=udp") for uri in grant.uris]

    def test_addresses(self) -> None:
        """Without a base domain every node that relays and lives is named, each in the order of the contract."""
        self.dead = frozenset("2")
        found = self.uris("", "1", "2", "3")
        self.assertEqual(
            [uri for uri in found if "?" not in uri and "turns" not in uri], ["192.0.2.1:3478", "192.0.2.3:3478"]
        )
        self.assertEqual(len(found), 6)

    def test_names_first(self) -> None:
        """With one the name comes first, and then the addresses of the living: a browser may remember a dead one."""
        host = "turn.ns-tenant.example.org"
        named = [f"{host}:3478", f"{host}:3478?transport=tcp", f"turns:{host}:5349"]
        self.assertEqual(self.uris("example.org", "1"), named)
        self.assertEqual(self.uris("example.org", "1", "2"), [*named, "192.0.2.1:3478", "192.0.2.2:3478"])
        self.dead = frozenset("1")
        self.assertEqual(self.uris("example.org", "1", "2"), [*named, "192.0.2.2:3478"])
