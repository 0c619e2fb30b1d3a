"""Connections that take a place and never come to a point: when does the server close each?"""

from __future__ import annotations

import selectors
import socket
import time
from threading import Thread

from attrs import define, field

from tests.attacks.probe import PROXY_V2, client_hello
from tests.contract import turn
from tests.contract.turn import Address

#: Seconds after which we give up.
PATIENCE = 60.0


@define(eq=False)
class Lurker:
    """One connection: it says *first*, then a byte of *then* each second."""

    name: str
    transport: str
    first: bytes
    then: bytes = b""
    source: str = ""
    #: Seconds until the server closed it.
    lived: float | None = None
    socket: socket.socket = field(init=False)


class Lurkers:
    """Some of them, watched by a thread from their beginning on.

    :param addresses: of the server, by transport; ``tls`` is given up after the TCP handshake.
    """

    def __init__(self, addresses: dict[str, Address], lurkers: list[Lurker]) -> None:
        self._lurkers = {each.name: each for each in lurkers}
        self._selector = selectors.DefaultSelector()
        for number, each in enumerate(lurkers, 1):
            each.socket = socket.create_connection(
                addresses[each.transport], source_address=(each.source or f"127.50.0.{number}", 0)
            )
            each.socket.sendall(each.first)
            self._selector.register(each.socket, selectors.EVENT_READ, each)
        self._since = time.monotonic()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def lived(self, name: str) -> float | None:
        """Seconds until that one was closed, once all are; None when it was not."""
        self._thread.join(PATIENCE)
        return self._lurkers[name].lived

    def _watch(self) -> None:
        drips = 0
        while self._selector.get_map() and (age := time.monotonic() - self._since) < PATIENCE:
            for key, _ in self._selector.select(max(0.0, drips + 1 - age)):
                self._read(key.data)
            if time.monotonic() - self._since >= drips + 1:
                for each in self._lurkers.values():
                    self._drip(each, drips)
                drips += 1

    def _read(self, lurker: Lurker) -> None:
        try:
            if lurker.socket.recv(65536):
                return
        except OSError:
            pass
        self._selector.unregister(lurker.socket)
        lurker.socket.close()
        lurker.lived = time.monotonic() - self._since

    def _drip(self, lurker: Lurker, number: int) -> None:
        if lurker.lived is None and number < len(lurker.then):
            try:
                lurker.socket.sendall(lurker.then[number : number + 1])
            except OSError:
                pass  # the next read says so


def typical() -> list[Lurker]:
    """One of each sort that somebody has tried."""
    request = turn.build(turn.ALLOCATE, attributes=[(turn.REQUESTED_TRANSPORT, turn.UDP), (0x8022, bytes(60))])
    hello = client_hello()
    return [
        Lurker("silent", "tcp", b""),
        Lurker("silent over TLS", "tls", b""),
        Lurker("no Allocate", "tcp", turn.build(turn.BINDING)),
        Lurker("half a header", "tcp", request[:10]),
        Lurker("half a message", "tcp", request[:40]),
        Lurker("half a ChannelData", "tcp", b"\x40\0\0\x40" + bytes(10)),
        Lurker("a byte a second", "tcp", b"", request),
        Lurker("half a PROXY header", "tcp", b"PROXY TCP4 1", source="127.70.0.1"),
        Lurker("a PROXY header by bytes", "tls", b"", PROXY_V2 + b"\x21\x11\x00\x60" + bytes(0x60), "127.70.0.2"),
        Lurker("half a ClientHello", "tls", hello[:50]),
        Lurker("half a handshake", "tls", hello),
        Lurker("a ClientHello by bytes", "tls", b"", hello),
    ]
