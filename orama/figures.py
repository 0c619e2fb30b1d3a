"""The figures of a process that may end and be started again, and sums over several such processes.

A counter that falls is one that began anew, to Prometheus, and in a sum of several that would count the others twice.
So what earlier runs of a process have counted stays in its figures; gauges end with the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

#: Name, labels, value.
Sample: TypeAlias = tuple[str, Mapping[str, str], float]
_Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

#: How the names end of what only grows: see :mod:`orama.metrics`.
_GROWING = ("_total", "_seconds_bucket", "_seconds_sum", "_seconds_count")


class Figures:
    """Of one process, however often it is started."""

    def __init__(self) -> None:
        self._run: object = None
        self._said: dict[_Key, float] = {}
        #: What runs before this one have counted.
        self._before: dict[_Key, float] = {}

    def begin(self, run: object = None) -> None:
        """The process has come. *run* says which one: an equal one is that which was here last; None never is."""
        if run is None or run != self._run:
            self.end()
            self._before, self._said = _sums([self._before, self._said]), {}
        self._run = run

    def say(self, samples: Iterable[Sample]) -> None:
        """All that the process counts."""
        self._said = {_key(name, labels): value for name, labels, value in samples}

    def end(self) -> None:
        """The process is not there: what it has counted stays."""
        self._said = {key: value for key, value in self._said.items() if key[0].endswith(_GROWING)}

    def samples(self) -> Iterator[Sample]:
        """What it has said last, with what its earlier runs have counted."""
        yield from _samples(_sums([self._before, self._said]))


def total(several: Iterable[Iterable[Sample]]) -> Iterator[Sample]:
    """The sums of *several* sources: each name with the same labels once."""
    yield from _samples(_sums({_key(name, labels): value for name, labels, value in each} for each in several))


def _key(name: str, labels: Mapping[str, str]) -> _Key:
    return name, tuple(sorted(labels.items()))


def _samples(sums: Mapping[_Key, float]) -> Iterator[Sample]:
    for (name, pairs), value in sums.items():
        yield name, dict(pairs), value


def _sums(several: Iterable[Mapping[_Key, float]]) -> dict[_Key, float]:
    sums: dict[_Key, float] = {}
    for each in several:
        for key, value in each.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums
