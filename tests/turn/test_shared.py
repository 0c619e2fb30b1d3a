"""What the TURN workers of a node count together: exact over processes, and right again when one of them has died."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.ports import RESERVATION_TIME, RelayPorts
from orama.turn.quota import Limits, Quota
from orama.turn.shared import MAX_WORKERS, SLOTS, Owner, SharedTable, make_memory
from orama.turn.shared_ports import SharedBook
from orama.turn.shared_quota import SharedLedger

KEY = bytes(range(32))
NOW = 1_800_000_000.0
NAMESPACE = ("myapp",)
ALICE, BOB = ("myapp", "alice"), ("myapp", "bob")

#: Writes how many allocations it got of 1,000, how many ports, and how often somebody had what it had alone.
TAKER = """
import sys
from orama.turn.shared import SharedTable
descriptor, workers, worker, rounds = map(int, sys.argv[1:])
table = SharedTable(descriptor, workers, worker, bytes(range(32)))
sys.stdin.read(1)
taken = sum(table.take([(("myapp",), 1000), (("myapp", "alice"), 0)], 0.0) for _ in range(400))
ports = sum(table.take_port(port) for port in range(50000, 51000))
wrong = 0
for _ in range(rounds):
    if table.take([(("other",), 1)], 0.0):
        wrong += table.held(("other",)) != 1
        table.release([("other",)])
print(taken, ports, wrong, flush=True)
sys.stdin.read()
"""


class Memory(SynchronousTestCase):
    """A test with the views of several workers in this process."""

    def tables(self, workers: int = 2, slots: int = SLOTS) -> list[SharedTable]:
        descriptor = make_memory(workers, slots)
        self.addCleanup(os.close, descriptor)
        tables = [SharedTable(descriptor, workers, worker, KEY, slots) for worker in range(workers)]
        for table in tables:
            self.addCleanup(table.close)
        return tables


class AllocationsTests(Memory):
    def test_limit_is_the_nodes(self) -> None:
        """An owner's limit is reached by what all workers have together, and not before."""
        one, two = self.tables()
        for table in (one, two, one):
            self.assertTrue(table.take([(NAMESPACE, 0), (ALICE, 3)], NOW))
        for table in (one, two):
            self.assertFalse(table.take([(NAMESPACE, 0), (ALICE, 3)], NOW))
            self.assertEqual((table.held(NAMESPACE), table.held(ALICE), table.held(BOB)), (3, 3, 0))
        self.assertTrue(two.take([(NAMESPACE, 0), (BOB, 3)], NOW))
        two.release([NAMESPACE, ALICE])
        self.assertTrue(one.take([(NAMESPACE, 0), (ALICE, 3)], NOW))
        self.assertFalse(two.take([(NAMESPACE, 0), (ALICE, 3)], NOW))

    def test_all_or_nothing(self) -> None:
        """Who is refused for one of its owners is counted for none of them."""
        one, _ = self.tables()
        self.assertTrue(one.take([(NAMESPACE, 1), (ALICE, 1)], NOW))
        self.assertFalse(one.take([(BOB, 5), (NAMESPACE, 1)], NOW))
        self.assertEqual((one.held(NAMESPACE), one.held(BOB)), (1, 0))

    def test_only_its_own_is_released(self) -> None:
        """A worker cannot give back what another one has."""
        one, two = self.tables()
        one.take([(ALICE, 0)], NOW)
        two.release([ALICE])
        self.assertEqual(two.held(ALICE), 1)

    def test_dead_worker(self) -> None:
        """What a dead worker held is free again, allocations and ports; what the others hold is not touched."""
        one, two, three = self.tables(3)
        for table, port in ((one, 50000), (two, 50001), (three, 50002)):
            table.take([(NAMESPACE, 0), (ALICE, 0)], NOW)
            self.assertTrue(table.take_port(port))
        one.forget(1)
        self.assertEqual((one.held(NAMESPACE), three.held(ALICE)), (2, 2))
        self.assertEqual([one.has_port(port) for port in (50000, 50001, 50002)], [True, False, True])

    def test_owners_that_stand_together(self) -> None:
        """A table that is full refuses one more owner and nobody who is in it; one that leaves makes room."""
        one, two = self.tables(slots=8)
        owners = [("myapp", str(number)) for number in range(8)]
        for owner in owners:
            self.assertTrue(one.take([(owner, 1)], NOW))
        self.assertFalse(two.take([(NAMESPACE, 0), (ALICE, 0)], NOW))
        self.assertEqual([two.held(owner) for owner in (*owners, NAMESPACE)], [1] * 8 + [0])
        one.release([owners[3]])
        self.assertFalse(two.take([(NAMESPACE, 0), (ALICE, 0)], NOW))
        self.assertEqual(two.held(NAMESPACE), 0)
        self.assertTrue(two.take([(ALICE, 1)], NOW))
        self.assertEqual([two.held(owner) for owner in (*owners, ALICE)], [1, 1, 1, 0, 1, 1, 1, 1, 1])

    def test_churn_leaves_nothing(self) -> None:
        """However many owners come and go, the slots they leave are as new when they have been swept."""
        one, two = self.tables(slots=64)
        for number in range(1000):
            owner = ("myapp", f"user{number}")
            now = NOW + number
            self.assertTrue(one.take([(owner, 1)], now), number)
            one.spend(one.number(owner), 1000, 100, 1000, now)  # full again in ten seconds: the slot waits for that
            one.release([owner])
            two.sweep(now)
            self.assertLess(len(one), 32)
        for _ in range(2):
            two.sweep(NOW + 1010)
        self.assertEqual(len(one), 0)
        one.take([(ALICE, 1), (NAMESPACE, 1)], NOW + 1010)
        one.release([ALICE, NAMESPACE])
        self.assertEqual(len(two), 0)

    def test_workers(self) -> None:
        """A worker that is not one of them is refused, and so are more workers than a port can name."""
        descriptor = make_memory(2)
        self.addCleanup(os.close, descriptor)
        for workers, worker in ((2, 2), (2, -1), (MAX_WORKERS + 1, 0)):
            self.assertRaises(ValueError, SharedTable, descriptor, workers, worker, KEY)


