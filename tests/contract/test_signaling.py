"""Contract, section 4: every message, every error and closing code. ``test_times`` has what takes its time."""

from __future__ import annotations

import itertools
import json
import sqlite3
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websocket import ABNF

from tests.contract import sdp, turn
from tests.contract.commands import OTHER, key, temporary
from tests.contract.rest import ask
from tests.contract.signalling import Client, connect, join
from tests.contract.stage import shared, strict
from tests.node import NodeProcess

_rooms = itertools.count(1)


class SignalingTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = self.started()
        self.room = f"room-{next(_rooms)}"

    def started(self) -> NodeProcess:
        return shared()

    def connect(self, query: str | None = None) -> Client:
        client = (
            connect(self.node, self.room)
            if query is None
            else Client(self.node, query, headers={"X-API-Key": self.node.key})
        )
        self.addCleanup(client.close)
        return client

    def join(self, key: str = "", **fields: object) -> Client:
        client = join(self.node, self.room, key, **fields)
        self.addCleanup(client.close)
        return client

    def member(self) -> str:
        return key(self.node)

    def peer_id(self, client: Client) -> str:
        peer_id: str = client.received[0]["peerId"]
        return peer_id


class JoinTests(SignalingTestCase):
    def test_order_and_fields(self) -> None:
        """``welcome``, then ``turn-credentials``, then nothing unasked; the others learn of it."""
        first = self.join(userId="ann", metadata={"name": "Ann"})
        welcome, credentials = first.received
        self.assertEqual(set(welcome), {"type", "peerId", "roomId", "userId", "resume", "peers"})
        self.assertEqual((welcome["roomId"], welcome["userId"], welcome["peers"]), (self.room, "ann", []))
        self.assertEqual(set(credentials), {"type", "uris", "username", "password", "ttl"})
        self.assertEqual((len(credentials["uris"]), credentials["ttl"]), (3, 600))
        second = self.join(userId="bob")
        peer = {"peerId": welcome["peerId"], "userId": "ann", "metadata": {"name": "Ann"}, "tracks": []}
        self.assertEqual(second.received[0]["peers"], [peer])
        joined = first.until("peer-joined")
        self.assertEqual((set(joined), joined["userId"]), ({"type", "peerId", "userId", "metadata"}, "bob"))
        self.assertEqual(joined["peerId"], self.peer_id(second))
        self.assertNotEqual(self.peer_id(first), self.peer_id(second))

    def test_credentials_work(self) -> None:
        """What ``turn-credentials`` says makes an allocation, over UDP, TCP and TLS."""
        client = self.join()
        for transport in ("udp", "tcp", "tls"):
            relay = turn.of(client.received[1], transport)
            self.assertEqual(relay.allocate().code, 0, transport)
            relay.release()

    def test_room_of_message_and_address(self) -> None:
        """The room may stand in either place; in both it must be the same."""
        client = self.connect("")
        client.say("join", roomId=self.room)
        self.assertEqual(client.until("welcome")["roomId"], self.room)
        client = self.connect()
        client.say("join", roomId="another")
        error = client.until("error")
        self.assertEqual((error["code"], error["fatal"]), ("room_mismatch", False))
        client.say("join", roomId=self.room)
        client.until("welcome")
        client = self.connect("")
        client.say("join")
        self.assertEqual(client.error(), "invalid_join")

    def test_impossible_room(self) -> None:
        """A room id that cannot be is ``invalid_join`` in a message and 4404 in the address."""
        client = self.connect("")
        client.say("join", roomId="a b")
        self.assertEqual(client.error(), "invalid_join")
        self.assertEqual(self.connect("?room=a%20b").until_closed(), 4404)

    def test_second_join(self) -> None:
        """``invalid_join``, not fatal, and the room has one peer as before."""
        client = self.join()
        client.say("join")
        error = client.until("error")
        self.assertEqual((error["code"], error["fatal"]), ("invalid_join", False))
        self.assertEqual(self.join().received[0]["peers"][0]["peerId"], self.peer_id(client))

    def test_bad_fields(self) -> None:
        """A ``join`` with wrong fields is ``invalid_join``, and a right one may follow."""
        client = self.connect()
        fields: Any
        for fields in (
            {"userId": 7},
            {"userId": ""},
            {"resume": []},
            {"metadata": "x" * 5000},
            {"roomId": None, "userId": "x" * 999},
        ):
            client.say("join", **fields)
            self.assertEqual(client.error(), "invalid_join", fields)
        client.say("join", userId=None, metadata=None, resume=None, roomId=None)
        client.until("welcome")

    def test_not_joined(self) -> None:
        """Before joining everything but ``join`` and ``offer`` is ``not_joined``."""
        client = self.connect()
        for kind, fields in (
            ("answer", {"sdp": "v=0"}),
            ("ice-candidate", {"candidate": ""}),
            ("track-state", {"trackId": "t", "muted": True}),
            ("subscribe", {"trackId": "t"}),
            ("unsubscribe", {"trackId": "t"}),
            ("kick", {"peerId": "p"}),
            ("mute", {"trackId": "t"}),
            ("leave", {}),
        ):
            client.say(kind, **fields)
            self.assertEqual(client.error(), "not_joined", kind)
        client.say("join")
        client.until("welcome")

    def test_offer_first(self) -> None:
        """The seed's sample: an ``offer`` that comes first joins the room and publishes; all messages are flat."""
        client = self.connect()
        client.say("offer", sdp=sdp.offer("audio", "video"))
        welcome, credentials, answer = client.until("welcome"), client.until("turn-credentials"), client.until("answer")
        self.assertEqual([message["type"] for message in client.received], ["welcome", "turn-credentials", "answer"])
        self.assertEqual(set(answer), {"type", "sdp"})
        self.assertEqual(set(credentials), {"type", "uris", "username", "password", "ttl"})
        watcher = self.join()
        [peer] = watcher.received[0]["peers"]
        self.assertEqual(peer["peerId"], welcome["peerId"])
        self.assertEqual([(track["kind"], track["source"]) for track in peer["tracks"]],
                         [("audio", "microphone"), ("video", "camera")])  # fmt: skip

    def test_offer_first_nowhere(self) -> None:
        """Without ``?room=`` there is no room that an offer could join."""
        client = self.connect("")
        client.say("offer", sdp=sdp.offer("audio"))
        self.assertEqual(client.error(), "invalid_join")

    def test_bad_offer_first(self) -> None:
        """The room is joined, and the error says what is wrong with the offer."""
        client = self.connect()
        client.say("offer", sdp="nonsense")
        client.until("turn-credentials")
        self.assertEqual(client.error(), "invalid_offer")


