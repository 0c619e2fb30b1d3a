"""How long packets are in this process: from the look at the sockets that found them until all that they brought about
had been handed to sockets again. One figure for each drain of the sockets, so it holds for the slowest of its packets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

#: Upper bounds of the buckets, seconds.
BOUNDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1)


class Transit:
    """A histogram; ``Fabric.transit`` is its :meth:`note`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def note(self, seconds: float, bursts: int) -> None:
        """So many bursts took up to *seconds*; 0.2 µs a drain, however many bursts leave."""
        self._counts[bisect_left(BOUNDS, seconds)] += bursts
        self._sum += seconds * bursts

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        below = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._counts, strict=True):
            below += count
            yield "orama_sfu_transit_seconds_bucket", {"le": bound}, below
        yield "orama_sfu_transit_seconds_sum", {}, self._sum
        yield "orama_sfu_transit_seconds_count", {}, below
