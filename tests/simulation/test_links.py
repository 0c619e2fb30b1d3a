"""Subscribers on thin lines: what the SFU takes their links for, what they get, and what others notice."""

from __future__ import annotations

from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.departures import MOST_DOUBTFUL
from orama.sfu.projection import FRAMES
from orama.sfu.reports import REPORTS
from orama.sfu.retransmission import REMEMBERED
from tests.simulation.endpoint import Endpoint
from tests.simulation.sources import Shape
from tests.simulation.watch import Watch
from tests.simulation.weight import weight
from tests.simulation.world import Path, World

#: Simulcast as browsers send it, about 2.1 Mbit/s in all.
LAYERS = Shape("vp8", (150_000, 500_000, 1_500_000), 3, fps=24)


#: What takes longer to fill than a test; sound and picture have one each.
BOUNDS = {
    "Resends._tries": 2 * REMEMBERED,
    "Projection._frames": 2 * FRAMES,
    "Departures._doubtful": MOST_DOUBTFUL,
    "RoundTrip._sent": REPORTS,
}
#: Entries by which one moment differs from another; an entry for each frame would be 200.
SLACK = 100
#: Two layers of few packets.
MODEST = Shape("vp8", (50_000, 120_000), 1, fps=10)


class Meeting:
    """A publisher of camera and microphone on a good line, and subscribers on lines of their own."""

    def __init__(self, seed: int, *lines: Path, films: Shape = LAYERS, transport: bool = True) -> None:
        self.world = World(seed)
        self.watch = Watch(self.world)
        self.publisher = Endpoint(self.world, self.watch, "publisher")
        self.subscribers = [
            Endpoint(self.world, self.watch, f"subscriber{number}", up=Path(delay=line.delay), down=line)
            for number, line in enumerate(lines)
        ]
        for each in (self.publisher, *self.subscribers):
            each.secure()
        self.publisher.camera("camera", films)
        self.publisher.microphone("microphone")
        tracks = self.publisher.media.tracks
        for ssrc in [each.ssrc for each in self.publisher.encodings["camera"]]:
            self.watch.owners[ssrc] = "camera"
        self.watch.owners[self.publisher.microphones["microphone"].ssrc] = "microphone"
        self.world.run(1000.2)
        for each in self.subscribers:
            for track in tracks.values():
                each.subscribe(track, transport=transport)

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    def estimates(self, seconds: float) -> list[float]:
        """The mean of each subscriber's estimate over the next *seconds*, bits a second."""
        sums = [0.0] * len(self.subscribers)
        steps = round(seconds / 0.1)
        for _ in range(steps):
            self.run(0.1)
            for number, each in enumerate(self.subscribers):
                sums[number] += each.media.stats().estimate or 0.0
        return [each / steps for each in sums]

    def sound(self, subscriber: Endpoint, since: float) -> float:
        """The part of what was said since *since*, but for the last moment, that has arrived."""
        flow = subscriber.flows["microphone"]
        receiver = subscriber.receivers[flow.ssrc]
        ssrc = self.publisher.microphones["microphone"].ssrc
        said = [each for each in self.watch.streams[ssrc] if since <= each.time < self.world.now - 1 and each.payload]
        heard = [each for each in said if flow.index_of(each) in receiver.got]
        return len(heard) / len(said)

    def pictures(self, subscriber: Endpoint, since: float) -> dict[int, int]:
        """Simulcast layer → pictures of it that were decoded, of those that were taken since *since*."""
        flow = subscriber.flows["camera"]
        layers = {each.ssrc: each.layer for each in self.publisher.encodings["camera"]}
        taken = {
            (each.ssrc, each.picture) for ssrc in layers for each in self.watch.streams[ssrc] if each.time >= since
        }
        found = dict.fromkeys(layers.values(), 0)
        for ssrc, picture, _ in subscriber.receivers[flow.ssrc].decoded:
            if (ssrc, picture) in taken:
                found[layers[ssrc]] += 1
        return found


