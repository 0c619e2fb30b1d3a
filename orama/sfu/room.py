"""A room: who is in it, what they publish, and who speaks.

A room forwards everything to everybody unless a peer says otherwise; ``sfu.rooms`` holds those of this node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from orama.sfu._sctp_channels import SctpTransport
from orama.sfu.allocator import REST, SCREEN, SPEAKER
from orama.sfu.data import DataCounters, DataFanout, Transport
from orama.sfu.events import ActiveSpeakers, Event, PeerJoined, PeerLeft, RoomClosed
from orama.sfu.occurrences import (
    PARTICIPANT_JOINED,
    PARTICIPANT_LEFT,
    ROOM_FINISHED,
    TRACK_PUBLISHED,
    TRACK_UNPUBLISHED,
)
from orama.sfu.peer import Peer, Publication
from orama.sfu.ranking import Ranking
from orama.sfu.speakers import ActiveSpeakers as Speakers

if TYPE_CHECKING:
    from orama.sfu.rooms import Rooms

_log = Logger()


class Room:
    """One room of this node."""

    def __init__(
        self,
        rooms: Rooms,
        namespace: str,
        room_id: str,
        max_participants: int,
        clock: IReactorTime,
        loudest: int = 0,
        counted: DataCounters | None = None,
    ) -> None:
        self.namespace = namespace
        self.room_id = room_id
        self.max_participants = max_participants
        self.created_at: float = clock.seconds()
        self.peers: dict[str, Peer] = {}
        self.tracks: dict[str, Publication] = {}
        self.data = DataFanout(clock, counted)
        self.ranking = Ranking(loudest, self._ranked)
        self.closed = False
        #: What was last told of what goes on here.
        self.stats: Mapping[str, Any] | None = None
        self._rooms = rooms
        self._speakers = Speakers()
        self._speaker = ""
        self._has_data: set[str] = set()
        self._empty_call: IDelayedCall | None = None

    @property
    def participants(self) -> int:
        return len(self.peers)

    @property
    def has_data(self) -> bool:
        """Whether anybody here has data channels."""
        return bool(self._has_data)

    def _others(self, peer: Peer | None) -> list[Peer]:
        return [other for other in self.peers.values() if other is not peer]

    def _tell(self, event: Event, but: Peer | None = None) -> None:
        for other in self._others(but):
            other.say(event)

    def add(self, peer: Peer) -> None:
        if self._empty_call is not None:
            self._empty_call.cancel()
            self._empty_call = None
        self._tell(PeerJoined(peer.peer_id, peer.user_id, peer.metadata))
        self.peers[peer.peer_id] = peer
        self._rooms.occurred(PARTICIPANT_JOINED, self, peer.described())
        if self.has_data:
            self._expect_data(peer)

    def remove(self, peer: Peer, reason: str) -> None:
        """*peer* leaves; called by itself."""
        self.peers.pop(peer.peer_id, None)
        for publication in list(peer.publications.values()):
            self.withdraw(publication)
        peer.publications.clear()
        self.close_data(peer)
        self.ranking.forget(peer.peer_id)
        self._rooms.released(peer)
        self._tell(PeerLeft(peer.peer_id, reason))
        self._rooms.occurred(PARTICIPANT_LEFT, self, {**peer.described(), "reason": reason})
        if not self.peers and not self.closed:
            self._rooms.watch_empty(self)

    def publish(self, publication: Publication) -> None:
        self.tracks[publication.track_id] = publication
        self.republish(publication)
        self._rooms.occurred(TRACK_PUBLISHED, self, publication.described())

    def republish(self, publication: Publication) -> None:
        """The track is new, or has a new form."""
        self.ranking.add(publication, self._rooms.now())
        self._rate(publication)
        for other in self._others(publication.peer):
            other.track_published(publication)

    def withdraw(self, publication: Publication) -> None:
        if self.tracks.pop(publication.track_id, None) is not None:
            self.ranking.remove(publication)
            self._rooms.occurred(TRACK_UNPUBLISHED, self, publication.described())
            for other in self._others(publication.peer):
                other.track_withdrawn(publication)

    def set_muted(self, publication: Publication, muted: bool, by: Peer | None) -> None:
        """Forward nothing of the track while it is muted, and tell everybody but *by*."""
        publication.muted = publication.track.muted = muted
        for other in self._others(by):
            other.muted(publication)

    def relayered(self, publication: Publication) -> None:
        """The track has other layers to choose from than before."""
        for other in self._others(publication.peer):
            other.muted(publication)

    def open_data(self, peer: Peer, sctp: SctpTransport) -> None:
        """*peer* has data channels now; so everybody needs them."""
        first = not self._has_data
        self._has_data.add(peer.peer_id)
        self.data.join(peer.peer_id, cast(Transport, sctp), peer.announce, lambda: "data" in peer.permissions)
        if first:
            for other in self._others(peer):
                self._expect_data(other)
                other.data_in_room()

    def _expect_data(self, peer: Peer) -> None:
        if peer.may_use_data:
            self.data.expect(peer.peer_id)

    def close_data(self, peer: Peer) -> None:
        """*peer* has no data channels any more."""
        self._has_data.discard(peer.peer_id)
        self.data.leave(peer.peer_id)

    def secured(self, seconds: float) -> None:
        self._rooms.on_secured(seconds)

    def new_track_id(self) -> str:
        while True:
            track_id = f"t{self._rooms.new_id()}"
            if track_id not in self.tracks:
                return track_id

    def tick(self, now: float) -> None:
        levels: dict[str, int] = {}
        for peer in list(self.peers.values()):
            try:
                peer.connection.media.tick(now)
            except Exception:  # the others go on
                _log.failure("the tick of peer {peer_id} failed", peer_id=peer.peer_id)
                peer.leave("timeout")
                continue
            sound = (each for each in peer.publications.values() if each.kind == "audio" and not each.muted)
            audio = [each.track.audio_level for each in sound]
            if audio:
                levels[peer.peer_id] = max(audio)
        speaking = self._speakers.update(levels, now)
        if self._speakers.looked == now:
            self.ranking.speak(self._speakers.loud, now)
        if speaking is not None:
            self._speaker = speaking[0][0] if speaking else self._speaker
            for publication in self.tracks.values():
                self._rate(publication)
            self._tell(ActiveSpeakers(tuple({"peerId": peer_id, "level": level} for peer_id, level in speaking)))

        for peer in list(self.peers.values()):
            peer.subscriptions.tell()

    def _rate(self, publication: Publication) -> None:
        """Say what comes first where a subscriber's bandwidth is not enough: who speaks or spoke last, then screens."""
        rank = SCREEN if publication.source.startswith("screen") else REST
        publication.track.rank = SPEAKER if publication.peer.peer_id == self._speaker else rank

    def _ranked(self, kind: str) -> None:
        """Something else of a kind is worth it now."""
        for peer in self.peers.values():
            peer.subscriptions.refresh(kind)

    def check(self, now: float) -> None:
        for peer in list(self.peers.values()):
            peer.check(now)

    def empty_in(self, clock: IReactorTime, seconds: float, then: Callable[[], None]) -> None:
        """Say *then* when nobody has come in for so long."""

        def over() -> None:
            self._empty_call = None
            then()

        if self._empty_call is None:
            self._empty_call = clock.callLater(seconds, over)

    def close(self, reason: str) -> None:
        """Tell everybody, and send them away."""
        self.closed = True
        if self._empty_call is not None:
            self._empty_call.cancel()
            self._empty_call = None
        peers, self.peers = list(self.peers.values()), {}
        for peer in peers:
            peer.say(RoomClosed(reason))
        for peer in peers:
            peer.leave("room-closed")
        self._rooms.occurred(ROOM_FINISHED, self, {"reason": reason})
        self.ranking.close()
