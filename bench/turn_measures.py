"""What is measured of a TURN server, part by part; each gives a section of the table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from bench import rivals, turn_marks, turn_servers
from bench.turn_clients import Crowd, Stage, UdpClient, converse, tls_context, udp_socket
from bench.turn_load import Load, Result, run, top_rate
from bench.turn_marks import Mark, Section
from bench.turn_servers import TurnServer

#: Packets a second of the paced loads: bursts and singles over UDP, and over streams.
BURST_RATE, SINGLE_RATE = 50_000, 25_000
STREAM_BURST_RATE, STREAM_SINGLE_RATE = 30_000, 15_000
#: Where a ramp begins that nothing is known for, packets a second.
RAMP_START = 30_000.0
#: Allocations that delays are measured with, and top rates of singles.
FEW = 10
#: Clients of a stream load, and of a load for workers.
STREAM_CLIENTS, WORKER_CLIENTS = 4, 192
DIRECTIONS = ("up", "down")
#: Of a core, what a worker gets where the load would have none left.
RATION = 0.15
#: Relay ports of a second server of ours.
OTHER_RELAY_PORTS = (26000, 31999)


@frozen
class Plan:
    """How much of everything."""

    rounds: int
    #: Of a paced load, and of a step of a ramp.
    seconds: float
    step: float
    #: Numbers of allocations that share a load over UDP.
    counts: tuple[int, ...]
    #: Bytes of the packets that go one by one.
    singles: tuple[int, ...]
    #: Allocations that memory is measured with, and that are made against the clock.
    held: int
    made: int
    #: Sources that do not authenticate.
    strangers: int
    #: Allocations that the cost per packet is measured with, against :data:`FEW`.
    many: int
    workers: int


@contextmanager
def crowds(servers: Sequence[TurnServer], transport: str = "udp") -> Iterator[list[Crowd]]:
    """Nobody yet, for each server."""
    context = tls_context() if transport == "tls" else None
    with ExitStack() as stack:
        made = [Crowd(each.address(transport), rivals.SECRET, transport, context) for each in servers]
        for crowd in made:
            stack.callback(crowd.close)
        yield made


def bursts(plan: Plan, directory: Path) -> Section:
    """Ten packets in a system call, as of a video frame."""
    return _relaying("UDP, bursts", plan, [(10, 1200)], directory)


def singles(plan: Plan, directory: Path) -> Section:
    """One packet in a system call, as of sound."""
    return _relaying("UDP, singles", plan, [(1, size) for size in plan.singles], directory)


def _relaying(title: str, plan: Plan, shapes: Sequence[tuple[int, int]], directory: Path) -> Section:
    """CPU and top rate over UDP, by the number of allocations, and delays.

    :param shapes: burst and size.
    """
    section = Section(title)
    tops: dict[tuple[str, str], float] = {}
    with turn_servers.both(directory) as servers:
        for turn in range(plan.rounds):
            with crowds(servers) as crowd:
                for count in plan.counts:
                    for each in crowd:
                        each.grow(count)
                    for burst, size in shapes:
                        for direction in DIRECTIONS:
                            rate = BURST_RATE if burst > 1 else SINGLE_RATE
                            load = Load(direction, burst, size, rate, plan.seconds)
                            _relay(section, plan, load, count, servers, crowd, tops, turn)
    return section


def _relay(
    section: Section,
    plan: Plan,
    load: Load,
    count: int,
    servers: Sequence[TurnServer],
    crowd: Sequence[Crowd],
    tops: dict[tuple[str, str], float],
    turn: int,
) -> None:
    name = f"{load.name} {count:>5} alloc."
    cpu = turn_marks.BURST_CPU if load.burst > 1 else turn_marks.SINGLE_CPU
    results = _each(load, servers, crowd, turn)
    line = section.line(f"{name}  CPU, {load.rate / 1e3:.0f} k/s", "µs", cpu)
    _add(line.ours, line.theirs, [result.cpu_per_packet for result in results])
    line.note = _lossy(line.note, results)
    if load.burst == 1 and count != min(FEW, max(plan.counts)):
        return
    found: list[Result] = []
    most: list[float] = []
    for server, each, paced in zip(servers, crowd, results, strict=True):
        guess = 0.5e6 / paced.cpu_per_packet  # a packet costs less when there are many
        key = (f"{load.name} {count}", server.host)
        step = evolve(load, seconds=plan.step)
        best, fullest = top_rate(step, tops.get(key, guess) * 0.8, partial(run, crowd=each, cpu=server.cpu))
        tops[key] = best.rate
        found.append(best)
        most.append(fullest.rate)
    line = section.line(f"{name}  top rate", "/s", turn_marks.BURST_TOP if load.burst > 1 else None)
    _add(line.ours, line.theirs, [result.rate for result in found])
    if any(result.short for result in found):
        line.note = "the load was the limit"
    line = section.line(f"{name}  most, whatever is lost", "/s")
    _add(line.ours, line.theirs, most)
    line = section.line(f"{name}  CPU at the top rate", "µs", cpu)
    _add(line.ours, line.theirs, [result.cpu_per_packet for result in found])
    if count == min(FEW, max(plan.counts)):
        _delays(section, load, servers, crowd, [result.rate for result in found], turn)


def _delays(
    section: Section,
    load: Load,
    servers: Sequence[TurnServer],
    crowd: Sequence[Crowd],
    tops: Sequence[float],
    turn: int,
) -> None:
    """The same offered load for both, half of coturn's top rate; and ours at half of our own beside that."""
    same = _each(evolve(load, rate=tops[1] / 2, timed=True), servers, crowd, turn)
    own = run(evolve(load, rate=tops[0] / 2, timed=True), crowd[0], servers[0].cpu)
    for what, results in (("half of coturn's top", same), ("half of the own top", [own, same[1]])):
        for share in (0.5, 0.99):
            mark = turn_marks.DELAY if share > 0.5 else None
            line = section.line(f"{load.name}  p{share * 100:.0f} at {what}", "µs", mark)
            _add(line.ours, line.theirs, [result.delay(share) for result in results])
            line.note = _lossy(line.note, results)


