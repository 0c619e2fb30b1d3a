"""How much of something one client may ask for: a token bucket, so that excess costs its sender and nobody else."""

from __future__ import annotations


class Allowance:
    """*rate* a second, *most* at once."""

    __slots__ = ("_filled", "_left", "_most", "_rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self._rate = rate
        self._most = most
        self._left = most
        self._filled = now

    def take(self, wanted: int, now: float) -> int:
        """How many of *wanted* are granted now."""
        self._fill(now)
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted

    def spend(self, cost: float, now: float) -> bool:
        """Whether anything is left now. Then *cost* is taken, and what is more than was left is owed."""
        self._fill(now)
        if self._left <= 0:
            return False
        self._left -= cost
        return True

    def _fill(self, now: float) -> None:
        # A wall clock may be set back; nothing is lost for that.
        self._left = min(self._most, self._left + max(0.0, now - self._filled) * self._rate)
        self._filled = now
