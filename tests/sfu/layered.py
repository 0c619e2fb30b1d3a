"""Layered video made by hand, and a decoder that knows which frames each frame needs.

What is behind a payload descriptor here says which frame it is, which part, and to which frames it refers, so that a
receiver can tell whether all that it got can be decoded, in words that no SFU has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct

from attrs import define, field, frozen

from orama.sfu.values import DEPENDENCY_DESCRIPTOR, Codec
from orama.wire import dependency, vp8, vp9
from orama.wire.dependency import Descriptor, Structure, Template
from orama.wire.rtp import RtpPacket
from tests.sfu.clients import EXTENSIONS, VIDEO_FEEDBACK, Client, Source

VP9 = Codec(98, "video/VP9", 90000, rtx_payload_type=99, feedback=VIDEO_FEEDBACK)
AV1 = Codec(45, "video/AV1", 90000, rtx_payload_type=46, feedback=VIDEO_FEEDBACK)
DESCRIBED = {**EXTENSIONS, DEPENDENCY_DESCRIPTOR: 12}
#: Where a receiver finds the descriptor.
DESCRIPTOR_ID = 13

#: Key frame flag in the lowest bit as VP8 has it, serial number, layer, part, parts, references.
_body = Struct("!BIBBBBB")


@frozen
class Body:
    """What a packet carries."""

    key: bool
    serial: int
    spatial: int
    temporal: int
    part: int
    parts: int
    references: tuple[int, ...] = ()

    def serialize(self, size: int = 60) -> bytes:
        head = _body.pack(
            not self.key, self.serial, self.spatial, self.temporal, self.part, self.parts, len(self.references)
        )
        return head + b"".join(each.to_bytes(4, "big") for each in self.references) + bytes(size)


def body(data: bytes) -> Body:
    flag, serial, spatial, temporal, part, parts, count = _body.unpack_from(data)
    places = range(_body.size, _body.size + 4 * count, 4)
    references = tuple(int.from_bytes(data[at : at + 4], "big") for at in places)
    return Body(not flag & 1, serial, spatial, temporal, part, parts, references)


@define
class Received:
    """One frame as a receiver has it."""

    first: Body
    timestamp: int
    packets: dict[int, RtpPacket] = field(factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.packets) == self.first.parts

    @property
    def layer(self) -> tuple[int, int]:
        return self.first.spatial, self.first.temporal


def received(packets: Iterable[RtpPacket], strip: Callable[[bytes], bytes]) -> list[Received]:
    """Frames in the order of their first numbers; *strip* takes payload descriptors away."""
    frames: dict[int, Received] = {}
    ordered = sorted(_unwrapped(packets), key=lambda pair: pair[0])
    for _, packet in ordered:
        if packet.payload:
            found = body(strip(packet.payload))
            frame = frames.setdefault(found.serial, Received(found, packet.timestamp))
            frame.packets[found.part] = packet
    return list(frames.values())


def _unwrapped(packets: Iterable[RtpPacket]) -> list[tuple[int, RtpPacket]]:
    """Each number once, without wraps."""
    found: dict[int, RtpPacket] = {}
    last = None
    for packet in packets:
        last = packet.sequence_number if last is None else last
        index = last + ((packet.sequence_number - last + 0x8000) & 0xFFFF) - 0x8000
        last = max(last, index)
        found.setdefault(index, packet)
    return sorted(found.items())


def holes(packets: Iterable[RtpPacket]) -> list[int]:
    """Numbers that are missing between the first and the last."""
    numbers = [index for index, _ in _unwrapped(packets)]
    return sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))


def undecodable(frames: Sequence[Received]) -> list[Received]:
    """Frames that are not whole, or need one that is not there."""
    there: set[int] = set()
    wrong = []
    for frame in frames:
        if frame.complete and all(each in there for each in frame.first.references):
            there.add(frame.first.serial)
        else:
            wrong.append(frame)
    return wrong


def plain8(payload: bytes) -> bytes:
    return payload[vp8.parse(payload).size :]


def plain9(payload: bytes) -> bytes:
    return payload[vp9.parse(payload).size :]


def plain(payload: bytes) -> bytes:
    return payload


class Camera(Source):
    """A source that numbers its frames."""

    def __init__(self, client: Client, ssrc: int, **values: object) -> None:
        super().__init__(client, ssrc, **values)  # type: ignore[arg-type]
        self.serial = ssrc << 16
        self.parts = 2
        self.count = 0
        self.wanted = True

    def picture(self) -> list[RtpPacket]:
        """The next picture, all layers, not sent; a key frame when one is wanted."""
        raise NotImplementedError

    def play(self, pictures: int) -> None:
        """Send pictures, 50 ms apart; each PLI is answered by a key frame."""
        for _ in range(pictures):
            self.client.send(*self.picture())
            self.client.room.wait(0.05)


class TemporalCamera(Camera):
    """VP8 with three temporal layers: 0 2 1 2, as Chromium sends it."""

    PATTERN = (0, 2, 1, 2)
    picture_id = 0x7FF0
    base = 250

    def picture(self) -> list[RtpPacket]:
        key = self.wanted
        if key:
            self.count, self.wanted = 0, False
            self._last: dict[int, int] = {}
        layer = self.PATTERN[self.count % 4]
        self.base += layer == 0
        self.picture_id += 1
        self.serial += 1
        self.timestamp += 3000
        # The second frame of the highest layer refers to the middle one, the others to the lowest alone.
        sync = layer > 0 and self.count % 4 != 3
        references = () if key else ((self._last[0],) if sync or not layer else (self._last[0], self._last[1]))
        self._last[layer] = self.serial
        self.count += 1
        made = []
        for part in range(self.parts):
            head = vp8.Descriptor(
                part == 0, 0, layer == 2, self.picture_id & 0x7FFF, True, self.base & 0xFF, layer, sync
            )
            inside = Body(key, self.serial, 0, layer, part, self.parts, references)
            made.append(self.packet(head.serialize() + inside.serialize(), marker=part == self.parts - 1))
        return made


def structure(spatial: int, temporal: int, independent: bool, offset: int = 0) -> Structure:
    """As LnTm, or LnTm_KEY with layers that depend on each other in key pictures alone, *independent* ones."""
    layers = [(s, t) for s in range(spatial) for t in range(temporal)]

    def indication(key: bool, s: int, t: int, target: tuple[int, int]) -> int:
        if target[0] < s or target[1] < t or (independent and not key and target[0] != s):
            return 0
        if key or (target[0] == s and (t < target[1] or not t)):
            return 2
        return 1 if target[0] == s else 3

    templates = []
    for s in range(spatial):
        templates.append(
            Template(s, 0, tuple(indication(True, s, 0, each) for each in layers), (1,) if s else (), (0,))
        )
        for t in range(temporal):
            templates.append(Template(s, t, tuple(indication(False, s, t, each) for each in layers), (1,), (1,)))
    return Structure(offset, len(layers), tuple(templates), 1, (0,) * len(layers))


class LayeredCamera(Camera):
    """VP9 or AV1 in LnT3 or LnT3_KEY, with a dependency descriptor, VP9's own, or both.

    :ivar spatial: layers sent; fewer than at the start are *active*.
    """

    PATTERN = (0, 2, 1, 2)
    picture_id = 0x7FF0
    base = 250
    frame_number = 0xFFF0

    def __init__(
        self,
        client: Client,
        ssrc: int,
        *,
        independent: bool = False,
        described: bool = True,
        own: bool = True,
        spatial: int = 3,
        **values: object,
    ) -> None:
        super().__init__(client, ssrc, payload_type=98 if own else 45, **values)
        self.independent, self.described, self.own = independent, described, own
        self.structure = structure(spatial, 3, independent)
        self.total = self.spatial = spatial
        #: Whether payloads are of no use to anybody but their receiver.
        self.opaque = False

    def picture(self) -> list[RtpPacket]:
        key = self.wanted
        if key:
            self.count, self.wanted = 0, False
            self._last: dict[tuple[int, int], tuple[int, int]] = {}
        layer = self.PATTERN[self.count % 4]
        refers = () if key else ((0,) if self.count % 4 != 3 else (0, 1))
        self.base += layer == 0
        self.picture_id += 1
        self.timestamp += 3000
        self.count += 1
        made = []
        for spatial in range(self.spatial):
            below = spatial > 0 and (key or not self.independent)
            self.serial += 1
            self.frame_number += 1
            back = [self._last[spatial, each] for each in refers]
            if below:
                back.append((self.serial - 1, self.frame_number - 1))
            self._last[spatial, layer] = self.serial, self.frame_number
            for part in range(self.parts):
                inside = Body(key, self.serial, spatial, layer, part, self.parts, tuple(each for each, _ in back))
                payload = inside.serialize(40 * (spatial + 1))
                if self.own:
                    payload = self._descriptor(key, spatial, layer, part, below).serialize() + payload
                elif self.opaque:
                    payload = bytes((0x08,)) + payload
                last = part == self.parts - 1
                items = []
                if self.described:
                    differences = tuple(self.frame_number - each for _, each in back)
                    items = [(12, self._dependency(key, spatial, layer, part, differences))]
                made.append(self.packet(payload, last and spatial == self.spatial - 1, items))
        return made

    def _descriptor(self, key: bool, spatial: int, layer: int, part: int, below: bool) -> vp9.Descriptor:
        start, last = part == 0, part == self.parts - 1
        found = vp9.Descriptor(start, last, not key, False, not below, self.picture_id & 0x7FFF, True)
        found.temporal, found.spatial, found.up, found.dependent = layer, spatial, layer < 2, below
        found.base = self.base & 0xFF
        if key and start and spatial == 0:
            found.structure = vp9.Structure(self.total)
        return found

    def _dependency(self, key: bool, spatial: int, layer: int, part: int, differences: tuple[int, ...]) -> bytes:
        template = spatial * 4 + (0 if key else 1 + layer) + self.structure.offset
        found = Descriptor(part == 0, part == self.parts - 1, template & 63, self.frame_number & 0xFFFF)
        if self.structure.templates[spatial * 4 + (0 if key else 1 + layer)].differences != differences:
            found.differences = differences
        if key and spatial == part == 0:
            found.structure = self.structure
            if self.spatial < self.total:
                found.active = (1 << 3 * self.spatial) - 1
        elif part == 0 and self.spatial < self.total:
            found.active = (1 << 3 * self.spatial) - 1
        return found.serialize(self.structure)


def descriptors(packets: Iterable[RtpPacket]) -> list[tuple[Descriptor, Structure]]:
    """The dependency descriptors that a receiver got, each with the structure that it reads them by."""
    force: Structure | None = None
    found = []
    for packet in packets:
        wire = dict(packet.extensions).get(DESCRIPTOR_ID)
        if wire is not None and packet.payload:
            each = dependency.parse(wire, force)
            force = each.structure or force
            assert force is not None
            found.append((each, force))
    return found