class LeaveTests(SignalingTestCase):
    def test_leave(self) -> None:
        """The others learn it at once with ``left``, and the socket closes with 1000."""
        first, second = self.join(), self.join()
        second.say("leave")
        self.assertEqual(second.until_closed(), 1000)
        left = first.until("peer-left")
        self.assertEqual(left, {"type": "peer-left", "peerId": self.peer_id(second), "reason": "left"})

    def test_kick(self) -> None:
        """An owner's ``kick``: ``kicked``, the socket closes, and the others learn why."""
        owner, other, third = self.join(), self.join(self.member()), self.join()
        owner.say("kick", peerId=self.peer_id(other))
        self.assertEqual(other.until("kicked"), {"type": "kicked", "reason": "kicked"})
        self.assertEqual(other.until_closed(), 1000)
        left = {"type": "peer-left", "peerId": self.peer_id(other), "reason": "kicked"}
        self.assertEqual((owner.until("peer-left"), third.until("peer-left")), (left, left))

    def test_members_may_not(self) -> None:
        """``kick`` and ``mute`` of a member are ``forbidden``, and nothing happens."""
        owner, other = self.join(), self.join(self.member())
        other.say("kick", peerId=self.peer_id(owner))
        self.assertEqual(other.error(), "forbidden")
        other.say("mute", trackId="t")
        self.assertEqual(other.error(), "forbidden")
        owner.settled()
        self.assertIsNone(owner.code)

    def test_nobody_to_kick(self) -> None:
        """Somebody who is not there cannot be put out; a track that is not there is ``unknown_track``."""
        owner = self.join()
        owner.say("kick", peerId="nobody")
        self.assertEqual(owner.error(), "invalid_message")
        owner.say("mute", trackId="nothing")
        self.assertEqual(owner.error(), "unknown_track")


