"""RTP packets as bytes (RFC 3550, 8285, 4588)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire.rtp import (
    Layouts,
    RtpError,
    RtpPacket,
    elements,
    extension_block,
    header_length,
    nearest,
    parse,
    unwrap_rtx,
    wrap_rtx,
)

words = st.integers(0, 0xFFFFFFFF)
extensions = st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), max_size=5) | st.dictionaries(
    st.integers(1, 255), st.binary(max_size=255), max_size=5
)
packets = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    sequence_number=st.integers(0, 0xFFFF),
    timestamp=words,
    ssrc=words,
    payload=st.binary(max_size=64),
    marker=st.booleans(),
    csrcs=st.lists(words, max_size=15).map(tuple),
    extensions=extensions.map(lambda found: tuple(found.items())),
    padding=st.integers(0, 255),
)
#: The second packet of a keyframe of Chromium 156, with abs-send-time, transport-wide number and MID.
CHROMIUM = bytes.fromhex("9060256123456789000004d2bede000322aabbcc41001d9030000000") + b"\x80\x80\xcb\xa4"


class PacketTests(SynchronousTestCase):
    @given(packets)
    def test_round_trip(self, packet: RtpPacket) -> None:
        """Every packet reads back as it was written."""
        self.assertEqual(parse(packet.serialize()), packet)

    def test_known_bytes(self) -> None:
        """A browser's packet reads as what it is, and its bytes come out again."""
        packet = parse(CHROMIUM)
        self.assertEqual((packet.payload_type, packet.sequence_number, packet.ssrc), (96, 0x2561, 1234))
        self.assertEqual(packet.timestamp, 0x23456789)
        self.assertEqual(packet.extensions, ((2, b"\xaa\xbb\xcc"), (4, b"\0\x1d"), (9, b"0")))
        self.assertEqual(packet.payload, b"\x80\x80\xcb\xa4")
        self.assertEqual(packet.serialize(), CHROMIUM)

    def test_padding(self) -> None:
        """Padding is counted and left out; padding that cannot be is refused (RFC 3550, 5.1)."""
        packet = b"\xa0" + CHROMIUM[1:12] + b"data\0\0\3"
        self.assertEqual((parse(packet).payload, parse(packet).padding), (b"data", 3))
        for broken in (packet[:-1] + b"\0", packet[:-1] + b"\x08", packet[:12]):
            self.assertRaises(RtpError, parse, broken)

    def test_truncated(self) -> None:
        """A packet that ends inside its header is refused, wherever it ends."""
        for length in range(28):
            self.assertRaises(RtpError, header_length, CHROMIUM[:length])
        self.assertEqual(header_length(CHROMIUM), 28)

    def test_wrong_version(self) -> None:
        """Only version 2 is RTP."""
        for first in (0x10, 0x50, 0xD0):
            self.assertRaises(RtpError, header_length, bytes((first,)) + CHROMIUM[1:])

    def test_values_that_do_not_fit(self) -> None:
        """What the format cannot carry is refused, not cut."""
        for packet in (
            RtpPacket(128, 0, 0, 0),
            RtpPacket(0, 0x10000, 0, 0),
            RtpPacket(0, 0, 0, 1 << 32),
            RtpPacket(0, 0, 0, 0, csrcs=(1,) * 16),
            RtpPacket(0, 0, 0, 0, padding=256),
            RtpPacket(0, 0, 0, 0, extensions=((0, b"x"),)),
            RtpPacket(0, 0, 0, 0, extensions=((1, b"x" * 256),)),
        ):
            self.assertRaises(RtpError, packet.serialize)


