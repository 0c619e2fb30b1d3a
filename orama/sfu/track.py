"""A published track: what a room lists, mutes and subscribes to, whatever streams it arrives in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from twisted.internet.interfaces import IReactorTime

from orama.sfu.curtain import Curtain, nothing
from orama.sfu.demand import Demand
from orama.sfu.layers import ceiling, flowing, names, ordered
from orama.sfu.packet import Packet
from orama.sfu.qualities import Quality
from orama.sfu.speakers import AudioLevel
from orama.sfu.stream import Publisher, Stream
from orama.sfu.values import AUDIO_LEVEL, DEPENDENCY_DESCRIPTOR, VIDEO_ORIENTATION, Codec, Uplinked

if TYPE_CHECKING:
    from orama.sfu.downlink import Downlink

#: Looks at a run of packets of one stream before the subscribers get it, and gives what they are to get.
Gate: TypeAlias = Callable[[Stream, Sequence[Packet], float], Sequence[Packet]]


class Track:
    """One m-line of a publisher.

    :ivar track_id: unique in the room.
    :ivar kind: ``audio`` or ``video``.
    :ivar codecs: the publisher's, with its payload types.
    :ivar extensions: URI → id in the publisher's numbering.
    :ivar gate: what stands between the streams and the subscribers; None lets everything pass.
    :ivar streams: rid (empty without simulcast) → what arrives.
    """

    codecs: tuple[Codec, ...]
    extensions: Mapping[str, int]

    def __init__(self, uplinked: Uplinked, clock: IReactorTime, publisher: Publisher) -> None:
        self.track_id = uplinked.track_id
        self.kind = uplinked.kind
        self.streams: dict[str, Stream] = {}
        self.level = AudioLevel()
        self.closed = False
        #: Whether its frames may be encrypted end to end: then none are put together.
        self.opaque = True
        #: How much it matters to subscribers beside other tracks, as the room sees it: see ``sfu.allocator``.
        self.rank = 0
        self._clock = clock
        self._publisher = publisher
        self.gate: Gate | None = None
        self._chosen_by: Gate | None = None
        self._muted = False
        #: Told which layers somebody watches, when the publisher is to send others than before.
        self.asks: Callable[[tuple[str, ...]], None] | None = None
        #: Told when ``layers`` have become others, which of one stream only the stream itself says.
        self.relayered: Callable[[], None] | None = None
        self._demand = Demand(0)
        self._named: tuple[str, ...] | None = None
        self._downlinks: dict[Downlink, None] = {}
        #: What flowed at the last tick.
        self._flows: list[Stream | None] = []
        self.configure(uplinked)

    def configure(self, uplinked: Uplinked) -> None:
        """Take over what was negotiated for the m-line now."""
        self.mid = uplinked.mid
        self.codecs = uplinked.codecs
        self.extensions = uplinked.extensions
        listed = uplinked.rids or tuple(str(number) for number in range(len(uplinked.ssrcs)))
        #: Rids, lowest first; numbers stand in for them where layers are known by SSRC alone.
        self.rids = ordered(listed) if len(listed) > 1 else ("",)
        # 0 is no id in either form of RFC 8285, so a lookup of it finds nothing.
        self.level_id = uplinked.extensions.get(AUDIO_LEVEL, 0)
        self.descriptor_id = uplinked.extensions.get(DEPENDENCY_DESCRIPTOR, 0)
        self.orientation_id = uplinked.extensions.get(VIDEO_ORIENTATION, 0)
        #: Payload type of RTX → of what it repairs.
        self.repairs = {
            codec.rtx_payload_type: codec.payload_type for codec in self.codecs if codec.rtx_payload_type is not None
        }
        for stream in self.streams.values():
            stream.configure()
        for downlink in self._downlinks:
            downlink.match()

    @property
    def muted(self) -> bool:
        """While true nothing of the track is forwarded, but for the rest of the last picture.

        Setting it false begins anew for every subscriber, of video with a keyframe, which is asked for.
        """
        return self._muted

    @muted.setter
    def muted(self, muted: bool) -> None:
        if muted == self._muted:
            return
        self._muted = muted
        if muted:
            self.level.reset()
            self.gate = Curtain(self.streams.values(), self._clock.seconds()) if self.kind == "video" else nothing
        else:
            self.gate = self._chosen_by
            self.pause()
            self.request_keyframe(self._clock.seconds())

    def choose_by(self, gate: Gate | None) -> None:
        """From now on *gate* says what the subscribers get, where the track is not muted."""
        self._chosen_by = gate
        if not self._muted:
            self.gate = gate

    def pause(self) -> None:
        """For every subscriber a gap in the numbers follows that is none: what comes next begins anew."""
        for downlink in self._downlinks:
            downlink.pause()

    @property
    def audio_level(self) -> int:
        """Smoothed loudness, 0 (silence) to 127 (loudest); 0 for video."""
        return 0 if self._muted else self.level.value(self._clock.seconds())

    def request_keyframe(self, now: float) -> None:
        """Ask the publisher for a keyframe, throttled: a request within 500 ms of another is coalesced."""
        for stream in self.streams.values():
            if stream.listeners:
                stream.request_keyframe(now)

    def ranked(self) -> list[Stream]:
        """The streams, lowest layer first."""
        found = (self.streams.get(rid) for rid in self.rids)
        return [stream for stream in found if stream is not None]

    @property
    def layers(self) -> tuple[str, ...]:
        """``low``, ``mid``, ``high`` as far as there are simulcast or spatial layers, empty without."""
        if len(self.rids) > 1:
            return names(len(self.rids))
        stream = self.streams.get("")
        return names(self.spatial_layers(stream)) if stream is not None else ()

    @staticmethod
    def spatial_layers(stream: Stream) -> int:
        return 1 if stream.layering is None else stream.layering.spatial_layers

    def tick(self, now: float) -> None:
        """Timed work: layers that stop, that come to be, and that nobody watches."""
        if len(self.rids) > 1 and (flows := flowing(self.places())) != self._flows:
            # Whatever else changes a choice makes it at once; for each subscriber it takes 3 µs.
            self._flows = flows
            self.aim(now)
        layers = self.layers
        if layers != self._named:
            known, self._named = self._named, layers
            self._demand = Demand(len(layers))
            if known is not None and self.relayered is not None:
                self.relayered()
        if layers and self._demand.look(self._watched(len(layers)), now) and self.asks is not None:
            self.asks(layers[: self._demand.asked])

    def _watched(self, count: int) -> int:
        """How many of *count* layers, from the lowest on, those want who asked for most: whoever wants a high one may
        have to do with a lower one at any time."""
        most = 0
        for each in self._downlinks:
            most = max(most, ceiling(each.choice.layer, count) + 1)
            if most == count:  # most often the first who is asked
                break
        return most

    def places(self) -> list[Stream | None]:
        """A place for each layer, lowest first; None where no stream has begun."""
        return [self.streams.get(rid) for rid in self.rids]

    def qualities(self, now: float) -> tuple[Quality, ...]:
        """What the track can be had in now, cheapest first; nothing when nothing comes.

        A rate is 0 until it has been measured. Audio, and video without layers, have one.
        """
        simulcast = len(self.rids) > 1
        found = [
            Quality(place if simulcast else spatial, temporal, rate)
            for place, stream in enumerate(flowing(self.places()))
            if stream is not None and stream.reception is not None
            for spatial, temporal, rate in stream.qualities()
        ]
        return tuple(sorted(found, key=lambda quality: (quality.bitrate, quality.spatial, quality.temporal)))

    def add(self, stream: Stream) -> None:
        """A stream begins; it takes the place of one with the same rid."""
        replaced = self.streams.get(stream.rid)
        self.streams[stream.rid] = stream
        if replaced is not None:
            for downlink in replaced.listeners:
                downlink.lost(replaced)
            replaced.close()

    def aim(self, now: float) -> None:
        """Let every subscriber look at the streams anew."""
        for downlink in self._downlinks:
            downlink.aim(now)

    def join(self, downlink: Downlink) -> None:
        self._downlinks[downlink] = None

    def part(self, downlink: Downlink) -> None:
        self._downlinks.pop(downlink, None)
        for stream in self.streams.values():
            stream.ignore(downlink)

    @property
    def subscribers(self) -> int:
        return len(self._downlinks)

    def close(self) -> None:
        """The publisher ended it: every subscription ends."""
        self.closed = True
        self.asks = self.relayered = self.gate = self._chosen_by = None
        for downlink in list(self._downlinks):
            downlink.close()
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()
        self._flows = []
