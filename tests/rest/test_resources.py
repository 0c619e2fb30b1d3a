"""Every row of the contract's section 3, over HTTP."""

from __future__ import annotations

import re
from base64 import b64encode
from hmac import digest
from importlib.util import find_spec
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SkipTest

from orama.cluster.rooms import LocalNode, RoomDirectory
from orama.rest.openapi import describe
from orama.settings import AuthSettings, Settings, WebSettings
from orama.sfu.qualities import Quality
from orama.sfu.stats import PeerStats, RoomStats, StreamStats, SubscriptionStats, TrackStats, as_json
from tests.cluster.test_rooms import Nodes
from tests.rest.service import ServiceCase

#: Of every kind one, with what may be missing once there and once not.
_STREAMS = (
    StreamStats("h", "high", 1.5e6, 10, 1, 0, 0.002, 0.01, 3, 1, 1),
    StreamStats("", None, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0),
)
_QUALITY = Quality(1, 0, 1.5e6)
_TRACK = TrackStats("t1", "video", "camera", "VP8", False, ("low", "high"), 4, _STREAMS, (_QUALITY,))
_COUNTS = (100, 2, 3, 1, 1, 0, {"resend_limit": 2})
_SUBSCRIPTIONS = (
    SubscriptionStats("t2", "p2", "video", "forwarding", "auto", 0, "high", _QUALITY, 1e6, *_COUNTS),
    SubscriptionStats("t3", None, "audio", "waiting", "auto", 0, None, None, None, *_COUNTS),
)
_MOMENT = 1_800_000_000.0
FIGURES = RoomStats(
    _MOMENT + 0.5, (PeerStats("p1", "ada", "connected", _MOMENT, 0.05, None, (_TRACK,), _SUBSCRIPTIONS),), 7
)


class CredentialsTests(ServiceCase):
    async def test_given(self) -> None:
        """A member gets the URIs in order, a user name with its expiry, the HMAC, and the ttl."""
        answer = await self.call("POST", "/v1/webrtc/turn/credentials", self.member)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("content-type"), "application/json")
        expiry = int(self.clock.seconds()) + 600
        secret = (await self.namespaces.config("tenant")).turn_secret
        username = f"{expiry}:tenant"
        self.assertEqual(
            answer.json,
            {
                "uris": [
                    "turn:127.0.0.1:3478?transport=udp",
                    "turn:127.0.0.1:3478?transport=tcp",
                    "turns:127.0.0.1:5349",
                ],
                "username": username,
                "password": b64encode(digest(secret.encode(), username.encode(), "sha1")).decode(),
                "ttl": 600,
            },
        )

    async def test_user(self) -> None:
        """Under a token the credentials are the user's own."""
        token = self.tokens.issue("tenant", "anna", ttl=60)
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self.call("POST", "/v1/webrtc/turn/credentials", headers=headers)
        self.assertTrue(answer.json["username"].endswith(":tenant:anna"))

    async def test_not_enabled(self) -> None:
        """Where WebRTC is not enabled there are none."""
        await self.namespaces.disable("tenant")
        answer = await self.call("POST", "/v1/webrtc/turn/credentials", self.member)
        self.assertEqual(answer.outcome, (404, "webrtc_not_enabled"))

    async def test_nobody(self) -> None:
        """Without a credential it is 401 with both challenges; every guarded address says so."""
        for method, path in (
            ("POST", "/v1/webrtc/turn/credentials"),
            ("GET", "/v1/webrtc/rooms"),
            ("POST", "/v1/webrtc/rooms"),
            ("DELETE", "/v1/webrtc/rooms"),
            ("POST", "/v1/namespace/webrtc/enable"),
            ("POST", "/v1/namespace/webrtc/disable"),
            ("GET", "/v1/namespace/webrtc/status"),
        ):
            answer = await self.call(method, path)
            self.assertEqual(answer.outcome, (401, "missing_credentials"))
            self.assertEqual(answer.header("www-authenticate"), 'ApiKey realm="orama", Bearer realm="orama"')
            answer = await self.call(method, path, "ak_wrong:tenant")
            self.assertEqual(answer.outcome, (401, "invalid_api_key"))