class TrackTests(SignalingTestCase):
    """What is told of tracks, without any media."""

    def setUp(self) -> None:
        super().setUp()
        self.publisher = self.join()
        self.watcher = self.join()

    def publish(self, *kinds: str, **fields: object) -> str:
        self.publisher.say("offer", sdp=sdp.offer(*kinds), **fields)
        text: str = self.publisher.until("answer")["sdp"]
        return text

    def take(self) -> str:
        """Answer the SFU's offer; its text."""
        offered: str = self.watcher.until("offer")["sdp"]
        self.watcher.say("answer", sdp=sdp.answer(offered))
        return offered

    def test_answer(self) -> None:
        """ICE-lite, passive, bundled on one port of the media block, one candidate on the internal address."""
        answer = self.publish("audio", "video", "data")
        self.assertIn("a=ice-lite\r\n", answer)
        self.assertEqual({line for line in answer.splitlines() if line.startswith("a=setup")}, {"a=setup:passive"})
        self.assertEqual(sdp.value(answer, "group"), "BUNDLE 0 1 2")
        host, port = sdp.media_address(answer)
        self.assertEqual(host, "127.0.0.1")
        self.assertTrue(20000 <= port <= 29999)
        for needed in ("a=rtcp-mux", "a=rtcp-rsize", "a=sctp-port:5000", "a=max-message-size:262144", "transport-cc"):
            self.assertIn(needed, answer)
        self.assertNotIn("a=sendrecv", answer)

    def test_track_added(self) -> None:
        """peerId, trackId, kind, source, mid of the receiver's own connection, and layers; the offer follows."""
        self.publish("audio", "video", "video", sources={"2": "screen"})
        added = [self.watcher.until("track-added") for _ in range(3)]
        self.assertEqual([(each["kind"], each["source"]) for each in added],
                         [("audio", "microphone"), ("video", "camera"), ("video", "screen")])  # fmt: skip
        for each in added:
            self.assertLessEqual({"type", "peerId", "trackId", "kind", "source", "mid", "layers"}, set(each))
            self.assertEqual(each["peerId"], self.peer_id(self.publisher))
        self.assertEqual(len({each["trackId"] for each in added}), 3)
        offered = self.take()
        for each in added:
            self.assertIn(f"a=mid:{each['mid']}\r\n", offered)
            self.assertIn(f"a=msid:{each['peerId']} {each['trackId']}\r\n", offered)
        self.assertIn("a=setup:actpass\r\n", offered)
        self.assertIn("a=ice-lite\r\n", offered)
        self.watcher.settled()

    def test_same_msid_twice(self) -> None:
        """Two tracks that name themselves alike never collide."""
        self.publisher.say("offer", sdp=sdp.offer("video", "video", msids=["s same", "s same"]))
        self.publisher.until("answer")
        self.assertNotEqual(self.watcher.until("track-added")["trackId"], self.watcher.until("track-added")["trackId"])

    def test_track_state(self) -> None:
        """A publisher says that it is muted; the others hear it with the trackId."""
        self.publish("audio")
        track_id = self.watcher.until("track-added")["trackId"]
        self.take()
        for muted in (True, False):
            self.publisher.say("track-state", trackId=track_id, muted=muted)
            self.assertEqual(
                self.watcher.until("track-state"), {"type": "track-state", "trackId": track_id, "muted": muted}
            )
        self.watcher.say("track-state", trackId=track_id, muted=True)
        self.assertEqual(self.watcher.error(), "unknown_track")

    def test_mute(self) -> None:
        """An owner mutes somebody's track: everybody hears it, the publisher too."""
        self.publish("audio")
        track_id = self.watcher.until("track-added")["trackId"]
        self.watcher.say("mute", trackId=track_id)
        for client in (self.watcher, self.publisher):
            self.assertEqual(client.until("track-state"), {"type": "track-state", "trackId": track_id, "muted": True})

    def test_subscribe_and_unsubscribe(self) -> None:
        """Unsubscribing takes the m-line back, subscribing brings it again."""
        self.publish("audio", "video")
        video = [self.watcher.until("track-added") for _ in range(2)][1]
        self.take()
        self.watcher.say("unsubscribe", trackId=video["trackId"])
        self.assertNotIn(f"a=msid:{video['peerId']} {video['trackId']}", self.take())
        self.watcher.say("subscribe", trackId=video["trackId"], layer="low", priority=3)
        self.assertIn(f"a=msid:{video['peerId']} {video['trackId']}", self.take())
        for kind in ("subscribe", "unsubscribe"):
            self.watcher.say(kind, trackId="nothing")
            self.assertEqual(self.watcher.error(), "unknown_track")
        for wrong in ({"layer": "best"}, {"priority": -1}, {"priority": "high"}, {"trackId": None}):
            self.watcher.say("subscribe", **{"trackId": video["trackId"], **wrong})
            self.assertEqual(self.watcher.error(), "invalid_message", wrong)

    def test_track_removed(self) -> None:
        """A publisher that takes a track back, or leaves, takes it from everybody."""
        self.publish("audio", "video")
        added = [self.watcher.until("track-added") for _ in range(2)]
        self.take()
        text = sdp.offer("audio", "video", version=2)
        head, _, video = text.rpartition("m=video")
        self.publisher.say("offer", sdp=f"{head}m=video{video.replace('a=sendonly', 'a=inactive')}")
        removed = self.watcher.until("track-removed")
        for name in ("peerId", "trackId", "kind", "source", "mid", "layers"):
            self.assertEqual(removed[name], added[1][name], name)
        self.take()
        self.publisher.say("leave")
        self.assertEqual(self.watcher.until("track-removed")["trackId"], added[0]["trackId"])
        self.assertEqual(self.watcher.until("peer-left")["reason"], "left")

    def test_glare(self) -> None:
        """When both offer at once the SFU yields: it answers, and offers again."""
        self.publish("audio")
        self.watcher.until("offer")
        self.watcher.say("offer", sdp=sdp.offer("audio", "video"))
        self.watcher.until("answer")
        again = self.take()
        self.assertIn(f"a=msid:{self.peer_id(self.publisher)} ", again)
        self.assertEqual(self.publisher.until("track-added")["peerId"], self.peer_id(self.watcher))
        self.watcher.settled()

    def test_answer_without_an_offer(self) -> None:
        """``invalid_answer``; so is one that does not fit, and the offer is made again."""
        self.publisher.say("answer", sdp=sdp.answer(sdp.offer("audio")))
        self.assertEqual(self.publisher.error(), "invalid_answer")
        self.publish("audio")
        offered = self.watcher.until("offer")["sdp"]
        self.watcher.say("answer", sdp=sdp.answer(sdp.offer("video", "video")))
        self.assertEqual(self.watcher.error(), "invalid_answer")
        self.assertEqual(self.take().count("m="), offered.count("m="))
        self.watcher.settled()


