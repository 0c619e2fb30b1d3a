"""Rooms: who is in, what they hear of each other, and that nothing stays behind."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet.defer import Deferred

from orama.errors import Conflict, NotFound
from orama.net.fabric import Address
from orama.settings import SfuSettings
from orama.sfu.allocator import REST, SCREEN, SPEAKER
from orama.sfu.events import (
    ActiveSpeakers,
    Kicked,
    PeerJoined,
    PeerLeft,
    RoomClosed,
    TrackAdded,
    TrackRemoved,
    TrackState,
)
from orama.sfu.values import AUDIO_LEVEL
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import random_keys, session
from tests.sfu.guests import RoomsCase
from tests.sfu.test_data import Member
from tests.sfu.test_ice import check


class JoiningTests(RoomsCase):
    sfu = SfuSettings(max_participants=3)

    def test_joins_and_leaves(self) -> None:
        """Those who are there hear who comes and goes; who comes learns who is there."""
        one = self.guest(user_id="anna", metadata={"name": "Anna"})
        two = self.guest()
        (joined,) = one.told(PeerJoined)
        self.assertEqual((joined.peer_id, joined.user_id), (two.peer.peer_id, "user"))
        (info,) = two.peer.others()
        self.assertEqual((info.peer_id, info.user_id, info.metadata), (one.peer.peer_id, "anna", {"name": "Anna"}))
        self.assertEqual(two.told(PeerJoined), [])
        two.peer.leave()
        two.peer.leave()
        self.assertEqual(one.told(PeerLeft), [PeerLeft(two.peer.peer_id, "left")])
        self.assertEqual(self.rooms.peers(), 1)

    def test_full(self) -> None:
        """A room takes so many; then ``room_full``, until somebody leaves."""
        guests = [self.guest() for _ in range(3)]
        self.assert_refused("room_full", self.guest)
        guests[0].peer.leave()
        self.guest()
        self.rooms.create("default", "small", 1)
        self.guest("small")
        self.assert_refused("room_full", self.guest, "small")

    def test_namespaces(self) -> None:
        """The same room id in two namespaces is two rooms, behind two media ports."""
        one, two = self.guest(), self.guest(namespace="other")
        two.publish("audio1")
        self.wait()
        self.assertEqual(one.events, [])
        self.assertIsNot(one.peer.room, two.peer.room)
        self.assertEqual((len(self.rooms.all("default")), len(self.rooms.all("other"))), (1, 1))
        with self.assertRaises(NotFound) as caught:
            self.guest(namespace="nobody's")
        self.assertEqual(caught.exception.code, "webrtc_not_enabled")

    def test_creating(self) -> None:
        """A room can be made before anybody is in it, once."""
        room = self.rooms.create("default", "made", 5)
        self.assertIs(self.rooms.get("default", "made"), room)
        with self.assertRaises(Conflict) as caught:
            self.rooms.create("default", "made", 5)
        self.assertEqual(caught.exception.code, "room_exists")

    def test_empty_rooms_go(self) -> None:
        """A room that nobody has been in for a minute is gone, and whoever keeps the list is told once."""
        gone: list[tuple[str, str]] = []
        self.rooms.on_empty = lambda *room: gone.append(room)
        self.rooms.create("default", "never", 5)
        guest = self.guest("used")
        self.wait(59)
        guest.peer.leave()
        self.wait(30)
        self.assertEqual(gone, [("default", "never")])
        guest = self.guest("used")
        self.wait(120)
        guest.peer.leave()
        self.wait(59)
        self.assertEqual(gone, [("default", "never")])
        self.wait(2)
        self.assertEqual(gone, [("default", "never"), ("default", "used")])
        self.assertIsNone(self.rooms.get("default", "used"))

    def test_closing(self) -> None:
        """Everybody in a closed room hears of it, and of nothing else; the name is free again."""
        guests = [self.guest() for _ in range(3)]
        self.rooms.close("default", "room")
        for guest in guests:
            self.assertEqual(guest.events[-1], RoomClosed("room-closed"))
            self.assertEqual(guest.told(PeerLeft), [])
            self.assertTrue(guest.peer.left)
        with self.assertRaises(NotFound) as caught:
            self.rooms.close("default", "room")
        self.assertEqual(caught.exception.code, "room_not_found")
        self.assertEqual(self.guest().peer.others(), ())


class TracksTests(RoomsCase):
    def test_everything_is_subscribed(self) -> None:
        """A track reaches everybody, told with the mid of the receiver's connection just before the offer with it."""
        one, two = self.guest(), self.guest()
        one.publish("audio1", "video1", sources={"1": "screen"})
        self.wait()
        self.assertEqual(two.tracks, {"audio1", "video1"})
        kinds = [type(event).__name__ for event in two.events]
        self.assertEqual(kinds, ["TrackAdded", "TrackAdded", "Offer"])
        sound, picture = two.told(TrackAdded)
        self.assertEqual((sound.peer_id, sound.kind, sound.source), (one.peer.peer_id, "audio", "microphone"))
        self.assertEqual((picture.track_id, picture.kind, picture.source), ("video1", "video", "screen"))
        self.assertEqual(two.browser.receiving[picture.mid], (one.peer.peer_id, "video1"))
        self.assertEqual(one.told(TrackAdded), [])

    def test_camera_and_screen(self) -> None:
        """Two videos of one publisher are two tracks, and so are tracks of one id from two publishers."""
        one, two, three = self.guest(), self.guest(), self.guest()
        one.publish("video1", "video2", sources={"1": "screen"})
        two.publish("video1")
        self.wait()
        added = three.told(TrackAdded)
        self.assertEqual(len({event.track_id for event in added}), 3)
        self.assertEqual([event.source for event in added], ["camera", "screen", "camera"])
        self.assertEqual(len(three.tracks), 3)

    def test_late_guests(self) -> None:
        """Who comes later has the tracks in ``welcome``, without a mid, and then as events with one."""
        one = self.guest()
        one.publish("video1")
        two = self.guest()
        (info,) = two.peer.others()
        self.assertEqual([(track.track_id, track.mid) for track in info.tracks], [("video1", None)])
        self.wait()
        (added,) = two.told(TrackAdded)
        self.assertIsNotNone(added.mid)
        (info,) = two.peer.others()
        self.assertEqual(info.tracks[0].mid, added.mid)

    def test_ending(self) -> None:
        """A track that ends is told with its mid, and its m-line is free for the next."""
        one, two = self.guest(), self.guest()
        one.publish("video1")
        self.wait()
        (added,) = two.told(TrackAdded)
        one.browser.remove_track("video1")
        one.peer.offer(one.browser.offer())
        (removed,) = two.told(TrackRemoved)
        self.assertEqual((removed.track_id, removed.mid), ("video1", added.mid))
        self.wait()
        self.assertEqual(two.tracks, set())
        one.publish("video2")
        self.wait()
        self.assertEqual(two.told(TrackAdded)[-1].mid, added.mid)
        self.assertEqual(two.tracks, {"video2"})

    def test_leaving(self) -> None:
        """With a peer its tracks go, for everybody."""
        one, two = self.guest(), self.guest()
        one.publish("audio1", "video1")
        self.wait()
        one.peer.leave()
        self.wait()
        kinds = [type(event).__name__ for event in two.events[-4:]]
        self.assertEqual(kinds, ["TrackRemoved", "TrackRemoved", "PeerLeft", "Offer"])
        self.assertEqual(two.tracks, set())
        self.assertEqual(two.peer.room.tracks, {})

    def test_ended_before_told(self) -> None:
        """Of a track that ends before it was offered nobody hears."""
        one, two = self.guest(), self.guest()
        one.publish("video1")
        one.browser.remove_track("video1")
        one.peer.offer(one.browser.offer())
        self.wait()
        self.assertEqual(two.events, [])

    def test_new_codec(self) -> None:
        """A publisher that changes its codec is offered anew to the others."""
        one, two = self.guest(), self.guest()
        one.publish("video1")
        self.wait()
        one.peer.offer(one.browser.offer().replace("SAVPF 96 97 102 103", "SAVPF 102 103"))
        self.wait()
        (line,) = two.browser.lines
        self.assertIn("H264/90000", [name for _, name in line.formats])
        self.assertEqual(len(two.told(TrackAdded)), 1)

    def test_two_codecs(self) -> None:
        """Publishers with different codecs are received on one connection, under payload types of their own."""
        one, two, three = self.guest(), self.guest(), self.guest()
        one.publish("video1")
        two.browser.add_transceiver("video", "video2")
        two.peer.offer(two.browser.offer().replace("SAVPF 96 97 102 103", "SAVPF 102 103"))
        self.wait()
        names = {line.msid[1]: {name for _, name in line.formats} for line in three.browser.lines if line.msid}
        self.assertEqual(names, {"video1": {"VP8/90000", "rtx/90000"}, "video2": {"H264/90000", "rtx/90000"}})


