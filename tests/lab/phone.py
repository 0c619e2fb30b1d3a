"""A light client in a machine of the lab: one person with a telephone, who dials again when the line goes dead.

``python -m tests.lab.phone`` reads one JSON object, its order, and then a word a line: ``report`` answers with what it
has seen so far, ``end`` hangs up. It is aiortc, relay only, with sound alone, and knows no more of the cluster than the
addresses of its gateways. Times are of the monotonic clock, which all machines of the lab share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import field, frozen, mutable
from websocket import WebSocketException

from tests.contract.signalling import Client
from tests.interop.caller import Caller, Tone
from tests.lab.node import GATEWAY_PORT

#: Seconds without a sound, where there has been one, after which the call is made anew.
SILENCE = 1.5
#: Seconds that one attempt gets.
ATTEMPT = 4.0
_PAUSE = 0.05
_BACK_OFF = 0.2
#: How an attempt fails.
_LOST = (OSError, AssertionError, WebSocketException, KeyError)


@frozen
class Gateway:
    """What a caller asks of a node."""

    authority: str
    key: str = field(repr=False)
    #: "ws" or "wss".
    scheme: str = "ws"

    @classmethod
    def of(cls, url: str, key: str, plain: bool) -> Gateway:
        """
        :param url: of the gateway, for browsers. :param plain: whether to ask the node's plain endpoint instead.
        """
        parts = urlsplit(url)
        if plain:
            return cls(f"{parts.hostname}:{GATEWAY_PORT}", key)
        return cls(parts.netloc, key, parts.scheme.replace("http", "ws"))


@mutable
class Seen:
    """What the person has noticed, over all calls."""

    #: (time, what): dialled, welcome, closed, draining, silent, failed.
    events: list[tuple[float, str]] = field(factory=list)
    #: When each decoded frame of 20 ms came.
    frames: list[float] = field(factory=list)
    #: Packets of calls that are over.
    sent: int = 0
    received: int = 0
    lost: int = 0

    def note(self, what: str) -> None:
        if self.events[-2:] and what in [each for _, each in self.events[-2:]]:
            return  # once more
        self.events.append((time.monotonic(), what))


class _Call(Caller):
    def __init__(self, gateway: Gateway, room: str, seen: Seen) -> None:
        super().__init__(gateway, room)  # type: ignore[arg-type]
        self.seen = seen
        #: The last ``welcome``.
        self.place: dict[str, Any] = {}

    async def join(self, resume: str | None = None) -> dict[str, Any]:
        self.place = await super().join(resume)
        return self.place

    def connect(self) -> Client:
        gateway: Any = self._node
        query = f"?room={quote(self._room, safe='')}&api_key={gateway.key}"
        return Client(gateway, query, base=f"{gateway.scheme}://{gateway.authority}")

    async def _consume(self, mid: str, track: Any) -> None:
        from aiortc.mediastreams import MediaStreamError

        with contextlib.suppress(MediaStreamError):
            while True:
                await track.recv()
                self.seen.frames.append(time.monotonic())
                self.frames[mid] = self.frames.get(mid, 0) + 1

    async def packets(self) -> tuple[int, int, int]:
        """Sent, received and lost."""
        sent = received = lost = 0
        for entry in (await self.connection.getStats()).values():
            if entry.type == "outbound-rtp":
                sent += entry.packetsSent
            elif entry.type == "inbound-rtp":
                received += entry.packetsReceived
                lost += entry.packetsLost
        return sent, received, lost

    async def state(self) -> str:
        """How far the connection has come, for whoever wonders."""
        try:
            return f"{self.connection.connectionState} by {await self.relays()} to {self.sfu()}"
        except (AttributeError, IndexError):
            return "without a connection"

    def sfu(self) -> list[str]:
        """Where the SFU is, as it says."""
        return re.findall(r"^a=candidate:\S+ 1 udp \d+ (\S+ \d+)", self.connection.remoteDescription.sdp, re.M | re.I)

    async def relays(self) -> list[str]:
        """Where its relay is."""
        transport = self.connection.getSenders()[0].transport.transport.iceGatherer
        return sorted({each.ip for each in transport.getLocalCandidates() if each.type == "relay"})


class Phone:
    """
    :param order: ``gateways`` (addresses, the first to be asked first), ``key``, ``room``, ``plain`` (see Gateway.of).
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._key, self._room, self._plain = order["key"], order["room"], order["plain"]
        self._gateways = [Gateway.of(url, self._key, self._plain) for url in order["gateways"]]
        self.seen = Seen()
        self.call: _Call | None = None
        self._ending: list[asyncio.Future[None]] = []

    async def talk(self) -> None:
        """Dial until connected, and again whenever the line goes dead."""
        while True:
            call = await self._dial()
            why = "" if call is None else await self._listen(call)
            while call is not None and why.startswith("closed") and await self._resume(call):
                why = await self._listen(call)
            if call is not None:
                self.seen.note(why)
                if not why.startswith(("draining", "closed")):
                    self._gateways.append(self._gateways.pop(0))
                self.call = None
                self._ending.append(asyncio.ensure_future(self._over(call)))

    async def _resume(self, call: _Call) -> bool:
        """Take our place again by way of the next gateway, while the media goes on; False when there is none."""
        self.seen.note("closed")
        for _ in self._gateways:
            self._gateways.append(self._gateways.pop(0))
            gateway = self._gateways[0]
            self.seen.note(f"resumes at {gateway.authority}")
            call._node = gateway  # type: ignore[assignment]
            before = call.place
            try:
                await asyncio.wait_for(call.join(before["resume"]), ATTEMPT)
            except _LOST as error:
                self.seen.note(f"failed {type(error).__name__} {str(error)[:300]}")
                continue
            resumed = call.place["peerId"] == before["peerId"]
            self.seen.note("resumed" if resumed else "the place is gone")
            return resumed
        return False

    async def _dial(self) -> _Call | None:
        call = _Call(self._gateways[0], self._room, self.seen)
        self.seen.note(f"dialled {self._gateways[0].authority}")
        try:
            await asyncio.wait_for(self._connect(call), ATTEMPT)
        except _LOST as error:
            self.seen.note(f"failed {type(error).__name__} {str(error)[:300]} {await call.state()}")
            self._gateways.append(self._gateways.pop(0))
            self._ending.append(asyncio.ensure_future(self._over(call)))
            await asyncio.sleep(_BACK_OFF)
            return None
        self.seen.note("welcome")
        self.call = call
        return call

    async def _connect(self, call: _Call) -> None:
        await call.join()
        call.connection.addTrack(Tone())
        await call.publish()
        while call.connection.connectionState != "connected":
            if call.client.code is not None or call.connection.connectionState in ("failed", "closed"):
                raise ConnectionError(f"{call.connection.connectionState} {call.client.code} {call.client.reason}")
            await asyncio.sleep(_PAUSE)

    async def _listen(self, call: _Call) -> str:
        """Why the call is over."""
        began = len(self.seen.frames)
        while True:
            await asyncio.sleep(_PAUSE)
            if draining := call.told("server-draining"):
                if url := draining[-1].get("reconnectUrl"):
                    there = Gateway.of(url, self._key, self._plain)
                    self._gateways = [there, *(each for each in self._gateways if each != there)]
                else:
                    self._gateways.append(self._gateways.pop(0))
                return "draining"
            if call.client.code is not None:
                return f"closed {call.client.code}"
            if call.connection.connectionState in ("failed", "closed"):
                return call.connection.connectionState
            heard = self.seen.frames[began:]
            if heard and time.monotonic() - heard[-1] > SILENCE and self._accompanied(call):
                return "silent"

    @staticmethod
    def _accompanied(call: _Call) -> bool:
        """Whether somebody else should be heard."""
        present = {peer["peerId"] for peer in call.place["peers"]}
        for message in call.client.received:
            if message["type"] == "peer-joined":
                present.add(message["peerId"])
            elif message["type"] == "peer-left":
                present.discard(message["peerId"])
        return bool(present)

    async def _over(self, call: _Call) -> None:
        with contextlib.suppress(Exception):
            counts = await call.packets()
            self.seen.sent += counts[0]
            self.seen.received += counts[1]
            self.seen.lost += counts[2]
        with contextlib.suppress(Exception):
            if call.client.code is None:
                await call.say("leave")
        with contextlib.suppress(Exception):
            await asyncio.wait_for(call.close(), 2.0)

    async def report(self) -> dict[str, Any]:
        call = self.call
        sent, received, lost = await call.packets() if call else (0, 0, 0)
        return {
            "events": self.seen.events,
            "frames": self.seen.frames,
            "sent": self.seen.sent + sent,
            "received": self.seen.received + received,
            "lost": self.seen.lost + lost,
            "relays": await call.relays() if call else [],
            "peer": call.place["peerId"] if call else None,
        }


async def main() -> None:
    loop = asyncio.get_running_loop()
    words = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    phone = Phone(json.loads(await words.readline()))
    talking = asyncio.ensure_future(phone.talk())
    while word := (await words.readline()).decode().strip():
        if talking.done():
            talking.result()
        if word == "report":
            print(json.dumps(await phone.report()), flush=True)
        else:
            break
    talking.cancel()
    if phone.call is not None:
        await phone._over(phone.call)
    await asyncio.gather(*phone._ending)


if __name__ == "__main__":
    asyncio.run(main())
