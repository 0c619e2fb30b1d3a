"""The STUN codec against RFC 5769's vectors, round trips, and bytes that are no STUN."""

from __future__ import annotations

import hashlib
import hmac
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Class, Message, Method, StunError, build, parse

#: RFC 5769, 2.1 to 2.4.
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RESPONSE_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RESPONSE_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)
LONG_TERM = bytes.fromhex(
    "000100602112a44278ad3433c6ad72c029da412e"
    "00060012e3839ee38388e383aae38383e382afe382b90000"
    "0015001c662f2f3439396b3935346436"
    "4f4c33346f4c39465354767936347341"
    "0014000b6578616d706c652e6f726700"
    "00080014f67024656dd64a3e02b8e0712e85c9a28ca89666"
)
PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
TRANSACTION = b"abcdefghijkl"

addresses = st.tuples(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    st.integers(0, 0xFFFF),
)
texts = st.text(max_size=60)
#: One strategy per row of the table.
VALUES: dict[stun.Attribute[object], st.SearchStrategy[object]] = {
    stun.MAPPED_ADDRESS: addresses,
    stun.USERNAME: texts,
    stun.ERROR_CODE: st.tuples(st.integers(300, 699), texts),
    stun.UNKNOWN_ATTRIBUTES: st.lists(st.integers(0, 0xFFFF), max_size=8).map(tuple),
    stun.CHANNEL_NUMBER: st.integers(0, 0xFFFF),
    stun.LIFETIME: st.integers(0, 0xFFFFFFFF),
    stun.XOR_PEER_ADDRESS: addresses,
    stun.DATA: st.binary(max_size=200),
    stun.REALM: texts,
    stun.NONCE: st.binary(max_size=100),
    stun.XOR_RELAYED_ADDRESS: addresses,
    stun.REQUESTED_ADDRESS_FAMILY: st.integers(0, 255),
    stun.EVEN_PORT: st.booleans(),
    stun.REQUESTED_TRANSPORT: st.integers(0, 255),
    stun.DONT_FRAGMENT: st.just(True),
    stun.XOR_MAPPED_ADDRESS: addresses,
    stun.RESERVATION_TOKEN: st.binary(min_size=8, max_size=8),
    stun.PRIORITY: st.integers(0, 0xFFFFFFFF),
    stun.USE_CANDIDATE: st.just(True),
    stun.ADDITIONAL_ADDRESS_FAMILY: st.integers(0, 255),
    stun.ADDRESS_ERROR_CODE: st.tuples(st.integers(0, 255), st.integers(300, 699)),
    stun.SOFTWARE: texts,
    stun.ALTERNATE_SERVER: addresses,
    stun.ICE_CONTROLLED: st.integers(0, 2**64 - 1),
    stun.ICE_CONTROLLING: st.integers(0, 2**64 - 1),
}
attribute_sets = st.lists(
    st.sampled_from(sorted(VALUES, key=lambda row: row.type)).flatmap(lambda row: st.tuples(st.just(row), VALUES[row])),
    unique_by=lambda pair: pair[0].type,
    max_size=8,
)


def raw(*attributes: tuple[int, bytes], method: int = 0x0001) -> bytes:
    """A message put together by hand, so that it can be wrong."""
    body = b"".join(
        struct.pack("!HH", type_, len(value)) + value + bytes(-len(value) % 4) for type_, value in attributes
    )
    return struct.pack("!HHI", method, len(body), stun.COOKIE) + TRANSACTION + body


