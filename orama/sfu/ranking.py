"""What of a room a listener needs most: whose microphones are forwarded, and whose cameras come first.

It knows publications and who speaks; what each client makes of it is ``sfu.subscriptions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from orama.sfu.loudest import Loudest
from orama.sfu.values import AUDIO_LEVEL

if TYPE_CHECKING:
    from orama.sfu.peer import Publication

#: What a track is when its publisher does not say.
SOURCES = {"audio": "microphone", "video": "camera"}


def _nobody(kind: str) -> None:
    """Nobody listens."""


class Ranking:
    """That of one room.

    :param places: microphones that are forwarded, 0 for all.
    :param changed: called with a kind when its order is another.
    """

    def __init__(self, places: int, changed: Callable[[str], None]) -> None:
        self.loudest = Loudest(places, self._heard_others)
        self._changed = changed
        self._publications: dict[str, Publication] = {}
        self._spoke: dict[str, float] = {}
        self._speaking: frozenset[str] = frozenset()
        #: By kind, as long as it does not change.
        self._ordered: dict[str, tuple[Publication, ...]] = {}

    def add(self, publication: Publication, now: float) -> None:
        """It is published, or has a new form. Microphones that tell no level are always forwarded."""
        self._publications[publication.track_id] = publication
        self._ordered.clear()
        if publication.source == SOURCES["audio"] and AUDIO_LEVEL in publication.track.extensions:
            self.loudest.add(publication.track, now)
        else:
            self.loudest.remove(publication.track)

    def remove(self, publication: Publication) -> None:
        self._publications.pop(publication.track_id, None)
        self._ordered.clear()
        self.loudest.remove(publication.track)

    def close(self) -> None:
        """The room is no more: tell nobody of anything."""
        self._changed = _nobody
        self.loudest.close()

    def takes_turns(self, publication: Publication) -> bool:
        """Whether it is one of those that there may be many of: a microphone that tells its level, or a camera."""
        return publication.source == SOURCES["video"] or publication.track in self.loudest

    def speak(self, speaking: Iterable[str], now: float) -> None:
        """The peers that speak are these. Who was among them the last time too did not just cough."""
        before, self._speaking = self._speaking, frozenset(speaking)
        steady = before & self._speaking
        if not steady:
            return
        self._spoke.update(dict.fromkeys(steady, now))
        ordered = self._ordered.pop("video", None)
        if self.worth("video") != ordered:
            self._changed("video")

    def forget(self, peer_id: str) -> None:
        """That peer is gone."""
        self._spoke.pop(peer_id, None)

    def worth(self, kind: str) -> tuple[Publication, ...]:
        """The publications of a kind, first those that a listener needs most.

        Of audio all that is no microphone and the loudest of what is; of video screens, then the cameras of those who
        spoke last.
        """
        found = self._ordered.get(kind)
        if found is None:
            found = self._ordered[kind] = tuple(self._order(kind))
        return found

    def _order(self, kind: str) -> list[Publication]:
        never = float("-inf")
        found = [each for each in self._publications.values() if each.kind == kind]
        found.sort(key=lambda each: (each.source == SOURCES[kind], -self._spoke.get(each.peer.peer_id, never)))
        if kind == "audio" and self.loudest.places:
            heard = frozenset(self.loudest.heard())
            found = [each for each in found if each.track in heard or each.track not in self.loudest]
        return found

    def _heard_others(self) -> None:
        self._ordered.pop("audio", None)
        self._changed("audio")
