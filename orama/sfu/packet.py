"""One packet of a publisher after SRTP: what is kept once and shared by every subscriber."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from orama.sfu.scalability import Place

#: Larger payloads are not WebRTC: they fit no path's MTU.
MAX_PAYLOAD = 1500


@define(eq=False)
class Packet:
    """Not frozen for speed alone (a frozen one takes 0.9 µs to make, this 0.4): nobody writes to it."""

    #: Extended sequence number in the publisher's space.
    index: int
    timestamp: int
    #: 0x80 with the marker bit, 0 without: ready to be joined with a payload type.
    marker: int
    payload_type: int
    payload: bytes
    #: A ``wire.video.Keyframe``.
    keyframe: int
    #: When it came, seconds.
    time: float
    #: Value byte of the audio level extension (RFC 6464), None without.
    level: int | None = None
    #: Dependency descriptor and video orientation as they came, empty without.
    descriptor: bytes = b""
    orientation: bytes = b""
    #: Whether there is any of these three.
    extended: bool = False
    #: Where it stands among the layers of its stream, None without layers.
    place: Place | None = None
