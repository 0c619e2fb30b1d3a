"""A TURN client on a real socket, one request at a time; it blocks, so it belongs into a thread."""

from __future__ import annotations

import socket
import time
from typing import Any

from orama.turn.credentials import issue
from orama.wire import stun
from orama.wire.stun import Class, Message, Method


class Client:
    """:param port: of TURN, on loopback."""

    def __init__(self, port: int, secret: str = "north", user: str = "", namespace: str = "myapp") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.secret = secret
        self.user = user
        self.namespace = namespace
        self.nonce = b""
        self.relay: tuple[str, int] | None = None
        self._serial = 0

    def close(self) -> None:
        self.socket.close()

    def ask(self, method: int, *attributes: Any, key: bytes | None = None) -> Message:
        """One request and its answer; others are passed over."""
        self._serial += 1
        transaction = self._serial.to_bytes(12, "big")
        self.socket.send(stun.build(method, Class.REQUEST, transaction, list(attributes), key=key))
        while True:
            answer = stun.parse(self.socket.recv(2048))
            if answer.transaction_id == transaction:
                return answer

    def challenge(self) -> None:
        """Get a nonce."""
        nonce = self.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17)).get(stun.NONCE)
        assert nonce is not None
        self.nonce = nonce

    def signed(self, method: int, *attributes: Any) -> int:
        """The error code of an authenticated request's answer, 0 for a success."""
        if not self.nonce:
            self.challenge()
        credentials = issue(self.secret, self.namespace, 600, time.time(), self.user)
        key = stun.long_term_key(credentials.username, "orama", credentials.password)
        who = [(stun.USERNAME, credentials.username), (stun.REALM, "orama"), (stun.NONCE, self.nonce)]
        self.answer = answer = self.ask(method, *attributes, *who, key=key)
        self.relay = answer.get(stun.XOR_RELAYED_ADDRESS) or self.relay
        error = answer.get(stun.ERROR_CODE)
        return error[0] if error else 0

    def allocate(self) -> int:
        return self.signed(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17))

    def attempt(self) -> int:
        """What an Allocate gets; nothing is left of it."""
        code = self.allocate()
        return code or self.signed(Method.REFRESH, (stun.LIFETIME, 0))

    def refresh(self) -> int:
        return self.signed(Method.REFRESH)
