"""The VP8 payload descriptor, on the first bytes of payloads that Chromium 156 made and on any others."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import vp8
from orama.wire.video import PayloadError
from orama.wire.vp8 import Descriptor

#: A busy machine is no reason to fail.
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """Any descriptor, with its size."""
    found = Descriptor(draw(st.booleans()), draw(st.integers(0, 7)), draw(st.booleans()))
    found.long = draw(st.booleans())
    found.picture_id = draw(st.none() | st.integers(0, 0x7FFF if found.long else 0x7F))
    found.long = found.long and found.picture_id is not None
    found.base = draw(st.none() | st.integers(0, 255))
    found.temporal = draw(st.none() | st.integers(0, 3))
    found.sync = draw(st.booleans()) and found.temporal is not None
    found.key_index = draw(st.none() | st.integers(0, 31))
    found.size = len(found.serialize())
    return found


class DescriptorTests(SynchronousTestCase):
    def test_read(self) -> None:
        """RFC 7741, 4.2: nothing, ids of 7 and 15 bits, and three temporal layers."""
        for text, expected in {
            "1010": Descriptor(True, 0),
            "0011": Descriptor(False, 0),
            "30": Descriptor(True, 0, True),
            "90800510": Descriptor(True, 0, picture_id=5, size=3),
            "9080cba4b0ac": Descriptor(True, 0, picture_id=0x4BA4, long=True, size=4),
            "90e0cba40120b0": Descriptor(True, 0, False, 0x4BA4, True, 1, 0, True, None, 6),
            "b0f0cba401b3b0": Descriptor(True, 0, True, 0x4BA4, True, 1, 2, True, 19, 6),
            "82105f": Descriptor(False, 2, key_index=31, size=3),
        }.items():
            self.assertEqual(vp8.parse(bytes.fromhex(text)), expected, text)

    def test_cut_off(self) -> None:
        """What ends within its descriptor is one error."""
        whole = bytes.fromhex("90f0cba401b3")
        for length in range(len(whole)):
            self.assertRaises(PayloadError, vp8.parse, whole[:length])

    @steady
    @given(descriptors(), st.binary(max_size=20))
    def test_round_trip(self, descriptor: Descriptor, rest: bytes) -> None:
        """What is written is read again, whatever follows it."""
        self.assertEqual(vp8.parse(descriptor.serialize() + rest), descriptor)

    @steady
    @given(descriptors(), st.binary(max_size=20), st.integers(0, 1 << 20))
    def test_renumbered(self, descriptor: Descriptor, rest: bytes, number: int) -> None:
        """Other numbers stand where numbers stood, within their bits; all else and the length stay."""
        before = descriptor.serialize() + rest
        after = vp8.renumbered(before, descriptor, number, number + 1, number + 2)
        self.assertEqual((len(after), after[descriptor.size :]), (len(before), rest))
        found = vp8.parse(after)
        if descriptor.picture_id is not None:
            descriptor.picture_id = number & (0x7FFF if descriptor.long else 0x7F)
        if descriptor.base is not None:
            descriptor.base = number + 1 & 0xFF
        if descriptor.key_index is not None:
            descriptor.key_index = number + 2 & 0x1F
        self.assertEqual(found, descriptor)

    @steady
    @given(st.binary(max_size=12))
    def test_total(self, payload: bytes) -> None:
        """Any bytes are a descriptor within them, or one error."""
        try:
            found = vp8.parse(payload)
        except PayloadError:
            return
        self.assertLessEqual(found.size, len(payload))
        self.assertEqual(vp8.parse(memoryview(payload)), found)
