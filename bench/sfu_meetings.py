"""Meetings for the SFU's benchmark: the same few words, join and publish, spoken to orama and to Janus behind coturn.

A :class:`Seat` is one participant with all its connections. The clients are those of ``bench.relayed``.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from attrs import define
from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol

from bench import rivals
from bench.relayed import RelayedPeer, publishing_offer, receiving_answer, turn_credentials

ADDRESS = "10.99.0.1"
FIRST_SSRC = 0x0ABACA00
#: Seconds for an answer; a hundred joins make a server slow.
PATIENCE = 20
TOGETHER = 10


@define(eq=False)
class Seat:
    """One participant.

    :ivar sender: the connection on which it publishes, if it does.
    :ivar receiver: the connection on which it gets the tracks of others.
    """

    number: int
    sender: RelayedPeer | None = None
    receiver: RelayedPeer | None = None


class Meeting(Protocol):
    """A server under test."""

    async def enter(self, room: int, publishers: int, listeners: int, kind: str) -> list[Seat]:
        """Fill a room: the first *publishers* seats publish one track of *kind* each, and every seat gets what the
        others publish. With *listeners* there is one publisher, and so many more seats, and only they receive.
        """

    def cpu(self) -> float:
        """Seconds of CPU so far, of all its processes."""

    def memory(self) -> int:
        """Bytes resident, of all its processes."""


class Socket(WebSocketClientProtocol):  # type: ignore[misc]
    """A WebSocket whose text frames wait in a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def onOpen(self) -> None:
        self.ready.set_result(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.inbox.put_nowait(json.loads(payload))

    def tell(self, message: dict[str, Any]) -> None:
        self.sendMessage(json.dumps(message).encode())

    async def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = await asyncio.wait_for(self.inbox.get(), PATIENCE)
            if message.get("type") == "error" or message.get("janus") == "error":
                raise RuntimeError(f"refused: {message}")
            if wanted(message):
                return message


async def together(joining: list[Coroutine[Any, Any, None]]) -> None:
    """Some at a time: one after the other a hundred take longer than a connection may be silent."""
    for at in range(0, len(joining), TOGETHER):
        await asyncio.gather(*joining[at : at + TOGETHER])


async def dial(host: str, port: int, path: str, protocols: list[str]) -> Socket:
    factory = WebSocketClientFactory(f"ws://{host}:{port}{path}", protocols=protocols)
    factory.protocol = Socket
    _transport, protocol = await asyncio.get_running_loop().create_connection(factory, host, port)
    assert isinstance(protocol, Socket)
    await protocol.ready
    return protocol


class Orama:
    """The node as it is started by everybody: ``twistd orama-webrtc``."""

    def __init__(self, server: rivals.Server, http: int, directory: Path) -> None:
        self._server, self._http, self._directory = server, http, directory
        self._sockets: list[Socket] = []

    def cpu(self) -> float:
        return self._server.cpu()

    def memory(self) -> int:
        return self._server.memory()

    def late(self) -> Counter[float]:
        """How often the event loop was late, by seconds that it was late at most, since the start."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(r'^orama_event_loop_lag_seconds_bucket\{[^}]*le="([^"]+)"[^}]*\} (\S+)$', text, re.M)
        counts, below = Counter[float](), 0.0
        for border, count in sorted((float(border), float(count)) for border, count in found):
            counts[border], below = int(count - below), count
        return counts

    async def enter(self, room: int, publishers: int, listeners: int, kind: str) -> list[Seat]:
        seats: list[tuple[Seat, Socket, RelayedPeer]] = []
        for number in range(publishers):
            ws, peer = await self._join(room)
            ssrc = FIRST_SSRC + number
            ws.tell({"type": "offer", "sdp": publishing_offer(peer, ssrc, kind)})
            answer = await ws.hear(lambda m: m["type"] == "answer")
            await peer.connect(answer["sdp"], offerer=True)
            seats.append((Seat(number, sender=peer), ws, peer))

        async def listen(number: int) -> None:
            ws, peer = await self._join(room)
            seat = Seat(number, receiver=peer)
            seats.append((seat, ws, peer))
            await self._receive(ws, peer, kind, publishers, None)

        await together([listen(number) for number in range(publishers, publishers + listeners)])
        for seat, ws, peer in seats if not listeners else ():
            await self._receive(ws, peer, kind, publishers - 1, FIRST_SSRC + seat.number)
            seat.receiver = peer
        return [seat for seat, _, _ in seats]

    async def _receive(self, ws: Socket, peer: RelayedPeer, kind: str, wanted: int, own: int | None) -> None:
        """Answer until so many tracks are offered."""
        offered = 0
        while offered < wanted:
            sdp = (await ws.hear(lambda m: m["type"] == "offer"))["sdp"]
            offered = len(re.findall(rf"^m={kind} [\s\S]*?^a=sendonly", sdp, re.M))
            ws.tell({"type": "answer", "sdp": receiving_answer(peer, sdp, own)})
            if peer.dtls is None:
                await peer.connect(sdp, offerer=False)

    async def _join(self, room: int) -> tuple[Socket, RelayedPeer]:
        key = (self._directory / "data" / "default.api-key").read_text().strip()
        ws = await dial("127.0.0.1", self._http, f"/v1/webrtc/signal?room=bench-{room}&api_key={key}", [])
        self._sockets.append(ws)
        ws.tell({"type": "join"})
        turn = await ws.hear(lambda m: m["type"] == "turn-credentials")
        host, port = turn["uris"][0].removeprefix("turn:").split("?")[0].rsplit(":", 1)
        peer = RelayedPeer((host, int(port)), turn["username"], turn["password"])
        await peer.allocate()
        return ws, peer


class Janus:
    """VideoRoom behind coturn; each connection has a WebSocket and a session of its own."""

    def __init__(self, server: rivals.Server, turn: rivals.Server, port: int) -> None:
        self._server, self._turn, self._port = server, turn, port
        self._base = random.randrange(1, 1 << 30)
        self._sockets: list[Socket] = []

    def cpu(self) -> float:
        return self._server.cpu() + self._turn.cpu()

    def memory(self) -> int:
        return self._server.memory() + self._turn.memory()

    async def enter(self, room: int, publishers: int, listeners: int, kind: str) -> list[Seat]:
        name = self._base + room
        _ws, ask = await self._attach()
        await ask("message", body={"request": "create", "room": name, "publishers": 50, "videocodec": "vp8"})
        seats = [Seat(number) for number in range(publishers + listeners)]
        feeds = []
        for seat in seats[:publishers]:
            seat.sender, feed = await self._publish(name, FIRST_SSRC + seat.number, kind)
            feeds.append(feed)

        async def listen(seat: Seat) -> None:
            seat.receiver = await self._subscribe(
                name, [feed for number, feed in enumerate(feeds) if number != seat.number]
            )

        await together([listen(seat) for seat in (seats[publishers:] if listeners else seats)])
        return seats

    async def _publish(self, room: int, ssrc: int, kind: str) -> tuple[RelayedPeer, int]:
        _ws, ask = await self._attach()
        joined = await ask("message", "event", body={"request": "join", "ptype": "publisher", "room": room})
        peer = await self._peer()
        jsep = {"type": "offer", "sdp": publishing_offer(peer, ssrc, kind)}
        answer = await ask("message", "event", body={"request": "publish", "bitrate": 0}, jsep=jsep)
        await peer.connect(answer["jsep"]["sdp"], offerer=True)
        return peer, joined["plugindata"]["data"]["id"]

    async def _subscribe(self, room: int, feeds: list[int]) -> RelayedPeer:
        _ws, ask = await self._attach()
        streams = [{"feed": feed} for feed in feeds]
        body = {"request": "join", "ptype": "subscriber", "room": room, "streams": streams}
        event = await ask("message", "event", body=body)
        if "jsep" not in event:
            raise RuntimeError(f"refused: {event}")
        offer = event["jsep"]["sdp"]
        peer = await self._peer()
        jsep = {"type": "answer", "sdp": receiving_answer(peer, offer)}
        await ask("message", "event", body={"request": "start", "room": room}, jsep=jsep)
        await peer.connect(offer, offerer=False)
        return peer

    async def _attach(self) -> tuple[Socket, Callable[..., Awaitable[dict[str, Any]]]]:
        ws = await dial("127.0.0.1", self._port, "/", ["janus-protocol"])
        self._sockets.append(ws)
        ids: dict[str, int] = {}

        async def ask(janus: str, want: str = "success", **fields: Any) -> dict[str, Any]:
            transaction = secrets.token_hex(6)
            ws.tell({"janus": janus, "transaction": transaction, **ids, **fields})
            return await ws.hear(lambda m: m["janus"] == want and m.get("transaction") == transaction)

        ids["session_id"] = (await ask("create"))["data"]["id"]
        ids["handle_id"] = (await ask("attach", plugin="janus.plugin.videoroom"))["data"]["id"]
        return ws, ask

    async def _peer(self) -> RelayedPeer:
        peer = RelayedPeer((ADDRESS, 3478), *turn_credentials(rivals.SECRET, "bench"))
        await peer.allocate()
        return peer
