"""The steps of what takes time, one line each, as they become true.

Where the answer is JSON, stdout is for that alone: the steps go to stderr, and only when somebody sits there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import click


class Steps:
    """:param as_json: whether the answer on stdout is for a program."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: tuple[str, str, str] | None = None

    def __call__(self, step: Mapping[str, str]) -> None:
        """Show one of them; the same again is shown once."""
        shown = (step.get("step", ""), step.get("state", ""), step.get("text", ""))
        if shown != self._last:
            self._last = shown
            self.say(f"{shown[1]:<8} {shown[2] or shown[0]}")

    def say(self, line: str) -> None:
        """Show *line* where the steps are shown."""
        if not self._as_json:
            click.echo(line)
        elif sys.stderr.isatty():
            click.echo(line, err=True)


def count(what: str) -> Callable[[int, int], None]:
    """Shows on a terminal at stderr how many of how many are done; nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            line = f"{what}: {done} of {total}"
            click.echo(f"\r{line}" if done < total else f"\r{' ' * len(line)}\r", nl=False, err=True)

    return show