class ExtensionTests(SynchronousTestCase):
    def test_one_byte_form(self) -> None:
        """Small elements take the one-byte form, padded to words (RFC 8285, 4.2)."""
        self.assertEqual(extension_block([(1, b"a"), (14, b"bc")]), b"\xbe\xde\0\2\x10a\xe1bc\0\0\0")

    def test_two_byte_form(self) -> None:
        """One element that is empty, long or has a high id puts all into the two-byte form (RFC 8285, 4.3)."""
        self.assertEqual(extension_block([(1, b"a"), (15, b"b")]), b"\x10\0\0\2\1\1a\x0f\1b\0\0")
        self.assertEqual(extension_block([(1, b"")])[:2], b"\x10\0")
        self.assertEqual(extension_block([(1, bytes(17))])[:2], b"\x10\0")

    def test_broken_elements_end_the_walk(self) -> None:
        """What lies before a broken element is found, what lies behind it is not."""
        head = b"\x90" + bytes(11)
        self.assertEqual(elements(head + b"\xbe\xde\0\1\x10a\xf0b"), {1: (17, 18)})
        self.assertEqual(elements(head + b"\xbe\xde\0\1\x10a\x23b"), {1: (17, 18)})
        self.assertEqual(elements(head + b"\xbe\xde\0\1\x10a\x01b"), {1: (17, 18)})
        self.assertEqual(elements(head + b"\x10\0\0\1\1\0\2\3"), {1: (18, 18)})
        self.assertEqual(elements(head + b"\x12\x34\0\1\x10a\0\0"), {})
        self.assertEqual(elements(b"\x80" + bytes(11)), {})

    @given(st.lists(packets | st.binary(max_size=60).map(lambda data: data), max_size=20))
    def test_layouts_answer_like_elements(self, made: list[RtpPacket | bytes]) -> None:
        """The remembered layout of other headers never changes an answer."""
        layouts = Layouts()
        for each in made:
            if isinstance(each, bytes):
                headers = [each, each[:12].ljust(12, b"\x90") + b"\xbe\xde\0\2" + each[:8].ljust(8, b"\0")]
            else:
                packet = each.serialize()
                headers = [packet[: header_length(packet)]]
            for header in headers:
                self.assertEqual(layouts.elements(header), elements(header))

    def test_layouts_see_what_moves(self) -> None:
        """Values may change, places and flags may not."""
        layouts, head = Layouts(), b"\x90" + bytes(11) + b"\xbe\xde\0\2"
        self.assertEqual(layouts.elements(head + b"\x10a\x22bcd\0\0"), {1: (17, 18), 2: (19, 22)})
        self.assertEqual(layouts.elements(head + b"\x10x\x22yyy\0\0"), {1: (17, 18), 2: (19, 22)})
        self.assertEqual(layouts.elements(head + b"\x20x\x12yyy\0\0"), {2: (17, 18), 1: (19, 22)})
        self.assertEqual(layouts.elements(head + b"\x10x\x22yyy\x30z"), {1: (17, 18), 2: (19, 22), 3: (23, 24)})
        self.assertEqual(layouts.elements(b"\x80" + head[1:] + b"\x10a\x22bcd\0\0"), {})

    def test_layouts_are_few(self) -> None:
        """However many header lengths there are, memory is bounded."""
        layouts = Layouts()
        for count in range(200):
            layouts.elements(b"\x90" + bytes(11) + b"\xbe\xde" + count.to_bytes(2, "big") + bytes(4 * count))
        self.assertLessEqual(len(layouts._known), Layouts.MOST)


class RtxTests(SynchronousTestCase):
    def test_wrap_and_unwrap(self) -> None:
        """The original number stands before the original payload (RFC 4588, 4)."""
        self.assertEqual(wrap_rtx(b"payload", 0x1234), b"\x12\x34payload")
        self.assertEqual(unwrap_rtx(b"\x12\x34payload"), (0x1234, b"payload"))

    def test_probe(self) -> None:
        """RTX without an original is a padding probe, and an error here."""
        for payload in (b"", b"\1"):
            self.assertRaises(RtpError, unwrap_rtx, payload)


class NearestTests(SynchronousTestCase):
    def test_extends(self) -> None:
        """A 16-bit number means the value closest to the reference, in both directions."""
        self.assertEqual(nearest(5, 0xFFFF), 0x10005)
        self.assertEqual(nearest(0xFFFF, 0x10003), 0xFFFF)
        self.assertEqual(nearest(3, 0x30002), 0x30003)
        self.assertEqual(nearest(0xFFFF, 0), -1)

    @given(st.integers(0, 1 << 40), st.integers(-0x8000, 0x7FFF))
    def test_any_distance(self, reference: int, distance: int) -> None:
        """Any value within half a round comes back from its low bits."""
        self.assertEqual(nearest((reference + distance) & 0xFFFF, reference), reference + distance)
