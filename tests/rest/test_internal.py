"""What a node answers to other nodes, over a real socket on the internal address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import evolve, frozen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from orama.cluster.keyring import ClusterKey, Keyring, new_key
from orama.cluster.neighbours import Neighbours
from orama.cluster.rotation import change_key, rotate_cluster_key
from orama.cluster.signing import NODE, SIGNATURE, Verifier, sign
from orama.errors import Conflict, NotAuthenticated, Unavailable
from orama.rest.internal import CHALLENGE, Gate, NodeCalls, internal_routes, internal_site
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.settings import LimitSettings, Settings
from tests.rest.service import Answer, Listener, ServiceCase, ask

reactor: Any = _reactor

KEY = ClusterKey(0, b"k" * 32)
NODE_ID = "node-1"
TO = f"?to={NODE_ID}"
#: Path → a body that is right for it.
CHANGES: dict[str, dict[str, Any]] = {
    "/v1/internal/reconcile": {"namespace": "tenant"},
    "/v1/internal/rooms/close": {"namespace": "tenant", "room_id": "r", "reason": "deleted"},
    "/v1/internal/drain": {"draining": True},
    "/v1/internal/keys": {"stage": "accept", "sealed": "v1.x"},
}


class Recorded:
    """The calls of a node that only remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.raising: Exception | None = None

    def calls(self) -> NodeCalls:
        return NodeCalls(self.report, self.reconcile, self.close_room, self.room_stats, self.drain, self.change_key)

    def _remember(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.raising is not None:
            raise self.raising

    async def report(self) -> Mapping[str, Any]:
        self._remember("report")
        return {"node": {"node_id": NODE_ID}}

    async def reconcile(self, namespace: str | None) -> Mapping[str, Any]:
        self._remember("reconcile", namespace)
        return {"sfu_up": True}

    async def close_room(self, namespace: str, room_id: str, reason: str) -> bool:
        self._remember("close", namespace, room_id, reason)
        return True

    async def room_stats(self, namespace: str, room_id: str, peer_id: str | None) -> Mapping[str, Any] | None:
        self._remember("stats", namespace, room_id, peer_id)
        return {"peers": []} if peer_id else None

    async def drain(self, draining: bool) -> None:
        self._remember("drain", draining)

    async def change_key(self, stage: str, sealed: str) -> Mapping[str, Any]:
        self._remember("keys", stage, sealed)
        return {"current": "f", "keys": ["f"]}


class InternalSiteTests(TestCase):
    timeout = 120
    settings = evolve(Settings(), limits=LimitSettings(request_rate=1, request_burst=1))

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.recorded, self.unready = Recorded(), ""
        verifier = Verifier(Keyring([KEY]), self.clock)
        site = internal_site(
            self.clock,
            self.settings,
            {**internal_routes(Gate(verifier, NODE_ID), self.recorded.calls()), "v1/more": _More()},
            health=lambda: {"status": "ok"},
            ready=lambda: self.unready,
            metrics=lambda: b"orama_rooms 1.0\n",
        )
        self.base = Listener(self, site).base

    async def call(
        self, method: str, target: str, body: Any = None, *, headers: Any = None, key: bytes = KEY.secret
    ) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        if headers is None:
            headers = sign(key, method, target, content, "node-2", self.clock.seconds())
        return await ask(method, self.base + target, headers=headers, data=content)

    async def test_endpoints(self) -> None:
        """Each endpoint hands on what it was asked, and answers with what came of it."""
        answers = [await self.call("GET", "/v1/internal/report")]
        answers += [await self.call("POST", path + TO, body) for path, body in CHANGES.items()]
        answers.append(await self.call("POST", "/v1/internal/reconcile" + TO, {"namespace": None}))
        self.assertEqual([answer.status for answer in answers], [200] * 6)
        self.assertEqual(
            [answer.json for answer in answers],
            [
                {"node": {"node_id": NODE_ID}},
                {"sfu_up": True},
                {"closed": True},
                {"draining": True},
                {"current": "f", "keys": ["f"]},
                {"sfu_up": True},
            ],
        )
        self.assertEqual(
            self.recorded.asked,
            [
                ("report",),
                ("reconcile", "tenant"),
                ("close", "tenant", "r", "deleted"),
                ("drain", True),
                ("keys", "accept", "v1.x"),
                ("reconcile", None),
            ],
        )

    async def test_stats(self) -> None:
        """What goes on in a room is told of one room, or one peer of it."""
        path = "/v1/internal/rooms/stats?namespace=tenant"
        answers = [await self.call("GET", path + each) for each in ("&room_id=r", "&room_id=r&peer_id=p", "")]
        self.assertEqual([each.json for each in answers[:2]], [{"stats": None}, {"stats": {"peers": []}}])
        self.assertEqual(answers[2].outcome, (400, "invalid_request"))
        self.assertEqual(self.recorded.asked, [("stats", "tenant", "r", None), ("stats", "tenant", "r", "p")])

    async def test_not_signed(self) -> None:
        """Without a signature, with another key, or with a header too many, nothing is done: 401."""
        target = "/v1/internal/report"
        signed = sign(KEY.secret, "GET", target, b"", "node-2", self.clock.seconds())
        for headers in ({}, {**signed, SIGNATURE: "0" * 64}, {**signed, NODE: ["node-2", "node-3"]}):
            answer = await self.call("GET", target, headers=headers)
            self.assertEqual(answer.outcome, (401, "bad_signature"))
            self.assertEqual(answer.header("WWW-Authenticate"), CHALLENGE)
        for path, body in CHANGES.items():
            self.assertEqual((await self.call("POST", path + TO, body, headers={})).status, 401)
            self.assertEqual((await self.call("POST", path + TO, body, key=b"o" * 32)).status, 401)
        self.assertEqual(self.recorded.asked, [])

    async def test_replayed(self) -> None:
        """A request that comes twice is done once."""
        target, content = "/v1/internal/drain" + TO, b'{"draining":true}'
        headers = sign(KEY.secret, "POST", target, content, "node-2", self.clock.seconds())
        first, second = [await ask("POST", self.base + target, headers=headers, data=content) for _ in range(2)]
        self.assertEqual((first.status, second.outcome), (200, (401, "replayed_request")))
        self.assertEqual(self.recorded.asked, [("drain", True)])

    async def test_stale(self) -> None:
        """A request of another minute is refused, and says how far the clocks are apart."""
        target = "/v1/internal/report"
        headers = sign(KEY.secret, "GET", target, b"", "node-2", self.clock.seconds() + 90)
        answer = await self.call("GET", target, headers=headers)
        self.assertEqual(answer.outcome, (401, "stale_request"))
        self.assertIn("90 s", answer.json["error"])

    async def test_for_another_node(self) -> None:
        """What was signed for one node is no good at another; a change says whom it is for, a question may."""
        for path, body in CHANGES.items():
            for query in ("", "?to=node-3"):
                self.assertEqual((await self.call("POST", path + query, body)).outcome, (409, "wrong_node"))
        self.assertEqual((await self.call("GET", "/v1/internal/report?to=node-3")).outcome, (409, "wrong_node"))
        self.assertEqual((await self.call("GET", "/v1/internal/report" + TO)).status, 200)
        self.assertEqual(self.recorded.asked, [("report",)])

    async def test_bad_bodies(self) -> None:
        """A signed body with a field too few, too many or of another type is 400."""
        for path, body in CHANGES.items():
            name = next(iter(body))
            bodies: list[Any] = [{}, {**body, "more": 1}, {**body, name: 1}, {**body, name: [body[name]]}, [body]]
            for bad in bodies:
                answer = await self.call("POST", path + TO, bad)
                self.assertEqual(answer.outcome, (400, "invalid_request"), (path, bad))
        self.assertEqual(self.recorded.asked, [])

    async def test_errors(self) -> None:
        """An error with a name crosses with its name; any other is a bare 500."""
        self.recorded.raising = Unavailable("not_ready", "the node is starting")
        self.assertEqual((await self.call("GET", "/v1/internal/report")).outcome, (503, "not_ready"))
        self.recorded.raising = Conflict("key_superseded", "another")
        answer = await self.call("POST", "/v1/internal/keys" + TO, CHANGES["/v1/internal/keys"])
        self.assertEqual(answer.outcome, (409, "key_superseded"))
        self.recorded.raising = ValueError("secret")
        answer = await self.call("GET", "/v1/internal/report")
        self.assertEqual(answer.outcome, (500, "internal"))
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_methods(self) -> None:
        """A wrong method is 405 with Allow, another address 404."""
        answer = await self.call("POST", "/v1/internal/report" + TO, {})
        self.assertEqual((answer.status, answer.header("Allow")), (405, "GET, HEAD, OPTIONS"))
        self.assertEqual((await self.call("GET", "/v1/internal/keys")).status, 405)
        self.assertEqual((await self.call("GET", "/v1/internal")).status, 404)

    async def test_monitoring(self) -> None:
        """Health, readiness and metrics are there without a signature, and so is what else was given."""
        for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 200), ("/v1/more", 404)):
            self.assertEqual((await ask("GET", self.base + path)).status, status)
        self.unready = "waiting for RQLite"
        answer = await ask("GET", self.base + "/ready")
        self.assertEqual((answer.outcome, answer.json["error"]), ((503, "not_ready"), "waiting for RQLite"))

    async def test_rate(self) -> None:
        """Nodes may ask more often than strangers may: a lost node sends its callers all at once."""
        waiting: list[Deferred[Answer]] = [
            Deferred.fromCoroutine(self.call("GET", "/v1/internal/report")) for _ in range(50)
        ]
        self.assertEqual({(await answer).status for answer in waiting}, {200})