class LinkTests(SynchronousTestCase):
    def assert_kept(self, meeting: Meeting) -> None:
        """The rules of ``watch``, and those about the end for sound alone, which is never held back."""
        for flow in meeting.watch.of("microphone"):
            flow.finish()
        self.assertEqual(meeting.watch.violations, [])

    def test_estimates(self) -> None:
        """An estimate is within 20 % of the link where more is wanted than it takes, and sound is whole."""
        for number, line in enumerate(
            (
                Path(delay=0.02, rate=300_000, queue=0.5),
                Path(delay=0.1, rate=900_000, queue=0.3),
                Path(delay=0.02, rate=1_200_000, queue=0.3, loss=0.02),
                Path(delay=0.05, jitter=0.01, rate=600_000, queue=0.5),
            )
        ):
            meeting = Meeting(number, line)
            meeting.run(12)
            since = meeting.world.now
            (estimate,) = meeting.estimates(8)
            assert line.rate is not None
            self.assertApproximates(estimate / line.rate, 1.0, 0.2, f"{line}")
            self.assertGreater(meeting.sound(meeting.subscribers[0], since), 0.99 - 4 * line.loss, f"{line}")
            self.assertGreater(sum(meeting.pictures(meeting.subscribers[0], since).values()), 8 * LAYERS.fps * 0.8)
            self.assert_kept(meeting)

    def test_thin_beside_thick(self) -> None:
        """One on 300 kbit/s hears everything and sees the lowest layer; the others see the best and notice nothing."""
        meeting = Meeting(9, Path(delay=0.02, rate=300_000, queue=0.4), Path(delay=0.02), Path(delay=0.02))
        meeting.run(8)
        since = meeting.world.now
        meeting.run(5)
        thin, *thick = meeting.subscribers
        self.assertGreater(meeting.sound(thin, since), 0.99)
        low, *others = meeting.pictures(thin, since).values()
        self.assertEqual(others, [0, 0])
        self.assertGreater(low, 5 * LAYERS.fps * 0.8)
        for each in thick:
            self.assertEqual(meeting.sound(each, since), 1.0)
            self.assertGreaterEqual(meeting.pictures(each, since)[2], 5 * LAYERS.fps - 2)
            self.assertEqual(each.receivers[each.flows["camera"].ssrc].wishes, 0)
        self.assert_kept(meeting)

    def test_a_link_falls(self) -> None:
        """When a link falls to a fifth sound is whole again after three seconds, and pictures come in what is left."""
        meeting = Meeting(4, Path(delay=0.03, rate=2_500_000, queue=0.3))
        meeting.run(6)
        subscriber = meeting.subscribers[0]
        self.assertGreater(meeting.pictures(subscriber, meeting.world.now - 2)[2], LAYERS.fps)
        subscriber.down.path = Path(delay=0.03, rate=400_000, queue=0.3)
        meeting.run(3)
        since = meeting.world.now
        meeting.run(5)
        self.assertGreater(meeting.sound(subscriber, since), 0.98)
        low, mid, high = meeting.pictures(subscriber, since).values()
        self.assertGreater(low, 4 * LAYERS.fps * 0.8)
        self.assertEqual((mid, high), (0, 0))
        self.assert_kept(meeting)

    def test_a_link_recovers(self) -> None:
        """A link that was too thin for any picture, and is good again, has the best one within 25 seconds, whatever its
        client tells: transport-wide feedback or REMB, even when that has ended meanwhile, or reports alone."""
        for tells in ("feedback", "feedback that ends", "remb", "remb that ends", "reports"):
            meeting = Meeting(7, Path(delay=0.03), transport=tells.startswith("feedback"), films=MODEST)
            (subscriber,) = meeting.subscribers
            subscriber.estimates = tells.startswith("remb")
            meeting.run(4)
            subscriber.down.path = Path(delay=0.03, rate=60_000, queue=0.4)
            meeting.run(5)
            if tells.endswith("ends"):
                subscriber.only_report()
            since = meeting.world.now
            meeting.run(10)
            self.assertGreater(meeting.sound(subscriber, since), 0.6, tells)
            subscriber.down.heal()
            meeting.run(25)
            since = meeting.world.now
            meeting.run(3)
            self.assertEqual(meeting.sound(subscriber, since), 1.0, tells)
            self.assertGreater(meeting.pictures(subscriber, since)[1], 2 * MODEST.fps, tells)
            self.assert_kept(meeting)

    def test_nothing_grows(self) -> None:
        """On lines that lose, repeat and queue, the SFU holds no more after half a minute than after ten seconds but
        for what has a bound of its own: there is no queue without one."""
        meeting = Meeting(5, Path(delay=0.05, jitter=0.03, loss=0.05, rate=250_000, duplicates=0.05), films=MODEST)
        meeting.publisher.up.path = Path(delay=0.02, jitter=0.03, loss=0.05)
        (subscriber,) = meeting.subscribers
        before: Counter[str] = Counter()
        for moment in range(20):
            meeting.run(0.5)
            if moment > 10:
                before |= weight(subscriber.media) | weight(meeting.publisher.media)
        meeting.run(20)
        after = weight(subscriber.media) | weight(meeting.publisher.media)
        grown = {name: (before[name], count) for name, count in after.items() if count > before[name] + SLACK}
        self.assertEqual({name: found for name, found in grown.items() if found[1] > BOUNDS.get(name, 0)}, {})
        self.assertGreater(before["PacketStore._slots"], 30)
        self.assert_kept(meeting)
