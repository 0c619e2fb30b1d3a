"""A call with aiortc; see the package. It also tells ``flows``, how many tracks have brought :data:`FLOWS` packets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, VideoStreamTrack
from aiortc.rtcconfiguration import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy

from tests.interop.caller import Tone
from tests.interop.callers.asynchronous import PAUSE, orders, say

FLOWS = 30


class Call:
    def __init__(self, order: dict[str, Any]) -> None:
        server = RTCIceServer(order["uri"], order["username"], order["password"])
        self.connection = RTCPeerConnection(RTCConfiguration([server], RTCIceTransportPolicy.RELAY))
        self.connection.on("track", lambda track: self._keep(self._watch(track)))
        self.connection.on("datachannel", self._listen)
        self._name = order["name"]
        self._frames = {"audio": 0, "video": 0}
        self._heard: set[str] = set()
        self._tasks: set[asyncio.Future[None]] = set()

    async def publish(self) -> None:
        self.connection.addTrack(Tone())
        self.connection.addTrack(VideoStreamTrack())
        chat = self.connection.createDataChannel("chat")
        self._listen(chat)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        say(type="offer", sdp=self.connection.localDescription.sdp)
        self._keep(self._talk(chat))

    async def handle(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("offer", "answer"):
            return
        if message["type"] == "offer" and self.connection.signalingState != "stable":
            return  # glare: the SFU yields
        await self.connection.setRemoteDescription(RTCSessionDescription(message["sdp"], message["type"]))
        if message["type"] == "offer":
            await self.connection.setLocalDescription(await self.connection.createAnswer())
            say(type="answer", sdp=self.connection.localDescription.sdp)

    def _keep(self, work: Any) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _listen(self, channel: Any) -> None:
        channel.on("message", self._heard.add)

    async def _watch(self, track: Any) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await track.recv()
                self._frames[track.kind] += 1

    async def _talk(self, chat: Any) -> None:
        while True:
            if chat.readyState == "open":
                chat.send(f"hello from {self._name}")
            packets, flows = {"audio": 0, "video": 0}, {"audio": 0, "video": 0}
            for entry in (await self.connection.getStats()).values():
                if entry.type == "inbound-rtp":
                    packets[entry.kind] += entry.packetsReceived
                    flows[entry.kind] += entry.packetsReceived >= FLOWS
            state, heard = self.connection.connectionState, sorted(self._heard)
            frames = self._frames["video"]
            say(seen={"state": state, **packets, "flows": flows, "frames": frames, "heard": heard})
            await asyncio.sleep(PAUSE)


async def main() -> None:
    messages = orders()
    call = Call(await anext(messages))
    await call.publish()
    async for message in messages:
        await call.handle(message)
    # What aiortc would wait for is nobody's business any more.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
