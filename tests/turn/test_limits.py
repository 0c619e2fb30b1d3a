"""Quota, bandwidth, nonces, the rate limit and the relay ports: the small parts that say no."""

from __future__ import annotations

import itertools
import random
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from orama.settings import NamespaceTurnSettings, TurnSettings
from orama.turn.nonce import Nonces
from orama.turn.ports import RESERVATION_TIME, RelayPorts
from orama.turn.quota import Limits, Quota
from orama.turn.ratelimit import MAX_LOGGED, RateLimit

CLIENT = ("203.0.113.9", 40000)


class QuotaTests(SynchronousTestCase):
    def test_per_user_and_namespace(self) -> None:
        """The namespace's limit and each user's count by themselves; what is released is free again."""
        quota = Quota(Limits(2, 3))
        ann = quota.take("n", "ann", 0)
        assert ann is not None
        self.assertIsNotNone(quota.take("n", "ann", 0))
        self.assertIsNone(quota.take("n", "ann", 0))
        self.assertIsNotNone(quota.take("n", "bob", 0))
        self.assertIsNone(quota.take("n", "bob", 0), "the namespace is full")
        self.assertIsNotNone(quota.take("m", "ann", 0), "another namespace's ann is somebody else")
        quota.release(ann)
        self.assertIsNotNone(quota.take("n", "bob", 0))
        self.assertEqual((quota.held("n"), quota.held("n", "ann"), quota.held("n", "bob")), (3, 1, 2))

    def test_refusal_takes_nothing(self) -> None:
        """A refused take leaves the counts as they were."""
        quota = Quota(Limits(1, 9))
        quota.take("n", "ann", 0)
        for _ in range(5):
            self.assertIsNone(quota.take("n", "ann", 0))
        self.assertEqual(quota.held("n"), 1)

    def test_nobody(self) -> None:
        """Names without a user part count for the namespace alone."""
        quota = Quota(Limits(1, 2))
        self.assertIsNotNone(quota.take("n", "", 0))
        self.assertIsNotNone(quota.take("n", "", 0))
        self.assertIsNone(quota.take("n", "", 0))

    def test_no_limit(self) -> None:
        """0 is no limit."""
        quota = Quota(Limits())
        self.assertTrue(all(quota.take("n", "u", 0) for _ in range(5000)))

    def test_bandwidth_is_shared(self) -> None:
        """All allocations of a user draw on one bucket, all users of a namespace on another, others on none of them."""
        quota = Quota(Limits(bandwidth_per_user=10**6, bandwidth_per_namespace=2 * 10**6))
        owners = [("n", "ann"), ("n", "ann"), ("n", "bob"), ("m", "ann")]
        shares = [quota.take(*owner, 0) for owner in owners]
        ann, again, bob, other = (share.buckets[0] for share in shares if share is not None)
        self.assertTrue(ann.take(2 * 10**6, 0))
        self.assertFalse(again.take(1, 0), "ann's million is gone")
        passed = sum(bob.take(10**5, 0) for _ in range(100))
        self.assertLess(passed, 25, "of the namespace's two millions ann has had hers")
        self.assertTrue(other.take(10**6, 0))

    def test_over_bandwidth(self) -> None:
        """Who owes bytes gets no new allocation until they are paid; new credentials change nothing."""
        quota = Quota(Limits(bandwidth_per_user=10**5))
        share = quota.take("n", "ann", 0)
        assert share is not None
        (bucket,) = share.buckets
        self.assertTrue(bucket.take(2 * 10**5, 0))
        quota.release(share)
        quota.forget_idle(0)
        self.assertIsNone(quota.take("n", "ann", 0.5))
        self.assertIsNotNone(quota.take("n", "ann", 1.5))

    def test_buckets_are_forgotten(self) -> None:
        """A user who is gone and owes nothing leaves nothing behind."""
        quota = Quota(Limits(bandwidth_per_user=10**5))
        for user in range(100):
            share = quota.take("n", str(user), 0)
            assert share is not None
            quota.release(share)
        quota.forget_idle(1)
        self.assertEqual(len(quota._buckets), 0)

    def test_special(self) -> None:
        """A namespace with limits of its own has them, and the others' for what it does not say."""
        settings = TurnSettings(
            allocations_per_user=1,
            allocations_per_namespace=2,
            namespaces={"big": NamespaceTurnSettings(allocations_per_namespace=3, bandwidth_per_user=5)},
        )
        quota = Quota.of(settings)
        self.assertEqual(quota.limits("big"), Limits(1, 3, 5, 0))
        self.assertEqual(quota.limits("n"), Limits(1, 2))
        self.assertEqual(sum(quota.take("big", "", 0) is not None for _ in range(9)), 3)
        self.assertEqual(sum(quota.take("n", "", 0) is not None for _ in range(9)), 2)

    def test_configure(self) -> None:
        """Other limits hold at once: who has more keeps it and gets no more, and bandwidth is that of what there is."""
        quota = Quota.of(TurnSettings())
        shares = [share for share in (quota.take("n", "ann", 0) for _ in range(3)) if share is not None]
        self.assertEqual([share.buckets for share in shares], [(), (), ()])
        quota.configure(TurnSettings(allocations_per_user=2, bandwidth_per_user=10**5), 0)
        self.assertIsNone(quota.take("n", "ann", 0))
        (credit,) = shares[0].buckets
        self.assertLess(sum(credit.take(1000, 0) for _ in range(10**4)), 210)
        quota.configure(TurnSettings(allocations_per_user=4), 0)
        self.assertEqual([share.buckets for share in shares], [(), (), ()])
        self.assertIsNotNone(quota.take("n", "ann", 0))
        for share in shares:
            quota.release(share)
        self.assertEqual(quota.held("n", "ann"), 1)

    def test_flood_of_one_user(self) -> None:
        """A user who uses up the namespace's bandwidth gets no new allocation; another one does."""
        quota = Quota(Limits(bandwidth_per_namespace=10**6))
        share = quota.take("n", "ann", 0)
        assert share is not None
        (credit,) = share.buckets
        while credit.take(10**4, 0):
            pass
        self.assertIsNone(quota.take("n", "ann", 0))
        self.assertIsNotNone(quota.take("n", "bob", 0))


class NonceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.nonces = Nonces(b"k" * 32, 3600)

    def test_lifetime(self) -> None:
        """A nonce is good for its lifetime and not longer."""
        nonce = self.nonces.issue(CLIENT, 1000.9)
        self.assertTrue(self.nonces.good(nonce, CLIENT, 1000.9))
        self.assertTrue(self.nonces.good(nonce, CLIENT, 4600))
        self.assertFalse(self.nonces.good(nonce, CLIENT, 4601))

    def test_comes_not_back(self) -> None:
        """When the sixteen bits of time come round, the old nonce stays dead; nor is one good before its time."""
        nonce = self.nonces.issue(CLIENT, 70000)
        self.assertFalse(self.nonces.good(nonce, CLIENT, 70000 + 0x10000))
        self.assertFalse(self.nonces.good(nonce, CLIENT, 70000 - 10))

    def test_bound_to_address(self) -> None:
        """It is good for the address and port that it was issued to."""
        nonce = self.nonces.issue(CLIENT, 0)
        for other in (("203.0.113.9", 40001), ("203.0.113.8", 40000), ("203.0.113.94", 0)):
            self.assertFalse(self.nonces.good(nonce, other, 0))

    def test_of_another_process(self) -> None:
        """It is good under the key that made it: a fleet that shares the key shares its nonces."""
        nonce = self.nonces.issue(CLIENT, 0)
        self.assertTrue(Nonces(b"k" * 32, 60).good(nonce, CLIENT, 0))
        self.assertFalse(Nonces(b"l" * 32, 60).good(nonce, CLIENT, 0))

    def test_length(self) -> None:
        """Eight characters, whatever the time: the 401 has to stay small."""
        for now in (0, 0xFFFF, 0x10000, 2**33):
            self.assertEqual(len(self.nonces.issue(CLIENT, now)), 8)

    def test_lifetime_has_an_end(self) -> None:
        """A lifetime beyond what the sixteen bits can tell apart is cut."""
        nonces = Nonces(b"k", 10**6)
        nonce = nonces.issue(CLIENT, 0)
        self.assertFalse(nonces.good(nonce, CLIENT, 0xF000))

    @given(st.binary(max_size=12))
    def test_forged(self, nonce: bytes) -> None:
        """Any bytes are refused without an exception."""
        self.assertFalse(self.nonces.good(nonce, CLIENT, 5000))


