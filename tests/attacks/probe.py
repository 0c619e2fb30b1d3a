"""A hostile STUN client, straight from the RFCs by ``struct`` and ``hmac``: it says what no honest client would.

Shares no code with ``orama``, so that a fault of its codec does not hide itself. Every answer is held to RFC 8489,
section 14: padding is zero, and what answers a signed request is signed.
"""

from __future__ import annotations

import hmac
import os
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.contract import turn
from tests.contract.turn import Address, Attributes, Message, Turn

CONNECT, CONNECTION_BIND = 0x00A, 0x00B
ACCESS_TOKEN, SHA256, RESERVATION_TOKEN, CONNECTION_ID = 0x001B, 0x001C, 0x0022, 0x002A
ADDITIONAL_FAMILY, MOBILITY_TICKET, ORIGIN = 0x8000, 0x8030, 0x802F
TCP = bytes((6, 0, 0, 0))
HEADER = 20
CONNECTION_ATTEMPT = 0x00C
#: With which a binary header of the PROXY protocol begins (proxy-protocol.txt, 2.2).
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"
#: ``linux/udp.h``: the kernel cuts one send into datagrams of this size.
_SOL_UDP, _UDP_SEGMENT = 17, 103
#: Datagrams in such a send, and sends before we wait until the server has come so far.
SEGMENTS = 64
_SENDS = 32


def attributes(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, value and padding of each attribute, as they stand there."""
    at = HEADER
    while at < len(raw):
        kind, size = struct.unpack_from("!HH", raw, at)
        end = at + 4 + size
        assert end + -size % 4 <= len(raw), raw
        yield kind, raw[at + 4 : end], raw[end : end + -size % 4]
        at = end + -size % 4


def lengthened(raw: bytes, *parts: bytes) -> bytes:
    """*raw* with *parts* behind its last attribute, and a length that says so."""
    body = b"".join((raw[HEADER:], *parts))
    return raw[:2] + struct.pack("!H", len(body)) + raw[4:HEADER] + body


def sha256(raw: bytes, key: bytes) -> bytes:
    """*raw* with a MESSAGE-INTEGRITY-SHA256 behind everything else (RFC 8489, 14.6)."""
    signed = raw[:2] + struct.pack("!H", len(raw) - HEADER + 36) + raw[4:]
    return lengthened(raw, turn.attribute(SHA256, hmac.digest(key, signed, "sha256")))


class Probe(Turn):
    """One five-tuple of somebody who knows credentials, or makes them up."""

    def answer(self, raw: bytes, seconds: float = turn.PATIENCE) -> Message | None:
        message = super().answer(raw, seconds)
        if message is not None:
            assert not any(map(any, (padding for _, _, padding in attributes(message.raw)))), message.raw.hex()
        return message

    def release(self) -> None:
        try:
            super().release()
        except OSError:  # the server has closed the stream
            self.socket.close()

    def code(self, method: int, *attributes: tuple[int, bytes], transaction: bytes = b"") -> int:
        """Of the answer to a signed request; 0 when it is good."""
        return self.request(method, attributes, transaction).code

    def known(self) -> Probe:
        """Learn realm and nonce, and keep nothing else."""
        if not self.nonce:
            answer = self.ask(turn.ALLOCATE, (turn.REQUESTED_TRANSPORT, turn.UDP))
            self.realm, self.nonce = answer.attributes[turn.REALM], answer.attributes[turn.NONCE]
        return self

    def ask(self, method: int, *attributes: tuple[int, bytes]) -> Message:
        """The answer to a request that nobody signed."""
        message = self.answer(turn.build(method, attributes=attributes))
        assert message is not None, "no answer"
        return message

    def signed(self, method: int, given: Attributes = (), *, key: bytes = b"", transaction: bytes = b"") -> bytes:
        """A request with our credentials as they stand; *key* signs instead of the right one."""
        known = [(turn.USERNAME, self.username.encode()), (turn.REALM, self.realm), (turn.NONCE, self.nonce)]
        return turn.build(method, attributes=[*given, *known], key=key or self.key, transaction=transaction)

    def forged(self, method: int, given: Attributes = (), **more: bytes) -> int:
        """The code of the answer to :meth:`signed`, whatever it is."""
        message = self.answer(self.signed(method, given, **more))
        assert message is not None, "no answer"
        return message.code

    def peer(self, *peers: Address, transaction: bytes) -> list[tuple[int, bytes]]:
        return [(turn.XOR_PEER_ADDRESS, turn.xor(peer, transaction)) for peer in peers]

    def connect(self, peer: Address) -> int:
        """The code of the answer to a Connect (RFC 6062, 4.3)."""
        transaction = os.urandom(12)
        return self.code(CONNECT, *self.peer(peer, transaction=transaction), transaction=transaction)

    def join(self, connection: bytes) -> int:
        """The code of the answer to a ConnectionBind (RFC 6062, 4.4)."""
        return self.code(CONNECTION_BIND, (CONNECTION_ID, connection))

    def is_alive(self) -> bool:
        """Whether the server still answers us, and with our own address."""
        bound = self.ask(turn.BINDING)
        return bool(bound.address(turn.XOR_MAPPED_ADDRESS)[1] == self.socket.getsockname()[1])


def sources(count: int) -> Iterator[Address]:
    """Addresses of this machine, no two in one /24 before all of 120 × 256 have been there."""
    for number in range(count):
        yield f"127.{100 + number // 256 % 120}.{number % 256}.{1 + number // 30720 % 250}", 0


def flood(last: Probe, packets: Sequence[bytes], count: int, each: int = SEGMENTS) -> None:
    """Send one of *packets* from each of *count* sources, *each* times, no faster than the server takes it.

    It has taken all of it when this returns.

    :param last: is answered after what was sent before; it has an allocation, so that nobody counts its questions.
    """
    server = last.socket.getpeername()
    for number, source in enumerate(sources(count), 1):
        packet = packets[number % len(packets)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(source)
            segment = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("@H", len(packet)))]
            sender.sendmsg([packet * each], segment, 0, server)
        if number % _SENDS == 0 or number == count:
            assert last.is_alive()


def memory(process: int) -> int:
    """Bytes that a process has in memory (proc(5), VmRSS)."""
    [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def client_hello() -> bytes:
    """The first thing that a client of TLS says."""
    outgoing = ssl.MemoryBIO()
    client = turn.unchecked().wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
