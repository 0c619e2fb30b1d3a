"""Who is speaking: audio levels (RFC 6464) smoothed per track, and the list that a room tells its clients.

Levels here are turned round: 0 is silence, 127 the loudest.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Seconds between two lists.
INTERVAL = 0.3
#: Below this nobody speaks: −35 dBov.
THRESHOLD = 127 - 35
#: Seconds that somebody stays in the list after the last loud moment: between two words nobody goes out and in again.
STAY = 1.0
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

    @property
    def known(self) -> bool:
        """Whether any packet has told a level."""
        return self._time > float("-inf")

    def reset(self) -> None:
        self._smoothed = 0.0

    def value(self, now: float) -> int:
        """0 to 127."""
        return round(self._smoothed) if now - self._time < SILENCE else 0


class ActiveSpeakers:
    """The speakers of one room, loudest first.

    :ivar loud: the peers above the threshold at the last look, which was at *looked*.
    """

    __slots__ = ("_heard", "_told", "looked", "loud")

    def __init__(self) -> None:
        self.loud: frozenset[str] = frozenset()
        self.looked = float("-inf")
        self._told: tuple[tuple[str, int], ...] = ()
        #: Peers → when they were last above the threshold.
        self._heard: dict[str, float] = {}

    def update(self, levels: Mapping[str, int], now: float) -> tuple[tuple[str, int], ...] | None:
        """The new list of (peer, level) when it is time and it changed, otherwise None.

        :param levels: level of each peer's loudest track that is not muted.
        """
        if now - self.looked < INTERVAL:
            return None
        self.looked = now
        self.loud = frozenset(peer for peer, level in levels.items() if level >= THRESHOLD)
        self._heard = {peer: at for peer, at in self._heard.items() if now - at < STAY}
        self._heard.update(dict.fromkeys(self.loud, now))
        speaking = [(peer, level) for peer, level in levels.items() if peer in self._heard]
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
