"""A load of ChannelData through one TURN server: who sends, who receives, and what came of it.

The clients' side is in this process and the peer's in a child, for both directions, so that neither slows the
other and TLS stays where its state is. Packets are counted without being copied (``MSG_TRUNC``). The delay of a
packet is the time from the send to the kernel's own stamp on arrival (``SO_TIMESTAMPNS``), so that a receiver which
waits for its CPU adds nothing to it.
"""

from __future__ import annotations

import math
import os
import pickle
import select
import socket
import ssl
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from attrs import evolve, frozen

from bench.turn_clients import Address, Crowd, frame

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SO_TIMESTAMPNS = 35
#: Gives nine numbers about a socket's memory, the last is what it has dropped (``linux/sock_diag.h``).
SO_MEMINFO, MEMINFO = 55, struct.Struct("@9I")
#: Seconds of silence after which nothing more is expected.
QUIET = 0.06
#: Reads of all sinks together between two looks at the poll.
READS = 64
#: The rate of a ramp grows by this until packets are lost, and the search ends when it is as narrow as that.
GROWTH, NARROW = 1.5, 1.13
#: Where a search for it gives up, packets a second.
LOWEST = 1000.0
#: What may be lost at the top rate.
MAX_LOSS = 0.01
#: Less than this of the rate asked for, delivered or sent, is not that rate: buffers still held it, or the load is
#: itself the limit.
KEPT_UP = 0.93
_stamp = struct.Struct("!Q")
_timespec = struct.Struct("@qq")
#: Sends one burst.
Source: TypeAlias = Callable[[bytearray], Any]
T = TypeVar("T")


@frozen
class Load:
    """Packets of *size* bytes, *burst* at a time, *rate* a second in all (0: as many as go), for *seconds*."""

    direction: str
    burst: int
    size: int
    rate: float
    seconds: float
    #: Whether delays are wanted: every packet is stamped and read then.
    timed: bool = False

    @property
    def name(self) -> str:
        what = f"bursts of {self.burst}" if self.burst > 1 else "singles"
        return f"{self.direction:<4} {what:<12} {self.size:>4} B"


@frozen
class Sent:
    """What a sender did: packets, and from when to when on the monotonic clock."""

    packets: int
    begun: float
    ended: float


@frozen
class Received:
    """What came: packets, when the last one was read, the delays in nanoseconds, and what a sink's buffer lost."""

    packets: int
    last: float
    delays: tuple[int, ...] = ()
    overflown: int = 0


@frozen
class Result:
    """What one run gave."""

    load: Load
    sent: Sent
    received: Received
    #: Nanoseconds of the server's CPU.
    cpu: int

    @property
    def delivered(self) -> int:
        return self.received.packets

    @property
    def loss(self) -> float:
        return max(0.0, 1 - self.delivered / max(1, self.sent.packets))

    @property
    def cpu_per_packet(self) -> float:
        """Microseconds."""
        return self.cpu / max(1, self.delivered) / 1e3

    @property
    def rate(self) -> float:
        """Delivered a second, from the first send to the last receipt: what waits in buffers is not counted as done."""
        return self.delivered / max(1e-3, self.received.last - self.sent.begun, self.load.seconds)

    @property
    def short(self) -> bool:
        """Whether the load could not send what it should have."""
        return self.load.rate > 0 and self.sent.packets < KEPT_UP * self.load.rate * self.load.seconds

    def delay(self, share: float) -> float:
        """The delay that *share* of the packets stay under, microseconds."""
        delays = sorted(self.received.delays)
        return delays[min(len(delays) - 1, int(len(delays) * share))] / 1e3 if delays else math.nan


# ---- sinks -------------------------------------------------------------------------------------


class Sink(Protocol):
    """Where packets arrive. ``read`` gives how many one read brought, and raises when there are none."""

    def fileno(self) -> int: ...

    def read(self) -> int: ...

    def lost(self) -> int:
        """What the kernel dropped here since the socket was made."""
        ...


