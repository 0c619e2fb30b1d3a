"""What tokens allow in a room, and what it is limited to, on a running node."""

from __future__ import annotations

import re
import time
from typing import Any

from tests.contract import sdp
from tests.contract.camera import camera, microphone
from tests.contract.commands import data, key
from tests.contract.participant import Participant
from tests.contract.rest import ask
from tests.contract.signalling import Client
from tests.contract.test_media import MediaTestCase


class RightsTestCase(MediaTestCase):
    def allowed(self, *permissions: str, **fields: Any) -> Client:
        """Somebody with a token for these *permissions*."""
        options = [part for each in permissions for part in ("--permission", each)]
        token = data(self.node, "token", "issue", "--namespace", "default", "--user", "ann", *options)["token"]
        client = Client(self.node, f"?room={self.room}&token={token}")
        self.addCleanup(client.close)
        client.say("join", **fields)
        client.until("turn-credentials")
        return client

    def directions(self, answer: str) -> list[str]:
        """Of each m-line: what we do with it."""
        return re.findall(r"(?m)^a=(recvonly|inactive|sendonly|sendrecv)\r$", answer)


class PermissionTests(RightsTestCase):
    def test_user(self) -> None:
        """Under a token ``sub`` is the user, whatever ``join`` says."""
        client = self.allowed("subscribe", userId="bob")
        self.assertEqual(client.received[0]["userId"], "ann")

    def test_publish(self) -> None:
        """Without ``publish`` nothing is taken, and ``forbidden`` says so; the call goes on."""
        watcher = self.join()
        client = self.allowed("subscribe")
        client.say("offer", sdp=sdp.offer("audio", "video"))
        error, answer = client.until("error"), client.until("answer")
        self.assertEqual((error["code"], error["fatal"]), ("forbidden", False))
        self.assertEqual(self.directions(answer["sdp"]), ["inactive", "inactive"])
        self.until(lambda: watcher.told("peer-joined"))
        self.pause(0.2)
        self.assertEqual(watcher.told("track-added"), [])

    def test_publish_one_source(self) -> None:
        """``publish:screen`` is the right to show a screen, and nothing else."""
        watcher = self.join()
        client = self.allowed("publish:screen")
        client.say("offer", sdp=sdp.offer("audio", "video", "video"), sources={"2": "screen"})
        self.assertEqual(client.error(), "forbidden")
        answer = client.until("answer")
        self.assertEqual(self.directions(answer["sdp"]), ["inactive", "inactive", "recvonly"])
        self.assertEqual(watcher.client.until("track-added")["source"], "screen")

    def test_subscribe(self) -> None:
        """Without ``subscribe`` no track is told or offered, and asking for one is ``forbidden``."""
        self.join().publish(microphone())
        client = self.allowed("publish")
        client.say("subscribe", trackId="track0")
        self.assertEqual(client.error(), "forbidden")
        client.say("receive", kind="audio", lastN=2)
        self.assertEqual(client.error(), "forbidden")
        client.listen(0.2)
        self.assertNotIn("track-added", [each["type"] for each in client.received])
        self.assertNotIn("m=audio", "".join(each["sdp"] for each in client.received if each["type"] == "offer"))

    def test_subscribe_one_kind(self) -> None:
        """``subscribe:audio`` is the right to hear, and not to see."""
        publisher = self.join()
        publisher.client.say("offer", sdp=sdp.offer("audio", "video"))
        publisher.client.until("answer")
        client = self.allowed("subscribe:audio")
        self.assertEqual(client.until("track-added")["kind"], "audio")
        self.assertNotIn("m=video", client.until("offer")["sdp"])
        client.say("subscribe", trackId="track1")
        self.assertEqual(client.error(), "forbidden")

    def test_rooms(self) -> None:
        """A token for one room is 4403 at another."""
        token = data(self.node, "token", "issue", "--namespace", "default", "--user", "ann", "--room", "theirs")[
            "token"
        ]
        client = Client(self.node, f"?room={self.room}&token={token}")
        self.addCleanup(client.close)
        self.assertEqual(client.until_closed(), 4403)

    def test_owners_only(self) -> None:
        """``mute`` and ``kick`` take an owner's token, whatever it may publish."""
        client = self.allowed("publish", "subscribe", "data")
        for kind, fields in (("kick", {"peerId": "p"}), ("mute", {"trackId": "t"})):
            client.say(kind, **fields)
            self.assertEqual(client.error(), "forbidden")


