"""What can be seen of a room."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from orama.sfu import stats as module
from orama.sfu.samples import ESTIMATES
from orama.sfu.stats import FRESH, room_stats
from orama.wire.rtcp import Nack, PictureLoss
from tests.sfu.clients import Room, Source, camera, downlinked
from tests.sfu.guests import RoomsCase


class StatsCase(RoomsCase):
    def stats(self, room_id: str = "room", peer_id: str | None = None) -> Any:
        found = self.successResultOf(Deferred.fromCoroutine(self.rooms.stats("default", room_id, peer_id)))
        json.dumps(found, allow_nan=False)
        return found


class RoomStatsTests(StatsCase):
    def test_nobody_knows_it(self) -> None:
        """Of a room that is not here nothing is told."""
        self.assertIsNone(self.stats("other"))

    def test_shape(self) -> None:
        """Peers with their tracks and subscriptions, before anything flows; no metadata of users among it."""
        ada = self.guest(user_id="ada", metadata={"name": "Ada Lovelace"})
        bob = self.guest(user_id="bob")
        ada.publish("audio1", "video1", sources={"1": "screen"})
        self.wait()
        found = self.stats()
        self.assertEqual((found["at"], found["left_out"]), (self.reactor.seconds(), 0))
        self.assertNotIn("Lovelace", json.dumps(found))
        first, second = found["peers"]
        self.assertEqual(
            (first["peer_id"], first["user_id"], first["state"], first["joined_at"]),
            (ada.peer.peer_id, "ada", "connecting", 1000),
        )
        self.assertEqual((first["round_trip"], first["subscriptions"], second["tracks"]), (None, [], []))
        sound, picture = first["tracks"]
        self.assertEqual((sound["track_id"], sound["kind"], sound["source"]), ("audio1", "audio", "microphone"))
        self.assertEqual((sound["codec"], picture["codec"], picture["source"]), ("opus", "VP8", "screen"))
        self.assertEqual((picture["muted"], picture["subscribers"], picture["qualities"]), (False, 1, []))
        for track, subscription in zip(first["tracks"], second["subscriptions"], strict=True):
            self.assertEqual((subscription["track_id"], subscription["kind"]), (track["track_id"], track["kind"]))
            self.assertEqual((subscription["peer_id"], subscription["wanted"]), (ada.peer.peer_id, "auto"))
            self.assertEqual((subscription["state"], subscription["packets"]), ("waiting", 0))
        bob.peer.detach()
        self.reactor.advance(1)
        self.assertEqual(self.stats()["peers"][1]["state"], "away")

    def test_one_peer(self) -> None:
        """One peer can be asked for alone; one that is not there is nobody."""
        ada, bob = self.guest(), self.guest()
        self.assertEqual(
            [each["peer_id"] for each in self.stats(peer_id=bob.peer.peer_id)["peers"]], [bob.peer.peer_id]
        )
        self.assertEqual(len(self.stats()["peers"]), 2)
        self.assertEqual(self.stats(peer_id="nobody")["peers"], [])
        ada.peer.leave()

    def test_fresh_enough(self) -> None:
        """Who asks often gets the same answer, for half a second."""
        self.guest()
        first = self.stats()
        self.assertIs(self.stats(), first)
        self.reactor.advance(FRESH)
        self.assertIsNot(self.stats(), first)

    def test_large_rooms(self) -> None:
        """Where there are too many subscriptions they are counted and left out, but not of a peer that is asked for."""
        guests = [self.guest() for _ in range(3)]
        for guest in guests:
            guest.publish("audio1")
        self.wait(1)
        room, now = guests[0].peer.room, self.reactor.seconds()
        self.assertEqual(room_stats(room, now, most=6).left_out, 0)
        found = room_stats(room, now, most=5)
        self.assertEqual((found.left_out, [each.subscriptions for each in found.peers]), (6, [(), (), ()]))
        found = room_stats(room, now, guests[2].peer.peer_id, most=0)
        self.assertEqual((found.left_out, len(found.peers[0].subscriptions)), (0, 2))


class FlowTests(StatsCase):
    """With packets: a camera in a room of the media path alone."""

    def setUp(self) -> None:
        super().setUp()
        self.media = Room()
        self.sender, self.receiver = self.media.client(), self.media.client()
        self.sender.publish(camera())
        self.receiver.media.subscribe(self.sender.media.tracks["camera"], downlinked(camera()))
        self.source = Source(self.sender, 1234)

    def flow(self, seconds: float, size: int = 972, key: bool = False) -> None:
        """20 frames a second of one packet with so many bytes of payload."""
        for at in range(round(seconds * 20)):
            self.sender.send(*self.source.frame(packets=1, key=key and at == 0, size=size - 6))
            self.media.wait(0.05)

    @property
    def downlink(self) -> Any:
        (found,) = self.receiver.media.subscriptions()
        return found

    @property
    def stream(self) -> Any:
        (found,) = self.sender.media.tracks["camera"].ranked()
        return found

    def test_rates(self) -> None:
        """The rate of a stream and of a subscription are those on the wire, of the last second or so."""
        self.flow(3, key=True)
        wire = (972 + 44) * 8 * 20
        self.assertApproximates(self.downlink.tally.bitrate / wire, 1, 0.06)
        shown = module._stream(self.stream, self.media.now)
        self.assertApproximates(shown.bitrate / wire, 1, 0.06)
        self.assertEqual((shown.packets, shown.lost, shown.keyframes, shown.layer), (60, 0, 1, None))
        self.assertLess(shown.silent_for, 0.06)
        self.media.wait(2)
        self.assertEqual(self.downlink.tally.bitrate, 0)

    def test_losses_up(self) -> None:
        """What never came is lost, and was asked for."""
        self.flow(0.2, key=True)
        self.source.frame(packets=3)
        self.flow(1)
        shown = module._stream(self.stream, self.media.now)
        self.assertEqual(shown.lost, 3)
        self.assertGreaterEqual(shown.nacks, 3)
        self.assertEqual(shown.recovered, 0)

    def test_losses_down(self) -> None:
        """What a subscriber asks for again is counted for it, what it got, and what not and why."""
        self.flow(1, key=True)
        ssrc = self.downlink.ssrc
        number = self.receiver.of(ssrc)[-3].sequence_number
        self.receiver.send_rtcp(Nack(1, ssrc, (number,)))
        self.receiver.send_rtcp(Nack(1, ssrc, (number, (number + 500) & 0xFFFF)))
        self.receiver.send_rtcp(PictureLoss(1, ssrc))
        tally = self.downlink.tally
        self.assertEqual((tally.nacks, tally.resends, tally.keyframe_requests), (3, 1, 1))
        self.assertEqual(tally.dropped, {"resend_limit": 1, "resend_gone": 1})
        self.assertEqual(self.media.counters.dropped["resend_limit"], 1)
        self.assertEqual(module._stream(self.stream, self.media.now).keyframe_requests, 2)  # one at the start

    def test_states(self) -> None:
        """A subscription waits for its first keyframe, flows, is muted, or paused for want of bandwidth."""
        track = self.sender.media.tracks["camera"]
        states = [module.state(self.downlink)]
        self.flow(0.1, key=True)
        states.append(module.state(self.downlink))
        track.muted = True
        states.append(module.state(self.downlink))
        track.muted = False
        self.downlink.allow(None, self.media.now)
        states.append(module.state(self.downlink))
        self.assertEqual(states, ["waiting", "forwarding", "muted", "paused"])

    def test_layers(self) -> None:
        """With simulcast each stream and what is forwarded have the name of a layer, and switches count."""
        sender, receiver = self.media.client(), self.media.client()
        sender.publish(camera("layered", rids=("q", "f")))
        track = sender.media.tracks["layered"]
        receiver.media.subscribe(track, downlinked(camera("layered"), ssrc=7000))
        low, high = Source(sender, 50, rid="q"), Source(sender, 60, rid="f")
        (downlink,) = receiver.media.subscriptions()
        for _ in range(3):
            sender.send(*low.frame(key=True), *high.frame(key=True))
            self.media.wait(0.05)
        self.assertEqual([module._layer(each) for each in track.ranked()], ["low", "high"])
        self.assertEqual((downlink.shown, module._layer(downlink.forwarded)), ("high", "high"))
        before = downlink.tally.switches
        receiver.media.set_layer("layered", "low")
        for _ in range(3):
            sender.send(*low.frame(key=True), *high.frame(key=True))
            self.media.wait(0.05)
        self.assertEqual((module._layer(downlink.forwarded), downlink.tally.switches), ("low", before + 1))


class SampleTests(StatsCase):
    def test_samples(self) -> None:
        """What is there now is summed over the namespace, and every series is there before anything is."""
        guests = [self.guest(), self.guest()]
        guests[0].publish("audio1", "video1")
        self.wait()
        found = {
            (name, labels.get("state") or labels.get("direction") or labels.get("le")): value
            for name, labels, value in self.rooms.samples()
            if labels["namespace"] == "default"
        }
        self.assertEqual(found["orama_sfu_subscriptions", "waiting"], 2)
        self.assertEqual(found["orama_sfu_subscriptions", "paused"], 0)
        self.assertEqual(found["orama_sfu_bitrate", "forwarded"], 0)
        self.assertEqual(found["orama_sfu_layer_switches_total", None], 0)
        self.assertEqual([le for name, le in found if name == "orama_sfu_estimates"], [*map(str, ESTIMATES), "+Inf"])
