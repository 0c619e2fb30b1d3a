"""When a wish for a keyframe goes on its way: throttled per receiver and per source, never lost.

``Throttle`` lets one pass in a while; ``KeyframeRequests`` stands at the source, joins the wishes of all
subscribers, and repeats until a keyframe has come.
"""

from __future__ import annotations

#: Seconds between two wishes of one receiver that count, and between two requests to one source.
PER_RECEIVER = 0.2
PER_SOURCE = 0.5


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


class KeyframeRequests:
    """The wishes for one source (an SSRC of a publisher)."""

    __slots__ = ("_throttle", "_wanted")

    def __init__(self) -> None:
        self._throttle = Throttle(PER_SOURCE)
        self._wanted = False

    def ask(self, now: float) -> bool:
        """Somebody wants a keyframe. True: send a request now; otherwise :meth:`due` will say when."""
        self._wanted = True
        return self.due(now)

    def due(self, now: float) -> bool:
        """True: a wish is open and a request may be sent now."""
        if not self._wanted or not self._throttle.allows(now):
            return False
        self._wanted = False
        return True

    def satisfied(self) -> None:
        """A keyframe came: what was asked before it is answered."""
        self._wanted = False
