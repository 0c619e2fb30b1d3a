"""Bytes per second, shared fairly: a token bucket that several draw on, each with a part that others cannot take.

A bucket alone passes whoever comes first, so that one who sends a hundred times as much as the rest gets nearly
all of it. So each who draws has a lane of its own, which fills with an equal part of the bucket's rate: who stays
within it passes, as a debt of the bucket where it is empty, and who is beyond it passes only on what is left over.
"""

from __future__ import annotations

#: A bucket holds a second's worth, and never less than one read of a socket.
MIN_BURST = 65536
#: Seconds of its part that a lane holds, and that it may be beyond it.
LANE_TIME = 0.25
#: Seconds for which one who has drawn counts as one who draws.
ACTIVE_TIME = 1.0


class Bucket:
    """A token bucket in bytes.

    It may go into debt by one burst, so that a burst larger than it passes, and by its own size for lanes that are
    within their part.

    :param rate: bytes per second; it may be changed.
    """

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._level = float(self.size)
        self._stamp = now
        self._lanes_now = 0
        self._lanes_before = 0
        self._period = now

    @property
    def size(self) -> int:
        """Bytes that it holds when it is full."""
        return max(self.rate, MIN_BURST)

    @property
    def part(self) -> float:
        """Bytes per second of one lane."""
        return self.rate / max(self._lanes_now, self._lanes_before, 1)

    def has(self, now: float, debt: bool = False) -> bool:
        """Whether anything is left; with *debt*, whether it may still go into debt."""
        size = self.size
        self._level = min(size, self._level + max(0.0, now - self._stamp) * self.rate)
        self._stamp = now
        return self._level > (-size if debt else 0)

    def spend(self, amount: int) -> None:
        """Take *amount*, whatever is left."""
        self._level -= amount

    def take(self, amount: int, now: float) -> bool:
        """Take *amount* when anything is left."""
        if not self.has(now):
            return False
        self.spend(amount)
        return True

    def is_full(self, now: float) -> bool:
        return self.has(now) and self._level >= self.size

    def drawn(self, since: float, now: float) -> None:
        """A lane that drew last at *since* draws now: it counts as active, once in a period."""
        if not 0 <= now - self._period < ACTIVE_TIME:
            recent = 0 <= now - self._period < 2 * ACTIVE_TIME
            self._lanes_before, self._lanes_now = self._lanes_now if recent else 0, 0
            self._period = now
        if since < self._period or since > now:
            self._lanes_now += 1


class Lane:
    """One who draws on a bucket."""

    def __init__(self, bucket: Bucket, now: float) -> None:
        self._bucket = bucket
        self._level = self._most()
        self._stamp = now
        self._drawn = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether something may be drawn: within the own part, or what others leave."""
        most = self._most()
        self._level = min(most, self._level + max(0.0, now - self._stamp) * self._bucket.part)
        self._stamp = now
        return self._bucket.has(now, debt=self._level > 0)

    def spend(self, amount: int) -> None:
        """Draw *amount*, at the time at which :meth:`allows` was asked."""
        bucket = self._bucket
        bucket.drawn(self._drawn, self._stamp)
        self._drawn = self._stamp
        self._level = max(self._level - amount, -self._most())
        bucket.spend(amount)

    def _most(self) -> float:
        return max(self._bucket.part * LANE_TIME, MIN_BURST / 2)


class Credit:
    """Several lanes, of which all have to allow what passes: then each is drawn on, else none."""

    def __init__(self, *lanes: Lane) -> None:
        self._lanes = lanes

    def take(self, amount: int, now: float) -> bool:
        """Take *amount* bytes when there is something left everywhere."""
        for lane in self._lanes:
            if not lane.allows(now):
                return False
        for lane in self._lanes:
            lane.spend(amount)
        return True
