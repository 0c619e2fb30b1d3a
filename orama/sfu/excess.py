"""Publishers that go on sending more than ``sfu.max_bitrate`` asks of them (``b=AS``, RFC 8866, 5.8; REMB).

Nothing is left out for it: a picture with holes costs its subscribers more than bandwidth does, and theirs is shared
out anyway. It is counted, and told once.
"""

from __future__ import annotations

from collections.abc import Mapping

#: So many times what was asked for, and for how many seconds. Encoders overshoot after keyframes and scene changes.
FACTOR, PATIENCE = 1.5, 5.0


class Excess:
    """That of one publisher.

    :param limit: bits per second that each video track was to stay under.
    """

    __slots__ = ("_named", "_since", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        # Track id → since when it has sent too much.
        self._since: dict[str, float] = {}
        self._named: set[str] = set()

    def look(self, rates: Mapping[str, float], now: float) -> list[str]:
        """Track ids that have now sent too much for long enough, each once.

        :param rates: bits per second of every video track, by track id; call it once a second.
        """
        over = {track_id for track_id, rate in rates.items() if rate > FACTOR * self.limit}
        self._since = {track_id: self._since.get(track_id, now) for track_id in over}
        self._named &= rates.keys()
        found = [each for each, since in self._since.items() if now - since >= PATIENCE and each not in self._named]
        self._named.update(found)
        return found
