"""Layers that nobody watches are asked of nobody."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.sfu.demand import PATIENCE, Demand
from orama.sfu.events import Layers, TrackState
from orama.sfu.values import Uplinked
from tests.sfu.clients import EXTENSIONS, VP8, Room, Source, camera, downlinked
from tests.sfu.guests import RoomsCase
from tests.sfu.layered import DESCRIBED, VP9, LayeredCamera


class DemandTests(SynchronousTestCase):
    def test_down_after_a_while(self) -> None:
        """A layer is called off when nobody has wanted it for two seconds in a row."""
        demand = Demand(3)
        self.assertFalse(demand.look(3, 0.0))
        self.assertFalse(demand.look(1, 1.0))
        self.assertFalse(demand.look(3, 1.5))
        self.assertFalse(demand.look(1, 2.0))
        self.assertFalse(demand.look(1, 3.9))
        self.assertTrue(demand.look(1, 2.0 + PATIENCE))
        self.assertEqual(demand.asked, 1)
        self.assertFalse(demand.look(1, 9.0))

    def test_up_at_once(self) -> None:
        """A layer that somebody wants is asked for with the next look."""
        demand = Demand(2)
        demand.look(0, 0.0)
        self.assertTrue(demand.look(0, PATIENCE))
        self.assertTrue(demand.look(1, PATIENCE))
        self.assertTrue(demand.look(2, PATIENCE))
        self.assertFalse(demand.look(2, PATIENCE))


class TrackTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.alice = self.room.client()
        self.alice.publish(Uplinked("camera", "0", "video", (VP8,), EXTENSIONS, rids=("l", "m", "h")))
        self.track = self.alice.media.tracks["camera"]
        self.told: list[tuple[str, ...]] = []
        self.track.asks = self.told.append

    def test_who_watches(self) -> None:
        """The publisher hears of the layers up to the highest that anybody asked for, of none when nobody is there."""
        self.room.wait(3)
        self.assertEqual(self.told, [()])
        bob, carol = self.room.client(), self.room.client()
        bob.media.subscribe(self.track, downlinked(camera()))
        bob.media.set_layer("camera", "low")
        self.room.wait(3)
        self.assertEqual(self.told[1:], [("low",)])
        carol.media.subscribe(self.track, downlinked(camera()))
        self.room.wait(0.05)
        self.assertEqual(self.told[2:], [("low", "mid", "high")])
        carol.media.set_layer("camera", "mid")
        self.room.wait(1)
        carol.media.set_layer("camera", "high")
        self.room.wait(3)
        self.assertEqual(self.told[3:], [])
        carol.media.set_layer("camera", "mid")
        self.room.wait(3)
        carol.media.close()
        bob.media.close()
        self.room.wait(3)
        self.assertEqual(self.told[3:], [("low", "mid"), ()])

    def test_a_pause_is_no_farewell(self) -> None:
        """Whose bandwidth is too small at the moment watches all the same: else nobody could tell what it takes."""
        bob = self.room.client()
        bob.media.subscribe(self.track, downlinked(camera()))
        bob.media._downlinks["camera"].allow(None, self.room.now)
        self.room.wait(3)
        self.assertEqual(self.told, [])

    def test_one_layer(self) -> None:
        """Of a track with one layer nobody speaks."""
        self.alice.publish(camera(ssrcs=((1, 11),)))
        self.alice.send(*Source(self.alice, 1).frame(key=True))
        self.room.wait(3)
        self.assertEqual(self.told, [])

    def test_scalable(self) -> None:
        """Layers of one stream are known with its first keyframe, and then asked for like others."""
        self.alice.publish(Uplinked("svc", "1", "video", (VP9,), DESCRIBED, ((1, 11),)))
        track, heard = self.alice.media.tracks["svc"], list[object]()
        track.asks, track.relayered = self.told.append, lambda: heard.append(track.layers)
        self.room.wait(3)
        self.assertEqual((heard, self.told), ([], []))
        source = LayeredCamera(self.alice, 1, mid="1")
        self.alice.send(*source.picture())
        self.room.wait(3)
        self.assertEqual((heard, self.told), ([("low", "mid", "high")], [()]))


class PeerTests(RoomsCase):
    def test_told(self) -> None:
        """The publisher hears what is watched, the others what there is to choose from."""
        one, two = self.guest(), self.guest()
        one.publish("video1")
        self.wait()
        track = one.peer.publications["video1"].track
        assert track.asks is not None and track.relayered is not None
        track.asks(("low",))
        self.assertEqual(one.told(Layers), [Layers("video1", "0", ("low",), ())])
        track.relayered()
        self.assertEqual((one.told(TrackState), two.told(TrackState)), ([], [TrackState("video1", False)]))
