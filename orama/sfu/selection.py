"""Which frames of a layered stream one subscription gets, and when it may go up to another layer.

Down is always possible where what was forwarded holds all of the lower layer; up is possible only where a frame says
so: Y in VP8 (RFC 7741, 4.2), U in VP9 (RFC 9628, 4.2), a *switch* indication in the dependency descriptor, and in each
of them a keyframe. Frames come in order, one call each.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from attrs import define

from orama.sfu.packet import Packet
from orama.sfu.scalability import Described, DescribedLayers, Place
from orama.wire import vp8, vp9
from orama.wire.dependency import Indication
from orama.wire.video import Keyframe

#: A bound above every layer that there is.
ALL = 1 << 8
#: Frames whose fate a descriptor's references are looked up in; they reach 4,096 back at most, in practice a few.
REFERABLE = 512


@define
class Verdict:
    """What becomes of one frame."""

    keep: bool
    #: Whether the frame is of the highest spatial layer that is forwarded, and ends the picture.
    top: bool = False
    #: What to write as active decode targets, None to leave the descriptor as it is.
    active: int | None = None


class Selection(Protocol):
    """The choice for one subscription; *wanted* is the highest spatial and temporal layer that it may have.

    :ivar waiting: a layer is wanted that only a keyframe leads to.
    :ivar level: what is forwarded now, in words of its own.
    """

    waiting: bool
    level: tuple[int, ...]

    @property
    def spatial(self) -> int:
        """The highest spatial layer that is forwarded."""

    def fits(self, place: Place | None) -> bool:
        """Whether it can judge by *place*."""

    def want(self, spatial: int, temporal: int) -> None: ...

    def look(self) -> None:
        """See what time has changed; call it every tick."""

    def decide(self, packet: Packet) -> Verdict:
        """The frame that begins with *packet*, newer than any before."""

    def late(self, packet: Packet, level: tuple[int, ...]) -> Verdict:
        """A frame of which nothing was seen in its time, when *level* was forwarded: what it would have been."""


class Everything:
    """A stream without layers."""

    waiting = False
    level: tuple[int, ...] = ()
    spatial = ALL

    def fits(self, place: Place | None) -> bool:
        return place is None

    def want(self, spatial: int, temporal: int) -> None:
        pass

    def look(self) -> None:
        pass

    def decide(self, packet: Packet) -> Verdict:
        return Verdict(True)

    def late(self, packet: Packet, level: tuple[int, ...]) -> Verdict:
        return Verdict(True)


class TemporalSelection:
    """VP8: up one layer at a time, where a frame of it depends on the lowest alone."""

    waiting = False
    spatial = 0

    def __init__(self, spatial: int, temporal: int) -> None:
        self._wanted = temporal
        self.level: tuple[int, ...] = (temporal,)

    def fits(self, place: Place | None) -> bool:
        return place is None or isinstance(place, vp8.Descriptor)

    def want(self, spatial: int, temporal: int) -> None:
        self._wanted = temporal

    def look(self) -> None:
        pass

    def decide(self, packet: Packet) -> Verdict:
        (current,), wanted, place = self.level, self._wanted, packet.place
        if packet.keyframe or wanted < current:
            current = wanted
        layer = place.temporal or 0 if isinstance(place, vp8.Descriptor) else 0
        if layer == current + 1 <= wanted and isinstance(place, vp8.Descriptor) and place.sync:
            current = layer
        self.level = (current,)
        return Verdict(layer <= current)

    def late(self, packet: Packet, level: tuple[int, ...]) -> Verdict:
        place = packet.place
        return Verdict(not isinstance(place, vp8.Descriptor) or (place.temporal or 0) <= level[0])


class SpatialSelection:
    """VP9 by its own descriptor: spatial layers change with the picture, and upwards where nothing is predicted."""

    def __init__(self, spatial: int, temporal: int) -> None:
        self._wanted = (spatial, temporal)
        self.level: tuple[int, ...] = self._wanted
        self._picture = -1
        self._highest = 0
        self.waiting = False

    @property
    def spatial(self) -> int:
        return self.level[0]

    def fits(self, place: Place | None) -> bool:
        return place is None or isinstance(place, vp9.Descriptor)

    def want(self, spatial: int, temporal: int) -> None:
        self._wanted = (spatial, temporal)
        self.look()

    def look(self) -> None:
        # Above the highest layer that has been seen there is nothing to wait for.
        self.waiting = min(self._wanted[0], self._highest) > self.level[0]

    def decide(self, packet: Packet) -> Verdict:
        place = packet.place
        if not isinstance(place, vp9.Descriptor):
            return Verdict(True)
        at = place.spatial or 0
        if at > self._highest:
            self._highest = at
        spatial, temporal = self.level
        wanted, faster = self._wanted
        if packet.timestamp != self._picture:
            self._picture = packet.timestamp
            spatial, temporal = min(spatial, wanted), min(temporal, faster)
        if packet.keyframe == Keyframe.START:
            spatial, temporal = self._wanted
        elif spatial < at <= wanted and at == spatial + 1 and not place.predicted:
            spatial = at
        keep = at <= spatial and (place.temporal or 0) <= temporal
        if place.up and (place.temporal or 0) <= temporal:
            temporal = faster
        self.level = spatial, temporal
        self.look()
        return Verdict(keep, at == spatial)

    def late(self, packet: Packet, level: tuple[int, ...]) -> Verdict:
        place = packet.place
        if not isinstance(place, vp9.Descriptor):
            return Verdict(True)
        spatial, temporal = level
        at = place.spatial or 0
        return Verdict(at <= spatial and (place.temporal or 0) <= temporal, at == spatial)


class DescribedSelection:
    """By the dependency descriptor: one decode target after another."""

    def __init__(self, spatial: int, temporal: int) -> None:
        self._wanted = (spatial, temporal)
        self._layering: DescribedLayers | None = None
        self._active = self._silent = 0
        self._goal = 0
        self.level: tuple[int, ...] = (0,)
        self._picture = -1
        #: Numbers of frames that were forwarded, newest last.
        self._forwarded: deque[int] = deque(maxlen=REFERABLE)
        self._untold = False
        self.waiting = False

    @property
    def spatial(self) -> int:
        return ALL if self._layering is None else self._layering.structure.layers[self.level[0]][0]

    def fits(self, place: Place | None) -> bool:
        return place is None or isinstance(place, Described)

    def want(self, spatial: int, temporal: int) -> None:
        self._wanted = (spatial, temporal)
        self._look()

    def look(self) -> None:
        # Spatial layers stop and come back without a word.
        if self._layering is not None and (silent := self._layering.silent()) != self._silent:
            self._silent = silent
            self._look()

    def _look(self) -> None:
        layering = self._layering
        if layering is None:
            return
        self._goal = layering.goal(*self._wanted, self._active & ~self._silent or self._active)
        layers = layering.structure.layers
        self.waiting = layers[self._goal][0] != layers[self.level[0]][0]

    def decide(self, packet: Packet) -> Verdict:
        place = packet.place
        if not isinstance(place, Described):
            return Verdict(True)
        layering, indications = place.layering, place.template.indications
        begins = place.begins
        if layering is not self._layering:
            self._layering, self._silent, self._active, begins = layering, 0, place.active, True
            self._forwarded.clear()
            self.level = (0,)
            self._look()
        elif place.active != self._active:
            self._active = place.active
            self._look()
        if (self._goal,) != self.level or begins:
            self._turn(layering, place, begins, packet.timestamp != self._picture)
        self._picture = packet.timestamp
        (current,) = self.level
        if indications[current] == Indication.NOT_PRESENT:
            return Verdict(False)
        self._forwarded.append(place.frame)
        active = None
        if self._untold:
            self._untold = False
            active = layering.covers[current] & self._active
        return Verdict(True, place.spatial == layering.structure.layers[current][0], active)

    def _turn(self, layering: DescribedLayers, place: Described, begins: bool, new_picture: bool) -> None:
        """Take the goal where this frame lets us."""
        goal = self._goal
        covered = layering.covers[self.level[0]] >> goal & 1 if not begins else 0
        if not begins and not (new_picture and covered):
            if place.template.indications[goal] != Indication.SWITCH:
                return
            references = place.references()
            if references is None or any(each not in self._forwarded for each in references):
                return
        self.level = (goal,)
        # A keyframe says itself that everything is active; that stays true only when everything is forwarded.
        self._untold = layering.covers[goal] & self._active != self._active or not begins
        self._look()

    def late(self, packet: Packet, level: tuple[int, ...]) -> Verdict:
        place = packet.place
        if not isinstance(place, Described) or place.layering is not self._layering:
            return Verdict(True)
        if level[0] >= len(place.template.indications):  # of a structure before
            return Verdict(True)
        if not place.template.indications[level[0]]:
            return Verdict(False)
        self._forwarded.append(place.frame)
        return Verdict(True, place.spatial == place.layering.structure.layers[level[0]][0])


def selection(place: Place | None, spatial: int, temporal: int) -> Selection:
    """What fits to the way in which *place* is known."""
    if isinstance(place, Described):
        return DescribedSelection(spatial, temporal)
    if isinstance(place, vp9.Descriptor):
        return SpatialSelection(spatial, temporal)
    if isinstance(place, vp8.Descriptor):
        return TemporalSelection(spatial, temporal)
    return Everything()
