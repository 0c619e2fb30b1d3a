"""What an operator and an application learn of a call, from a running node: statistics, metrics and webhooks."""

from __future__ import annotations

import hmac
import json
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.contract import rtp
from tests.contract.camera import camera, microphone
from tests.contract.commands import data, run
from tests.contract.participant import Participant
from tests.contract.rest import ask, gauges
from tests.contract.stage import end, started, toml
from tests.contract.test_media import MediaTestCase
from tests.node import NodeProcess

ROOMS = "/v1/webrtc/rooms"
RECEIVED, FORWARDED = "orama_sfu_received_packets_total", "orama_sfu_forwarded_packets_total"
ASKED, RETRANSMITTED = "orama_sfu_nacks_sent_total", "orama_sfu_retransmitted_packets_total"


class StatsTests(MediaTestCase):
    def stats(self, query: str = "") -> dict[str, Any]:
        answer = ask(self.node, "GET", f"{ROOMS}?room_id={self.room}&stats=1{query}")
        self.assertEqual(answer.status, 200)
        [room] = answer.json["rooms"]
        found: dict[str, Any] = room["stats"]
        return found

    def test_room(self) -> None:
        """Of each track and each subscription: bitrate, loss, layer, estimate, keyframes and re-sends."""
        before = gauges(self.node, RECEIVED, FORWARDED, ASKED, RETRANSMITTED)
        made, [watcher] = self.call()
        [track] = watcher.told("track-added")
        made.frame(lost=True)
        deadline = time.monotonic() + 8
        subscription: dict[str, Any] = {"bitrate": None}
        while subscription["bitrate"] is None:
            self.assertLess(time.monotonic(), deadline, subscription)
            for _ in range(10):
                made.frame()
                self.pause(0.02)
            stats = self.stats()
            peers = {each["peer_id"]: each for each in stats["peers"]}
            publisher, subscriber = peers[made.participant.peer_id], peers[watcher.peer_id]
            [subscription] = subscriber["subscriptions"]
        self.assertEqual(set(stats), {"at", "left_out", "peers"})
        self.assertEqual((publisher["state"], subscriber["state"]), ("connected", "connected"))
        [told] = publisher["tracks"]
        self.assertEqual((told["track_id"], told["kind"], told["source"], told["codec"], told["muted"]),
                         (track["trackId"], "video", "camera", "VP8", False))  # fmt: skip
        self.assertEqual(told["subscribers"], 1)
        [stream] = told["streams"]
        self.assertEqual((stream["lost"], stream["nacks"], stream["keyframes"]), (1, 5, 1))
        self.assertGreaterEqual(stream["keyframe_requests"], 1)
        self.assertTrue(10_000 < stream["bitrate"] < 200_000, stream)
        self.assertEqual((subscription["track_id"], subscription["peer_id"], subscription["state"]),
                         (track["trackId"], publisher["peer_id"], "forwarding"))  # fmt: skip
        self.assertTrue(10_000 < subscription["bitrate"] < 200_000, subscription)
        ssrc, _ = watcher.track(track["mid"])
        watcher.control(rtp.nack(ssrc, watcher.of(ssrc)[-1].sequence))
        self.until(lambda: [packet for _, packet in watcher.packets if packet.ssrc != ssrc])
        self.until(lambda: self.subscription(watcher)["resends"] == 1)
        self.assertEqual((self.subscription(watcher)["nacks"], self.subscription(watcher)["packets"]),
                         (1, len(made.sent) - 1))  # fmt: skip
        grown: dict[str, float] = {}

        def counted() -> bool:
            grown.update({name: value - before[name] for name, value in gauges(self.node, *before).items()})
            return grown[RETRANSMITTED] == 1

        self.until(counted)
        self.assertTrue(grown[RECEIVED] >= 20 and grown[FORWARDED] >= 20 and grown[ASKED] == 5, grown)

    def subscription(self, watcher: Participant) -> dict[str, Any]:
        """The only one of *watcher*."""
        [found] = self.stats(f"&peer_id={watcher.peer_id}")["peers"][0]["subscriptions"]
        return dict(found)

    def test_queries(self) -> None:
        """A room that is not there is 404, an impossible question 400, one peer alone can be asked for, and a member
        may ask."""
        publisher, other = self.join(), self.join()
        publisher.publish(microphone())
        [peer] = self.stats(f"&peer_id={other.peer_id}")["peers"]
        self.assertEqual((peer["peer_id"], peer["state"]), (other.peer_id, "connecting"))
        for query, status, code in (
            ("?room_id=nobody-has-been-here&stats=1", 404, "room_not_found"),
            (f"?room_id={self.room}&stats=yes", 400, "invalid_request"),
            (f"?room_id={self.room}&stats=", 400, "invalid_request"),
            (f"?room_id={self.room}&stats=1&peer_id=%00", 400, "invalid_request"),
            (f"?room_id={self.room}&stats=1&stats=0", 400, "invalid_request"),
            (f"?room_id={self.room}&room_id=another&stats=1", 400, "invalid_request"),
            ("?room_id=a%20b&stats=1", 400, "invalid_request"),
            ("?room_id=%ff&stats=1", 400, "invalid_request"),
        ):
            answer = ask(self.node, "GET", f"{ROOMS}{query}")
            self.assertEqual((answer.status, answer.code), (status, code), query)
        answer = ask(self.node, "GET", f"{ROOMS}?room_id={self.room}&stats=1&peer_id=nobody")
        self.assertEqual(answer.json["rooms"][0]["stats"]["peers"], [])

    def test_transit(self) -> None:
        """The time that packets are in the node is a histogram."""
        _, [_watcher] = self.call()
        text = ask(self.node, "GET", "/metrics", headers={}).content.decode()
        for name in ("orama_sfu_transit_seconds", "orama_sfu_first_frame_seconds", "orama_join_seconds"):
            self.assertIn(f"# TYPE {name} histogram\n", text)
            [count] = [line for line in text.splitlines() if line.startswith(f"{name}_count")]
            self.assertGreater(float(count.rpartition(" ")[2]), 0)


