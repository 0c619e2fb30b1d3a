"""How often a stranger is answered: a token bucket per source address, in a table of bounded size.

A source address of UDP can be forged, so an answer to one who has not authenticated may hit somebody
else. The table is all that the server keeps about such sources; the least recently seen go first.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

#: About 2 MB when full.
MAX_SOURCES = 8192


class RateLimit:
    """Answers a second, by source IP (by /64 for IPv6).

    :param rate: answers per second; 0 means no limit.
    :param burst: how many may come at once.
    """

    def __init__(self, rate: int, burst: int, max_sources: int = MAX_SOURCES) -> None:
        self._rate = rate
        self._burst = float(max(burst, 1))
        self._max_sources = max_sources
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, ip: str, now: float) -> bool:
        """Whether one more answer may go to *ip*."""
        if not self._rate:
            return True
        source = _network(ip)
        level, stamp = self._sources.get(source, (self._burst, now))
        level = min(self._burst, level + max(0.0, now - stamp) * self._rate)
        answered = level >= 1
        self._sources[source] = (level - 1 if answered else level, now)
        self._sources.move_to_end(source)
        if len(self._sources) > self._max_sources:
            self._sources.popitem(last=False)
        return answered


def _network(ip: str) -> str:
    if ":" not in ip:
        return ip
    return ipaddress.IPv6Address(ip).packed[:8].hex()
