"""Reading what a TLS client says first."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from orama.net.hello import MAX_HELLO, Alert, ClientHello

NAMES = st.one_of(st.just(b""), st.binary(min_size=1, max_size=200).filter(lambda name: b"\0" not in name))
PROTOCOLS = st.lists(st.binary(min_size=1, max_size=255), max_size=8)


def vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content


def message(name: bytes = b"", protocols: Sequence[bytes] | None = None, padding: int = 0) -> bytes:
    """A ClientHello without its records."""
    extensions = b""
    if name:
        extensions += b"\0\0" + vector(2, vector(2, b"\0" + vector(2, name)))
    if protocols is not None:
        extensions += b"\0\x10" + vector(2, vector(2, b"".join(vector(1, each) for each in protocols)))
    if padding:
        extensions += b"\0\x15" + vector(2, bytes(padding))
    body = b"\3\3" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\1") + vector(1, b"\0") + vector(2, extensions)
    return b"\1" + vector(3, body)


def records(content: bytes, size: int = 1 << 14) -> bytes:
    """Cut into records of at most *size* bytes."""
    return b"".join(b"\x16\3\1" + vector(2, content[start : start + size]) for start in range(0, len(content), size))


def read(*pieces: bytes) -> ClientHello:
    hello = ClientHello()
    for piece in pieces:
        hello.feed(piece)
    return hello


class HelloTests(SynchronousTestCase):
    @given(NAMES, st.none() | PROTOCOLS, st.integers(1, 300), st.lists(st.integers(0, 3000), max_size=6))
    def test_pieces(self, name: bytes, protocols: list[bytes] | None, record: int, cuts: list[int]) -> None:
        """Name and protocols are found however the message is cut into records, and those into reads."""
        data = records(message(name, protocols), record)
        at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        hello = read(*(data[start:end] for start, end in itertools.pairwise(at)))
        self.assertTrue(hello.done)
        self.assertEqual((hello.name, hello.protocols), (name, None if protocols is None else tuple(protocols)))

    def test_of_openssl(self) -> None:
        """What a real client sends is understood, and is not done before its last byte."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_alpn_protos([b"h2", b"stun.turn"])
        client = SSL.Connection(context, None)
        client.set_connect_state()
        client.set_tlsext_host_name(b"turn.example")
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        data = client.bio_read(1 << 16)
        hello = read(*(data[at : at + 1] for at in range(len(data) - 1)))
        self.assertFalse(hello.done)
        hello.feed(data[-1:] + b"more")
        self.assertEqual((hello.done, hello.name, hello.protocols), (True, b"turn.example", (b"h2", b"stun.turn")))

    def test_what_follows(self) -> None:
        """Early data (RFC 8446, 4.2.10) and whatever else comes in the same read changes nothing."""
        for more in (b"\x17\3\3\0\4data", b"\x14\3\3\0\1\1", b"no record at all", bytes(20000)):
            hello = read(records(message(b"turn.example", [b"h2"])) + more)
            self.assertEqual((hello.done, hello.name, hello.protocols), (True, b"turn.example", (b"h2",)))

    @given(st.binary(max_size=600), st.binary(max_size=600))
    @example(b"\x16\3\1\0\0", b"")
    @example(records(b"\1\0\0\1\0"), b"")
    @example(b"GET / HTTP/1.1\r\n\r\n", b"")
    def test_any_bytes(self, data: bytes, body: bytes) -> None:
        """Nothing is raised, for any bytes and for any body of a ClientHello."""
        read(data)
        hello = read(records(b"\1" + vector(3, body)))
        self.assertTrue(hello.done)
        hello.refusal(("stun.turn",))

    def test_bounds(self) -> None:
        """No more is held than a ClientHello may be long; a longer one and what is none are not looked at."""
        self.assertEqual(read(records(message(b"a", None, 15_000))).name, b"a")
        for data in (
            records(message(b"a", None, MAX_HELLO), 4000),
            b"\x16\3\1\xff\xff",
            b"\x17\3\1\0\5",
            records(b"\2\0\0\5hello"),
        ):
            hello = read(data[:5000])
            self.assertEqual((hello.done, hello.name), (True, b""))
            self.assertEqual(len(hello._records) + len(hello._message), 0)

    def test_refusal(self) -> None:
        """A client is refused that offers only foreign protocols, or that asks for a name that is not ASCII."""
        ours = ("stun.turn", "stun.nat-discovery")
        for data, alert in (
            (message(), None),
            (message(protocols=[b"h2", b"stun.nat-discovery"]), None),
            (message(protocols=[b"h2"]), Alert.NO_APPLICATION_PROTOCOL),
            (message(protocols=[]), Alert.NO_APPLICATION_PROTOCOL),
            (message(b"\xc3\xa4.example"), Alert.UNRECOGNIZED_NAME),
        ):
            self.assertEqual(read(records(data)).refusal(ours), alert)
        self.assertIsNone(read(records(message(protocols=[b"h2"]))).refusal(()))
        self.assertEqual(Alert.NO_APPLICATION_PROTOCOL.record(), bytes.fromhex("15030300020278"))
