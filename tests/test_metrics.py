"""What ``/metrics`` says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.metrics import LAG_INTERVAL, LoopLag, Metrics


class MetricsTests(SynchronousTestCase):
    def test_samples(self) -> None:
        """Samples of several parts come out as one family each, counters and gauges by their names."""
        metrics = Metrics({"orama_packets_total": "Packets that came"})
        metrics.add(lambda: [("orama_packets_total", {"namespace": "a"}, 3), ("orama_rooms", {}, 2)])
        metrics.add(lambda: [("orama_packets_total", {"namespace": "b"}, 4)])
        lines = metrics.text().decode().splitlines()
        self.assertIn("# HELP orama_packets_total Packets that came", lines)
        self.assertIn("# TYPE orama_packets_total counter", lines)
        self.assertEqual(lines.count("# TYPE orama_packets_total counter"), 1)
        self.assertIn('orama_packets_total{namespace="a"} 3.0', lines)
        self.assertIn('orama_packets_total{namespace="b"} 4.0', lines)
        self.assertIn("# TYPE orama_rooms gauge", lines)
        self.assertIn("orama_rooms 2.0", lines)

    def test_gathered_histogram(self) -> None:
        """Buckets, sum and count of a part are one histogram."""
        metrics = Metrics()
        name = "orama_transit_seconds"
        metrics.add(
            lambda: [
                (f"{name}_bucket", {"le": "0.1"}, 1),
                (f"{name}_bucket", {"le": "+Inf"}, 2),
                (f"{name}_sum", {}, 0.5),
                (f"{name}_count", {}, 2),
            ]
        )
        (family,) = [each for each in text_string_to_metric_families(metrics.text().decode()) if each.name == name]
        self.assertEqual((family.type, len(family.samples)), ("histogram", 4))

    def test_histograms(self) -> None:
        """Join time and event-loop lag are histograms."""
        text = Metrics().text().decode()
        self.assertIn("# TYPE orama_join_seconds histogram", text)
        self.assertIn("# TYPE orama_event_loop_lag_seconds histogram", text)


class LoopLagTests(SynchronousTestCase):
    def test_lateness(self) -> None:
        """The lag is how much later than due the call came; none is told for the first."""
        clock = Clock()
        seen: list[float] = []
        lag = LoopLag(clock, seen.append)
        lag.startService()
        self.assertEqual(seen, [])
        clock.advance(LAG_INTERVAL)
        self.assertEqual(seen, [0.0])
        clock.advance(LAG_INTERVAL + 0.25)
        self.assertAlmostEqual(seen[1], 0.25)
        self.successResultOf(lag.stopService())
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_what_waits(self) -> None:
        """The calls and the tasks that wait in the loop are counted; a loop of Twisted's alone has no tasks."""
        clock = Clock()
        lag = LoopLag(clock, lambda seconds: None)
        clock.callLater(1, list)
        values = {name: value for name, _, value in lag.samples()}
        self.assertEqual(values["orama_event_loop_calls"], 1)
        self.assertIn("orama_event_loop_tasks", values)