class BandwidthTests(Memory):
    def test_one_bucket(self) -> None:
        """All workers take from one bucket, which may owe, and fills with its rate."""
        one, two = self.tables()
        alice = one.number(ALICE)
        two.take([(ALICE, 0)], NOW)
        self.assertEqual(one.level(alice, 100, 1000, NOW), 1000)
        one.spend(alice, 600, 100, 1000, NOW)
        two.spend(alice, 600, 100, 1000, NOW)
        self.assertEqual(one.level(alice, 100, 1000, NOW), -200)
        self.assertEqual(two.level(alice, 100, 1000, NOW + 3), 100)
        self.assertEqual(two.level(alice, 200, 2000, NOW + 3), 200)
        self.assertEqual(one.level(alice, 100, 1000, NOW + 60), 1000)

    def test_no_new_bucket_for_a_new_allocation(self) -> None:
        """Who releases all and comes again finds the bucket as it was, in another worker, too."""
        one, two = self.tables()
        alice = one.number(ALICE)
        one.take([(ALICE, 0)], NOW)
        one.spend(alice, 1000, 100, 1000, NOW)
        one.release([ALICE])
        two.sweep(NOW)
        two.take([(ALICE, 0)], NOW + 1)
        self.assertEqual(two.level(alice, 100, 1000, NOW + 1), 100)

    def test_clock_set_back(self) -> None:
        """A clock that was set back stops nobody for longer than it takes to fill a bucket a few times."""
        one, _ = self.tables()
        alice = one.number(ALICE)
        one.take([(ALICE, 0)], NOW)
        one.spend(alice, 1000, 100, 1000, NOW)
        self.assertEqual(one.level(alice, 100, 1000, NOW - 3600), -3000)
        one.spend(alice, 1, 100, 1000, NOW - 3600)
        self.assertEqual(one.level(alice, 100, 1000, NOW - 3559), 1000)


