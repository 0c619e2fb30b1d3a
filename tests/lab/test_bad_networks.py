"""One publishes in three layers; three look on, by a clean line, a narrow one and one that loses. Nobody suffers more
than their own line makes them. In the end one of them moves to another network."""

from __future__ import annotations

import atexit
import time
from functools import cache

from attrs import frozen
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.browser.chromium import MISSING
from tests.lab.line import CLEAN, Conditions
from tests.lab.machine import missing, until
from tests.lab.onlooker import SIMULCAST, WIDTH, People, Seen, orama
from tests.lab.report import report
from tests.lab.star import Star

NARROW = Conditions("300 kbit/s down", down=300)
LOSSY = Conditions("5 % lost down", down_loss=0.05)
#: Seconds within which a call has got used to its line, and for which it is looked at then.
SETTLED, LONG = 15.0, 6.0
#: The share of audio that may be made up where nothing is lost for good: less than a frame of 20 ms in a second.
WHOLE = 0.02


@frozen
class Call:
    """
    :ivar width: of the widest layer that was sent, and *fps* of its frames.
    :ivar moved: what who lost packets saw from the moment of a change of address on, by a line that is clean then.
    """

    clean: Seen
    narrow: Seen
    lossy: Seen
    width: int
    fps: float
    moved: Seen


@cache
def call() -> Call | AssertionError:
    """What everybody saw of one call, or why there was none."""
    try:
        return _call()
    except AssertionError as error:
        return error


def _call() -> Call:
    star = Star(3)
    atexit.register(star.close)
    people = People(star)
    try:
        with star.node() as node:
            star.become()
            pages = [people.page(client) for client in (0, 0, 1, 2)]
            publisher, onlookers = orama(node, "room", SIMULCAST, pages[0], pages[1:])
            star.become(CLEAN, NARROW, LOSSY)
            onlookers[1].until_steady(SETTLED)
            before = publisher.layers()[-1]
            for each in onlookers:
                each.begin()
            began = time.monotonic()
            until(lambda: time.monotonic() - began > LONG, "a while", 2 * LONG)
            seen = [each.end() for each in onlookers]
            after, seconds = publisher.layers()[-1], time.monotonic() - began
            fps = (after["frames"] - before["frames"]) / seconds
            star.become()
            onlookers[2].begin()
            star.move(2)
            onlookers[2].until_frames(20)
            return Call(*seen, after["width"], fps, onlookers[2].end())
    finally:
        people.close()
        star.close()


class BadNetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reason := MISSING or missing():
            raise SkipTest(reason)
        made = call()
        if isinstance(made, AssertionError):
            raise made
        self.call = made

    def tell(self, line: str, seen: Seen) -> None:
        scenario = f"Chromium, three rids, {line}"
        report().count(scenario, "width", seen.width, "pixels")
        report().count(scenario, "frames", round(seen.fps, 1), "a second")
        report().milliseconds(scenario, "longest pause", seen.longest)
        report().count(scenario, "audio made up", round(100 * seen.concealed, 1), "%")

    def test_narrow(self) -> None:
        """By 300 kbit/s one hears everything, and sees a smaller picture that does not stand still."""
        seen = self.call.narrow
        self.tell("300 kbit/s", seen)
        self.assertLess(seen.concealed, WHOLE, seen)
        self.assertLess(seen.width, WIDTH, seen)
        self.assertGreater(seen.fps, 4.0, seen)
        self.assertLess(seen.longest, 1.0, seen)

    def test_others_notice_nothing(self) -> None:
        """Who has a good line sees the largest picture that is sent, whole, and hears everything."""
        seen = self.call.clean
        self.tell("a clean line", seen)
        self.assertEqual(seen.width, self.call.width, self.call)
        self.assertEqual(seen.freezes, 0, seen)
        self.assertGreater(seen.fps, 0.8 * self.call.fps, self.call)
        self.assertLess(seen.concealed, WHOLE, seen)

    def test_lossy(self) -> None:
        """With 5 % lost the picture never stands still for a second, and keeps four fifths of its frames."""
        seen = self.call.lossy
        self.tell("5 % lost", seen)
        self.assertLess(seen.longest, 1.0, seen)
        self.assertGreater(seen.fps, 0.8 * self.call.fps, self.call)
        self.assertGreater(seen.nacks, 0, seen)

    def test_moved(self) -> None:
        """Who gets another address sees and hears again within seconds, long before ICE would have noticed."""
        report().milliseconds("Chromium, another address", "longest pause", self.call.moved.longest)
        self.assertLess(self.call.moved.longest, 5.0, self.call.moved)

    def test_lossy_sound(self) -> None:
        """With 5 % lost hardly anything of what is said is missing: it comes twice."""
        self.assertLess(self.call.lossy.concealed, WHOLE, self.call.lossy)
