"""The VP9 payload descriptor, on the first bytes of payloads that Chromium 156 made and on any others."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import vp9
from orama.wire.video import PayloadError
from orama.wire.vp9 import Descriptor, Picture, Structure

#: A busy machine is no reason to fail.
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

octets = st.integers(0, 255)
pictures = st.builds(Picture, st.integers(0, 7), st.booleans(), st.lists(octets, max_size=3).map(tuple))


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Any scalability structure."""
    layers = draw(st.integers(1, 8))
    sizes = st.tuples(st.integers(0, 65535), st.integers(0, 65535))
    said = draw(st.just(()) | st.lists(sizes, min_size=layers, max_size=layers).map(tuple))
    return Structure(layers, said, draw(st.none() | st.lists(pictures, max_size=8).map(tuple)))


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """Any descriptor, with its size."""
    found = Descriptor(*(draw(st.booleans()) for _ in range(5)))
    found.long = draw(st.booleans())
    found.picture_id = draw(st.none() | st.integers(0, 0x7FFF if found.long else 0x7F))
    found.long = found.long and found.picture_id is not None
    if draw(st.booleans()):
        found.temporal, found.spatial = draw(st.integers(0, 7)), draw(st.integers(0, 7))
        found.up, found.dependent = draw(st.booleans()), draw(st.booleans())
        if not found.flexible:
            found.base = draw(octets)
    if found.flexible and found.predicted:
        found.differences = tuple(draw(st.lists(st.integers(0, 127), min_size=1, max_size=3)))
    found.structure = draw(st.none() | structures())
    found.size = len(found.serialize())
    return found


class DescriptorTests(SynchronousTestCase):
    def test_read(self) -> None:
        """RFC 9628, 4.2: layers in both modes, references, a structure, and none of them."""
        for text, expected in {
            "0c": Descriptor(True, True),
            "9181f0": Descriptor(False, False, flexible=True, not_referenced=True, picture_id=0x1F0, long=True, size=3),
            "f9a6b45002": Descriptor(
                True,
                False,
                True,
                True,
                True,
                picture_id=0x26B4,
                long=True,
                temporal=2,
                spatial=0,
                up=True,
                differences=(1,),
                size=5,
            ),
            "b9a6b3120102": Descriptor(
                True, False, False, True, True, picture_id=0x26B3, long=True, temporal=0, spatial=1, up=True, size=4
            ),
            "ac052309": Descriptor(True, True, picture_id=5, temporal=1, spatial=1, dependent=True, base=9, size=4),
            "58050304": Descriptor(True, False, True, True, differences=(2, 1, 2), size=4),
        }.items():
            self.assertEqual(vp9.parse(bytes.fromhex(text)), expected, text)

    def test_structure(self) -> None:
        """Layers with their sizes and a group of pictures."""
        found = vp9.parse(bytes.fromhex("8e05" + "38" + "00a0005a" + "014000b4" + "02" + "10" + "480102"))
        group = (Picture(0, True), Picture(2, False, (1, 2)))
        self.assertEqual(found.structure, Structure(2, ((160, 90), (320, 180)), group))
        self.assertEqual(found.size, 16)

    def test_in_short(self) -> None:
        """Of a structure only the count of layers may be asked for; what stands before it is the same."""
        data = bytes.fromhex("8e05" + "38" + "00a0005a" + "014000b4" + "02" + "10" + "480102")
        found = vp9.parse(data, whole=False)
        self.assertEqual((found.structure, found.size, found.picture_id), (Structure(2), 3, 5))
        self.assertRaises(PayloadError, vp9.parse, data[:2], whole=False)

    def test_refused(self) -> None:
        """What ends within its descriptor, or refers to four pictures, is one error."""
        whole = bytes.fromhex("ee052309" + "38" + "00a0005a" + "014000b4" + "02" + "10" + "480102")
        for length in range(len(whole)):
            self.assertRaises(PayloadError, vp9.parse, whole[:length])
        self.assertRaises(PayloadError, vp9.parse, bytes.fromhex("5803030302"))

    @steady
    @given(descriptors(), st.binary(max_size=20))
    def test_round_trip(self, descriptor: Descriptor, rest: bytes) -> None:
        """What is written is read again, whatever follows it."""
        self.assertEqual(vp9.parse(descriptor.serialize() + rest), descriptor)

    @steady
    @given(descriptors(), st.binary(max_size=20), st.integers(0, 1 << 20))
    def test_renumbered(self, descriptor: Descriptor, rest: bytes, number: int) -> None:
        """Other numbers stand where numbers stood, within their bits; all else and the length stay."""
        before = descriptor.serialize() + rest
        after = vp9.renumbered(before, descriptor, number, number + 1)
        self.assertEqual((len(after), after[descriptor.size :]), (len(before), rest))
        if descriptor.picture_id is not None:
            descriptor.picture_id = number & (0x7FFF if descriptor.long else 0x7F)
        if descriptor.base is not None:
            descriptor.base = number + 1 & 0xFF
        self.assertEqual(vp9.parse(after), descriptor)

    @steady
    @given(st.binary(max_size=40))
    def test_total(self, payload: bytes) -> None:
        """Any bytes are a descriptor within them, or one error."""
        try:
            found = vp9.parse(payload)
        except PayloadError:
            return
        self.assertLessEqual(found.size, len(payload))
        self.assertEqual(vp9.parse(memoryview(payload)), found)
