"""What microphones and cameras make: frames in packets, each of which can be told from every other.

A payload ends with the stream's SSRC and the packet's number there, so whatever an SFU does with headers and payload
descriptors, a packet is known again.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from attrs import define, field, frozen

from orama.wire.red import Block, serialize

#: Bytes of a packet's payload at most.
MTU = 1100
#: A keyframe has so many times the bits of another frame.
KEYFRAME = 5
#: Temporal layer of each frame in the pattern of one, two or three layers.
PATTERNS = {1: (0,), 2: (0, 1), 3: (0, 2, 1, 2)}


@define(eq=False)
class Sent:
    """A packet as its publisher sent it, and what became of it."""

    ssrc: int
    index: int
    timestamp: int
    marker: bool
    payload: bytes
    #: Bytes of the payload descriptor in front, which an SFU may write anew.
    head: int
    layer: int
    #: Number of its picture, its place in its frame, and the packets of that.
    picture: int
    number: int
    count: int
    spatial: int = 0
    temporal: int = 0
    key: bool = False
    #: Frames of this stream, (picture, spatial layer), that it is predicted from.
    refs: tuple[tuple[int, int], ...] = ()
    #: Of a camera: ``vp8`` or ``vp9``.
    codec: str = ""
    #: When it left, and when the SFU had it first.
    time: float = 0.0
    arrived: float | None = None

    @property
    def starts(self) -> bool:
        """Whether a decoder can begin here."""
        return self.key and self.number == 0 and self.spatial == 0


@frozen
class Shape:
    """What a camera sends."""

    codec: str = "vp8"
    #: Bits a second of each simulcast layer, or of each spatial layer where *scalable*.
    bitrates: tuple[int, ...] = (300_000,)
    temporal: int = 1
    scalable: bool = False
    #: Spatial layers depend on each other in keyframes alone.
    key_only: bool = False
    #: Every second round of the pattern higher temporal layers depend on their own past too.
    chained: bool = False
    fps: int = 15

    @property
    def spatial(self) -> int:
        return len(self.bitrates) if self.scalable else 1


@define(eq=False)
class Encoding:
    """One RTP stream of a camera: a simulcast layer, or all layers of a scalable video."""

    shape: Shape
    layer: int
    ssrc: int
    random: Random
    index: int
    timestamp: int
    #: Share of its bitrate that the publisher's rate control leaves it.
    scale: float = 1.0
    picture: int = 0
    tl0: int = 0
    wants_key: bool = True
    _place: int = 0
    _chains: bool = False
    #: (temporal, spatial) → the last picture there.
    _last: dict[tuple[int, int], int] = field(factory=dict)

    def frame(self, now: float) -> Iterator[Sent]:
        """The next picture."""
        shape = self.shape
        self.timestamp = (self.timestamp + 90000 // shape.fps) & 0xFFFFFFFF
        key, self.wants_key = self.wants_key, False
        pattern = PATTERNS[shape.temporal]
        if key:
            self._place = 0
            self._last.clear()
        temporal = pattern[self._place % len(pattern)]
        self._chains = shape.chained and self._place // len(pattern) % 2 == 1
        self._place += 1
        self.picture += 1
        if temporal == 0:
            self.tl0 = (self.tl0 + 1) & 0xFF
        for spatial in range(shape.spatial):
            bits = (shape.bitrates[spatial] if shape.scalable else shape.bitrates[self.layer]) * self.scale / shape.fps
            yield from self._packets(now, key, temporal, spatial, int(bits / 8 * (KEYFRAME if key else 1)))
        for spatial in range(shape.spatial):
            self._last[temporal, spatial] = self.picture

    def _packets(self, now: float, key: bool, temporal: int, spatial: int, size: int) -> Iterator[Sent]:
        count = max(1, -(-size // MTU))
        refs: list[tuple[int, int]] = []
        if not key:
            # The newest frame of this or a lower temporal layer.
            refs.append((max(self._last.get((each, spatial), 0) for each in range(temporal + 1)), spatial))
            if temporal and self._chains and (before := self._last.get((temporal, spatial))):
                refs.append((before, spatial))
        between = len(refs)
        if spatial and (key or not self.shape.key_only):
            refs.append((self.picture, spatial - 1))
        for number in range(count):
            marker = number == count - 1 and spatial == self.shape.spatial - 1
            first, last = number == 0, number == count - 1
            head = self._descriptor(key, temporal, spatial, first, last, len(refs) > between)
            filler = self.random.randbytes(4) * (max(0, min(MTU, size // count) - 16) // 4)
            tail = self.ssrc.to_bytes(4, "big") + self.index.to_bytes(4, "big")
            start = b"\x00" if key and first else b"\x01"  # the bit of a VP8 frame that says it is predicted
            yield Sent(
                self.ssrc,
                self.index,
                self.timestamp,
                marker,
                head + start + filler + tail,
                len(head),
                self.layer,
                self.picture,
                number,
                count,
                spatial,
                temporal,
                key,
                tuple(refs),
                self.shape.codec,
                now,
            )
            self.index += 1

    def _descriptor(self, key: bool, temporal: int, spatial: int, first: bool, last: bool, below: bool) -> bytes:
        picture = 0x8000 | self.picture & 0x7FFF
        if self.shape.codec == "vp8":  # RFC 7741, 4.2: X, then I, L and T
            above = max((self._last.get((each, 0), 0) for each in range(1, temporal + 1)), default=0)
            sync = temporal > 0 and not self._chains and above <= self._last.get((0, 0), 0)
            return bytes((0x90 if first else 0x80, 0xE0, picture >> 8, picture & 0xFF, self.tl0)) + bytes(
                (temporal << 6 | (0x20 if sync else 0),)
            )
        # RFC 9628, 4.2: I, L, not flexible; P, B, E, and V with the number of spatial layers in keyframes
        flags = 0xA0 | (0 if key else 0x40) | (0x08 if first else 0) | (0x04 if last else 0)
        structure = b""
        if key and first and spatial == 0:
            flags |= 0x02
            structure = bytes((self.shape.spatial - 1 << 5,))
        layers = temporal << 5 | (0 if self._chains else 0x10) | spatial << 1 | (1 if below else 0)
        return bytes((flags, picture >> 8, picture & 0xFF, layers, self.tl0)) + structure


@define(eq=False)
class Microphone:
    """Opus with DTX, and RED where asked for; *samples* of 48 kHz are a frame."""

    ssrc: int
    random: Random
    index: int
    timestamp: int
    redundant: bool = False
    samples: int = 960
    talking: bool = True
    #: RFC 6464 value byte of the last frame.
    level: int = 0x85
    _silent: int = 0
    _before: tuple[int, bytes] | None = None

    def padding(self, now: float) -> Sent:
        """A packet of padding alone, as browsers send them on a stream without RTX."""
        self.index += 1
        return Sent(self.ssrc, self.index - 1, self.timestamp, False, b"", 0, 0, self.index - 1, 0, 1, time=now)

    def frame(self, now: float) -> Sent | None:
        """The next packet; None where DTX sends nothing."""
        self.timestamp = (self.timestamp + self.samples) & 0xFFFFFFFF
        if self.random.random() < 0.01:
            self.talking = not self.talking
        self._silent = 0 if self.talking else self._silent + 1
        if self._silent % 20 > 1:
            return None
        self.level = 0x80 | self.random.randrange(5, 40) if self.talking else 0x7F
        tail = self.ssrc.to_bytes(4, "big") + self.index.to_bytes(4, "big")
        frame = self.random.randbytes(4) * (20 if self.talking else 1) + tail
        payload = frame
        if self.redundant:
            blocks = [Block(111, 0, frame)]
            if self._before is not None and (offset := (self.timestamp - self._before[0]) & 0xFFFFFFFF) <= 0x3FFF:
                blocks.insert(0, Block(111, offset, self._before[1]))
            payload = serialize(blocks)
            self._before = self.timestamp, frame
        head = len(payload) - len(frame)
        sent = Sent(self.ssrc, self.index, self.timestamp, False, payload, head, 0, self.index, 0, 1, time=now)
        self.index += 1
        return sent
