"""How much may be under way to one subscriber: the bound of the queue that its link is, sans-IO.

There is no pacer: what a publisher sends in a burst leaves in a burst. So the queue stands in the network, or in the
TCP connection of a relay, and its length is what feedback has not named yet. Beyond the bound video ends with the
frame that has begun and goes on with a keyframe when there is room; audio always goes.
"""

from __future__ import annotations

#: Seconds' worth of the estimate that may wait where the link was seen to be full, and where it was not.
QUEUE, UNSEEN = 0.5, 1.0
#: Seconds that feedback takes beside the round trip: browsers gather it for 50 to 250 ms.
GATHERED = 0.25
#: Bytes that may always be under way: a keyframe of a low layer.
LEAST = 24_000


def bound(estimate: float, throughput: float | None, round_trip: float | None, limited: bool) -> float:
    """Bytes under way from which video is held back.

    :param estimate: bits per second; *throughput* is what has arrived lately.
    :param limited: whether the estimate is what the link was seen to take.
    """
    unnamed = GATHERED + (0.1 if round_trip is None else round_trip)
    if limited:
        return max(LEAST, estimate / 8 * (QUEUE + unnamed))
    return max(LEAST, max(estimate, throughput or 0.0) / 8 * (UNSEEN + unnamed))
