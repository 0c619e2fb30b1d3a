"""How much a namespace and a user may hold: allocations at a time, and bytes per second through them.

Both are counted under the namespace and the user's name without its expiry, so new credentials bring no
new quota. User names without a user part count for their namespace alone. Within a namespace the bandwidth
is shared between users, and within a user between allocations (``bandwidth``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from attrs import define, field, frozen

from orama.settings import TurnSettings
from orama.turn.bandwidth import Bucket, Credit, Lane

#: (namespace,) or (namespace, user).
Owner = tuple[str, ...]


@frozen
class Limits:
    """Those of one namespace; 0 is none. Bandwidth is in bytes per second, both directions together."""

    allocations_per_user: int = 0
    allocations_per_namespace: int = 0
    bandwidth_per_user: int = 0
    bandwidth_per_namespace: int = 0

    def allocations(self, owner: Owner) -> int:
        return self.allocations_per_namespace if len(owner) == 1 else self.allocations_per_user

    def bandwidth(self, owner: Owner) -> int:
        return self.bandwidth_per_namespace if len(owner) == 1 else self.bandwidth_per_user


def limits_of(settings: TurnSettings, namespace: str = "") -> Limits:
    """Those of *namespace*: its own, and for the rest those of all."""
    own = settings.namespaces.get(namespace)

    def limit(name: str) -> int:
        special = None if own is None else getattr(own, name)
        return int(getattr(settings, name) if special is None else special)

    return Limits(
        limit("allocations_per_user"),
        limit("allocations_per_namespace"),
        limit("bandwidth_per_user"),
        limit("bandwidth_per_namespace"),
    )


@define(eq=False)
class Share:
    """One allocation's part of its owner's quota."""

    #: The namespace, and the user where there is one.
    keys: tuple[Owner, ...]
    #: What each of its bytes is taken from; empty when there is no limit.
    buckets: tuple[Credit, ...] = field(default=(), repr=False)


class Ledger(Protocol):
    """Where it is written down what owners hold: of one process, or of several."""

    def take(self, wanted: Sequence[tuple[Owner, int]], now: float) -> bool:
        """Count one more allocation for each owner, unless one has its limit (0 is none); then nothing is counted."""

    def release(self, owners: Iterable[Owner]) -> None:
        """Count one less for each."""

    def held(self, owner: Owner) -> int: ...

    def bucket(self, owner: Owner, rate: int, now: float) -> Bucket:
        """What the bytes of *owner* are taken from."""


class Counts:
    """The ledger of a process that is alone."""

    def __init__(self) -> None:
        self._held: Counter[Owner] = Counter()

    def take(self, wanted: Sequence[tuple[Owner, int]], now: float) -> bool:
        if any(limit and self._held[owner] >= limit for owner, limit in wanted):
            return False
        self._held.update(owner for owner, _ in wanted)
        return True

    def release(self, owners: Iterable[Owner]) -> None:
        for owner in owners:
            self._held[owner] -= 1
            if self._held[owner] <= 0:
                del self._held[owner]

    def held(self, owner: Owner) -> int:
        return self._held.get(owner, 0)

    def bucket(self, owner: Owner, rate: int, now: float) -> Bucket:
        return Bucket(rate, now)


class Quota:
    """What is held, by whom.

    :param limits: of every namespace; :param special: of those that have their own.
    :param ledger: this process's own unless somebody else counts with it.
    """

    def __init__(
        self, limits: Limits, special: Mapping[str, Limits] | None = None, ledger: Ledger | None = None
    ) -> None:
        self._limits = limits
        self._special = dict(special or {})
        self._ledger = Counts() if ledger is None else ledger
        self._shares: dict[Share, None] = {}
        self._buckets: dict[Owner, Bucket] = {}
        #: Of users in the bucket of their namespace.
        self._lanes: dict[Owner, Lane] = {}

    @classmethod
    def of(cls, settings: TurnSettings, ledger: Ledger | None = None) -> Quota:
        return cls(limits_of(settings), {name: limits_of(settings, name) for name in settings.namespaces}, ledger)

    def configure(self, settings: TurnSettings, now: float) -> None:
        """Go by other limits from now on; who holds more keeps it, and gets no more."""
        self._limits = limits_of(settings)
        self._special = {name: limits_of(settings, name) for name in settings.namespaces}
        for owner, bucket in list(self._buckets.items()):
            rate = self.limits(owner[0]).bandwidth(owner)
            if rate:
                bucket.rate = rate
            else:
                del self._buckets[owner]
        self._lanes = {user: lane for user, lane in self._lanes.items() if user[:1] in self._buckets}
        for share in self._shares:
            share.buckets = self._credit(share.keys, now)

    def limits(self, namespace: str) -> Limits:
        return self._special.get(namespace, self._limits)

    def take(self, namespace: str, user: str, now: float) -> Share | None:
        """Room for one more allocation, or None when the owner has enough already."""
        keys: tuple[Owner, ...] = ((namespace,), (namespace, user)) if user else ((namespace,),)
        limits = self.limits(namespace)
        if not self._has_bandwidth(keys, now):
            return None
        if not self._ledger.take([(key, limits.allocations(key)) for key in keys], now):
            return None
        share = Share(keys, self._credit(keys, now))
        self._shares[share] = None
        return share

    def release(self, share: Share) -> None:
        """Give back what :meth:`take` gave."""
        del self._shares[share]
        self._ledger.release(share.keys)

    def forget_idle(self, now: float) -> None:
        """Drop the buckets of owners that hold nothing and owe nothing."""
        for key, bucket in list(self._buckets.items()):
            if not self._ledger.held(key) and bucket.is_full(now):
                del self._buckets[key]
        for user in [user for user in self._lanes if not self._ledger.held(user)]:
            del self._lanes[user]

    def held(self, namespace: str, user: str = "") -> int:
        """Allocations held by a namespace, or by one user of it."""
        return self._ledger.held((namespace, user) if user else (namespace,))

    def _has_bandwidth(self, keys: tuple[Owner, ...], now: float) -> bool:
        """Whether nothing is owed: by a user, or by a namespace as far as it is this user who uses it up."""
        for key in keys[1:]:
            bucket = self._bucket(key, now)
            if bucket is not None and not bucket.has(now):
                return False
            lane = self._lanes.get(key)
            if lane is not None and not lane.allows(now):
                return False
        bucket = self._bucket(keys[0], now)
        return bucket is None or bucket.has(now, debt=True)

    def _bucket(self, key: Owner, now: float) -> Bucket | None:
        """The one of *key*, None where its bandwidth has no limit."""
        bucket, rate = self._buckets.get(key), self.limits(key[0]).bandwidth(key)
        if bucket is None and rate:
            bucket = self._buckets[key] = self._ledger.bucket(key, rate, now)
        return bucket

    def _credit(self, keys: tuple[Owner, ...], now: float) -> tuple[Credit, ...]:
        """What the bytes of an allocation of these owners are taken from."""
        lanes = []
        for key in keys:
            bucket = self._bucket(key, now)
            if bucket is None:
                continue
            if len(key) < len(keys):  # the namespace's, in which a user has one lane with all of his allocations
                lane = self._lanes.get(keys[-1])
                if lane is None:
                    lane = self._lanes[keys[-1]] = Lane(bucket, now)
            else:
                lane = Lane(bucket, now)
            lanes.append(lane)
        return (Credit(*lanes),) if lanes else ()