class CandidateTests(SignalingTestCase):
    LINE = "candidate:1 1 udp 2130706431 {ip} 50000 typ {kind}"

    def test_relay_only(self) -> None:
        """Candidates that are not ``relay`` are refused; relay ones and the end of them are taken."""
        client = self.join()
        place = {"sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd"}
        for kind in ("host", "srflx raddr 0.0.0.0 rport 0", "prflx raddr 0.0.0.0 rport 0"):
            client.say("ice-candidate", candidate=self.LINE.format(ip="192.0.2.1", kind=kind), **place)
            self.assertEqual(client.error(), "invalid_candidate", kind)
        client.say(
            "ice-candidate", candidate=self.LINE.format(ip="127.0.0.1", kind="relay raddr 0.0.0.0 rport 0"), **place
        )
        client.say("ice-candidate", candidate="", **place)
        client.say("ice-candidate", candidate="", sdpMid=None, sdpMLineIndex=None)
        client.settled()

    def test_malformed(self) -> None:
        """What is no candidate is ``invalid_candidate``."""
        client = self.join()
        for fields in (
            {},
            {"candidate": 7},
            {"candidate": "nonsense"},
            {"candidate": "candidate:1 1 udp x 127.0.0.1 1 typ relay"},
            {"candidate": "x" * 2000},
            {"candidate": "", "sdpMLineIndex": "0"},
        ):
            client.say("ice-candidate", **fields)
            self.assertEqual(client.error(), "invalid_candidate", fields)


