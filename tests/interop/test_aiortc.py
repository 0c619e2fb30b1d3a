"""aiortc as a client: relay only, publishing and subscribing through our TURN server and rooms in this process."""

from __future__ import annotations

import asyncio
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from aiortc.mediastreams import AudioStreamTrack
from aiortc.rtcconfiguration import RTCBundlePolicy
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.errors import SignalError
from orama.sfu.events import DataChannel, Error, PeerLeft, TrackAdded, TrackRemoved
from tests.interop.aiortc_client import AiortcClient, deferred
from tests.interop.house import House

FRAMES = 30
PACKETS = 80


def seen(client: AiortcClient, publishers: int = 1) -> bool:
    """Whether *client* has decoded enough of a microphone and a camera from so many others."""
    audio, video = client.frames_of("audio"), client.frames_of("video")
    return (
        len(audio) == len(video) == publishers
        and all(count >= PACKETS for count in audio)
        and all(count >= FRAMES for count in video)
    )


class AiortcTestCase(TestCase):
    timeout = 300
    #: Processes that serve TURN.
    workers = 1

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.house = House(directory, workers=self.workers)
        self.clients: list[AiortcClient] = []
        self.addCleanup(lambda: deferred(self._stop()))
        certificates = str(directory / "self-signed.crt")
        self._environment("SSL_CERT_FILE", certificates)

    def _environment(self, name: str, value: str) -> None:
        before = os.environ.get(name)
        os.environ[name] = value
        self.addCleanup(lambda: os.environ.pop(name) if before is None else os.environ.__setitem__(name, before))

    async def _stop(self) -> None:
        for client in self.clients:
            await client.close()
        await self.house.stop().asFuture(asyncio.get_running_loop())

    def client(self, transport: str = "udp", **options: Any) -> AiortcClient:
        client = AiortcClient(self.house, "room", transport, **options)
        self.clients.append(client)
        return client

    async def _call(self, transport: str) -> None:
        one, two = self.client(transport), self.client(transport)
        channel = one.connection.createDataChannel("chat")
        await one.publish("audio", "video")
        await two.publish("audio", "video")
        await one.until(lambda: seen(one))
        await two.until(lambda: seen(two))
        await two.until(lambda: bool(two.channels))
        channel.send("hello")
        channel.send(b"\x00\xff")
        await two.until(lambda: len(two.heard) == 2)
        self.assertEqual(two.heard, [("chat", "hello"), ("chat", b"\x00\xff")])
        two.channels[0].send("back")
        await one.until(lambda: bool(one.heard))
        self.assertEqual(one.heard, [("chat", "back")])
        self.assertEqual(
            [(event.peer_id, event.label) for event in two.told(DataChannel)], [(one.peer.peer_id, "chat")]
        )
        self.assertEqual({event.kind for event in two.told(TrackAdded)}, {"audio", "video"})


