"""ChannelData through one relay server: orama against coturn, the same load in the same minute.

``python -m bench.turn_relay [--rate 50000] [--seconds 2] [--rounds 3] [--clients 4]``

Each server runs alone on the last CPU, the load on the others. Four clients bind a channel each to one
peer; *up* is client to peer, *down* is peer to client. A burst leaves its sender in one system call, as a
paced video frame does; singles leave one by one. What is compared is the server's CPU for each delivered
packet (from the scheduler's own nanosecond count), and the delay from send to receive. Each round
measures both servers on every load, one after the other; the table shows medians.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import os
import select
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from bench import rivals
from orama.wire import stun
from orama.wire.stun import Class, Message, Method

HOST = "127.0.0.1"
NAMESPACE = "bench"
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SOCKET_BUFFER = 8 << 20
CHANNEL = 0x4000
#: A payload begins with its send time, in nanoseconds.
_stamp = struct.Struct("!Q")


@frozen
class Load:
    """Packets of *size* bytes, *burst* at a time, *rate* a second in all (0: as many as go), for *seconds*."""

    direction: str
    burst: int
    size: int
    rate: int
    seconds: float

    @property
    def name(self) -> str:
        what = f"bursts of {self.burst}" if self.burst > 1 else "singles"
        pace = f"{self.rate / 1e3:.0f} kpps" if self.rate else "flood"
        return f"{self.direction:<4} {what:<12} {self.size:>5} B  {pace:<8}"


@frozen
class Result:
    """What one run gave; times in microseconds."""

    sent: int
    delivered: int
    cpu_per_packet: float
    rate: float
    p50: float
    p99: float

    @property
    def loss(self) -> float:
        return 1 - self.delivered / max(1, self.sent)


class Client:
    """One allocation with one channel."""

    def __init__(self, server: tuple[str, int], peer: tuple[str, int]) -> None:
        self.socket = udp_socket()
        self.socket.connect(server)
        username = f"{int(time.time()) + 600}:{NAMESPACE}"
        digest = hmac.digest(rivals.SECRET.encode(), username.encode(), hashlib.sha1)
        answer = self._ask(Method.ALLOCATE, [(stun.REQUESTED_TRANSPORT, 17)])
        realm = answer.get(stun.REALM) or ""
        self._key: bytes | None = stun.long_term_key(username, realm, base64.b64encode(digest).decode())
        self._proof = [(stun.USERNAME, username), (stun.REALM, realm), (stun.NONCE, answer.get(stun.NONCE))]
        relay = self._signed(Method.ALLOCATE, [(stun.REQUESTED_TRANSPORT, 17)]).get(stun.XOR_RELAYED_ADDRESS)
        assert relay is not None
        self.relay = relay
        self._signed(Method.CHANNEL_BIND, [(stun.CHANNEL_NUMBER, CHANNEL), (stun.XOR_PEER_ADDRESS, peer)])

    def release(self) -> None:
        self._signed(Method.REFRESH, [(stun.LIFETIME, 0)])
        self.socket.close()

    def _signed(self, method: Method, attributes: list[tuple[stun.Attribute[object], object]]) -> Message:
        answer = self._ask(method, [*attributes, *self._proof], self._key)
        if answer.cls != Class.SUCCESS:
            raise RuntimeError(f"{method.name} was refused: {answer.get(stun.ERROR_CODE)}")
        return answer

    def _ask(
        self, method: Method, attributes: list[tuple[stun.Attribute[object], object]], key: bytes | None = None
    ) -> Message:
        transaction = os.urandom(12)
        self.socket.setblocking(True)
        self.socket.settimeout(1)
        for _ in range(5):
            self.socket.send(stun.build(method, Class.REQUEST, transaction, attributes, key=key))
            try:
                while True:
                    data = self.socket.recv(65536)
                    if stun.is_stun(data) and data[8:20] == transaction:
                        return stun.parse(data)
            except TimeoutError:
                continue
        raise RuntimeError(f"no answer to {method.name}")


def udp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    made.bind((HOST, 0))
    return made


def measure(server: rivals.Server, address: tuple[str, int], load: Load, clients: int) -> Result:
    """Put *load* on a server and count what comes out."""
    peer = udp_socket()
    allocated = [Client(address, peer.getsockname()) for _ in range(clients)]
    up = load.direction == "up"
    sinks = [peer] if up else [client.socket for client in allocated]
    sources = [(client.socket, None) for client in allocated] if up else [(peer, client.relay) for client in allocated]
    for sink in sinks:
        sink.setsockopt(SOL_UDP, UDP_GRO, 1)
        sink.setblocking(False)
    before = cpu_time(server.process.pid)
    reading, writing = os.pipe()
    sender = os.fork()
    if sender == 0:  # a process of its own: it must not slow the receiver
        os.write(writing, struct.pack("!Q", send(load, sources)))
        os._exit(0)
    os.close(writing)
    delays = receive(sinks, 0 if up else 4, load.size, load.seconds)
    os.waitpid(sender, 0)
    (sent,) = struct.unpack("!Q", os.read(reading, 8))
    os.close(reading)
    cpu = cpu_time(server.process.pid) - before
    for client in allocated:
        client.release()
    peer.close()
    delays.sort()
    delivered = len(delays)
    return Result(
        sent=sent,
        delivered=delivered,
        cpu_per_packet=cpu / max(1, delivered) / 1e3,
        rate=delivered / load.seconds,
        p50=delays[delivered // 2] / 1e3 if delivered else 0.0,
        p99=delays[delivered * 99 // 100] / 1e3 if delivered else 0.0,
    )


def send(load: Load, sources: list[tuple[socket.socket, tuple[str, int] | None]]) -> int:
    """Send for the load's time; how many packets."""
    header = struct.pack("!HH", CHANNEL, load.size) if load.direction == "up" else b""
    step = len(header) + load.size
    burst = bytearray((header + bytes(load.size)) * load.burst)
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", step))] if load.burst > 1 else []
    stamps = range(len(header), len(burst), step)
    sent = turn = 0
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < load.seconds:
        if load.rate and sent > elapsed * load.rate:
            time.sleep(load.burst / load.rate / 2)
            continue
        source, to = sources[turn % len(sources)]
        turn += 1
        now = time.monotonic_ns()
        for at in stamps:
            _stamp.pack_into(burst, at, now)
        try:
            if to is None:
                source.sendmsg((burst,), control)
            else:
                source.sendmsg((burst,), control, 0, to)
        except (BlockingIOError, ConnectionRefusedError):
            continue
        sent += load.burst
    return sent