class WebhookTests(MediaTestCase):
    SECRET = "correct horse battery staple, as long as it has to be"

    def started(self) -> NodeProcess:
        self.application = Application()
        self.addCleanup(self.application.close)
        webhooks = f'url = "{self.application.url}"\nsecret = "{self.SECRET}"\nretry = 0.1'
        node = started(config=toml(webhooks=webhooks, sfu="empty_room_timeout = 0"))
        self.addCleanup(end, node)
        return node

    def test_told(self) -> None:
        """Rooms, participants and tracks are told in order, signed, and again with the same bytes until somebody says
        yes."""
        self.application.answers = [500, 302, 503]
        publisher = self.join(userId="ada", metadata={"name": "Ada"})
        publisher.publish(camera())
        publisher.leave()
        self.until(lambda: self.application.taken("room_finished"))
        every = self.application.requests
        for headers, body in every:
            parts = dict(part.split("=", 1) for part in headers["Orama-Signature"].split(","))
            self.assertLess(abs(time.time() - int(parts["t"])), 60)
            signed = f"{parts['t']}.".encode() + body
            self.assertEqual(parts["v1"], hmac.new(self.SECRET.encode(), signed, "sha256").hexdigest())
            self.assertEqual(headers["Orama-Event-Id"], json.loads(body)["id"])
            self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual(len({body for _, body in every[:4]}), 1)
        told = [json.loads(body) for _, body in every[3:]]
        self.assertEqual(
            [each["event"] for each in told],
            ["room_started", "participant_joined", "track_published",
             "track_unpublished", "participant_left", "room_finished"],
        )  # fmt: skip
        for each in told:
            self.assertEqual((each["namespace"], each["room_id"]), ("default", self.room))
            self.assertLessEqual({"id", "created_at", "node_id", "room_created_at"}, set(each))
        _, joined, published, _, left, finished = told
        self.assertEqual((joined["user_id"], joined["metadata"]), ("ada", {"name": "Ada"}))
        self.assertEqual((published["kind"], published["source"], published["codec"]), ("video", "camera", "VP8"))
        self.assertEqual((left["reason"], finished["reason"]), ("left", "empty"))
        self.assertEqual(len({each["id"] for each in told}), 6)
        self.tried()

    def tried(self) -> None:
        """``orama webhook test`` sends one event, once, and says what came of it."""
        said = data(self.node, "webhook", "test", "--namespace", "default")
        self.assertEqual((set(said), said["namespace"]), ({"namespace", "id", "seconds"}, "default"))
        event = json.loads(self.application.requests[-1][1])
        self.assertEqual((event["event"], event["id"]), ("test", said["id"]))
        count = len(self.application.requests)
        self.application.answers = [500]
        for namespace, why in (("default", "does not take it"), ("nobody", "no such namespace")):
            done = run(self.node, "webhook", "test", "--namespace", namespace)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(why, done.stderr)
        self.assertEqual(len(self.application.requests), count + 1)


class Application:
    """Somebody who is told.

    :ivar requests: headers and body of each. :ivar answers: the next statuses; after them 204.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[Message, bytes]] = []
        self.answers: list[int] = []
        application = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = application.answers.pop(0) if application.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                application.requests.append((self.headers, body))

            def log_message(self, *_: object) -> None:
                """Nobody reads that."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/told"

    def taken(self, event: str) -> bool:
        return event in [json.loads(body)["event"] for _, body in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
