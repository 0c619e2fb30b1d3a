"""Everything that CI runs: ``python -m tests`` from the top of the tree, with orama installed from its wheel.

First what needs no test runner (format, lint, types, docs, packaging, news), then trial: what can run side by
side does, what drives browsers or measures runs alone. Tests run in ``build/trial``, where the checkout's own
``orama`` cannot be imported by accident. The last line is ``N passed, N failed, N skipped``.

``python -m tests --checks`` stops before trial; names (``python -m tests tests.turn``) run those alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
ROOM = TOP / "build" / "trial"
#: Packages whose tests need the machine for themselves.
ALONE = ("browser", "interop", "lab")
#: How many trial workers share the rest.
WORKERS = 2

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
        print(f"{name}: {'ok' if done.returncode == 0 else 'failed'}", flush=True)
        if done.returncode:
            print(done.stdout, flush=True)
            failed.append(name)
    return failed


def names(alone: bool) -> list[str]:
    """The packages and modules of tests that run alone, or those that do not."""
    packages = sorted(path.parent.name for path in TOP.glob("tests/*/__init__.py"))
    modules = sorted(path.stem for path in TOP.glob("tests/test_*.py"))
    if alone:
        return [f"tests.{name}" for name in packages if name in ALONE]
    return [f"tests.{name}" for name in [*packages, *modules] if name not in ALONE]


def lines(command: list[str]) -> Iterator[str]:
    """What *command* says in the trial room, line by line, passed on as it comes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command,
        cwd=ROOM,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            yield line


def trial(tests: list[str], workers: int) -> Counter[str]:
    """Run *tests*; what trial's closing line counted. A run without one counts as a failure."""
    command = [sys.executable, "-m", "twisted.trial", "--reactor=asyncio", f"--temp-directory={ROOM / 'temp'}"]
    if workers > 1:
        command.append(f"--jobs={workers}")
    counts: Counter[str] = Counter()
    closed = False
    for line in lines([*command, *tests]):
        closing = _CLOSING.fullmatch(line)
        if closing:
            closed = True
            for part in filter(None, (closing["counts"] or "").split(", ")):
                name, _, number = part.partition("=")
                counts[name] += int(number)
    if not closed:
        counts["errors"] += 1
    return counts


def main(arguments: list[str]) -> int:
    failed_checks = [] if any(not name.startswith("-") for name in arguments) else check()
    if "--checks" in arguments:
        return 1 if failed_checks else 0
    ROOM.mkdir(parents=True, exist_ok=True)
    link = ROOM / "tests"
    if not link.is_symlink():
        link.symlink_to(TOP / "tests")
    counts: Counter[str] = Counter()
    if arguments:
        counts += trial(arguments, 1)
    else:
        counts += trial(names(alone=False), WORKERS)
        if names(alone=True):
            counts += trial(names(alone=True), 1)
    passed = counts["successes"] + counts["expectedFailures"]
    failed = counts["failures"] + counts["errors"] + counts["unexpectedSuccesses"]
    if failed_checks:
        print(f"Failed before the tests: {', '.join(failed_checks)}")
    print(f"{passed} passed, {failed} failed, {counts['skips']} skipped", flush=True)
    return 1 if failed or failed_checks or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
