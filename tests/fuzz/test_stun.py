"""A hundred thousand bad messages each for the STUN parser and the stream framer: a value or the one typed error."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import channeldata, stun
from orama.wire.stun import Class, Method, StunError, build, parse
from tests.wire.test_stun import LONG_TERM, REQUEST, RESPONSE_IPV6

COUNT = 100_000
SEEDS = (
    REQUEST,
    RESPONSE_IPV6,
    LONG_TERM,
    build(
        Method.CREATE_PERMISSION,
        Class.REQUEST,
        b"t" * 12,
        [(stun.XOR_PEER_ADDRESS, ("10.0.0.1", 1)), (stun.XOR_PEER_ADDRESS, ("fd00::1", 2))],
    ),
    build(
        Method.SEND,
        Class.INDICATION,
        b"t" * 12,
        [(stun.XOR_PEER_ADDRESS, ("10.0.0.1", 1)), (stun.DONT_FRAGMENT, True), (stun.DATA, b"data")],
    ),
    build(
        Method.ALLOCATE,
        Class.ERROR,
        b"t" * 12,
        [(stun.ERROR_CODE, (420, "unknown")), (stun.UNKNOWN_ATTRIBUTES, (1, 2, 3)), (stun.ALTERNATE_SERVER, ("::", 1))],
        key=b"k",
        sha256=True,
        fingerprint=True,
    ),
)


def damaged(source: random.Random, data: bytes) -> bytes:
    """*data* with bytes changed, cut off, put in or doubled; half of the time with a length that fits again."""
    out = bytearray(data)
    for _ in range(source.randrange(1, 6)):
        at = source.randrange(len(out) + 1)
        kind = source.randrange(5)
        if kind == 0 and out:
            out[at % len(out)] = source.randrange(256)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = source.randbytes(source.randrange(1, 9))
        elif kind == 3:
            out[at:at] = out[at : at + 8]
        elif len(out) > 3:
            out[2:4] = source.randrange(0x10000).to_bytes(2, "big")
    if source.random() < 0.5 and len(out) >= 20:
        out[2:4] = (len(out) - 20 & 0xFFFF).to_bytes(2, "big")
    return bytes(out)


class StunFuzzTests(SynchronousTestCase):
    def test_damaged(self) -> None:
        """Damaged messages are read or refused; what is read never verifies under a key that did not sign it."""
        source = random.Random(5769)
        read = 0
        for number in range(COUNT):
            try:
                message = parse(damaged(source, SEEDS[number % len(SEEDS)]))
            except StunError:
                continue
            read += 1
            self.assertFalse(message.verify(b"not the key"))
        self.assertGreater(read, COUNT // 100, "the damage has to let some through")

    def test_random(self) -> None:
        """Random bytes behind a good header are read or refused."""
        source = random.Random(8489)
        for _ in range(COUNT):
            body = source.randbytes(4 * source.randrange(0, 12))
            head = bytes((source.randrange(4), source.randrange(256))) + len(body).to_bytes(2, "big")
            try:
                parse(head + stun.COOKIE.to_bytes(4, "big") + b"t" * 12 + body)
            except StunError:
                continue

    @given(st.binary(max_size=300))
    @settings(max_examples=2000)
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes at all are read or refused, whatever kind of buffer they come in."""
        for buffer in (data, bytearray(data), memoryview(data)):
            try:
                parse(buffer)
            except StunError:
                continue

    def test_framer(self) -> None:
        """Any start of a stream gives a length within the bounds or a FrameError."""
        source = random.Random(8656)
        for _ in range(COUNT):
            data = source.randbytes(source.randrange(12))
            try:
                length = channeldata.frame_length(data)
            except channeldata.FrameError:
                continue
            self.assertTrue(0 <= length <= 0x10000 + 20)
