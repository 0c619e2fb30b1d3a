"""A call with ``wrtc``, libwebrtc for Python; see the package. Also an order: ``svc``, a scalability mode for VP9."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import webrtc

from tests.interop.callers.asynchronous import PAUSE, orders, say

WIDTH, HEIGHT = 1280, 720
#: rid → how much smaller than the camera.
RIDS = {"q": 4.0, "h": 2.0, "f": 1.0}


class Call:
    def __init__(self, order: dict[str, Any]) -> None:
        server = webrtc.RTCIceServer(urls=order["uri"], username=order["username"], credential=order["password"])
        configuration = webrtc.RTCConfiguration(ice_servers=[server], ice_transport_policy="relay")
        self.connection = webrtc.RTCPeerConnection(configuration)
        self._order = order
        self._heard: set[str] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.connection.on("datachannel", self._listen)
        self.connection.on("icecandidate", self._found)

    async def publish(self) -> None:
        picture = webrtc.MediaTrackConstraints(width=WIDTH, height=HEIGHT)
        devices = webrtc.MediaStreamConstraints(audio=True, video=picture)
        stream = await webrtc.media_devices.get_user_media(devices)
        (audio,), (video,) = stream.get_audio_tracks(), stream.get_video_tracks()
        self.connection.add_transceiver(audio, webrtc.RTCRtpTransceiverInit(direction="sendonly", streams=[stream]))
        encodings = [webrtc.RTCRtpEncodingParameters()]
        if self._order["simulcast"]:
            encodings = [
                webrtc.RTCRtpEncodingParameters(rid=rid, scale_resolution_down_by=factor)
                for rid, factor in RIDS.items()
            ]
        elif self._order.get("svc"):
            encodings = [webrtc.RTCRtpEncodingParameters(scalability_mode=self._order["svc"])]
        init = webrtc.RTCRtpTransceiverInit(direction="sendonly", streams=[stream], send_encodings=encodings)
        transceiver = self.connection.add_transceiver(video, init)
        if self._order.get("svc"):
            codecs = webrtc.RTCRtpSender.get_capabilities("video").codecs
            wanted = [codec for codec in codecs if codec.mime_type.lower() in ("video/vp9", "video/rtx")]
            transceiver.set_codec_preferences(wanted)
        chat = self.connection.create_data_channel("chat")
        self._listen(chat)
        offer = await self.connection.create_offer()
        await self.connection.set_local_description(offer)
        say(type="offer", sdp=offer.sdp)
        self._tasks.add(asyncio.ensure_future(self._talk(chat)))

    async def handle(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("offer", "answer"):
            return
        if message["type"] == "offer" and not str(self.connection.signaling_state).endswith("stable"):
            return  # glare: the SFU yields
        description = webrtc.RTCSessionDescription(type=message["type"], sdp=message["sdp"])
        await self.connection.set_remote_description(description)
        if message["type"] == "offer":
            answer = await self.connection.create_answer()
            await self.connection.set_local_description(answer)
            say(type="answer", sdp=answer.sdp)

    def _found(self, event: Any) -> None:
        candidate = getattr(event, "candidate", event)
        if candidate is not None and candidate.candidate:
            line, index = candidate.sdp_mid, candidate.sdp_m_line_index
            say(type="ice-candidate", candidate=candidate.candidate, sdpMid=line, sdpMLineIndex=index)

    def _listen(self, channel: Any) -> None:
        channel = getattr(channel, "channel", channel)
        channel.on("message", lambda event: self._heard.add(str(getattr(event, "data", event))))

    async def _talk(self, chat: Any) -> None:
        while True:
            if str(chat.ready_state).endswith("open"):
                chat.send(f"hello from {self._order['name']}")
            seen: dict[str, Any] = {"audio": 0, "video": 0, "frames": 0, "layers": 0}
            for entry in (await self.connection.get_stats()).values():
                if entry.type == "inbound-rtp":
                    seen[entry.kind] += entry.packets_received or 0
                    seen["frames"] += getattr(entry, "frames_decoded", 0) or 0
                elif entry.type == "outbound-rtp" and entry.kind == "video":
                    seen["layers"] += bool(getattr(entry, "frames_encoded", 0))
            say(seen={"state": str(self.connection.connection_state), **seen, "heard": sorted(self._heard)})
            await asyncio.sleep(PAUSE)


async def main() -> None:
    messages = orders()
    call = Call(await anext(messages))
    await call.publish()
    async for message in messages:
        await call.handle(message)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
