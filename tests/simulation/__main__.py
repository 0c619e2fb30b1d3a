"""Many calls: ``python -m tests.simulation --seeds 5000 [--first 0] [--jobs 2]``, or one, ``--seed 17``."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.call import Broken, Outcome, run
from tests.simulation.forms import LONG, SHORT, Form, command, form

FORMS = {"long": LONG, "short": SHORT}
#: Calls that a process takes at a time.
CHUNK = 25


def attempt(chosen: Form | None, seed: int) -> Outcome | str:
    """The run, or what went wrong in it."""
    try:
        return run(seed, chosen)
    except Broken as broken:
        return str(broken)
    except Exception:
        return f"seed {seed} ({command(seed, chosen or form(seed))}):\n{traceback.format_exc()}"


def attempts(seeds: Sequence[int], chosen: Form | None, jobs: int) -> tuple[list[Outcome], list[str]]:
    """Those that went well, and what is to be said of the others, which is printed as it comes."""
    outcomes: list[Outcome] = []
    broken: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        step = partial(attempt, chosen)
        for found in pool.map(step, seeds, chunksize=CHUNK) if jobs > 1 else map(step, seeds):
            if isinstance(found, Outcome):
                outcomes.append(found)
            else:
                broken.append(found)
                print(found, flush=True)
    return outcomes, broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--form", choices=FORMS, help="all calls alike; without it every tenth is long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began = time.monotonic()
    outcomes, broken = attempts(seeds, FORMS.get(options.form), min(options.jobs, len(seeds)))
    wall = time.monotonic() - began
    packets = sum(each.packets + each.forwarded for each in outcomes)
    seconds = sum(each.seconds for each in outcomes)
    print(f"{len(seeds)} calls, {len(broken)} broken, {seconds:.0f} virtual seconds, {packets} packets in {wall:.1f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
