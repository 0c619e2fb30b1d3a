"""A client of the signalling WebSocket, by the ``websocket-client`` package."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from websocket import (
    ABNF,
    WebSocket,
    WebSocketConnectionClosedException,
    WebSocketTimeoutException,
    create_connection,
)

from tests.node import NodeProcess

#: Seconds for what has to come; a busy machine may need most of them to start a process, or to make keys.
PATIENCE = 60.0


class Client:
    """One socket.

    :param base: address of the gateway, where it is not plain HTTP; whose certificate it is is not asked.

    :ivar received: every message so far. :ivar code: the closing code, once it is closed.
    """

    def __init__(
        self,
        node: NodeProcess,
        query: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] | None = None,
        host: str = "",
        base: str = "",
    ) -> None:
        self.received: list[dict[str, Any]] = []
        self.pings: list[float] = []
        self.code: int | None = None
        self.reason = ""
        self._next = 0
        self.socket: WebSocket = create_connection(
            f"{base or f'ws://{host or node.authority}'}/v1/webrtc/signal{query}",
            timeout=PATIENCE,
            sslopt={"cert_reqs": ssl.CERT_NONE, "check_hostname": False},
            header=[f"{name}: {value}" for name, value in (headers or {}).items()],
            subprotocols=subprotocols,
            suppress_origin=True,
        )

    def say(self, kind: str, /, **fields: Any) -> None:
        self.text(json.dumps({"type": kind, **fields}))

    def text(self, text: str) -> None:
        self.socket.send(text)

    def until(self, kind: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The next message of that type; what comes before it is passed over."""
        return self.until_one(lambda message: message["type"] == kind, kind, seconds)

    def until_one(self, wanted: Any, what: str, seconds: float = PATIENCE) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            while self._next < len(self.received):
                message = self.received[self._next]
                self._next += 1
                if wanted(message):
                    return message
            if not self._receive(deadline):
                raise AssertionError(f"no {what}: {self.received} {self.code} {self.reason}")

    def until_closed(self, seconds: float = PATIENCE) -> int:
        """The closing code."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            if not self._receive(deadline) and self.code is None:
                raise AssertionError(f"it was not closed: {self.received}")
        return self.code

    def error(self, seconds: float = PATIENCE) -> str:
        """The code of the next ``error``."""
        code: str = self.until("error", seconds)["code"]
        return code

    def settled(self) -> list[str]:
        """The types of all messages up to the answer to one more, without that: nothing else is under way."""
        self.say("settled?")
        mark = self.until("error")
        assert mark["code"] == "unknown_type", mark
        self.received.remove(mark)
        self._next -= 1
        return [message["type"] for message in self.received]

    def listen(self, seconds: float) -> None:
        """Take what comes in that time."""
        deadline = time.monotonic() + seconds
        while self._receive(deadline):
            pass

    def drop(self) -> None:
        """Be gone without a word."""
        if self.socket.sock is not None:
            self.socket.sock.close()

    def close(self) -> None:
        self.socket.close(timeout=0)

    def _receive(self, deadline: float) -> bool:
        """Take one frame; False when none comes any more."""
        left = deadline - time.monotonic()
        if left <= 0 or self.code is not None:
            return False
        self.socket.settimeout(left)
        try:
            opcode, data = self.socket.recv_data(control_frame=True)
        except (WebSocketTimeoutException, TimeoutError):
            return False
        except (WebSocketConnectionClosedException, OSError):
            self.code = self.code or 1006
            return False
        if opcode == ABNF.OPCODE_TEXT:
            self.received.append(json.loads(data))
        elif opcode == ABNF.OPCODE_PING:
            self.pings.append(time.monotonic())
        elif opcode == ABNF.OPCODE_CLOSE:
            self.code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
            self.reason = data[2:].decode()
        return True


def connect(node: NodeProcess, room: str, key: str = "", **fields: Any) -> Client:
    """A socket for *room*, which has not joined yet."""
    return Client(node, f"?room={quote(room, safe='')}&api_key={key or node.key}", **fields)


def join(node: NodeProcess, room: str, key: str = "", **fields: Any) -> Client:
    """Somebody in *room*: ``welcome`` and ``turn-credentials`` are behind it."""
    client = connect(node, room, key)
    client.say("join", **fields)
    client.until("turn-credentials")
    return client
