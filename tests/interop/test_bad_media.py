"""Bad packets of somebody who is in the call, so that they are authenticated: RTP, RTCP and SCTP that cannot be."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

from tests.contract import rtp, sdp
from tests.contract.camera import MID, MID_ID, RID, RID_ID, RTX, RTX_SSRC, SSRC, TRANSPORT_CC_ID, VP8, Camera, camera
from tests.contract.participant import Participant, attend
from tests.contract.rest import gauges
from tests.interop.test_bad_input import MANY, BadInputTestCase

_rooms = itertools.count(1)
_DESCRIPTOR = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"


class BadMediaTestCase(BadInputTestCase):
    """In a room with a camera and somebody who sees it, before, during and after."""

    def setUp(self) -> None:
        super().setUp()
        self.room = f"bad-media-{next(_rooms)}"
        publisher, self.watcher = self.participant(), self.participant()
        publisher.publish(camera())
        self.camera = Camera(publisher)
        attend([publisher, self.watcher], lambda: self.watcher.connected, 10)
        self.seen = 0
        self.goes_on()

    def participant(self) -> Participant:
        made = Participant(self.node, self.room)
        self.addCleanup(made.leave)
        return made

    def goes_on(self) -> None:
        """The camera is seen as ever."""
        frame = self.camera.frame(key=True)
        attend([self.camera.participant, self.watcher], lambda: self.payloads()[-1:] == [frame.payload], 10)

    def payloads(self) -> list[bytes]:
        return [packet.payload for _, packet in self.watcher.packets]


class AuthenticatedTests(BadMediaTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.bad = self.participant()
        lines = (f"a=extmap:{MID_ID} {MID}", f"a=extmap:{RID_ID} {RID}", f"a=extmap:12 {_DESCRIPTOR}")
        self.bad.publish(camera(*lines))

    def headers(self) -> Iterator[bytes]:
        """RTP headers, right and wrong, as far as libsrtp seals them."""
        for number in range(MANY):
            first = self.random.choice([0x80, 0x90, 0xA0, 0xB0, 0x8F, 0x9F])
            second = self.random.choice([VP8, RTX, 63, 111, 0, 127]) | self.random.choice([0, 128])
            ssrc = self.random.choice([SSRC, RTX_SSRC, 0, 0xFFFFFFFF, self.random.getrandbits(32)])
            head = struct.pack("!BBHII", first, second, number * 7 & 0xFFFF, self.random.getrandbits(32), ssrc)
            head += self.random.randbytes(4 * (first & 15))
            if first & 0x10:
                profile = self.random.choice([0xBEDE, 0x1000, 0x100F, 0, 0xFFFF])
                words = self.random.randrange(6)
                head += struct.pack("!HH", profile, words) + self.extensions(4 * words)
            yield head

    def extensions(self, size: int) -> bytes:
        """Elements with the ids that were agreed, and anything in them."""
        found = b""
        while len(found) < size:
            length = self.random.randrange(16)
            name = self.random.choice([0, TRANSPORT_CC_ID, MID_ID, RID_ID, 12, 15])
            found += bytes((name << 4 | length,)) + self.random.randbytes(length + 1)
        return found[:size]

    def test_rtp(self) -> None:
        """Headers, extensions, descriptors, RTX and padding with anything in them are dropped or forwarded as they are;
        nobody else's picture is touched."""
        before = gauges(self.node, "orama_sfu_received_packets_total", "orama_sfu_dropped_packets_total")
        for at, head in enumerate(self.headers()):
            payload = self.random.randbytes(self.random.choice([0, 1, 2, 3, 8, 40, 1100]))
            self.bad.seal(head + payload)
            if at % 50 == 0:
                self.goes_on()
        self.goes_on()
        after = gauges(self.node, *before)
        self.assertGreater(sum(after.values()) - sum(before.values()), MANY * 0.8)

    def test_rtcp(self) -> None:
        """Reports, NACKs, PLI, FIR, REMB, transport-wide feedback and what nobody knows, cut or with wrong counts."""
        ssrc, _ = self.watcher.track(self.watcher.told("track-added")[0]["mid"])
        for at in range(MANY):
            kind = self.random.choice([rtp.SR, rtp.RR, rtp.SDES, rtp.BYE, 204, rtp.RTPFB, rtp.PSFB, 207, 255, 192])
            body = struct.pack("!II", self.random.getrandbits(32), self.random.choice([ssrc, SSRC, 0]))
            body += self.random.choice([b"", b"REMB", bytes(4)]) + self.random.randbytes(self.random.randrange(60))
            words = self.random.choice([len(body) // 4, 0, 1, 0xFFFF, self.random.randrange(30)])
            head = struct.pack("!BBH", 0x80 | self.random.randrange(64), kind, words)
            self.bad.seal_rtcp(head + body[: len(body) // 4 * 4])
            if at % 50 == 0:
                self.goes_on()
        self.goes_on()

    def test_feedback_of_a_subscriber(self) -> None:
        """Feedback that acknowledges, asks for or reports what was never sent changes nothing for others."""
        attend([self.bad, self.watcher], lambda: self.bad.told("track-added") and self.bad.offered, 10)
        ssrc, _ = self.bad.track(self.bad.told("track-added")[0]["mid"])
        for at in range(MANY):
            number = self.random.randrange(65536)
            self.bad.control(rtp.nack(ssrc, *(number + step for step in range(0, 200, 17))))
            head = struct.pack("!HH", number, self.random.choice([1, 14, 8191, 65535]))
            clock = self.random.randbytes(3) + bytes((at & 255,))
            chunks = self.random.choice([b"\x20\x0e", b"\x3f\xff", b"\xff\xff", b"\x9f\xff"]) * 2
            body = head + clock + chunks + self.random.randbytes(self.random.randrange(40))
            self.bad.control(rtp.feedback(rtp.RTPFB, rtp.TRANSPORT_CC, ssrc, body[: len(body) // 4 * 4]))
            remb = b"REMB\x01" + self.random.randbytes(3) + struct.pack("!I", ssrc)
            self.bad.control(rtp.feedback(rtp.PSFB, rtp.REMB, 0, remb))
            block = struct.pack("!IIIIII", ssrc, *(self.random.getrandbits(32) for _ in range(5)))
            self.bad.control(struct.pack("!BBHI", 0x81, rtp.RR, 7, 1) + block)
            if at % 50 == 0:
                self.goes_on()
        self.goes_on()


class SctpTests(BadMediaTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.bad = self.participant()
        self.bad.publish(sdp.offer("data"))

    def packet(self, chunks: bytes, tag: int = 0) -> bytes:
        """RFC 9260, 3.1."""
        head = struct.pack("!HHI", 5000, 5000, tag)
        crc = _crc32c(head + bytes(4) + chunks)
        return head + struct.pack("<I", crc) + chunks

    def test_before_it_is_up(self) -> None:
        """Chunks of any kind and length, right checksums and wrong ones, cut anywhere: none of them ends the call."""
        for at in range(MANY):
            chunks = b""
            for _ in range(self.random.randrange(1, 4)):
                value = self.random.randbytes(self.random.randrange(60))
                length = self.random.choice([len(value) + 4, len(value) + 4, 0, 3, 65535])
                kind = self.random.choice([*range(15), 64, 130, 192, 193, 194, 255])
                chunks += struct.pack("!BBH", kind, self.random.randrange(256), length) + value
                chunks += bytes(-len(chunks) % 4)
            packet = self.packet(chunks, self.random.choice([0, self.random.getrandbits(32)]))
            if self.random.random() < 0.2:
                packet = packet[: self.random.randrange(len(packet))]
            self.bad.say(packet or b"\0")
            if at % 50 == 0:
                self.goes_on()
        self.goes_on()
        attend([self.bad], None, 0.05)
        self.assertIsNone(self.bad.client.code)
        self.assertEqual(self.bad.told("error"), [])


class ReceiveTests(BadInputTestCase):
    def test_receive_and_subscribe(self) -> None:
        """Whatever is asked for of what there is and is not: an error, or it is so; and the call goes on."""
        publisher, client = self.join(), self.join()
        publisher.say("offer", sdp=sdp.offer("audio", "video", "video"))
        client.until("offer")
        numbers: list[Any] = [None, 0, 1, 32, 33, -1, 2**70, 1.0, True, "1", []]
        ids: list[Any] = ["track0", "track1", "track2", "nobody", "", "x" * 257, 7, None, "\0"]
        for _ in range(MANY):
            kind = self.random.choice(["receive", "subscribe", "unsubscribe", "receive"])
            fields: dict[str, Any] = {}
            if kind == "receive":
                fields["kind"] = self.random.choice(["audio", "video", "video", "data", None])
                fields["lastN"] = self.random.choice(numbers)
                if self.random.random() < 0.7:
                    some = [self.random.choice(ids[:4]) for _ in range(self.random.choice([0, 1, 4, 100, 101]))]
                    fields["tracks"] = self.random.choice([some, some, some, ids, "track0", {}, None])
            else:
                fields["trackId"] = self.random.choice(ids)
                fields["layer"] = self.random.choice(["low", "mid", "high", "auto", "best", None, 1])
                fields["priority"] = self.random.choice([0, 255, 256, -1, None, "1"])
            client.say(kind, **fields)
        client.say("the-end")
        client.until_one(lambda message: message.get("code") == "unknown_type", "end")
        codes = {each["code"] for each in client.received if each["type"] == "error"}
        self.assertEqual(codes, {"invalid_message", "unknown_track", "unknown_type"})
        told = {each["type"] for each in client.received} - {"error"}
        self.assertLessEqual(told, {"welcome", "turn-credentials", "offer", "slot", "track-added"})
        for kind in ("audio", "video"):
            client.say("receive", kind=kind)
        client.settled()


def _crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
