"""Which event is tried when."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.webhooks import backlog as module
from orama.webhooks.backlog import AT_ONCE, LONGEST_PAUSE, MOST, MOST_BYTES, Backlog
from orama.webhooks.letter import Letter

KEEP = 3600.0


def made(number: int, room: str = "r", at: float = 0.0, size: int = 2) -> Letter:
    return Letter(f"ev_{number}", "room_started", at, "default", room, "x" * size)


class BacklogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.backlog = Backlog(1.0, KEEP, lambda: 0.5)

    def ready(self) -> list[str]:
        """All that may be tried now."""
        found = []
        while (letter := self.backlog.next(self.now)) is not None:
            found.append(letter.id)
        return found

    def wait(self) -> float:
        """Until the next attempt; for how long."""
        seconds = self.backlog.due() - self.now
        self.now += seconds
        return seconds

    def test_one_after_the_other(self) -> None:
        """The events of one room go in order, the next one when the last was taken; other rooms do not wait."""
        letters = [made(1), made(2), made(3, "other")]
        for letter in letters:
            self.backlog.add(letter, self.now)
        self.assertEqual(self.ready(), ["ev_1", "ev_3"])
        self.backlog.taken(letters[0], self.now)
        self.assertEqual(self.ready(), ["ev_2"])
        self.assertEqual(len(self.backlog), 2)

    def test_at_once(self) -> None:
        """So many attempts are under way at once, and no more."""
        for number in range(AT_ONCE + 3):
            self.backlog.add(made(number, str(number)), self.now)
        self.assertEqual(len(self.ready()), AT_ONCE)
        self.assertEqual(self.backlog.due(), float("inf"))

    def test_back_off(self) -> None:
        """A failed event waits 1 s, 2 s, 4 s and so on, five minutes at most, and its room waits with it."""
        letter = made(1, at=self.now)
        self.backlog.keep = 1e9
        self.backlog.add(letter, self.now)
        self.backlog.add(made(2), self.now)
        pauses = []
        for _ in range(12):
            self.assertEqual(self.ready(), ["ev_1"])
            self.backlog.failed(letter, self.now)
            self.assertEqual(self.ready(), [])
            pauses.append(self.wait())
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300])
        self.assertEqual(max(pauses), LONGEST_PAUSE)

    def test_one_that_nobody_likes(self) -> None:
        """An event that always fails delays other rooms by a moment, not by its own pause."""
        bad = made(1)
        self.backlog.add(bad, self.now)
        self.ready()
        self.backlog.failed(bad, self.now)
        good = made(2, "other")
        self.backlog.add(good, self.now)
        self.assertEqual(self.wait(), 0.25)
        self.assertEqual(self.ready(), ["ev_2"])

    def test_away(self) -> None:
        """While the receiver is away one attempt at a time is made, ever more rarely; when it is back nobody waits."""
        letters = [made(number, str(number)) for number in range(AT_ONCE)]
        for letter in letters:
            self.backlog.add(letter, self.now)
        for name in self.ready():
            self.backlog.failed(letters[int(name[3:])], self.now)
        for _ in range(5):
            self.wait()
            (name,) = self.ready()
            self.backlog.failed(letters[int(name[3:])], self.now)
        self.wait()
        (name,) = self.ready()
        self.backlog.taken(letters[int(name[3:])], self.now)
        self.assertEqual(len(self.ready()), 2)  # from one at a time to two, four, eight

    def test_given_up(self) -> None:
        """An event that fails when it is too old is given up, and the next of its room has its turn."""
        old, young = made(1, at=0.0), made(2, at=KEEP)
        self.backlog.add(old, self.now)
        self.backlog.add(young, self.now)
        self.now = KEEP + 1
        self.assertEqual(self.ready(), ["ev_1"])
        self.assertTrue(self.backlog.failed(old, self.now))
        self.wait()
        self.assertEqual(self.ready(), ["ev_2"])
        self.assertFalse(self.backlog.failed(young, self.now))

    def test_bounds(self) -> None:
        """Beyond the bound of events or of bytes the oldest go that are not being tried."""
        for number in range(MOST):
            self.assertEqual(self.backlog.add(made(number, str(number)), self.now), [])
        self.assertEqual(self.backlog.next(self.now), made(0, "0"))
        self.assertEqual(self.backlog.add(made(MOST, "new"), self.now), [made(1, "1")])
        big = made(MOST + 1, "big", size=MOST_BYTES)
        self.assertEqual(len(self.backlog.add(big, self.now)), MOST)
        self.assertEqual(list(self.backlog.letters()), [made(0, "0")])

    def test_twice(self) -> None:
        """An event that is told again waits once."""
        self.backlog.add(made(1), self.now)
        self.backlog.add(made(1), self.now)
        self.assertEqual(len(self.backlog), 1)

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 1 << 32))
    def test_any_course(self, seed: int) -> None:
        """Whatever fails in whatever order, every event is taken once or given up, and each room hears in order."""
        random = Random(seed)
        backlog, now = Backlog(1.0, 40.0, random.random), 0.0
        flying: list[Letter] = []
        taken: list[Letter] = []
        ended: set[str] = set()
        for number in range(60):
            letter = made(number, str(random.randrange(4)), at=now)
            ended.update(each.id for each in backlog.add(letter, now))
            while (each := backlog.next(now)) is not None:
                self.assertNotIn(each.room_id, [other.room_id for other in flying])
                flying.append(each)
            self.assertLessEqual(len(flying), AT_ONCE)
            for each in random.sample(flying, random.randrange(len(flying) + 1)):
                flying.remove(each)
                now += random.random()
                outcome = random.randrange(4)
                if outcome == 0:
                    backlog.put_back(each, now)
                elif outcome == 1:
                    ended.update([each.id] if backlog.failed(each, now) else [])
                else:
                    backlog.taken(each, now)
                    taken.append(each)
        for _ in range(2000):
            for each in flying:
                backlog.taken(each, now)
                taken.append(each)
            flying = []
            if backlog.due() == float("inf"):
                break
            now = max(now, backlog.due())
            while (found := backlog.next(now)) is not None:
                flying.append(found)
        self.assertEqual((len(backlog), backlog.due()), (0, float("inf")))
        names = [each.id for each in taken]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual({f"ev_{number}" for number in range(60)}, ended | set(names))
        for room in "0123":
            numbers = [int(each.id[3:]) for each in taken if each.room_id == room]
            self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(backlog._bytes, 0)

    def test_stays_small(self) -> None:
        """Failures over a long time leave nothing behind but the event itself."""
        letter = made(1)
        self.backlog.keep = 1e12
        self.backlog.add(letter, self.now)
        for _ in range(1000):
            self.wait()
            self.ready()
            self.backlog.failed(letter, self.now)
        self.assertLessEqual(len(self.backlog._idle), 2)
        self.assertGreater(module.DOUBLINGS, 10)