class MessageTests(SignalingTestCase):
    def test_invalid_message(self) -> None:
        """What is no JSON object with a type is ``invalid_message``; the socket stays."""
        client = self.join()
        for text in (
            "",
            "{",
            "[]",
            "7",
            "null",
            '"join"',
            "{}",
            '{"type": 7}',
            '{"type": null}',
            "[" * 5000,
            '{"type":NaN}',
        ):
            client.text(text)
            error = client.until("error")
            self.assertEqual((error["code"], error["fatal"]), ("invalid_message", False), text[:20])
            self.assertEqual(set(error), {"type", "code", "message", "fatal"})
        client.settled()

    def test_unknown_type(self) -> None:
        """``unknown_type`` for what nobody knows, and for what only the SFU says."""
        client = self.join()
        for kind in ("nonsense", "", "JOIN", "welcome", "peer-joined", "track-added", "__class__"):
            client.say(kind)
            self.assertEqual(client.error(), "unknown_type", kind)

    def test_unknown_fields(self) -> None:
        """Fields that nobody knows are no matter: a browser's own objects go through as they are."""
        client = self.join()
        client.say("ice-candidate", candidate="", sdpMid="0", sdpMLineIndex=0, address=None, foundation="1")
        client.settled()

    def test_binary(self) -> None:
        """A binary frame is ``invalid_message``."""
        client = self.join()
        client.socket.send_binary(json.dumps({"type": "leave"}).encode())
        self.assertEqual(client.error(), "invalid_message")
        client.settled()

    def test_frame_limit(self) -> None:
        """64 KiB are read, one byte more closes the socket with 1009."""
        client = self.join()
        text = json.dumps({"type": "settled?", "filler": ""})
        client.text(text.replace('""', f'"{"x" * (65536 - len(text))}"'))
        self.assertEqual(client.error(), "unknown_type")
        client.text(text.replace('""', f'"{"x" * (65537 - len(text))}"'))
        self.assertEqual(client.until_closed(), 1009)

    def test_fragments(self) -> None:
        """A message in fragments is one message, and has the same limit."""
        client = self.join()
        client.socket.send_frame(ABNF.create_frame('{"type":', ABNF.OPCODE_TEXT, 0))
        client.socket.send_frame(ABNF.create_frame(' "nonsense"}', ABNF.OPCODE_CONT, 1))
        self.assertEqual(client.error(), "unknown_type")
        client.socket.send_frame(ABNF.create_frame("x" * 40_000, ABNF.OPCODE_TEXT, 0))
        client.socket.send_frame(ABNF.create_frame("x" * 40_000, ABNF.OPCODE_CONT, 1))
        self.assertEqual(client.until_closed(), 1009)

    def test_not_utf8(self) -> None:
        """Text that is no UTF-8 closes with 1007 (RFC 6455, 8.1)."""
        client = self.join()
        client.socket.send_frame(ABNF(1, 0, 0, 0, ABNF.OPCODE_TEXT, 1, b"\xff\xfe"))
        self.assertEqual(client.until_closed(), 1007)


