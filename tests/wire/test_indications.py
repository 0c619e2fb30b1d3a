"""The short way for Send and Data indications says what the general codec says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.indications import OVERHEAD, data_header, unpack_send
from orama.wire.stun import Class, Method, build, parse

TRANSACTION = b"abcdefghijkl"
ipv4 = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 0xFFFF))
ipv6 = st.tuples(st.ip_addresses(v=6).map(str), st.integers(0, 0xFFFF))


class IndicationTests(SynchronousTestCase):
    @given(ipv4, st.binary(max_size=1500), st.booleans())
    def test_plain(self, peer: stun.Address, data: bytes, data_first: bool) -> None:
        """Peer and data, in either order, are read without a copy."""
        attributes = [(stun.XOR_PEER_ADDRESS, peer), (stun.DATA, data)]
        packet = build(Method.SEND, Class.INDICATION, TRANSACTION, attributes[::-1] if data_first else attributes)
        found = unpack_send(memoryview(packet))
        assert found is not None
        self.assertEqual((found[0], bytes(found[1])), (peer, data))
        self.assertIsInstance(found[1], memoryview)

    @given(ipv4, ipv6, st.binary(max_size=20))
    def test_left_to_the_codec(self, peer: stun.Address, peer6: stun.Address, data: bytes) -> None:
        """Other peers, other attributes, other messages: None."""
        plain = [(stun.XOR_PEER_ADDRESS, peer), (stun.DATA, data)]
        for method, cls, attributes, fingerprint in (
            (Method.SEND, Class.INDICATION, [(stun.XOR_PEER_ADDRESS, peer6), (stun.DATA, data)], False),
            (Method.SEND, Class.INDICATION, [*plain, (stun.DONT_FRAGMENT, True)], False),
            (Method.SEND, Class.INDICATION, plain, True),
            (Method.SEND, Class.INDICATION, plain[:1], False),
            (Method.SEND, Class.REQUEST, plain, False),
            (Method.DATA, Class.INDICATION, plain, False),
        ):
            self.assertIsNone(unpack_send(build(method, cls, TRANSACTION, attributes, fingerprint=fingerprint)))

    @given(ipv4, st.binary(max_size=1500))
    def test_data(self, peer: stun.Address, data: bytes) -> None:
        """Header, data and padding are a Data indication."""
        header = data_header(TRANSACTION, peer, len(data))
        self.assertEqual(len(header), OVERHEAD)
        message = parse(header + data + bytes(-len(data) % 4))
        self.assertEqual((message.method, message.cls), (Method.DATA, Class.INDICATION))
        self.assertEqual((message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)), (peer, data))
        self.assertEqual(message.transaction_id, TRANSACTION)
