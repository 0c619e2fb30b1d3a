"""Tracks of a :class:`~tests.contract.participant.Participant`: frames of VP8 and sound, a packet each."""

from __future__ import annotations

import struct
from typing import Any

from tests.contract import rtp, sdp
from tests.contract.participant import Participant

TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
RID = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
#: Ids of the extensions that we offer.
TRANSPORT_CC_ID, AUDIO_LEVEL_ID, RID_ID, MID_ID = 3, 1, 10, 4
#: SSRCs that :func:`tests.contract.sdp.offer` gives to its first m-line, and that of its RTX.
SSRC, RTX_SSRC = 1000, 2000
VP8, RTX, OPUS = 96, 97, 111

_RTX_LINES = f"a=ssrc-group:FID {SSRC} {RTX_SSRC}\r\na=ssrc:{RTX_SSRC} cname:c"


def picture(key: bool, content: bytes) -> bytes:
    """A frame of VP8 in one packet (RFC 7741, 4)."""
    head = b"\x10\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", 640, 480) if key else b"\x10\x11\x02\x00"
    return head + content


def camera(*lines: str, feedback: str = "transport-cc") -> str:
    """An offer of one picture with RTX.

    :param feedback: what tells us how much the link takes.
    """
    extension = f"a=extmap:{TRANSPORT_CC_ID} {TRANSPORT_CC}"
    offered = sdp.offer("video", extra="\r\n".join((_RTX_LINES, extension, *lines)))
    return offered.replace("96 transport-cc\r\n", f"96 {feedback}\r\n")


def simulcast(*rids: str) -> str:
    """An offer of one picture in several encodings, without SSRCs, as browsers make it."""
    text = sdp.offer("video", extra=f"a=extmap:{RID_ID} {RID}\r\na=extmap:{MID_ID} {MID}")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("a=ssrc"))
    return text + "".join(f"a=rid:{rid} send\r\n" for rid in rids) + f"a=simulcast:send {';'.join(rids)}\r\n"


def microphone() -> str:
    return sdp.offer("audio", extra=f"a=extmap:{AUDIO_LEVEL_ID} {AUDIO_LEVEL}")


class Camera:
    """What *participant* sends on one SSRC: each frame 30 ms after the one before.

    :param extensions: of each packet.
    """

    def __init__(self, participant: Participant, ssrc: int = SSRC, extensions: dict[int, bytes] | None = None) -> None:
        self.participant = participant
        self.ssrc = ssrc
        self.extensions = extensions or {}
        self.sequence = 100
        self.sent: dict[int, rtp.Packet] = {}
        self._timestamp = 5000

    def frame(self, key: bool = False, *, lost: bool = False, content: bytes = b"", **more: Any) -> rtp.Packet:
        """Send the next one.

        :param lost: it takes its number and does not leave.
        """
        self._timestamp += 2700
        content = content or f"{self.ssrc} {self.sequence} ".encode() * 10
        packet = rtp.Packet(
            VP8, self.sequence, self._timestamp, self.ssrc, picture(key, content), True, dict(self.extensions)
        )
        self.sent[self.sequence] = packet
        self.sequence += 1
        if not lost:
            self.participant.send(packet)
        return packet

    def again(self, sequence: int, number: int) -> None:
        """Send one more time, by RTX (RFC 4588)."""
        packet = self.sent[sequence]
        payload = struct.pack("!H", sequence) + packet.payload
        self.participant.send(rtp.Packet(RTX, number, packet.timestamp, RTX_SSRC, payload, True))


class Microphone:
    """Sound of *participant*, 20 ms a packet.

    :param mark: what every payload begins with.
    """

    def __init__(self, participant: Participant, mark: int) -> None:
        self.participant = participant
        self.mark = mark
        self.sequence = 500
        self._timestamp = 9000

    def say(self, level: int) -> None:
        """One packet.

        :param level: −dBov, so that 127 is silence (RFC 6464).
        """
        self.sequence += 1
        self._timestamp += 960
        extensions = {AUDIO_LEVEL_ID: bytes((level | (0x80 if level < 50 else 0),))}
        payload = bytes((self.mark,)) + bytes(60)
        self.participant.send(rtp.Packet(OPUS, self.sequence, self._timestamp, SSRC, payload, False, extensions))
