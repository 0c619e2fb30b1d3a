"""Which layers one stream of a publisher has, packet by packet, shared by all who watch it.

Three ways to know: the dependency descriptor where it is negotiated, and then nothing else, because a payload may be
encrypted end to end; else the payload descriptor of VP8 or of VP9. What is found stands in ``Packet.place``; a stream
without layers has none of this, and its packets are not looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeAlias

from attrs import define

from orama.sfu.layers import FRAMES, STOPPED
from orama.sfu.packet import Packet
from orama.wire import dependency, vp8, vp9
from orama.wire.dependency import Structure, Template
from orama.wire.video import PayloadError

#: Spatial and temporal layer, and what everything up to them takes, bits per second.
Rate: TypeAlias = tuple[int, int, float]
#: Flags in the fourth octet of a dependency descriptor: a structure, active decode targets, indications of its own.
_SAYS_MORE = 0xE0


@define(eq=False)
class Described:
    """What a dependency descriptor says of a packet, by the structure that was in force when it came."""

    #: As its template says, or the descriptor itself; but for the references, which :meth:`references` reads.
    template: Template
    layering: DescribedLayers
    #: Decode targets that there are, a bit for each.
    active: int
    wire: bytes
    #: Whether it brings a structure: the beginning of a keyframe.
    begins: bool = False

    @property
    def spatial(self) -> int:
        return self.template.spatial

    @property
    def last(self) -> bool:
        """Whether it ends its frame."""
        return self.wire[0] & 0x40 != 0

    @property
    def frame(self) -> int:
        """The number of its frame, of 16 bits."""
        return self.wire[1] << 8 | self.wire[2]

    def references(self) -> tuple[int, ...] | None:
        """The numbers of the frames that it needs; None where they cannot be read."""
        structure = self.layering.structure
        try:
            found = dependency.parse(self.wire, structure).resolved(structure)
        except PayloadError:
            return None
        return tuple(self.frame - each & 0xFFFF for each in found.differences)


Place: TypeAlias = Described | vp8.Descriptor | vp9.Descriptor


class Layering(Protocol):
    """The layers of one stream since its last keyframe."""

    @property
    def spatial_layers(self) -> int: ...

    def read(self, packet: Packet) -> Hashable:
        """Say in ``packet.place`` where it belongs; the kind under which its octets are counted."""

    def rates(self, rates: Mapping[Hashable, float]) -> Sequence[Rate]:
        """What each layer takes, by what the kinds take."""

    def reduces(self, spatial: int, temporal: int) -> bool:
        """Whether some packets are not needed up to these layers."""


class TemporalLayers:
    """VP8: temporal layers alone (RFC 7741, 4.2)."""

    spatial_layers = 1

    def __init__(self) -> None:
        self._top = 0

    def read(self, packet: Packet) -> Hashable:
        try:
            place = packet.place = vp8.parse(packet.payload)
        except PayloadError:  # padding
            return 0
        temporal = place.temporal or 0
        if temporal > self._top:
            self._top = temporal
        return temporal

    def rates(self, rates: Mapping[Hashable, float]) -> Sequence[Rate]:
        return tuple(
            (0, temporal, sum(rates.get(each, 0.0) for each in range(temporal + 1)))
            for temporal in range(self._top + 1)
            if temporal in rates or not temporal
        )

    def reduces(self, spatial: int, temporal: int) -> bool:
        return temporal < self._top


class SpatialLayers:
    """VP9 by its own descriptor (RFC 9628, 4.2): everything below a layer belongs to it."""

    def __init__(self) -> None:
        self.spatial_layers = 1
        self._top = 0

    def read(self, packet: Packet) -> Hashable:
        try:
            place = packet.place = vp9.parse(packet.payload, whole=False)
        except PayloadError:
            return 0, 0
        spatial, temporal = place.spatial or 0, place.temporal or 0
        if place.structure is not None:
            self.spatial_layers = place.structure.layers
        elif spatial >= self.spatial_layers:
            self.spatial_layers = spatial + 1
        if temporal > self._top:
            self._top = temporal
        return spatial, temporal

    def rates(self, rates: Mapping[Hashable, float]) -> Sequence[Rate]:
        cells = {kind: rate for kind, rate in rates.items() if isinstance(kind, tuple)}
        return tuple(
            (
                spatial,
                temporal,
                sum(rate for (below, slower), rate in cells.items() if below <= spatial and slower <= temporal),
            )
            for spatial in range(self.spatial_layers)
            for temporal in range(self._top + 1)
            if (spatial, temporal) in cells or spatial == temporal == 0
        )

    def reduces(self, spatial: int, temporal: int) -> bool:
        return spatial < self.spatial_layers - 1 or temporal < self._top


class DescribedLayers:
    """Layers by the dependency descriptor, for any codec; of one structure, which keyframes repeat.

    :ivar structure: as it came.
    :ivar active: decode targets that there are now, a bit for each.
    :ivar covers: for each decode target, a bit for each that is a part of it, itself included.
    """

    def __init__(self, structure: Structure, active: int | None) -> None:
        self.structure = structure
        self.spatial_layers = structure.spatial_layers
        self.full = (1 << structure.targets) - 1
        self.active = self.full if active is None else active
        #: When the newest packet of each spatial layer came, and the number of its picture; and the first of all.
        self._arrivals: dict[int, tuple[float, int]] = {}
        self._since: tuple[float, int] | None = None
        self._picture, self._pictures = -1, 0
        # Most descriptors have nothing but their template and its references: to know the layer by it takes 0.7 µs, to
        # read them whole 3 to 5.
        self._templates = {
            structure.offset + place & 63: (each, (each.spatial, each.temporal, each.indications))
            for place, each in enumerate(structure.templates)
        }
        self.covers = _covers(structure)

    def read(self, packet: Packet) -> Hashable:
        wire = packet.descriptor
        if len(wire) < 3:
            return None
        known = self._templates.get(wire[0] & 63)
        if known is None:  # of an older structure
            return None
        template, kind = known
        begins = False
        if len(wire) > 3 and wire[3] & _SAYS_MORE:
            try:
                found = dependency.parse(wire, self.structure)
                template = found.resolved(self.structure)
            except PayloadError:
                return None
            begins = found.structure is not None
            if begins and found.structure != self.structure:  # a keyframe that comes late
                return None
            if found.active is not None:
                self.active = found.active
            elif begins:
                self.active = self.full
            kind = template.spatial, template.temporal, template.indications
        packet.place = Described(template, self, self.active, wire, begins)
        if packet.timestamp != self._picture:
            self._picture, self._pictures = packet.timestamp, self._pictures + 1
        self._arrivals[template.spatial] = here = packet.time, self._pictures
        if self._since is None:
            self._since = here
        return kind

    def rates(self, rates: Mapping[Hashable, float]) -> Sequence[Rate]:
        kinds = [(*kind, rate) for kind, rate in rates.items() if isinstance(kind, tuple) and len(kind) == 3]
        kinds = [each for each in kinds if len(each[2]) == self.structure.targets]
        # A layer that nothing comes of now is not there, whatever the structure says.
        flowing = {(spatial, temporal) for spatial, temporal, _, _ in kinds}
        return tuple(
            (*layer, sum(rate for _, _, indications, rate in kinds if indications[target]))
            for target, layer in enumerate(self.structure.layers)
            if self.active >> target & 1 and layer in flowing
        ) or ((0, 0, sum(rate for *_, rate in kinds)),)

    def silent(self) -> int:
        """Decode targets of spatial layers that have stopped while others go on, a bit for each."""
        arrivals = self._arrivals
        since = self._since or (0.0, 0)
        time, picture = max(arrivals.values(), default=since)
        gone = {
            spatial
            for spatial in range(self.spatial_layers)
            for last, pictures in (arrivals.get(spatial, since),)
            if last < time - STOPPED and pictures <= picture - FRAMES
        }
        return sum(1 << target for target, (spatial, _) in enumerate(self.structure.layers) if spatial in gone)

    def goal(self, spatial: int, temporal: int, active: int) -> int:
        """The best decode target up to these layers of those that are *active*; the lowest where all are above.

        The temporal layer is a bound in that spatial layer alone.
        """
        layers = self.structure.layers
        spatial = min(spatial, self.spatial_layers - 1)
        found = [target for target in range(len(layers)) if active >> target & 1] or list(range(len(layers)))
        below = [
            target
            for target in found
            if layers[target][0] < spatial or (layers[target][0] == spatial and layers[target][1] <= temporal)
        ]
        return max(below, key=layers.__getitem__) if below else min(found, key=layers.__getitem__)

    def reduces(self, spatial: int, temporal: int) -> bool:
        target = self.goal(spatial, temporal, self.active)
        return any(not each.indications[target] for each in self.structure.templates)


def _covers(structure: Structure) -> tuple[int, ...]:
    present = [sum(1 << target for target, each in enumerate(t.indications) if each) for t in structure.templates]
    found = []
    for target in range(structure.targets):
        more = 0  # what is present somewhere where the target is not
        for targets in present:
            if not targets >> target & 1:
                more |= targets
        found.append((1 << structure.targets) - 1 & ~more)
    return tuple(found)


def examine(packet: Packet, mime: str, known: Layering | None) -> Layering | None:
    """What a keyframe that begins with *packet* says of its stream's layers; None when it has none.

    :param known: what was said before, which goes on where nothing has changed.
    """
    if packet.descriptor:
        try:
            found = dependency.parse(packet.descriptor, None)
        except PayloadError:
            return None
        if found.structure is None or found.structure.targets == 1:
            return None
        if isinstance(known, DescribedLayers) and known.structure == found.structure:
            return known
        return DescribedLayers(found.structure, found.active)
    try:
        if mime == "video/vp8":
            if vp8.parse(packet.payload).temporal is None:
                return None
            return known if isinstance(known, TemporalLayers) else TemporalLayers()
        if mime == "video/vp9":
            if vp9.parse(packet.payload, whole=False).spatial is None:
                return None
            return known if isinstance(known, SpatialLayers) else SpatialLayers()
    except PayloadError:
        pass
    return None