def receive(sinks: list[socket.socket], header: int, size: int, seconds: float) -> list[int]:
    """Read until nothing comes any more; the delay of each packet, in nanoseconds."""
    poll = select.epoll()
    by_descriptor = {sink.fileno(): sink for sink in sinks}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    view = memoryview(bytearray(1 << 16))
    delays: list[int] = []
    deadline = time.monotonic() + seconds + 0.3
    while time.monotonic() < deadline:
        for descriptor, _ in poll.poll(0.1):
            for _ in range(64):
                try:
                    length, ancillary, _, _ = by_descriptor[descriptor].recvmsg_into((view,), 64)
                except BlockingIOError:
                    break
                now = time.monotonic_ns()
                step = struct.unpack("@i", ancillary[0][2])[0] if ancillary else length
                delays += [
                    now - _stamp.unpack_from(view, at)[0] for at in range(header, length, step) if length - at >= size
                ]
    poll.close()
    return delays


def cpu_time(process: int) -> int:
    """Nanoseconds on a CPU of every thread of *process*."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{process}/task").glob("*/schedstat"))


def serve(port: int) -> None:
    """Run the TURN server alone, for one namespace whose relays may reach loopback."""
    from orama import reactors

    reactors.install()
    from ipaddress import ip_network

    from twisted.internet import reactor

    from orama.net.fabric import Fabric
    from orama.net.tls import ServerCertificates
    from orama.settings import Settings
    from orama.turn.listeners import TurnService
    from orama.turn.tenants import Tenant, Tenants

    tenants = Tenants(HOST)
    tenants.put(Tenant(NAMESPACE, (rivals.SECRET,), (55000, 55799), allowed_peers=(ip_network("127.0.0.0/8"),)))
    with tempfile.TemporaryDirectory() as directory:
        certificates = ServerCertificates(Path(directory), [HOST], reactor)
        service = TurnService(
            reactor, Settings(turn_port=port, turns_port=port + 1), tenants, Fabric(reactor), certificates
        )
        service.startService()
        reactor.run()


@contextmanager
def servers(directory: Path) -> Iterator[dict[str, tuple[rivals.Server, tuple[str, int]]]]:
    """Both servers, up and running, each on the last CPU."""
    ours, theirs = free_port(), free_port()
    command = [sys.executable, "-m", "bench.turn_relay", "--serve", str(ours)]
    with (
        rivals.Server(command, directory / "orama.log", (HOST, ours)) as orama,
        rivals.coturn(directory, HOST, theirs) as coturn,
    ):
        for server in (orama, coturn):
            for task in Path(f"/proc/{server.process.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {max(os.sched_getaffinity(0))})
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cpus[:-1] or cpus))
        yield {"orama": (orama, (HOST, ours)), "coturn": (coturn, (HOST, theirs))}
        os.sched_setaffinity(0, set(cpus))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def table(results: dict[Load, dict[str, list[Result]]]) -> Iterator[str]:
    """The lines to print: medians, and the ratio of the CPU."""

    def median(runs: list[Result], name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs)

    yield f"{'':38}{'CPU a packet':>22}{'':8}{'delivered':>16}{'lost':>14}{'p50':>14}{'p99':>14}"
    yield f"{'load':38}{'orama':>9} {'coturn':>9} {'ratio':>7}{'orama':>9} {'coturn':>6} " + "  ".join(
        ["orama coturn"] * 3
    )
    for load, runs in results.items():
        ours, theirs = runs["orama"], runs["coturn"]
        cpu = median(ours, "cpu_per_packet"), median(theirs, "cpu_per_packet")
        line = f"{load.name:38}{cpu[0]:>6.2f} µs {cpu[1]:>6.2f} µs {cpu[0] / cpu[1]:>7.2f}"
        line += f"{median(ours, 'rate') / 1e3:>6.0f} k/s{median(theirs, 'rate') / 1e3:>4.0f} k/s"
        line += f" {median(ours, 'loss'):>6.1%} {median(theirs, 'loss'):>6.1%}"
        for name in ("p50", "p99"):
            line += f" {median(ours, name):>6.0f} {median(theirs, name):>6.0f}"
        yield line


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options.add_argument("--rate", type=int, default=50_000, help="packets a second in bursts")
    options.add_argument("--single-rate", type=int, default=25_000, help="packets a second one by one")
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--clients", type=int, default=4)
    chosen = options.parse_args()
    if chosen.serve:
        serve(chosen.serve)
        return
    loads = [
        Load(direction, burst, size, rate, chosen.seconds)
        for burst, size, rate in (
            (10, 1200, chosen.rate),
            (10, 1200, 0),
            (1, 1200, chosen.single_rate),
            (1, 160, chosen.single_rate),
        )
        for direction in ("up", "down")
    ]
    results: dict[Load, dict[str, list[Result]]] = {load: {"orama": [], "coturn": []} for load in loads}
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as directory, servers(Path(directory)) as running:
        for _ in range(chosen.rounds):
            for load in loads:
                for name, (server, address) in running.items():
                    results[load][name].append(measure(server, address, load, chosen.clients))
    print("\n".join(table(results)))
    after = os.getloadavg()
    print(f"{os.cpu_count()} CPUs, load average {before[0]:.1f} before, {after[0]:.1f} after; {chosen.rounds} rounds")


if __name__ == "__main__":
    main()