def streams(plan: Plan, directory: Path) -> Section:
    """CPU over TCP and TLS."""
    section = Section("TCP and TLS")
    shapes = ((10, 1200, STREAM_BURST_RATE), (1, 160, STREAM_SINGLE_RATE))
    with turn_servers.both(directory) as servers:
        for transport in ("tcp", "tls"):
            with crowds(servers, transport) as crowd:
                for each in crowd:
                    each.grow(STREAM_CLIENTS)
                if transport == "tls":
                    ciphers = [getattr(each.clients[0], "cipher", "") for each in crowd]
                    section.remarks.append(f"TLS: {' and '.join(sorted(set(ciphers)))}, {STREAM_CLIENTS} clients")
                for turn in range(plan.rounds):
                    for burst, size, rate in shapes:
                        for direction in DIRECTIONS:
                            load = Load(direction, burst, size, rate, plan.seconds)
                            results = _each(load, servers, crowd, turn)
                            name = f"{transport} {load.name}  CPU, {rate / 1e3:.0f} k/s"
                            line = section.line(name, "µs", turn_marks.STREAM_CPU)
                            _add(line.ours, line.theirs, [result.cpu_per_packet for result in results])
                            line.note = _lossy(line.note, results)
    return section


def memory(plan: Plan, directory: Path) -> Section:
    """What an allocation with one channel takes, and what a source takes that never authenticates."""
    section = Section("Memory")
    held: list[float] = []
    left: list[float] = []
    with turn_servers.both(directory) as servers:
        for server in servers:
            with crowds([server]) as (crowd,):
                crowd.grow(50)  # what the first ones load is not theirs
                before = server.resident()
                crowd.grow(50 + plan.held)
                held.append((server.resident() - before) / plan.held / 1000)
    with turn_servers.both(directory / "again") as servers:  # what others gave back would be taken first
        for server in servers:
            _strangers(server, 0, plan.strangers)
            before = server.resident()
            _strangers(server, plan.strangers, 2 * plan.strangers)
            left.append((server.resident() - before) / plan.strangers)
    line = section.line(f"an allocation with a channel, of {plan.held:,}", "kB", turn_marks.MEMORY)
    _add(line.ours, line.theirs, held)
    line = section.line(f"a source that never authenticates, of {plan.strangers:,}", "B", turn_marks.STRANGER)
    _add(line.ours, line.theirs, left)
    section.remarks.append("resident memory of the process; what the kernel holds for a relay's socket is not in it")
    section.remarks.append(f"sources of different addresses, after {plan.strangers:,} others")
    return section


def _strangers(server: TurnServer, first: int, last: int) -> None:
    for start in range(first, last, 500):
        peer = (server.host, server.port)
        clients = [
            UdpClient(server.address("udp"), rivals.SECRET, peer, number)
            for number in range(start, min(start + 500, last))
        ]
        converse(clients, lambda session: session.stage is Stage.CHALLENGED)
        for client in clients:
            client.close()


def allocations(plan: Plan, directory: Path) -> Section:
    """How many are made a second: one is an Allocate that gets 401 and one that is signed."""
    section = Section("Allocations")
    peer = udp_socket("127.79.0.2")
    with turn_servers.both(directory) as servers:
        for turn in range(plan.rounds):
            pace: list[tuple[float, float]] = []
            for server in servers:
                first = turn * plan.made
                clients = [
                    UdpClient(server.address("udp"), rivals.SECRET, peer.getsockname(), number)
                    for number in range(first, first + plan.made)
                ]
                begun, before = time.monotonic(), server.cpu()
                converse(clients, lambda session: session.stage is Stage.ALLOCATED)
                taken, cpu = time.monotonic() - begun, server.cpu() - before
                pace.append((plan.made / taken, plan.made / cpu * 1e9))
                converse(clients, lambda session: session.stage is Stage.GONE, release=True)
                for client in clients:
                    client.close()
            line = section.line("authenticated allocations", "/s", None)
            _add(line.ours, line.theirs, [seen for seen, _ in pace])
            line = section.line("  a core: by the CPU that they take", "/s", turn_marks.ALLOCATIONS)
            _add(line.ours, line.theirs, [core for _, core in pace])
    peer.close()
    ports = turn_servers.RELAY_PORTS[1] - turn_servers.RELAY_PORTS[0] + 1
    section.remarks.append(f"{plan.made:,} a round, 64 at a time, in a block of {ports:,} ports")
    return section


