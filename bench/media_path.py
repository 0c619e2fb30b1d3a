#!/usr/bin/env python3
"""What the media path costs: CPU per received and per delivered packet, with 1, 6 and 12 subscribers.

One publisher, protected by pylibsrtp beforehand, N subscribers, everything in memory: no socket on either side.
The floor is measured in the same run: per delivered packet a rewritten header and one AES-GCM in place in a bare
loop, without packets to look up, numbers to keep, or queues; that is ``lab/fanout.py`` of the design without its
system call, and with it the second figure.

    bench/media_path.py [--packets N]
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pylibsrtp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from twisted.internet.task import Clock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from orama.net.fabric import Burst, Fabric
from orama.sfu.counters import MediaCounters
from orama.sfu.media import PeerMedia
from orama.sfu.values import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    MID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Codec,
    Downlinked,
    SrtpKeys,
    Uplinked,
)
from orama.wire.rtp import RtpPacket

PROFILES = {
    "AEAD_AES_128_GCM": (16, 12, pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM),
    "AES128_CM_SHA1_80": (16, 14, pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80),
}
EXTENSIONS = {
    AUDIO_LEVEL: 1,
    ABS_SEND_TIME: 2,
    TRANSPORT_CC: 3,
    MID: 4,
    DEPENDENCY_DESCRIPTOR: 12,
    VIDEO_ORIENTATION: 13,
}
#: Layered video carries a dependency descriptor in each packet, audio a level.
SHAPES = (("video", 1200, 10), ("layered", 1200, 10), ("video", 1200, 1), ("audio", 120, 1))
FEEDBACK = frozenset({"nack", "nack pli", "transport-cc"})
VP8 = Codec(96, "video/VP8", 90000, rtx_payload_type=97, feedback=FEEDBACK)
OPUS = Codec(96, "audio/opus", 48000, 2)


def keys(profile: str) -> SrtpKeys:
    key, salt, _ = PROFILES[profile]
    return SrtpKeys(profile, os.urandom(key), os.urandom(salt), os.urandom(key), os.urandom(salt))


def floor(size: int, burst: int, subscribers: int, send: bool) -> float:
    """Microseconds per delivered packet of the bare loop."""
    subs = [(AESGCM(os.urandom(16)), int.from_bytes(os.urandom(12), "big")) for _ in range(subscribers)]
    plain = [
        memoryview(struct.pack("!BBHII", 0x90, 96, i, 0, 7) + b"\xbe\xde\0\1abcd" + os.urandom(size - 20))
        for i in range(burst)
    ]
    out = [bytearray(4 + size + 16) for _ in range(burst)]
    views = [memoryview(each) for each in out]
    head = struct.Struct("!HHBBHII").pack_into
    segment = [(17, 103, struct.pack("H", 4 + size + 16))] if burst > 1 else []
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(subscribers + 1)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
        each.setsockopt(17, 104, 1)
    rounds = 30000 // burst // subscribers
    start = time.process_time()
    for turn in range(rounds):
        for j, (aead, salt) in enumerate(subs):
            ssrc = 1000 + j
            for i in range(burst):
                q, view = turn * burst + i, views[i]
                head(out[i], 0, 0x4000, size + 16, 0x90, 96, q & 0xFFFF, q * 90 & 0xFFFFFFFF, ssrc)
                view[16:24] = plain[i][12:20]
                nonce = (((ssrc << 48) | q) ^ salt).to_bytes(12, "big")
                aead.encrypt_into(nonce, plain[i][20:], view[4:24], view[24:])
            if send:
                sockets[-1].sendmsg(out, segment, 0, sockets[j].getsockname())
    taken = time.process_time() - start
    for each in sockets:
        each.close()
    return taken / (rounds * burst * subscribers) * 1e6


def path(profile: str, kind: str, size: int, burst: int, subscribers: int, packets: int) -> float:
    """Microseconds per packet received, with everything that this makes the subscribers get."""
    clock, counters = Clock(), MediaCounters()
    clock.advance(1000)
    fabric = Fabric(clock)
    sent = [0]

    def transmit(out: Burst) -> None:
        sent[0] += len(out)

    def peer(number: int, to: Callable[[Burst], None]) -> tuple[PeerMedia, SrtpKeys]:
        media, secrets = PeerMedia(clock, Random(number), to, fabric.later, counters), keys(profile)
        media.secure(secrets)
        return media, secrets

    media_kind, codec = ("audio", OPUS) if kind == "audio" else ("video", VP8)
    publisher, secrets = peer(0, lambda out: None)
    publisher.publish([Uplinked("t", "0", media_kind, (codec,), EXTENSIONS, ((1111, 2222),))])
    for number in range(subscribers):
        media, _ = peer(number + 1, transmit)
        media.subscribe(
            publisher.tracks["t"],
            Downlinked("t", "3", media_kind, (codec,), 5000 + number, 9000 + number, "c", EXTENSIONS),
        )
    policy = pylibsrtp.Policy(
        key=secrets.receive_key + secrets.receive_salt,
        ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND,
        srtp_profile=PROFILES[profile][2],
    )
    session = pylibsrtp.Session(policy)
    own = {"audio": ((1, b"\x85"),), "layered": ((12, b"\x80\0\1"),)}.get(kind, ())
    bursts = []
    for start in range(0, packets, burst):
        made = []
        for number in range(start, start + burst):
            extensions = ((2, b"\1\2\3"), (3, (number & 0xFFFF).to_bytes(2, "big")), (4, b"0"), *own)
            payload = (b"\x10\x10" if number == 0 else b"\0\0") + os.urandom(size - 12 - 16 - 2)
            packet = RtpPacket(96, number & 0xFFFF, number // 10 * 3000, 1111, payload, extensions=extensions)
            made.append(memoryview(session.protect(packet.serialize())))
        bursts.append(made)
    taken, step = 0.0, 0.003 * burst
    for made in bursts:
        clock.rightNow += step
        now, start_time = clock.rightNow, time.process_time()
        fabric.begin()
        publisher.receive(made, now)
        fabric.end()
        taken += time.process_time() - start_time
    if sent[0] < packets * subscribers:
        raise SystemExit(f"{sent[0]} delivered of {packets * subscribers}: {counters}")
    return taken / packets * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=10000)
    packets = parser.parse_args().packets
    print("us of CPU a packet; floor: the bare loop, without and with its system call; ratio: delivered to the latter")
    columns = "profile", "packets", "subs", "received", "delivered", "marginal", "floor", "+send", "ratio"
    print("{:18} {:>15} {:>4} {:>9} {:>9} {:>9} {:>6} {:>6} {:>5}".format(*columns))
    for profile in PROFILES:
        for kind, size, burst in SHAPES:
            alone = path(profile, kind, size, burst, 1, packets)
            for subscribers in (1, 6, 12):
                total = alone if subscribers == 1 else path(profile, kind, size, burst, subscribers, packets)
                bare, sending = floor(size, burst, subscribers, False), floor(size, burst, subscribers, True)
                marginal = f"{(total - alone) / (subscribers - 1):.2f}" if subscribers > 1 else ""
                print(
                    f"{profile:18} {kind:>7} {size:>4}x{burst:<2} {subscribers:>4} {total:>9.2f} "
                    f"{total / subscribers:>9.2f} {marginal:>9} {bare:>6.2f} {sending:>6.2f} "
                    f"{total / subscribers / sending:>5.2f}"
                )


if __name__ == "__main__":
    main()
