"""Token buckets, one per client address, in a table that cannot grow without bound.

A bucket that nobody has asked for long enough to be full again says nothing, so the least recently
used one is what goes when the table is full. No clock of its own: ``now`` is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

#: Addresses remembered at a time; about 200 bytes each.
CAPACITY = 10_000


class TokenBuckets:
    """How often each key may do something.

    :param rate: tokens a second.
    :param burst: tokens that a full bucket holds.
    """

    def __init__(self, rate: float, burst: float, capacity: int = CAPACITY) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Take one token of *key*: 0.0 when there was one, else the seconds until there is."""
        tokens, since = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - since) * self._rate)
        wait = 0.0
        if tokens >= 1.0:
            tokens -= 1.0
        else:
            wait = (1.0 - tokens) / self._rate
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return wait


def bucket_key(address: str) -> str:
    """The name under which *address* is counted: an IPv6 host has a whole /64, so that is one client."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return f"{IPv6Address(int(ip) >> 64 << 64)}/64"
    return str(ip)
