"""The loudest few of a room: whose sound is forwarded where more are there than anybody can follow.

Decided packet by packet from the audio level extension (RFC 6464), so that a word goes out from its first packet, with
what came just before it. A place is kept over pauses; who was silent longest gives it up first, and who speaks gives it
up to somebody clearly louder alone. Levels here are turned round: 0 is silence, 127 the loudest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orama.sfu.packet import Packet
from orama.sfu.stream import Stream
from orama.sfu.track import Track

#: Sound of this level counts as speech at once: −50 dBov. Quiet talk is about −40, a quiet room below −60.
SPEECH = 127 - 50
#: Seconds after which somebody who said something may lose the place to anybody who speaks: more than between words.
PAUSE = 0.4
#: Seconds after which it may be lost to sound that is no speech, but louder than what comes from there.
FADE = 2.5
#: How much louder somebody has to be to take the place of one who speaks: as much as a listener notices.
MARGIN = 6
#: How quickly the loudness of a speaker follows the levels of speech.
_FOLLOW = 0.1
#: What came so long before the first packet goes out with it: speech often begins with what is hardly loud.
BEFORE = 0.08
#: Packets of that at most.
MOST_BEFORE = 8


class Voice:
    """One track in the running, and its gate."""

    __slots__ = ("_loudest", "_passed", "_tells", "loudness", "placed", "spoke", "track")

    def __init__(self, loudest: Loudest, track: Track) -> None:
        self.track = track
        self.placed = False
        #: When it last spoke, and how loud it is when it does.
        self.spoke = float("-inf")
        self.loudness = 0.0
        self._loudest = loudest
        #: Whether its packets have levels, as was agreed: who never tells any is always forwarded.
        self._tells = False
        #: The last index that went out.
        self._passed = -1

    def begin(self) -> None:
        """All that has come went out."""
        self._tells = self.track.level.known
        self._passed = max((stream.highest for stream in self.track.streams.values()), default=-1)

    def __call__(self, stream: Stream, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
        """What may pass of a run. 1.1 µs with a place, without one 0.9 µs for silence and 2.7 µs for noise."""
        level = -1
        for packet in packets:
            if packet.level is not None:
                level = max(level, 127 - (packet.level & 0x7F))
        if not self._tells:
            if level < 0:
                self._passed = packets[-1].index
                return packets
            self._tells = True
            if not self.placed:
                self.track.pause()
        if not self.placed:
            if level <= 0 or not self._loudest.admits(self, level, now):
                return ()
            packets = self._from_before(stream, packets, now)
        if level >= SPEECH:
            self.spoke = now
            self.loudness += (level - self.loudness) * _FOLLOW
        self._passed = packets[-1].index
        return packets

    def _from_before(self, stream: Stream, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
        first = packets[0].index
        before: list[Packet] = []
        for index in range(first - 1, max(self._passed, first - 1 - MOST_BEFORE), -1):
            packet = stream.store.get(index)
            if packet is None or now - packet.time > BEFORE:
                break
            before.append(packet)
        return [*reversed(before), *packets]


class Loudest:
    """The places of one room.

    :param places: how many are forwarded; 0 is everybody.
    :param changed: called when somebody else has a place, before the first packet goes out.
    """

    def __init__(self, places: int, changed: Callable[[], None]) -> None:
        self.places = places
        self._changed = changed
        self._voices: dict[Track, Voice] = {}
        #: Who has a place, since when in order; empty while there is one for everybody.
        self._placed: list[Voice] = []
        self._choosing = False

    def add(self, track: Track, now: float) -> None:
        """*track* is in the running; nothing happens the second time."""
        if not self.places or track in self._voices:
            return
        voice = self._voices[track] = Voice(self, track)
        if self._choosing:
            track.choose_by(voice)
            track.pause()
        elif len(self._voices) > self.places:
            self._choose(now)
        self._changed()

    def remove(self, track: Track) -> None:
        """*track* is out of it."""
        voice = self._voices.pop(track, None)
        if voice is None:
            return
        track.choose_by(None)
        if voice.placed:
            self._placed.remove(voice)
        if self._choosing and len(self._voices) <= self.places:
            self._choosing = False
            self._placed.clear()
            for each in self._voices.values():
                each.placed = False
                each.track.choose_by(None)
        self._changed()

    def close(self) -> None:
        """Tell nobody of anything any more."""
        self._changed = _nobody

    def __contains__(self, track: Track) -> bool:
        return track in self._voices

    def heard(self) -> tuple[Track, ...]:
        """Whose sound goes out now, of the tracks in the running."""
        return tuple(voice.track for voice in (self._placed if self._choosing else self._voices.values()))

    def _choose(self, now: float) -> None:
        """There is one too many: those who are loudest now have the places."""
        self._choosing = True
        ranked = sorted(self._voices.values(), key=lambda voice: -voice.track.level.value(now))
        for voice in ranked:
            voice.begin()
            voice.track.choose_by(voice)
            if len(self._placed) < self.places:
                self._place(voice, 0, now)
            else:
                voice.track.pause()

    def _place(self, voice: Voice, level: int, now: float) -> None:
        level = max(level, voice.track.level.value(now))
        voice.placed, voice.loudness = True, float(level)
        voice.spoke = now if level >= SPEECH else float("-inf")
        self._placed.append(voice)

    def admits(self, voice: Voice, level: int, now: float) -> bool:
        """Whether *voice*, which has no place and sounds like *level*, has one from now on."""
        if len(self._placed) >= self.places:
            loser = self._loser(voice, level, now)
            if loser is None:
                return False
            loser.placed = False
            self._placed.remove(loser)
            loser.track.pause()
        self._place(voice, level, now)
        self._changed()
        return True

    def _loser(self, voice: Voice, level: int, now: float) -> Voice | None:
        """Who makes room for it."""
        longest = min(self._placed, key=_spoke)
        silence = now - longest.spoke
        if level >= SPEECH and silence >= PAUSE:
            return longest
        # Smoothed, so that one click takes nobody's place.
        sounds = voice.track.level.value(now)
        if silence >= FADE and sounds >= longest.track.level.value(now) + MARGIN:
            return longest
        if sounds < SPEECH + MARGIN:
            return None
        quietest = min(self._placed, key=_loudness)
        return quietest if sounds >= quietest.loudness + MARGIN else None


def _nobody() -> None:
    """Nobody listens."""


def _spoke(voice: Voice) -> float:
    return voice.spoke


def _loudness(voice: Voice) -> float:
    return voice.loudness
