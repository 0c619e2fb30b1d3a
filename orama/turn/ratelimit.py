"""How often strangers are answered over UDP: token buckets for each source and for its prefix, in tables of fixed size.

A source address of UDP can be forged, so an answer to one who has not authenticated may hit somebody else, or, with
addresses drawn from a prefix, everybody there. A table that drops whom it has not seen for long would forget the victim
among forged sources. So nothing is dropped here: a source has a bucket in each of two rows, at places that a keyed hash
gives, and is answered while one of them has a token. Who shares a place with a flood in one row does not in the other.
"""

from __future__ import annotations

import socket
from array import array
from hashlib import blake2b

from twisted.logger import Logger

#: Buckets in a row of a table: 16 bytes each, half a megabyte for all four rows.
PLACES = 1 << 13
#: Bytes of an address that make a source and a prefix: /32 and /24, or /64 and /48 for IPv6.
_IPV4, _IPV6 = (4, 3), (8, 6)
#: Sources named in the log in one minute.
MAX_LOGGED = 64
LOG_TIME = 60.0

_log = Logger()


class _Table:
    """Two rows of token buckets.

    :param rate: tokens per second, 0 for no limit; :param burst: how many a bucket holds.
    """

    def __init__(self, rate: int, burst: int) -> None:
        self._rows = tuple((array("d", [float(burst)]) * PLACES, array("d", [0.0]) * PLACES) for _ in range(2))
        self.configure(rate, burst)

    def configure(self, rate: int, burst: int) -> None:
        self.rate = rate
        self._burst = float(max(burst, 1))

    def has(self, places: tuple[int, int], now: float) -> bool:
        """Whether there is a token at one of *places*."""
        if not self.rate:
            return True
        found = False
        for (levels, stamps), place in zip(self._rows, places, strict=True):
            level = min(self._burst, levels[place] + max(0.0, now - stamps[place]) * self.rate)
            levels[place], stamps[place] = level, now
            found = found or level >= 1
        return found

    def take(self, places: tuple[int, int]) -> None:
        """Take a token from each place, as far as it has one."""
        for (levels, _), place in zip(self._rows, places, strict=True):
            levels[place] = max(0.0, levels[place] - 1)


class RateLimit:
    """Answers a second, by source (IP, or /64 for IPv6) and by prefix (/24, or /48).

    :param rate: answers per second to one source, :param burst: how many may come at once; 0 means no limit.
    :param prefix_rate: likewise for all the sources of one prefix.
    :param key: random bytes; without them nobody can choose whose place he shares.
    """

    def __init__(self, rate: int, burst: int, prefix_rate: int = 0, prefix_burst: int = 1, *, key: bytes = b"") -> None:
        self._key = key
        self._sources = _Table(rate, burst)
        self._prefixes = _Table(prefix_rate, prefix_burst)
        self._logged: set[str] = set()
        self._minute = 0.0

    def configure(self, rate: int, burst: int, prefix_rate: int, prefix_burst: int) -> None:
        """Go by other limits from now on."""
        self._sources.configure(rate, burst)
        self._prefixes.configure(prefix_rate, prefix_burst)

    def take(self, ip: str, now: float) -> bool:
        """Whether one more answer may go to *ip*; what is refused is logged once a minute for each source."""
        packed = socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)
        source_length, prefix_length = _IPV4 if len(packed) == 4 else _IPV6
        source, prefix = packed[:source_length], packed[:prefix_length]
        of_source, of_prefix = self._places(source), self._places(prefix)
        if not self._sources.has(of_source, now):
            self._refused(packed, source, now)
            return False
        if not self._prefixes.has(of_prefix, now):
            self._refused(packed, prefix, now)
            return False
        self._sources.take(of_source)
        self._prefixes.take(of_prefix)
        return True

    def _places(self, source: bytes) -> tuple[int, int]:
        number = int.from_bytes(blake2b(source, digest_size=8, key=self._key).digest(), "big")
        return number % PLACES, (number >> 32) % PLACES

    def _refused(self, packed: bytes, source: bytes, now: float) -> None:
        if not 0 <= now - self._minute < LOG_TIME:
            self._minute = now
            self._logged.clear()
        padded = source.ljust(len(packed), b"\0")
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        name = socket.inet_ntop(family, padded) + ("" if len(source) == 4 else f"/{8 * len(source)}")
        if name in self._logged or len(self._logged) >= MAX_LOGGED:
            return
        self._logged.add(name)
        _log.warn("strangers at {source} are rate limited", source=name)
