"""A call made from a seed: who is there, over what lines, and what happens in it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, evolve
from twisted.logger import LogLevel, globalLogPublisher

from orama.sfu.downlink import FARTHEST
from orama.sfu.loss import MOST as MOST_MISSING
from orama.sfu.track import Track
from tests.sfu.clients import PROFILES
from tests.simulation.ciphers import Clear, Sealed
from tests.simulation.endpoint import Endpoint
from tests.simulation.forms import Form, command, form, path, shape
from tests.simulation.sources import Shape
from tests.simulation.watch import Watch
from tests.simulation.world import World

#: How old the newest picture, and what was said, may be then.
PICTURE_AGE, SOUND_AGE = 0.8, 0.6
#: Keyframes that one of several subscribers may wish for in ten seconds.
WISHES = 3


class Broken(AssertionError):
    """Something did not hold; the text has the seed."""


@define
class Outcome:
    """What a run was like, for figures."""

    seed: int
    #: Seconds of virtual time.
    seconds: float = 0.0
    packets: int = 0
    forwarded: int = 0
    retransmitted: int = 0
    recovered: int = 0
    keyframe_requests: int = 0


class Call:
    """One run."""

    def __init__(self, seed: int, form: Form) -> None:
        self.seed, self.form = seed, form
        self.world = World(seed)
        self.watch = Watch(self.world)
        self.random = random = Random(seed ^ 0x5EED)
        self.tracks: dict[str, tuple[Endpoint, Track]] = {}
        self.endpoints = [
            Endpoint(
                self.world,
                self.watch,
                f"peer{number}",
                Sealed(random.choice(PROFILES)) if form.sealed else Clear(),
                path(random),
                path(random),
                form.work,
            )
            for number in range(random.choice(form.clients))
        ]
        #: Who has transport-wide numbers on what it receives; most of the others send REMB.
        self.acknowledging = {endpoint for endpoint in self.endpoints if random.random() < 0.6}
        for endpoint in self.endpoints:
            endpoint.estimates = random.random() < 0.7
        self._failures: list[str] = []

    def run(self) -> Outcome:
        """
        :raises Broken: a rule was broken.
        """
        globalLogPublisher.addObserver(self._logged)
        try:
            self._join()
            self.world.run(1000 + self.form.trouble)
            self._calm()
            self.world.run(1000 + self.form.trouble + self.form.calm)
            self._end()
        finally:
            globalLogPublisher.removeObserver(self._logged)
        wrong = [*self._failures, *self.watch.violations]
        if wrong:
            text = "\n  ".join(wrong)
            raise Broken(f"seed {self.seed} ({command(self.seed, self.form)}):\n  {text}")
        counters = self.world.counters
        return Outcome(
            self.seed,
            self.world.now - 1000,
            counters.received,
            counters.forwarded,
            counters.retransmitted,
            counters.recovered,
            counters.keyframe_requests,
        )

    def _logged(self, event: Any) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            self._failures.append("an exception: " + (failure.getTraceback() if failure else str(event)))

    # ---- what happens

    def _join(self) -> None:
        random, world, form = self.random, self.world, self.form
        for number, endpoint in enumerate(self.endpoints):
            world.after(random.random() * form.joining, endpoint.secure)
            if number < form.publishers:
                films = number == 0 or random.random() < 0.3
                self._publish(endpoint, f"camera{number}", shape(random, form) if films else None)
                self._publish(endpoint, f"microphone{number}", None)
        for endpoint in self.endpoints:
            for track_id, (publisher, _) in self.tracks.items():
                if publisher is not endpoint:
                    self._subscribe(random.random() * form.subscribing, endpoint, track_id)
        events: tuple[Callable[[], None], ...] = (
            self._mute,
            self._unsubscribe,
            self._layer,
            self._layer,
            self._change_line,
            self._begin_anew,
        )
        for _ in range(random.randrange(form.events)):
            world.after(0.3 + random.random() * (form.trouble - 0.4), random.choice(events))

    def _publish(self, endpoint: Endpoint, track_id: str, films: Shape | None) -> None:
        if track_id.startswith("camera"):
            if films is None:
                return
            endpoint.camera(track_id, films)
            ssrcs = [each.ssrc for each in endpoint.encodings[track_id]]
        else:
            endpoint.microphone(track_id, self.random.random() < 0.4, self.form.sound)
            ssrcs = [endpoint.microphones[track_id].ssrc]
        self.watch.owners.update(dict.fromkeys(ssrcs, track_id))
        self.tracks[track_id] = endpoint, endpoint.media.tracks[track_id]

    def _subscribe(self, seconds: float, endpoint: Endpoint, track_id: str) -> None:
        takes_red, transport = self.random.random() < 0.5, endpoint in self.acknowledging

        def begin() -> None:
            if track_id in self.tracks and track_id not in endpoint.flows:
                endpoint.subscribe(self.tracks[track_id][1], takes_red, transport)

        self.world.after(seconds, begin)

    def _mute(self) -> None:
        track_id = self.random.choice(list(self.tracks))
        track = self.tracks[track_id][1]

        def mute(muted: bool) -> None:
            # The track does not send while it is being muted, so the order of the two is nobody's business.
            self.watch.mute(track_id, muted)
            track.muted = muted

        if not track.muted:
            mute(True)
            self.world.after(0.1 + self.random.random(), lambda: mute(False))

    def _unsubscribe(self) -> None:
        endpoint = self.random.choice(self.endpoints)
        if endpoint.flows:
            track_id = self.random.choice(list(endpoint.flows))
            endpoint.unsubscribe(track_id)
            self._subscribe(self.random.random() * 0.5, endpoint, track_id)

    def _layer(self) -> None:
        endpoint = self.random.choice(self.endpoints)
        cameras = [track_id for track_id, flow in endpoint.flows.items() if flow.kind == "video"]
        if cameras:
            endpoint.set_layer(self.random.choice(cameras), self.random.choice(("low", "mid", "high", "auto")))

    def _change_line(self) -> None:
        endpoint = self.random.choice(self.endpoints)
        link = self.random.choice((endpoint.up, endpoint.down))
        link.path = evolve(path(self.random), delay=link.path.delay)

    def _begin_anew(self) -> None:
        """A publisher stops a track for good and publishes another."""
        track_id = self.random.choice(list(self.tracks))
        endpoint, _ = self.tracks.pop(track_id)
        endpoint.withdraw(track_id)
        for each in self.endpoints:
            if (flow := each.flows.pop(track_id, None)) is not None:
                each.receivers.pop(flow.ssrc)
        fresh = f"{track_id}+"
        self._publish(endpoint, fresh, shape(self.random, self.form))
        for each in self.endpoints:
            if each is not endpoint:
                self._subscribe(self.random.random() * 0.3, each, fresh)

    # ---- the end

    def _calm(self) -> None:
        for endpoint in self.endpoints:
            endpoint.up.heal()
            endpoint.down.heal()

    def _end(self) -> None:
        watch, now = self.watch, self.world.now
        watch.finish()
        for endpoint in self.endpoints:
            self._well(endpoint, now)
            if endpoint.media._outbox.queue:
                watch.wrong(f"{endpoint.name}: packets wait that nobody sends")
            for track in endpoint.media.tracks.values():
                for stream in track.streams.values():
                    if len(stream.missing) > MOST_MISSING or len(stream.store) > stream.store.size:
                        watch.wrong(f"{track.track_id}: what is kept has no bound")

    def _well(self, endpoint: Endpoint, now: float) -> None:
        """With good lines for a while, everybody sees and hears what is new, and nothing is missing."""
        for receiver in endpoint.receivers.values():
            flow = receiver.flow
            if flow.track_id not in self.tracks:
                continue
            publisher, track = self.tracks[flow.track_id]
            if track.muted or flow.span is None or flow.cuts[-1] > now - PICTURE_AGE - 0.5:
                continue  # muted, or paused for want of bandwidth a moment ago
            if flow.kind == "video":
                if receiver.wishes > WISHES and len(self.watch.of(flow.track_id)) > 1:
                    continue  # it has used them up, and others get the stream too: it waits for somebody's keyframe
                if receiver.newest < now - PICTURE_AGE:
                    state = f"{len(receiver.missing)} missing, {len(receiver.waiting)} frames wait"
                    self.watch.wrong(f"{flow}: the newest picture is {now - receiver.newest:.3f} s old; {state}")
            else:
                said = self.watch.streams[publisher.microphones[flow.track_id].ssrc]
                recent = [each.time for each in said if each.payload and each.time < now - SOUND_AGE]
                if recent and receiver.newest < recent[-1]:
                    self.watch.wrong(f"{flow}: the newest sound is {now - receiver.newest:.3f} s old")
            old = [
                index
                for index, (tries, _) in receiver.missing.items()
                if tries > 3 and index < receiver.highest - FARTHEST
            ]
            if old:
                self.watch.wrong(f"{flow}: {old[:5]} stay missing")


def run(seed: int, chosen: Form | None = None) -> Outcome:
    """
    :raises Broken: a rule was broken.
    """
    return Call(seed, chosen or form(seed)).run()
