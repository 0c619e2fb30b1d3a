"""A published track: what a room lists, mutes and subscribes to, whatever streams it arrives in."""

from __future__ import annotations

from collections.abc import Mapping

from orama.sfu.values import Codec


class Track:
    """One m-line of a publisher.

    :ivar track_id: unique in the room.
    :ivar kind: ``audio`` or ``video``.
    :ivar codecs: the publisher's, with its payload types.
    :ivar extensions: URI → id in the publisher's numbering.
    :ivar layers: ``("low", "mid", "high")`` as far as there are simulcast layers, empty without.
    """

    track_id: str
    kind: str
    codecs: tuple[Codec, ...]
    extensions: Mapping[str, int]
    layers: tuple[str, ...]

    @property
    def muted(self) -> bool:
        """While true nothing of the track is forwarded; setting it false asks for a keyframe."""
        return self._muted

    @muted.setter
    def muted(self, muted: bool) -> None:
        self._muted = muted

    @property
    def audio_level(self) -> int:
        """Smoothed loudness, 0 (silence) to 127 (loudest); 0 for video."""
        return 0

    def request_keyframe(self, now: float) -> None:
        """Ask the publisher for a keyframe, throttled: a request within 500 ms of another is coalesced."""
