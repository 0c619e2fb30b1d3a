"""What a TLS client says first: the name that it wants (RFC 6066, 3) and the protocols that it speaks (RFC 7301, 3.1).

The standard library's ``ssl`` tells neither before it has answered: it cannot refuse a client all of whose
protocols are foreign, and it writes a traceback for a name that is not ASCII. So the ClientHello (RFC 8446, 4.1.2)
is read on its way in. Nothing is judged here but those two; what is malformed is left to OpenSSL, which answers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

#: RFC 8446, 5.1 and 4: a record's header, and a handshake message's.
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
#: RFC 8446, 5.1: the longest plaintext of a record.
_MAX_RECORD = 1 << 14
#: A longer ClientHello is not looked at. With post-quantum key shares they are about 2 KB.
MAX_HELLO = 1 << 14
_SERVER_NAME = 0
_ALPN = 16
_HOST_NAME = 0


class Alert(IntEnum):
    """The alerts that end a handshake here (RFC 8446, 6.2)."""

    UNRECOGNIZED_NAME = 112
    NO_APPLICATION_PROTOCOL = 120

    def record(self) -> bytes:
        """As it goes over the wire: fatal, in a record of its own."""
        return bytes((21, 3, 3, 0, 2, 2, self))


class ClientHello:
    """Reads a ClientHello from the bytes of a connection, however they are cut.

    Total: any bytes end in :attr:`done`, after at most ``MAX_HELLO`` bytes, and raise nothing.
    """

    def __init__(self) -> None:
        #: Nothing more is wanted.
        self.done = False
        #: The name asked for, as it came; empty when there is none.
        self.name = b""
        #: The protocols offered, in the client's order; None when it said nothing about them.
        self.protocols: tuple[bytes, ...] | None = None
        self._records = bytearray()
        self._message = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came next; what is behind the ClientHello is not looked at."""
        if self.done:
            return
        self._records += data
        try:
            self._unwrap()
        except ValueError:
            self._end()

    def refusal(self, protocols: tuple[str, ...]) -> Alert | None:
        """Why a server that speaks *protocols* ends the handshake; None when it goes on.

        A client that says nothing about protocols goes on (RFC 7301, 3.1), and so does every one where there are none.
        """
        if not self.name.isascii():
            return Alert.UNRECOGNIZED_NAME
        if self.protocols is None or not protocols:
            return None
        spoken = [protocol.encode() for protocol in protocols]
        return None if any(each in spoken for each in self.protocols) else Alert.NO_APPLICATION_PROTOCOL

    def _unwrap(self) -> None:
        """Take the message out of its records.

        :raises ValueError: this is no ClientHello.
        """
        records, message = self._records, self._message
        at = 0
        # What follows the message may be anything: early data (RFC 8446, 4.2.10) is no handshake record.
        while not self._is_whole() and len(records) - at >= _RECORD_HEADER:
            length = int.from_bytes(records[at + 3 : at + 5], "big")
            if records[at] != _HANDSHAKE_RECORD or not 0 < length <= _MAX_RECORD:
                raise ValueError("no handshake record")
            if len(records) - at < _RECORD_HEADER + length:
                break
            message += records[at + _RECORD_HEADER : at + _RECORD_HEADER + length]
            at += _RECORD_HEADER + length
        del records[:at]
        if message and message[0] != _CLIENT_HELLO:
            raise ValueError("another message")
        if len(message) < _MESSAGE_HEADER:
            return
        needed = self._length()
        if needed > MAX_HELLO:
            raise ValueError("too long")
        if len(message) >= needed:
            self._read(_Reader(bytes(message), _MESSAGE_HEADER, needed))
            self._end()

    def _length(self) -> int:
        """Bytes of the message, once its header is there."""
        return _MESSAGE_HEADER + int.from_bytes(self._message[1:_MESSAGE_HEADER], "big")

    def _is_whole(self) -> bool:
        return len(self._message) >= _MESSAGE_HEADER and len(self._message) >= self._length()

    def _end(self) -> None:
        self.done = True
        self._records, self._message = bytearray(), bytearray()

    def _read(self, hello: _Reader) -> None:
        hello.skip(2 + 32)  # version and random
        for width in (1, 2, 1):  # session, cipher suites, compression
            hello.vector(width)
        if not hello:
            return
        for kind, body in hello.vector(2).extensions():
            if kind == _SERVER_NAME:
                names = body.vector(2)
                if names.number(1) == _HOST_NAME:
                    self.name = names.vector(2).rest
            elif kind == _ALPN:
                offered = body.vector(2)
                found = []
                while offered:
                    found.append(offered.vector(1).rest)
                self.protocols = tuple(found)


class _Reader:
    """Takes values off the front of a stretch of bytes, without copying what it leaves.

    Every method raises ValueError where the stretch ends too soon.
    """

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    def __len__(self) -> int:
        return self._end - self._at

    @property
    def rest(self) -> bytes:
        return self._data[self._at : self._end]

    def number(self, width: int) -> int:
        at = self._skip(width)
        return int.from_bytes(self._data[at : at + width], "big")

    def skip(self, length: int) -> None:
        self._skip(length)

    def vector(self, width: int) -> _Reader:
        """What stands behind its own length of *width* bytes (RFC 8446, 3.4)."""
        length = self.number(width)
        at = self._skip(length)
        return _Reader(self._data, at, at + length)

    def extensions(self) -> Iterator[tuple[int, _Reader]]:
        while self:
            kind = self.number(2)
            yield kind, self.vector(2)

    def _skip(self, length: int) -> int:
        at = self._at
        if at + length > self._end:
            raise ValueError("ends too soon")
        self._at = at + length
        return at
