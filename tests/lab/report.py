"""What the people in the lab have seen, in figures: ``build/lab/report.json``, and the same as a page to read."""

from __future__ import annotations

import atexit
import json
from functools import cache
from pathlib import Path

from attrs import asdict, frozen

from tests.lab.servers import TOP

DIRECTORY = TOP / "build" / "lab"


@frozen
class Figure:
    scenario: str
    what: str
    value: float
    unit: str


class Report:
    """Written when the interpreter ends."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._figures: list[Figure] = []

    def milliseconds(self, scenario: str, what: str, seconds: float) -> None:
        self._figures.append(Figure(scenario, what, round(seconds * 1000), "ms"))

    def count(self, scenario: str, what: str, number: float, unit: str) -> None:
        self._figures.append(Figure(scenario, what, number, unit))

    def write(self) -> None:
        if not self._figures:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(figure) for figure in self._figures], indent=2)
        (self._directory / "report.json").write_text(content + "\n")
        (self._directory / "report.rst").write_text(self._page())

    def _page(self) -> str:
        lines = ["What callers saw", "================", ""]
        scenario = ""
        order = {figure.scenario: number for number, figure in reversed(list(enumerate(self._figures)))}
        for figure in sorted(self._figures, key=lambda each: order[each.scenario]):
            if figure.scenario != scenario:
                scenario = figure.scenario
                lines += ["", scenario, "-" * len(scenario), ""]
            lines.append(f"- {figure.what}: {figure.value:g} {figure.unit}")
        return "\n".join(lines) + "\n"


@cache
def report() -> Report:
    """The one of this run."""
    made = Report()
    atexit.register(made.write)
    return made