def scale(plan: Plan, directory: Path) -> Section:
    """Cost per packet where many allocations are in use against a few, both servers ours."""
    section = Section("Scale", (f"{plan.many:,}", f"{FEW}"))
    directory.mkdir()
    with (
        turn_servers.orama(directory / "many") as many,
        turn_servers.orama(directory / "few", relay_ports=OTHER_RELAY_PORTS) as few,
        crowds((many, few)) as crowd,
    ):
        crowd[0].grow(plan.many)
        crowd[1].grow(FEW)
        warm = Load("up", 10, 1200, plan.many * 10, 1.1)  # every allocation has relayed once before
        for each, server in zip(crowd, (many, few), strict=True):
            run(evolve(warm, rate=min(warm.rate, 100_000)), each, server.cpu)
        for turn in range(plan.rounds):
            for burst, size, rate in ((10, 1200, BURST_RATE), (1, 160, SINGLE_RATE)):
                for direction in DIRECTIONS:
                    load = Load(direction, burst, size, rate, plan.seconds)
                    results = _each(load, (many, few), crowd, turn)
                    line = section.line(f"{load.name}  CPU, {rate / 1e3:.0f} k/s", "µs", turn_marks.SCALE)
                    _add(line.ours, line.theirs, [result.cpu_per_packet for result in results])
                    line.note = _lossy(line.note, results)
    section.remarks.append("the load goes to every allocation in turn")
    return section


def workers(plan: Plan, directory: Path) -> Section:
    """The top rate of several workers against that of one, both servers ours.

    Where they and the load share the CPUs, each worker gets a small share of a core and the load the rest.
    """
    section = Section("Workers", (f"{plan.workers}", "1"))
    if not turn_servers.has_workers():
        section.remarks.append("this server has none")
        return section
    directory.mkdir()
    own, load_cpus = turn_servers.divided(plan.workers)
    roomy = not own & load_cpus
    os.sched_setaffinity(0, load_cpus)
    rationed = not roomy and os.access(turn_servers.CPU_GROUPS, os.W_OK)
    mark: Mark | None = turn_marks.WORKERS if roomy or rationed else None
    for turn in range(plan.rounds if mark else 1):
        for count in (plan.workers, 1):
            with (
                turn_servers.orama(directory / f"{turn}-{count}", workers=count) as server,
                crowds([server]) as (crowd,),
                ExitStack() as stack,
            ):
                crowd.grow(WORKER_CLIENTS)
                if rationed:
                    stack.enter_context(server.rationed(RATION))
                for burst, size in ((10, 1200), (1, 160)):
                    for direction in DIRECTIONS:
                        load = Load(direction, burst, size, 0, plan.step)
                        best, _ = top_rate(
                            load, RAMP_START * (3 if burst > 1 else 1), partial(run, crowd=crowd, cpu=server.cpu)
                        )
                        for what, unit, value in (("top rate", "/s", best.rate), ("CPU", "µs", best.cpu_per_packet)):
                            line = section.line(f"{load.name}  {what}", unit, mark if unit == "/s" else None)
                            (line.ours if count > 1 else line.theirs).append(value)
    if rationed:
        section.remarks.append(f"each worker has {RATION:.0%} of a core, the load what is left of {len(load_cpus)}")
    elif not roomy:
        section.remarks.append(f"no mark: {plan.workers} workers and the load share {len(own | load_cpus)} CPUs")
    return section


def _each(load: Load, servers: Sequence[TurnServer], crowd: Sequence[Crowd], turn: int) -> list[Result]:
    """The load on each server, in an order that changes with the round."""
    results: dict[int, Result] = {}
    for at in range(len(servers)) if turn % 2 == 0 else reversed(range(len(servers))):
        results[at] = run(load, crowd[at], servers[at].cpu)
    return [results[at] for at in range(len(servers))]


def _add(ours: list[float], theirs: list[float], values: Sequence[float]) -> None:
    ours.append(values[0])
    theirs.append(values[1])


def _lossy(note: str, results: Sequence[Result]) -> str:
    """What the reader has to know: losses, and loads that were less than they say."""
    worst = max(result.loss for result in results)
    if any(result.received.overflown for result in results):
        return "the receiver lost packets"
    if any(result.short for result in results):
        return "the load fell short"
    if worst > 0.01:
        return "lost " + ", ".join(f"{result.loss:.1%}" for result in results)
    return note


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where servers keep logs and certificates while they are measured."""
    return tempfile.TemporaryDirectory(prefix="turn-bench-")
