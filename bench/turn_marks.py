"""Figures of two servers over some rounds, the mark that they are held against, and the table of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator

from attrs import define, field, frozen


@frozen
class Mark:
    """What shall be met: a bound on the ratio to coturn, or on our figure itself."""

    bound: float
    #: Whether it is the lowest that is good enough, and not the highest.
    least: bool = False
    #: Whether our own figure is meant.
    absolute: bool = False

    def met(self, ours: float, ratio: float) -> bool:
        value = ours if self.absolute else ratio
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g}{'' if self.absolute else ' ×'}"


#: Marks of the relay, all but the last two as ratios to coturn.
BURST_CPU = Mark(0.25)
BURST_TOP = Mark(3.0, least=True)
SINGLE_CPU = Mark(1.0)
STREAM_CPU = Mark(0.7)
DELAY = Mark(1.0)
#: kB an allocation, bytes a source, allocations a second and core.
MEMORY = Mark(8.0, absolute=True)
STRANGER = Mark(0.5, absolute=True)
ALLOCATIONS = Mark(3000.0, least=True, absolute=True)
#: Ratios of ours to ours.
SCALE = Mark(1.15)
WORKERS = Mark(1.7, least=True)


@define
class Line:
    """One figure: a value of each server for each round."""

    name: str
    unit: str
    mark: Mark | None = None
    #: What stands in the place of coturn.
    ours: list[float] = field(factory=list)
    theirs: list[float] = field(factory=list)
    note: str = ""

    @property
    def ratio(self) -> float:
        """Of the medians."""
        theirs = statistics.median(self.theirs) if self.theirs else 0.0
        return statistics.median(self.ours) / theirs if theirs else math.nan

    @property
    def met(self) -> bool | None:
        """None where there is no mark, or nothing to hold against it."""
        if self.mark is None or not self.ours or (math.isnan(self.ratio) and not self.mark.absolute):
            return None
        return self.mark.met(statistics.median(self.ours), self.ratio)

    def __str__(self) -> str:
        ours = _figure(statistics.median(self.ours)) if self.ours else "-"
        theirs = _figure(statistics.median(self.theirs)) if self.theirs else "-"
        ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=False) if b]
        ratio = "" if math.isnan(self.ratio) else f"{self.ratio:.2f}"
        span = f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else ""
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        mark = "" if self.mark is None else str(self.mark)
        text = f"{self.name:58} {ours:>8} {theirs:>8} {self.unit:6} {ratio:>6} {span:>11}  {mark:>8} {verdict:6} "
        return f"{text}{self.note}".rstrip()


@define
class Section:
    """Lines under one heading.

    :param columns: what the two values are.
    """

    title: str
    columns: tuple[str, str] = ("orama", "coturn")
    lines: dict[str, Line] = field(factory=dict)
    remarks: list[str] = field(factory=list)

    def line(self, name: str, unit: str, mark: Mark | None = None) -> Line:
        """The line of that name, which is made when it is new."""
        return self.lines.setdefault(name, Line(name, unit, mark))

    def __str__(self) -> str:
        first, second = self.columns
        head = f"{self.title:58} {first:>8} {second:>8} {'':6} {'ratio':>6} {'of rounds':>11}  {'mark':>8}"
        return "\n".join([head, *map(str, self.lines.values()), *(f"  {each}" for each in self.remarks)])


def summary(sections: Iterable[Section]) -> Iterator[str]:
    """How many marks are met, and which are not."""
    marked = [(section, line) for section in sections for line in section.lines.values() if line.met is not None]
    missed = [f"{section.title}: {line.name.strip()} ({line.mark})" for section, line in marked if not line.met]
    yield f"{len(marked) - len(missed)} of {len(marked)} marks met"
    yield from (f"  missed: {each}" for each in missed)


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
