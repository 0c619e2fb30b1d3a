"""A whole client: aiortc for the media, relay only, and ``websocket-client`` for the signalling, read on a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamTrack
from aiortc.rtcconfiguration import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy

from tests.contract.signalling import Client, connect
from tests.node import NodeProcess


class Tone(AudioStreamTrack):
    """Audio that is not silence."""

    async def recv(self) -> Any:
        frame: Any = await super().recv()
        for plane in frame.planes:
            plane.update(b"\x00\x30\x00\xd0" * (plane.buffer_size // 4))
        return frame


class Caller:
    """
    :ivar frames: decoded frames by ``mid``. :ivar heard: data messages as (label, message).
    """

    def __init__(self, node: NodeProcess, room: str) -> None:
        self._node, self._room = node, room
        self.frames: dict[str, int] = {}
        self.heard: list[tuple[str, Any]] = []
        self.channels: dict[str, Any] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._taken = 0
        #: One description after the other: gathering candidates takes its time.
        self._turn = asyncio.Lock()
        self._trouble = ""
        self.client: Client
        self.connection: RTCPeerConnection

    async def join(self, resume: str | None = None) -> dict[str, Any]:
        """Take a place, or take it again; the ``welcome``."""
        self.client = await asyncio.to_thread(self.connect)
        self._taken = 0
        await self.say("join", **({} if resume is None else {"resume": resume}))
        welcome = await asyncio.to_thread(self.client.until, "welcome")
        credentials = await asyncio.to_thread(self.client.until, "turn-credentials")
        if resume is None:
            server = RTCIceServer(credentials["uris"][0], credentials["username"], credentials["password"])
            self.connection = RTCPeerConnection(RTCConfiguration([server], RTCIceTransportPolicy.RELAY))
            self.connection.on("track", self._track)
            self.connection.on("datachannel", self._channel)
        self._taken = len(self.client.received)
        self._spawn(self._listen(self.client))
        return welcome

    def connect(self) -> Client:
        """A socket of ours, on whatever thread."""
        return connect(self._node, self._room)

    async def say(self, kind: str, **fields: Any) -> None:
        await asyncio.to_thread(lambda: self.client.say(kind, **fields))

    async def publish(self) -> None:
        """Offer what has been added."""
        async with self._turn:
            await self.connection.setLocalDescription(await self.connection.createOffer())
            await self.say("offer", sdp=self.connection.localDescription.sdp)

    def open(self, label: str) -> Any:
        """A data channel of ours."""
        channel = self.connection.createDataChannel(label)
        self._channel(channel)
        return channel

    async def until(self, reached: Callable[[], object], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, (self.state(), self.client.received, self.client.code, self.frames)
            await asyncio.sleep(0.02)

    def state(self) -> str:
        """How far the connection has come, for whoever wonders."""
        connection = self.connection
        found = [f"{connection.connectionState}, signalling {connection.signalingState} {self._trouble}".rstrip()]
        for dtls in {each.sender.transport for each in connection.getTransceivers()}:
            ice = dtls.transport
            candidates = [f"{each.type} {each.ip}:{each.port}" for each in ice.iceGatherer.getLocalCandidates()]
            found.append(f"DTLS {dtls.state}, ICE {ice.state} from {candidates}")
        return "; ".join(found)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.client.received if message["type"] == kind]

    async def close(self) -> None:
        """Be gone: the socket, the connection, and all that runs."""
        self.client.drop()
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)

    async def _listen(self, client: Client) -> None:
        """Handle one message after the other until the socket is closed."""
        while await asyncio.to_thread(client._receive, time.monotonic() + 0.2) or client.code is None:
            while client is self.client and self._taken < len(client.received):
                message = client.received[self._taken]
                self._taken += 1
                if message["type"] in ("offer", "answer"):
                    try:
                        async with self._turn:
                            await self._described(message)
                    except Exception as error:
                        self._trouble = f"{message['type']}: {error!r}"
                        raise

    async def _described(self, message: dict[str, Any]) -> None:
        connection = self.connection
        if message["type"] == "offer" and connection.signalingState == "have-local-offer":
            return  # both have offered, and the SFU gives way: it answers, and offers again
        # As the seed has it: the message is the description.
        await connection.setRemoteDescription(RTCSessionDescription(message["sdp"], message["type"]))
        if message["type"] == "offer":
            await connection.setLocalDescription(await connection.createAnswer())
            await self.say("answer", sdp=connection.localDescription.sdp)

    def _track(self, track: MediaStreamTrack) -> None:
        mid = next(each.mid or "" for each in self.connection.getTransceivers() if each.receiver.track is track)
        self._spawn(self._consume(mid, track))

    async def _consume(self, mid: str, track: MediaStreamTrack) -> None:
        while True:
            await track.recv()
            self.frames[mid] = self.frames.get(mid, 0) + 1

    def _channel(self, channel: Any) -> None:
        self.channels[channel.label] = channel
        channel.on("message", lambda data: self.heard.append((channel.label, data)))
