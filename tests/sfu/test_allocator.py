"""Who gets how much of one subscriber's bandwidth."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.allocator import LONGEST, Allocator, Subscription, steps
from orama.sfu.qualities import Quality

LOW, MID, HIGH = Quality(0, 0, 150e3), Quality(1, 0, 500e3), Quality(2, 0, 1500e3)
LAYERS = (LOW, MID, HIGH)
VOICE = (Quality(0, 0, 40e3),)


@define(eq=False)
class Fake:
    """A subscription that remembers what it was allowed."""

    offered: tuple[Quality, ...] = LAYERS
    kind: str = "video"
    priority: int = 0
    rank: int = 0
    given: list[Quality | None] = field(factory=list)

    def qualities(self, now: float) -> tuple[Quality, ...]:
        return self.offered

    def allow(self, quality: Quality | None, now: float) -> None:
        self.given.append(quality)

    @property
    def now(self) -> Quality | None:
        return self.given[-1]


class AllocatorTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.allocator = Allocator()
        self.time = 0.0

    def share(self, estimate: float, *fakes: Fake, limited: bool = True, seconds: float = 0.0) -> list[Quality | None]:
        """Let *seconds* pass in ticks; what the videos have then."""
        subscriptions: dict[str, Subscription] = {str(number): each for number, each in enumerate(fakes)}
        for _ in range(1 + round(seconds * 20)):
            self.allocator.share(subscriptions, estimate, limited, self.time)
            self.time += 0.05
        return [each.now for each in fakes if each.kind == "video"]


class OrderTests(AllocatorTestCase):
    def test_everything_fits(self) -> None:
        """Where there is enough everybody has the best at once, and nothing more is wanted."""
        self.assertEqual(self.share(4e6, Fake(), Fake()), [HIGH, HIGH])
        self.assertEqual(self.allocator.wanted, 0.0)

    def test_audio_first(self) -> None:
        """Audio is never asked whether it fits: video gets what it leaves."""
        voices = [Fake(VOICE, "audio") for _ in range(4)]
        self.assertEqual(self.share(250e3, *voices, Fake()), [None])
        self.assertEqual([voice.given for voice in voices], [[]] * 4)
        self.assertEqual(self.share(350e3, *voices, Fake(), seconds=3), [LOW])

    def test_the_cheapest_for_all_first(self) -> None:
        """Everybody gets the cheapest before anybody gets a better one; then those of one order take turns."""
        self.assertEqual(self.share(500e3, Fake(), Fake(), Fake()), [LOW, LOW, LOW])
        self.assertEqual(self.share(950e3, Fake(), Fake(), Fake(), seconds=3), [MID, LOW, LOW])
        self.assertEqual(self.share(1350e3, Fake(), Fake(), Fake(), seconds=3), [MID, MID, LOW])

    def test_priority_then_rank(self) -> None:
        """What the client put first comes first, then what the room does."""
        self.assertEqual(self.share(1000e3, Fake(), Fake(rank=2), Fake(rank=1)), [LOW, MID, LOW])
        self.setUp()
        self.assertEqual(self.share(1000e3, Fake(), Fake(rank=2), Fake(priority=1)), [LOW, LOW, MID])
        self.setUp()
        self.assertEqual(self.share(320e3, Fake(), Fake(rank=2), Fake(priority=1)), [None, LOW, LOW])

    def test_a_link_not_known_to_be_narrow(self) -> None:
        """A first estimate pauses nobody: every video gets its cheapest quality until a limit was seen."""
        whole = Fake((Quality(0, 0, 2e6),))
        self.assertEqual(self.share(800e3, whole, Fake(), limited=False), [whole.offered[0], LOW])
        self.assertGreater(self.allocator.wanted, 3.5e6)
        self.assertEqual(self.share(800e3, whole, Fake(), limited=True, seconds=1), [None, LOW])


class TimeTests(AllocatorTestCase):
    def test_down_at_once(self) -> None:
        """A fall of the estimate is followed in the same tick, a small change not before a second has passed."""
        fake = Fake()
        self.share(1600e3, fake)
        self.assertEqual(self.share(1450e3, fake), [HIGH])
        self.assertEqual(self.share(600e3, fake), [MID])
        self.assertEqual(self.share(100e3, fake), [None])

    def test_up_needs_room_and_time(self) -> None:
        """Better only with 15 % to spare, and only after there was room for it for a second."""
        fake = Fake()
        self.share(200e3, fake)
        self.assertEqual(self.share(550e3, fake, seconds=5), [LOW])
        self.assertEqual(self.share(600e3, fake, seconds=0.9), [LOW])
        self.assertEqual(self.share(600e3, fake, seconds=2), [MID])

    def test_it_does_not_flap(self) -> None:
        """An estimate that goes up and down around a border changes the quality ever less often."""
        fake = Fake()
        self.share(200e3, fake)
        for _ in range(40):
            self.share(600e3, fake, seconds=2)
            self.share(440e3, fake, seconds=1)
        changes = sum(one is not other for one, other in zip(fake.given, fake.given[1:], strict=False))
        self.assertLess(changes, 2 * (120 / LONGEST + 5))

    def test_a_pause_ends(self) -> None:
        """Video that had no room comes back when there is some to spare."""
        fake = Fake()
        self.assertEqual(self.share(100e3, fake), [None])
        self.assertGreater(self.allocator.wanted, 150e3)
        self.assertEqual(self.share(160e3, fake, seconds=3), [None])
        self.assertEqual(self.share(200e3, fake, seconds=3), [LOW])

    def test_who_comes_is_served_at_once(self) -> None:
        """A new subscription is part of the next tick, and takes from the better qualities of others."""
        fake = Fake()
        self.share(2e6, fake)
        self.assertEqual(self.share(2e6, fake, Fake(VOICE, "audio"), Fake()), [MID, MID])

    def test_layers_that_end(self) -> None:
        """When the publisher stops a layer the next best is taken, and nobody is paused for it."""
        fake = Fake()
        self.share(3e6, fake)
        fake.offered = (LOW, MID)
        self.assertEqual(self.share(3e6, fake, seconds=1), [MID])
        fake.offered = ()
        self.share(3e6, fake, seconds=1)
        self.assertEqual(fake.now, MID)

    def test_release(self) -> None:
        """When nothing is known any more everything is forwarded."""
        fake = Fake()
        self.share(200e3, fake)
        self.allocator.release({"0": fake}, self.time)
        self.assertEqual((fake.now, self.allocator.wanted), (HIGH, 0.0))


class StepTests(SynchronousTestCase):
    def test_what_is_worth_having(self) -> None:
        """Fewer layers for as much or more are not offered; unmeasured ones are, at the usual price."""
        cheap, dear, better = Quality(0, 1, 100e3), Quality(0, 2, 300e3), Quality(1, 0, 250e3)
        self.assertEqual(steps((cheap, dear, better)), [cheap, better])
        unmeasured = Quality(1, 0, 0.0)
        self.assertEqual(steps((cheap, unmeasured)), [cheap, MID])
        alone = Quality(0, 0, 0.0)
        self.assertEqual(steps((alone,)), [alone])

    def test_a_few_large_pictures(self) -> None:
        """Above the lowest resolution no quality has less than all of the frames."""
        layers = tuple(Quality(at // 3, at % 3, 100e3 * (at + 1)) for at in range(6))
        self.assertEqual(steps(layers), [layers[0], layers[1], layers[2], layers[5]])

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(st.lists(st.floats(0, 3e6), min_size=1, max_size=4), max_size=6),
        st.lists(st.floats(0, 1e7), min_size=1, max_size=20),
        st.booleans(),
    )
    def test_never_more_than_there_is(
        self, rates: Sequence[Sequence[float]], estimates: Sequence[float], limited: bool
    ) -> None:
        """Whatever is offered and estimated: what is given fits, but for what nobody is denied or yet has."""
        fakes = [Fake(tuple(Quality(at, 0, rate) for at, rate in enumerate(sorted(each)))) for each in rates]
        allocator, now = Allocator(), 0.0
        for estimate in estimates:
            now += 1.5
            allocator.share({str(at): each for at, each in enumerate(fakes)}, estimate, limited, now)
            given = [each.now for each in fakes]
            better = [one for one, fake in zip(given, fakes, strict=True) if one and one != steps(fake.offered)[0]]
            if better:
                self.assertLessEqual(sum(each.bitrate for each in given if each is not None), estimate * 1.0001)
