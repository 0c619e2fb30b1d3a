"""Whether a queue grows on the way to a client: the delay part of Google congestion control.

draft-ietf-rmcat-gcc-02, 5.2 to 5.4, with the trend line that libwebrtc has in place of the Kalman filter: groups
of packets that left within 5 ms, the differences between groups in sending and arrival, the slope of their smoothed
sum, and a threshold that adapts to how much the path jitters.

Our packets leave in bursts, there is no pacer: ten packets of a frame leave at one time and come one after the other.
So a group's time is that of its first packet, which has waited for what was there before it and not for its own group.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

#: Seconds within which packets belong to one group; what arrives closer together than it was sent belongs together too.
GROUP = 0.005
LONGEST_GROUP = 0.1
#: Groups that the trend is taken over; the smoothing of the delay; the gain before the comparison with the threshold.
WINDOW, SMOOTHING, GAIN, MOST_DELTAS = 20, 0.9, 4.0, 60
#: The threshold, milliseconds (draft, 5.4): where it starts, its borders, how fast it follows down and up.
THRESHOLD, LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 12.5, 6.0, 600.0
FOLLOW_DOWN, FOLLOW_UP, OUTLIER = 0.039, 0.0087, 15.0
#: Seconds of too steep a trend that are overuse.
OVERUSE_TIME = 0.01
#: Seconds of waiting below which nothing is overuse: a busy machine does as much.
LEAST_QUEUE = 0.015
#: A silence in sending that long, or an arrival clock that leaps by as much, begins the trend anew.
BREAK = 3.0
#: Seconds over which the least delay is remembered.
MEMORY = 8.0
#: Seconds of waiting from which a queue that merely stays is too long, and the pause between two verdicts for that.
TOO_LONG, INSIST = 0.2, 1.0


class Usage(Enum):
    """What the queue at the narrowest link does."""

    UNDER = "shrinks"
    NORMAL = "stays"
    OVER = "grows"


class DelayTrend:
    """Takes the arrivals of runs in the order of sending.

    :ivar usage: the verdict after the last :meth:`judge`.
    """

    __slots__ = (
        "_accumulated",
        "_before",
        "_deltas",
        "_floor",
        "_floors",
        "_group",
        "_insisted",
        "_judged",
        "_last_trend",
        "_over",
        "_over_count",
        "_points",
        "_smoothed",
        "_threshold",
        "usage",
    )

    def __init__(self) -> None:
        self.usage = Usage.NORMAL
        self._threshold = THRESHOLD
        self._judged: float | None = None
        self._last_trend = 0.0
        self._over = -1.0
        self._over_count = 0
        self._insisted = float("-inf")
        self.restart()

    def restart(self) -> None:
        """Forget all of the past but the threshold."""
        # (sent, arrived) of the first packet of the group, and the last arrival; the first two of the one before.
        self._group: tuple[float, float, float] | None = None
        self._before: tuple[float, float] | None = None
        # Milliseconds: arrival, smoothed sum of the differences.
        self._points: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._deltas = 0
        self._accumulated = self._smoothed = 0.0
        self._floor = 0.0
        self._floors: deque[tuple[float, float]] = deque(maxlen=2048)

    @property
    def queueing(self) -> float:
        """Seconds that packets wait now beyond the least of the last seconds."""
        return max(0.0, self._smoothed - self._floor) / 1000

    @property
    def _waiting(self) -> float:
        """The same without smoothing where that is less: a queue that has just emptied is none."""
        return min(self.queueing, max(0.0, self._accumulated - self._floor) / 1000)

    def add(self, sent: float, first: float, last: float) -> None:
        """A run that left at *sent* arrived from *first* to *last* (0.3 µs; 1 when it begins a group)."""
        group = self._group
        if group is None:
            self._group = (sent, first, last)
            return
        start, arrived, end = group
        if sent < start:
            return
        after = first - end
        if sent - start <= GROUP or (
            0 <= after <= GROUP and after < sent - start - (end - arrived) and last - arrived < LONGEST_GROUP
        ):
            if last > end:
                self._group = (start, arrived, last)
            return
        if self._before is not None:
            self._difference(start - self._before[0], arrived - self._before[1], arrived)
        self._before, self._group = (start, arrived), (sent, first, last)

    def _difference(self, sent: float, arrived: float, at: float) -> None:
        if not -BREAK < arrived - sent < BREAK or sent > BREAK:
            self.restart()
            return
        self._deltas += 1
        self._accumulated += (arrived - sent) * 1000
        self._smoothed = smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * self._accumulated
        self._points.append((at * 1000, smoothed))
        floors = self._floors
        while floors and floors[-1][1] >= smoothed:
            floors.pop()
        floors.append((at, smoothed))
        while floors[0][0] < at - MEMORY:
            floors.popleft()
        self._floor = floors[0][1]

    def forget(self) -> None:
        """The rate was lowered: how the queue grew before says nothing any more."""
        self._points.clear()

    def judge(self, now: float) -> Usage:
        """Say what the queue does, once for each feedback (4 µs)."""
        elapsed = 0.0 if self._judged is None else now - self._judged
        self._judged = now
        if len(self._points) < WINDOW // 2:
            self.usage = Usage.NORMAL
            return self.usage
        slope = _slope(self._points)
        trend = min(self._deltas, MOST_DELTAS) * slope * GAIN
        if trend > self._threshold:
            self._over = elapsed / 2 if self._over < 0 else self._over + elapsed
            self._over_count += 1
            long = self._over > OVERUSE_TIME and self._over_count > 1
            if long and slope >= self._last_trend and self._waiting > LEAST_QUEUE:
                self._over, self._over_count = 0.0, 0
                self.usage = Usage.OVER
        else:
            self._over, self._over_count = -1.0, 0
            self.usage = Usage.UNDER if trend < -self._threshold else Usage.NORMAL
            if self.usage is Usage.NORMAL and self._waiting > TOO_LONG and now - self._insisted > INSIST:
                # A full queue grows no longer: without this it would stand, and be all of the delay.
                self.usage, self._insisted = Usage.OVER, now
        self._last_trend = slope
        self._adapt(abs(trend), elapsed)
        return self.usage

    def _adapt(self, trend: float, elapsed: float) -> None:
        if trend > self._threshold + OUTLIER:
            return
        pace = FOLLOW_DOWN if trend < self._threshold else FOLLOW_UP
        threshold = self._threshold + pace * (trend - self._threshold) * min(elapsed * 1000, 100.0)
        self._threshold = min(HIGHEST_THRESHOLD, max(LOWEST_THRESHOLD, threshold))


def _slope(points: deque[tuple[float, float]]) -> float:
    """Of the line through *points* with the least squares."""
    count, origin = len(points), points[0][0]
    x_sum = y_sum = xx_sum = xy_sum = 0.0
    for x, y in points:
        x -= origin
        x_sum += x
        y_sum += y
        xx_sum += x * x
        xy_sum += x * y
    below = count * xx_sum - x_sum * x_sum
    return (count * xy_sum - x_sum * y_sum) / below if below > 0 else 0.0
