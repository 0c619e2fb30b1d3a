"""The VP9 payload descriptor (RFC 9628, 4.2): which picture, spatial and temporal layer an RTP payload belongs to.

In both modes, flexible and not. The frame behind it is not looked at.
"""

from __future__ import annotations

from attrs import define, frozen

from orama.wire.video import Buffer, PayloadError

#: Pictures that one may refer to in flexible mode (RFC 9628, 4.2, P_DIFF).
MAX_REFERENCES = 3


@frozen
class Picture:
    """One picture of a group that repeats (RFC 9628, 4.2.1)."""

    temporal: int
    up: bool
    #: How many pictures back those are that it refers to.
    differences: tuple[int, ...] = ()


@frozen
class Structure:
    """The scalability structure (SS)."""

    #: Spatial layers.
    layers: int
    #: Width and height of each layer, empty when they are not said.
    sizes: tuple[tuple[int, int], ...] = ()
    #: None when no group is described.
    group: tuple[Picture, ...] | None = None

    def serialize(self) -> bytes:
        group = self.group
        out = bytearray([self.layers - 1 << 5 | bool(self.sizes) << 4 | (group is not None) << 3])
        for width, height in self.sizes:
            out += width.to_bytes(2, "big") + height.to_bytes(2, "big")
        if group is not None:
            out.append(len(group))
            for picture in group:
                out.append(picture.temporal << 5 | picture.up << 4 | len(picture.differences) << 2)
                out += bytes(picture.differences)
        return bytes(out)


@define
class Descriptor:
    """One descriptor; None for what it does not have."""

    #: B and E: first and last packet of the frame of one spatial layer.
    first: bool
    last: bool
    #: P: predicted from other pictures.
    predicted: bool = False
    #: F.
    flexible: bool = False
    #: Z: no higher spatial layer of this picture depends on it.
    not_referenced: bool = False
    picture_id: int | None = None
    #: Whether the picture id has 15 bits, 7 otherwise.
    long: bool = False
    #: TID and SID, None without layer indices.
    temporal: int | None = None
    spatial: int | None = None
    #: U: pictures of higher temporal layers that follow depend on nothing of those layers before it.
    up: bool = False
    #: D: depends on the layer below of the same picture.
    dependent: bool = False
    #: TL0PICIDX: counts pictures of the lowest temporal layer.
    base: int | None = None
    differences: tuple[int, ...] = ()
    structure: Structure | None = None
    #: Octets that the descriptor takes.
    size: int = 1

    def serialize(self) -> bytes:
        """As RFC 9628, 4.2 has it."""
        layered = self.spatial is not None
        first = (self.picture_id is not None) << 7 | self.predicted << 6 | layered << 5 | self.flexible << 4
        first |= self.first << 3 | self.last << 2 | (self.structure is not None) << 1 | self.not_referenced
        out = bytearray([first])
        if self.picture_id is not None:
            out += (self.picture_id | 0x8000).to_bytes(2, "big") if self.long else bytes((self.picture_id,))
        if self.spatial is not None:
            out.append((self.temporal or 0) << 5 | self.up << 4 | self.spatial << 1 | self.dependent)
            if not self.flexible:
                out.append(self.base or 0)
        if self.flexible and self.predicted:
            last = len(self.differences) - 1
            out += bytes(each << 1 | (place < last) for place, each in enumerate(self.differences))
        if self.structure is not None:
            out += self.structure.serialize()
        return bytes(out)


def parse(payload: Buffer, *, whole: bool = True) -> Descriptor:
    """Read the descriptor at the start of *payload*.

    :param whole: whether to read a scalability structure. Otherwise only the count of its layers is read, and the
        descriptor counts as ending there: a group can have 255 pictures, and takes as many microseconds.
    :raises PayloadError: it ends too early, or refers to more pictures than it may.
    """
    if not payload:
        raise PayloadError("empty")
    first, at = payload[0], 1
    found = Descriptor(
        bool(first & 0x08), bool(first & 0x04), bool(first & 0x40), bool(first & 0x10), bool(first & 0x01)
    )
    try:
        if first & 0x80:
            found.picture_id, at = payload[at] & 0x7F, at + 1
            if payload[at - 1] & 0x80:
                found.picture_id, found.long, at = found.picture_id << 8 | payload[at], True, at + 1
        if first & 0x20:
            octet, at = payload[at], at + 1
            found.temporal, found.up = octet >> 5, bool(octet & 0x10)
            found.spatial, found.dependent = octet >> 1 & 7, bool(octet & 1)
            if not found.flexible:
                found.base, at = payload[at], at + 1
        if found.flexible and found.predicted:
            found.differences, at = _differences(payload, at)
        if first & 0x02:
            found.structure, at = _structure(payload, at) if whole else (Structure((payload[at] >> 5) + 1), at + 1)
    except IndexError:
        raise PayloadError("the VP9 descriptor is cut off") from None
    found.size = at
    return found


def _differences(payload: Buffer, at: int) -> tuple[tuple[int, ...], int]:
    differences: list[int] = []
    more = 1
    while more:
        if len(differences) == MAX_REFERENCES:
            raise PayloadError("a VP9 frame refers to more than three pictures")
        differences.append(payload[at] >> 1)
        more, at = payload[at] & 1, at + 1
    return tuple(differences), at


def _structure(payload: Buffer, at: int) -> tuple[Structure, int]:
    octet, at = payload[at], at + 1
    layers, sizes = (octet >> 5) + 1, []
    if octet & 0x10:
        for _ in range(layers):
            width, height = payload[at] << 8 | payload[at + 1], payload[at + 2] << 8 | payload[at + 3]
            sizes.append((width, height))
            at += 4
    group: list[Picture] | None = None
    if octet & 0x08:
        group = []
        count, at = payload[at], at + 1
        for _ in range(count):
            head, at = payload[at], at + 1
            end = at + (head >> 2 & 3)
            if end > len(payload):
                raise PayloadError("the VP9 descriptor is cut off")
            group.append(Picture(head >> 5, bool(head & 0x10), tuple(payload[at:end])))
            at = end
    return Structure(layers, tuple(sizes), None if group is None else tuple(group)), at


def renumbered(payload: bytes, found: Descriptor, picture: int, base: int) -> bytes:
    """The payload with other numbers where it has any, as long as before: of the picture, modulo its 7 or 15 bits,
    and of the lowest temporal layer modulo 256.

    :param found: what :func:`parse` says of it.
    """
    front, at = bytearray(payload[: found.size]), 1
    if found.picture_id is not None:
        if found.long:
            front[1:3] = (picture & 0x7FFF | 0x8000).to_bytes(2, "big")
            at = 3
        else:
            front[1] = picture & 0x7F
            at = 2
    if found.base is not None:
        front[at + 1] = base & 0xFF
    return bytes(front) + payload[found.size :]
