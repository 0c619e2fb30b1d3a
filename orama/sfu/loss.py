"""What is missing from a publisher's stream, and when to ask for it again (RFC 4585, 6.2.1).

The first NACK goes out 20 ms after the gap was seen, so that reordering costs nothing; each further one
waits longer. The numbers are those of ``PeerMedia.tick`` and of each burst that arrives: no timer here.
"""

from __future__ import annotations

#: Seconds before the first try, and between the first two; each later gap is FACTOR times as long.
FIRST, LONGEST, FACTOR = 0.02, 0.4, 1.25
TRIES = 5
#: More missing at once than this is an outage: a keyframe helps, a thousand NACKs do not.
MOST = 256


class MissingPackets:
    """Extended sequence numbers that have not come, each with its tries."""

    __slots__ = ("_due", "_missing", "interval")

    def __init__(self) -> None:
        # index → (tries so far, time of the next)
        self._missing: dict[int, tuple[int, float]] = {}
        self._due = float("inf")
        #: Seconds between the first and the second try: the round trip where it is known.
        self.interval = 0.1

    def __len__(self) -> int:
        return len(self._missing)

    def gap(self, start: int, end: int, now: float) -> bool:
        """Indexes from *start* up to *end* (not included) were skipped. False: too many, all are given up."""
        if len(self._missing) + end - start > MOST:
            self.clear()
            return False
        due = now + FIRST
        for index in range(start, end):
            self._missing[index] = (0, due)
        self._due = min(self._due, due)
        return True

    def came(self, index: int) -> bool:
        """It arrived after all; true when it had been asked for."""
        tries, _ = self._missing.pop(index, (0, 0.0))
        return tries > 0

    def forget_before(self, index: int) -> None:
        """A keyframe starts at *index*: nothing before it is needed."""
        if self._missing:
            self._missing = {each: state for each, state in self._missing.items() if each >= index}

    def clear(self) -> None:
        self._missing.clear()
        self._due = float("inf")

    def due(self, now: float) -> list[int]:
        """What to ask for now, in order. Cheap when nothing is due."""
        if now < self._due:
            return []
        asked, soonest = [], float("inf")
        for index, (tries, when) in list(self._missing.items()):
            if when <= now:
                if tries == TRIES:
                    del self._missing[index]
                    continue
                asked.append(index)
                when = now + min(LONGEST, max(FIRST, self.interval) * FACTOR**tries)
                self._missing[index] = (tries + 1, when)
            soonest = min(soonest, when)
        self._due = soonest
        return sorted(asked)