class RoomsTests(ServiceCase):
    path = "/v1/webrtc/rooms"

    async def test_life_of_a_room(self) -> None:
        """A room is made, shown with who is in it, and closed; everyone in it is told."""
        made = await self.call("POST", self.path, self.owner, json={"room_id": "a.b:c_d-1", "max_participants": 7})
        self.assertEqual(made.status, 201)
        room = {
            "room_id": "a.b:c_d-1",
            "participants": 0,
            "max_participants": 7,
            "node_id": "node-1",
            "created_at": "2027-01-15T08:00:00.000Z",
        }
        self.assertEqual(made.json, room)
        self.assertEqual(self.rooms.here, {("tenant", "a.b:c_d-1"): 0})
        self.rooms.here["tenant", "a.b:c_d-1"] = 3
        shown = await self.call("GET", self.path, self.member)
        self.assertEqual((shown.status, shown.json), (200, {"rooms": [{**room, "participants": 3}]}))
        gone = await self.call("DELETE", self.path + "?room_id=a.b:c_d-1", self.owner)
        self.assertEqual((gone.status, gone.body), (204, b""))
        self.assertEqual(self.rooms.closed, [("tenant", "a.b:c_d-1", "room-closed")])
        self.assertEqual((await self.call("GET", self.path, self.member)).json, {"rooms": []})

    async def test_twice(self) -> None:
        """A room that is there cannot be made again."""
        await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        answer = await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        self.assertEqual(answer.outcome, (409, "room_exists"))

    async def test_on_another_node(self) -> None:
        """The rooms are the whole cluster's: one of another node is shown with its count, and closed there."""
        nodes = Nodes("node-1", sfus=("node-2",))
        self.node.directory = RoomDirectory(self.database, nodes, self.clock, 100, nodes.places)
        self.serve(self.make_site())
        made = await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        self.assertEqual((made.status, made.json["node_id"]), (201, "node-2"))
        self.assertEqual(self.rooms.here, {})
        await RoomDirectory(self.database, LocalNode("node-2"), self.clock, 100).count("tenant", "r", 4)
        (shown,) = (await self.call("GET", self.path, self.member)).json["rooms"]
        self.assertEqual((shown["node_id"], shown["participants"]), ("node-2", 4))
        await self.call("DELETE", self.path + "?room_id=r", self.owner)
        self.assertEqual(self.rooms.closed, [("tenant", "r", "room-closed")])

    async def test_one(self) -> None:
        """One room can be asked for alone, and what goes on there; of a room that nobody was in yet nothing does."""
        await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        (listed,) = (await self.call("GET", self.path, self.member)).json["rooms"]
        one = await self.call("GET", self.path + "?room_id=r", self.member)
        self.assertEqual((one.status, one.json), (200, {"rooms": [listed]}))
        silent = await self.call("GET", self.path + "?room_id=r&stats=1", self.member)
        self.assertEqual(silent.json, {"rooms": [{**listed, "stats": None}]})
        self.rooms.figures = as_json(FIGURES)
        told = await self.call("GET", self.path + "?room_id=r&stats=1&peer_id=p1", self.member)
        (room,) = told.json["rooms"]
        self.assertEqual((room["stats"]["at"], room["stats"]["left_out"]), ("2027-01-15T08:00:00.500Z", 7))
        (peer,) = room["stats"]["peers"]
        self.assertEqual((peer["joined_at"], peer["round_trip"]), ("2027-01-15T08:00:00.000Z", 0.05))
        self.assertEqual(self.rooms.asked, [("tenant", "r", None), ("tenant", "r", "p1")])
        self.described(told.json)

    def described(self, answer: Any) -> None:
        """It is as the description has it."""
        if find_spec("jsonschema_rs") is None:
            raise SkipTest("jsonschema_rs is not installed")
        import jsonschema_rs

        document = describe(self.settings)
        schema = {"$ref": "#/components/schemas/Rooms", "components": document["components"]}
        jsonschema_rs.validator_for(schema).validate(answer)
        answer["rooms"][0]["stats"]["peers"][0]["tracks"][0]["more"] = 1
        self.assertFalse(jsonschema_rs.validator_for(schema).is_valid(answer))

    async def test_one_that_is_not_told(self) -> None:
        """No room of that name is 404, one that the token is not for 403, nonsense 400, a node that is silent 503."""
        await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        for asked, outcome in (
            ("?room_id=other&stats=1", (404, "room_not_found")),
            ("?stats=2", (400, "invalid_request")),
            ("?room_id=r&stats=1&peer_id=%2F", (400, "invalid_request")),
        ):
            self.assertEqual((await self.call("GET", self.path + asked, self.owner)).outcome, outcome, asked)
        token = self.tokens.issue("tenant", "anna", ttl=60, rooms=["mine"])
        answer = await self.call("GET", self.path + "?room_id=r", headers={"Authorization": f"Bearer {token}"})
        self.assertEqual(answer.outcome, (403, "forbidden"))
        self.rooms.broken = True
        answer = await self.call("GET", self.path + "?room_id=r&stats=1", self.owner)
        self.assertEqual(answer.outcome, (503, "node_unreachable"))

    async def test_not_there(self) -> None:
        """A room that is not there cannot be closed."""
        answer = await self.call("DELETE", self.path + "?room_id=r", self.owner)
        self.assertEqual(answer.outcome, (404, "room_not_found"))

    async def test_owners_only(self) -> None:
        """A member makes and closes nothing."""
        for method in ("POST", "DELETE"):
            answer = await self.call(method, self.path + "?room_id=r", self.member, json={"room_id": "r"})
            self.assertEqual(answer.outcome, (403, "forbidden"))
        self.assertEqual(await self.node.directory.list("tenant"), [])

    async def test_room_claim(self) -> None:
        """An owner's token for certain rooms makes and closes only those."""
        token = self.tokens.issue("tenant", "anna", ttl=60, role="owner", rooms=["mine"])
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self.call("POST", self.path, headers=headers, json={"room_id": "other"})
        self.assertEqual(answer.outcome, (403, "forbidden"))
        answer = await self.call("POST", self.path, headers=headers, json={"room_id": "mine"})
        self.assertEqual(answer.status, 201)

    async def test_bad_bodies(self) -> None:
        """Each wrong body has its exact answer and makes nothing."""
        for body, code in (
            (b"", "invalid_json"),
            (b"{", "invalid_json"),
            (b"\xff", "invalid_json"),
            (b'{"room_id": NaN}', "invalid_json"),
            (b"[" * 60000, "invalid_json"),
            (b"[]", "invalid_request"),
            (b'"room"', "invalid_request"),
            (b"{}", "invalid_request"),
            (b'{"room_id": 5}', "invalid_request"),
            (b'{"room_id": ""}', "invalid_request"),
            (b'{"room_id": "a b"}', "invalid_request"),
            (b'{"room_id": "r\\n"}', "invalid_request"),
            (b'{"room_id": "' + b"r" * 129 + b'"}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": 0}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": 101}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": 1.5}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": true}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": null}', "invalid_request"),
            (b'{"room_id": "r", "max_participants": "5"}', "invalid_request"),
            (b'{"room_id": "r", "max_participant": 5}', "invalid_request"),
        ):
            answer = await self.call("POST", self.path, self.owner, data=body)
            self.assertEqual(answer.outcome, (400, code), body[:40])
            self.assertEqual(set(answer.json), {"error", "code"})
        self.assertEqual(await self.node.directory.list("tenant"), [])

    async def test_bad_queries(self) -> None:
        """A room id that is missing, wrong, double or not UTF-8 is a bad request."""
        for query in ("", "?room_id=", "?room_id=a%20b", "?room_id=a&room_id=b", "?room_id=%ff", "?room=a"):
            answer = await self.call("DELETE", self.path + query, self.owner)
            self.assertEqual(answer.outcome, (400, "invalid_request"), query)

    async def test_other_tenant(self) -> None:
        """Another namespace's key sees and closes nothing of ours."""
        await self.namespaces.create("other")
        stranger = (await self.namespaces.create_key("other", "owner")).text
        await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        self.assertEqual((await self.call("GET", self.path, stranger)).json, {"rooms": []})
        answer = await self.call("DELETE", self.path + "?room_id=r", stranger)
        self.assertEqual(answer.outcome, (404, "room_not_found"))

    async def test_not_enabled(self) -> None:
        """Where WebRTC is not enabled there are no rooms."""
        await self.namespaces.disable("tenant")
        for method in ("GET", "POST", "DELETE"):
            answer = await self.call(method, self.path + "?room_id=r", self.owner, json={"room_id": "r"})
            self.assertEqual(answer.outcome, (404, "webrtc_not_enabled"))

    async def test_sfu_refuses(self) -> None:
        """When the SFU cannot make the room, its claim goes too, and the client sees a bare 500."""
        self.rooms.broken = True
        answer = await self.call("POST", self.path, self.owner, json={"room_id": "r"})
        self.assertEqual(answer.outcome, (500, "internal"))
        self.assertNotIn(b"no room can be made", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(await self.node.directory.list("tenant"), [])


class EnablementTests(ServiceCase):
    async def test_off_and_on(self) -> None:
        """An owner disables and enables; doing either twice is a conflict with its own code."""
        for verb in ("disable", "enable"):
            answer = await self.call("POST", f"/v1/namespace/webrtc/{verb}", self.owner)
            message = f"WebRTC is {verb}d"
            self.assertEqual(
                (answer.status, answer.json), (200, {"status": "ok", "namespace": "tenant", "message": message})
            )
            again = await self.call("POST", f"/v1/namespace/webrtc/{verb}", self.owner)
            self.assertEqual(again.outcome, (409, "not_enabled" if verb == "disable" else "already_enabled"))

    async def test_owners_only(self) -> None:
        """A member does neither."""
        for verb in ("disable", "enable"):
            answer = await self.call("POST", f"/v1/namespace/webrtc/{verb}", self.member)
            self.assertEqual(answer.outcome, (403, "forbidden"))

    async def test_no_free_ports(self) -> None:
        """When no ports are left, enabling is 507 and has done nothing."""
        await self.namespaces.disable("tenant")
        self.node.busy.update(("sfu-media", 20000 + 500 * block) for block in range(20))
        answer = await self.call("POST", "/v1/namespace/webrtc/enable", self.owner)
        self.assertEqual(answer.outcome, (507, "no_free_ports"))
        self.node.busy.clear()
        answer = await self.call("POST", "/v1/namespace/webrtc/enable", self.owner)
        self.assertEqual(answer.status, 200)

    async def test_status(self) -> None:
        """A member sees what is wanted beside what runs, and no secret."""
        answer = await self.call("GET", "/v1/namespace/webrtc/status", self.member)
        self.assertEqual(answer.status, 200)
        desired = {
            "enabled": True,
            "sfu_node_count": 1,
            "turn_node_count": 1,
            "turn_credential_ttl": 600,
            "rooms_on_join": True,
            "enabled_by": "namespace create",
            "enabled_at": "2027-01-15T08:00:00.000Z",
            "disabled_at": None,
        }
        nodes = [{"node_id": "node-1", "sfu_up": True, "turn_up": False}]
        expected = {"namespace": "tenant", "enabled": True, "desired": desired, "observed": {"nodes": nodes}}
        self.assertEqual(answer.json, expected)
        secret = (await self.namespaces.config("tenant")).turn_secret
        self.assertNotIn(secret, answer.body.decode())


class NodeTests(ServiceCase):
    async def test_health(self) -> None:
        """The process answers, to anyone, also through a proxy."""
        for headers in ({}, {"X-Forwarded-For": "192.0.2.1"}):
            answer = await self.call("GET", "/health", headers=headers)
            self.assertEqual((answer.status, answer.json), (200, {"status": "ok"}))

    async def test_ready(self) -> None:
        """Readiness, or the reason why not."""
        answer = await self.call("GET", "/ready")
        self.assertEqual((answer.status, answer.json), (200, {"status": "ready"}))
        self.unready = "the node is draining"
        answer = await self.call("GET", "/ready")
        self.assertEqual((answer.status, answer.json), (503, {"error": "the node is draining", "code": "not_ready"}))

    async def test_metrics(self) -> None:
        """The text of Prometheus, under its type."""
        answer = await self.call("GET", "/metrics")
        self.assertEqual((answer.status, answer.body), (200, b"orama_rooms 1.0\n"))
        self.assertEqual(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8")

    async def test_not_through_a_proxy(self) -> None:
        """Through a proxy neither readiness nor metrics are there, whatever the method."""
        for path in ("/ready", "/metrics"):
            for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
                for method in ("GET", "POST", "OPTIONS"):
                    answer = await self.call(method, path, headers={name: "127.0.0.1"})
                    self.assertEqual(answer.outcome, (404, "not_found"))


class OtherInternalAddressTests(ServiceCase):
    settings = Settings(internal_ip="127.0.0.2")

    async def test_only_there(self) -> None:
        """On an address that is not the internal one, there is no readiness and there are no metrics."""
        for path in ("/ready", "/metrics"):
            self.assertEqual((await self.call("GET", path)).outcome, (404, "not_found"))
        self.assertEqual((await self.call("GET", "/health")).status, 200)


class GuestTests(ServiceCase):
    path = "/v1/webrtc/guest"

    async def setUp(self) -> None:
        await super().setUp()
        await self.namespaces.create("default")

    async def test_token(self) -> None:
        """A browser on this machine gets a member token of ``default`` for twelve hours, each another user."""
        users = set()
        for host in (f"127.0.0.1:{self.port}", "localhost:6001", "room.localhost", "[::1]:6001"):
            answer = await self.call("POST", self.path, headers={"Host": host, "Origin": f"http://{host}"})
            self.assertEqual((answer.status, answer.json["namespace"]), (200, "default"))
            claims = self.tokens.verify(answer.json["token"])
            self.assertEqual((claims.namespace, claims.role), ("default", "member"))
            self.assertEqual(claims.expires, self.clock.seconds() + 12 * 3600)
            users.add(claims.sub)
        self.assertEqual(len(users), 4)

    async def test_not_local(self) -> None:
        """Through a proxy, under another name, or from another origin's page there is none."""
        for headers in (
            {"X-Forwarded-For": "127.0.0.1"},
            {"Forwarded": "for=127.0.0.1"},
            {"Host": "rebound.example.org"},
            {"Host": "192.0.2.1:6001"},
            {"Host": "localhost.example.org"},
            {"Origin": "https://example.org"},
            {"Origin": "null"},
            {"Host": "localhost:6001", "Origin": "http://localhost:8080"},
        ):
            answer = await self.call("POST", self.path, headers=headers)
            self.assertEqual(answer.outcome, (403, "guests_not_allowed"), headers)

    async def test_not_enabled(self) -> None:
        """Without WebRTC in ``default`` there is nothing to be a guest of."""
        await self.namespaces.disable("default")
        self.assertEqual((await self.call("POST", self.path)).outcome, (404, "webrtc_not_enabled"))


class NoGuestsTests(ServiceCase):
    settings = evolve(Settings(), web=WebSettings(local_guests=False, room_page=False))

    async def test_refused(self) -> None:
        """Where the settings allow no guests there are none, and without the room page nothing is at ``/``."""
        self.assertEqual((await self.call("POST", "/v1/webrtc/guest")).outcome, (403, "guests_not_allowed"))
        self.assertEqual((await self.call("GET", "/")).outcome, (404, "not_found"))
        self.assertEqual((await self.call("GET", "/index.html")).outcome, (404, "not_found"))


class ShortTokenTests(ServiceCase):
    settings = evolve(Settings(), auth=AuthSettings(max_token_ttl=600))

    async def test_shorter(self) -> None:
        """A guest's token lives no longer than any token may."""
        await self.namespaces.create("default")
        token = (await self.call("POST", "/v1/webrtc/guest")).json["token"]
        self.assertEqual(self.tokens.verify(token).expires, self.clock.seconds() + 600)


class PageTests(ServiceCase):
    async def test_page(self) -> None:
        """The room page is at ``/``, with a policy that allows nothing inline and nothing from elsewhere."""
        for path in ("/", "/index.html", "/?room=a"):
            answer = await self.call("GET", path)
            self.assertEqual((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"))
            policy = answer.header("content-security-policy") or ""
            self.assertNotIn("unsafe", policy)
            self.assertIn("script-src 'self';", policy)
            self.assertIn("frame-ancestors 'none'", policy)
            self.assertIn(f"connect-src 'self' ws://127.0.0.1:{self.port} wss://127.0.0.1:{self.port};", policy)
            self.assertEqual(answer.header("permissions-policy"), "camera=(self), microphone=(self)")
        self.assertIn(b"<title>", answer.body)

    async def test_everything_the_page_names(self) -> None:
        """Every file that the page names is there, under its right type."""
        page = (await self.call("GET", "/")).body.decode()
        names = {name.partition("#")[0] for name in re.findall(r'(?:src|href)="([^":?]+)"', page)} - {""}
        self.assertIn("room.css", names)
        types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
        for name in names:
            answer = await self.call("GET", f"/{name}")
            self.assertEqual(answer.status, 200, name)
            kind = types[name[name.rindex(".") :]]
            self.assertEqual((answer.header("content-type") or "").partition(";")[0], kind)
            self.assertEqual(answer.header("x-content-type-options"), "nosniff")

    async def test_not_modified(self) -> None:
        """A file that the browser has is not sent again."""
        first = await self.call("GET", "/room.css")
        tag = first.header("etag")
        again = await self.call("GET", "/room.css", headers={"If-None-Match": f'"other", W/{tag}'})
        self.assertEqual((again.status, again.body, again.header("etag")), (304, b"", tag))

    async def test_nothing_else(self) -> None:
        """Neither source nor what lies outside of the package can be fetched."""
        for path in ("/__init__.py", "/../settings.py", "/%2e%2e/settings.py", "/..%2fsettings.py", "/room.css/"):
            self.assertEqual((await self.call("GET", path)).outcome, (404, "not_found"), path)

    async def test_strange_host(self) -> None:
        """A host name that could say something in a policy is left out of it."""
        answer = await self.call("GET", "/", headers={"Host": "x; script-src *"})
        self.assertNotIn("script-src *", answer.header("content-security-policy") or "")
