"""Who is speaking: audio levels (RFC 6464) smoothed per track, and the list that a room tells its clients.

Levels here are turned round: 0 is silence, 127 the loudest.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Seconds between two lists.
INTERVAL = 0.3
#: Below this nobody speaks: −35 dBov.
THRESHOLD = 127 - 35
#: A level that moved by less is the same level to a person.
STEP = 6
#: Seconds without packets after which a track is silent (Opus DTX sends one every 0.4 s).
SILENCE = 0.6
_ATTACK, _RELEASE = 0.4, 0.08


class AudioLevel:
    """The loudness of one track: up quickly, down slowly, as packets of 20 ms come."""

    __slots__ = ("_smoothed", "_time")

    def __init__(self) -> None:
        self._smoothed = 0.0
        self._time = float("-inf")

    def heard(self, value: int, now: float) -> None:
        """The extension's byte: voice activity in the top bit, −dBov in the others."""
        level = 127 - (value & 0x7F)
        self._smoothed += (level - self._smoothed) * (_ATTACK if level > self._smoothed else _RELEASE)
        self._time = now

    def reset(self) -> None:
        self._smoothed = 0.0

    def value(self, now: float) -> int:
        """0 to 127."""
        return round(self._smoothed) if now - self._time < SILENCE else 0


class ActiveSpeakers:
    """The speakers of one room, loudest first."""

    __slots__ = ("_last", "_told")

    def __init__(self) -> None:
        self._told: tuple[tuple[str, int], ...] = ()
        self._last = float("-inf")

    def update(self, levels: Mapping[str, int], now: float) -> tuple[tuple[str, int], ...] | None:
        """The new list of (peer, level) when it is time and it changed, otherwise None.

        :param levels: level of each peer's loudest track.
        """
        if now - self._last < INTERVAL:
            return None
        self._last = now
        speaking = [(peer, level) for peer, level in levels.items() if level >= THRESHOLD]
        speaking.sort(key=lambda each: (-each[1], each[0]))
        if self._same(speaking):
            return None
        self._told = tuple(speaking)
        return self._told

    def _same(self, speaking: list[tuple[str, int]]) -> bool:
        if {peer for peer, _ in speaking} != {peer for peer, _ in self._told}:
            return False
        told = dict(self._told)
        return all(abs(level - told[peer]) < STEP for peer, level in speaking)
