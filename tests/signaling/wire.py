"""Clients for the signalling socket: a well-behaved one made of Autobahn, and one that writes bytes as it likes."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

reactor: Any = _reactor


class Waiter:
    """Something that is waited for until it is true."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Deferred[Any]]] = []

    def changed(self) -> None:
        for entry in tuple(self._waiting):
            found = entry[0]()
            if found is not None:
                self._waiting.remove(entry)
                entry[1].callback(found)

    def until(self, condition: Any) -> Deferred[Any]:
        """A Deferred of the first value of *condition* that is not None."""
        deferred: Deferred[Any] = Deferred()
        self._waiting.append((condition, deferred))
        self.changed()
        return deferred


class Page(WebSocketClientProtocol):
    """A client that behaves."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[dict[str, Any]] = []
        self.code: int | None = None
        self.reason: str | None = None
        self.pings = 0
        self.opened = False
        self._waiter = Waiter()

    def onOpen(self) -> None:
        self.opened = True
        self._waiter.changed()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.received.append(json.loads(payload))
        self._waiter.changed()

    def onPing(self, payload: bytes) -> None:
        self.pings += 1
        super().onPing(payload)
        self._waiter.changed()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.code, self.reason = code, reason
        self._waiter.changed()

    def say(self, kind: str, **fields: Any) -> None:
        self.sendMessage(json.dumps({"type": kind, **fields}).encode())

    def until(self, kind: str) -> Deferred[dict[str, Any]]:
        """The first message of *kind*."""
        return self._waiter.until(lambda: next((m for m in self.received if m["type"] == kind), None))

    def until_open(self) -> Deferred[bool]:
        return self._waiter.until(lambda: self.opened or None)

    def until_closed(self) -> Deferred[int]:
        """The closing code."""
        return self._waiter.until(lambda: self.code)

    def until_pinged(self, times: int) -> Deferred[bool]:
        return self._waiter.until(lambda: self.pings >= times or None)


async def open_page(
    port: int,
    query: str = "",
    headers: dict[str, str] | None = None,
    protocols: Sequence[str] = (),
    endpoint: Any = None,
    host: str = "127.0.0.1",
    **options: Any,
) -> Page:
    """Connect, by TCP or to *endpoint*; done when the connection stands."""
    factory = WebSocketClientFactory(
        f"ws://{host}:{port}/v1/webrtc/signal{query}",
        headers=headers or {},
        protocols=list(protocols),
        reactor=reactor,
        **options,
    )
    # Autobahn's timers would outlive the test.
    factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0)
    factory.protocol = Page
    factory.noisy = False
    page: Page = await (endpoint or TCP4ClientEndpoint(reactor, host, port)).connect(factory)
    return page


class Raw(Protocol):
    """Bytes in and out."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.lost: str | None = None
        self._waiter = Waiter()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._waiter.changed()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = type(reason.value).__name__ if reason is not None else ""
        self._waiter.changed()

    def until(self, part: bytes) -> Deferred[bytes]:
        return self._waiter.until(lambda: self.data if part in self.data else None)

    def until_lost(self) -> Deferred[str]:
        return self._waiter.until(lambda: self.lost)

    def frame(self, opcode: int, payload: bytes, fin: bool = True, mask: bool = True) -> None:
        """Send one frame, masked with zeros (RFC 6455, 5.2)."""
        first = (0x80 if fin else 0) | opcode
        bit = 0x80 if mask else 0
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", first, bit | size)
        elif size < 65536:
            head = struct.pack("!BBH", first, bit | 126, size)
        else:
            head = struct.pack("!BBQ", first, bit | 127, size)
        self.transport.write(head + (bytes(4) if mask else b"") + payload)

    def closing_code(self) -> int | None:
        """The code of the closing frame, which is the last thing received."""
        place = self.data.rfind(b"\x88")
        return None if place < 0 else int(struct.unpack_from("!H", self.data, place + 2)[0])

    def until_closing(self) -> Deferred[int]:
        return self._waiter.until(self.closing_code)


def upgrade(query: str = "", **changes: str | None) -> bytes:
    """The request of an opening handshake; *changes* replace headers (``_`` for ``-``) or take them away."""
    headers: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": b64encode(bytes(16)).decode(),
    }
    for name, value in changes.items():
        headers[next((h for h in headers if h.lower() == name.replace("_", "-").lower()), name.replace("_", "-"))] = (
            value
        )
    lines = [f"GET /v1/webrtc/signal{query} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def open_raw(port: int, request: bytes) -> Raw:
    raw: Raw = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Raw())
    raw.transport.write(request)
    return raw
