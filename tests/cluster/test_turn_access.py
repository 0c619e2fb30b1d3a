"""TURN credentials as they are given out."""

from __future__ import annotations

import hmac
from base64 import b64encode

from orama.cluster.turn_access import TurnAccess
from orama.errors import NotFound
from orama.settings import Settings
from tests.cluster.nodes import StoredNode
from tests.store.databases import DatabaseCase, OnSQLite


class TurnAccessTests(OnSQLite, DatabaseCase):
    async def access(self, settings: Settings) -> TurnAccess:
        self.node = StoredNode(self, self.database, self.clock, settings)
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

    async def test_not_enabled(self) -> None:
        """A namespace without WebRTC has no credentials."""
        access = await self.access(Settings())
        await self.node.namespaces.disable("tenant")
        with self.assertRaises(NotFound):
            await access.issue("tenant")
