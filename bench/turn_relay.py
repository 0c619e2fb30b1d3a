"""The marks of the TURN server: orama against coturn, the same load in the same minutes.

``python -m bench.turn_relay [--quick] [--only bursts|singles|streams|memory|allocations|scale|workers] [--rounds N]``

Each server is on the last CPU, the load on the others. The server's CPU is the scheduler's own nanosecond count of
all its threads, for each packet delivered; in a paced load the waking up is in it. A burst leaves its sender in one
system call, as a paced video frame does; singles leave one by one. The top rate is the highest one delivered with at
most 1 % lost, found by a ramp. Delays are those of delivered packets, to the arrival at the receiver's socket. Each
round measures both servers on every load, one after the other; the table shows medians, and the ratio of each round
from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from bench import turn_measures, turn_servers
from bench.turn_marks import Section, summary
from bench.turn_measures import Plan

FULL = Plan(
    rounds=2,
    seconds=0.4,
    step=0.2,
    counts=(1, 10, 100, 1000),
    singles=(160, 1200),
    held=2000,
    made=2000,
    strangers=10000,
    many=10000,
    workers=2,
)
QUICK = evolve(FULL, rounds=1, seconds=0.25, step=0.12, counts=(10,), singles=(160,), held=500, made=500, many=1000)
PARTS: dict[str, Callable[[Plan, Path], Section]] = {
    "bursts": turn_measures.bursts,
    "singles": turn_measures.singles,
    "streams": turn_measures.streams,
    "memory": turn_measures.memory,
    "allocations": turn_measures.allocations,
    "scale": turn_measures.scale,
    "workers": turn_measures.workers,
}


#: What a quick run leaves out unless it is asked for.
SLOW = frozenset({"workers"})


def conditions(plan: Plan, before: float, taken: float) -> str:
    """Under which the figures came to be."""
    version = subprocess.run(["turnserver", "--version"], capture_output=True, text=True, check=False)
    coturn = (version.stdout + version.stderr).split()[-1]
    own, load = turn_servers.divided()
    return (
        f"coturn {coturn} with one relay thread, Python {platform.python_version()}, Linux {platform.release()}; "
        f"{os.cpu_count()} CPUs, the server on {sorted(own)}, the load on {sorted(load)}; "
        f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after; "
        f"{plan.rounds} rounds of {plan.seconds} s, ramps in steps of {plan.step} s; {taken:.0f} s in all"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--quick", action="store_true", help="one short round, 10 allocations")
    options.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    options.add_argument("--rounds", type=int)
    options.add_argument("--seconds", type=float, help="of a paced load")
    options.add_argument("--workers", type=int, help="that are held against one (2)")
    chosen = options.parse_args()
    base = QUICK if chosen.quick else FULL
    given = {name: value for name in ("rounds", "seconds", "workers") if (value := getattr(chosen, name)) is not None}
    plan = evolve(base, **given)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    gc.disable()
    before, begun = os.getloadavg()[0], time.monotonic()
    sections = []
    with turn_measures.scratch() as directory:
        for name in chosen.only or [name for name in PARTS if not (chosen.quick and name in SLOW)]:
            os.sched_setaffinity(0, turn_servers.divided()[1])
            section = PARTS[name](plan, Path(directory) / name)
            sections.append(section)
            print(f"{section}\n", flush=True)
    print("\n".join(summary(sections)))
    print(conditions(plan, before, time.monotonic() - begun))


if __name__ == "__main__":
    main()