class RateTests(SignalingTestCase):
    def started(self) -> NodeProcess:
        return strict()

    def test_rate(self) -> None:
        """Too fast is ``rate_limited``; whoever goes on is closed with 4429."""
        client = self.join()
        for _ in range(60):
            try:
                client.say("nonsense")
            except OSError:
                break
        codes = {client.error() for _ in range(25)}
        self.assertEqual(codes, {"unknown_type", "rate_limited"})
        self.assertEqual(client.until_closed(), 4429)
        self.assertTrue([message for message in client.received if message.get("fatal")])

    def test_others_are_served(self) -> None:
        """The rate is each client's own."""
        self.join().settled()


class ResumeTests(SignalingTestCase):
    def test_resume(self) -> None:
        """Same place, a new token, and what was missed; the others notice nothing."""
        other, client = self.join(), self.join(userId="ann")
        before = list(other.settled())
        client.drop()
        again = self.connect()
        again.say("join", resume=client.received[0]["resume"])
        welcome = again.until("welcome")
        self.assertEqual((welcome["peerId"], welcome["userId"]), (self.peer_id(client), "ann"))
        self.assertEqual([peer["peerId"] for peer in welcome["peers"]], [self.peer_id(other)])
        self.assertNotEqual(welcome["resume"], client.received[0]["resume"])
        again.until("turn-credentials")
        self.assertEqual(other.settled(), before)

    def test_replaced(self) -> None:
        """The old socket, should it still be there, is closed with 4409."""
        client = self.join()
        again = self.connect()
        again.say("join", resume=client.received[0]["resume"])
        self.assertEqual(again.until("welcome")["peerId"], self.peer_id(client))
        self.assertEqual(client.until_closed(), 4409)
        again.settled()

    def test_missed(self) -> None:
        """What happened meanwhile comes after ``welcome`` and ``turn-credentials``."""
        other, client = self.join(), self.join()
        client.drop()
        other.say("offer", sdp=sdp.offer("audio"))
        other.until("answer")
        third = self.join()
        again = self.connect()
        again.say("join", resume=client.received[0]["resume"])
        self.assertEqual(again.until("peer-joined")["peerId"], self.peer_id(third))
        again.until("offer")
        self.assertEqual([message["type"] for message in again.received[:2]], ["welcome", "turn-credentials"])

    def test_bound(self) -> None:
        """A token is worth nothing to another namespace, for another room, or a second time."""
        client = self.join()
        token = client.received[0]["resume"]
        other = self.connect(f"?room={self.room}-other")
        other.say("join", resume=token)
        self.assertNotEqual(other.until("welcome")["peerId"], self.peer_id(client))
        for expected in (True, False):
            again = self.connect()
            again.say("join", resume=token)
            self.assertEqual(again.until("welcome")["peerId"] == self.peer_id(client), expected)
        guess = self.connect()
        guess.say("join", resume="guess")
        guess.until("welcome")


class RoomTests(SignalingTestCase):
    def test_namespaces_apart(self) -> None:
        """Another tenant's key opens another room of the same name."""
        first = self.join()
        stranger = self.join(key(self.node, OTHER))
        self.assertEqual(stranger.received[0]["peers"], [])
        self.assertEqual(first.settled(), ["welcome", "turn-credentials"])

    def test_unknown_room(self) -> None:
        """Where rooms do not come with joining an unknown one is 4404."""
        headers = temporary(self, self.node, "closed")
        with sqlite3.connect(self.node.data / "orama.db", timeout=10) as database:
            database.execute("UPDATE namespace_webrtc_config SET rooms_on_join = 0 WHERE namespace = 'closed'")
        database.close()
        client = connect(self.node, "unknown", headers["X-API-Key"])
        client.say("join")
        self.assertEqual((client.error(), client.until_closed()), ("invalid_join", 4404))
        made = ask(self.node, "POST", "/v1/webrtc/rooms", {"room_id": "known"}, headers)
        self.assertEqual(made.status, 201)
        self.addCleanup(join(self.node, "known", headers["X-API-Key"]).close)