class OwnerTests(RoomsCase):
    def test_kick(self) -> None:
        """An owner sends somebody away; that one and the others hear it. A member may not."""
        owner, member, other = self.guest(owner=True), self.guest(), self.guest()
        self.assert_refused("forbidden", member.peer.kick, other.peer.peer_id)
        self.assert_refused("invalid_message", owner.peer.kick, "nobody")
        owner.peer.kick(other.peer.peer_id)
        self.assertEqual(other.events[-1], Kicked("kicked"))
        self.assertEqual(member.told(PeerLeft), [PeerLeft(other.peer.peer_id, "kicked")])
        self.assert_refused("not_joined", other.peer.unsubscribe, "x")

    def test_mute(self) -> None:
        """An owner mutes a track: everybody hears it, nothing is forwarded until the publisher unmutes."""
        owner, member = self.guest(owner=True), self.guest()
        member.publish("audio1")
        self.wait()
        self.assert_refused("forbidden", member.peer.mute, "audio1")
        self.assert_refused("unknown_track", owner.peer.mute, "video9")
        owner.peer.mute("audio1")
        publication = member.peer.publications["audio1"]
        self.assertTrue(publication.track.muted)
        self.assertEqual(member.events[-1], TrackState("audio1", True))
        self.assertEqual(owner.events[-1], TrackState("audio1", True))
        late = self.guest()
        self.wait()
        self.assertTrue(late.told(TrackAdded)[0].muted)
        member.peer.track_state("audio1", False)
        self.assertFalse(publication.track.muted)
        self.assertEqual(owner.events[-1], TrackState("audio1", False))
        self.assertEqual(len(member.told(TrackState)), 1)


