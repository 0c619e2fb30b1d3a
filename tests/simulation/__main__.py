"""Many calls: ``python -m tests.simulation --seeds 5000 [--first 0] [--jobs 2]``, or one, ``--seed 17``."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.call import Broken, Outcome, run


def attempt(seed: int) -> Outcome | str:
    """The run, or what went wrong in it."""
    try:
        return run(seed)
    except Broken as broken:
        return str(broken)
    except Exception:
        return f"seed {seed} (python -m tests.simulation --seed {seed}):\n{traceback.format_exc()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began, failed, packets = time.monotonic(), 0, 0
    with ProcessPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(attempt, seeds, chunksize=8) if options.jobs > 1 else map(attempt, seeds)
        for outcome in outcomes:
            if isinstance(outcome, str):
                failed += 1
                print(outcome, flush=True)
            else:
                packets += outcome.packets + outcome.forwarded
    seconds = time.monotonic() - began
    print(f"{len(seeds)} calls, {failed} broken, {packets} packets in {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
