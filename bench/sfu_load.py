"""The load of the SFU's benchmark: who publishes sends at a pace, and what comes at the others is counted and dated."""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Sequence

from attrs import frozen

from bench.relayed import SOL_UDP, UDP_GRO, UDP_SEGMENT, RelayedPeer
from bench.sfu_meetings import FIRST_SSRC, Meeting, Seat

#: Packets that one publisher numbers, and the doubles with their times of sending.
SLOTS = 1 << 18
#: Bytes of RTP packets before SRTP.
SIZES = {"video": 1150, "audio": 160}
PAYLOAD_TYPES = {"video": 96, "audio": 111}
#: Packets by which everything is warm.
WARM = 40


@frozen
class Load:
    """Each publisher sends *rate* packets of *kind* a second for *seconds*, *burst* at a time."""

    kind: str
    burst: int
    rate: float
    seconds: float


@frozen
class Result:
    """What one run of one server gave; times in microseconds, of CPU for each delivered packet."""

    delivered: int
    expected: int
    cpu: float
    cores: float
    p50: float
    p99: float

    @property
    def lost(self) -> float:
        """The share that did not come."""
        return 1 - self.delivered / self.expected


def rtp_packet(publisher: int, number: int, load: Load) -> bytes:
    """Frames of *burst* packets of VP8, a keyframe in every hundredth; or Opus of one frame."""
    frame, part = divmod(number, load.burst)
    first, last = part == 0, part == load.burst - 1
    video = load.kind == "video"
    second = PAYLOAD_TYPES[load.kind] | (0x80 if video and last else 0)
    step = 3000 if video else 960
    ssrc = FIRST_SSRC + publisher
    header = struct.pack("!BBHII", 0x80, second, number & 0xFFFF, frame * step & 0xFFFFFFFF, ssrc)
    body = b""
    if video:
        # RFC 6386, 9.1: bit 0 of the first byte is clear in a keyframe; then the start code and the size.
        key = b"\x10\x02\x00\x9d\x01\x2a\x80\x02\xe0\x01" if frame % 100 == 0 else b"\x31\x02\x00" + bytes(7)
        body = bytes([0x10 if first else 0x00]) + (key if first else bytes(10))
    return header + (body.ljust(11, b"\0") + struct.pack("!HI", publisher, number)).ljust(
        SIZES[load.kind] - 12, b"\x55"
    )


def send(peers: Sequence[RelayedPeer], load: Load, first: int, count: int, times: mmap.mmap) -> None:
    """Send packets *first* and on of each publisher, and write down when; they take turns."""
    packets = [[each.protect(rtp_packet(p, first + n, load)) for n in range(count)] for p, each in enumerate(peers)]
    segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", len(packets[0][0])))] if load.burst > 1 else []
    start = time.perf_counter()
    turn, turns = 0, count // load.burst * len(peers)
    while turn < turns:
        while (ahead := turn * load.burst / load.rate / len(peers) - (time.perf_counter() - start)) > 0:
            time.sleep(ahead)
        round_, p = divmod(turn, len(peers))
        at = round_ * load.burst
        now = struct.pack("d", time.perf_counter())
        for n in range(first + at, first + at + load.burst):
            place = (p * SLOTS + n) * 8
            times[place : place + 8] = now
        peers[p].socket.sendmsg(packets[p][at : at + load.burst], segment)
        turn += 1


class Listener:
    """One receiving connection: every packet is dated against its sending."""

    def __init__(self, peer: RelayedPeer, kind: str) -> None:
        self.peer = peer
        self._kind = kind
        #: Outgoing SSRC → publisher, distance of the numbers, the last number.
        self._streams: dict[bytes, list[int]] = {}
        #: Publisher's slot and time of arrival.
        self.seen: list[tuple[int, float]] = []
        peer.socket.setsockopt(SOL_UDP, UDP_GRO, 1)

    def read(self, buffer: memoryview) -> None:
        for _ in range(32):
            try:
                size, ancillary, _flags, _source = self.peer.socket.recvmsg_into([buffer], 64)
            except (BlockingIOError, ConnectionRefusedError):
                return
            now = time.perf_counter()
            segment = struct.unpack("i", ancillary[0][2])[0] if ancillary else size
            for at in range(0, size, segment):
                # ChannelData, then RTP with a media payload type; anything else is RTCP or STUN.
                if size - at < 100 or buffer[at] & 0xC0 != 0x40 or 192 <= buffer[at + 5] <= 223:
                    continue
                sequence = buffer[at + 6] << 8 | buffer[at + 7]
                ssrc = bytes(buffer[at + 12 : at + 16])
                stream = self._streams.get(ssrc) or self._learn(ssrc, sequence, buffer[at:])
                number = stream[1] + sequence
                number += round((stream[2] - number) / 65536) * 65536
                stream[2] = max(stream[2], number)
                self.seen.append((stream[0] * SLOTS + number, now))

    def _learn(self, ssrc: bytes, sequence: int, packet: memoryview) -> list[int]:
        plain = self.peer.unprotect(bytes(packet[4 : 4 + (packet[2] << 8 | packet[3])]))
        body = len(plain) - (SIZES[self._kind] - 12)
        publisher, number = struct.unpack_from("!HI", plain, body + 11)
        stream = self._streams[ssrc] = [publisher, number - sequence, number]
        return stream


class Listening:
    """All receiving connections of a run."""

    def __init__(self, seats: Sequence[Seat], kind: str) -> None:
        self.listeners = [Listener(seat.receiver, kind) for seat in seats if seat.receiver is not None]
        self._poll = select.epoll()
        self._by_number = {one.peer.socket.fileno(): one for one in self.listeners}
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)
        self._buffer = memoryview(bytearray(65536))

    def until(self, pid: int) -> None:
        """Read until the process that sends is gone, and what comes shortly after."""
        grace = None
        while grace is None or time.monotonic() < grace:
            for number, _event in self._poll.poll(0.05):
                self._by_number[number].read(self._buffer)
            if grace is None and os.waitpid(pid, os.WNOHANG)[0]:
                grace = time.monotonic() + 0.4


def measure(meeting: Meeting, seats: Sequence[Seat], load: Load) -> Result:
    """Warm up, then send *load* from a process of its own and count."""
    senders = [seat.sender for seat in seats if seat.sender is not None]
    for peer in {id(p): p for seat in seats for p in (seat.sender, seat.receiver) if p is not None}.values():
        peer.detach()
    listening = Listening(seats, load.kind)
    times = mmap.mmap(-1, SLOTS * len(senders) * 8)

    def run(first: int, count: int) -> None:
        pid = os.fork()
        if pid == 0:
            send(senders, load, first, count, times)
            os._exit(0)
        listening.until(pid)

    warm = load.burst * WARM
    count = int(load.rate * load.seconds) // load.burst * load.burst
    run(0, warm)
    before, began = meeting.cpu(), time.monotonic()
    run(warm, count)
    used, lasted = meeting.cpu() - before, time.monotonic() - began
    delays = sorted(
        at - struct.unpack_from("d", times, slot * 8)[0]
        for one in listening.listeners
        for slot, at in one.seen
        if warm <= slot % SLOTS < warm + count
    )
    if not delays:
        raise RuntimeError("nothing was delivered")
    streams = sum(len([s for s in seats if s.sender not in (None, seat.sender)]) for seat in seats if seat.receiver)
    return Result(
        delivered=len(delays),
        expected=count * streams,
        cpu=used / len(delays) * 1e6,
        cores=used / lasted,
        p50=delays[len(delays) // 2] * 1e6,
        p99=delays[len(delays) * 99 // 100] * 1e6,
    )
