"""Nothing secret in a log: every event of a run is read for every secret that the run knew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from sqlalchemy import text
from twisted.internet import reactor
from twisted.logger import eventAsText, globalLogPublisher

from orama.cluster.turn_access import TurnAccess
from orama.settings import LimitSettings, Settings
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from tests.rest.service import ServiceCase, connect

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
}
#: Ways to present a credential; the first is for the query string.
FORMS = (
    ("?api_key={}", {}),
    ("?token={}", {}),
    ("?room=r&api_key={}", UPGRADE),
    ("", {"X-API-Key": "{}"}),
    ("", {"Authorization": "ApiKey {}"}),
    ("", {"Authorization": "Bearer {}"}),
    ("", {"Authorization": "{}"}),
    ("", {**UPGRADE, "Sec-WebSocket-Protocol": "orama, auth.{}"}),
)


class SecretsTests(ServiceCase):
    settings = evolve(Settings(), limits=LimitSettings(request_rate=10_000, request_burst=10_000))

    def setUp(self) -> Any:
        self.events: list[Mapping[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        return super().setUp()

    async def test_whole_run(self) -> None:
        """Good and bad credentials in every form, every resource, failures of ours and of the database."""
        access = TurnAccess(self.settings, self.namespaces, self.clock)
        rooms: Any = self.rooms
        service = SignalingService(reactor, self.settings, rooms, self.node.directory, access)
        signal = SignalResource(service, self.settings, self.authenticator, self.namespaces.require_webrtc)
        self.serve(self.make_site(signal))
        await self.namespaces.create("default")
        token = self.tokens.issue("tenant", "anna", ttl=60, role="owner")
        wrong = self.tokens.issue("tenant", "anna", ttl=60)[:-8] + "AAAAAAAA"
        credentials = [self.owner, self.member, token, wrong, self.owner.replace("ak_", "ak_X")]
        secrets = {part for credential in credentials for part in _parts(credential)}
        secrets.add((await self.namespaces.config("tenant")).turn_secret)
        for credential in credentials:
            for query, headers in FORMS:
                filled = {name: value.format(credential) for name, value in headers.items()}
                await self.present("/v1/webrtc/signal" + query.format(credential), filled)
                await self.present("/v1/webrtc/rooms" + query.format(credential), filled)
        for path in ("/v1/webrtc/turn/credentials", "/v1/webrtc/guest"):
            answer = (await self.call("POST", path, self.owner)).json
            secrets.update({answer.get("password"), *_parts(answer.get("token"))} - {None})
        self.rooms.broken = True
        await self.call("POST", "/v1/webrtc/rooms", self.owner, json={"room_id": "r"})
        for verb in ("disable", "enable", "enable"):
            await self.call("POST", f"/v1/namespace/webrtc/{verb}", self.owner)
        secrets.add((await self.namespaces.config("tenant")).turn_secret)
        await self.database.transact(lambda connection: connection.execute(text("DROP TABLE api_keys")))
        answer = await self.call("GET", "/v1/webrtc/rooms", self.owner)
        self.assertEqual(answer.outcome, (503, "store_unavailable"))
        await self.namespaces.delete("tenant")
        self.flushLoggedErrors()
        written = "\n".join(_written(event) for event in self.events)
        self.assertIn("/v1/webrtc/rooms", written)
        self.assertIn("no room can be made", written)
        self.assertGreater(len(secrets), 10)
        for secret in secrets:
            self.assertNotIn(secret, written)

    async def present(self, path: str, headers: Mapping[str, str]) -> None:
        """A request as it is, since no client would offer such subprotocols; the answer does not matter."""
        raw = await connect(self.port)
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
        raw.transport.write("\r\n".join([*lines, "", ""]).encode())
        await raw.until(b"\r\n\r\n")
        raw.transport.abortConnection()
        await raw.closed


def _parts(credential: str | None) -> set[str]:
    """What would give *credential* away: its random part, or each part of a token but its header."""
    if credential is None:
        return set()
    if credential.startswith("ak_"):
        return {credential.partition(":")[0].removeprefix("ak_")}
    return set(credential.split(".")[1:])


def _written(event: Mapping[str, Any]) -> str:
    """Everything that an observer could write of *event*."""
    shown = eventAsText(dict(event), includeTraceback=True, includeSystem=True)
    return f"{shown} {dict(event)!r}"
