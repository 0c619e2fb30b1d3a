"""What one client receives of its room: whole kinds, single tracks, or what is worth it at the moment.

A track has an m-line of its own, or takes its turn on a slot (``sfu.slots``). By default everything has its own, but
for the microphones and cameras of a large room beyond the first: of those the loudest are heard, and who spoke last is
seen, on slots. A client may say that it wants slots alone. What it was told of each track is kept here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING
from weakref import ref

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from orama.errors import SignalError
from orama.sfu.agreement import Agreement
from orama.sfu.events import Slot as SlotEvent
from orama.sfu.events import TrackAdded, TrackRemoved, TrackState
from orama.sfu.layers import LAYERS
from orama.sfu.slots import MOST_SLOTS, Slot, Slots

if TYPE_CHECKING:
    from orama.sfu.connection import Connection
    from orama.sfu.peer import Peer, Publication

#: Microphones that have an m-line of their own for one client, and cameras; further ones take turns on slots. More than
#: that no browser can be asked to decode, and all of them fit on the m-lines that we add.
OWN_LINES = 24
#: Slots for the cameras beyond; microphones have as many as are forwarded.
CAMERA_SLOTS = 4
KINDS = ("audio", "video")


@frozen
class Wish:
    """Slots instead of everything: how many, and which tracks come first."""

    slots: int
    tracks: tuple[str, ...] = ()


class Subscriptions:
    """Those of one peer."""

    def __init__(self, peer: Peer, connection: Connection, clock: IReactorTime) -> None:
        #: The peer has this, and nobody else calls anything here.
        self._owner = ref(peer)
        self._connection = connection
        self._clock = clock
        #: Tracks of others that the client knows of, with the mid that it was told.
        self.told: dict[str, str | None] = {}
        self._unsubscribed: set[str] = set()
        self._layers: dict[str, tuple[str, int]] = {}
        self._wishes: dict[str, Wish] = {}
        self._slots: dict[str, Slots] = {}
        #: Microphones and cameras with an m-line of their own.
        self._own: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self._untold = False

    @property
    def _peer(self) -> Peer:
        peer = self._owner()
        assert peer is not None
        return peer

    # ---- what the client says

    def subscribe(self, track_id: str, layer: str, priority: int) -> None:
        if layer not in LAYERS:
            raise SignalError("invalid_message", f"layer is one of {', '.join(LAYERS)}")
        publication = self._foreign(track_id)
        if not self._peer.may_receive(publication):
            raise SignalError("forbidden", "you may not subscribe to it")
        self._unsubscribed.discard(track_id)
        self._layers[track_id] = (layer, priority)
        if publication.kind not in self._wishes and self._peer.room.ranking.takes_turns(publication):
            self._own[publication.kind].add(track_id)  # who asks for it does not wait for its turn
        self._take(publication)
        self.refresh(publication.kind)
        for slot in self._showing(publication):
            self._connection.media.set_layer(slot.slot_id, layer, priority)
        self._connection.media.set_layer(track_id, layer, priority)

    def unsubscribe(self, track_id: str) -> None:
        publication = self._foreign(track_id)
        self._unsubscribed.add(track_id)
        self._drop(publication)
        self.refresh(publication.kind)

    def receive(self, kind: str, slots: int | None, tracks: Sequence[str]) -> None:
        """Have *slots* slots for *kind*, as many as *tracks* when that is None, or with neither everything."""
        if slots is None and not tracks:
            if self._wishes.pop(kind, None) is not None:
                self._resize(kind, 0)
        else:
            count = min(MOST_SLOTS, len(tracks) if slots is None else slots)
            self._wishes[kind] = Wish(count, tuple(tracks))
            for publication in self._others(kind):
                self._drop(publication)
            self._resize(kind, count)
        for publication in self._others(kind):
            self._take(publication)
        self.refresh(kind)

    def _foreign(self, track_id: str) -> Publication:
        publication = self._peer.room.tracks.get(track_id)
        if publication is None or publication.peer is self._peer:
            raise SignalError("unknown_track", "nobody else publishes such a track")
        return publication

    # ---- what happens in the room

    def known(self, track_ids: Iterable[str]) -> None:
        """The client has been told these in its ``welcome``."""
        for track_id in track_ids:
            self.told.setdefault(track_id, None)

    def published(self, publication: Publication) -> None:
        """Somebody publishes a track, or publishes it in a new form."""
        slots = self._slots.get(publication.kind)
        if slots is not None:
            self._learn(slots, publication)
        self._take(publication)
        self.refresh(publication.kind)

    def withdrawn(self, publication: Publication) -> None:
        """Its publisher has ended it."""
        track_id = publication.track_id
        self._unsubscribed.discard(track_id)
        self._layers.pop(track_id, None)
        self._own[publication.kind].discard(track_id)
        self._connection.unwant(track_id)
        self.refresh(publication.kind)
        if track_id in self.told:
            mid = self.told.pop(track_id)
            peer_id, layers = publication.peer.peer_id, publication.track.layers
            self._peer.say(TrackRemoved(peer_id, track_id, publication.kind, publication.source, mid, layers))

    def muted(self, publication: Publication) -> None:
        if publication.track_id in self.told:
            layers = publication.track.layers or None
            self._peer.say(TrackState(publication.track_id, publication.muted, layers))

    # ---- m-lines of their own, and slots

    def _take(self, publication: Publication) -> None:
        """Receive it on an m-line of its own, or let it take its turn."""
        track_id, kind = publication.track_id, publication.kind
        if track_id in self._unsubscribed:
            return
        if kind not in self._wishes and self._has_own(publication):
            self._connection.want(publication.wanted)
            return
        if kind not in self._wishes and kind not in self._slots:
            self._resize(kind, self._peer.room.ranking.loudest.places if kind == "audio" else CAMERA_SLOTS)
        if track_id not in self.told:
            self.told[track_id] = None
            self._say_added(publication, None)

    def _has_own(self, publication: Publication) -> bool:
        if not self._peer.room.ranking.takes_turns(publication):
            return True
        own = self._own[publication.kind]
        if len(own) < OWN_LINES:
            own.add(publication.track_id)
        return publication.track_id in own

    def _drop(self, publication: Publication) -> None:
        """No m-line of its own any more."""
        self._own[publication.kind].discard(publication.track_id)
        if publication.track_id in self.told:
            self.told[publication.track_id] = None
        self._connection.unwant(publication.track_id)

    def _resize(self, kind: str, count: int) -> None:
        slots = self._slots.get(kind)
        if slots is None:
            if not count:
                return
            slots = self._slots[kind] = Slots(kind, self._peer.room.new_track_id, self._clock)
        for slot in slots.resize(count):
            self._connection.unwant(slot.slot_id)
            if slot.mid is not None:
                self._peer.say(SlotEvent(slot.mid, kind))
        if not len(slots):
            del self._slots[kind]
            return
        for publication in self._others(kind):
            slots.learn(publication.wanted.codecs)
        self._want(slots)

    def _learn(self, slots: Slots, publication: Publication) -> None:
        if slots.learn(publication.wanted.codecs):
            self._want(slots)

    def _want(self, slots: Slots) -> None:
        if slots.codecs:
            for slot in slots.all():
                self._connection.want(slots.wanted(slot))

    def refresh(self, kind: str) -> None:
        """Show on the slots what is worth it now."""
        slots = self._slots.get(kind)
        if slots is None:
            return
        for slot in slots.fill(tuple(islice(self._worth(kind), len(slots)))):
            self._untold = True
            self._turn(slot)

    def _turn(self, slot: Slot) -> None:
        media, publication = self._connection.media, slot.shows
        media.show(slot.slot_id, slot.track)
        if publication is not None and slot.kind == "video":
            media.set_layer(slot.slot_id, *self._layers.get(publication.track_id, ("auto", 0)))

    def _worth(self, kind: str) -> Iterator[Publication]:
        """What may be on a slot, the worthiest first."""
        room, wish, found = self._peer.room, self._wishes.get(kind), set()
        first = [room.tracks[each] for each in wish.tracks if each in room.tracks] if wish is not None else []
        for each in (*first, *room.ranking.worth(kind)):
            if each.kind != kind or each.peer is self._peer or each.track_id in found:
                continue
            if not self._peer.may_receive(each):
                continue
            found.add(each.track_id)
            if each.track_id in self._unsubscribed or each.track_id in self._own[kind]:
                continue
            if wish is not None or room.ranking.takes_turns(each):
                yield each

    def _showing(self, publication: Publication) -> list[Slot]:
        slots = self._slots.get(publication.kind)
        return [slot for slot in slots.all() if slot.shows is publication] if slots is not None else []

    def _others(self, kind: str) -> list[Publication]:
        tracks = self._peer.room.tracks.values()
        peer = self._peer
        return [each for each in tracks if each.kind == kind and each.peer is not peer and peer.may_receive(each)]

    def _slot(self, slot_id: str) -> Slot | None:
        return next((slot for slots in self._slots.values() if (slot := slots.get(slot_id)) is not None), None)

    # ---- what the connection says

    def offering(self, added: Mapping[str, str]) -> None:
        """An offer with these is sent next, by mid."""
        left: dict[str, str] = {}
        for track_id, mid in added.items():
            publication = self._peer.room.tracks.get(track_id)
            slot = self._slot(track_id)
            if slot is not None:
                if slot.mid is not None:
                    left[slot.mid] = slot.kind
                slot.mid, slot.told, self._untold = mid, False, True
            elif publication is not None and self.told.get(track_id) != mid:
                self.told[track_id] = mid
                self._say_added(publication, mid)
        taken = {slot.mid for slots in self._slots.values() for slot in slots.all()}
        for mid, kind in left.items():
            if mid not in taken:
                self._peer.say(SlotEvent(mid, kind))
        self.tell()

    def agreed(self, agreement: Agreement) -> None:
        """An offer was answered."""
        media = self._connection.media
        active = {downlinked.track_id: downlinked for downlinked in agreement.downlinks}
        for track_id, downlinked in active.items():
            publication = self._peer.room.tracks.get(track_id)
            slot = self._slot(track_id)
            if slot is not None:
                media.subscribe(slot.track, downlinked)
                self._turn(slot)
            elif publication is not None:
                media.subscribe(publication.track, downlinked)
                if track_id in self._layers:
                    media.set_layer(track_id, *self._layers[track_id])
        for track_id in media.subscribed() - active.keys():
            media.unsubscribe(track_id)
        media.retain(agreement.ssrcs)
        self._unsubscribed.update(agreement.declined & self._peer.room.tracks.keys())
        for slots in self._slots.values():
            for slot_id in agreement.declined:
                slots.remove(slot_id)

    def tell(self) -> None:
        """Tell the client what its slots show now."""
        if not self._untold or not self._peer.present:
            return
        self._untold = False
        for slots in self._slots.values():
            for slot in slots.all():
                if slot.mid is not None and not slot.told:
                    slot.told = True
                    publication = slot.shows
                    if publication is None:
                        self._peer.say(SlotEvent(slot.mid, slot.kind))
                    else:
                        peer_id, track_id = publication.peer.peer_id, publication.track_id
                        self._peer.say(SlotEvent(slot.mid, slot.kind, peer_id, track_id))

    def tell_again(self) -> None:
        """The client may have missed what it was told of its slots."""
        for slots in self._slots.values():
            for slot in slots.all():
                slot.told = False
        self._untold = True
        self.tell()

    def _say_added(self, publication: Publication, mid: str | None) -> None:
        self._peer.say(
            TrackAdded(
                publication.peer.peer_id,
                publication.track_id,
                publication.kind,
                publication.source,
                mid,
                publication.track.layers,
                publication.muted,
            )
        )
