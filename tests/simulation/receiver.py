"""What a client does with one subscription: a jitter buffer, and a decoder that knows what depends on what."""

from __future__ import annotations

from attrs import define, field

from tests.simulation.flow import Flow
from tests.simulation.sources import Sent

#: Seconds until the first NACK, and without a decoded picture until a keyframe is asked for.
NACK_DELAY, STUCK = 0.01, 0.4
NACK_TRIES = 10


@define(eq=False)
class Receiver:
    """What arrives of one subscription: a jitter buffer, and a decoder that knows what depends on what."""

    flow: Flow
    first: int = -1
    highest: int = -1
    received: int = 0
    got: set[int] = field(factory=set)
    #: index → (tries, time of the next)
    missing: dict[int, tuple[int, float]] = field(factory=dict)
    #: frame → packets of it that are here
    frames: dict[tuple[int, int, int], set[int]] = field(factory=dict)
    decoded: set[tuple[int, int, int]] = field(factory=set)
    waiting: dict[tuple[int, int, int], Sent] = field(factory=dict)
    last_decoded: float = 0.0
    newest: float = 0.0
    last_wish: float = 0.0
    last_report: tuple[int, float] = (0, 0.0)
    wishes: int = 0
    #: Of the report before.
    _expected: int = 0
    _came: int = 0

    def take(self, index: int, sent: Sent | None, now: float) -> None:
        """A packet, or an empty one."""
        if self.first < 0:
            self.first = self.highest = index
        if index in self.got:
            return
        self.got.add(index)
        self.received += 1
        if index > self.highest:
            for each in range(self.highest + 1, index):
                self.missing[each] = (0, now + NACK_DELAY)
            self.highest = index
        else:
            self.missing.pop(index, None)
        if sent is None:
            return
        if self.flow.kind == "audio":
            self.last_decoded, self.newest = now, max(self.newest, sent.time)
            return
        frame = (sent.ssrc, sent.picture, sent.spatial)
        here = self.frames.setdefault(frame, set())
        here.add(sent.number)
        if len(here) == sent.count:
            self.waiting[frame] = sent
            self._decode(now)

    def lost(self) -> tuple[int, int]:
        """For a receiver report (RFC 3550, A.3): the part that was lost since the last, in 1/256, and all."""
        expected = self.highest - self.first + 1
        fresh, came = expected - self._expected, self.received - self._came
        self._expected, self._came = expected, self.received
        fraction = max(0, min(255, (fresh - came) * 256 // fresh)) if fresh > 0 else 0
        return fraction, expected - self.received

    def _decode(self, now: float) -> None:
        again = True
        while again:
            again = False
            for frame, sent in list(self.waiting.items()):
                if all((frame[0], *ref) in self.decoded for ref in sent.refs):
                    del self.waiting[frame]
                    self.decoded.add(frame)
                    self.last_decoded, self.newest, again = now, max(self.newest, sent.time), True
                    if sent.key and sent.spatial == 0:
                        self._begin(sent)

    def _begin(self, sent: Sent) -> None:
        """A decoder that has a keyframe forgets what came before it."""
        start = self.flow.index_of(sent)
        self.missing = {index: state for index, state in self.missing.items() if start is None or index >= start}
        self.waiting = {frame: each for frame, each in self.waiting.items() if each.time >= sent.time}

    def due(self, now: float, round_trip: float) -> list[int]:
        asked = []
        for index, (tries, when) in list(self.missing.items()):
            if when <= now:
                if tries == NACK_TRIES:
                    del self.missing[index]
                    continue
                asked.append(index)
                self.missing[index] = (tries + 1, now + max(0.05, round_trip))
        return asked[:200]

    def stuck(self, now: float) -> bool:
        """Whether to ask for a keyframe now."""
        if self.flow.kind == "audio" or self.first < 0 or now - max(self.last_decoded, self.last_wish) < STUCK:
            return False
        self.last_wish = now
        self.wishes += 1
        return True
