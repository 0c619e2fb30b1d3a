"""Who gets how much of one subscriber's bandwidth: a quality for each of its subscriptions, sans-IO.

Audio comes first and whole. Of the rest every video gets its cheapest quality before any gets a better one, in the
order of what the client said (``priority``), then of what the room says (``Track.rank``: who speaks, screens, the
rest). Down goes at once; up needs room to spare, for a while, and a longer one each time that it was a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from attrs import define, evolve, frozen

from orama.sfu.qualities import Quality

#: What has to be there of the sum, to take anything better than now; of the cheapest quality, to keep it: less than all
#: of it for a while is better than none.
SPARE, ENOUGH = 1.15, 0.7
#: Seconds between two allocations, unless the estimate falls below this part of what it was.
INTERVAL, FALL = 1.0, 0.9
#: Seconds that there is to be room for better, at first and at most; a fall within so many seconds was a mistake.
STABLE, LONGEST, MISTAKE = 1.0, 16.0, 10.0
#: A probe goes so far beyond what is wanted.
BEYOND = 1.2
#: The part of the newest measure in the average that a pause is decided by.
SMOOTHING = 0.15
#: Bits per second that browsers give to the layers of simulcast, lowest first.
USUAL = (150e3, 500e3, 1500e3)
#: What the room says of a video, by whose it is and what it shows.
SPEAKER, SCREEN, REST = 2, 1, 0


class Subscription(Protocol):
    """As ``sfu.downlink.Downlink`` is one."""

    @property
    def priority(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def rank(self) -> int: ...
    def qualities(self, now: float) -> tuple[Quality, ...]: ...
    def allow(self, quality: Quality | None, now: float) -> None: ...


@frozen
class Share:
    """What one subscription was given: None is a pause. ``best`` is what it could have."""

    quality: Quality | None
    best: Quality


@define(eq=False)
class _Video:
    """A subscription while it is decided about."""

    key: str
    subscription: Subscription
    steps: list[Quality]
    #: The step that it has now and the one that it gets; -1 is none.
    now: int
    given: int = -1

    def cost(self, step: int) -> float:
        return self.steps[step].bitrate if step >= 0 else 0.0


def steps(qualities: Sequence[Quality]) -> list[Quality]:
    """Those worth having, cheapest first: each with more layers than the one before.

    Frames are left out of the lowest resolution alone: half of the frames in twice the size are worse than the small
    picture whole, and the way there takes a keyframe. What has no rate yet counts as usual.
    """
    found: list[Quality] = []
    lowest = min((each.spatial for each in qualities), default=0)
    highest = max((each.spatial for each in qualities), default=0)
    most = {each.spatial: max(one.temporal for one in qualities if one.spatial == each.spatial) for each in qualities}
    for quality in sorted(qualities, key=lambda each: (each.spatial, each.temporal)):
        if quality.spatial > lowest and quality.temporal < most[quality.spatial]:
            continue
        if not quality.bitrate and highest:
            quality = evolve(quality, bitrate=USUAL[min(quality.spatial, len(USUAL) - 1)])
        while found and found[-1].bitrate >= quality.bitrate > 0:
            found.pop()  # fewer layers for as much
        found.append(quality)
    return found


class Allocator:
    """The shares of one subscriber.

    :ivar shares: what each video has; empty while everything is forwarded.
    :ivar wanted: bits per second with which everything could be had, 0 when it is.
    """

    __slots__ = ("_at", "_estimate", "_hold", "_known", "_raised", "_room", "_usual", "shares", "wanted")

    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}
        self.wanted = 0.0
        self._at = float("-inf")
        self._estimate = 0.0
        self._known: frozenset[str] = frozenset()
        #: Bits per second of each video's cheapest quality, over some seconds.
        self._usual: dict[str, float] = {}
        self._hold = STABLE
        #: When something was raised last, and since when there is room for better.
        self._raised = float("-inf")
        self._room: float | None = None

    def due(self, estimate: float, keys: AbstractSet[str], now: float) -> bool:
        """Whether :meth:`share` would do anything."""
        return now - self._at >= INTERVAL or estimate < FALL * self._estimate or keys != self._known

    def renew(self) -> None:
        """The next :meth:`share` is due."""
        self._at = float("-inf")

    def forget(self, key: str) -> None:
        """The client asks for another layer: the next :meth:`share` is due, and takes this one for new.

        What it asked for it gets at once where there is room, and need not prove that there stays room.
        """
        self.shares.pop(key, None)
        self.renew()

    def share(
        self, subscriptions: dict[str, Subscription], estimate: float, limited: bool, now: float, kept: float = 0.0
    ) -> None:
        """Give each its share, when it is time.

        :param estimate: bits per second on the wire, of the media alone.
        :param limited: whether the link was seen to take no more; until then every video gets its cheapest quality.
        :param kept: what of the estimate no quality but the cheapest may take.
        """
        keys = frozenset(subscriptions)
        if not self.due(estimate, keys, now):
            return
        self._at, self._estimate, self._known = now, estimate, keys
        audio, videos = 0.0, []
        for key, each in subscriptions.items():
            found = each.qualities(now)
            if not found:
                continue
            if each.kind == "audio":
                audio += max(quality.bitrate for quality in found)
                continue
            ladder = steps(found)
            videos.append(_Video(key, each, ladder, self._present(key, ladder)))
        self._usual = {video.key: self._usual[video.key] for video in videos if video.key in self._usual}
        videos.sort(key=lambda video: (-video.subscription.priority, -video.subscription.rank))
        room = self._divide(videos, estimate - audio, limited, kept)
        self._settle(videos, room, now)
        best = audio + sum(video.cost(len(video.steps) - 1) for video in videos)
        short = any(video.given < len(video.steps) - 1 for video in videos)
        self.wanted = best * BEYOND if short else 0.0

    def _present(self, key: str, ladder: list[Quality]) -> int:
        """The step of what it was given last; the highest for one that is new."""
        share = self.shares.get(key)
        if share is None:
            return len(ladder) - 1
        if share.quality is None:
            return -1
        had = (share.quality.spatial, share.quality.temporal)
        lower = [at for at, quality in enumerate(ladder) if (quality.spatial, quality.temporal) <= had]
        return lower[-1] if lower else 0

    def _divide(self, videos: list[_Video], left: float, limited: bool, kept: float) -> bool:
        """Set what each is given, up to what it has now and beyond; whether anything went beyond."""
        rest, spare = left, left - left / SPARE  # only what leaves so much unused may be better than now
        for video in videos:
            cost = self._usual_cost(video)
            if not limited or (cost * ENOUGH <= left if video.now >= 0 else cost <= left - spare):
                video.given = 0
                left -= cost
                rest -= video.cost(0)
        at, left = 0, rest - kept
        while at < len(videos):  # those of one order take turns
            order = _order(videos[at])
            equals = [video for video in videos[at:] if _order(video) == order]
            at += len(equals)
            moved = True
            while moved:
                moved = False
                for video in equals:
                    step = video.given + 1
                    if video.given < 0 or step == len(video.steps):
                        continue
                    cost = video.cost(step) - video.cost(video.given)
                    if cost <= (left if step <= video.now else left - spare):
                        video.given, left, moved = step, left - cost, True
        return any(video.given > video.now for video in videos)

    def _usual_cost(self, video: _Video) -> float:
        """What its cheapest quality takes, not more than on the average: or each new slide would be a pause."""
        now = video.cost(0)
        # At the beginning of a stream there is little but keyframes.
        first = min(now, USUAL[0]) if len(video.steps) > 1 else now
        before = self._usual.get(video.key, first)
        usual = self._usual[video.key] = before + SMOOTHING * (now - before)
        return min(now, usual)

    def _settle(self, videos: list[_Video], room: bool, now: float) -> None:
        """Let down at once what is to go down, and up what there has been room for long enough."""
        if not room:
            self._room = None
        elif self._room is None:
            self._room = now
        raising = self._room is not None and now - self._room >= self._hold - 0.01
        if any(video.given < video.now for video in videos) and now - self._raised < MISTAKE:
            self._hold, self._raised = min(LONGEST, 2 * self._hold), float("-inf")
        elif now - self._raised > 3 * MISTAKE and self._raised > float("-inf"):
            self._hold = STABLE
        shares: dict[str, Share] = {}
        for video in videos:
            fresh = video.key not in self.shares
            if video.given > video.now and not raising and not fresh:
                video.given = video.now
            elif video.given > video.now:
                self._raised, self._room = now, None
            quality = video.steps[video.given] if video.given >= 0 else None
            shares[video.key] = Share(quality, video.steps[-1])
            video.subscription.allow(quality, now)
        self.shares = shares

    def release(self, subscriptions: dict[str, Subscription], now: float) -> None:
        """Nothing is known of the link any more: everything is forwarded."""
        for key, share in self.shares.items():
            each = subscriptions.get(key)
            if each is not None:
                each.allow(share.best, now)
        self.shares = {}
        self.wanted = 0.0


def _order(video: _Video) -> tuple[int, int]:
    return video.subscription.priority, video.subscription.rank
