"""What ``quota`` writes down, where it is written down for all TURN workers of a node (:mod:`orama.turn.shared`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orama.turn.bandwidth import Bucket
from orama.turn.shared import Owner, SharedTable

#: A worker tells the others what it has taken out of a bucket when that is this part of a second's worth,
#: so that all of them together pass at most so much too much: a call for each burst would cost 4 µs.
PART = 100


class SharedLedger:
    """As :class:`~orama.turn.quota.Counts`, for all workers."""

    def __init__(self, table: SharedTable) -> None:
        self._table = table

    def take(self, wanted: Sequence[tuple[Owner, int]], now: float) -> bool:
        return self._table.take(wanted, now)

    def release(self, owners: Iterable[Owner]) -> None:
        self._table.release(owners)

    def held(self, owner: Owner) -> int:
        return self._table.held(owner)

    def bucket(self, owner: Owner, rate: int, now: float) -> Bucket:
        return SharedBucket(self._table, owner, rate, now)


class SharedBucket(Bucket):
    """The bucket of an owner, on which all workers draw.

    What a lane is sure of is its part of an equal part for each worker, as if all of them had as many lanes.
    """

    def __init__(self, table: SharedTable, owner: Owner, rate: int, now: float) -> None:
        self._table = table
        super().__init__(rate, now)
        self._number = table.number(owner)
        self._untold = 0

    @property
    def part(self) -> float:
        return super().part / self._table.workers

    def has(self, now: float, debt: bool = False) -> bool:
        self._stamp = now
        level = self._table.level(self._number, self.rate, self.size, now) - self._untold
        return level > (-self.size if debt else 0)

    def spend(self, amount: int) -> None:
        self._untold += amount
        if self._untold * PART >= self.rate:
            self._tell()

    def is_full(self, now: float) -> bool:
        """Whether nothing would be lost with this object: the others know all."""
        self._stamp = now
        self._tell()
        return True

    def _tell(self) -> None:
        self._table.spend(self._number, self._untold, self.rate, self.size, self._stamp)
        self._untold = 0
