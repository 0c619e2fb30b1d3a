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
        # A wall clock may be set back; nothing is lost for that.
        self._left = min(self._most, self._left + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted
