"""When a wish for a keyframe goes on its way: throttled per receiver and per source, joined at the source.

``Throttle`` lets one pass in a while; ``Wishes`` are those of one receiver; ``KeyframeRequests`` stands at the source
and joins the wishes of all subscribers, and repeats until a keyframe has come.

A keyframe takes about six frames' worth of bits from everybody who gets the stream. One every 500 ms, which a receiver
with a bad line would like, is a third of 30 frames a second; three in ten seconds are a twentieth.
"""

from __future__ import annotations

#: Seconds between two wishes of one receiver that count, and between two requests to one source.
PER_RECEIVER = 0.2
PER_SOURCE = 0.5
#: Wishes of one receiver that count in so many seconds, where others get the stream too.
MOST, WHILE = 3, 10.0
#: A request without an answer is repeated after two round trips, within these borders, seconds.
SOONEST, LATEST = 0.2, 1.0
#: Requests for one wish: with a fifth of all packets lost on both ways, one of them is answered in 98 of 100 cases.
TRIES = 4


class Throttle:
    """Lets something through at most once in *interval* seconds."""

    __slots__ = ("_interval", "_last")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether it may pass now; true starts the interval again."""
        if now - self._last < self._interval:
            return False
        self._last = now
        return True


class Wishes:
    """What one receiver has asked for (PLI and FIR). A browser repeats a wish for as long as it has it."""

    __slots__ = ("_passed",)

    def __init__(self) -> None:
        self._passed: tuple[float, ...] = ()

    def allows(self, now: float, shared: bool) -> bool:
        """Whether a wish counts; *shared*: others get the same stream and would pay for it."""
        if self._passed and now - self._passed[-1] < PER_RECEIVER:
            return False
        if shared and len(self._passed) == MOST and now - self._passed[0] < WHILE:
            return False
        self._passed = (*self._passed[1 - MOST :], now)
        return True


class KeyframeRequests:
    """The wishes for one source (an SSRC of a publisher)."""

    __slots__ = ("_answered", "_last", "_left", "_retry")

    def __init__(self) -> None:
        self._last = float("-inf")
        #: Requests that may still be sent for the last wish.
        self._left = 0
        self._answered = True
        self._retry = PER_SOURCE

    def reached(self, round_trip: float) -> None:
        """It takes *round_trip* seconds to the publisher and back."""
        self._retry = min(LATEST, max(SOONEST, 2 * round_trip))

    @property
    def waiting(self) -> bool:
        """Whether one is asked for already: a further wish joins that, and costs nobody anything."""
        return self._left > 0

    def ask(self, now: float) -> bool:
        """Somebody wants a keyframe. True: send a request now; otherwise :meth:`due` will say when."""
        self._left = TRIES
        return self.due(now)

    def due(self, now: float) -> bool:
        """True: a wish is open and a request may be sent now, which may be one that was lost once more."""
        if not self._left or now - self._last < (PER_SOURCE if self._answered else self._retry):
            return False
        self._left -= 1
        self._answered = False
        self._last = now
        return True

    def satisfied(self) -> None:
        """A keyframe came: what was asked before it is answered."""
        self._left = 0
        self._answered = True
