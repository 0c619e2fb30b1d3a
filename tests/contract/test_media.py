"""What clients see of the media path: loss, keyframes, feedback, layers, speakers and mute, on a running node."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.contract import rtp, sdp, turn
from tests.contract.camera import (
    RTX,
    SSRC,
    TRANSPORT_CC_ID,
    Camera,
    Microphone,
    camera,
    microphone,
    simulcast,
)
from tests.contract.participant import Participant, attend
from tests.contract.stage import shared
from tests.node import NodeProcess

_rooms = itertools.count(1)


class MediaTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = self.started()
        self.room = f"media-{next(_rooms)}"
        self.everybody: list[Participant] = []

    def started(self) -> NodeProcess:
        return shared()

    def join(self, key: str = "", **fields: Any) -> Participant:
        made = Participant(self.node, self.room, key, **fields)
        self.everybody.append(made)
        self.addCleanup(made.leave)
        return made

    def until(self, reached: Any, seconds: float = 10.0) -> None:
        attend(self.everybody, reached, seconds)

    def pause(self, seconds: float) -> None:
        """Take what comes for so long."""
        attend(self.everybody, None, seconds)

    def call(self, watchers: int = 1, offer: str = "") -> tuple[Camera, list[Participant]]:
        """A camera, and those who see it: its first keyframe has come to all of them."""
        publisher = self.join()
        publisher.publish(offer or camera())
        made = Camera(publisher)
        seeing = [self.join() for _ in range(watchers)]
        self.until(lambda: all(each.connected for each in seeing))
        made.frame(key=True)
        self.until(lambda: all(each.packets for each in seeing))
        return made, seeing


class RelayTests(MediaTestCase):
    def test_no_answer_without_a_relay(self) -> None:
        """A check that is right in all but where it comes from gets no answer, and takes nobody's place."""
        made, [watcher] = self.call()
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.connect(sdp.media_address(made.participant.description))
            stranger.settimeout(turn.SILENCE)
            for _ in range(3):
                stranger.send(made.participant.check())
            with self.assertRaises(TimeoutError):
                stranger.recv(2000)
        frame = made.frame()
        self.until(lambda: watcher.packets[-1][1].payload == frame.payload)


class LossTests(MediaTestCase):
    def test_asked_for(self) -> None:
        """What is missing is asked for between 20 and 400 ms later, five times, with pauses that grow by 1.25."""
        made, _ = self.call()
        missing = made.frame(lost=True).sequence
        began = time.monotonic()
        made.frame()
        asked = made.participant.feedback
        self.until(lambda: len(asked(rtp.RTPFB, rtp.NACK)) == 5)
        self.pause(0.3)
        nacks = asked(rtp.RTPFB, rtp.NACK)
        self.assertEqual([each.numbers() for _, each in nacks], [{missing}] * 5)
        self.assertEqual({each.media for _, each in nacks}, {SSRC})
        # 20 ms, and 0.1, 0.125, 0.156 and 0.195 s while the round trip is not known, each at the next tick. What is
        # late here may be so because of us, but nothing can be early.
        for (when, _), due in zip(nacks, (0.02, 0.12, 0.245, 0.401, 0.596), strict=True):
            self.assertTrue(0.99 * due < when - began < due + 1.0, (due, when - began))

    def test_nothing_from_before_a_keyframe(self) -> None:
        """What a keyframe has made useless is not asked for any more."""
        made, _ = self.call()
        made.frame(lost=True)
        made.frame()
        made.frame(key=True)
        after = made.frame(lost=True).sequence
        made.frame()
        asked: list[set[int]] = []
        while asked.count({after}) < 2:
            seen = len(asked)
            self.until(lambda seen=seen: len(made.participant.feedback(rtp.RTPFB, rtp.NACK)) > seen)
            asked = [each.numbers() for _, each in made.participant.feedback(rtp.RTPFB, rtp.NACK)]
        # On a busy machine there may have been time before the keyframe came.
        self.assertEqual(set(map(frozenset, asked[asked.index({after}) :])), {frozenset({after})})

    def test_repaired(self) -> None:
        """What the publisher sends again by RTX comes to the subscriber as what it is, in its own place."""
        made, [watcher] = self.call()
        missing = made.frame(lost=True)
        made.frame()
        self.until(lambda: made.participant.feedback(rtp.RTPFB, rtp.NACK))
        made.again(missing.sequence, 7000)
        self.until(lambda: len(watcher.packets) == 3)
        [first, late, missed] = [packet for _, packet in watcher.packets]
        self.assertEqual(missed.payload, missing.payload)
        self.assertEqual([(each.sequence - first.sequence) & 0xFFFF for each in (missed, late)], [1, 2])
        self.assertEqual((late.timestamp - missed.timestamp) & 0xFFFFFFFF, 2700)

    def test_sent_again(self) -> None:
        """A subscriber gets what it asks for by RTX alone, on an SSRC of its own: three times, and never twice within
        100 ms."""
        made, [watcher] = self.call()
        for _ in range(3):
            made.frame()
        self.until(lambda: len(watcher.packets) == 4)
        [track] = watcher.told("track-added")
        ssrc, repairs = watcher.track(track["mid"])
        wanted = watcher.of(ssrc)[2]
        began = time.monotonic()
        last = began + 10
        while time.monotonic() < last:
            watcher.control(rtp.nack(ssrc, wanted.sequence))
            self.pause(0.02)
            if len(watcher.of(repairs)) == 3:
                last = min(last, time.monotonic() + 0.3)
        again = watcher.of(repairs)
        self.assertEqual([(each.payload_type, each.original, each.payload[2:]) for each in again],
                         [(RTX, wanted.sequence, wanted.payload)] * 3)  # fmt: skip
        for at, moment in enumerate(when for when, packet in watcher.packets if packet.ssrc == repairs):
            self.assertGreater(moment - began, 0.1 * at)
        self.assertEqual(len({each.sequence for each in again}), 3)
        numbers = [each.sequence for each in watcher.of(ssrc)]
        self.assertEqual(len(numbers), len(set(numbers)))
        self.assertEqual(made.participant.feedback(rtp.RTPFB, rtp.NACK), [])


