"""How much a namespace and a user may hold: allocations at a time, and bytes per second through them.

Both are counted under the namespace and the user's name without its expiry, so new credentials bring no
new quota. User names without a user part count for their namespace alone.
"""

from __future__ import annotations

from collections import Counter

from attrs import field, frozen

#: A bucket holds a second's worth, and never less than one read of a socket.
MIN_BURST = 65536

_Key = tuple[str, ...]


class Bucket:
    """A token bucket in bytes. It may go into debt by one burst, so that a burst larger than it passes.

    :param rate: bytes per second.
    """

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._size = max(rate, MIN_BURST)
        self._level = float(self._size)
        self._stamp = now

    def has(self, now: float) -> bool:
        """Whether anything is left."""
        self._level = min(self._size, self._level + max(0.0, now - self._stamp) * self._rate)
        self._stamp = now
        return self._level > 0

    def take(self, amount: int, now: float) -> bool:
        """Take *amount* when anything is left."""
        if not self.has(now):
            return False
        self._level -= amount
        return True

    def is_full(self, now: float) -> bool:
        return self.has(now) and self._level >= self._size


@frozen(eq=False)
class Share:
    """One allocation's part of its owner's quota."""

    keys: tuple[_Key, ...]
    #: The buckets that each of its bytes is taken from; empty when there is no limit.
    buckets: tuple[Bucket, ...] = field(repr=False)


class Quota:
    """What is held, by whom. A limit of 0 is none.

    :param per_user: allocations; :param per_namespace: likewise.
    :param user_bandwidth: bytes per second, both directions together; :param namespace_bandwidth: likewise.
    """

    def __init__(
        self, per_user: int, per_namespace: int, user_bandwidth: int = 0, namespace_bandwidth: int = 0
    ) -> None:
        #: By the length of the key: (namespace,) or (namespace, user).
        self._allocations = {1: per_namespace, 2: per_user}
        self._bandwidth = {1: namespace_bandwidth, 2: user_bandwidth}
        self._held: Counter[_Key] = Counter()
        self._buckets: dict[_Key, Bucket] = {}

    def take(self, namespace: str, user: str, now: float) -> Share | None:
        """Room for one more allocation, or None when the owner has enough already."""
        keys: tuple[_Key, ...] = ((namespace,), (namespace, user)) if user else ((namespace,),)
        for key in keys:
            limit = self._allocations[len(key)]
            if limit and self._held[key] >= limit:
                return None
            bucket = self._buckets.get(key)
            if bucket is not None and not bucket.has(now):
                return None
        for key in keys:
            self._held[key] += 1
            rate = self._bandwidth[len(key)]
            if rate and key not in self._buckets:
                self._buckets[key] = Bucket(rate, now)
        return Share(keys, tuple(self._buckets[key] for key in keys if key in self._buckets))

    def release(self, share: Share) -> None:
        """Give back what :meth:`take` gave."""
        for key in share.keys:
            self._held[key] -= 1
            if self._held[key] <= 0:
                del self._held[key]

    def forget_idle(self, now: float) -> None:
        """Drop the buckets of owners that hold nothing and owe nothing."""
        for key, bucket in list(self._buckets.items()):
            if key not in self._held and bucket.is_full(now):
                del self._buckets[key]

    def held(self, namespace: str, user: str = "") -> int:
        """Allocations held by a namespace, or by one user of it."""
        return self._held.get((namespace, user) if user else (namespace,), 0)
