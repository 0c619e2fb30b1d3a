"""How fast one client may talk: a token bucket that keeps counting below zero, so that excess which goes on is seen."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    PASS = "pass"  # noqa: S105
    #: Too fast: this message is refused.
    REFUSE = "refuse"
    #: Too fast for so long that the refused ones would have filled another bucket.
    CLOSE = "close"


class TokenBucket:
    """*rate* tokens a second, *burst* at most; what is refused is owed, down to one *burst*."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled = now

    def take(self, now: float) -> Verdict:
        # A wall clock may be set back; no tokens are lost for that.
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= 1
        if self._tokens >= 0:
            return Verdict.PASS
        return Verdict.REFUSE if self._tokens >= -self._burst else Verdict.CLOSE
