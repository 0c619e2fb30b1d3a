"""The dependency descriptor, as Chromium 156 writes it for L1T3 and as appendix A allows it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import dependency
from orama.wire.dependency import Descriptor, Structure, Template
from orama.wire.dependency_bits import Bits, Writer
from orama.wire.video import PayloadError

#: A busy machine is no reason to fail.
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: A key frame of three temporal layers, as Chromium sends it.
L1T3 = bytes.fromhex("800001800214eaa860414d1410208427013f00ef")


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Any structure whose templates are in the order that the wire has."""
    targets = draw(st.integers(1, 32))
    chains = draw(st.integers(0, targets))
    places = [(0, 0)]
    for step in draw(st.lists(st.integers(0, 2), max_size=12)):
        spatial, temporal = places[-1]
        places.append(((spatial, temporal), (spatial, temporal + 1), (spatial + 1, 0))[step])
    places = [place for place in places if place[0] <= 3 and place[1] <= 7]
    templates = tuple(
        Template(
            spatial,
            temporal,
            draw(st.tuples(*[st.integers(0, 3)] * targets)),
            tuple(draw(st.lists(st.integers(1, 16), max_size=3))),
            draw(st.tuples(*[st.integers(0, 15)] * chains)),
        )
        for spatial, temporal in _steps(places)
    )
    protected = draw(st.tuples(*[st.integers(0, chains - 1)] * targets)) if chains else ()
    sizes = [(draw(st.integers(1, 65536)), draw(st.integers(1, 65536))) for _ in range(templates[-1].spatial + 1)]
    said = tuple(sizes) if draw(st.booleans()) else ()
    return Structure(draw(st.integers(0, 63)), targets, templates, chains, protected, said)


def _steps(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that each follow from the one before."""
    found = places[:1]
    for spatial, temporal in places[1:]:
        before = found[-1]
        if (spatial, temporal) in (before, (before[0], before[1] + 1), (before[0] + 1, 0)):
            found.append((spatial, temporal))
    return found


@st.composite
def descriptors(draw: st.DrawFn) -> tuple[Descriptor, Structure]:
    """Any descriptor, with or without a structure of its own, and the structure that it has to be read by."""
    structure = draw(structures())
    found = Descriptor(draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 63)), draw(st.integers(0, 0xFFFF)))
    found.structure = structure if draw(st.booleans()) else None
    found.active = draw(st.none() | st.integers(0, (1 << structure.targets) - 1))
    found.indications = draw(st.none() | st.tuples(*[st.integers(0, 3)] * structure.targets))
    found.differences = draw(st.none() | st.lists(st.integers(1, 4096), max_size=5).map(tuple))
    found.chains = draw(st.none() | st.tuples(*[st.integers(0, 255)] * structure.chains))
    return found, structure


class DescriptorTests(SynchronousTestCase):
    def test_key_frame(self) -> None:
        """The structure of three temporal layers, and what it makes of the decode targets."""
        found = dependency.parse(L1T3, None)
        structure = found.structure
        assert structure is not None
        self.assertEqual((found.first, found.last, found.template, found.frame), (True, False, 0, 1))
        self.assertEqual((structure.layers, structure.spatial_layers), (((0, 0), (0, 1), (0, 2)), 1))
        self.assertEqual(
            (structure.chains, structure.protected_by, structure.resolutions), (1, (0, 0, 0), ((320, 240),))
        )
        self.assertEqual(structure.template(2), Template(0, 1, (0, 1, 2), (2,), (2,)))
        self.assertIsNone(structure.template(5))
        self.assertEqual(found.serialize(None), L1T3)

    def test_other_frames(self) -> None:
        """Three octets name a template; without the structure nothing more can be read of it."""
        found = dependency.parse(b"\xc3\x01\x02", None)
        self.assertEqual((found.first, found.last, found.template, found.frame), (True, True, 3, 0x102))
        structure = dependency.parse(L1T3, None).structure
        assert structure is not None
        self.assertEqual(found.resolved(structure), structure.templates[3])
        self.assertRaises(PayloadError, dependency.parse(b"\x85\0\0", None).resolved, structure)

    def test_of_its_own(self) -> None:
        """A frame can differ from its template in each part."""
        structure = dependency.parse(L1T3, None).structure
        assert structure is not None
        found = Descriptor(True, True, 1, 9, None, 0b011, (2, 1, 0), (3, 17, 300), (255,))
        again = dependency.parse(found.serialize(structure), structure)
        self.assertEqual(again.active, 0b011)
        self.assertEqual(again.resolved(structure), Template(0, 0, (2, 1, 0), (3, 17, 300), (255,)))
        self.assertRaises(PayloadError, dependency.parse, found.serialize(structure), None)
        self.assertRaises(PayloadError, found.serialize, None)

    def test_cut_off(self) -> None:
        """What ends within its fields is one error."""
        for length in set(range(len(L1T3))) - {3}:
            self.assertRaises(PayloadError, dependency.parse, L1T3[:length], None)

    def test_bounds(self) -> None:
        """More templates or layers than A.8.2 has room for are refused."""
        for step, count in ((0, 64), (1, 8), (2, 4)):
            bits = Writer()
            bits.put(0b10000, 5)
            bits.put(0, 11)
            for _ in range(count):
                bits.put(step, 2)
            bits.put(3, 2)
            self.assertRaises(PayloadError, dependency.parse, b"\x80\0\1" + bits.bytes() + bytes(200), None)

    @steady
    @given(descriptors())
    def test_round_trip(self, case: tuple[Descriptor, Structure]) -> None:
        """What is written is read again, part by part."""
        descriptor, structure = case
        wire = descriptor.serialize(structure)
        found = dependency.parse(wire, structure)
        for name in ("first", "last", "template", "frame", "active", "indications", "differences", "chains"):
            self.assertEqual(getattr(found, name), getattr(descriptor, name), name)
        if descriptor.structure is not None:
            assert found.structure is not None
            for name in ("offset", "targets", "templates", "chains", "protected_by", "resolutions", "layers"):
                self.assertEqual(getattr(found.structure, name), getattr(structure, name), name)
        self.assertEqual(found.serialize(structure), wire)

    @steady
    @given(st.integers(1, 33), st.data())
    def test_short_numbers(self, bound: int, data: st.DataObject) -> None:
        """ns(n) of the AV1 specification, 4.10.10: every number below the bound is read as it was written."""
        value = data.draw(st.integers(0, bound - 1))
        bits = Writer()
        bits.put_below(value, bound)
        self.assertEqual(Bits(bits.bytes()).below(bound), value)

    @steady
    @given(st.binary(max_size=80))
    def test_total(self, data: bytes) -> None:
        """Any bytes are a descriptor or one error, with a structure in force and without."""
        structure = dependency.parse(L1T3, None).structure
        for each in (None, structure):
            try:
                found = dependency.parse(data, each)
                found.resolved(found.structure or each or dependency.parse(L1T3, None).structure)  # type: ignore[arg-type]
            except PayloadError:
                continue