class QuotaTests(Memory):
    def quotas(self, limits: Limits) -> list[Quota]:
        return [Quota(limits, ledger=SharedLedger(table)) for table in self.tables()]

    def test_allocations(self) -> None:
        """A user's and a namespace's quota is what they have in all workers; a namespace's neighbour has its own."""
        one, two = self.quotas(Limits(2, 3))
        alice = one.take("myapp", "alice", NOW)
        assert alice is not None
        self.assertIsNotNone(two.take("myapp", "alice", NOW))
        for quota in (one, two):
            self.assertIsNone(quota.take("myapp", "alice", NOW))
        self.assertIsNotNone(two.take("myapp", "", NOW))
        for quota in (one, two):
            self.assertIsNone(quota.take("myapp", "bob", NOW))
            self.assertEqual((quota.held("myapp"), quota.held("myapp", "alice"), quota.held("other")), (3, 2, 0))
        self.assertIsNotNone(one.take("other", "alice", NOW))
        one.release(alice)
        self.assertIsNotNone(two.take("myapp", "bob", NOW))

    def test_bandwidth(self) -> None:
        """What passes in all workers together is the rate and one full bucket, give or take a hundredth each."""
        rate = 10**6
        quotas = self.quotas(Limits(bandwidth_per_user=rate))
        (one,), (two,) = (quota.take("myapp", "alice", NOW).buckets for quota in quotas)
        passed = 0
        for millisecond in range(10_000):
            for credit in (one, two):
                passed += 1200 * credit.take(1200, NOW + millisecond / 1000)
        self.assertLess(abs(passed - 11 * rate), 0.03 * rate)

    def test_bandwidth_owed(self) -> None:
        """A user who owes gets no allocation in any worker until he does not owe any more."""
        one, two = self.quotas(Limits(bandwidth_per_user=10**5))
        share = one.take("myapp", "alice", NOW)
        assert share is not None
        self.assertTrue(share.buckets[0].take(150_000, NOW))
        self.assertIsNone(two.take("myapp", "alice", NOW))
        self.assertIsNotNone(two.take("myapp", "bob", NOW))
        one.release(share)
        one.forget_idle(NOW)
        self.assertIsNone(two.take("myapp", "alice", NOW + 0.4))
        self.assertIsNotNone(two.take("myapp", "alice", NOW + 0.6))


class PortsTests(Memory):
    def test_one_worker_has_it(self) -> None:
        """A port is one worker's until that one gives it back; the families do not know of each other."""
        one, two = self.tables()
        self.assertTrue(one.take_port(50000))
        self.assertFalse(two.take_port(50000))
        self.assertFalse(one.take_port(50000))
        self.assertTrue(two.take_port(50000, row=1))
        two.release_port(50000)
        self.assertTrue(two.has_port(50000))
        one.release_port(50000)
        self.assertTrue(two.take_port(50000))
        self.assertFalse(one.has_port(65535))

    def test_reservation(self) -> None:
        """The second port of a pair goes to who shows its token to any worker: once, in time, in the namespace."""
        books = [SharedBook(table, 0, KEY) for table in self.tables()]
        one, two = (RelayPorts(random.Random(3), book) for book in books)
        self.assertEqual(one.take((50000, 50001), even=True, pair=True), 50000)
        self.assertIsNone(two.take((50000, 50001)))
        token = one.reserve("myapp", 50001, NOW)
        self.assertEqual(len(token), 8)
        self.assertIsNone(two.take((50000, 50001)))
        self.assertIsNone(two.redeem("other", token, NOW))
        for garbage in (bytes(8), token[:7], token + b"x", bytes([token[0] ^ 1]) + token[1:]):
            self.assertIsNone(two.redeem("myapp", garbage, NOW))
        self.assertEqual(two.redeem("myapp", token, NOW + RESERVATION_TIME), 50001)
        self.assertIsNone(one.redeem("myapp", token, NOW + RESERVATION_TIME))
        one.expire(NOW + RESERVATION_TIME + 1)
        self.assertIsNone(one.take((50001, 50001)))
        two.release(50001)
        self.assertEqual(one.take((50001, 50001)), 50001)

    def test_reservation_expires(self) -> None:
        """A port that nobody came for is free again, and its token is worth nothing then, nor when it is kept anew."""
        books = [SharedBook(table, 0, KEY) for table in self.tables()]
        one, two = (RelayPorts(random.Random(3), book) for book in books)
        one.take((50000, 50001), even=True, pair=True)
        token = one.reserve("myapp", 50001, NOW)
        one.expire(NOW + RESERVATION_TIME)
        self.assertIn(50001, books[1])
        self.assertIsNone(two.redeem("myapp", token, NOW + RESERVATION_TIME + 1))
        one.expire(NOW + RESERVATION_TIME + 1)
        one.release(50000)
        self.assertEqual(two.take((50000, 50001), even=True, pair=True), 50000)
        two.reserve("myapp", 50001, NOW + RESERVATION_TIME + 1)
        self.assertIsNone(one.redeem("myapp", token, NOW + RESERVATION_TIME + 1))

    def test_dead_worker_keeps_nothing(self) -> None:
        """What a dead worker kept for somebody is free."""
        one, two = self.tables()
        two.take_port(50000)
        two.keep_port(50000)
        self.assertEqual((one.ports(), one.has_port(50000)), (1, True))
        one.forget(1)
        self.assertTrue(one.take_port(50000))