class UdpSink:
    """Counts datagrams of *step* bytes and drops them unread."""

    def __init__(self, sock: socket.socket, step: int) -> None:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self._socket, self._step, self._buffer = sock, step, bytearray(1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> int:
        return self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT | socket.MSG_TRUNC) // self._step

    def lost(self) -> int:
        return _dropped(self._socket)


class TimedSink:
    """Reads datagrams of *step* bytes, in which the time of sending is at *at*, into *delays*."""

    _view = memoryview(bytearray(1 << 16))

    def __init__(self, sock: socket.socket, step: int, at: int, delays: list[int]) -> None:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket, self._step, self._at, self._delays = sock, step, at, delays

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> int:
        length, ancillary, _, _ = self._socket.recvmsg_into((self._view,), 128, socket.MSG_DONTWAIT)
        arrived = time.time_ns()
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = _timespec.unpack(data)
                arrived = seconds * 1_000_000_000 + nanoseconds
        packets = length // self._step
        self._delays += [
            arrived - _stamp.unpack_from(self._view, at)[0] for at in range(self._at, packets * self._step, self._step)
        ]
        return packets

    def lost(self) -> int:
        return _dropped(self._socket)


class TcpSink:
    """Counts frames of *step* bytes on a stream, over TCP without copying them."""

    def __init__(self, sock: socket.socket, step: int) -> None:
        self._socket, self._step, self._rest = sock, step, 0
        self._buffer = bytearray(1 << 18)
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_DONTWAIT | socket.MSG_TRUNC
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> int:
        length = self._socket.recv_into(self._buffer, 0, self._flags)
        if not length:
            raise ConnectionError("the server hung up")
        packets, self._rest = divmod(self._rest + length, self._step)
        return packets

    def lost(self) -> int:
        return 0


def _dropped(sock: socket.socket) -> int:
    return int(MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size))[-1])


# ---- sending and receiving ---------------------------------------------------------------------


def send(load: Load, sources: Sequence[Source], packet: bytes, at: int) -> Sent:
    """Send for the load's time, to each source in turn.

    :param packet: one of them; the time goes to *at* of each when the load is timed.
    """
    burst = bytearray(packet * load.burst)
    stamps = range(at, len(burst), len(packet)) if load.timed else range(0)
    nap = load.burst / load.rate / 2 if load.rate else 0.0
    sent = turn = 0
    count = len(sources)
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < load.seconds:
        if nap and sent > elapsed * load.rate:
            time.sleep(nap)
            continue
        if stamps:
            now = time.time_ns()
            for at in stamps:
                _stamp.pack_into(burst, at, now)
        try:
            sources[turn % count](burst)
            sent += load.burst
        except (BlockingIOError, ConnectionRefusedError):
            pass
        turn += 1
    return Sent(sent, begun, time.monotonic())


