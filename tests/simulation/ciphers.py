"""What protects the packets of a call: SRTP of libsrtp's on the client's side, or none at all.

``Clear`` leaves packets as they are behind the interfaces of ``sfu.srtp``, which saves a third of a call's time. Its
trailer, as long as a tag, tells packets apart, so that nothing is taken twice, and has the index that the SFU sealed
with, so that indexes are used once and are what a receiver would guess. Not covered by it: keys and tags, the windows
and rollover counters of ``sfu.srtp``, its profiles. For those every long call is ``Sealed``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import count
from typing import Protocol

import pylibsrtp

from orama.net.fabric import Buffer, Burst
from orama.sfu.media import PeerMedia
from orama.sfu.srtp import TAG, Seal
from orama.wire.rtp import header_length, nearest
from tests.sfu.clients import random_keys, session

_front = struct.Struct("!BxH4xI").unpack_from


class Refused(Exception):
    """A packet of the SFU's that its client does not take."""


class Ciphers(Protocol):
    """The client's side."""

    def secure(self, media: PeerMedia) -> None:
        """Give the SFU its side."""

    def protect(self, packet: bytes) -> bytes: ...
    def protect_rtcp(self, packet: bytes) -> bytes: ...
    def unprotect(self, packet: bytes) -> bytes:
        """:raises Refused: it was there before, or is not genuine."""

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """:raises Refused: the same."""


class Sealed:
    """SRTP with random keys."""

    def __init__(self, profile: str) -> None:
        self._keys = keys = random_keys(profile)
        out = session(profile, keys.receive_key + keys.receive_salt, inbound=False)
        self.protect: Callable[[bytes], bytes] = out.protect
        self.protect_rtcp: Callable[[bytes], bytes] = out.protect_rtcp
        self._in = session(profile, keys.send_key + keys.send_salt, inbound=True)

    def secure(self, media: PeerMedia) -> None:
        media.secure(self._keys)

    def unprotect(self, packet: bytes) -> bytes:
        return self._checked(self._in.unprotect, packet)

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        return self._checked(self._in.unprotect_rtcp, packet)

    @staticmethod
    def _checked(unprotect: Callable[[bytes], bytes], packet: bytes) -> bytes:
        try:
            return unprotect(packet)
        except pylibsrtp.Error as error:
            raise Refused(str(error)) from None


class Clear:
    """No cipher."""

    def __init__(self) -> None:
        self._count = count()
        self._highest: dict[int, int] = {}
        self._used: set[tuple[int, int]] = set()

    def secure(self, media: PeerMedia) -> None:
        media.protect(_ClearReceiver(), _ClearSender())

    def protect(self, packet: bytes) -> bytes:
        return packet + next(self._count).to_bytes(TAG, "big")

    protect_rtcp = protect

    def unprotect(self, packet: bytes) -> bytes:
        _, number, ssrc = _front(packet)
        index = int.from_bytes(packet[-TAG:], "big")
        highest = self._highest.get(ssrc, number)
        if nearest(number, highest) != index:
            raise Refused(f"a receiver takes {number} for {nearest(number, highest)}, and not for {index}")
        if (ssrc, index) in self._used:
            raise Refused("it is replayed")
        self._used.add((ssrc, index))
        self._highest[ssrc] = max(highest, index)
        return packet[:-TAG]

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        return packet[:-TAG]


class _ClearReceiver:
    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def unprotect(self, packets: Burst) -> list[tuple[bytes, bytes]]:
        plain = []
        for packet in packets:
            whole = self.unprotect_rtcp(packet)
            if whole is not None:
                head = header_length(whole)
                plain.append((whole[:head], whole[head:]))
        return plain

    def unprotect_rtcp(self, packet: Buffer) -> bytes | None:
        tag = bytes(packet[-TAG:])
        if tag in self._seen:
            return None
        self._seen.add(tag)
        return bytes(packet[:-TAG])


class _ClearSender:
    def stream(self, ssrc: int) -> Seal:
        def seal(header: bytes, payload: bytes, index: int) -> bytes:
            return header + payload + index.to_bytes(TAG, "big")

        return seal

    def protect_rtcp(self, packet: bytes) -> bytes:
        return packet + bytes(TAG)
