"""The steps of what takes time, one line each.

On a terminal they are shown as they become true. Elsewhere whoever reads wants either the answer or the reason why
there is none: the steps come before the answer, and are left out with JSON or when it failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import click


class Steps:
    """:param as_json: whether the answer on stdout is for a program; then stderr is where steps are shown."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._live = (sys.stderr if as_json else sys.stdout).isatty()
        self._last: tuple[str, str, str] | None = None
        self._held: list[str] = []

    def __call__(self, step: Mapping[str, str]) -> None:
        """Show one of them; the same again is shown once."""
        shown = (step.get("step", ""), step.get("state", ""), step.get("text", ""))
        if shown != self._last:
            self._last = shown
            self.say(f"{shown[1]:<8} {shown[2] or shown[0]}")

    def say(self, line: str) -> None:
        """Show *line* where the steps are shown."""
        if self._live:
            click.echo(line, err=self._as_json)
        elif not self._as_json:
            self._held.append(line)

    def done(self) -> None:
        """It went well: show what has not been shown."""
        for line in self._held:
            click.echo(line)
        self._held.clear()


def count(what: str) -> Callable[[int, int], None]:
    """Shows on a terminal at stderr how many of how many are done; nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            line = f"{what}: {done} of {total}"
            click.echo(f"\r{line}" if done < total else f"\r{' ' * len(line)}\r", nl=False, err=True)

    return show
