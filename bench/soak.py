"""A node under churn for half an hour: nothing in it may grow. ``python -m bench.soak [--minutes 30]``.

Light participants come through TURN, publish, subscribe, change their minds, exchange data, and leave with a word or
without; rooms are closed under them and come anew. Every few seconds memory, descriptors, delayed calls and tasks of
the node are read. Two things are judged. A straight line through each figure, after a third of the time to warm up, may
rise by so much of its mean and no more. And when everybody has gone, descriptors, delayed calls and tasks are back
where they were before the first came. It says ``passed`` or ``failed``, and draws ``docs/soak.svg``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import frozen
from OpenSSL import SSL

from bench import rivals
from bench.plot import Panel, svg
from bench.sfu_fanout import free_port, ready
from bench.soak_client import Participant

#: Seats that are taken again as soon as they are free, and the rooms that they share.
SEATS, ROOMS = 16, 4
#: Seconds in a room, at least and at most; between two rooms that are closed; between two readings.
STAY, CLOSE, READ = (5.0, 35.0), 40.0, 5.0
#: Seconds after which even rooms and places of those who vanished are gone.
SETTLED = 150.0
#: The share of the time that is warming up, and what a figure may rise by afterwards, in parts of its mean; by one it
#: may in any case.
WARM, RISE = 1 / 3, 0.05
PLOT = Path(__file__).parent.parent / "docs" / "soak.svg"
#: Tracebacks of the node's that are shown.
SHOWN = 3
#: Descriptors that the pool of database connections opens when many come at once, and keeps: two for each of SQLite's.
KEPT = 10
LIMITS = """
[turn]
allocations_per_user = 1000
[limits]
request_rate = 1000
"""


@frozen
class Reading:
    at: float
    #: Megabytes resident, of all processes of the node.
    memory: float
    descriptors: float
    calls: float
    tasks: float
    peers: float
    tracks: float


class Node:
    """A node that runs, seen from outside."""

    def __init__(self, process: int, http: int) -> None:
        self._process, self._base, self._begin = process, f"http://127.0.0.1:{http}", time.monotonic()

    def read(self) -> Reading:
        with urllib.request.urlopen(f"{self._base}/metrics") as answer:
            found = re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", answer.read().decode(), re.M)
        values: Counter[str] = Counter()
        for name, value in found:
            values[name] += float(value)  # type: ignore[assignment]
        processes = [self._process, *_children(self._process)]
        return Reading(
            time.monotonic() - self._begin,
            sum(map(_resident, processes)) / 1e6,
            sum(len(os.listdir(f"/proc/{each}/fd")) for each in processes),
            values["orama_event_loop_calls"],
            values["orama_event_loop_tasks"],
            values["orama_sfu_peers"],
            values["orama_sfu_tracks"],
        )

    def close_room(self, name: str, key: str) -> None:
        request = urllib.request.Request(
            f"{self._base}/v1/webrtc/rooms?room_id={name}", headers={"X-API-Key": key}, method="DELETE"
        )
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise


def _children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiortc's SCTP goes on for a moment when DTLS has ended, and nobody is there for what it says of that."""
    if not isinstance(context.get("exception"), ConnectionError | SSL.Error):
        loop.default_exception_handler(context)


async def churn(http: int, key: str, seconds: float, node: Node, seen: Counter[str]) -> list[Reading]:
    """Keep the seats taken for so long; the readings meanwhile."""
    end = time.monotonic() + seconds
    names = [f"soak-{number}" for number in range(ROOMS)]
    anew = itertools.count(ROOMS)
    dice = random.Random(1)
    loop = asyncio.get_running_loop()

    async def seat() -> None:
        while (left := end - time.monotonic()) > 1:
            try:
                await Participant(http, key, dice.choice(names), seen, dice).stay(min(dice.uniform(*STAY), left))
            except (RuntimeError, OSError, TimeoutError) as error:
                seen[f"failed: {type(error).__name__} {error}"[:100]] += 1
                await asyncio.sleep(1)

    async def close() -> None:
        while True:
            await asyncio.sleep(CLOSE)
            place = dice.randrange(ROOMS)
            name, names[place] = names[place], f"soak-{next(anew)}"
            await loop.run_in_executor(None, node.close_room, name, key)

    readings: list[Reading] = []

    async def read() -> None:
        while True:
            readings.append(await loop.run_in_executor(None, node.read))
            await asyncio.sleep(READ)

    around = [asyncio.ensure_future(job()) for job in (close, read)]
    await asyncio.gather(*(seat() for _ in range(SEATS)))
    for job in around:
        job.cancel()
    await asyncio.gather(*around, return_exceptions=True)
    return readings


