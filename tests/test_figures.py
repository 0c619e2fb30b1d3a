"""Figures of processes that end and are started again, and their sums."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.figures import Figures, Sample, total


def flat(samples: object) -> dict[tuple[str, ...], float]:
    return {(name, *labels.values()): value for name, labels, value in samples}  # type: ignore[attr-defined]


class FiguresTests(SynchronousTestCase):
    said: tuple[Sample, ...] = (
        ("a_total", {"n": "x"}, 5.0),
        ("b", {}, 7.0),
        ("c_seconds_bucket", {"le": "1"}, 2.0),
        ("c_seconds_sum", {}, 1.5),
        ("c_seconds_count", {}, 2.0),
    )

    def test_end(self) -> None:
        """When a process ends what it has counted stays, and what was there is there no more."""
        figures = Figures()
        figures.begin()
        figures.say(self.said)
        figures.end()
        left = {("a_total", "x"): 5, ("c_seconds_bucket", "1"): 2, ("c_seconds_sum",): 1.5, ("c_seconds_count",): 2}
        self.assertEqual(flat(figures.samples()), left)

    def test_again(self) -> None:
        """The next one counts on from there, also when nobody saw the first one end."""
        for seen in (True, False):
            figures = Figures()
            figures.begin("1")
            figures.say(self.said)
            if seen:
                figures.end()
            figures.begin("2")
            figures.say([("a_total", {"n": "x"}, 1.0), ("b", {}, 1.0)])
            found = flat(figures.samples())
            self.assertEqual((found["a_total", "x"], found["b",], found["c_seconds_count",]), (6, 1, 2))

    def test_same(self) -> None:
        """One that was only away goes on where it was."""
        figures = Figures()
        figures.begin("1")
        figures.say(self.said)
        figures.end()
        figures.begin("1")
        figures.say(self.said)
        self.assertEqual(flat(figures.samples()), flat(self.said))

    def test_total(self) -> None:
        """Of several each name with the same labels is there once, however the labels are ordered."""
        one: list[Sample] = [("a", {"x": "1", "y": "2"}, 1.0), ("b", {}, 2.0)]
        other: list[Sample] = [("a", {"y": "2", "x": "1"}, 3.0), ("a", {"x": "2", "y": "2"}, 4.0)]
        self.assertEqual(flat(total([one, other])), {("a", "1", "2"): 4, ("a", "2", "2"): 4, ("b",): 2})
