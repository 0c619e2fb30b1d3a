"""A client made of aiortc, relay only, that speaks to the rooms without a socket in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamTrack, VideoStreamTrack
from aiortc.rtcconfiguration import RTCBundlePolicy, RTCConfiguration, RTCIceServer, RTCIceTransportPolicy
from twisted.internet.defer import Deferred

from orama.errors import SignalError
from orama.sfu import events
from tests.interop.house import EVERYTHING, House


def deferred(coroutine: Any) -> Deferred[Any]:
    """An asyncio coroutine for trial."""
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))


class AiortcClient:
    """Handles one signalling message after the other, as the room's own client does.

    :ivar frames: how many decoded frames each track brought, by mid.
    :ivar heard: data messages as (label, message).
    """

    def __init__(
        self,
        house: House,
        room_id: str,
        transport: str = "udp",
        permissions: frozenset[str] = EVERYTHING,
        bundle: RTCBundlePolicy = RTCBundlePolicy.BALANCED,
    ) -> None:
        servers = [RTCIceServer(**server) for server in house.ice_servers(transport)]
        configuration = RTCConfiguration(servers, RTCIceTransportPolicy.RELAY, bundle)
        self.connection = RTCPeerConnection(configuration)
        self.events: list[events.Event] = []
        self.frames: dict[str, int] = {}
        self.kinds: dict[str, str] = {}
        self.heard: list[tuple[str, Any]] = []
        self.channels: list[Any] = []
        self.errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self.connection.on("track", self._track)
        self.connection.on("datachannel", self._channel)
        self.peer = house.join(room_id, self._event, permissions)
        self.peer.others()
        self.peer.start()

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[assignment]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(task.exception())  # type: ignore[arg-type]
            self._changed.set()

    def _event(self, event: events.Event) -> None:
        self.events.append(event)
        self._changed.set()
        if isinstance(event, events.Offer | events.Answer):
            self._spawn(self._described(event))

    async def _described(self, event: events.Offer | events.Answer) -> None:
        async with self._turn:
            await self._apply(event)
        self._changed.set()

    async def _apply(self, event: events.Offer | events.Answer) -> None:
        connection = self.connection
        if isinstance(event, events.Answer):
            await connection.setRemoteDescription(RTCSessionDescription(event.sdp, "answer"))
        elif connection.signalingState == "stable":
            await connection.setRemoteDescription(RTCSessionDescription(event.sdp, "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
            self.peer.answer(connection.localDescription.sdp)

    async def offer(self) -> None:
        async with self._turn:
            connection = self.connection
            await connection.setLocalDescription(await connection.createOffer())
            self.peer.offer(connection.localDescription.sdp)

    async def publish(self, *kinds: str) -> None:
        for kind in kinds:
            self.connection.addTrack(AudioStreamTrack() if kind == "audio" else VideoStreamTrack())
        await self.offer()

    def _track(self, track: MediaStreamTrack) -> None:
        mid = next(each.mid for each in self.connection.getTransceivers() if each.receiver.track is track)
        self.kinds[mid] = track.kind
        self._spawn(self._consume(mid, track))

    async def _consume(self, mid: str, track: MediaStreamTrack) -> None:
        while True:
            try:
                await track.recv()
            except Exception:
                return
            self.frames[mid] = self.frames.get(mid, 0) + 1
            self._changed.set()

    def _channel(self, channel: Any) -> None:
        self.channels.append(channel)
        channel.on("message", lambda data: self._heard(channel.label, data))

    def _heard(self, label: str, data: Any) -> None:
        self.heard.append((label, data))
        self._changed.set()

    async def until(self, reached: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for the event that makes *reached* true; what makes no event is seen at the next frame or tick."""
        async with asyncio.timeout(seconds):
            while not reached():
                if self.errors:
                    raise self.errors[0]
                self._changed.clear()
                tick = asyncio.get_running_loop().call_later(0.1, self._changed.set)
                await self._changed.wait()
                tick.cancel()

    def negotiated(self) -> bool:
        """Whether no offer of the SFU waits for our answer."""
        return not self.peer.connection.negotiator.offering

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def frames_of(self, kind: str) -> list[int]:
        return [self.frames.get(mid, 0) for mid, each in self.kinds.items() if each == kind]

    async def close(self) -> None:
        self.peer.leave()
        await self.connection.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


__all__ = ["AiortcClient", "SignalError", "deferred"]
