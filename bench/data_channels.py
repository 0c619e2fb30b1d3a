"""What data channels cost: this node's end beside aiortc's own in the same run, and how long the loop is held.

``python -m bench.data_channels [MEGABYTES]`` prints, for each size of message and each direction, the Mbit/s that one
core of this end carries: bytes of messages over CPU time of this process alone. The client is aiortc as it is, in a
process of its own, over UDP on loopback; both of our ends write through the same burst socket. Then one message of
256 KiB goes to a hundred clients, and the most CPU time between two calls of a timer of 1 ms says how long the loop
was held.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsFingerprint, RTCDtlsParameters, RTCDtlsTransport
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport
from twisted.internet import asyncioreactor

asyncioreactor.install()

from twisted.internet import reactor  # noqa: E402

from orama.net.burst import BurstSocket  # noqa: E402
from orama.net.fabric import Address, Burst, Fabric  # noqa: E402
from orama.net.poll import Poll  # noqa: E402
from orama.sfu._aiortc import DtlsCertificate, DtlsTransport  # noqa: E402
from orama.sfu._sctp_channels import SctpTransport  # noqa: E402
from orama.sfu.data import DataFanout  # noqa: E402

MEGABYTES = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
ROUNDS = 3
LONGEST = 262144
#: Bytes that a sender lets wait.
AHEAD = 1 << 20
RECEIVERS = 100
CERTIFICATE = DtlsCertificate()
CLIENT_CERTIFICATE = RTCCertificate.generateCertificate()
FINGERPRINTS = [(f.algorithm, f.value) for f in CLIENT_CERTIFICATE.getFingerprints()]
LOSSY = {"ordered": False, "maxRetransmits": 0}
#: Size of a message, and what its channel promises.
ROWS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("16 B", 16, {}),
    ("1 KiB", 1024, {}),
    ("16 KiB", 16384, {}),
    ("64 KiB", 65536, {}),
    ("256 KiB", 262144, {}),
    ("1 KiB, unreliable", 1024, LOSSY),
)


class Wire:
    """What aiortc takes for an ICE transport; the client's end and the old one of ours."""

    def __init__(self, role: str, send: Callable[[bytes], object]) -> None:
        self.role = role
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._deliver = send

    async def _recv(self) -> bytes:
        return await self.queue.get()

    async def _send(self, datagram: bytes) -> None:
        self._deliver(datagram)


# ---- the client, in a process of its own


async def client(to: Address, size: int, count: int, up: bool, options: dict[str, Any]) -> None:
    """Send *count* messages, or take them and say so."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.connect(to)
    sock.setblocking(False)
    wire = Wire("controlling", sock.send)

    def readable() -> None:
        for _ in range(64):
            try:
                wire.queue.put_nowait(sock.recv(2048))
            except BlockingIOError:
                return

    loop.add_reader(sock, readable)
    dtls = RTCDtlsTransport(wire, [CLIENT_CERTIFICATE])  # type: ignore[arg-type]
    dtls._set_role("client")
    await dtls.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", CERTIFICATE.fingerprint())]))
    sctp = RTCSctpTransport(dtls, 5000)
    over = loop.create_future()
    left = count * size

    def take(channel: RTCDataChannel) -> None:
        def message(data: bytes) -> None:
            nonlocal left
            left -= len(data)
            if left <= 0 and not over.done():
                over.set_result(None)

        channel.on("message", message)

    sctp.on("datachannel", take)
    await sctp.start(RTCSctpCapabilities(LONGEST), 5000)
    opened = loop.create_future()
    channel = RTCDataChannel(sctp, RTCDataChannelParameters(label="x", **options))
    channel.on("open", lambda: opened.set_result(None))
    take(channel)
    await opened
    if up:
        for _ in range(count):
            channel.send(bytes(size))
            while channel.bufferedAmount > AHEAD:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        await loop.create_future()
    elif count:
        channel.send("go")
        await over
        done = RTCDataChannel(sctp, RTCDataChannelParameters(label="done"))
        done.on("open", lambda: done.send("done"))
    await loop.create_future()


def run_clients(number: int, *arguments: Any) -> None:
    async def every() -> None:
        await asyncio.gather(*(client(*arguments) for _ in range(number)))

    asyncio.run(every())


# ---- our end, the old one and the new one


class Stock:
    """aiortc's transports as they are."""

    def __init__(self, send: Callable[[Burst], None]) -> None:
        self.wire = Wire("controlled", lambda datagram: send([datagram]))
        self.dtls = RTCDtlsTransport(self.wire, [CERTIFICATE.certificate])  # type: ignore[arg-type]
        self.dtls._set_role("server")
        self.sctp = RTCSctpTransport(self.dtls, 5000)
        self.sctp.on("datachannel", self._opened)
        self.on_message: Callable[[Any, str | bytes], None] = lambda channel, data: None

    def received(self, datagram: bytes) -> None:
        self.wire.queue.put_nowait(datagram)

    async def start(self) -> None:
        await self.dtls.start(RTCDtlsParameters([RTCDtlsFingerprint(a, v) for a, v in FINGERPRINTS]))
        await self.sctp.start(RTCSctpCapabilities(LONGEST), 5000)

    def _opened(self, channel: RTCDataChannel) -> None:
        channel.on("message", lambda data: self.on_message(channel, data))

    @staticmethod
    def buffered(channel: RTCDataChannel) -> int:
        return channel.bufferedAmount

    async def close(self) -> None:
        await self.sctp.stop()
        await self.dtls.stop()


