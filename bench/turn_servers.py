"""The two TURN servers under measure, each on CPUs of its own: orama's, run alone by this module, and coturn.

Each has a loopback address to itself, so that its relay ports meet nobody else's.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import fields_dict, frozen

from bench import rivals
from bench.turn_clients import NAMESPACE, Address
from orama.settings import TurnSettings

OURS_HOST, THEIRS_HOST = "127.77.0.1", "127.77.0.2"
#: Relay ports of the namespace, and as many for coturn, where the kernel gives none to others by itself. The block is
#: larger than a node's default (800).
RELAY_PORTS = (10000, 25999)
#: What this process was given, before it pinned itself to some of them.
CPUS = tuple(sorted(os.sched_getaffinity(0)))


#: Where the CPU controller of the kernel is, and over how many microseconds it rations.
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
RATION_PERIOD = 10_000


@frozen
class TurnServer:
    """A server that runs."""

    process: rivals.Server
    host: str
    port: int
    tls_port: int

    def address(self, transport: str) -> Address:
        return self.host, self.tls_port if transport == "tls" else self.port

    def processes(self) -> list[int]:
        """Itself and its descendants."""
        found = [self.process.process.pid]
        for each in found:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> int:
        """Nanoseconds on a CPU of every thread, by the scheduler's own count."""
        total = 0
        for each in self.processes():
            for task in Path(f"/proc/{each}/task").glob("*/schedstat"):
                total += int(task.read_text().split()[0])
        return total

    def resident(self) -> int:
        """Bytes of memory, exactly; what the kernel holds for its sockets is not among them."""
        total = 0
        for each in self.processes():
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    total += int(line.split()[1]) << 10
        return total

    def pin(self, cpus: set[int]) -> None:
        """Run on *cpus* alone."""
        for each in self.processes():
            for task in Path(f"/proc/{each}/task").iterdir():
                os.sched_setaffinity(int(task.name), cpus)

    @contextmanager
    def rationed(self, share: float) -> Iterator[None]:
        """Let each of its processes have *share* of a core, so that a machine with few leaves some to the load.

        :raises OSError: the kernel's CPU controller (``cpu.cfs_quota_us`` of its first version) is not ours to use.
        """
        groups = [CPU_GROUPS / f"orama-bench-{each}" for each in self.processes()]
        made: list[Path] = []
        try:
            for each, group in zip(self.processes(), groups, strict=True):
                group.mkdir()
                made.append(group)
                (group / "cpu.cfs_period_us").write_text(str(RATION_PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(round(share * RATION_PERIOD)))
                (group / "cgroup.procs").write_text(str(each))
            yield
        finally:
            for group in made:
                for process in (group / "cgroup.procs").read_text().split():
                    (CPU_GROUPS / "cgroup.procs").write_text(process)
                group.rmdir()


def divided(workers: int = 1) -> tuple[set[int], set[int]]:
    """The CPUs of the server, the last *workers* of those that are there, and those of the load; they share too few."""
    return set(CPUS[-workers:]), set(CPUS[:-workers]) or set(CPUS)


@contextmanager
def orama(directory: Path, *, workers: int = 1, relay_ports: tuple[int, int] = RELAY_PORTS) -> Iterator[TurnServer]:
    """Ours; *directory* is made and holds its log and its self-signed certificate."""
    directory.mkdir()
    port, tls_port = _free_port(OURS_HOST), _free_port(OURS_HOST)
    command = [sys.executable, "-m", "bench.turn_servers"]
    command += [str(each) for each in (port, tls_port, workers, *relay_ports, directory)]
    with rivals.Server(command, directory / "log", (OURS_HOST, port)) as process:
        server = TurnServer(process, OURS_HOST, port, tls_port)
        server.pin(divided(workers)[0])
        yield server


@contextmanager
def coturn(directory: Path, certificate: Path | None = None) -> Iterator[TurnServer]:
    """Theirs, with TLS when there is a *certificate*, whose key is beside it.

    It has one relay thread for its one CPU, which costs it less than the thread a CPU of the machine of its default.
    """
    directory.mkdir()
    port, tls_port = _free_port(THEIRS_HOST), _free_port(THEIRS_HOST)
    tls = None if certificate is None else (tls_port, certificate, certificate.with_suffix(".key"))
    with rivals.coturn(directory, THEIRS_HOST, port, relay_ports=RELAY_PORTS, tls=tls, threads=1) as process:
        server = TurnServer(process, THEIRS_HOST, port, tls_port)
        server.pin(divided()[0])
        yield server


@contextmanager
def both(directory: Path) -> Iterator[tuple[TurnServer, TurnServer]]:
    """Ours and theirs, with one certificate."""
    directory.mkdir(exist_ok=True)
    with (
        orama(directory / "orama") as ours,
        coturn(directory / "coturn", directory / "orama/self-signed.crt") as theirs,
    ):
        yield ours, theirs


def has_workers() -> bool:
    """Whether our server can be more than one process."""
    return "workers" in fields_dict(TurnSettings)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def serve(port: int, tls_port: int, workers: int, relay_ports: tuple[int, int], directory: Path) -> None:
    """Run the TURN server alone, for one namespace whose relays may reach loopback."""
    from orama import reactors

    reactors.install()
    from ipaddress import ip_network

    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from orama import logs
    from orama.net.fabric import Fabric
    from orama.net.tls import ServerCertificates
    from orama.settings import Settings
    from orama.turn.listeners import TurnService
    from orama.turn.tenants import Tenant, Tenants
    from orama.turn.workers import Workers

    globalLogBeginner.beginLoggingTo([logs.observer("text", sys.stdout)], redirectStandardIO=False)
    more = {"workers": workers} if has_workers() else {}
    turn = TurnSettings(allocations_per_namespace=relay_ports[1] - relay_ports[0] + 1, **more)  # type: ignore[arg-type]
    settings = Settings(
        public_ip=OURS_HOST, internal_ip=OURS_HOST, turn_port=port, turns_port=tls_port, turn=turn, data_dir=directory
    )
    tenants = Tenants(OURS_HOST)
    tenants.put(Tenant(NAMESPACE, (rivals.SECRET,), relay_ports, allowed_peers=(ip_network("127.0.0.0/8"),)))
    certificates = ServerCertificates(directory, [OURS_HOST], reactor)  # type: ignore[arg-type]
    kind = TurnService if workers == 1 else Workers
    service = kind(reactor, settings, tenants, Fabric(reactor), certificates)  # type: ignore[arg-type]
    service.startService()
    reactor.run()  # type: ignore[attr-defined]


def main() -> None:
    options = argparse.ArgumentParser(description="Run orama's TURN server alone, for a bench.")
    for name in ("port", "tls_port", "workers", "first", "last"):
        options.add_argument(name, type=int)
    options.add_argument("directory", type=Path)
    chosen = options.parse_args()
    serve(chosen.port, chosen.tls_port, chosen.workers, (chosen.first, chosen.last), chosen.directory)


if __name__ == "__main__":
    main()