class KeyframeTests(MediaTestCase):
    def asked(self, made: Camera) -> int:
        """How often a keyframe was asked for."""
        return len(made.participant.feedback(rtp.PSFB, rtp.PLI))

    def test_one_for_all(self) -> None:
        """Wishes of several subscribers are one request, and those that come too soon after it wait until 500 ms are
        over."""
        made, watchers = self.call(2)
        self.pause(0.6)
        before, began = self.asked(made), time.monotonic()
        for each in watchers:
            [track] = each.told("track-added")
            each.control(rtp.feedback(rtp.PSFB, rtp.PLI, each.track(track["mid"])[0]))
        self.until(lambda: self.asked(made) > before)
        made.frame(key=True)
        self.pause(0.21)
        self.assertEqual(self.asked(made), before + 1)
        [track] = watchers[0].told("track-added")
        watchers[0].control(rtp.feedback(rtp.PSFB, rtp.PLI, watchers[0].track(track["mid"])[0]))
        self.until(lambda: self.asked(made) > before + 1)
        made.frame(key=True)
        self.assertGreater(made.participant.feedback(rtp.PSFB, rtp.PLI)[-1][0] - began, 0.5)
        self.assertEqual({each.media for _, each in made.participant.feedback(rtp.PSFB, rtp.PLI)}, {SSRC})

    def test_flood(self) -> None:
        """Who asks all the time gets three in ten seconds, since everybody else has to take them too."""
        made, [watcher, _] = self.call(2)
        before = asked = self.asked(made)
        [track] = watcher.told("track-added")
        last = time.monotonic() + 8
        while time.monotonic() < last:
            watcher.control(rtp.feedback(rtp.PSFB, rtp.PLI, watcher.track(track["mid"])[0]))
            self.pause(0.05)
            if self.asked(made) > asked:
                asked = self.asked(made)
                made.frame(key=True)
                if asked - before == 3:
                    last = min(last, time.monotonic() + 0.6)
        self.assertEqual(asked - before, 3)

    def test_slow_answer(self) -> None:
        """Who repeats a wish until the keyframe is there, as browsers do, has had one wish: the next one counts too."""
        made, [watcher, _] = self.call(2)
        [track] = watcher.told("track-added")
        wish = rtp.feedback(rtp.PSFB, rtp.PLI, watcher.track(track["mid"])[0])
        for _ in range(2):
            before = self.asked(made)
            for _ in range(3):
                watcher.control(wish)
                self.pause(0.21)
            self.until(lambda before=before: self.asked(made) > before)
            made.frame(key=True)


