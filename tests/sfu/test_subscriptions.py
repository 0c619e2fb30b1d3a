"""What one client receives of a room: everything, what it asks for, or what is worth it, on slots."""

from __future__ import annotations

from typing import Any

from orama.settings import SfuSettings
from orama.sfu.events import Offer, Slot, TrackAdded, TrackRemoved, TrackState
from orama.sfu.slots import MOST_SLOTS
from orama.sfu.subscriptions import CAMERA_SLOTS, OWN_LINES
from orama.sfu.values import AUDIO_LEVEL, MID
from orama.wire.rtp import RtpPacket, parse
from tests.sfu.clients import KEY, random_keys, session
from tests.sfu.guests import Guest, RoomsCase

TALK = 25


class MediaGuest:
    """A guest with keys: it sends packets of its tracks, and reads what it is sent."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        keys = random_keys()
        media = guest.peer.connection.media
        media.secure(keys)
        media._outbox._transmit = self._arrived
        self.rtp: list[RtpPacket] = []
        self._out = session(keys.profile, keys.receive_key + keys.receive_salt, inbound=False)
        self._in = session(keys.profile, keys.send_key + keys.send_salt, inbound=True)
        self._numbers: dict[str, int] = {}

    def _arrived(self, packets: Any) -> None:
        for packet in packets:
            if not 192 <= packet[1] <= 223:
                self.rtp.append(parse(self._in.unprotect(bytes(packet))))

    def send(self, track_id: str, payload: bytes, level: int = TALK) -> None:
        uplinked = self.guest.peer.publications[track_id].uplinked
        number = self._numbers[track_id] = self._numbers.get(track_id, 0) + 1
        extensions = [(uplinked.extensions[MID], uplinked.mid.encode())]
        if uplinked.kind == "audio":
            extensions.append((uplinked.extensions[AUDIO_LEVEL], bytes([0x80 | level])))
        ssrc = 1000 + int(uplinked.mid)
        packet = RtpPacket(
            uplinked.codecs[0].payload_type, number, number * 960, ssrc, payload, True, extensions=tuple(extensions)
        )
        media = self.guest.peer.connection.media
        media.receive([self._out.protect(packet.serialize())], self.guest.peer._clock.seconds())

    def take(self) -> list[bytes]:
        """Payloads that came since the last call."""
        found, self.rtp = [packet.payload for packet in self.rtp], []
        return found


class SlotsCase(RoomsCase):
    def shown(self, guest: Guest, kind: str = "video") -> dict[str, str]:
        """Mid → track, as the client was told last."""
        found: dict[str, str] = {}
        for event in guest.told(Slot):
            if event.kind == kind:
                found[event.mid] = event.track_id
        return {mid: track for mid, track in found.items() if track is not None}

    def speak(self, guest: Guest) -> None:
        """*guest* has spoken just now, as far as the room knows."""
        ranking, speaking = guest.peer.room.ranking, [guest.peer.peer_id]
        ranking.speak(speaking, self.reactor.seconds())
        ranking.speak(speaking, self.reactor.seconds())
        self.wait()


class LastTests(SlotsCase):
    def setUp(self) -> None:
        super().setUp()
        self.viewer = self.guest()
        self.others = [self.guest() for _ in range(5)]
        for number, other in enumerate(self.others):
            other.publish(f"video{number}")
        self.wait()

    def test_last_speakers(self) -> None:
        """So many slots as asked for show the cameras of those who spoke last; a new speaker needs no offer."""
        self.viewer.peer.receive("video", 2)
        self.wait()
        self.assertEqual(len(self.viewer.browser.receiving), 2)
        self.assertEqual(set(self.shown(self.viewer).values()), {"video0", "video1"})
        self.assertEqual(set(self.shown(self.viewer)), set(self.viewer.browser.receiving))
        offers = len(self.viewer.told(Offer))
        before = self.shown(self.viewer)
        self.speak(self.others[4])
        self.assertEqual(set(self.shown(self.viewer).values()), {"video4", "video0"})
        kept = next(mid for mid, track in before.items() if track == "video0")
        self.assertEqual(self.shown(self.viewer)[kept], "video0")
        self.speak(self.others[3])
        self.assertEqual(set(self.shown(self.viewer).values()), {"video4", "video3"})
        self.assertEqual(len(self.viewer.told(Offer)), offers)

    def test_page(self) -> None:
        """A page shows the tracks that were named, in as many slots, and turning it over needs no offer."""
        self.viewer.peer.receive("video", None, ["video1", "video2"])
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {"video1", "video2"})
        offers = len(self.viewer.told(Offer))
        self.viewer.peer.receive("video", None, ["video3", "video4"])
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {"video3", "video4"})
        self.assertEqual(len(self.viewer.told(Offer)), offers)

    def test_pinned_first(self) -> None:
        """What is named comes first, then screens, then who spoke."""
        self.others[0].publish("video9", sources={"1": "screen"})
        self.viewer.peer.receive("video", 3, ["video3", "nothing"])
        self.speak(self.others[2])
        self.assertEqual(set(self.shown(self.viewer).values()), {"video3", "video9", "video2"})

    def test_nothing_and_everything(self) -> None:
        """No slots is nothing of that kind; without a number everything has an m-line of its own again."""
        self.viewer.peer.receive("video", 0)
        self.wait()
        self.assertEqual(self.viewer.tracks, set())
        self.viewer.peer.receive("video")
        self.wait()
        self.assertEqual(self.viewer.tracks, {f"video{number}" for number in range(5)})
        self.assertEqual(self.shown(self.viewer), {})

    def test_sizes(self) -> None:
        """Fewer slots keep the ones that show something; a bound holds on how many there are."""
        self.viewer.peer.receive("video", MOST_SLOTS + 10)
        self.wait()
        self.assertEqual(len(self.viewer.browser.receiving), MOST_SLOTS)
        self.viewer.peer.receive("video", 5)
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {f"video{number}" for number in range(5)})
        self.assertEqual(set(self.shown(self.viewer)), set(self.viewer.browser.receiving))

    def test_unsubscribed(self) -> None:
        """A track that the client does not want is on no slot, until it is subscribed to again."""
        self.viewer.peer.receive("video", 1)
        self.viewer.peer.unsubscribe("video0")
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {"video1"})
        self.viewer.peer.unsubscribe("video1")
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {"video2"})
        self.viewer.peer.subscribe("video0", "low", 3)
        self.viewer.peer.unsubscribe("video2")
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {"video0"})
        (downlink,) = self.viewer.peer.connection.media._downlinks.values()
        self.assertEqual((downlink.track.track_id, downlink.choice.layer, downlink.priority), ("video0", "low", 3))

    def test_leaving(self) -> None:
        """The slot of somebody who leaves goes to the next; nobody's own camera is on a slot."""
        self.viewer.publish("video8")
        self.viewer.peer.receive("video", 5)
        self.wait()
        self.others[0].peer.leave()
        self.wait()
        self.assertEqual(set(self.shown(self.viewer).values()), {f"video{number}" for number in range(1, 5)})
        self.assertEqual([event.track_id for event in self.viewer.told(TrackRemoved)], ["video0"])

    def test_tracks_are_known(self) -> None:
        """Tracks that have no m-line are told as they come, change and go all the same."""
        self.viewer.peer.receive("video", 1)
        self.wait()
        self.viewer.events.clear()
        self.others[0].publish("video9")
        self.others[0].peer.track_state("video9", True)
        self.wait()
        (added,) = self.viewer.told(TrackAdded)
        self.assertEqual((added.track_id, added.mid), ("video9", None))
        self.assertEqual(self.viewer.told(TrackState), [TrackState("video9", True)])

    def test_new_codec(self) -> None:
        """When somebody publishes in a codec that the slots do not have yet they are offered anew."""
        self.viewer.peer.receive("video", 1)
        self.wait()
        other = self.others[0]
        other.peer.offer(other.browser.offer().replace("SAVPF 96 97 102 103", "SAVPF 102 103"))
        self.wait()
        (line,) = [each for each in self.viewer.browser.lines if each.msid]
        self.assertEqual({"VP8/90000", "H264/90000"}, {name for _, name in line.formats} - {"rtx/90000"})

    def test_resumed(self) -> None:
        """Who comes back is told what the slots show now, however much that changed."""
        self.viewer.peer.receive("video", 1)
        self.wait()
        self.viewer.peer.detach()
        for other in self.others:
            self.speak(other)
        self.viewer.events.clear()
        self.viewer.peer.attach(self.viewer.hear)
        self.assertEqual([event.track_id for event in self.viewer.told(Slot)], ["video4"])

    def test_refused(self) -> None:
        """Only kinds that there are, and only for who may subscribe."""
        self.assert_refused("invalid_message", self.viewer.peer.receive, "smell", 1)
        publisher = self.guest(permissions=frozenset({"publish"}))
        self.assert_refused("forbidden", publisher.peer.receive, "video", 1)


