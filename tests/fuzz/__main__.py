"""The targets by coverage: ``python -m tests.fuzz [--time SECONDS] [--jobs N] [TARGET …]`` from the top of the tree.

Needs ``atheris`` (the extra ``fuzz``). Each target runs in a process of its own, from the corpus that is kept here and
the one that grows in ``build/fuzz``. An input that breaks a promise is kept in ``build/fuzz/TARGET/``, its name is
printed, and the exit status is 1; put into ``tests/fuzz/corpus/TARGET/`` it is tried by the tests ever after.
``--merge`` reduces what has grown to what adds coverage, in ``build/fuzz/TARGET/merged``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.mutation import CORPUS, MAX_LENGTH

TOP = Path(__file__).absolute().parent.parent.parent
ROOM = TOP / "build" / "fuzz"
#: The state machine of Hypothesis, which has no corpus of its own.
MACHINE = "machine"
#: Seconds that one input may take, and megabytes that a process may have.
INPUT_TIME, MEMORY = 10, 2048


def names() -> list[str]:
    """Every target."""
    return [*sorted(path.name for path in CORPUS.iterdir() if path.is_dir()), MACHINE]


def fuzz(name: str, options: Sequence[str]) -> None:
    """Run one target in this process, which ends with it.

    :param options: of libFuzzer.
    """
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["orama"]):
        run, made = _target(name)
    for number, data in enumerate(made):
        (ROOM / name / "corpus" / f"made{number}").write_bytes(data)
    # libFuzzer starts itself again to merge, by the shell and by its first argument.
    atheris.Setup([f"{sys.executable} -m tests.fuzz --one {name} --", *options], run)
    atheris.Fuzz()


def _target(name: str) -> tuple[Callable[[bytes], object], Sequence[bytes]]:
    if name == MACHINE:
        return importlib.import_module("tests.fuzz.machine").fuzz_one_input(), ()
    target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
    return target.run, target.made


def start(name: str, seconds: int, merge: bool) -> bool:
    """Run one target in a child, with its output in a file; whether it kept its promises."""
    room = ROOM / name
    grown, merged = room / "corpus", room / "merged"
    for directory in (grown, merged):
        directory.mkdir(parents=True, exist_ok=True)
    options = [
        f"-artifact_prefix={room}/",
        f"-max_len={MAX_LENGTH}",
        f"-timeout={INPUT_TIME}",
        f"-rss_limit_mb={MEMORY}",
    ]
    options += ["-merge=1", str(merged)] if merge else [f"-max_total_time={seconds}", "-print_final_stats=1"]
    options += [str(grown), *([str(CORPUS / name)] if name != MACHINE else [])]
    before = set(room.iterdir())
    with (room / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--one", name, "--", *options],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
    found = sorted(set(room.iterdir()) - before - {room / "log"})
    said = (room / "log").read_text(errors="replace").splitlines()
    tried = next((line.split()[-1] for line in said if "number_of_executed_units" in line), "?")
    good = done.returncode == 0 and not found
    print(f"{name}: {'ok' if good else 'BROKEN'}, {tried} inputs, {len(list(grown.iterdir()))} of interest", flush=True)
    if not good:
        print("\n".join([*said[-40:], *map(str, found)]), flush=True)
    return good


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--time", type=int, default=60, help="seconds for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--merge", action="store_true", help="reduce what has grown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="*", help=", ".join(names()))
    given = parser.parse_args(arguments)
    if given.one:
        fuzz(given.one, given.target)
        return 0
    try:
        importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install 'orama-webrtc[fuzz]'", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(lambda name: start(name, given.time, given.merge), given.target or names()))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