class FeedbackTests(MediaTestCase):
    def test_transport_wide(self) -> None:
        """Publishers hear of each packet once, about every 50 ms: when it came, or that it did not."""
        publisher = self.join()
        publisher.publish(camera())
        made = Camera(publisher)
        sent: dict[int, float] = {}
        for number in range(40):
            made.extensions = {TRANSPORT_CC_ID: struct.pack("!H", 65520 + number & 0xFFFF)}
            lost = number in (10, 11, 25)
            if not lost:
                sent[number] = time.monotonic()
            made.frame(key=not number, lost=lost)
            self.pause(0.012)
        self.pause(0.15)
        reports = publisher.feedback(rtp.RTPFB, rtp.TRANSPORT_CC)
        found: dict[int, int] = {}
        for at, (_, each) in enumerate(reports):
            base, number, times = rtp.arrivals(each.body)
            self.assertEqual(number, at)
            for offset, moment in enumerate(times):
                index = (base + offset - 65520) & 0xFFFF
                if moment is not None:
                    self.assertNotIn(index, found)
                    found[index] = moment
        self.assertEqual(set(found), set(sent))
        late = sorted((found[index] - found[0]) * 0.00025 - (sent[index] - sent[0]) for index in found)
        self.assertLess(abs(late[len(late) // 2]), 0.05, late)
        self.assertEqual([found[index] for index in sorted(found)], sorted(found.values()))
        pauses = [after - before for (before, _), (after, _) in itertools.pairwise(reports[1:])]
        self.assertTrue(0.04 < sum(pauses) / len(pauses) < 0.15, pauses)

    def test_remb(self) -> None:
        """Who knows no transport-wide feedback gets REMB (draft-alvestrand-rmcat-remb), once a second."""
        publisher = self.join()
        publisher.publish(camera(feedback="goog-remb"))
        made = Camera(publisher)
        began = time.monotonic()
        made.frame(key=True)
        deadline = began + 8
        while len(found := publisher.feedback(rtp.PSFB, rtp.REMB)) < 2:
            self.assertLess(time.monotonic(), deadline, publisher.controls)
            made.frame()
            self.pause(0.05)
        self.assertGreater(found[1][0] - began, 0.95)
        for _, each in found:
            self.assertEqual(each.body[8:12], b"REMB")
            self.assertEqual(struct.unpack_from("!I", each.body, 16), (SSRC,))
            exponent, mantissa = each.body[13] >> 2, int.from_bytes(each.body[13:16], "big") & 0x3FFFF
            self.assertTrue(50_000 <= mantissa << exponent <= 30_000_000, mantissa << exponent)
        self.assertEqual(publisher.feedback(rtp.RTPFB, rtp.TRANSPORT_CC), [])

    def test_numbers_for_subscribers(self) -> None:
        """What a subscriber is sent counts on without a hole, by packet and transport-wide."""
        made, [watcher] = self.call()
        for _ in range(10):
            made.frame()
        self.until(lambda: len(watcher.packets) == 11)
        packets = [packet for _, packet in watcher.packets]
        for before, after in itertools.pairwise(packets):
            self.assertEqual((after.sequence - before.sequence) & 0xFFFF, 1)
            numbers = [int.from_bytes(each.extensions[TRANSPORT_CC_ID], "big") for each in (before, after)]
            self.assertEqual((numbers[1] - numbers[0]) & 0xFFFF, 1)

    def test_sender_reports(self) -> None:
        """The publisher's clock reaches subscribers, in their own numbers (RFC 3550, 6.4.1)."""
        made, [watcher] = self.call()
        last = made.frame()
        made.participant.control(
            struct.pack("!BBHIIIIII", 0x80, rtp.SR, 6, SSRC, 0xE0000000, 0x80000000, last.timestamp, 2, 600)
        )
        self.until(lambda: [each for _, each in watcher.controls if each.kind == rtp.SR])
        [report] = [each for _, each in watcher.controls if each.kind == rtp.SR]
        ssrc, seconds, fraction, timestamp, packets, _ = struct.unpack_from("!IIIIII", report.body)
        [track] = watcher.told("track-added")
        self.assertEqual((ssrc, seconds, fraction), (watcher.track(track["mid"])[0], 0xE0000000, 0x80000000))
        self.assertEqual((timestamp, packets), (watcher.packets[-1][1].timestamp, 2))


class LayerTests(MediaTestCase):
    RIDS = ("q", "h", "f")

    def setUp(self) -> None:
        super().setUp()
        #: Requests for keyframes that have been answered.
        self.answered = 0

    def test_simulcast(self) -> None:
        """Three rids are ``low``, ``mid`` and ``high``; ``subscribe`` chooses among them, at a keyframe that is asked
        for, on one SSRC without a hole; and the publisher is told what is watched."""
        publisher = self.join()
        answer = publisher.publish(simulcast(*self.RIDS))
        self.assertIn("a=simulcast:recv q;h;f\r\n", answer)
        watcher = self.join()
        self.until(lambda: watcher.connected)
        [track] = watcher.told("track-added")
        self.assertEqual(track["layers"], ["low", "mid", "high"])
        cameras = self.cameras(publisher)

        def flow(reached: Any) -> None:
            self.flow(cameras, reached)

        def from_layer(rid: str) -> Any:
            return lambda: self.seen(watcher)[-3:] == [cameras[rid].ssrc] * 3

        flow(from_layer("f"))
        for name, rid in (("mid", "h"), ("low", "q")):
            watcher.client.say("subscribe", trackId=track["trackId"], layer=name)
            flow(from_layer(rid))
        flow(lambda: publisher.told("layers") and publisher.told("layers")[-1]["layers"] == ["low"])
        told = publisher.told("layers")[-1]
        self.assertEqual((told["trackId"], told["mid"], told["rids"]), (track["trackId"], "0", ["q"]))
        packets = [packet for _, packet in watcher.packets]
        self.assertEqual({packet.ssrc for packet in packets}, {watcher.track(track["mid"])[0]})
        numbers = [(packet.sequence - packets[0].sequence) & 0xFFFF for packet in packets]
        self.assertEqual(numbers, list(range(len(packets))))

    def test_thin_line(self) -> None:
        """Who says by REMB that it takes little gets less, and nobody else notices."""
        publisher = self.join()
        publisher.publish(simulcast(*self.RIDS))
        cameras = self.cameras(publisher)
        thin, other = self.join(), self.join()
        thin.unknown = "transport-"
        self.until(lambda: thin.connected and other.connected)
        sizes = dict(zip(self.RIDS, (150, 450, 1100), strict=True))

        def last(watcher: Participant) -> set[int]:
            return set(self.seen(watcher)[-10:])

        best, least = {cameras["f"].ssrc}, {cameras["q"].ssrc}
        self.flow(cameras, lambda: last(thin) == best == last(other), sizes)
        other.packets.clear()
        remb = b"REMB\x01" + (1 << 18 | 50_000).to_bytes(3, "big")  # 100 kbit/s
        thin_ssrc, _ = thin.track(thin.told("track-added")[0]["mid"])

        def told() -> bool:
            thin.control(rtp.feedback(rtp.PSFB, rtp.REMB, 0, remb + struct.pack("!I", thin_ssrc)))
            return last(thin) == least

        self.flow(cameras, told, sizes)
        self.assertEqual(set(self.seen(other)), best)
        self.assertGreater(len(other.packets), 10)

    def cameras(self, publisher: Participant) -> dict[str, Camera]:
        """The encodings of its picture, by rid."""
        return {rid: Camera(publisher, 3000 + at, {10: rid.encode(), 4: b"0"}) for at, rid in enumerate(self.RIDS)}

    def flow(self, cameras: dict[str, Camera], reached: Any, sizes: dict[str, int] | None = None) -> None:
        """Frames of all of them, and keyframes where they are asked for, until it is so."""
        publisher = next(iter(cameras.values())).participant
        deadline = time.monotonic() + 20
        while not reached():
            self.assertLess(time.monotonic(), deadline, [each.welcome["peerId"] for each in self.everybody])
            asked = publisher.feedback(rtp.PSFB, rtp.PLI)
            wanted = {each.media for _, each in asked[self.answered :]}
            self.answered = len(asked)
            for rid, each in cameras.items():
                content = f"{each.ssrc} ".encode().ljust((sizes or {}).get(rid, 60), b"x")
                each.frame(key=each.ssrc in wanted or each.sequence == 100, content=content)
            self.pause(0.03)

    def seen(self, watcher: Participant) -> list[int]:
        """The SSRC that each packet had when the publisher sent it, which stands in our payloads."""
        return [int(packet.payload.partition(b" ")[0][-4:]) for _, packet in watcher.packets]


class SpeakerTests(MediaTestCase):
    def test_loudest(self) -> None:
        """Of six open microphones four are forwarded, and ``active-speakers`` names who is loud, loudest first, at most
        every 300 ms; who begins to speak is heard from the first packet on."""
        listener = self.join()
        speakers = [self.join() for _ in range(6)]
        microphones: list[Microphone] = []
        for each in speakers:
            each.publish(microphone())
            microphones.append(Microphone(each, len(microphones)))
        self.until(lambda: len(listener.told("track-added")) == 6 and listener.connected)
        levels, talking = [20, 10, 30, 25, 127, 127], time.monotonic()
        self.talk(microphones, levels, lambda: len(self.named(listener)) == 4)
        wanted = [speakers[at].peer_id for at in (1, 0, 3, 2)]
        self.talk(microphones, levels, lambda: self.named(listener) == wanted)
        message = listener.told("active-speakers")[-1]
        self.assertEqual(set(message), {"type", "peers"})
        for peer in message["peers"]:
            self.assertEqual(set(peer), {"peerId", "level"})
        found = [peer["level"] for peer in message["peers"]]
        self.assertEqual(found, sorted(found, reverse=True))
        listener.packets.clear()
        self.talk(microphones, levels, lambda: len(listener.packets) > 40)
        self.assertEqual({packet.payload[0] for _, packet in listener.packets}, {0, 1, 2, 3})
        listener.packets.clear()
        quiet = time.monotonic() + 0.6
        self.talk(microphones, [20, 10, 127, 127, 127, 127], lambda: time.monotonic() > quiet)
        levels = [20, 10, 127, 127, 15, 127]
        began = microphones[4].sequence
        self.talk(microphones, levels, lambda: self.named(listener) == [speakers[at].peer_id for at in (1, 4, 0)])
        spoken = microphones[4].sequence - began
        # From the first word on, and a little of what was there before it.
        self.until(lambda: sum(packet.payload[0] == 4 for _, packet in listener.packets) >= spoken)
        moments = [when for when, kind in listener.heard if kind == "active-speakers"]
        self.assertLessEqual(len(moments), 1 + (moments[-1] - talking) / 0.3)

    def talk(self, microphones: list[Microphone], levels: list[int], reached: Any) -> None:
        deadline = time.monotonic() + 20
        while not reached():
            assert time.monotonic() < deadline, self.everybody[0].told("active-speakers")
            for each, level in zip(microphones, levels, strict=True):
                each.say(level)
            self.pause(0.02)

    def named(self, listener: Participant) -> list[str]:
        told = listener.told("active-speakers")
        return [peer["peerId"] for peer in told[-1]["peers"]] if told else []


class MuteTests(MediaTestCase):
    def test_mute(self) -> None:
        """While muted nothing is forwarded; unmuting begins with a keyframe that is asked for; nothing is offered."""
        made, [watcher] = self.call()
        [track] = watcher.told("track-added")
        publisher = made.participant
        publisher.client.say("track-state", trackId=track["trackId"], muted=True)
        self.until(lambda: watcher.told("track-state"))
        for _ in range(5):
            made.frame()
        self.pause(0.3)
        self.assertEqual(len(watcher.packets), 1)
        asked = len(publisher.feedback(rtp.PSFB, rtp.PLI))
        offers = len(watcher.told("offer")), len(publisher.told("offer"))
        publisher.client.say("track-state", trackId=track["trackId"], muted=False)
        self.until(lambda: len(publisher.feedback(rtp.PSFB, rtp.PLI)) > asked)
        made.frame()
        key = made.frame(key=True)
        self.until(lambda: len(watcher.packets) == 2)
        [before, after] = [packet for _, packet in watcher.packets]
        self.assertEqual((after.payload, (after.sequence - before.sequence) & 0xFFFF), (key.payload, 1))
        self.assertEqual((len(watcher.told("offer")), len(publisher.told("offer"))), offers)

    def test_kicked(self) -> None:
        """Of whoever is put out nothing is forwarded any more."""
        made, [watcher] = self.call()
        watcher.client.say("kick", peerId=made.participant.peer_id)
        self.until(lambda: watcher.told("peer-left"))
        made.frame(key=True)
        self.pause(0.2)
        self.assertEqual(len(watcher.packets), 1)
        self.assertEqual(watcher.told("track-removed")[0]["peerId"], made.participant.peer_id)
