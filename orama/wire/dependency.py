"""The dependency descriptor: what a packet's frame is to each way of decoding a part of the stream.

AV1 RTP payload format, appendix A; a header extension that every codec may carry. A stream's structure comes with its
key frames, and the descriptors after them mean something by it alone, so reading one needs the structure in force.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

from attrs import define, field, frozen

from orama.wire.dependency_bits import Bits, Writer
from orama.wire.video import Buffer, PayloadError

#: Bounds of A.8.2: ids that the fields of the header can say, and what two bits and five can count.
MAX_TEMPLATES = 64
MAX_SPATIAL, MAX_TEMPORAL = 3, 7

#: What a frame is to a decode target, one for each target.
Indications: TypeAlias = tuple[int, ...]


class Indication(IntEnum):
    """What a frame is to one decode target (A.8.3, table A.1)."""

    NOT_PRESENT = 0
    DISCARDABLE = 1
    #: From here on all frames of the target can be decoded, when this one can.
    SWITCH = 2
    REQUIRED = 3


@frozen
class Template:
    """The part of a descriptor that repeats from frame to frame."""

    spatial: int
    temporal: int
    indications: Indications
    #: How many frames back those are that it refers to.
    differences: tuple[int, ...] = ()
    #: For each chain, how many frames back its last frame is; 0 for none.
    chains: tuple[int, ...] = ()


@frozen
class Structure:
    """What comes with a key frame.

    :ivar offset: the number of the first template.
    :ivar protected_by: for each decode target its chain; empty without chains.
    :ivar resolutions: width and height of each spatial layer; empty when they are not said.
    :ivar layers: for each decode target the spatial and the temporal layer that it is.
    """

    offset: int
    targets: int
    templates: tuple[Template, ...]
    chains: int = 0
    protected_by: tuple[int, ...] = ()
    resolutions: tuple[tuple[int, int], ...] = ()
    layers: tuple[tuple[int, int], ...] = field(init=False)

    @layers.default
    def _layers(self) -> tuple[tuple[int, int], ...]:
        found = []
        for target in range(self.targets):
            used = [each for each in self.templates if each.indications[target]]
            spatial = max((each.spatial for each in used), default=0)
            found.append((spatial, max((each.temporal for each in used), default=0)))
        return tuple(found)

    @property
    def spatial_layers(self) -> int:
        return 1 + max(each.spatial for each in self.templates)

    def template(self, number: int) -> Template | None:
        """The template that a descriptor names; None when there is no such one here."""
        place = (number - self.offset) & 63
        return self.templates[place] if place < len(self.templates) else None


@define(eq=False)
class Descriptor:
    """One descriptor; None for what its template says, or its structure."""

    #: First and last packet of the frame.
    first: bool
    last: bool
    template: int
    #: Of 16 bits.
    frame: int
    structure: Structure | None = None
    #: Decode targets that there are, a bit for each, the lowest bit for the first.
    active: int | None = None
    indications: Indications | None = None
    differences: tuple[int, ...] | None = None
    chains: tuple[int, ...] | None = None

    def resolved(self, structure: Structure) -> Template:
        """What it says in all.

        :raises PayloadError: it names no template of *structure*.
        """
        found = structure.template(self.template)
        if found is None:
            raise PayloadError("the dependency descriptor names an unknown template")
        if self.indications is None and self.differences is None and self.chains is None:
            return found
        return Template(
            found.spatial,
            found.temporal,
            found.indications if self.indications is None else self.indications,
            found.differences if self.differences is None else self.differences,
            found.chains if self.chains is None else self.chains,
        )

    def serialize(self, structure: Structure | None) -> bytes:
        """As A.8.2 has it.

        :param structure: the one in force; one that comes with the descriptor counts before it.
        :raises PayloadError: there is none, and it is needed.
        """
        head = bytes((self.first << 7 | self.last << 6 | self.template, self.frame >> 8 & 0xFF, self.frame & 0xFF))
        parts = (self.structure, self.active, self.indications, self.differences, self.chains)
        if all(part is None for part in parts):
            return head
        structure = self.structure or structure
        if structure is None:
            raise PayloadError("no structure is in force")
        bits = Writer()
        for part in parts:
            bits.put(part is not None, 1)
        if self.structure is not None:
            _write_structure(bits, self.structure)
        if self.active is not None:
            bits.put(self.active, structure.targets)
        for indication in self.indications or ():
            bits.put(indication, 2)
        if self.differences is not None:
            for difference in self.differences:
                size = 1 if difference <= 16 else 2 if difference <= 256 else 3
                bits.put(size, 2)
                bits.put(difference - 1, 4 * size)
            bits.put(0, 2)
        for difference in self.chains or ():
            bits.put(difference, 8)
        return head + bits.bytes()


def parse(data: Buffer, structure: Structure | None) -> Descriptor:
    """Read a descriptor.

    :param structure: the one in force; None before the first.
    :raises PayloadError: it is cut off, needs a structure that there is none of, or says what A.8.2 does not allow.
    """
    if len(data) < 3:
        raise PayloadError("the dependency descriptor is cut off")
    found = Descriptor(bool(data[0] & 0x80), bool(data[0] & 0x40), data[0] & 0x3F, data[1] << 8 | data[2])
    if len(data) == 3:
        return found
    bits = Bits(data[3:])
    attached, active, indications, differences, chains = (bits.take(1) for _ in range(5))
    if attached:
        structure = found.structure = _structure(bits)
    elif structure is None and (active or indications or chains):
        raise PayloadError("no structure is in force")
    if structure is not None:
        if active:
            found.active = bits.take(structure.targets)
        if indications:
            found.indications = tuple(bits.take(2) for _ in range(structure.targets))
    if differences:
        found.differences = _differences(bits)
    if structure is not None and chains:
        found.chains = tuple(bits.take(8) for _ in range(structure.chains))
    return found


def _differences(bits: Bits) -> tuple[int, ...]:
    found: list[int] = []
    while size := bits.take(2):
        found.append(bits.take(4 * size) + 1)
    return tuple(found)


def _structure(bits: Bits) -> Structure:
    offset, targets = bits.take(6), bits.take(5) + 1
    layers: list[tuple[int, int]] = []
    spatial = temporal = step = 0
    while step != 3:
        if len(layers) == MAX_TEMPLATES:
            raise PayloadError("a dependency structure has too many templates")
        layers.append((spatial, temporal))
        step = bits.take(2)
        if step == 1:
            temporal += 1
        elif step == 2:
            spatial, temporal = spatial + 1, 0
        if spatial > MAX_SPATIAL or temporal > MAX_TEMPORAL:
            raise PayloadError("a dependency structure has too many layers")
    indications = [tuple(bits.take(2) for _ in range(targets)) for _ in layers]
    differences: list[tuple[int, ...]] = []
    for _ in layers:
        back: list[int] = []
        while bits.take(1):
            back.append(bits.take(4) + 1)
        differences.append(tuple(back))
    count = bits.below(targets + 1)
    protected = tuple(bits.below(count) for _ in range(targets)) if count else ()
    chains = [tuple(bits.take(4) for _ in range(count)) for _ in layers]
    sizes: tuple[tuple[int, int], ...] = ()
    if bits.take(1):
        sizes = tuple((bits.take(16) + 1, bits.take(16) + 1) for _ in range(spatial + 1))
    templates = tuple(
        Template(*place, *rest) for place, *rest in zip(layers, indications, differences, chains, strict=True)
    )
    return Structure(offset, targets, templates, count, protected, sizes)


def _write_structure(bits: Writer, structure: Structure) -> None:
    templates = structure.templates
    bits.put(structure.offset, 6)
    bits.put(structure.targets - 1, 5)
    for here, after in zip(templates, (*templates[1:], None), strict=True):
        if after is None:
            bits.put(3, 2)
        else:
            bits.put(2 if after.spatial > here.spatial else 1 if after.temporal > here.temporal else 0, 2)
    for template in templates:
        for indication in template.indications:
            bits.put(indication, 2)
    for template in templates:
        for difference in template.differences:
            bits.put(1, 1)
            bits.put(difference - 1, 4)
        bits.put(0, 1)
    bits.put_below(structure.chains, structure.targets + 1)
    if structure.chains:
        for chain in structure.protected_by:
            bits.put_below(chain, structure.chains)
        for template in templates:
            for difference in template.chains:
                bits.put(difference, 4)
    bits.put(bool(structure.resolutions), 1)
    for width, height in structure.resolutions:
        bits.put(width - 1, 16)
        bits.put(height - 1, 16)
