"""Simulcast layers (RFC 8853): which rid is better, what they are called outside, which one to forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

#: What clients call their rids, lowest first; ``h`` is half of full, or high beside a medium.
_LOW, _MID, _HIGH = (
    {"q", "l", "lo", "low", "quarter"},
    {"m", "mid", "med", "medium", "half"},
    {"f", "hi", "high", "full"},
)
#: A layer that was silent for this long while another of its track was not has stopped, if that is so many frames
#: (a screen may have two a second), and at the latest after this long.
STOPPED, FRAMES, SURELY_STOPPED = 0.5, 4, 2.0
LAYERS = ("low", "mid", "high", "auto")


class Layer(Protocol):
    """One stream of a track; times in seconds."""

    @property
    def last_arrival(self) -> float: ...

    @property
    def pace(self) -> float:
        """From one frame to the next, lately."""


LayerT = TypeVar("LayerT", bound=Layer)


def ordered(rids: Sequence[str]) -> tuple[str, ...]:
    """The rids, lowest first: by name where all are known names, as the client listed them otherwise."""
    names = [rid.lower() for rid in rids]
    middle = any(name in _MID for name in names)

    def rank(name: str) -> int | None:
        if name in _LOW:
            return 0
        if name in _MID:
            return 1
        if name in _HIGH:
            return 2
        return (2 if middle else 1) if name == "h" else None

    ranks = [rank(name) for name in names]
    known = [each for each in ranks if each is not None]
    if len(known) < len(ranks) or len(set(known)) < len(known):
        return tuple(rids)
    return tuple(rid for _, rid in sorted(zip(known, rids, strict=True)))


def names(count: int) -> tuple[str, ...]:
    """What *count* layers are called outside; one layer is no simulcast."""
    return {2: ("low", "high"), 3: ("low", "mid", "high")}.get(min(count, 3), ())


def ceiling(layer: str, count: int) -> int:
    """The highest of *count* layers, counted from 0, that one who asked for *layer* gets."""
    top = max(0, count - 1)
    return {"low": 0, "mid": top // 2}.get(layer, top)


def flowing(streams: Sequence[LayerT | None]) -> list[LayerT | None]:
    """The same, with None in place of those that have not begun or have stopped."""
    begun = [stream for stream in streams if stream is not None]
    if not begun:
        return list(streams)
    newest = max(begun, key=lambda stream: stream.last_arrival)
    last = newest.last_arrival
    since = last - min(max(STOPPED, FRAMES * newest.pace), SURELY_STOPPED)
    return [
        stream if stream is not None and (stream.last_arrival > since or stream.last_arrival == last) else None
        for stream in streams
    ]


def choose(streams: Sequence[LayerT | None], limit: int) -> LayerT | None:
    """The best flowing stream that is not above *limit*, else the lowest flowing one.

    :param streams: lowest first, None for one that has not begun.
    """
    found = flowing(streams)
    below = [stream for stream in found[: limit + 1] if stream is not None]
    above = [stream for stream in found[limit + 1 :] if stream is not None]
    return below[-1] if below else above[0] if above else None