class Ours:
    """What the SFU uses."""

    def __init__(self, send: Callable[[Burst], None]) -> None:
        self.dtls = DtlsTransport(CERTIFICATE, send)
        self.sctp = SctpTransport(self.dtls, 5000, LONGEST)
        self.sctp.on_channel = self._opened
        self.received = self.dtls.received
        self.on_message: Callable[[Any, str | bytes], None] = lambda channel, data: None

    async def start(self) -> None:
        self.dtls.start(FINGERPRINTS)
        self.sctp.start()

    def _opened(self, channel: Any) -> None:
        channel.on_message = lambda data: self.on_message(channel, data)

    @staticmethod
    def buffered(channel: Any) -> int:
        return int(channel.buffered)

    async def close(self) -> None:
        await self.dtls.close().asFuture(asyncio.get_running_loop())


class Node:
    """One socket, and an end for each client that comes."""

    def __init__(self, kind: type[Stock] | type[Ours]) -> None:
        self.kind = kind
        self.ends: dict[Address, Stock | Ours] = {}
        self.made: Callable[[Stock | Ours], None] = lambda end: None
        self.tasks: list[asyncio.Task[None]] = []
        self.socket = BurstSocket(Poll(reactor, Fabric(reactor)), self.received)
        self.socket.listen(("127.0.0.1", 0))

    def received(self, packets: Burst, source: Address) -> None:
        end = self.ends.get(source)
        if end is None:
            end = self.ends[source] = self.kind(lambda datagrams: self.socket.send(datagrams, source))
            self.made(end)
            self.tasks.append(asyncio.get_running_loop().create_task(end.start()))
        for packet in packets:
            end.received(bytes(packet))

    async def close(self) -> None:
        for end in self.ends.values():
            await end.close()
        self.socket.close()


def child(number: int, *arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=isolated, args=(number, *arguments), daemon=True)
    process.start()
    return process


def isolated(number: int, *arguments: Any) -> None:
    """A forked child has a loop that runs, and sockets of its parent's: it takes a loop of its own."""
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(asyncio.new_event_loop())
    run_clients(number, *arguments)


async def measure(kind: type[Stock] | type[Ours], size: int, up: bool, options: dict[str, Any]) -> float:
    """Mbit/s that one core of our end carries."""
    loop = asyncio.get_running_loop()
    count = max(8, int(MEGABYTES * 1e6 / max(size, 256)))
    over: asyncio.Future[tuple[float, int]] = loop.create_future()
    node = Node(kind)
    began = 0.0
    taken = 0

    async def send(end: Stock | Ours, channel: Any) -> None:
        sent = 0
        ahead = AHEAD >> 4 if "maxRetransmits" in options else AHEAD
        for _ in range(count):
            channel.send(bytes(size))
            sent += size
            while end.buffered(channel) > ahead:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        if "maxRetransmits" in options:
            over.set_result((time.process_time() - began, sent))

    def message(end: Stock | Ours, channel: Any, data: str | bytes) -> None:
        nonlocal began, taken
        if data == "go":
            began = time.process_time()
            node.tasks.append(loop.create_task(send(end, channel)))
        elif data == "done":
            over.set_result((time.process_time() - began, count * size))
        else:
            if not taken:
                began = time.process_time()
            taken += len(data)
            if taken >= count * size * (0.98 if "maxRetransmits" in options else 1) and not over.done():
                over.set_result((time.process_time() - began, taken))

    node.made = lambda end: setattr(end, "on_message", lambda channel, data: message(end, channel, data))
    process = child(1, node.socket.address, size, count, up, options)
    spent, carried = await asyncio.wait_for(over, 180)
    process.kill()
    process.join()
    await node.close()
    return carried * 8 / spent / 1e6


