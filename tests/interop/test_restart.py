"""An ICE restart that the SFU offers, as libwebrtc (``wrtc``) takes it."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, TestCase

from orama.sfu.events import Answer, Event, Offer
from tests.interop.house import House


class RestartTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        if importlib.util.find_spec("webrtc") is None:
            raise SkipTest("the module webrtc is missing: pip install wrtc")
        directory = Path(self.mktemp())
        directory.mkdir()
        self.house = House(directory)
        self.addCleanup(self.house.stop)

    def test_offered(self) -> Deferred[None]:
        """The client nominates another relay with the new credentials, and nothing that it sends is refused."""
        return Deferred.fromFuture(asyncio.ensure_future(self._offered()))

    async def _offered(self) -> None:
        import webrtc

        (server,) = self.house.ice_servers("udp")
        relay = webrtc.RTCIceServer(urls=server["urls"], username=server["username"], credential=server["credential"])
        client = webrtc.RTCPeerConnection(webrtc.RTCConfiguration(ice_servers=[relay], ice_transport_policy="relay"))
        events: asyncio.Queue[Event] = asyncio.Queue()
        peer = self.house.join("room", events.put_nowait)
        peer.others()
        peer.start()
        stream = await webrtc.media_devices.get_user_media(webrtc.MediaStreamConstraints(audio=True))
        (audio,) = stream.get_audio_tracks()
        client.add_transceiver(audio, webrtc.RTCRtpTransceiverInit(direction="sendonly", streams=[stream]))
        offer = await client.create_offer()
        await client.set_local_description(offer)
        peer.offer(offer.sdp)
        answering = asyncio.ensure_future(self._answer(client, peer, events))
        agent, media = peer.connection._agent, peer.connection.media
        try:
            await self._until(lambda: agent.nominated and media.stats().packets_received > 20)
            before, ufrag = agent.selected, agent.local_ufrag
            peer.connection.negotiator.restart()
            peer.connection.negotiate()
            await self._until(lambda: agent.selected != before)
            self.assertNotEqual(agent.local_ufrag, ufrag)
            self.assertTrue(agent.nominated)
            received = media.stats().packets_received
            await self._until(lambda: media.stats().packets_received > received + 50)
            self.assertEqual(dict(peer.connection._port.counters.dropped), {})
            self.assertEqual(dict(self.house.rooms._namespaces["default"].counters.media.dropped), {})
        finally:
            answering.cancel()
            peer.leave()
            client.close()

    async def _answer(self, client: Any, peer: Any, events: asyncio.Queue[Event]) -> None:
        import webrtc

        while True:
            event = await events.get()
            if isinstance(event, Offer | Answer):
                kind = "offer" if isinstance(event, Offer) else "answer"
                await client.set_remote_description(webrtc.RTCSessionDescription(type=kind, sdp=event.sdp))
                if isinstance(event, Offer):
                    answer = await client.create_answer()
                    await client.set_local_description(answer)
                    peer.answer(answer.sdp)

    async def _until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
