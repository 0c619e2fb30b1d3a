"""One publisher to many subscribers, all through TURN: orama against Janus with coturn, in one run.

``python -m bench.sfu_fanout [--subscribers 6 12] [--bursts 8 1] [--rate 2000] [--seconds 4]``

Both sides get the same load from the same light clients (``bench.relayed``): VP8 packets of 1,150
bytes, as frames of *burst* packets that leave in one system call, or one by one. What is compared is
the server's CPU for each delivered packet (Janus and coturn together), and the delay from the
publisher's send to the subscriber's receive. The whole takes place in a network namespace of its own
when it runs as root, since Janus wants an address that is not loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import secrets
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen
from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol

from bench import rivals
from bench.relayed import (
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    RelayedPeer,
    publishing_offer,
    receiving_answer,
    turn_credentials,
)

ADDRESS = "10.99.0.1"
SIZE = 1150
SSRC = 0x0ABACADA
#: Send times, one double for each packet number.
SLOTS = 1 << 20


@frozen
class Load:
    """*rate* packets a second for *seconds*, *burst* at a time."""

    burst: int
    rate: float
    seconds: float


@frozen
class Result:
    """What one run of one server gave; times in microseconds."""

    sent: int
    delivered: int
    expected: int
    cpu_per_packet: float
    cores: float
    p50: float
    p99: float


class Meeting(Protocol):
    """A server under test, as the load sees it."""

    async def publish(self) -> RelayedPeer: ...

    async def subscribe(self) -> RelayedPeer: ...

    def cpu(self) -> float: ...


class Socket(WebSocketClientProtocol):  # type: ignore[misc]
    """A WebSocket whose text frames wait in a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def onOpen(self) -> None:
        self.ready.set_result(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.inbox.put_nowait(json.loads(payload))

    def tell(self, message: dict[str, Any]) -> None:
        self.sendMessage(json.dumps(message).encode())

    async def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = await asyncio.wait_for(self.inbox.get(), 10)
            if message.get("type") == "error" or message.get("janus") == "error":
                raise RuntimeError(f"refused: {message}")
            if wanted(message):
                return message


async def dial(host: str, port: int, path: str, protocols: list[str]) -> Socket:
    factory = WebSocketClientFactory(f"ws://{host}:{port}{path}", protocols=protocols)
    factory.protocol = Socket
    _transport, protocol = await asyncio.get_running_loop().create_connection(factory, host, port)
    assert isinstance(protocol, Socket)
    await protocol.ready
    return protocol


# orama


class Orama:
    """The node as it is started by everybody: ``twistd orama-webrtc``."""

    def __init__(self, server: rivals.Server, http: int, directory: Path) -> None:
        self._server, self._http, self._directory = server, http, directory
        self._sockets: list[Socket] = []
        self._answering: list[asyncio.Task[None]] = []

    def cpu(self) -> float:
        return self._server.cpu()

    async def _join(self) -> tuple[Socket, RelayedPeer]:
        key = (self._directory / "data" / "default.api-key").read_text().strip()
        ws = await dial("127.0.0.1", self._http, f"/v1/webrtc/signal?room=bench&api_key={key}", [])
        self._sockets.append(ws)
        ws.tell({"type": "join"})
        turn = await ws.hear(lambda m: m["type"] == "turn-credentials")
        host, port = turn["uris"][0].removeprefix("turn:").split("?")[0].rsplit(":", 1)
        peer = RelayedPeer((host, int(port)), turn["username"], turn["password"])
        await peer.allocate()
        return ws, peer

    async def publish(self) -> RelayedPeer:
        ws, peer = await self._join()
        ws.tell({"type": "offer", "sdp": publishing_offer(peer, SSRC)})
        answer = await ws.hear(lambda m: m["type"] == "answer")
        await peer.connect(answer["sdp"], offerer=True)
        return peer

    async def subscribe(self) -> RelayedPeer:
        ws, peer = await self._join()
        offer = await ws.hear(lambda m: m["type"] == "offer" and "m=video" in m["sdp"])
        ws.tell({"type": "answer", "sdp": receiving_answer(peer, offer["sdp"])})
        await peer.connect(offer["sdp"], offerer=False)
        return peer


# Janus and coturn


class Janus:
    """VideoRoom behind coturn; each client has a WebSocket and a session of its own."""

    def __init__(self, server: rivals.Server, turn: rivals.Server, port: int) -> None:
        self._server, self._turn, self._port = server, turn, port
        self._room = random.randrange(1, 1 << 30)
        self._publisher = 0
        self._sockets: list[Socket] = []

    def cpu(self) -> float:
        return self._server.cpu() + self._turn.cpu()

    async def _attach(self) -> tuple[Socket, Callable[..., Awaitable[dict[str, Any]]]]:
        ws = await dial("127.0.0.1", self._port, "/", ["janus-protocol"])
        self._sockets.append(ws)
        ids: dict[str, int] = {}

        async def ask(janus: str, want: str = "success", **fields: Any) -> dict[str, Any]:
            ws.tell({"janus": janus, "transaction": secrets.token_hex(6), **ids, **fields})
            return await ws.hear(lambda m: m["janus"] == want)

        ids["session_id"] = (await ask("create"))["data"]["id"]
        ids["handle_id"] = (await ask("attach", plugin="janus.plugin.videoroom"))["data"]["id"]
        return ws, ask

    async def _peer(self) -> RelayedPeer:
        peer = RelayedPeer((ADDRESS, 3478), *turn_credentials(rivals.SECRET, "bench"))
        await peer.allocate()
        return peer

    async def publish(self) -> RelayedPeer:
        _ws, ask = await self._attach()
        await ask("message", body={"request": "create", "room": self._room, "publishers": 50, "videocodec": "vp8"})
        joined = await ask("message", "event", body={"request": "join", "ptype": "publisher", "room": self._room})
        self._publisher = joined["plugindata"]["data"]["id"]
        peer = await self._peer()
        jsep = {"type": "offer", "sdp": publishing_offer(peer, SSRC)}
        answer = await ask("message", "event", body={"request": "publish", "bitrate": 0}, jsep=jsep)
        await peer.connect(answer["jsep"]["sdp"], offerer=True)
        return peer

    async def subscribe(self) -> RelayedPeer:
        _ws, ask = await self._attach()
        body = {"request": "join", "ptype": "subscriber", "room": self._room, "streams": [{"feed": self._publisher}]}
        offer = (await ask("message", "event", body=body))["jsep"]["sdp"]
        peer = await self._peer()
        jsep = {"type": "answer", "sdp": receiving_answer(peer, offer)}
        await ask("message", "event", body={"request": "start", "room": self._room}, jsep=jsep)
        await peer.connect(offer, offerer=False)
        return peer


# The load


def vp8_packet(number: int, burst: int) -> bytes:
    """Packet *number*: frames of *burst* packets, a keyframe in every hundredth."""
    frame, part = divmod(number, max(burst, 1))
    first, last = part == 0, part == max(burst, 1) - 1
    header = struct.pack("!BBHII", 0x80, 96 | (0x80 if last else 0), number & 0xFFFF, frame * 3000 & 0xFFFFFFFF, SSRC)
    descriptor = bytes([0x10 if first else 0x00])
    # RFC 6386, 9.1: bit 0 of the first byte is clear in a keyframe; then the start code and the size.
    key = b"\x10\x02\x00\x9d\x01\x2a\x80\x02\xe0\x01" if frame % 100 == 0 else b"\x31\x02\x00" + bytes(7)
    payload = descriptor + (key if first else bytes(10)) + struct.pack("!I", number)
    return header + payload.ljust(SIZE - 12, b"\x55")


def send_all(peer: RelayedPeer, numbers: range, burst: int, rate: float, times: mmap.mmap) -> None:
    """Send packets *numbers* at *rate* a second, *burst* at a time, and write down when."""
    packets = [peer.protect(vp8_packet(n, burst)) for n in numbers]
    segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", len(packets[0])))] if burst > 1 else []
    start = time.perf_counter()
    for i in range(0, len(packets), burst):
        while (ahead := i / rate - (time.perf_counter() - start)) > 0:
            time.sleep(ahead)
        now = struct.pack("d", time.perf_counter())
        for n in numbers[i : i + burst]:
            times[n * 8 : n * 8 + 8] = now
        peer.socket.sendmsg(packets[i : i + burst], segment)


class Listener:
    """One subscriber's socket: counts what comes, and dates each packet against its sending."""

    def __init__(self, peer: RelayedPeer) -> None:
        self.peer = peer
        self.offset: int | None = None
        self.last = 0
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
                # ChannelData, then RTP with the video payload type; anything else is RTCP or STUN.
                if size - at < 100 or buffer[at] & 0xC0 != 0x40 or 192 <= buffer[at + 5] <= 223:
                    continue
                sequence = buffer[at + 6] << 8 | buffer[at + 7]
                if self.offset is None:
                    plain = self.peer.unprotect(bytes(buffer[at + 4 : at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])]))
                    number = struct.unpack_from("!I", plain, len(plain) - (SIZE - 12) + 11)[0]
                    self.offset, self.last = sequence - number, number
                number = sequence - self.offset
                number += round((self.last - number) / 65536) * 65536
                self.last = max(self.last, number)
                self.seen.append((number, now))