def receive(sinks: Sequence[Sink], done: int, delays: list[int]) -> Received:
    """Read until *done* is readable and nothing comes any more."""
    poll = select.epoll()
    by_descriptor = {sink.fileno(): sink for sink in sinks}
    for descriptor in (done, *by_descriptor):
        poll.register(descriptor, select.EPOLLIN)
    before = [sink.lost() for sink in sinks]
    reads = max(1, READS // len(sinks))
    packets, last, ended = 0, 0.0, False
    while True:
        events = poll.poll(QUIET if ended else 1.0)
        if not events and ended:
            break
        got = packets
        for descriptor, _ in events:
            if descriptor == done:
                poll.unregister(done)
                ended = True
                continue
            read = by_descriptor[descriptor].read
            try:
                for _ in range(reads):
                    packets += read()
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            except ConnectionError:
                poll.unregister(descriptor)
        if packets > got:
            last = time.monotonic()
    poll.close()
    overflown = sum(sink.lost() - lost for sink, lost in zip(sinks, before, strict=True))
    return Received(packets, last, tuple(delays), overflown)


def run(load: Load, crowd: Crowd, cpu: Callable[[], int]) -> Result:
    """Put *load* on the server of *crowd*.

    :param cpu: nanoseconds that the server has used.
    """
    up, udp = load.direction == "up", crowd.transport == "udp"
    packet = frame(load.size, not udp) if up else bytes(load.size)
    step = load.size if up else len(frame(load.size, not udp))
    delays: list[int] = []
    sinks = _sinks(load, crowd, step, delays)
    sources = _client_sources(load, crowd) if up else _peer_sources(load, crowd)
    before = cpu()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            report: object = receive(sinks, theirs.fileno(), delays) if up else send(load, sources, packet, 0)
            theirs.sendall(pickle.dumps(report))
        except BaseException:
            traceback.print_exc()  # the parent misses the report and ends
        finally:
            os._exit(0)
    theirs.close()
    if up:
        sent = send(load, sources, packet, 4)
        ours.shutdown(socket.SHUT_WR)
        received = _report(ours, Received)
    else:
        received = receive(sinks, ours.fileno(), delays)
        sent = _report(ours, Sent)
    ours.close()
    os.waitpid(child, 0)
    return Result(load, sent, received, cpu() - before)


def top_rate(load: Load, start: float, attempt: Callable[[Load], Result]) -> tuple[Result, Result]:
    """The highest rate of delivery with at most :data:`MAX_LOSS` lost, by a ramp that begins at *start*.

    It narrows down once packets are lost; what is lost once only is tried again. The second of the pair is the step
    that delivered most, whatever it lost.
    """
    steps: list[Result] = []
    rate, low, high = start, 0.0, math.inf
    again = True
    while high / max(low, 1.0) > NARROW and rate > LOWEST:
        result = attempt(evolve(load, rate=rate))
        steps.append(result)
        if result.loss > MAX_LOSS and again:
            again = False
            continue
        again = True
        if result.loss <= MAX_LOSS and result.rate >= KEPT_UP * rate:
            low = rate
        else:
            high = rate
        rate = rate * GROWTH if math.isinf(high) else math.sqrt(low * high) if low else rate / GROWTH
    good = [result for result in steps if result.loss <= MAX_LOSS]
    return max(good or steps, key=lambda result: result.rate), max(steps, key=lambda result: result.rate)


def _report(ours: socket.socket, kind: type[T]) -> T:
    """What the child says."""
    with ours.makefile("rb") as stream:
        report = pickle.loads(stream.read())
    assert isinstance(report, kind)
    return report


def _sinks(load: Load, crowd: Crowd, step: int, delays: list[int]) -> list[Sink]:
    if load.direction == "up":
        sockets, at = [crowd.peer], 0
    else:
        sockets, at = [client.socket for client in crowd.clients], 4
        if crowd.transport != "udp":
            return [TcpSink(each, step) for each in sockets]
    if load.timed:
        return [TimedSink(each, step, at, delays) for each in sockets]
    return [UdpSink(each, step) for each in sockets]


def _client_sources(load: Load, crowd: Crowd) -> list[Source]:
    sockets = [client.socket for client in crowd.clients]
    if crowd.transport != "udp":
        for each in sockets:
            each.setblocking(True)
        return [each.sendall for each in sockets]
    if load.burst == 1:
        return [each.send for each in sockets]
    return [_segmented(each, len(frame(load.size, False)), ()) for each in sockets]


def _peer_sources(load: Load, crowd: Crowd) -> list[Source]:
    if load.burst == 1:
        return [_to(crowd.peer, relay) for relay in crowd.relays]
    return [_segmented(crowd.peer, load.size, (0, relay)) for relay in crowd.relays]


def _to(sock: socket.socket, relay: Address) -> Source:
    sendto = sock.sendto
    return lambda packet: sendto(packet, relay)


def _segmented(sock: socket.socket, size: int, to: tuple[Any, ...]) -> Source:
    """Sends datagrams of *size* bytes in one call; *to* is what follows the ancillary data."""
    sendmsg, control = sock.sendmsg, [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", size))]
    return lambda burst: sendmsg((burst,), control, *to)