class RateLimitTests(SynchronousTestCase):
    def test_burst_then_rate(self) -> None:
        """So many at once, then so many a second, for each address by itself."""
        limit = RateLimit(10, 20)
        self.assertEqual(sum(limit.take("198.51.100.1", 0) for _ in range(100)), 20)
        self.assertEqual(sum(limit.take("198.51.100.1", 1.0) for _ in range(100)), 10)
        self.assertTrue(limit.take("198.51.100.2", 1.0))

    def test_by_prefix(self) -> None:
        """The sources of one /24, or of one /48, have a limit together, which one source alone does not use up."""
        for addresses, elsewhere in (
            ([f"198.51.100.{number}" for number in range(256)], "198.51.101.1"),
            ([f"2001:db8:1:{number:x}::1" for number in range(256)], "2001:db8:2::1"),
        ):
            limit = RateLimit(10, 20, 50, 100)
            self.assertEqual(sum(limit.take(addresses[0], 0) for _ in range(1000)), 20)
            self.assertEqual(sum(limit.take(ip, 0) for ip in addresses[1:] for _ in range(3)), 80)
            self.assertEqual(sum(limit.take(ip, 1.0) for ip in addresses), 50)
            self.assertTrue(limit.take(elsewhere, 0))

    def test_forged_sources(self) -> None:
        """A victim among ever so many forged sources gets no more than its limit: nothing is forgotten for them."""
        limit = RateLimit(10, 20, key=b"k")
        forged = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(60000))
        got = 0
        for ip in forged:
            limit.take(ip, 0)
            got += limit.take("198.51.100.1", 0)
        self.assertLessEqual(got, 20)

    def test_others_beside_a_flood(self) -> None:
        """Floods from a few sources, as large as they like, leave everybody else his answers."""
        limit = RateLimit(10, 20, 1000, 1000, key=b"k")
        for flood in range(100):
            for _ in range(100):
                limit.take(f"203.0.{flood}.1", 0)
        answered = sum(limit.take(f"198.51.{number}.1", 0) for number in range(200))
        self.assertGreaterEqual(answered, 199)

    def test_bounded(self) -> None:
        """What is kept does not grow, however many sources there are."""
        limit = RateLimit(10, 20, 10, 20)

        def size() -> int:
            tables = (limit._sources, limit._prefixes)
            return sum(sys.getsizeof(each) for table in tables for row in table._rows for each in row)

        before = size()
        self.assertLess(before, 1 << 20)
        for number in range(10000):
            limit.take(f"10.0.{number >> 8}.{number & 255}", 0)
        self.assertEqual(size(), before)

    def test_log(self) -> None:
        """Each source that is refused is one line a minute, and there is a most of them."""
        lines: list[str] = []

        def note(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        limit = RateLimit(1, 1, 300, 300)
        for _ in range(5):
            for ip in ("198.51.100.1", "2001:db8::1"):
                limit.take(ip, 100.0)
        names = ("198.51.100.1", "2001:db8::/64")
        self.assertEqual(lines, [f"strangers at {name} are rate limited" for name in names])
        for number in range(250):
            limit.take(f"203.0.113.{number}", 100.0)
            limit.take(f"203.0.113.{number}", 100.0)
        self.assertEqual(len(lines), MAX_LOGGED)
        limit.take("198.51.100.1", 160.0)
        limit.take("198.51.100.1", 160.0)
        self.assertEqual(lines[MAX_LOGGED:], lines[:1])

    def test_configure(self) -> None:
        """Other limits hold at once."""
        limit = RateLimit(1, 1, 1, 1)
        self.assertEqual(sum(limit.take("198.51.100.1", 0) for _ in range(9)), 1)
        limit.configure(5, 5, 3, 3)
        self.assertEqual(sum(limit.take("198.51.100.1", 1.0) for _ in range(9)), 3)

    def test_ipv6_by_network(self) -> None:
        """A /64 is one source: its owner has all of its addresses."""
        limit = RateLimit(1, 1)
        self.assertTrue(limit.take("2001:db8::1", 0))
        self.assertFalse(limit.take("2001:db8::2", 0))
        self.assertTrue(limit.take("2001:db8:0:1::2", 0))

    def test_no_limit(self) -> None:
        """Rate 0 is no limit."""
        limit = RateLimit(0, 1)
        self.assertTrue(all(limit.take("198.51.100.1", 0) for _ in range(1000)))


class RelayPortsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ports = RelayPorts(random.Random(3))

    def test_all_of_the_block(self) -> None:
        """Every port of the block is given once, none outside, then there is none."""
        given_ports = [self.ports.take((50000, 50099)) for _ in range(100)]
        self.assertEqual(sorted(port for port in given_ports if port is not None), list(range(50000, 50100)))
        self.assertIsNone(self.ports.take((50000, 50099)))
        self.ports.release(50042)
        self.assertEqual(self.ports.take((50000, 50099)), 50042)

    def test_not_to_be_guessed(self) -> None:
        """The order has no step that repeats."""
        ports = [self.ports.take((50000, 50799)) or 0 for _ in range(400)]
        steps = {second - first for first, second in itertools.pairwise(ports)}
        self.assertGreater(len(steps), 250)

    def test_equal_chances(self) -> None:
        """Every free port is as likely as any other, in an empty block as in one that is nearly full."""
        for taken in (0, 40, 48, 49):
            ports = RelayPorts(random.Random(5))
            for _ in range(taken):
                ports.take((50000, 50049))
            drawn: Counter[int] = Counter()
            for _ in range(200 * (50 - taken)):
                port = ports.take((50000, 50049)) or 0
                drawn[port] += 1
                ports.release(port)
            self.assertEqual(len(drawn), 50 - taken)
            self.assertTrue(all(130 <= count <= 270 for count in drawn.values()), drawn)

    def test_even(self) -> None:
        """EVEN-PORT gives even ports as long as there are any; freed ones come back (never 508 too early)."""
        for _ in range(20):
            ports = [self.ports.take((50000, 50009), even=True) for _ in range(5)]
            self.assertEqual(sorted(port or 0 for port in ports), [50000, 50002, 50004, 50006, 50008])
            self.assertIsNone(self.ports.take((50000, 50009), even=True))
            for port in ports:
                self.ports.release(port or 0)

    def test_pair(self) -> None:
        """With the next port reserved, it goes to who shows the token, once, within the time, in the namespace."""
        port = self.ports.take((50000, 50001), even=True, pair=True)
        self.assertEqual(port, 50000)
        token = self.ports.reserve("n", 50001, 100.0)
        self.assertEqual(len(token), 8)
        self.assertIsNone(self.ports.take((50000, 50001)))
        self.assertIsNone(self.ports.redeem("m", token, 100.0))
        self.assertIsNone(self.ports.redeem("n", bytes(8), 100.0))
        self.assertEqual(self.ports.redeem("n", token, 100.0), 50001)
        self.assertIsNone(self.ports.redeem("n", token, 100.0))
        self.ports.release(50001)
        self.assertEqual(self.ports.take((50000, 50001)), 50001)

    def test_reservation_expires(self) -> None:
        """A reserved port nobody came for is free again."""
        self.ports.take((50000, 50001), even=True, pair=True)
        token = self.ports.reserve("n", 50001, 100.0)
        self.assertIsNone(self.ports.redeem("n", token, 100.0 + RESERVATION_TIME))
        self.ports.expire(100.0 + RESERVATION_TIME)
        self.assertEqual(self.ports.take((50000, 50001)), 50001)

    def test_pair_that_is_not_reserved(self) -> None:
        """The second port is kept with the first, and given back with it when no reservation was made."""
        port = self.ports.take((50000, 50001), even=True, pair=True)
        self.assertIsNone(self.ports.take((50001, 50001)))
        self.ports.release(port or 0)
        self.assertEqual(len(self.ports), 0)

    def test_pair_inside_the_block(self) -> None:
        """The second port of a pair is never the neighbour's."""
        self.assertIsNone(self.ports.take((50000, 50000), even=True, pair=True))
