"""Rooms of one namespace in one process and in several (``sfu.workers``): what of the work each process has.

``python -m bench.sfu_workers [WORKERS …] [--rooms 2] [--listeners 6] [--rate 1000] [--seconds 3]``

Each room has one publisher, in bursts of eight packets, and listeners, all behind TURN, which is the node's own
process. What counts is CPU and not the clock, so that it can be had on a machine of few cores and beside other work:
so many packets can be forwarded in a second as the busiest process forwards with a second of CPU. Give it more than
the machine takes (``--rate``): a process that sleeps between two bursts pays for waking up, and two that do pay twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench import rivals
from bench.sfu_fanout import LIMITS, free_port
from bench.sfu_load import Load, measure
from bench.sfu_meetings import Orama

#: Seconds for all processes to come.
PATIENCE = 60


class Processes(Orama):
    """A node and its children; :attr:`looks` has what each had used at each look, by number of the process."""

    def __init__(self, server: rivals.Server, http: int, directory: Path) -> None:
        super().__init__(server, http, directory)
        self._node = server.process.pid
        self.looks: list[dict[int, float]] = []

    def sfus(self) -> list[int]:
        """The processes of the SFU."""
        children = Path(f"/proc/{self._node}/task/{self._node}/children").read_text().split()
        return [int(each) for each in children if b"orama.worker" in Path(f"/proc/{each}/cmdline").read_bytes()]

    def cpu(self) -> float:
        self.looks.append({each: _cpu(each) for each in (self._node, *self.sfus())})
        return sum(self.looks[-1].values())

    def memory_of(self, process: int) -> int:
        """Bytes that it does not share with others."""
        text = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in text if line.startswith(("Private_", "Swap:")))


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(workers: int, rooms: int, listeners: int, load: Load) -> None:
    """One row."""
    with tempfile.TemporaryDirectory(prefix="orama-") as name:
        directory, http = Path(name), free_port()
        config = directory / "orama.toml"
        config.write_text(f'{LIMITS}[cluster]\nrunner = "processes"\n'.replace("[sfu]", f"[sfu]\nworkers = {workers}"))
        command = [
            str(Path(sys.executable).with_name("twistd")),
            "-n",
            "--pidfile=",
            "orama-webrtc",
            "--config",
            str(config),
        ]
        # An internal address of its own: the ports of media and signalling are the same for every node of a machine.
        internal = ".".join(["127", *(str(random.randint(1, 254)) for _ in range(3))])
        command += ["--data-dir", str(directory / "data"), "--internal-ip", internal]
        for ip in ("127.0.0.1", internal):
            command += ["--http", f"tcp:{http}:interface={ip}"]
        with rivals.Server(command, directory / "orama.log", ("127.0.0.1", http)) as server:
            wait(f"http://{internal}:{http}/metrics", workers, directory / "orama.log")
            meeting = Processes(server, http, directory)
            idle = max(map(meeting.memory_of, meeting.sfus()))

            async def fill() -> None:
                seats = [seat for room in range(rooms) for seat in await meeting.enter(room, 1, listeners, "video")]
                result = measure(meeting, seats, load)
                before, after = meeting.looks
                node, *sfus = (after[each] - before[each] for each in after)
                shares = ", ".join(f"{each / result.delivered * 1e6:.1f}" for each in sfus)
                wanted = int(load.rate * load.seconds) // load.burst * load.burst * rooms * listeners
                print(
                    f"{workers:7}  {shares:>20} us  {node / result.delivered * 1e6:5.1f} us  "
                    f"{result.delivered / max(sfus):12,.0f}  {100 - 100 * result.delivered / wanted:5.1f} %  "
                    f"{idle / 1e6:6.1f} MB",
                    flush=True,
                )

            asyncio.run(fill())


def wait(url: str, workers: int, log: Path) -> None:
    """Until all processes serve."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                if f'orama_sfu_processes{{namespace="default"}} {workers}.0' in answer.read().decode():
                    return
        except urllib.error.URLError:
            pass  # it is starting
        if time.monotonic() > deadline:
            raise RuntimeError(f"the processes did not come:\n{log.read_text()}")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workers", nargs="*", type=int, default=[1, 2], metavar="WORKERS")
    parser.add_argument("--rooms", type=int, default=2)
    parser.add_argument("--listeners", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1000, help="packets a second of each publisher")
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}; CPU for a delivered packet of each SFU process, and of TURN;")
    print("packets a second that the busiest lets through; lost; memory of an idle process")
    for workers in args.workers:
        run(workers, args.rooms, args.listeners, Load("video", 8, args.rate, args.seconds))


if __name__ == "__main__":
    main()
