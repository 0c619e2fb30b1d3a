"""What of its track one subscription is to get: what the client asked for, within what its bandwidth is enough for.

Simulcast is a choice among streams, everything else one among the layers of a stream (``sfu.projection`` leaves out the
rest). It says what should be; when that can begin is for ``sfu.downlink`` to see.
"""

from __future__ import annotations

from orama.sfu.layers import ceiling, choose
from orama.sfu.projection import Projection
from orama.sfu.qualities import Quality
from orama.sfu.selection import ALL
from orama.sfu.sequence import Span
from orama.sfu.stream import Stream
from orama.sfu.track import Track


class Choice:
    """The choice for one subscription.

    :ivar track: of which.
    :ivar layer: ``low``, ``mid``, ``high`` or ``auto``, as the client asked.
    :ivar priority: before other tracks of the subscriber, as the client asked.
    :ivar allowed: what the bandwidth is enough for; None while nobody has said.
    """

    __slots__ = ("_decided", "_wanted", "allowed", "layer", "priority", "track")

    def __init__(self, track: Track) -> None:
        self.track = track
        self.layer = "auto"
        self.priority = 0
        self.allowed: Quality | None = None
        # What the layers within a stream were decided by, and the layers.
        self._decided: tuple[object, ...] = ()
        self._wanted = ALL, ALL

    def stream(self) -> Stream | None:
        """The stream to forward; None while none flows."""
        return choose(self.track.places(), self._limit())

    def _limit(self) -> int:
        """The highest simulcast layer, counted from 0, that the client and the allocator leave."""
        count = len(self.track.rids)
        asked = ceiling(self.layer, count)
        return asked if self.allowed is None or count == 1 else min(asked, self.allowed.spatial)

    def within(self, stream: Stream) -> tuple[int, int]:
        """The highest layers within *stream*, spatial and temporal, that the client and the allocator leave."""
        allowed = self.allowed
        if len(self.track.rids) > 1:
            streams = self.track.places()
            if allowed is None or stream not in streams or streams.index(stream) < allowed.spatial:
                return ALL, ALL
            return self.track.spatial_layers(stream) - 1, allowed.temporal
        count = self.track.spatial_layers(stream)
        asked = ceiling(self.layer, count)
        spatial = asked if asked < count - 1 or self.layer == "low" else ALL
        if allowed is None or spatial < allowed.spatial:
            return spatial, ALL
        return allowed.spatial, allowed.temporal

    def fit(self, span: Span) -> None:
        """Leave out of the stream that is forwarded what is not wanted of it; call it every tick."""
        stream, layering = span.stream, span.stream.layering
        if layering is None:
            return
        # To decide takes 1.2 µs, to see that nothing has changed 0.3.
        by = stream, layering.spatial_layers, self.allowed, self.layer, self.track.rids
        if by != self._decided:
            self._decided, self._wanted = by, self.within(stream)
        wanted = self._wanted
        if span.projection is None:
            if not layering.reduces(*wanted):
                return
            span.projection = Projection(stream, *wanted, None, None)
        span.projection.want(*wanted)
        span.projection.look()

    def qualities(self, now: float) -> tuple[Quality, ...]:
        """What of :meth:`Track.qualities` the client wants: nothing above the layer that it has asked for."""
        found = self.track.qualities(now)
        limit = ceiling(self.layer, max(len(self.track.rids), 1 + max((each.spatial for each in found), default=0)))
        return tuple(each for each in found if each.spatial <= limit) or found[:1]

    def shown(self, span: Span) -> str | None:
        """The layer that *span* forwards: ``low``, ``mid`` or ``high``; None without layers."""
        layers, rids = self.track.layers, self.track.rids
        if not layers:
            return None
        if len(rids) > 1:
            return layers[rids.index(span.stream.rid)] if span.stream.rid in rids else None
        place = len(layers) - 1 if span.projection is None else span.projection.spatial
        return layers[min(place, len(layers) - 1)]
