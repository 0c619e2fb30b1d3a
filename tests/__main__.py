"""Everything that CI runs: ``python -m tests`` from the top of the tree, with orama installed from its wheel.

What needs no test runner (format, lint, types, docs, packaging, news), and a trial for each package of tests, a few
side by side, since most of what they do is to wait. Tests run in ``build/trial``, where the checkout's own ``orama``
cannot be imported by accident. The last line is ``N passed, N failed, N skipped``.

``python -m tests --checks`` leaves out trial; names (``python -m tests tests.turn``) run those alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Condition
from typing import TypeVar

T = TypeVar("T")

TOP = Path(__file__).resolve().parent.parent
ROOM = TOP / "build" / "trial"
#: What takes long, the longest first.
LONG = (
    *("browser", "lab", "contract", "cluster", "fuzz", "interop", "units", "attacks", "sfu", "simulation"),
    *("signaling", "rest", "turn", "store", "cli"),
)
#: How many share the machine. With three, two processors are busy for three quarters of the time.
WORKERS = 3
#: What counts for more than one of them. With browsers at work a call in a test stays a good one only when little else
#: is, and in the lab some tests measure how good.
WEIGHTS = {"tests.browser": 2, "tests.lab": 2}

CHECKS: dict[str, list[str]] = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "news": ["towncrier", "build", "--draft", "--version", "next", "--date", "today"],
    "packaging": ["twine", "check", "--strict", *map(str, sorted((TOP / "build" / "wheel").glob("*.whl")))],
    "docs": ["sphinx-build", "-W", "-q", "-b", "html", "docs", "docs/_build/html"],
}

_CLOSING = re.compile(r"(?:PASSED|FAILED)(?: \((?P<counts>.*)\))?\s*")


def check() -> list[str]:
    """Run the checks; the names of those that failed."""
    failed = []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name, command in CHECKS.items():
        done = subprocess.run(
            command, cwd=TOP, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = "ok" if done.returncode == 0 else f"failed\n{done.stdout}"
        print(f"{name}: {said}", flush=True)
        if done.returncode:
            failed.append(name)
    return failed


def names() -> list[str]:
    """The packages and modules of tests, the longest first."""
    packages = sorted(path.parent.name for path in TOP.glob("tests/*/__init__.py"))
    modules = sorted(path.stem for path in TOP.glob("tests/test_*.py"))
    places = {name: place for place, name in enumerate(LONG)}
    return [f"tests.{name}" for name in sorted([*packages, *modules], key=lambda name: places.get(name, len(LONG)))]


def trial(tests: list[str], number: int, live: bool) -> Counter[str]:
    """Run *tests* in one trial; what its closing line counted. A run without one counts as an error.

    Not ``trial --jobs``: its workers speak to their parent over the very loop that many tests load.
    """
    command = [sys.executable, "-m", "twisted.trial", "--reactor=asyncio", f"--temp-directory={ROOM / f'temp{number}'}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["CI"] = "true"  # Hypothesis then takes its time, and the same examples each time
    counts: Counter[str] = Counter()
    closed = False
    said = []
    with subprocess.Popen(
        [*command, *tests],
        cwd=ROOM,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if live:
                print(line, end="", flush=True)
            said.append(line)
            closing = _CLOSING.fullmatch(line)
            if closing:
                closed = True
                for part in filter(None, (closing["counts"] or "").split(", ")):
                    name, _, count = part.partition("=")
                    counts[name] += int(count)
    if not closed:
        counts["errors"] += 1
    if not live:
        print("".join(said), end="", flush=True)
    return counts


def side_by_side(tests: list[str]) -> tuple[list[str], Counter[str]]:
    """The checks, and each of *tests* in a trial of its own, a few at a time; what each said comes when it is done.

    :returns: the checks that failed, and what the trials counted.
    """
    changed = Condition()
    free = WORKERS

    def run(job: Callable[[], T], weight: int) -> T:
        nonlocal free
        try:
            return job()
        finally:
            with changed:
                free += weight
                changed.notify()

    def next_of(waiting: list[str]) -> str | None:
        return next((name for name in waiting if WEIGHTS.get(name, 1) <= free), None)

    waiting, runs = list(tests), []
    with ThreadPoolExecutor() as pool:
        free -= 1
        checks = pool.submit(run, check, 1)
        while waiting:
            with changed:
                name = changed.wait_for(partial(next_of, waiting))
                assert name is not None
                free -= WEIGHTS.get(name, 1)
            waiting.remove(name)
            job = partial(trial, [name], len(runs) + 1, False)
            runs.append(pool.submit(run, job, WEIGHTS.get(name, 1)))
        return checks.result(), sum((run.result() for run in runs), Counter())


def main(arguments: list[str]) -> int:
    if "--checks" in arguments:
        return 1 if check() else 0
    ROOM.mkdir(parents=True, exist_ok=True)
    link = ROOM / "tests"
    if not link.is_symlink():
        link.symlink_to(TOP / "tests")
    failed_checks: list[str] = []
    if arguments:
        counts = trial(arguments, 0, True)
    else:
        failed_checks, counts = side_by_side(names())
    passed = counts["successes"] + counts["expectedFailures"]
    failed = counts["failures"] + counts["errors"] + counts["unexpectedSuccesses"]
    if failed_checks:
        print(f"Failed beside the tests: {', '.join(failed_checks)}")
    print(f"{passed} passed, {failed} failed, {counts['skips']} skipped", flush=True)
    return 1 if failed or failed_checks or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
