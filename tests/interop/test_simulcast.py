"""Simulcast from libwebrtc: three layers through TURN, and a subscriber that goes up and down between them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiortc.mediastreams import MediaStreamTrack
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, TestCase

from orama.sfu import events
from tests.interop.aiortc_client import AiortcClient, deferred
from tests.interop.house import House

try:
    import webrtc
except ImportError:
    webrtc = None  # type: ignore[assignment]

WIDTH, HEIGHT = 1280, 720
#: rid → how much smaller than the camera.
RIDS = {"q": 4.0, "h": 2.0, "f": 1.0}
#: Frames of a size in a row after which a layer has settled, and the longest pause between two frames, seconds.
SETTLED = 20
PAUSE = 2.0


class Viewer(AiortcClient):
    """Notes when each frame came and how wide it is."""

    def __init__(self, house: House, room_id: str) -> None:
        self.widths: list[int] = []
        self.times: list[float] = []
        super().__init__(house, room_id)

    async def _consume(self, mid: str, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame: Any = await track.recv()
            except Exception:
                return
            self.widths.append(frame.width)
            self.times.append(asyncio.get_running_loop().time())
            self._changed.set()

    def shows(self, width: int) -> bool:
        return self.widths[-SETTLED:] == [width] * SETTLED


class Camera:
    """libwebrtc with a synthetic camera in three layers."""

    def __init__(self, house: House, room_id: str) -> None:
        (server,) = house.ice_servers("udp")
        self.connection = webrtc.RTCPeerConnection(
            webrtc.RTCConfiguration(ice_servers=[webrtc.RTCIceServer(**server)], ice_transport_policy="relay")
        )
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        self.peer = house.join(room_id, self._event)
        self.peer.others()
        self.peer.start()

    def _event(self, event: events.Event) -> None:
        if isinstance(event, events.Answer):
            self.answers.put_nowait(event.sdp)

    async def publish(self) -> None:
        constraints = webrtc.MediaStreamConstraints(
            audio=False, video=webrtc.MediaTrackConstraints(width=WIDTH, height=HEIGHT)
        )
        stream = await webrtc.media_devices.get_user_media(constraints)
        (track,) = stream.get_video_tracks()
        encodings = [
            webrtc.RTCRtpEncodingParameters(rid=rid, scale_resolution_down_by=factor) for rid, factor in RIDS.items()
        ]
        init = webrtc.RTCRtpTransceiverInit(direction="sendonly", streams=[stream], send_encodings=encodings)
        self.connection.add_transceiver(track, init)
        offer = await self.connection.create_offer()
        await self.connection.set_local_description(offer)
        self.peer.offer(offer.sdp)
        answer = await asyncio.wait_for(self.answers.get(), 10)
        await self.connection.set_remote_description(webrtc.RTCSessionDescription(type="answer", sdp=answer))

    def close(self) -> None:
        self.peer.leave()
        self.connection.close()


class SimulcastTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        if webrtc is None:
            raise SkipTest("the module webrtc is missing: pip install wrtc")
        directory = Path(self.mktemp())
        directory.mkdir()
        self.house = House(directory, media=(14300, 14319))

    def test_switching(self) -> None:
        """``subscribe`` with a layer gives that layer's pictures, in either direction, and decoding never stalls."""
        return deferred(self._switching())  # type: ignore[return-value]

    async def _switching(self) -> None:
        camera, viewer = Camera(self.house, "room"), Viewer(self.house, "room")
        try:
            await camera.publish()
            await viewer.until(lambda: bool(viewer.told(events.TrackAdded)))
            (added,) = viewer.told(events.TrackAdded)
            self.assertEqual(added.layers, ("low", "mid", "high"))
            # The upper layers come when libwebrtc has found out that there is room for them.
            await viewer.until(lambda: viewer.shows(WIDTH), 60)
            for layer, factor in (("low", 4), ("high", 1), ("mid", 2), ("low", 4), ("auto", 1)):
                viewer.peer.subscribe(added.track_id, layer, 0)
                await viewer.until(lambda width=WIDTH // factor: viewer.shows(width))  # type: ignore[misc]
            pauses = [after - before for before, after in zip(viewer.times, viewer.times[1:], strict=False)]
            self.assertLess(max(pauses), PAUSE, pauses)
        finally:
            camera.close()
            await viewer.close()
            await self._stop()

    def _stop(self) -> Any:
        done: Deferred[Any] = self.house.stop()
        return done.asFuture(asyncio.get_running_loop())
