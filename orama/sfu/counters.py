"""What the media path of one namespace has counted since it started; ``/metrics`` shows it.

One object is shared by every client of the namespace: plain integers, no label per user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import define, field


def _ignore(seconds: float) -> None:
    """Nobody asks."""


@define(eq=False)
class MediaCounters:
    """Totals. Packets are RTP packets unless the name says otherwise."""

    #: Packets of publishers that passed SRTP, and their bytes (headers and payloads).
    received: int = 0
    received_bytes: int = 0
    #: Packets queued for subscribers (first sends alone), and the bytes of their payloads.
    forwarded: int = 0
    forwarded_bytes: int = 0
    #: RTX packets sent to subscribers, and packets that publishers re-sent on our request.
    retransmitted: int = 0
    recovered: int = 0
    #: Packets sent to subscribers to find out how much they can take.
    padding: int = 0
    #: Sequence numbers asked of publishers (tries count), and asked of us by subscribers.
    nacks_sent: int = 0
    nacks_received: int = 0
    #: PLI or FIR sent to publishers, and those of subscribers before throttling.
    keyframe_requests: int = 0
    keyframe_requests_received: int = 0
    #: Subscriptions that went from one layer of a track to another.
    switches: int = 0
    #: Tracks that went on sending more than ``sfu.max_bitrate`` asks for.
    excessive: int = 0
    rtcp_received: int = 0
    rtcp_sent: int = 0
    #: Packets that went no further, by reason (see the ``dropped[...]`` lines of the media path).
    dropped: Counter[str] = field(factory=Counter)
    #: Called with the seconds from the start of a video subscription to its first keyframe.
    first_frame: Callable[[float], object] = _ignore