class Rfc5769Tests(SynchronousTestCase):
    def test_request(self) -> None:
        """The sample request of section 2.1 is read, its integrity and fingerprint are right."""
        message = parse(REQUEST)
        self.assertEqual((message.method, message.cls), (Method.BINDING, Class.REQUEST))
        self.assertEqual(message.get(stun.USERNAME), "evtj:h6vY")
        self.assertEqual(message.get(stun.SOFTWARE), "STUN test client")
        self.assertEqual(message.get(stun.PRIORITY), 0x6E0001FF)
        self.assertEqual(message.get(stun.ICE_CONTROLLED), 0x932FF9B151263B36)
        self.assertTrue(message.verify(PASSWORD))
        self.assertFalse(message.verify(PASSWORD + b"x"))

    def test_responses(self) -> None:
        """The sample responses of sections 2.2 and 2.3 give the mapped address of either family."""
        for data, host in ((RESPONSE_IPV4, "192.0.2.1"), (RESPONSE_IPV6, "2001:db8:1234:5678:11:2233:4455:6677")):
            message = parse(data)
            self.assertEqual((message.method, message.cls), (Method.BINDING, Class.SUCCESS))
            self.assertEqual(message.get(stun.XOR_MAPPED_ADDRESS), (host, 32853))
            self.assertTrue(message.verify(PASSWORD))

    def test_responses_are_written_alike(self) -> None:
        """Building the sample responses gives their bytes, but for the padding, which we write as zero."""
        for host, data in (("192.0.2.1", RESPONSE_IPV4), ("2001:db8:1234:5678:11:2233:4455:6677", RESPONSE_IPV6)):
            built = build(
                Method.BINDING,
                Class.SUCCESS,
                data[8:20],
                [(stun.SOFTWARE, "test vector"), (stun.XOR_MAPPED_ADDRESS, (host, 32853))],
                key=PASSWORD,
                fingerprint=True,
            )
            self.assertEqual(built[:35], data[:35])
            self.assertEqual(built[35], 0)
            address = slice(36, 48 if host.count(".") else 60)
            self.assertEqual(built[address], data[address])
            self.assertTrue(parse(built).verify(PASSWORD))

    def test_long_term_credentials(self) -> None:
        """The sample of section 2.4 verifies with the key of user name, realm and password; it is written alike."""
        message = parse(LONG_TERM)
        name = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
        self.assertEqual(message.get(stun.USERNAME), name)
        self.assertEqual(message.get(stun.REALM), "example.org")
        key = stun.long_term_key(name, "example.org", "TheMatrIX")
        self.assertTrue(message.verify(key))
        again = build(
            Method.BINDING,
            Class.REQUEST,
            message.transaction_id,
            [(stun.USERNAME, name), (stun.NONCE, b"f//499k954d6OL34oL9FSTvy64sA"), (stun.REALM, "example.org")],
            key=key,
        )
        self.assertEqual(again, LONG_TERM)

    def test_flipped_bits(self) -> None:
        """Any changed byte of the sample request is noticed by fingerprint, by integrity, or by the parser."""
        for at in range(len(REQUEST)):
            changed = bytearray(REQUEST)
            changed[at] ^= 0x10
            try:
                message = parse(changed)
            except StunError:
                continue
            # What hides the FINGERPRINT from the parser is still under the integrity, or follows it.
            self.assertTrue(not message.verify(PASSWORD) or at >= REQUEST.index(b"\x80\x28\x00\x04"), at)


class RoundTripTests(SynchronousTestCase):
    @given(st.integers(0, 0xFFF), st.sampled_from(Class), attribute_sets, st.booleans(), st.booleans())
    def test_round_trip(
        self, method: int, cls: Class, attributes: list[tuple[stun.Attribute[object], object]], sign: bool, sha256: bool
    ) -> None:
        """What is built is read back, whatever the method, class, attributes and protection."""
        key = b"key" if sign else None
        data = build(method, cls, TRANSACTION, attributes, key=key, sha256=sha256, fingerprint=True)
        message = parse(data)
        self.assertEqual((message.method, message.cls, message.transaction_id), (method, cls, TRANSACTION))
        for row, value in attributes:
            self.assertEqual(message.get(row), value, row)
        self.assertEqual((message.unknown, message.malformed), ((), ()))
        self.assertEqual(message.verify(b"key"), sign)
        self.assertFalse(message.verify(b"other"))

    @given(attribute_sets)
    def test_padding_is_zero(self, attributes: list[tuple[stun.Attribute[object], object]]) -> None:
        """No byte of memory leaks in the padding of what we send."""
        data = build(Method.BINDING, Class.SUCCESS, TRANSACTION, attributes)
        at = stun.HEADER_LENGTH
        while at < len(data):
            size = struct.unpack_from("!H", data, at + 2)[0]
            end = at + 4 + size + -size % 4
            self.assertEqual(data[at + 4 + size : end], bytes(end - at - 4 - size))
            at = end
        self.assertEqual(at, len(data))

    @given(st.sampled_from(sorted(VALUES, key=lambda row: row.type)), st.binary(max_size=40))
    def test_any_value(self, row: stun.Attribute[object], value: bytes) -> None:
        """Any bytes as the value of any attribute are either read or reported as malformed."""
        message = parse(raw((row.type, value)))
        self.assertNotEqual(row.type in message.malformed, row in message)


