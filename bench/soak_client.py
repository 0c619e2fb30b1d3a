"""A participant for the soak: light, through TURN, with a camera, a data channel, and a mind that changes.

The transport is ``bench.relayed``'s. What is added is a whole call as a page makes one: tracks that come and go on
both sides, offers that cross (it keeps to its own), SCTP by ``aiortc``, and leaving with a word or without.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
from collections import Counter
from typing import Any

from aiortc import RTCDataChannel, RTCDataChannelParameters, RTCSctpCapabilities, RTCSctpTransport
from attrs import define

from bench.relayed import CHANNEL, RelayedPeer
from bench.sfu_meetings import Socket, dial

#: Packets of its camera in a second, of so many bytes.
RATE, SIZE = 10, 600
#: Seconds between two connectivity checks, and between two changes of mind.
CHECK, WHIM = 2.0, 3.0


class _Counted(list[bytes]):
    """Media that came in: counted, not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.packets = 0

    def append(self, packet: bytes) -> None:
        self.packets += 1


@define
class _Line:
    """One m-line of the connection."""

    kind: str
    mid: str
    formats: list[str]
    codec: list[str]
    #: Whether it is the camera's.
    own: bool = False
    stopped: bool = False


class Participant:
    """One call from join to leaving. :ivar seen: what happened in it, by name."""

    def __init__(self, http: int, key: str, room: str, seen: Counter[str], dice: random.Random) -> None:
        self._http, self._key, self._room = http, key, room
        self._seen, self._dice = seen, dice
        self._ssrc = dice.getrandbits(32) | 1
        self._sequence = dice.getrandbits(15)
        self._lines: list[_Line] = []
        self._sending = True
        self._offering = False
        self._version = 0
        self._known: list[str] = []
        self._received = _Counted()
        self._heard = 0

    async def stay(self, seconds: float) -> None:
        """Join, take part for so long, and leave: three times of four with a word."""
        path = f"/v1/webrtc/signal?room={self._room}&api_key={self._key}"
        self._socket: Socket = await dial("127.0.0.1", self._http, path, [])
        try:
            self._socket.tell({"type": "join"})
            turn = await self._socket.hear(lambda message: message["type"] == "turn-credentials")
            host, port = turn["uris"][0].removeprefix("turn:").split("?")[0].rsplit(":", 1)
            self._peer = RelayedPeer((host, int(port)), turn["username"], turn["password"])
            self._peer.early_media = self._received
            try:
                await self._call(seconds)
            finally:
                self._hang_up()
        finally:
            if self._socket.transport is not None:
                self._socket.transport.abort()

    async def _call(self, seconds: float) -> None:
        await self._peer.allocate()
        self._lines = [
            _Line("video", "v", ["96"], ["a=rtpmap:96 VP8/90000", "a=rtcp-fb:96 nack pli"], own=True),
            _Line("application", "d", ["webrtc-datachannel"], ["a=sctp-port:5000"]),
        ]
        self._offer()
        answer = await self._socket.hear(lambda message: message["type"] == "answer")
        self._offering = False
        await self._peer.connect(answer["sdp"], offerer=True)
        self._seen["connected"] += 1
        credentials = [re.search(rf"^a=ice-{each}:(\S+)", answer["sdp"], re.M) for each in ("ufrag", "pwd")]
        self._credentials = [found.group(1) for found in credentials if found is not None]
        sctp = RTCSctpTransport(self._peer.dtls, 5000)
        sctp.on("datachannel", self._channel)
        await sctp.start(RTCSctpCapabilities(maxMessageSize=65536), 5000)
        self._data = RTCDataChannel(sctp, RTCDataChannelParameters(label="chat"))
        jobs = [asyncio.ensure_future(job()) for job in (self._listen, self._check, self._film, self._change)]
        try:
            await asyncio.wait(jobs, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if jobs[0].done():
                self._peer.free()
                return
            for job in jobs:
                if job.done():
                    job.result()
            if self._dice.random() < 0.75:
                self._socket.tell({"type": "leave"})
                await asyncio.sleep(0.2)
                self._peer.free()
                self._seen["left"] += 1
            else:
                self._seen["vanished"] += 1
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            self._seen["packets"] += self._received.packets
            self._seen["messages"] += self._heard
            # Without a word on the wire: whoever vanishes says nothing.
            self._hang_up()
            await _quietly(sctp.stop())
            await _quietly(self._peer.dtls.stop())

    def _hang_up(self) -> None:
        if self._peer.socket.fileno() >= 0:
            self._peer.detach()
            self._peer.socket.close()

    # What it hears.

    async def _listen(self) -> None:
        while True:
            message: dict[str, Any] = await self._socket.inbox.get()
            kind = message["type"]
            if kind == "offer" and not self._offering:
                self._take(message["sdp"])
                self._version += 1
                self._socket.tell({"type": "answer", "sdp": self._describe("active", message["sdp"])})
            elif kind == "answer" and self._offering:
                self._offering = False
            elif kind == "track-added":
                self._known.append(message["trackId"])
                self._seen["tracks"] += 1
            elif kind == "track-removed" and message["trackId"] in self._known:
                self._known.remove(message["trackId"])
            elif kind in ("room-closed", "kicked"):
                self._seen[kind] += 1
                return
            elif kind == "error":
                self._seen[f"error {message['code']}"] += 1

    def _channel(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._message)

    def _message(self, message: object) -> None:
        self._heard += 1

    # What it does.

    async def _check(self) -> None:
        """Connectivity checks, which nobody waits for."""
        while True:
            data = bytes(self._peer._check(*self._credentials))
            self._peer.socket.send(struct.pack("!HH", CHANNEL, len(data)) + data)
            await asyncio.sleep(CHECK)

    async def _film(self) -> None:
        number = 0
        while True:
            if self._sending:
                key = number % (5 * RATE) == 0
                body = (b"\x10\x10" if key else b"\x10\x11") + bytes(SIZE)
                stamp = number * 90000 // RATE
                header = struct.pack("!BBHII", 0x80, 0x80 | 96, self._sequence & 0xFFFF, stamp, self._ssrc)
                self._peer.socket.send(self._peer.protect(header + body))
                self._sequence += 1
            number += 1
            if number % RATE == 0 and self._data.readyState == "open":
                self._data.send(f"{number} of {self._ssrc}")
            await asyncio.sleep(1 / RATE)

    async def _change(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.5, 2 * WHIM))
            whim = self._dice.choice(("camera", "mute", "unsubscribe", "subscribe"))
            if whim == "camera" and not self._offering:
                self._sending = not self._sending
                self._offer()
            elif whim == "mute" and self._sending:
                self._socket.tell({"type": "track-state", "trackId": "v", "muted": self._dice.random() < 0.5})
            elif whim in ("subscribe", "unsubscribe") and self._known:
                self._socket.tell({"type": whim, "trackId": self._dice.choice(self._known)})

    # How it describes itself.

    def _offer(self) -> None:
        self._offering = True
        self._version += 1
        sources = {"v": "camera"} if self._sending else {}
        self._socket.tell({"type": "offer", "sdp": self._describe("actpass", None), "sources": sources})

    def _take(self, sdp: str) -> None:
        """The m-lines of the SFU's offer are ours from now on."""
        before = {line.mid: line for line in self._lines}
        self._lines = []
        for section in re.split(r"(?=^m=)", sdp, flags=re.M)[1:]:
            kind, port, _, formats = section.split("\r\n", 1)[0][2:].split(" ", 3)
            mid = re.findall(r"^a=mid:(\S+)", section, re.M)[0]
            first = formats.split()[0]
            codec = re.findall(rf"^(a=(?:rtpmap|rtcp-fb):{first} [^\r\n]*)", section, re.M)
            known = before.get(mid)
            own = known is not None and known.own
            self._lines.append(_Line(kind, mid, [first], codec, own, port == "0"))

    def _describe(self, setup: str, offer: str | None) -> str:
        live = [line.mid for line in self._lines if not line.stopped]
        text = ["v=0", f"o=- 1 {self._version} IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE " + " ".join(live)]
        for line in self._lines:
            protocol = "UDP/DTLS/SCTP" if line.kind == "application" else "UDP/TLS/RTP/SAVPF"
            text.append(f"m={line.kind} {0 if line.stopped else 9} {protocol} {' '.join(line.formats)}")
            text += ["c=IN IP4 0.0.0.0", f"a=mid:{line.mid}"]
            if line.stopped:
                text.append("a=inactive")
                continue
            text += [f"a=ice-ufrag:{self._peer.ufrag}", f"a=ice-pwd:{self._peer.pwd}"]
            text += [f"a=fingerprint:sha-256 {self._peer.fingerprint}", f"a=setup:{setup}", *line.codec]
            if line.kind == "application":
                continue
            text += ["a=rtcp-mux", f"a={self._way(line, offer)}"]
            if line.own and self._sending:
                text += [f"a=msid:soak camera-{self._ssrc}", f"a=ssrc:{self._ssrc} cname:soak"]
        return "\r\n".join(text) + "\r\n"

    def _way(self, line: _Line, offer: str | None) -> str:
        if offer is None:
            return "sendonly" if line.own and self._sending else "inactive" if line.own else "recvonly"
        (section,) = re.findall(rf"^m=(?:(?!^m=)[\s\S])*?^a=mid:{line.mid}\r\n(?:(?!^m=)[\s\S])*", offer, re.M)
        gives, takes = "a=sendonly" in section or "a=sendrecv" in section, "a=recvonly" in section
        if line.own:
            return "sendonly" if self._sending and takes else "inactive"
        return "recvonly" if gives else "inactive"


async def _quietly(work: Any) -> None:
    """What fails because the other end is gone is no news."""
    try:
        await asyncio.wait_for(work, 2)
    except (OSError, TimeoutError, json.JSONDecodeError):
        pass
