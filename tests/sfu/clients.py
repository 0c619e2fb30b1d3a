"""A client made of pylibsrtp and RTP built by hand, joined to a ``PeerMedia`` through memory.

It shares no code with the media path but ``wire.rtp`` and ``wire.rtcp``: encryption, numbering and RTX are
its own, so that it is an independent peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

import pylibsrtp
from twisted.internet.task import Clock

from orama.net.fabric import Burst, Fabric
from orama.sfu.counters import MediaCounters
from orama.sfu.media import PeerMedia
from orama.sfu.values import AUDIO_LEVEL, MID, RID, TRANSPORT_CC, Codec, Downlinked, SrtpKeys, Uplinked
from orama.wire.rtcp import RtcpPacket, serialize
from orama.wire.rtcp import parse as parse_rtcp
from orama.wire.rtp import RtpPacket, parse

GCM_128, GCM_256, CM = "AEAD_AES_128_GCM", "AEAD_AES_256_GCM", "AES128_CM_SHA1_80"
PROFILES = (GCM_128, GCM_256, CM)
SIZES = {GCM_128: (16, 12), GCM_256: (32, 12), CM: (16, 14)}
LIBSRTP = {
    GCM_128: pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    GCM_256: pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
    CM: pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}
VIDEO_FEEDBACK = frozenset({"nack", "nack pli", "ccm fir", "transport-cc"})
VP8 = Codec(96, "video/VP8", 90000, rtx_payload_type=97, feedback=VIDEO_FEEDBACK)
OPUS = Codec(111, "audio/opus", 48000, 2, "minptime=10;useinbandfec=1")
EXTENSIONS: Mapping[str, int] = {AUDIO_LEVEL: 1, TRANSPORT_CC: 3, MID: 4, RID: 10}
#: VP8 payload descriptor (start of a frame) and the first byte of a key or an inter frame.
KEY, DELTA, REST = b"\x10\x10", b"\x10\x11", b"\x00\x11"


def random_keys(profile: str = GCM_128) -> SrtpKeys:
    key, salt = SIZES[profile]
    return SrtpKeys(profile, os.urandom(key), os.urandom(salt), os.urandom(key), os.urandom(salt))


def session(profile: str, key: bytes, inbound: bool) -> pylibsrtp.Session:
    direction = pylibsrtp.Policy.SSRC_ANY_INBOUND if inbound else pylibsrtp.Policy.SSRC_ANY_OUTBOUND
    policy = pylibsrtp.Policy(key=key, ssrc_type=direction, srtp_profile=LIBSRTP[profile])
    policy.window_size = 1024
    return pylibsrtp.Session(policy)


class Room:
    """A clock, a fabric and counters that clients share."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.fabric = Fabric(self.clock)
        self.counters = MediaCounters()
        self.clients: list[Client] = []

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def client(self, profile: str = GCM_128, secure: bool = True, max_bitrate: int = 0) -> Client:
        client = Client(self, profile, len(self.clients), max_bitrate)
        self.clients.append(client)
        if secure:
            client.secure()
        return client

    def wait(self, seconds: float) -> None:
        """Let time pass in ticks of 50 ms, as a room does."""
        for _ in range(max(1, round(seconds / 0.05))):
            self.clock.advance(0.05)
            for client in self.clients:
                client.media.tick(self.now)
            self.clock.advance(0)


class Client:
    """The browser's side of one connection and the ``PeerMedia`` at the other end of it.

    :ivar rtp: what arrived, decrypted and parsed, in order; a replay or a wrong tag raises here.
    :ivar lossy: called with each packet on its way down; true loses it.
    """

    def __init__(self, room: Room, profile: str, seed: int, max_bitrate: int = 0) -> None:
        self.room = room
        self.profile = profile
        self.keys = random_keys(profile)
        random, later = Random(seed), room.fabric.later
        self.media = PeerMedia(room.clock, random, self._arrived, later, room.counters, max_bitrate)
        self._out = session(profile, self.keys.receive_key + self.keys.receive_salt, inbound=False)
        self._in = session(profile, self.keys.send_key + self.keys.send_salt, inbound=True)
        self.rtp: list[RtpPacket] = []
        self.rtcp: list[RtcpPacket] = []
        self.bursts: list[int] = []
        self.lossy: Callable[[RtpPacket], bool] = lambda packet: False
        self.on_rtcp: Callable[[RtcpPacket], None] = lambda packet: None

    def secure(self) -> None:
        self.media.secure(self.keys)

    def publish(self, *tracks: Uplinked) -> None:
        self.media.publish(tracks)

    def send(self, *packets: RtpPacket) -> None:
        """One burst, as one wake-up would read it."""
        self.send_raw([self._out.protect(packet.serialize()) for packet in packets])

    def send_raw(self, packets: Sequence[bytes]) -> None:
        self.room.fabric.begin()
        self.media.receive([memoryview(packet) for packet in packets], self.room.now)
        self.room.fabric.end()

    def protect(self, packet: RtpPacket) -> bytes:
        return bytes(self._out.protect(packet.serialize()))

    def send_rtcp(self, *packets: RtcpPacket) -> None:
        self.send_raw([self._out.protect_rtcp(serialize(packets))])

    def _arrived(self, packets: Burst) -> None:
        self.bursts.append(len(packets))
        for packet in packets:
            data = bytes(packet)
            if 192 <= data[1] <= 223:
                for each in parse_rtcp(self._in.unprotect_rtcp(data)):
                    self.rtcp.append(each)
                    self.on_rtcp(each)
                continue
            plain = parse(self._in.unprotect(data))
            if not self.lossy(plain):
                self.rtp.append(plain)

    def of(self, ssrc: int) -> list[RtpPacket]:
        """What arrived under one SSRC."""
        return [packet for packet in self.rtp if packet.ssrc == ssrc]

    def take(self, kind: type[RtcpPacket]) -> list[RtcpPacket]:
        """RTCP of one kind that came since the last call, and forget the rest."""
        found = [packet for packet in self.rtcp if isinstance(packet, kind)]
        self.rtcp.clear()
        return found