class AiortcTests(AiortcTestCase):
    def test_udp(self) -> Deferred[None]:
        """Two clients over TURN/UDP: audio, video and data both ways."""
        return deferred(self._call("udp"))

    def test_tcp(self) -> Deferred[None]:
        """The same over TURN/TCP."""
        return deferred(self._call("tcp"))

    def test_tls(self) -> Deferred[None]:
        """The same over TURN/TLS, with a certificate that the client checks."""
        return deferred(self._call("tls"))

    def test_all_media_goes_through_relays(self) -> Deferred[None]:
        """The clients' candidates are relay addresses of ours, and the SFU sends to nothing else."""

        async def call() -> None:
            one, two = self.client(), self.client()
            await one.publish("audio", "video")
            await two.until(lambda: seen(two))
            for client in (one, two):
                agent = client.peer.connection._agent
                assert agent.selected is not None
                self.assertTrue(49152 <= agent.selected[1] <= 49951)
            self.assertEqual(self.house.turn.allocations(), 2)

        return deferred(call())

    def test_coming_and_going(self) -> Deferred[None]:
        """Who comes later gets what is there; who leaves is gone for all; the m-lines are used again."""

        async def call() -> None:
            one, two = self.client(), self.client()
            await one.publish("audio", "video")
            await two.publish("audio", "video")
            await one.until(lambda: seen(one))
            # With its usual policy aiortc loses the second video of a first offer.
            three = self.client(bundle=RTCBundlePolicy.MAX_BUNDLE)
            await three.until(lambda: seen(three, publishers=2))
            await two.close()
            self.clients.remove(two)
            await one.until(lambda: bool(one.told(PeerLeft)))
            self.assertEqual(len(one.told(TrackRemoved)), 2)
            four = self.client()
            await four.publish("audio", "video")
            mids = [event.mid for event in three.told(TrackAdded)]
            await three.until(lambda: len(three.told(TrackAdded)) == 6)
            again = [event.mid for event in three.told(TrackAdded)][4:]
            self.assertLessEqual(set(again), set(mids))
            await three.until(lambda: len(three.peer.connection.negotiator.mids) == 4 and three.negotiated())
            self.assertEqual(len(three.connection.getTransceivers()), 4)
            # aiortc does not see that the SSRC on an m-line has changed: what counts here is what it is sent.
            sent = three.peer.connection.media.stats().packets_sent
            await three.until(lambda: three.peer.connection.media.stats().packets_sent >= sent + 4 * FRAMES)

        return deferred(call())

    def test_unsubscribing(self) -> Deferred[None]:
        """A track that is not wanted any more stops coming, and comes again when it is."""

        async def call() -> None:
            one, two = self.client(), self.client()
            await one.publish("video")
            await two.until(lambda: two.frames_of("video") and two.frames_of("video")[0] >= FRAMES)
            (added,) = two.told(TrackAdded)
            two.peer.unsubscribe(added.track_id)
            downlinks = two.peer.connection.media._downlinks
            self.assertEqual(len(downlinks), 0)
            await two.until(lambda: two.connection.getTransceivers()[0].currentDirection == "inactive")
            count = two.frames[added.mid]
            two.peer.subscribe(added.track_id)
            await two.until(lambda: two.frames[added.mid] >= count + FRAMES)
            self.assertEqual(len(two.told(TrackAdded)), 2)

        return deferred(call())

    def test_muting(self) -> Deferred[None]:
        """Nothing of a muted track is forwarded, and everything again once it is unmuted."""

        async def call() -> None:
            one, two = self.client(), self.client()
            await one.publish("audio")
            await two.until(lambda: two.frames_of("audio") and two.frames_of("audio")[0] >= 10)
            counters = two.peer.connection.media
            track_id = two.told(TrackAdded)[0].track_id
            one.peer.track_state(track_id, True)
            sent = counters.stats().packets_sent
            received = one.peer.connection.media.stats().packets_received
            await one.until(lambda: one.peer.connection.media.stats().packets_received >= received + 10)
            self.assertEqual(counters.stats().packets_sent, sent)
            one.peer.track_state(one.connection.getTransceivers()[0].mid, False)
            await two.until(lambda: counters.stats().packets_sent >= sent + 10)

        return deferred(call())

    def test_closing_the_connection_leaves(self) -> Deferred[None]:
        """A client that closes its connection is gone at once, whatever its signalling does."""

        async def call() -> None:
            one, two = self.client(), self.client()
            await one.publish("audio")
            await two.until(lambda: sum(two.frames_of("audio")) > 0)
            await one.connection.close()
            await two.until(lambda: bool(two.told(PeerLeft)))
            self.assertEqual(two.told(PeerLeft)[0].reason, "left")
            self.assertTrue(one.peer.left)
            with self.assertRaises(SignalError) as caught:
                one.peer.track_state("x", True)
            self.assertEqual(caught.exception.code, "not_joined")

        return deferred(call())

    def test_wrong_fingerprint(self) -> Deferred[None]:
        """A certificate that is not that of the description ends in a fatal ``invalid_offer``, for nobody else."""

        async def call() -> None:
            one, two, stranger = self.client(), self.client(), self.client()
            await one.publish("audio")
            stranger.connection.addTrack(AudioStreamTrack())
            await stranger.connection.setLocalDescription(await stranger.connection.createOffer())
            text = stranger.connection.localDescription.sdp
            stranger.peer.offer(re.sub(r"(a=fingerprint:sha-256) \S+", r"\1 " + ":".join(["AB"] * 32), text))
            await stranger.until(lambda: bool(stranger.told(Error)))
            (error,) = stranger.told(Error)
            self.assertEqual((error.code, error.fatal), ("invalid_offer", True))
            self.assertTrue(stranger.peer.left)
            await two.until(lambda: sum(two.frames_of("audio")) >= 10)

        return deferred(call())

    def test_joining_is_quick(self) -> Deferred[None]:
        """From the join to the keys it takes well under two seconds on loopback, and twice that on a busy machine."""
        took: list[float] = []
        self.house.rooms.on_secured = took.append

        async def call() -> None:
            began = time.monotonic()
            one, two = self.client(), self.client()
            await one.publish("audio")
            await two.until(lambda: sum(two.frames_of("audio")) > 0)
            self.assertEqual(len(took), 2)
            self.assertLess(max(took), 4.0)
            self.assertLess(time.monotonic() - began, 12.0)

        return deferred(call())


class WorkersTests(AiortcTestCase):
    """Where TURN is several processes, of which one has the SFU."""

    workers = 3

    def test_call(self) -> Deferred[None]:
        """Whichever processes they come to, three clients hear and see the one that speaks."""

        async def call() -> None:
            await self.client().publish("audio", "video")
            for client in [self.client(transport) for transport in ("udp", "tcp", "tls")]:
                await client.until(partial(seen, client))

        return deferred(call())
