"""When to try again what has failed: soon at first, then less and less often."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

#: Seconds after the first failure, and at most.
FIRST = 1.0
LONGEST = 60.0


class Backoff:
    """One for all that may fail, each under a key of its own."""

    def __init__(self, clock: IReactorTime, first: float = FIRST, longest: float = LONGEST) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._failed: dict[str, tuple[float, float, str]] = {}

    def due(self, key: str) -> bool:
        """Whether *key* may be tried now."""
        return key not in self._failed or self._clock.seconds() >= self._failed[key][0]

    def failed(self, key: str, why: str) -> bool:
        """It went wrong; True when it had not, or for another reason, so that somebody should be told."""
        known = self._failed.get(key)
        delay = self._first if known is None else min(self._longest, 2 * known[1])
        self._failed[key] = self._clock.seconds() + delay, delay, why
        return known is None or known[2] != why

    def succeeded(self, key: str) -> bool:
        """It went well; True when it had not before."""
        return self._failed.pop(key, None) is not None

    def why(self, key: str) -> str | None:
        """What went wrong last, None when nothing did."""
        return self._failed[key][2] if key in self._failed else None

    def retry(self, key: str) -> None:
        """Somebody asks for it: *key* may be tried at once, and is as failed as it was."""
        if key in self._failed:
            _, delay, why = self._failed[key]
            self._failed[key] = self._clock.seconds(), delay, why