async def hold() -> tuple[float, float]:
    """Milliseconds of CPU between two timers at most while a message goes to many, and seconds until nothing waits."""
    loop = asyncio.get_running_loop()
    node = Node(Ours)
    fanout = DataFanout(reactor)  # type: ignore[arg-type]
    opened: asyncio.Future[None] = loop.create_future()
    count = 0

    def joined(end: Any) -> None:
        nonlocal count
        count += 1
        number = count

        def connected(state: str) -> None:
            if state == "connected":
                fanout.join(str(number), end.sctp, lambda event: None)
                if len(fanout._members) == RECEIVERS:
                    opened.set_result(None)

        end.sctp.on_state = connected

    node.made = joined
    process = child(RECEIVERS, node.socket.address, 1, 0, False, {})
    await asyncio.wait_for(opened, 60)
    await asyncio.sleep(3)
    sender = Sender()
    fanout.join("sender", sender, lambda event: None)  # type: ignore[arg-type]
    source = Source()
    sender.on_channel(source)
    await asyncio.sleep(3)
    worst = 0.0
    ends = [end for end in node.ends.values() if isinstance(end, Ours)]
    source.on_message(bytes(LONGEST))
    began = time.perf_counter()
    while any(end.sctp.buffered for end in ends):
        before = time.thread_time()
        await asyncio.sleep(0.001)
        worst = max(worst, time.thread_time() - before)
    finished = time.perf_counter() - began
    process.kill()
    process.join()
    await node.close()
    return worst * 1000, finished


class Source:
    """The sender's channel."""

    id, label, protocol, ordered, max_retransmits, max_packet_life_time = 0, "big", "", True, None, None
    buffered = 0

    def __init__(self) -> None:
        self.on_message: Callable[[bytes], None] = lambda data: None
        self.on_close: Callable[[], None] = lambda: None


class Sender:
    """The sender's association; nothing is sent to it."""

    buffered = queued = 0

    def __init__(self) -> None:
        self.on_channel: Callable[[Source], None] = lambda channel: None

    def open(self, label: str, **options: object) -> Source:
        raise ConnectionError("not in this bench")

    def hold(self, size: int) -> None:
        """Nobody asks for its window."""


async def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f}; {ROUNDS} rounds of {MEGABYTES:g} MB; Mbit/s a core of our end")
    print(f"{'':22}{'to us':>30}{'from us':>30}")
    print(f"{'':22}" + f"{'aiortc':>10}{'ours':>10}{'ratio':>10}" * 2)
    for name, size, options in ROWS:
        line = f"{name:22}"
        for up in (True, False):
            pairs = [[await measure(kind, size, up, options) for kind in (Stock, Ours)] for _ in range(ROUNDS)]
            stock, ours = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
            line += f"{stock:10.0f}{ours:10.0f}{statistics.median(b / a for a, b in pairs):10.2f}"
        print(line, flush=True)
    late, seconds = await hold()
    print(
        f"256 KiB to {RECEIVERS} clients: the loop held for {late:.1f} ms at most, all on their way in {seconds:.2f} s"
    )


def run(main: Coroutine[Any, Any, None]) -> None:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    failed: list[Failure] = []
    done = Deferred.fromFuture(asyncio.get_event_loop().create_task(main))
    done.addErrback(failed.append).addBoth(lambda _: reactor.stop())
    reactor.run()
    for failure in failed:
        failure.printTraceback()


if __name__ == "__main__":
    run(main())