async def settle(node: Node, before: Reading) -> Reading:
    """Wait until the node is as it was before; what it is like then, or when it had its time."""
    end = time.monotonic() + SETTLED
    while True:
        now = await asyncio.get_running_loop().run_in_executor(None, node.read)
        if not grown(before, now) or time.monotonic() > end:
            return now
        await asyncio.sleep(READ)


def grown(before: Reading, after: Reading) -> list[str]:
    """What is more than it was before anybody came."""
    kept = {"descriptors": KEPT, "calls": 0, "tasks": 0, "peers": 0, "tracks": 0}
    return [name for name, more in kept.items() if getattr(after, name) > getattr(before, name) + more]


def rise(at: Sequence[float], values: Sequence[float]) -> float:
    """How much a straight line through *values* rises from first to last, in parts of their mean (least squares)."""
    mean_at, mean = fmean(at), fmean(values)
    spread = sum((each - mean_at) ** 2 for each in at)
    slope = sum((each - mean_at) * (value - mean) for each, value in zip(at, values, strict=True)) / spread
    return slope * (at[-1] - at[0]) / mean if mean else 0.0


@frozen
class Soaked:
    """What was read before, during and after, and the cores that the node took."""

    before: Reading
    readings: list[Reading]
    after: Reading
    cores: float


async def soak(
    node: Node, server: rivals.Server, http: int, key: str, seen: Counter[str], seconds: float, quiet: float
) -> Soaked:
    asyncio.get_running_loop().set_exception_handler(_unheard)
    # One comes and goes first, so that what is made once and kept is there.
    await Participant(http, key, "first", seen, random.Random(2)).stay(3)
    await asyncio.sleep(quiet)
    before = node.read()
    cpu = server.cpu()
    readings = await churn(http, key, seconds, node, seen)
    cpu = server.cpu() - cpu
    return Soaked(before, readings, await settle(node, before), cpu / seconds)


def judge(soaked: Soaked, seen: Counter[str], errors: int) -> bool:
    """Print what came of it; whether all is well."""
    for what, number in sorted(seen.items()):
        print(f"{number:8,d} {what}")
    print(f"{soaked.cores:8.0%} of a core for the node, {errors} tracebacks in its log")
    well = not errors and seen["connected"] > 0
    warm = soaked.readings[int(len(soaked.readings) * WARM) :]
    for name in ("memory", "descriptors", "calls", "tasks"):
        values = [float(getattr(each, name)) for each in warm]
        rose = rise([each.at for each in warm], values)
        flat = rose <= max(RISE, 1 / max(fmean(values), 1))
        well = well and flat
        verdict = "flat" if flat else "GROWS"
        print(f"{name:12} {min(values):8.1f} to {max(values):8.1f}, a line through it rises by {rose:+.1%}: {verdict}")
    left = grown(soaked.before, soaked.after)
    print(f"before: {soaked.before}\nafter:  {soaked.after}")
    print(f"left behind: {', '.join(left) or 'nothing'}")
    return well and not left


def plotted(readings: Sequence[Reading]) -> str:
    titles = {
        "memory": "Memory, MB resident",
        "descriptors": "Descriptors",
        "calls": "Delayed calls",
        "peers": "Participants",
        "tracks": "Tracks",
    }
    panels = [Panel(title, [getattr(each, name) for each in readings]) for name, title in titles.items()]
    return svg("A node under churn", [each.at for each in readings], panels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--quiet", type=float, default=80.0, help="seconds before, in which the first room goes")
    parser.add_argument("--plot", type=Path, default=PLOT, help="write the SVG there")
    args = parser.parse_args()
    seconds = 60 * args.minutes if args.seconds is None else args.seconds
    with tempfile.TemporaryDirectory() as name:
        directory, http, turn = Path(name), free_port(), free_port()
        (directory / "orama.toml").write_text(LIMITS)
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "orama-webrtc"]
        command += ["--config", str(directory / "orama.toml"), "--data-dir", str(directory / "data")]
        command += ["--http", f"tcp:{http}:interface=127.0.0.1", "--turn-port", str(turn), "--turns-port", "0"]
        with rivals.Server(command, directory / "orama.log", ("127.0.0.1", http)) as server:
            while not ready(f"http://127.0.0.1:{http}/ready"):
                time.sleep(0.1)
            node = Node(server.process.pid, http)
            key = (directory / "data" / "default.api-key").read_text().strip()
            seen: Counter[str] = Counter()
            soaked = asyncio.run(soak(node, server, http, key, seen, seconds, args.quiet))
        log = (directory / "orama.log").read_text()
    args.plot.write_text(plotted(soaked.readings))
    lines = log.splitlines()
    errors = [number for number, line in enumerate(lines) if "Traceback" in line or "Unhandled" in line]
    for number in errors[:SHOWN]:
        print("\n".join(lines[max(0, number - 2) : number + 30]))
    well = judge(soaked, seen, len(errors))
    print(f"{'passed' if well else 'failed'}; drawn in {args.plot}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
