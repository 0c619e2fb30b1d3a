"""One client in a room: what it may do, what it publishes and subscribes to, and how it hears of the others.

Everything here is synchronous; what cannot be obeyed raises :class:`SignalError`. Packets and descriptions are the
``connection``'s, membership is the ``room``'s. A peer whose signalling is away keeps its media and its place for a
while; what happens meanwhile waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from orama.errors import SignalError
from orama.permissions import allows, allows_some
from orama.settings import SfuSettings
from orama.sfu._sctp_channels import SctpTransport
from orama.sfu.agreement import Agreement
from orama.sfu.connection import Connect, Connection
from orama.sfu.events import (
    ActiveSpeakers,
    DataChannel,
    Error,
    Event,
    Kicked,
    Layers,
    PeerInfo,
    Slot,
    TrackInfo,
    TrackState,
)
from orama.sfu.lines import Wanted
from orama.sfu.ranking import SOURCES
from orama.sfu.red import is_red
from orama.sfu.subscriptions import KINDS, Subscriptions
from orama.sfu.track import Track
from orama.sfu.values import Uplinked
from orama.wire import sdp

if TYPE_CHECKING:
    from orama.sfu.room import Room

#: Events that wait for a client without a socket; one that misses more has to join anew.
MAX_WAITING = 1024

_log = Logger()


@define(eq=False)
class Publication:
    """A track as the room knows it."""

    peer: Peer
    uplinked: Uplinked
    source: str
    track: Track
    muted: bool = False

    @property
    def track_id(self) -> str:
        return self.uplinked.track_id

    @property
    def kind(self) -> str:
        return self.uplinked.kind

    def described(self) -> dict[str, Any]:
        """For ``Room``'s occurrences."""
        uplinked = self.uplinked
        return {
            "peer_id": self.peer.peer_id,
            "user_id": self.peer.user_id,
            "track_id": uplinked.track_id,
            "kind": uplinked.kind,
            "source": self.source,
            "codec": uplinked.codecs[0].mime.partition("/")[2] if uplinked.codecs else None,
            "layers": list(self.track.layers),
            "muted": self.muted,
        }

    @property
    def wanted(self) -> Wanted:
        """What a subscriber is offered. RED last, so that nothing is offered anew when the publisher turns to it."""
        uplinked = self.uplinked
        codecs = tuple(sorted(uplinked.codecs, key=is_red))
        return Wanted(uplinked.track_id, self.peer.peer_id, uplinked.kind, codecs, frozenset(uplinked.extensions))


