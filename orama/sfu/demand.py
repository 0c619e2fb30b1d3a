"""How many layers of a track its publisher is asked for: nobody has to send what nobody watches.

A layer that somebody wants is asked for at once; one that nobody wants any more is called off after a while, since
people come back, and an encoder that was stopped begins with a keyframe.
"""

from __future__ import annotations

#: Seconds that nobody must want a layer before it is called off.
PATIENCE = 2.0


class Demand:
    """The demand for one track.

    :param layers: what it has; at first all of them are sent.
    :ivar asked: so many of them, from the lowest on, the publisher has been asked for.
    """

    __slots__ = ("_fewer_since", "asked", "layers")

    def __init__(self, layers: int) -> None:
        self.layers = self.asked = layers
        self._fewer_since: float | None = None

    def look(self, wanted: int, now: float) -> bool:
        """So many are *wanted* now; whether the publisher has to be told. Call it every tick."""
        if wanted >= self.asked:
            told, self.asked, self._fewer_since = wanted > self.asked, wanted, None
            return told
        if self._fewer_since is None:
            self._fewer_since = now
        if now - self._fewer_since < PATIENCE:
            return False
        self.asked, self._fewer_since = wanted, None
        return True