class RuleTests(SynchronousTestCase):
    def parsed(self, *attributes: tuple[int, bytes]) -> Message:
        return parse(raw(*attributes))

    def test_first_of_duplicates(self) -> None:
        """Of an attribute that comes twice the first counts (RFC 8489, 14)."""
        message = self.parsed((0x000D, b"\0\0\0\1"), (0x000D, b"\0\0\0\2"))
        self.assertEqual(message.get(stun.LIFETIME), 1)
        self.assertEqual(message.all(stun.LIFETIME), [1])

    def test_repeated_peers(self) -> None:
        """CreatePermission may name several peers (RFC 8656, 9.1): all are there, in their order."""
        peers = [("10.0.0.1", 1), ("10.0.0.2", 2), ("2001:db8::3", 3)]
        data = build(
            Method.CREATE_PERMISSION, Class.REQUEST, TRANSACTION, [(stun.XOR_PEER_ADDRESS, peer) for peer in peers]
        )
        message = parse(data)
        self.assertEqual(message.all(stun.XOR_PEER_ADDRESS), peers)
        self.assertEqual(message.get(stun.XOR_PEER_ADDRESS), peers[0])
        self.assertEqual(message.all(stun.DATA), [])

    def test_after_integrity(self) -> None:
        """What follows MESSAGE-INTEGRITY is ignored, known, unknown or malformed (RFC 8489, 14.5)."""
        signed = build(Method.REFRESH, Class.REQUEST, TRANSACTION, [(stun.LIFETIME, 1)], key=b"k")
        tail = raw((0x0012, b"\0\1\0\0\0\0\0\0"), (0x7FFF, b""), (0x0018, b""))[20:]
        data = signed[:2] + struct.pack("!H", len(signed) + len(tail) - 20) + signed[4:] + tail
        message = parse(data)
        self.assertNotIn(stun.XOR_PEER_ADDRESS, message)
        self.assertEqual((message.unknown, message.malformed), ((), ()))
        self.assertTrue(message.verify(b"k"))

    def test_integrity_sha256(self) -> None:
        """MESSAGE-INTEGRITY-SHA256 verifies beside MESSAGE-INTEGRITY and alone, truncated where that is allowed."""
        both = build(Method.REFRESH, Class.REQUEST, TRANSACTION, [(stun.LIFETIME, 1)], key=b"k")
        head = both[:2] + struct.pack("!H", len(both) - 20 + 20) + both[4:]
        signature = hmac.new(b"k", head, hashlib.sha256).digest()[:16]
        both = head + struct.pack("!HH", 0x001C, 16) + signature
        self.assertTrue(parse(both).verify(b"k", shortest=16))
        self.assertFalse(parse(both).verify(b"l", shortest=16))
        self.assertFalse(parse(both).verify(b"k"), "whole is the rule")
        wrong = both[:-1] + bytes([both[-1] ^ 1])
        self.assertFalse(parse(wrong).verify(b"k", shortest=16))

    def test_integrity_of_a_wrong_length(self) -> None:
        """A MESSAGE-INTEGRITY that is not 20 bytes long protects nothing."""
        message = self.parsed((0x0008, b"x" * 19))
        self.assertFalse(message.protected)
        self.assertFalse(message.verify(b""))
        self.assertEqual(message.malformed, (0x0008,))

    def test_no_integrity(self) -> None:
        """A message without integrity verifies under no key."""
        self.assertFalse(self.parsed().verify(b""))

    def test_unknown_attributes(self) -> None:
        """Unknown comprehension-required types are reported once each, optional ones are not."""
        message = self.parsed((0x7FFE, b"1234"), (0xFFFE, b""), (0x7FFD, b""), (0x7FFE, b""))
        self.assertEqual(message.unknown, (0x7FFE, 0x7FFD))

    def test_fingerprint(self) -> None:
        """A wrong FINGERPRINT is an error; what follows a right one is not looked at (RFC 8489, 14.7)."""
        good = build(Method.BINDING, Class.REQUEST, TRANSACTION, fingerprint=True)
        self.assertRaises(StunError, parse, good[:-1] + bytes([good[-1] ^ 1]))
        self.assertRaises(StunError, parse, raw((0x8028, b"abc")))
        # CRC-32 counts the length of the message as it was when the FINGERPRINT was its end.
        longer = good[:2] + struct.pack("!H", len(good) - 20 + 8) + good[4:] + raw((0x000D, b"\0\0\0\1"))[20:]
        self.assertNotIn(stun.LIFETIME, parse(longer))

    def test_refused_bytes(self) -> None:
        """Short, long, cookie-less, overrunning or half messages are errors, and nothing else is raised."""
        good = raw((0x000D, b"\0\0\0\1"))
        cases = {
            "empty": b"",
            "one byte": b"\0",
            "19 bytes": good[:19],
            "truncated": good[:-1],
            "too long": good + b"\0\0\0\0",
            "first bits": b"\x80" + good[1:],
            "cookie": good[:4] + b"\0\0\0\0" + good[8:],
            "odd length": good[:3] + b"\x09" + good[4:] + b"\0",
            "length 65535": good[:2] + b"\xff\xff" + good[4:],
            "attribute over the end": raw()[:3] + b"\x04" + raw()[4:] + b"\x00\x0d\xff\xff",
        }
        for name, data in cases.items():
            with self.assertRaises(StunError, msg=name):
                parse(data)

    def test_too_much_to_build(self) -> None:
        """A value that does not fit its attribute, or the message, is our own error and named so."""
        for attributes in (
            [(stun.RESERVATION_TOKEN, b"1")],
            [(stun.USERNAME, "x" * 600)],
            [(stun.DATA, bytes(0xFFFF)), (stun.DATA, bytes(10))],
        ):
            with self.assertRaises(StunError):
                build(Method.SEND, Class.INDICATION, TRANSACTION, attributes)

    def test_is_stun(self) -> None:
        """Telling STUN from its neighbours looks at the first byte and the cookie (RFC 7983)."""
        self.assertTrue(stun.is_stun(memoryview(REQUEST)))
        for other in (b"", b"\x40" + REQUEST[1:], b"\x16\xfe\xfd" + bytes(20), REQUEST[:19], bytes(20)):
            self.assertFalse(stun.is_stun(other))
