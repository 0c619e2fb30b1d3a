"""Simulcast layers: their order, their names, the choice among them."""

from __future__ import annotations

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.layers import ceiling, choose, names, ordered


@frozen
class Layer:
    last_arrival: float
    pace: float = 0.03


class LayerTests(SynchronousTestCase):
    def test_order_by_name(self) -> None:
        """Known names sort themselves, whatever the client's order; h is half beside f and high beside m."""
        self.assertEqual(ordered(("f", "h", "q")), ("q", "h", "f"))
        self.assertEqual(ordered(("h", "m", "l")), ("l", "m", "h"))
        self.assertEqual(ordered(("high", "low")), ("low", "high"))

    def test_order_of_the_client(self) -> None:
        """Unknown names stay in the client's order."""
        self.assertEqual(ordered(("r2", "r0", "r1")), ("r2", "r0", "r1"))
        self.assertEqual(ordered(("q", "x", "f")), ("q", "x", "f"))

    def test_names_outside(self) -> None:
        """One layer is no simulcast."""
        self.assertEqual([names(count) for count in (0, 1, 2, 3)], [(), (), ("low", "high"), ("low", "mid", "high")])

    def test_the_best_that_is_allowed(self) -> None:
        """The asked layer or the best below it that there is; auto is the best of all."""
        low, mid, high = layers = [Layer(10.0), Layer(10.0), Layer(10.0)]
        for wanted, expected in (("low", low), ("mid", mid), ("high", high), ("auto", high)):
            self.assertIs(choose(layers, ceiling(wanted, 3)), expected)
        self.assertIs(choose(layers[:2], ceiling("mid", 2)), low)
        self.assertIs(choose([None, mid, None], 0), mid)
        self.assertIs(choose([low, None, high], 1), low)
        self.assertIsNone(choose([None, None], 1))
        self.assertIsNone(choose([], 0))

    def test_ceilings(self) -> None:
        """What was asked as a place among the layers that there are; of two, the middle is the lower one."""
        self.assertEqual([ceiling(layer, 3) for layer in ("low", "mid", "high", "auto")], [0, 1, 2, 2])
        self.assertEqual([ceiling(layer, 2) for layer in ("low", "mid", "high", "auto")], [0, 0, 1, 1])
        self.assertEqual([ceiling(layer, 1) for layer in ("low", "mid", "high", "auto")], [0, 0, 0, 0])

    def test_stopped_layers(self) -> None:
        """A layer that has been silent while others were not is passed over, upwards if need be."""
        layers = [Layer(10.0), Layer(10.0), Layer(9.0)]
        self.assertIs(choose(layers, 2), layers[1])
        layers = [Layer(9.0), Layer(9.0), Layer(10.0)]
        self.assertIs(choose(layers, 0), layers[2])
        layers = [Layer(9.0, 0.5), Layer(10.0, 0.5)]
        self.assertIs(choose(layers, 0), layers[0])  # two frames a second: that is no silence
        layers = [Layer(7.9, 0.5), Layer(10.0, 0.5)]
        self.assertIs(choose(layers, 0), layers[1])
        layers = [Layer(float("-inf")), Layer(float("-inf"))]
        self.assertIs(choose(layers, 2), layers[1])