class Source:
    """One RTP stream that a client sends."""

    def __init__(
        self,
        client: Client,
        ssrc: int,
        payload_type: int = 96,
        mid: str = "0",
        rid: str = "",
        sequence: int = 1000,
        timestamp: int = 50_000,
        rtx: tuple[int, int] | None = None,
        transport: bool = False,
    ) -> None:
        self.client = client
        self.ssrc = ssrc
        self.payload_type = payload_type
        self.mid, self.rid = mid, rid
        self.sequence, self.timestamp = sequence, timestamp
        self.rtx = rtx
        self.rtx_sequence = 7
        self.transport = transport
        self.history: dict[int, RtpPacket] = {}

    def packet(self, payload: bytes, marker: bool = False, extensions: Iterable[tuple[int, bytes]] = ()) -> RtpPacket:
        """The next packet, not sent."""
        items = [(4, self.mid.encode())] if self.mid else []
        if self.rid:
            items.append((10, self.rid.encode()))
        items += extensions
        packet = RtpPacket(
            self.payload_type,
            self.sequence & 0xFFFF,
            self.timestamp & 0xFFFFFFFF,
            self.ssrc,
            payload,
            marker,
            extensions=tuple(items),
        )
        self.history[packet.sequence_number] = packet
        self.sequence += 1
        return packet

    def frame(self, packets: int = 3, key: bool = False, size: int = 100, ticks: int = 3000) -> list[RtpPacket]:
        """A VP8 frame, not sent."""
        self.timestamp += ticks
        made = []
        for number in range(packets):
            start = (KEY if key else DELTA) if number == 0 else REST
            body = start + self.sequence.to_bytes(4, "big") + bytes(size)
            made.append(self.packet(body, marker=number == packets - 1))
        return made

    def again(self, sequence: int) -> RtpPacket:
        """An RTX packet of an earlier one (RFC 4588, 4)."""
        assert self.rtx is not None
        packet = self.history[sequence]
        self.rtx_sequence += 1
        return RtpPacket(
            self.rtx[1],
            self.rtx_sequence & 0xFFFF,
            packet.timestamp,
            self.rtx[0],
            sequence.to_bytes(2, "big") + packet.payload,
            packet.marker,
            # What says something of the frame is the same as before.
            extensions=tuple(each for each in packet.extensions if each[0] in (4, 12)),
        )


def camera(track_id: str = "camera", mid: str = "0", **values: object) -> Uplinked:
    return Uplinked(track_id, mid, "video", (VP8,), EXTENSIONS, **values)  # type: ignore[arg-type]


def microphone(track_id: str = "microphone", mid: str = "1", **values: object) -> Uplinked:
    return Uplinked(track_id, mid, "audio", (OPUS,), EXTENSIONS, **values)  # type: ignore[arg-type]


def downlinked(uplinked: Uplinked, ssrc: int = 5000, mid: str = "7", **values: object) -> Downlinked:
    """The subscriber's m-line for it, with payload types and extension ids of its own."""
    codecs = (
        (Codec(120, "video/VP8", 90000, rtx_payload_type=121, feedback=VIDEO_FEEDBACK),)
        if uplinked.kind == "video"
        else (Codec(109, "audio/opus", 48000, 2),)
    )
    fields: dict[str, object] = {
        "codecs": codecs,
        "rtx_ssrc": ssrc + 1 if uplinked.kind == "video" else None,
        "extensions": {MID: 9, AUDIO_LEVEL: 2},
    }
    fields.update(values)
    return Downlinked(uplinked.track_id, mid, uplinked.kind, ssrc=ssrc, cname="publisher", **fields)  # type: ignore[arg-type]