class PicturesTests(SlotsCase):
    def test_one_stream(self) -> None:
        """What a slot shows is one stream: one SSRC, numbers without a hole, each track from a keyframe."""
        viewer, one, two = self.guest(), self.guest(), self.guest()
        one.publish("video1")
        two.publish("video2")
        viewer.peer.receive("video", 1)
        self.wait()
        screen, first, second = (MediaGuest(each) for each in (viewer, one, two))
        for track in ("one", "two", "one"):
            speaker, sender, track_id = (one, first, "video1") if track == "one" else (two, second, "video2")
            self.speak(speaker)
            sender.send(track_id, b"\x10\x11delta")
            sender.send(track_id, KEY + track.encode())
            sender.send(track_id, b"\x10\x11delta" + track.encode())
            self.reactor.advance(0)
        packets = screen.rtp
        self.assertEqual(
            [packet.payload[2:] for packet in packets],
            [b"one", b"deltaone", b"two", b"deltatwo", b"one", b"deltaone"],
        )
        self.assertEqual(len({packet.ssrc for packet in packets}), 1)
        numbers = [packet.sequence_number for packet in packets]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 6)))

    def test_bandwidth(self) -> None:
        """A slot that had to be held back stays so with its next track, until bandwidth is shared out, which is due."""
        viewer, one, two = self.guest(), self.guest(), self.guest()
        one.publish("video1")
        two.publish("video2")
        viewer.peer.receive("video", 1)
        self.wait()
        screen, first, second = (MediaGuest(each) for each in (viewer, one, two))
        media, now = viewer.peer.connection.media, self.reactor.seconds()
        ((slot_id, downlink),) = media._downlinks.items()
        first.send("video1", KEY)
        assert media._sharing is not None
        allocator = media._sharing._allocator
        allocator.share({slot_id: downlink}, 1e6, True, now)
        downlink.allow(None, now)
        self.assertFalse(allocator.due(1e6, {slot_id}, now))
        media.show(slot_id, two.peer.publications["video2"].track)
        second.send("video2", KEY)
        self.assertEqual((downlink.track.track_id, screen.take()), ("video2", []))
        self.assertTrue(allocator.due(1e6, {slot_id}, now))


