"""STUN and TURN by hand, straight from RFC 8489 and RFC 8656: a client over UDP, TCP or TLS on blocking sockets."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
import struct
import zlib
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, TypeAlias

from attrs import field, frozen

MAGIC = 0x2112A442
BINDING, ALLOCATE, REFRESH, SEND, DATA, CREATE_PERMISSION, CHANNEL_BIND = (
    0x001,
    0x003,
    0x004,
    0x006,
    0x007,
    0x008,
    0x009,
)
REQUEST, INDICATION, SUCCESS, ERROR = 0x000, 0x010, 0x100, 0x110
USERNAME, MESSAGE_INTEGRITY, ERROR_CODE, UNKNOWN_ATTRIBUTES = 0x0006, 0x0008, 0x0009, 0x000A
CHANNEL_NUMBER, LIFETIME, XOR_PEER_ADDRESS, DATA_ATTRIBUTE = 0x000C, 0x000D, 0x0012, 0x0013
REALM, NONCE, XOR_RELAYED_ADDRESS, REQUESTED_FAMILY = 0x0014, 0x0015, 0x0016, 0x0017
EVEN_PORT, REQUESTED_TRANSPORT, XOR_MAPPED_ADDRESS = 0x0018, 0x0019, 0x0020
PRIORITY, USE_CANDIDATE, SOFTWARE, FINGERPRINT, ICE_CONTROLLING = 0x0024, 0x0025, 0x8022, 0x8028, 0x802A
UDP = bytes((17, 0, 0, 0))
#: Seconds to wait for an answer, and for one that is not to come.
PATIENCE = 30.0
SILENCE = 0.3

Attributes: TypeAlias = Sequence[tuple[int, bytes]]
Address: TypeAlias = tuple[str, int]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def build(
    method: int,
    kind: int = REQUEST,
    attributes: Attributes = (),
    *,
    key: bytes = b"",
    fingerprint: bool = False,
    transaction: bytes = b"",
) -> bytes:
    """One message; with MESSAGE-INTEGRITY where there is a *key*."""
    body = b"".join(attribute(*each) for each in attributes)
    transaction = transaction or os.urandom(12)

    def head(length: int) -> bytes:
        return struct.pack("!HHI", method | kind, length, MAGIC) + transaction

    if key:
        signature = hmac.digest(key, head(len(body) + 24) + body, "sha1")
        body += attribute(MESSAGE_INTEGRITY, signature)
    if fingerprint:
        crc = zlib.crc32(head(len(body) + 8) + body) ^ 0x5354554E
        body += attribute(FINGERPRINT, struct.pack("!I", crc))
    return head(len(body)) + body


@frozen
class Message:
    raw: bytes = field(repr=False)
    kind: int
    transaction: bytes
    attributes: dict[int, bytes]

    @property
    def code(self) -> int:
        """Of an error response; 0 for a success."""
        value = self.attributes.get(ERROR_CODE)
        return 0 if value is None else value[2] * 100 + value[3]

    def address(self, kind: int) -> Address:
        return unxor(self.attributes[kind], self.transaction)

    def number(self, kind: int) -> int:
        return int.from_bytes(self.attributes[kind], "big")


def parse(raw: bytes) -> Message:
    kind, length, magic = struct.unpack_from("!HHI", raw)
    assert magic == MAGIC and length == len(raw) - 20, raw
    attributes: dict[int, bytes] = {}
    at = 20
    while at < len(raw):
        name, size = struct.unpack_from("!HH", raw, at)
        attributes.setdefault(name, raw[at + 4 : at + 4 + size])
        at += 4 + size + -size % 4
    return Message(raw, kind, raw[8:20], attributes)


def _mask(size: int, transaction: bytes) -> bytes:
    return (struct.pack("!I", MAGIC) + transaction)[:size]


def xor(address: Address, transaction: bytes) -> bytes:
    """An XOR-…-ADDRESS (RFC 8489, 14.2)."""
    packed = ip_address(address[0]).packed
    mixed = bytes(a ^ b for a, b in zip(packed, _mask(len(packed), transaction), strict=True))
    return struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, address[1] ^ (MAGIC >> 16)) + mixed


def unxor(value: bytes, transaction: bytes) -> Address:
    _, _, port = struct.unpack_from("!BBH", value)
    packed = bytes(a ^ b for a, b in zip(value[4:], _mask(len(value) - 4, transaction), strict=True))
    return str(ip_address(packed)), port ^ (MAGIC >> 16)


def password(secret: str, username: str) -> str:
    """Contract, section 5."""
    import base64

    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()


class Turn:
    """One five-tuple.

    :param transport: ``udp``, ``tcp`` or ``tls``.
    """

    def __init__(
        self,
        address: Address,
        username: str = "",
        password: str = "",
        transport: str = "udp",
        *,
        source: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.username = username
        self.password = password
        self.realm = self.nonce = b""
        self._stream = transport != "udp"
        self._buffer = b""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket: socket.socket = socket.socket(family, socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(PATIENCE)
        self.socket.connect(address)
        if transport == "tls":
            self.socket = (tls or unchecked()).wrap_socket(self.socket)

    @property
    def key(self) -> bytes:
        text = b":".join((self.username.encode(), self.realm, self.password.encode()))
        return hashlib.md5(text).digest()

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def receive(self, seconds: float = PATIENCE) -> bytes | None:
        """One message, STUN or ChannelData; None when there is silence for so long."""
        self.socket.settimeout(seconds)
        try:
            return self._from_stream() if self._stream else self.socket.recv(65536)
        except TimeoutError:
            return None

    def _from_stream(self) -> bytes:
        while True:
            if len(self._buffer) >= 4:
                first, length = struct.unpack_from("!HH", self._buffer)
                size = 4 + length if first & 0xC000 else 20 + length
                padded = size + -size % 4
                if len(self._buffer) >= padded:
                    raw, self._buffer = self._buffer[:size], self._buffer[padded:]
                    return raw
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._buffer += data

    def answer(self, raw: bytes, seconds: float = PATIENCE) -> Message | None:
        """Send a request, and wait for what has its transaction id."""
        self.send(raw)
        while (data := self.receive(seconds)) is not None:
            if data[:1] < b"\x40" and data[8:20] == raw[8:20]:
                return parse(data)
        return None

    def request(self, method: int, attributes: Attributes = (), transaction: bytes = b"") -> Message:
        """An authenticated request, after what it takes to learn realm and nonce."""
        for attempt in range(3):
            transaction = transaction or os.urandom(12)
            known: list[tuple[int, bytes]] = []
            if self.nonce:
                known = [(USERNAME, self.username.encode()), (REALM, self.realm), (NONCE, self.nonce)]
            key = self.key if self.nonce else b""
            answer = self.answer(build(method, REQUEST, [*attributes, *known], key=key, transaction=transaction))
            assert answer is not None, "no answer"
            fresh = answer.attributes.get(NONCE, b"")
            if answer.code not in (401, 438) or (answer.code == 401 and self.nonce) or attempt == 2:
                return answer
            self.realm, self.nonce, transaction = answer.attributes[REALM], fresh, b""
        raise AssertionError("the nonce is always stale")

    def allocate(self, *attributes: tuple[int, bytes]) -> Message:
        return self.request(ALLOCATE, [(REQUESTED_TRANSPORT, UDP), *attributes])

    def permit(self, *ips: str) -> int:
        """The code of the answer to a CreatePermission; 0 when it is good."""
        transaction = os.urandom(12)
        if not self.nonce:
            self.request(REFRESH)
        return self.request(
            CREATE_PERMISSION, [(XOR_PEER_ADDRESS, xor((ip, 0), transaction)) for ip in ips], transaction
        ).code

    def bind(self, peer: Address, channel: int = 0x4000) -> int:
        """The code of the answer to a ChannelBind."""
        transaction = os.urandom(12)
        attributes = [
            (CHANNEL_NUMBER, struct.pack("!HH", channel, 0)),
            (XOR_PEER_ADDRESS, xor(peer, transaction)),
        ]
        return self.request(CHANNEL_BIND, attributes, transaction).code

    def indicate(self, peer: Address, data: bytes) -> None:
        """A Send indication."""
        transaction = os.urandom(12)
        attributes = [(XOR_PEER_ADDRESS, xor(peer, transaction)), (DATA_ATTRIBUTE, data)]
        self.send(build(SEND, INDICATION, attributes, transaction=transaction))

    def channel_data(self, data: bytes, channel: int = 0x4000) -> None:
        padding = bytes(-len(data) % 4) if self._stream else b""
        self.send(struct.pack("!HH", channel, len(data)) + data + padding)

    def relayed(self, seconds: float = PATIENCE) -> bytes | None:
        """The payload of the next thing that a peer sent, as ChannelData or in a Data indication."""
        while (raw := self.receive(seconds)) is not None:
            if raw[0] >= 0x40:
                return raw[4 : 4 + int.from_bytes(raw[2:4], "big")]
            message = parse(raw)
            if message.kind == DATA | INDICATION:
                return message.attributes[DATA_ATTRIBUTE]
        return None

    def release(self) -> None:
        """Give the allocation back, when there is one, and close."""
        try:
            if self.nonce:
                self.request(REFRESH, [(LIFETIME, bytes(4))])
        finally:
            self.socket.close()


def unchecked() -> ssl.SSLContext:
    """TLS with whatever certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def of(credentials: dict[str, Any], transport: str = "udp", **more: Any) -> Turn:
    """A client with what REST or signalling gave out, at the port of one of its URIs here."""
    address = "127.0.0.1", port(credentials, transport)
    return Turn(address, credentials["username"], credentials["password"], transport, **more)


def port(credentials: dict[str, Any], transport: str = "udp") -> int:
    """Of the URI for that transport."""
    uri: str = credentials["uris"][("udp", "tcp", "tls").index(transport)]
    return int(uri.partition("?")[0].rpartition(":")[2])