class SpeakersTests(RoomsCase):
    def test_loudest_first(self) -> None:
        """Who speaks is told, loudest first, when it changes."""
        one, two, three = self.guest(), self.guest(), self.guest()
        senders = {}
        for guest in (one, two):
            guest.publish("audio1", "video1")
            keys = random_keys()
            guest.peer.connection.media.secure(keys)
            senders[guest] = session(keys.profile, keys.receive_key + keys.receive_salt, inbound=False)
        self.wait()

        def speak(seconds: float, levels: dict[Any, int]) -> None:
            for _ in range(round(seconds * 50)):
                for guest, level in levels.items():
                    (uplinked,) = (each.uplinked for each in guest.peer.publications.values() if each.kind == "audio")
                    codec = uplinked.codecs[0]
                    block = (uplinked.extensions[AUDIO_LEVEL], bytes([0x80 | level]))
                    mid = (uplinked.extensions["urn:ietf:params:rtp-hdrext:sdes:mid"], uplinked.mid.encode())
                    packet = RtpPacket(
                        codec.payload_type, speak.sequence, speak.sequence * 960, 77, b"opus", extensions=(block, mid)
                    )
                    media = guest.peer.connection.media
                    media.receive([senders[guest].protect(packet.serialize())], self.reactor.seconds())
                speak.sequence += 1
                self.reactor.advance(0.02)

        speak.sequence = 1  # type: ignore[attr-defined]
        speak(1.0, {one: 20, two: 5})
        last = three.told(ActiveSpeakers)[-1]
        self.assertEqual([each["peerId"] for each in last.peers], [two.peer.peer_id, one.peer.peer_id])
        self.assertGreater(last.peers[0]["level"], last.peers[1]["level"])
        ranks = {each.peer: each.track.rank for each in two.peer.room.tracks.values() if each.kind == "video"}
        self.assertEqual(ranks, {one.peer: REST, two.peer: SPEAKER})
        self.wait(2)
        self.assertEqual(three.told(ActiveSpeakers)[-1].peers, ())

    def test_screens_before_cameras(self) -> None:
        """Where a subscriber's bandwidth is short a screen comes before cameras of those who do not speak."""
        one, two = self.guest(), self.guest()
        one.publish("video1", sources={"0": "screen"})
        two.publish("video1")
        self.wait()
        ranks = {each.peer: each.track.rank for each in one.peer.room.tracks.values()}
        self.assertEqual(ranks, {one.peer: SCREEN, two.peer: REST})