class ProcessesTests(Memory):
    def test_exact_over_processes(self) -> None:
        """Processes that take at the same time get the limit together and not one more, and no port twice; one that is
        killed keeps what it has until it is forgotten."""
        descriptor = make_memory(4)
        self.addCleanup(os.close, descriptor)
        table = SharedTable(descriptor, 4, 0, KEY)
        self.addCleanup(table.close)
        root = str(Path(__file__).parents[2])
        takers = []
        for worker in (1, 2, 3):
            command = [sys.executable, "-c", TAKER, *map(str, (descriptor, 4, worker, 15000))]
            takers.append(
                subprocess.Popen(
                    command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor], bufsize=0
                )
            )
            self.addCleanup(takers[-1].communicate)
            self.addCleanup(takers[-1].kill)
        for taker in takers:
            taker.stdin.write(b"x")
        counts = [tuple(map(int, taker.stdout.readline().split())) for taker in takers]
        self.assertEqual([sum(column) for column in zip(*counts, strict=True)], [1000, 1000, 0])
        self.assertEqual((table.held(NAMESPACE), table.held(ALICE)), (1000, 1000))
        self.assertFalse(table.take([(NAMESPACE, 1000)], NOW))
        takers[1].kill()
        takers[1].wait()
        self.assertEqual(table.held(NAMESPACE), 1000)
        table.forget(2)
        self.assertEqual(table.held(NAMESPACE), 1000 - counts[1][0])
        self.assertEqual(sum(table.has_port(port) for port in range(1 << 16)), 1000 - counts[1][1])


class TableMachine(RuleBasedStateMachine):
    """Any order of what workers do, against plain counters."""

    OWNERS: list[Owner] = [("a",), ("b",), *(("a", str(number)) for number in range(12))]

    @initialize()
    def begin(self) -> None:
        self.descriptor = make_memory(3, 16)
        self.tables = [SharedTable(self.descriptor, 3, worker, KEY, 16) for worker in range(3)]
        self.held = [Counter[Owner]() for _ in range(3)]
        self.now = NOW

    def teardown(self) -> None:
        for table in getattr(self, "tables", ()):
            table.close()
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def total(self, owner: Owner) -> int:
        return sum(each[owner] for each in self.held)

    @rule(worker=st.integers(0, 2), owner=st.sampled_from(OWNERS), limit=st.integers(0, 4))
    def take(self, worker: int, owner: Owner, limit: int) -> None:
        owners = [owner[:1], owner] if len(owner) == 2 else [owner]
        fits = not limit or all(self.total(each) < limit for each in owners)
        assert self.tables[worker].take([(each, limit) for each in owners], self.now) == fits
        self.held[worker].update(owners if fits else ())

    @rule(worker=st.integers(0, 2), owner=st.sampled_from(OWNERS))
    def release(self, worker: int, owner: Owner) -> None:
        self.tables[worker].release([owner])
        self.held[worker][owner] = max(0, self.held[worker][owner] - 1)

    @rule(worker=st.integers(0, 2), owner=st.sampled_from(OWNERS), amount=st.integers(1, 200))
    def spend(self, worker: int, owner: Owner, amount: int) -> None:
        table = self.tables[worker]
        table.spend(table.number(owner), amount, 10, 100, self.now)

    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        self.tables[0].forget(worker)
        self.held[worker].clear()

    @rule(worker=st.integers(0, 2), seconds=st.integers(0, 30))
    def sweep(self, worker: int, seconds: int) -> None:
        self.now += seconds
        self.tables[worker].sweep(self.now)

    @invariant()
    def all_agree(self) -> None:
        for table in getattr(self, "tables", ()):
            assert [table.held(owner) for owner in self.OWNERS] == [self.total(owner) for owner in self.OWNERS]


class MachineTests(SynchronousTestCase):
    def test_any_order(self) -> None:
        """Whatever the workers do, each of them sees what all hold together."""
        TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
        TableMachine.TestCase("runTest").debug()