class _More(JsonResource):
    def __init__(self) -> None:
        super().__init__(Origins(()))


@frozen
class Place:
    node_id: str
    internal_ip: str
    internal_port: int


class RotationTests(TestCase):
    """Three nodes with files and sockets of their own."""

    timeout = 120

    async def test_over_the_wire(self) -> None:
        """All get the new key, one asks another at each step, and a stranger with the old one is refused."""
        first, rings, places = ClusterKey(0, new_key()), {}, {}
        for name in ("node-1", "node-2", "node-3"):
            directory = Path(self.mktemp())
            directory.mkdir()
            (directory / "cluster.key").touch(0o600)
            (directory / "cluster.key").write_text(first.text())
            ring = rings[name] = Keyring.load(directory / "cluster.key")
            calls = evolve(Recorded().calls(), change_key=partial(change_key, ring))
            site = internal_site(
                reactor,
                Settings(),
                internal_routes(Gate(Verifier(ring, reactor), name), calls),
                health=dict,
                ready=str,
                metrics=bytes,
            )
            places[name] = Place(name, "127.0.0.1", Listener(self, site).port)
        askers = {name: Neighbours(reactor, ring, name) for name, ring in rings.items()}

        async def everybody_asks() -> int:
            for asker in askers.values():
                for place in places.values():
                    await asker.get(place, "/v1/internal/report")
            return 0

        others = [places["node-2"], places["node-3"]]
        done = await rotate_cluster_key(
            rings["node-1"], askers["node-1"], others, everybody_asks, "node-1", reactor.seconds()
        )
        await everybody_asks()
        self.assertEqual({ring.fingerprints for ring in rings.values()}, {(done.fingerprint,)})
        stranger = Neighbours(reactor, Keyring([first]), "node-2")
        with self.assertRaises(NotAuthenticated):
            await stranger.get(places["node-3"], "/v1/internal/report")


class PublicSiteTests(ServiceCase):
    async def test_not_public(self) -> None:
        """What is for nodes does not exist on the public listener, signed or not."""
        for method, target in (("GET", "/v1/internal/report"), *(("POST", path + TO) for path in CHANGES)):
            headers = sign(KEY.secret, method, target, b"", "node-2", self.clock.seconds())
            answer = await ask(method, self.base + target, headers=headers)
            self.assertEqual(answer.outcome, (404, "not_found"), urlsplit(target).path)
