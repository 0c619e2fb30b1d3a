"""Buckets, and how those who draw on one share it."""

from __future__ import annotations

import heapq

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.bandwidth import LANE_TIME, MIN_BURST, Bucket, Credit, Lane

TAKES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3000), st.floats(0, 0.01)), max_size=200)
MEGABYTE = 10**6


def offered(bucket: Bucket, seconds: float, **rates: int) -> dict[str, float]:
    """What part of its packets each gets through who offers *rates* bytes per second, in packets of 1,000 bytes."""
    lanes = {name: Credit(Lane(bucket, 0.0)) for name in rates}
    sent, passed = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    queue = [(0.0, name) for name in rates]
    while queue[0][0] < seconds:
        now, name = heapq.heappop(queue)
        heapq.heappush(queue, (now + 1000 / rates[name], name))
        sent[name] += 1
        passed[name] += lanes[name].take(1000, now)
    return {name: passed[name] / sent[name] for name in rates}


class BucketTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 0.01)), max_size=200), st.integers(1000, 10**6))
    def test_bucket(self, takes: list[tuple[int, float]], rate: int) -> None:
        """Over any stretch no more passes than the rate, one full bucket and one burst."""
        bucket = Bucket(rate, 0.0)
        now, passed = 0.0, 0
        for amount, pause in takes:
            now += pause
            if bucket.take(amount, now):
                passed += amount
        self.assertLessEqual(passed, rate * now + max(rate, MIN_BURST) + 3000)

    @given(TAKES, st.integers(1000, 10**6))
    def test_lanes(self, takes: list[tuple[int, int, float]], rate: int) -> None:
        """However many draw on it, no more passes than the rate, the bucket twice (once as debt) and one burst."""
        bucket = Bucket(rate, 0.0)
        lanes = [Credit(Lane(bucket, 0.0)) for _ in range(4)]
        now, passed = 0.0, 0
        for lane, amount, pause in takes:
            now += pause
            if lanes[lane].take(amount, now):
                passed += amount
        self.assertLessEqual(passed, rate * now + 2 * max(rate, MIN_BURST) + 3000)

    def test_clock_that_goes_back(self) -> None:
        """A clock that is set back gives no credit and takes none away."""
        bucket = Bucket(1000, 1000.0)
        self.assertTrue(bucket.take(10, 500.0))
        self.assertTrue(Credit(Lane(bucket, 1000.0)).take(10, 500.0))


class FairnessTests(SynchronousTestCase):
    def test_call_beside_a_flood(self) -> None:
        """Who stays within an equal part loses nothing, while another offers a hundred times the bucket."""
        got = offered(Bucket(MEGABYTE, 0.0), 10, call=100_000, flood=20 * MEGABYTE)
        self.assertEqual(got["call"], 1.0)
        self.assertGreater(got["flood"] * 20, 0.85, "what the call leaves is not lost")

    def test_floods_share(self) -> None:
        """Those who want more than there is get about the same, whatever they offer."""
        got = offered(Bucket(MEGABYTE, 0.0), 20, small=2 * MEGABYTE, large=20 * MEGABYTE)
        small, large = got["small"] * 2, got["large"] * 20
        self.assertGreater(small, 0.4)
        self.assertLess(small + large, 1.15)

    def test_alone(self) -> None:
        """One alone gets all of it, on average."""
        self.assertGreater(offered(Bucket(MEGABYTE, 0.0), 10, only=3 * MEGABYTE)["only"] * 3, 0.99)

    def test_flood_does_not_linger(self) -> None:
        """Who used what others left is back at his part within a moment when they come."""
        bucket = Bucket(MEGABYTE, 0.0)
        flood, other = Lane(bucket, 0.0), Lane(bucket, 0.0)
        for step in range(10_000):
            if flood.allows(step / 1000):
                flood.spend(2000)
        later = 10 + 3 * LANE_TIME
        other.allows(10.0)
        other.spend(1)
        self.assertTrue(flood.allows(later))

    def test_all_or_none(self) -> None:
        """What one bucket refuses is taken from no other: a user over his limit costs his namespace nothing."""
        user, namespace = Bucket(1000, 0.0), Bucket(MEGABYTE, 0.0)
        credit = Credit(Lane(namespace, 0.0), Lane(user, 0.0))
        passed = sum(1000 for _ in range(10_000) if credit.take(1000, 0.0))
        self.assertLess(passed, 3 * MIN_BURST)
        self.assertTrue(namespace.take(MEGABYTE - passed - 1, 0.0))
        self.assertTrue(namespace.has(0.0), "nothing more was taken than what passed")

    def test_rate_may_change(self) -> None:
        """A bucket goes by its new rate at once."""
        bucket = Bucket(MEGABYTE, 0.0)
        bucket.rate = 10 * MEGABYTE
        self.assertGreater(offered(bucket, 10, only=20 * MEGABYTE)["only"] * 20, 9.9)