class CrowdTests(SlotsCase):
    """More microphones than m-lines for them."""

    sfu = SfuSettings(loudest=2)

    def setUp(self) -> None:
        super().setUp()
        self.listener = self.guest()
        self.speakers = [self.guest() for _ in range(OWN_LINES + 3)]
        for number, speaker in enumerate(self.speakers):
            speaker.publish(f"audio{number}")
        self.wait()

    def test_lines(self) -> None:
        """The first microphones have m-lines of their own, for the others there are as many slots as are heard."""
        self.assertEqual(len(self.listener.browser.receiving), OWN_LINES + 2)
        own = {event.track_id for event in self.listener.told(TrackAdded) if event.mid is not None}
        self.assertEqual(own, {f"audio{number}" for number in range(OWN_LINES)})
        rest = [event.track_id for event in self.listener.told(TrackAdded) if event.mid is None]
        self.assertEqual(rest, [f"audio{number}" for number in range(OWN_LINES, OWN_LINES + 3)])

    def test_heard(self) -> None:
        """Everybody who speaks is heard from the first packet, on an m-line or a slot, once, and not by itself."""
        listener = MediaGuest(self.listener)
        late = [MediaGuest(self.speakers[-1]), MediaGuest(self.speakers[-2])]
        early = MediaGuest(self.speakers[0])
        late[0].send(f"audio{OWN_LINES + 2}", b"late")
        early.send("audio0", b"early")
        self.reactor.advance(0)
        self.assertEqual(sorted(listener.take()), [b"early", b"late"])
        self.assertEqual((late[0].take(), early.take()), ([b"early"], [b"late"]))
        self.wait()
        self.assertEqual(set(self.shown(self.listener, "audio").values()), {f"audio{OWN_LINES + 2}"})
        self.reactor.advance(2)
        late[1].send(f"audio{OWN_LINES + 1}", b"later")
        self.reactor.advance(0)
        self.assertEqual(listener.take(), [b"later"])
        offers = len(self.listener.told(Offer))
        self.wait(5)
        self.assertEqual(len(self.listener.told(Offer)), offers)

    def test_asked_for(self) -> None:
        """Who asks for one that takes turns gets it on an m-line of its own, and on no slot besides."""
        track_id = f"audio{OWN_LINES + 2}"
        self.listener.peer.subscribe(track_id)
        self.wait()
        self.assertIn(track_id, self.listener.tracks)
        listener, speaker = MediaGuest(self.listener), MediaGuest(self.speakers[-1])
        speaker.send(track_id, b"once")
        self.reactor.advance(0)
        self.assertEqual(listener.take(), [b"once"])

    def test_slots_alone(self) -> None:
        """A client that wants slots alone hears the loudest on them."""
        self.listener.peer.receive("audio", 2)
        self.wait()
        self.assertEqual(len(self.listener.browser.receiving), 2)
        listener, speaker = MediaGuest(self.listener), MediaGuest(self.speakers[5])
        speaker.send("audio5", b"five")
        self.reactor.advance(0)
        self.assertEqual(listener.take(), [b"five"])

    def test_cameras(self) -> None:
        """The cameras beyond the first are seen on slots when their owners speak; screens have their own lines."""
        for number, speaker in enumerate(self.speakers):
            speaker.publish(f"video{number}")
        self.speakers[-1].publish("video99", sources={"2": "screen"})
        self.wait()
        lines = [line for line in self.listener.browser.lines if line.msid and line.kind == "video"]
        self.assertEqual(len(lines), OWN_LINES + CAMERA_SLOTS + 1)
        self.assertIn("video99", self.listener.tracks)
        self.assertEqual(set(self.shown(self.listener).values()), {f"video{OWN_LINES + each}" for each in range(3)})
        self.guest().publish("video50")
        self.speakers.append(self.guest())
        self.speakers[-1].publish("video51")
        offers = len(self.listener.told(Offer))
        self.speak(self.speakers[-1])
        self.assertIn("video51", self.shown(self.listener).values())
        self.assertEqual(len(self.listener.told(Offer)), offers)