class ReleaseTests(RoomsCase):
    def test_the_clock_runs_while_somebody_is_here(self) -> None:
        """Ticks begin with the first peer and end with the last."""
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        guest = self.guest()
        self.wait()
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        guest.peer.leave()
        (only,) = self.reactor.getDelayedCalls()
        self.assertEqual(only.getTime() - self.reactor.seconds(), 60.0)

    def test_stopping(self) -> Deferred[None]:
        """Stopping leaves no delayed call, no socket, no peer and nobody in the fabric."""
        one, two = self.guest(), self.guest("another")
        one.publish("audio1")
        two.publish("audio1")
        port = one.peer.connection._port

        def stopped(_: object) -> None:
            self.assertEqual(self.reactor.getDelayedCalls(), [])
            self.assertEqual(self.reactor.readers, set())
            self.assertFalse(self.fabric.has(port.address))
            self.assertEqual(self.rooms.peers(), 0)
            self.assertEqual(one.events[-1], RoomClosed("room-closed"))

        return self.rooms.stop().addCallback(stopped)

    def test_stopping_one_namespace(self) -> Deferred[None]:
        """The rooms of the others go on, and the namespace can start again."""
        one, two = self.guest(), self.guest(namespace="other")

        def stopped(_: object) -> None:
            self.assertTrue(one.peer.left)
            self.assertFalse(two.peer.left)
            self.rooms.start_namespace("default", (13620, 13629), (50000, 50799))
            self.guest()

        return self.rooms.stop_namespace("default").addCallback(stopped)

    async def test_closing_a_namespace(self) -> None:
        """Everybody hears of it, and the media port goes when the connections are closed or the grace is over."""
        for negotiated in (False, True):
            guest = self.guest()
            if negotiated:
                guest.publish("audio1")
            port = guest.peer.connection._port
            closed = self.rooms.close_namespace("default", 2.0, "disabled")
            self.assertEqual(guest.events[-1], RoomClosed("disabled"))
            self.assertFalse(self.rooms.serves("default"))
            self.reactor.advance(2.0)
            await closed
            self.assertFalse(self.fabric.has(port.address))
            self.assertEqual(self.reactor.getDelayedCalls(), [])
            self.rooms.start_namespace("default", (13620, 13629), (50000, 50799))
        await self.rooms.close_namespace("nobody's", 2.0)

    def test_relays_change(self) -> None:
        """Relays of other processes come and go while a namespace runs; one that a client has proved stays good."""
        guest = self.guest()
        guest.publish("audio1")
        agent = guest.peer.connection._agent
        near, far = ("10.0.0.2", 51000), ("10.0.0.3", 52000)
        socket = guest.peer.connection._port._socket

        def accepted() -> list[Address]:
            return [path for path, _ in agent.addresses()]

        socket.received([check(agent)], near)
        self.assertEqual(accepted(), [])
        self.rooms.set_relays("default", [("10.0.0.2", 51000, 51799)])
        socket.received([check(agent)], near)
        self.assertEqual(accepted(), [near])
        self.rooms.set_relays("default", [("10.0.0.3", 52000, 52799)], (53000, 53799))
        for source in (far, near, ("10.0.0.2", 51001)):
            socket.received([check(agent)], source)
        self.assertEqual(accepted(), [near, far])
        own = ("127.0.0.1", 53000)
        self.fabric.deliver([check(agent)], own, guest.peer.connection._port.address)
        self.assertEqual(accepted(), [near, far, own])
        with self.assertRaises(NotFound):
            self.rooms.set_relays("nobody's", [])

    async def test_churn(self) -> None:
        """A thousand joins with media negotiated, one after the other, and nothing has grown."""
        stayer = self.guest()
        stayer.publish("audio1")

        async def churn(count: int) -> int:
            for i in range(count):
                guest = self.guest()
                guest.publish(f"audio{i}", f"video{i}")
                self.wait()
                guest.peer.leave()
                self.wait()
                stayer.events.clear()
            await Deferred.fromCoroutine(self._settled())
            gc.collect()
            return len(gc.get_objects())

        before = await churn(20)
        after = await churn(1000)
        self.assertLess(after - before, 2000)
        self.assertEqual(len(stayer.browser.lines), 3)
        port = stayer.peer.connection._port
        self.assertEqual(len(port._ufrags), 1)

    async def _settled(self) -> None:
        """Wait until every connection that was closed is gone."""
        for done in list(self.rooms._closing):
            waiting: Deferred[None] = Deferred()
            done.addCallback(lambda result, waiting=waiting: waiting.callback(None))
            await waiting

    def test_samples(self) -> None:
        """What is counted has one series a namespace, and none for a room or a user."""
        self.guest().publish("audio1")
        found = {(name, labels["namespace"]): value for name, labels, value in self.rooms.samples()}
        self.assertEqual(found["orama_sfu_peers", "default"], 1)
        self.assertEqual(found["orama_sfu_tracks", "default"], 1)
        self.assertEqual(found["orama_sfu_offers_received_total", "default"], 1)
        self.assertEqual(found["orama_sfu_peers", "other"], 0)
        self.assertEqual(
            {key for _, labels, _ in self.rooms.samples() for key in labels},
            {"namespace", "direction", "state", "le", "reason"},
        )

    def test_samples_of_data(self) -> None:
        """Messages of all rooms of a namespace are counted together, and why some did not arrive."""
        for number, allowed in enumerate((True, False)):
            room = self.rooms.create("default", f"data {number}")
            members = [Member(room.data, name) for name in ("ann", "bob")]
            chat = members[0].sctp.client("chat")
            chat.on_message("four")
            members[0].may_send = allowed
            chat.on_message("more")
            for member in members:
                room.data.leave(member.peer_id)
        found = {
            (name, labels.get("direction", labels.get("reason"))): value
            for name, labels, value in self.rooms.samples()
            if labels["namespace"] == "default"
        }
        self.assertEqual(found["orama_sfu_data_messages_total", "received"], 4)
        self.assertEqual(found["orama_sfu_data_bytes_total", "forwarded"], 12)
        self.assertEqual(found["orama_sfu_data_lost_messages_total", "forbidden"], 1)
        self.assertEqual(found["orama_sfu_data_closed_total", "slow_receiver"], 0)
