"""Slots: m-lines of one client on which the tracks of others take turns, without negotiating anew.

A room of many has more tracks than a client has use for, or m-lines. So a client may have some slots of a kind, and
they show what is worth it at the moment. A track that stays worth it stays on its slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import define
from twisted.internet.interfaces import IReactorTime

from orama.sfu.lines import Wanted
from orama.sfu.payloads import same
from orama.sfu.red import is_red
from orama.sfu.track import Track
from orama.sfu.values import AUDIO_LEVEL, DEPENDENCY_DESCRIPTOR, MID, VIDEO_ORIENTATION, Codec, Uplinked

if TYPE_CHECKING:
    from orama.sfu.peer import Publication

#: Slots of one kind that a client may have: with those of the other they fit on the m-lines that we add.
MOST_SLOTS = 32
#: Codecs that a slot may show. Each takes some hundred characters of a description.
MOST_CODECS = 4
_EXTENSIONS = {
    "audio": frozenset({MID, AUDIO_LEVEL}),
    "video": frozenset({MID, VIDEO_ORIENTATION, DEPENDENCY_DESCRIPTOR}),
}


@define(eq=False)
class Slot:
    """One such m-line.

    :ivar slot_id: stands for a track id in negotiation; stream and track id (msid) on the m-line.
    :ivar mid: of the m-line that was offered last, None before.
    :ivar shows: what is forwarded on it, with *track*; that is a silent one when nothing is.
    :ivar told: whether the client knows.
    """

    slot_id: str
    kind: str
    track: Track
    mid: str | None = None
    shows: Publication | None = None
    told: bool = True


class Slots:
    """The slots of one kind of one client.

    :param new_id: makes an id that no track of the room has.
    :param clock: for what an empty slot shows.
    """

    def __init__(self, kind: str, new_id: Callable[[], str], clock: IReactorTime) -> None:
        self.kind = kind
        self.codecs: tuple[Codec, ...] = ()
        self._new_id = new_id
        self._clock = clock
        self._slots: dict[str, Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, slot_id: str) -> Slot | None:
        return self._slots.get(slot_id)

    def all(self) -> tuple[Slot, ...]:
        return tuple(self._slots.values())

    def resize(self, count: int) -> tuple[Slot, ...]:
        """Have *count* of them; those that are no more, the emptiest first."""
        while len(self._slots) < min(count, MOST_SLOTS):
            slot_id = self._new_id()
            self._slots[slot_id] = Slot(slot_id, self.kind, self._silent(slot_id))
        spare = sorted(self._slots.values(), key=lambda slot: slot.shows is None)
        gone = tuple(spare[count:])
        for slot in gone:
            del self._slots[slot.slot_id]
        return gone

    def remove(self, slot_id: str) -> Slot | None:
        return self._slots.pop(slot_id, None)

    def fill(self, wanted: Sequence[Publication]) -> tuple[Slot, ...]:
        """Show *wanted*, the first as many as there are slots; those that changed."""
        due = list(wanted[: len(self._slots)])
        slots = self._slots.values()
        kept = [slot for slot in slots if slot.shows is not None and slot.shows in due]
        shown = [slot.shows for slot in kept]
        fresh = iter([publication for publication in due if publication not in shown])
        changed = []
        for slot in slots:
            if slot not in kept:
                before, slot.shows = slot.shows, next(fresh, None)
                if slot.shows is not before:
                    slot.told = False
                    slot.track = self._silent(slot.slot_id) if slot.shows is None else slot.shows.track
                    changed.append(slot)
        return tuple(changed)

    def _silent(self, slot_id: str) -> Track:
        return Track(Uplinked(slot_id, "", self.kind, ()), self._clock, _Nobody())

    def learn(self, codecs: Sequence[Codec]) -> bool:
        """Take *codecs* too; whether that is new."""
        known = len(self.codecs)
        for codec in codecs:
            if len(self.codecs) < MOST_CODECS and not is_red(codec) and not any(same(codec, c) for c in self.codecs):
                self.codecs += (codec,)
        return len(self.codecs) > known

    def wanted(self, slot: Slot) -> Wanted:
        """What the client is offered."""
        return Wanted(slot.slot_id, slot.slot_id, slot.kind, self.codecs, _EXTENSIONS[slot.kind])


class _Nobody:
    """Publishes what an empty slot shows."""

    def ask_keyframe(self, stream: object) -> None:
        """There is no stream."""
