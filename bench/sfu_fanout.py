"""Rooms, all of them behind TURN: orama against Janus with coturn, in one run.

``python -m bench.sfu_fanout [ROW …] [--rounds 3] [--seconds 3] [--only orama]``

Both sides get the same load from the same light clients (``bench.relayed``), in frames whose packets leave in one
system call, or one by one. What is compared is the server's CPU for each delivered packet (Janus and coturn together),
and the delay from the publisher's send to the receipt. The rounds take turns, and the median of their ratios counts. It
takes place in a network namespace of its own when it runs as root, since Janus wants an address that is not loopback.

Then what orama alone is asked: packets that a core forwards, the price of ten times the rooms, memory of a subscriber,
and how late the event loop is at half load.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

from attrs import evolve, frozen

from bench import rivals
from bench.sfu_load import Load, Result, measure
from bench.sfu_meetings import ADDRESS, Janus, Meeting, Orama

#: The whole bench is one address and one user, which has its limits.
LIMITS = "[turn]\nallocations_per_user = 1000\n[sfu]\nmax_participants = 1000\n[limits]\nrequest_rate = 1000\n"
#: Packets a second that come in, where rooms are compared.
ROOMS_RATE = 4000
#: Seconds at half load, in which the loop is looked at twice a second.
LATE_SECONDS = 20


@frozen
class Row:
    """A load on a room; *listeners* 0: everybody hears everybody else."""

    publishers: int
    listeners: int
    load: Load
    #: The most of the rival's CPU, and of its 99th percentile of delays.
    cpu: float
    p99: float = 0.5


def rows(seconds: float) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for burst, name, cpu in ((8, "bursts", 0.15), (1, "singles", 0.25)):
        video = Load("video", burst, 2000, seconds)
        found[f"1-6-{name}"] = Row(1, 6, video, cpu)
        found[f"1-12-{name}"] = Row(1, 12, video, cpu)
        found[f"4x4-{name}"] = Row(4, 0, evolve(video, rate=1000), cpu)
    found["1-100-audio"] = Row(1, 100, Load("audio", 1, 50, max(seconds, 4)), 0.25)
    return found


def against_orama(job: Callable[[Orama], Result]) -> Result:
    with tempfile.TemporaryDirectory() as name:
        directory, http = Path(name), free_port()
        config = directory / "orama.toml"
        config.write_text(LIMITS)
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "orama-webrtc"]
        command += ["--config", str(config), "--data-dir", str(directory / "data")]
        command += ["--http", f"tcp:{http}:interface=127.0.0.1"]
        with rivals.Server(command, directory / "orama.log", ("127.0.0.1", http)) as server:
            deadline = time.monotonic() + 10
            while not ready(f"http://127.0.0.1:{http}/ready"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not start:\n{(directory / 'orama.log').read_text()}")
                time.sleep(0.05)
            return job(Orama(server, http, directory))


def against_janus(job: Callable[[Janus], Result]) -> Result:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with rivals.coturn(directory, ADDRESS, 3478) as turn, rivals.janus(directory, 8188) as server:
            return job(Janus(server, turn, 8188))


def one_room(row: Row) -> Callable[[Meeting], Result]:
    async def run(meeting: Meeting) -> Result:
        return measure(meeting, await meeting.enter(0, row.publishers, row.listeners, row.load.kind), row.load)

    return lambda meeting: asyncio.run(run(meeting))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def compare(name: str, row: Row, rounds: int, only: str | None) -> None:
    """One row of the table."""
    ours: list[Result] = []
    theirs: list[Result] = []
    for _ in range(rounds):
        if only != "janus":
            ours.append(against_orama(one_room(row)))
        if only != "orama":
            theirs.append(against_janus(one_room(row)))
    cells = [f"{name:14}"]
    for results in (ours, theirs):
        if results:
            cpu, p99 = median(r.cpu for r in results), median(r.p99 for r in results)
            cells.append(f"{cpu:6.1f} us {p99 / 1e3:7.2f} ms {100 * max(r.lost for r in results):5.1f} %")
    if ours and theirs:
        cpus = [a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True)]
        delays = [a.p99 / b.p99 for a, b in zip(ours, theirs, strict=True)]
        cells.append(f"{median(cpus):5.2f} {min(cpus):5.2f}-{max(cpus):4.2f}  <= {row.cpu:.2f}")
        cells.append(f"{verdict(median(cpus) <= row.cpu):6}")
        cells.append(f"{median(delays):5.2f}  <= {row.p99:.2f} {verdict(median(delays) <= row.p99)}")
    print("  ".join(cells), flush=True)


def alone(seconds: float) -> None:
    """What is asked of orama by itself."""
    flood = Load("video", 8, 16000, seconds)
    top = against_orama(one_room(Row(1, 12, flood, 0)))
    rate = 1e6 / top.cpu
    print(f"forwarded packets a second and core, bursts: {rate:,.0f}  >= 150,000 {verdict(rate >= 150_000)}")

    def rooms(count: int) -> Callable[[Orama], Result]:
        async def run(meeting: Orama) -> Result:
            seats = [seat for room in range(count) for seat in await meeting.enter(room, 1, 6, "video")]
            # As many packets in all: a node that has more to do sleeps less, and that alone makes packets cheaper.
            return measure(meeting, seats, Load("video", 8, ROOMS_RATE / count, seconds))

        return lambda meeting: asyncio.run(run(meeting))

    one, ten = against_orama(rooms(1)).cpu, against_orama(rooms(10)).cpu
    said = f"a packet with 10 rooms and with 1: {ten:.1f} and {one:.1f} us, {ten / one:.2f}"
    print(f"{said}  <= 1.15 {verdict(ten <= 1.15 * one)}")
    grown: list[float] = []

    def memory(meeting: Orama) -> Result:
        async def run() -> Result:
            await meeting.enter(1, 1, 10, "video")  # what the first ones make stays
            before = meeting.memory()
            seats = await meeting.enter(0, 1, 50, "video")
            result = measure(meeting, seats, Load("video", 8, 400, seconds))
            grown.append((meeting.memory() - before) / 51)
            return result

        return asyncio.run(run())

    against_orama(memory)
    print(f"memory of a subscriber: {grown[0] / 1e3:.0f} kB  <= 150 {verdict(grown[0] <= 150e3)}")
    looks: list[float] = []

    def late(meeting: Orama) -> Result:
        before = meeting.late()
        result = one_room(Row(1, 12, evolve(flood, rate=0.5 * rate / 12, seconds=LATE_SECONDS), 0))(meeting)
        looks.extend((meeting.late() - before).elements())
        return result

    half = against_orama(late)
    lag = sorted(looks)[len(looks) * 99 // 100]
    said = f"at {half.cores:.2f} cores the event loop is late, p99 of {len(looks)} looks: {lag * 1e3:.0f} ms at most"
    print(f"{said}  <= 10 {verdict(lag <= 0.01)}")


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
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all of {', '.join(rows(1))}, alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rate", type=float, help="packets a second of each publisher, instead of the row's")
    parser.add_argument("--only", choices=("orama", "janus"))
    args = parser.parse_args()
    known = rows(args.seconds)
    asked = args.rows or [*known, "alone"]
    if unknown := set(asked) - {*known, "alone"}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    enter_namespace()
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}; CPU for a delivered packet, p99 of its delay, lost at most")
    print(f"{'':14}  {'orama':>26}  {'Janus and coturn':>26}  ratio of CPU, of rounds          ratio of p99")
    for name in asked:
        if name != "alone":
            row = known[name]
            compare(
                name,
                row if args.rate is None else evolve(row, load=evolve(row.load, rate=args.rate)),
                args.rounds,
                args.only,
            )
    if "alone" in asked and args.only != "janus":
        alone(args.seconds)


if __name__ == "__main__":
    main()