class LimitTests(RightsTestCase):
    def test_tracks(self) -> None:
        """32 tracks are taken of one client (``sfu.max_tracks``); for more it is told ``forbidden``."""
        publisher, watcher = self.join(), self.join()
        publisher.client.say("offer", sdp=sdp.offer(*["audio"] * 34))
        error, answer = publisher.client.until("error"), publisher.client.until("answer")
        self.assertEqual((error["code"], error["fatal"]), ("forbidden", False))
        self.assertEqual(self.directions(answer["sdp"]), ["recvonly"] * 32 + ["inactive"] * 2)
        self.until(lambda: len(watcher.told("track-added")) == 32)

    def test_participants(self) -> None:
        """One more than ``max_participants`` is ``room_full``, fatal, with 1013; a place that is given up is free."""
        made = ask(self.node, "POST", "/v1/webrtc/rooms", {"room_id": self.room, "max_participants": 2})
        self.assertEqual(made.status, 201)
        first, _ = self.join(), self.join(key(self.node))
        client = Client(self.node, f"?room={self.room}", headers={"X-API-Key": self.node.key})
        self.addCleanup(client.close)
        client.say("join")
        error = client.until("error")
        self.assertEqual((error["code"], error["fatal"], client.until_closed()), ("room_full", True, 1013))
        first.leave()
        self.assertEqual(len(self.join().welcome["peers"]), 1)

    def test_one_offer_for_many_changes(self) -> None:
        """Tracks that come together are one offer to those who are there, and a room that is there is one offer too."""
        watcher, publisher = self.join(), self.join()
        publisher.client.say("offer", sdp=sdp.offer(*["audio"] * 5, *["video"] * 5))
        offered = watcher.client.until("offer")["sdp"]
        late = self.join().client.until("offer")["sdp"]
        self.assertEqual((offered.count("m="), late.count("m=")), (10, 10))


class ReceiveTests(RightsTestCase):
    def test_slots(self) -> None:
        """``receive`` with ``lastN`` brings so many m-lines, on which tracks take turns without a new offer."""
        watcher = self.join()
        watcher.client.say("receive", kind="video", lastN=1)
        publishers = [self.join() for _ in range(2)]
        for each in publishers:
            each.publish(camera())
        self.until(lambda: watcher.connected and len(watcher.told("track-added")) == 2)
        self.assertEqual([track.get("mid") for track in watcher.told("track-added")], [None, None])
        self.until(lambda: watcher.told("slot"))
        self.assertEqual(watcher.offered.count("m=video"), 1)
        shown = watcher.told("slot")[-1]
        self.assertEqual(set(shown), {"type", "mid", "kind", "peerId", "trackId"})
        self.assertIn(f"a=mid:{shown['mid']}\r\n", watcher.offered)
        other = next(track for track in watcher.told("track-added") if track["trackId"] != shown["trackId"])
        offers = len(watcher.told("offer"))
        watcher.client.say("receive", kind="video", tracks=[other["trackId"]])
        self.until(lambda: watcher.told("slot")[-1].get("trackId") == other["trackId"])
        self.assertEqual((watcher.told("slot")[-1]["mid"], len(watcher.told("offer"))), (shown["mid"], offers))
        watcher.client.say("receive", kind="video", lastN=0)
        self.until(lambda: "trackId" not in watcher.told("slot")[-1])

    def test_wrong_fields(self) -> None:
        """What cannot be asked for is ``invalid_message``, and changes nothing."""
        client = self.join().client
        for fields in (
            {},
            {"kind": "data"},
            {"kind": None},
            {"kind": "video", "lastN": -1},
            {"kind": "video", "lastN": 33},
            {"kind": "video", "lastN": True},
            {"kind": "video", "lastN": 1.5},
            {"kind": "video", "tracks": "track"},
            {"kind": "video", "tracks": [7]},
            {"kind": "video", "tracks": [""]},
            {"kind": "video", "tracks": ["t"] * 101},
            {"kind": "video", "tracks": {}},
        ):
            client.say("receive", **fields)
            self.assertEqual(client.error(), "invalid_message", fields)
        client.say("receive", kind="video", lastN=None, tracks=["unknown"])
        client.settled()


class ResumeTests(RightsTestCase):
    def test_media_goes_on(self) -> None:
        """While a socket is away its media go on both ways, and nobody notices; resuming needs no new connection."""
        made, [watcher] = self.call()
        seen = list(watcher.client.settled())
        publisher = made.participant
        publisher.drop()
        for _ in range(3):
            made.frame()
        self.until(lambda: len(watcher.packets) == 4)
        publisher.resume()
        self.assertEqual(publisher.welcome["peerId"], watcher.told("track-added")[0]["peerId"])
        made.frame()
        self.until(lambda: len(watcher.packets) == 5)
        self.assertEqual(watcher.client.settled(), seen)
        self.assertEqual(publisher.told("offer"), [])

    def test_restart(self) -> None:
        """An offer with other ICE credentials restarts ICE: the answer has new ones, and what is under way passes."""
        made, [watcher] = self.call()
        publisher = made.participant
        before = publisher.description
        publisher.restart(camera())
        self.assertNotEqual(sdp.value(before, "ice-ufrag"), sdp.value(publisher.description, "ice-ufrag"))
        self.assertNotEqual(sdp.value(before, "ice-pwd"), sdp.value(publisher.description, "ice-pwd"))
        self.assertEqual(sdp.value(before, "fingerprint"), sdp.value(publisher.description, "fingerprint"))
        for _ in range(5):
            made.frame()
        self.until(lambda: len(watcher.packets) == 6)
        self.move(publisher)
        for _ in range(5):
            made.frame()
        self.until(lambda: len(watcher.packets) == 11)
        publisher.controls.clear()
        time_left = time.monotonic() + 5
        while not publisher.controls:
            self.assertLess(time.monotonic(), time_left)
            made.frame()
            self.pause(0.02)

    def move(self, participant: Participant) -> None:
        """Another network: another allocation, from which the same connection goes on."""
        old = participant.relay
        participant.move()
        self.addCleanup(old.release)