def measure(meeting: Meeting, publisher: RelayedPeer, listeners: list[Listener], load: Load) -> Result:
    """Warm up, then send *load* from a process of its own and count."""
    times = mmap.mmap(-1, SLOTS * 8)
    warm = range(load.burst * 40)
    numbers = range(warm.stop, warm.stop + int(load.rate * load.seconds) // load.burst * load.burst)
    poll = select.epoll()
    by_fd = {one.peer.socket.fileno(): one for one in listeners}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    buffer = memoryview(bytearray(65536))

    def listen_while(pid: int) -> None:
        grace = None
        while grace is None or time.monotonic() < grace:
            for fd, _event in poll.poll(0.05):
                by_fd[fd].read(buffer)
            if grace is None and os.waitpid(pid, os.WNOHANG)[0]:
                grace = time.monotonic() + 0.4

    def run(part: range) -> None:
        pid = os.fork()
        if pid == 0:
            send_all(publisher, part, load.burst, load.rate, times)
            os._exit(0)
        listen_while(pid)

    run(warm)
    before, began = meeting.cpu(), time.monotonic()
    run(numbers)
    used, lasted = meeting.cpu() - before, time.monotonic() - began
    delays = sorted(
        at - struct.unpack_from("d", times, n * 8)[0] for one in listeners for n, at in one.seen if n in numbers
    )
    if not delays:
        raise RuntimeError("nothing was delivered")
    return Result(
        sent=len(numbers),
        delivered=len(delays),
        expected=len(numbers) * len(listeners),
        cpu_per_packet=used / len(delays) * 1e6,
        cores=used / lasted,
        p50=delays[len(delays) // 2] * 1e6,
        p99=delays[len(delays) * 99 // 100] * 1e6,
    )


async def gather(meeting: Meeting, subscribers: int) -> tuple[RelayedPeer, list[Listener]]:
    publisher = await meeting.publish()
    peers = [await meeting.subscribe() for _ in range(subscribers)]
    for peer in (publisher, *peers):
        peer.detach()
    return publisher, [Listener(peer) for peer in peers]


async def one_run(meeting: Meeting, subscribers: int, load: Load) -> Result:
    publisher, listeners = await gather(meeting, subscribers)
    return measure(meeting, publisher, listeners, load)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def against_orama(subscribers: int, load: Load) -> Result:
    with tempfile.TemporaryDirectory() as name:
        directory, http = Path(name), free_port()
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "orama-webrtc"]
        command += ["--data-dir", str(directory / "data"), "--http", f"tcp:{http}:interface=127.0.0.1"]
        with rivals.Server(command, directory / "orama.log", ("127.0.0.1", http)) as server:
            deadline = time.monotonic() + 10
            while not ready(f"http://127.0.0.1:{http}/ready"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not start:\n{(directory / 'orama.log').read_text()}")
                time.sleep(0.05)
            return asyncio.run(one_run(Orama(server, http, directory), subscribers, load))


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def against_janus(subscribers: int, load: Load) -> Result:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            rivals.coturn(directory, ADDRESS, 3478) as turn,
            rivals.janus(directory, 8188) as server,
        ):
            return asyncio.run(one_run(Janus(server, turn, 8188), subscribers, load))


def enter_namespace() -> None:
    """Run again in a network namespace with loopback and a veth that has an address and the default route."""
    if os.environ.get("ORAMA_BENCH_NAMESPACE") or os.geteuid() != 0:
        return
    setup = (
        "ip link set lo up && ip link add b0 type veth peer name b1 && "
        f"ip addr add {ADDRESS}/24 dev b0 && ip link set b0 up && ip link set b1 up && "
        'ip route add default dev b0 && exec "$@"'
    )
    command = ["unshare", "--net", "sh", "-c", setup, "sh", sys.executable, "-m", "bench.sfu_fanout", *sys.argv[1:]]
    sys.exit(subprocess.call(command, env={**os.environ, "ORAMA_BENCH_NAMESPACE": "1"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[6, 12])
    parser.add_argument("--bursts", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--rate", type=float, default=2000, help="packets a second from the publisher")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", choices=("orama", "janus"))
    args = parser.parse_args()
    enter_namespace()
    sides = {"orama": against_orama, "janus": against_janus}
    row = "{:<8}{:>6}{:>7}{:>12}{:>9}{:>9}{:>10}{:>10}{:>8}"
    print(f"1 publisher, {args.rate:.0f} packets/s of {SIZE} B, {args.seconds:.0f} s a run, {os.cpu_count()} cores")
    print(row.format("server", "subs", "burst", "us/packet", "cores", "loss %", "p50 us", "p99 us", "ratio"))
    for subscribers in args.subscribers:
        for burst in args.bursts:
            load = Load(burst, args.rate, args.seconds)
            results: dict[str, Result] = {}
            for side, run in sides.items():
                if args.only in (None, side):
                    results[side] = run(subscribers, load)
            for side, r in results.items():
                ratio = ""
                if side == "orama" and "janus" in results:
                    ratio = f"{r.cpu_per_packet / results['janus'].cpu_per_packet:.2f}"
                loss = 100 * (1 - r.delivered / r.expected)
                cells = (side, subscribers, burst, f"{r.cpu_per_packet:.1f}", f"{r.cores:.2f}", f"{loss:.2f}")
                print(row.format(*cells, f"{r.p50:.0f}", f"{r.p99:.0f}", ratio), flush=True)


if __name__ == "__main__":
    main()