class Peer:
    """A place in a room. ``Rooms.join`` makes one; say ``start`` once the client has its ``welcome``."""

    def __init__(
        self,
        room: Room,
        peer_id: str,
        user_id: str,
        metadata: Any,
        permissions: frozenset[str],
        owner: bool,
        send: Callable[[Event], None],
        clock: IReactorTime,
        settings: SfuSettings,
        connect: Connect,
    ) -> None:
        self.room = room
        self.peer_id = peer_id
        self.user_id = user_id
        self.metadata = metadata
        self.permissions = permissions
        self.owner = owner
        self.joined_at = clock.seconds()
        self.publications: dict[str, Publication] = {}
        self.left = False
        self._clock = clock
        self._settings = settings
        self._sink: Callable[[Event], None] | None = send
        self._waiting: list[Event] = []
        self._started = False
        self._resume_call: IDelayedCall | None = None
        self._sources: Mapping[str, str] = {}
        self._encrypted = True
        self._secured = False
        self._warned: set[str] = set()
        self.connection: Connection = connect(self, self.may_use_data)
        self.subscriptions = Subscriptions(self, self.connection, clock)

    @property
    def may_subscribe(self) -> bool:
        """To anything at all."""
        return allows_some(self.permissions, "subscribe")

    @property
    def may_use_data(self) -> bool:
        """To receive it at least."""
        return not self.permissions.isdisjoint(("data", "subscribe"))

    def may_receive(self, publication: Publication) -> bool:
        return allows(self.permissions, "subscribe", publication.kind, publication.source)

    @property
    def present(self) -> bool:
        """Whether the client hears at once what it is told."""
        return self._sink is not None and self._started

    def info(self, told: Mapping[str, str | None]) -> PeerInfo:
        """This peer as another sees it, which has been *told* these tracks."""
        tracks = tuple(
            TrackInfo(
                self.peer_id,
                publication.track_id,
                publication.kind,
                publication.source,
                publication.muted,
                told.get(publication.track_id),
                publication.track.layers,
            )
            for publication in self.publications.values()
        )
        return PeerInfo(self.peer_id, self.user_id, self.metadata, tracks)

    @property
    def state(self) -> str:
        """``connecting`` until there are keys, ``connected`` from then on, ``away`` while its signalling is."""
        if self._sink is None:
            return "away"
        return "connected" if self._secured else "connecting"

    def described(self) -> dict[str, Any]:
        """For ``Room``'s occurrences."""
        return {"peer_id": self.peer_id, "user_id": self.user_id, "metadata": self.metadata}

    # ---- signalling's side

    def others(self) -> tuple[PeerInfo, ...]:
        """Everybody else in the room, now."""
        if not self._started:
            self._waiting.clear()
        told = self.subscriptions.told
        found = tuple(peer.info(told) for peer in self.room.peers.values() if peer is not self)
        self.subscriptions.known(track.track_id for info in found for track in info.tracks)
        return found

    def start(self) -> None:
        """The client has had its ``welcome``: events and offers flow from now on."""
        if self.left or self._started:
            return
        self._started = True
        self._flush()
        for publication in self.room.tracks.values():
            if publication.peer is not self:
                self.track_published(publication)
        if self.room.has_data:
            self.connection.want_data()
        self.connection.flow()

    def attach(self, send: Callable[[Event], None]) -> None:
        """A new socket takes the place: it gets what has waited, and everything from now on."""
        if self._resume_call is not None and self._resume_call.active():
            self._resume_call.cancel()
        self._resume_call = None
        if self.left:
            send(Kicked("timeout"))
            return
        self._sink = send
        if self._started:
            self._flush()
            self.subscriptions.tell_again()
            self.connection.flow()

    def detach(self) -> None:
        """The socket is gone; another may come within the resume timeout."""
        if self.left or self._sink is None:
            return
        self._sink = None
        self.connection.hold()
        self._resume_call = self._clock.callLater(self._settings.resume_timeout, self._given_up)

    def _given_up(self) -> None:
        self._resume_call = None
        self.leave("timeout")

    def leave(self, reason: str = "left") -> None:
        """Leave the room; nothing happens the second time."""
        if self.left:
            return
        self.left = True
        if self._resume_call is not None and self._resume_call.active():
            self._resume_call.cancel()
        self._resume_call = None
        sink, self._sink = self._sink, None
        self._waiting.clear()
        self.room.remove(self, reason)
        if sink is not None and reason not in ("left", "room-closed"):
            # Whoever leaves by itself, or hears that the room is closed, needs no more words.
            sink(Kicked(reason))

    def offer(self, text: str, sources: Mapping[str, str] | None = None, encrypted: bool = True) -> None:
        """The client's offer; *sources* names what its m-lines are, by mid.

        :param encrypted: whether frames may be encrypted end to end, so that they have to stay as they are.
        """
        self._check_here()
        self._sources, self._encrypted = sources or {}, encrypted
        self.connection.remote_offer(text)

    def answer(self, text: str) -> None:
        self._check_here()
        self.connection.remote_answer(text)

    def candidate(
        self,
        candidate: str,
        sdp_mid: str | None = None,
        sdp_m_line_index: int | None = None,
        username_fragment: str | None = None,
    ) -> None:
        self._check_here()
        self.connection.remote_candidate(candidate)

    def track_state(self, track_id: str, muted: bool) -> None:
        """Mute or unmute a track of our own, named by its id or its mid."""
        self._check_here()
        publication = self.publications.get(track_id)
        if publication is None:
            mids = (each for each in self.publications.values() if each.uplinked.mid == track_id)
            publication = next(mids, None)
        if publication is None:
            raise SignalError("unknown_track", "you publish no such track")
        self.room.set_muted(publication, muted, self)

    def subscribe(self, track_id: str, layer: str = "auto", priority: int = 0) -> None:
        self._check_here()
        if not self.may_subscribe:
            raise SignalError("forbidden", "you may not subscribe")
        self.subscriptions.subscribe(track_id, layer, priority)

    def unsubscribe(self, track_id: str) -> None:
        self._check_here()
        self.subscriptions.unsubscribe(track_id)

    def receive(self, kind: str, slots: int | None = None, tracks: Sequence[str] = ()) -> None:
        """Receive of a kind what is worth it most, on so many slots, *tracks* first; with neither, everything."""
        self._check_here()
        if not self.may_subscribe:
            raise SignalError("forbidden", "you may not subscribe")
        if kind not in KINDS:
            raise SignalError("invalid_message", f"kind is one of {', '.join(KINDS)}")
        self.subscriptions.receive(kind, slots, tracks)

    def kick(self, peer_id: str) -> None:
        self._check_owner()
        peer = self.room.peers.get(peer_id)
        if peer is None:
            raise SignalError("invalid_message", "there is no such peer in the room")
        peer.leave("kicked")

    def mute(self, track_id: str) -> None:
        """As an owner: stop forwarding a track until its publisher unmutes it."""
        self._check_owner()
        publication = self.room.tracks.get(track_id)
        if publication is None:
            raise SignalError("unknown_track", "there is no such track in the room")
        self.room.set_muted(publication, True, None)

    def _check_here(self) -> None:
        if self.left:
            raise SignalError("not_joined", "you are not in the room any more")

    def _check_owner(self) -> None:
        self._check_here()
        if not self.owner:
            raise SignalError("forbidden", "this needs the role owner")

    # ---- the room's side

    def say(self, event: Event) -> None:
        """Tell the client, now or when it is back."""
        if self.left:
            return
        if self._sink is not None and self._started:
            self._sink(event)
        elif not isinstance(event, ActiveSpeakers | Slot):
            self._waiting.append(event)
            if len(self._waiting) > MAX_WAITING:
                _log.info("peer {peer_id} has missed too much", peer_id=self.peer_id)
                self.leave("timeout")

    def _flush(self) -> None:
        while self._waiting and self._sink is not None:
            self._sink(self._waiting.pop(0))

    def track_published(self, publication: Publication) -> None:
        """Somebody publishes a track, or publishes it in a new form."""
        if self._started and self.may_receive(publication):
            self.subscriptions.published(publication)

    def track_withdrawn(self, publication: Publication) -> None:
        self.subscriptions.withdrawn(publication)

    def data_in_room(self) -> None:
        """Somebody has data channels: the others need them too."""
        if self._started:
            self.connection.want_data()

    def check(self, now: float) -> None:
        """Leave when the client's connectivity checks have stopped for good."""
        if self.connection.silent_for(now) > self._settings.media_timeout:
            _log.info("peer {peer_id} is silent", peer_id=self.peer_id)
            self.leave("timeout")
            return
        self.connection.check(now)

    # ---- the connection's side

    def may_publish(self, kind: str, mid: str) -> bool:
        here = (each for each in self.publications.values() if each.uplinked.mid == mid)
        known = next(here, None)
        source = known.source if known is not None else self._sources.get(mid) or SOURCES.get(kind, "")
        return allows(self.permissions, "publish", kind, source)

    def name_track(self, proposed: str | None) -> str:
        if proposed is not None and sdp.token(proposed) and proposed not in self.room.tracks:
            return proposed
        return self.room.new_track_id()

    def offering(self, added: Mapping[str, str]) -> None:
        self.subscriptions.offering(added)

    def agreed(self, agreement: Agreement, forbidden: frozenset[str]) -> None:
        if "publish" in forbidden:
            self._warn("publish", "you may not publish: what you offered to send is not taken")
        if "data" in forbidden:
            self._warn("data", "you may not use data channels")
        if "tracks" in forbidden:
            self._warn("tracks", f"you may publish {self._settings.max_tracks} tracks: further ones are not taken")
        self._publish(agreement.uplinks)
        self.subscriptions.agreed(agreement)

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.say(Error("forbidden", text))

    def _publish(self, uplinks: tuple[Uplinked, ...]) -> None:
        media = self.connection.media
        now = {uplinked.track_id: uplinked for uplinked in uplinks}
        gone = [publication for track_id, publication in self.publications.items() if track_id not in now]
        for publication in gone:
            del self.publications[publication.track_id]
            self.room.withdraw(publication)
        media.publish(uplinks)
        for track_id, uplinked in now.items():
            before = self.publications.get(track_id)
            if before is None:
                source = self._sources.get(uplinked.mid) or SOURCES[uplinked.kind]
                before = self.publications[track_id] = Publication(self, uplinked, source, media.tracks[track_id])
                self.room.publish(before)
            elif before.uplinked != uplinked:
                wanted = before.wanted
                before.uplinked, before.track = uplinked, media.tracks[track_id]
                before.track.muted = before.muted
                if before.wanted != wanted:
                    self.room.republish(before)
            self._look_after(before)

    def _look_after(self, publication: Publication) -> None:
        """Hear from the track which layers it has, and which of them are watched."""
        uplinked, track = publication.uplinked, publication.track

        def asks(layers: tuple[str, ...]) -> None:
            rids = track.rids[: len(layers)] if uplinked.rids else ()
            self.say(Layers(uplinked.track_id, uplinked.mid, layers, rids))

        track.opaque = self._encrypted
        track.asks = asks
        track.relayered = lambda: self.room.relayered(publication)

    def data_opened(self, sctp: SctpTransport) -> None:
        if "data" not in self.permissions:
            self._warn("data", "you may receive data, but not send it")
        self.room.open_data(self, sctp)

    def data_closed(self) -> None:
        self.room.close_data(self)

    def announce(self, event: DataChannel | Error) -> None:
        self.say(event)

    def secured(self) -> None:
        if not self._secured:
            self._secured = True
            self.room.secured(self._clock.seconds() - self.joined_at)

    def broken(self, error: SignalError | None) -> None:
        if error is None:
            self.say(Kicked("left"))
            self.leave("left")
            return
        self.say(Error(error.code, error.message, error.fatal))
        self.leave("timeout")

    def muted(self, publication: Publication) -> None:
        """*publication* has become muted or has ceased to be."""
        if publication.peer is self:
            self.say(TrackState(publication.track_id, publication.muted))
        else:
            self.subscriptions.muted(publication)
