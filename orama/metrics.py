"""What Prometheus reads at ``/metrics``: the samples of every part, gathered when asked for.

A part offers ``samples()``, an iterable of (name, labels, value); a name that ends in ``_total`` is a counter, in
``_seconds_bucket``, ``_seconds_sum`` or ``_seconds_count`` part of a histogram, and any other a gauge. Nothing is
labelled with a user, a room or an address, so the number of series is bounded by the number of namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.application.internet import TimerService
from twisted.internet.interfaces import IReactorTime

from orama import reactors

Sample = tuple[str, Mapping[str, str], float]

#: Seconds between two looks at the event loop.
LAG_INTERVAL = 0.5
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
JOIN_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class _Gathered(Collector):
    """The samples of all parts as families of Prometheus."""

    def __init__(self, sources: list[Callable[[], Iterable[Sample]]], help_texts: Mapping[str, str]) -> None:
        self._sources = sources
        self._help = help_texts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for source in self._sources:
            for name, labels, value in source():
                stem, kind = _family(name)
                family = families.get(stem)
                if family is None:
                    text = self._help.get(name, stem.replace("_", " "))
                    family = families[stem] = Metric(stem, text, kind)
                family.add_sample(name, dict(labels), value)
        yield from families.values()


def _family(name: str) -> tuple[str, str]:
    """The family of a sample, and what that is."""
    if name.endswith("_total"):
        return name.removesuffix("_total"), "counter"
    for part in ("_bucket", "_sum", "_count"):
        if name.endswith(f"_seconds{part}"):
            return name.removesuffix(part), "histogram"
    return name, "gauge"


class Metrics:
    """The registry of one node."""

    def __init__(self, help_texts: Mapping[str, str] | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._sources: list[Callable[[], Iterable[Sample]]] = []
        self.registry.register(_Gathered(self._sources, help_texts or {}))
        self.loop_lag = Histogram(
            "orama_event_loop_lag_seconds",
            "How late the event loop ran a call that was due",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        self.join_time = Histogram(
            "orama_join_seconds",
            "From the first message of a client to its media path being secured",
            buckets=JOIN_BUCKETS,
            registry=self.registry,
        )

        self.first_frame = Histogram(
            "orama_sfu_first_frame_seconds",
            "From the start of a video subscription to its first keyframe",
            buckets=JOIN_BUCKETS,
            registry=self.registry,
        )

    def add(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Gather *source* too, whenever somebody asks."""
        self._sources.append(source)

    def text(self) -> bytes:
        """The exposition format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)


class LoopLag(TimerService):
    """Looks twice a second how late the event loop is, and tells *observe* in seconds.

    ``samples`` has what waits in the loop: figures that grow for ever where something is begun and never ended.
    """

    def __init__(self, clock: IReactorTime, observe: Callable[[float], None]) -> None:
        super().__init__(LAG_INTERVAL, self._look)
        self.clock = clock
        self._reactor = clock
        self._seconds = clock.seconds
        self._observe = observe
        self._due: float | None = None

    def startService(self) -> None:
        self._due = None
        super().startService()

    def _look(self) -> None:
        now = self._seconds()
        if self._due is not None:
            self._observe(max(0.0, now - self._due))
        self._due = now + LAG_INTERVAL

    def samples(self) -> Iterator[Sample]:
        yield "orama_event_loop_calls", {}, len(self._reactor.getDelayedCalls())
        yield "orama_event_loop_tasks", {}, reactors.tasks()
