"""How much a namespace and a user may hold: allocations at a time, and bytes per second through them.

Both are counted under the namespace and the user's name without its expiry, so new credentials bring no
new quota. User names without a user part count for their namespace alone. Within a namespace the bandwidth
is shared between users, and within a user between allocations (``bandwidth``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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


class Quota:
    """What is held, by whom.

    :param limits: of every namespace; :param special: of those that have their own.
    """

    def __init__(self, limits: Limits, special: Mapping[str, Limits] | None = None) -> None:
        self._limits = limits
        self._special = dict(special or {})
        self._held: Counter[Owner] = Counter()
        self._shares: dict[Share, None] = {}
        self._buckets: dict[Owner, Bucket] = {}
        #: Of users in the bucket of their namespace.
        self._lanes: dict[Owner, Lane] = {}

    @classmethod
    def of(cls, settings: TurnSettings) -> Quota:
        return cls(limits_of(settings), {name: limits_of(settings, name) for name in settings.namespaces})

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
        for key in keys:
            limit = limits.allocations(key)
            if limit and self._held[key] >= limit:
                return None
        if not self._has_bandwidth(keys, now):
            return None
        for key in keys:
            self._held[key] += 1
        share = Share(keys, self._credit(keys, now))
        self._shares[share] = None
        return share

    def release(self, share: Share) -> None:
        """Give back what :meth:`take` gave."""
        del self._shares[share]
        for key in share.keys:
            self._held[key] -= 1
            if self._held[key] <= 0:
                del self._held[key]

    def forget_idle(self, now: float) -> None:
        """Drop the buckets of owners that hold nothing and owe nothing."""
        for key, bucket in list(self._buckets.items()):
            if key not in self._held and bucket.is_full(now):
                del self._buckets[key]
        for user in [user for user in self._lanes if user not in self._held]:
            del self._lanes[user]

    def held(self, namespace: str, user: str = "") -> int:
        """Allocations held by a namespace, or by one user of it."""
        return self._held.get((namespace, user) if user else (namespace,), 0)

    def _has_bandwidth(self, keys: tuple[Owner, ...], now: float) -> bool:
        """Whether nothing is owed: by a user, or by a namespace as far as it is this user who uses it up."""
        for key in keys[1:]:
            bucket = self._buckets.get(key)
            if bucket is not None and not bucket.has(now):
                return False
            lane = self._lanes.get(key)
            if lane is not None and not lane.allows(now):
                return False
        bucket = self._buckets.get(keys[0])
        return bucket is None or bucket.has(now, debt=True)

    def _credit(self, keys: tuple[Owner, ...], now: float) -> tuple[Credit, ...]:
        """What the bytes of an allocation of these owners are taken from."""
        limits, lanes = self.limits(keys[0][0]), []
        for key in keys:
            rate = limits.bandwidth(key)
            if not rate:
                continue
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = Bucket(rate, now)
            if len(key) < len(keys):  # the namespace's, in which a user has one lane with all of his allocations
                lane = self._lanes.get(keys[-1])
                if lane is None:
                    lane = self._lanes[keys[-1]] = Lane(bucket, now)
            else:
                lane = Lane(bucket, now)
            lanes.append(lane)
        return (Credit(*lanes),) if lanes else ()
