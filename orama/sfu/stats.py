"""What goes on in a room, for whoever looks on: collected when somebody asks, of objects that count anyway.

Times are in seconds, rates in bits per second on the wire with headers. Counts are totals since the stream or the
subscription began. Nothing here is an address or what a client says of its user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen
from cattrs import Converter

from orama.sfu.downlink import Downlink
from orama.sfu.qualities import Quality, total
from orama.sfu.samples import state
from orama.sfu.stream import Stream

if TYPE_CHECKING:
    from orama.sfu.peer import Peer, Publication
    from orama.sfu.room import Room

#: Subscriptions that are told of in one answer; in larger rooms they are left out unless one peer is asked for.
MOST_SUBSCRIPTIONS = 1000
#: Seconds for which an answer about a whole room is good, so that asking often costs little.
FRESH = 0.5

_converter = Converter()


@frozen
class StreamStats:
    """One encoding of a track as its publisher sends it."""

    rid: str
    #: ``low``, ``mid`` or ``high`` of simulcast; None without.
    layer: str | None
    #: 0 while it is silent.
    bitrate: float
    packets: int
    #: That never came, or have not yet.
    lost: int
    #: That came by RTX.
    recovered: int
    jitter: float
    #: Since the last packet.
    silent_for: float
    #: Packets that were asked for again; tries count.
    nacks: int
    keyframes: int
    keyframe_requests: int


@frozen
class TrackStats:
    """A published track."""

    track_id: str
    kind: str
    source: str
    codec: str | None
    muted: bool
    #: ``low``, ``mid``, ``high`` as far as there are simulcast or spatial layers.
    layers: tuple[str, ...]
    #: Peers who get it.
    subscribers: int
    streams: tuple[StreamStats, ...]
    #: What it can be had in, the cheapest first.
    qualities: tuple[Quality, ...]


@frozen
class SubscriptionStats:
    """A track on its way to a peer."""

    track_id: str
    #: The publisher's.
    peer_id: str | None
    kind: str
    #: ``forwarding``; ``waiting`` for a first packet or a keyframe; ``muted``; ``paused`` for want of bandwidth.
    state: str
    #: As the client asked for it.
    wanted: str
    priority: int
    #: That is forwarded.
    layer: str | None
    #: What the bandwidth is enough for, layers counted from 0; None while nobody has said.
    allowed: Quality | None
    #: None before it has been read twice, a second apart.
    bitrate: float | None
    packets: int
    #: As the client reports it.
    lost: int
    #: Packets that the client asked for again, and those that it got.
    nacks: int
    resends: int
    keyframe_requests: int
    #: From one layer to another.
    switches: int
    #: Packets that went no further, by reason.
    dropped: Mapping[str, int]


@frozen
class PeerStats:
    """Somebody in the room."""

    peer_id: str
    user_id: str
    #: ``connecting``, ``connected``, or ``away`` while its signalling is.
    state: str
    joined_at: float
    #: None before the first report.
    round_trip: float | None
    #: What its link is believed to take; None where nothing says so.
    estimate: float | None
    tracks: tuple[TrackStats, ...]
    subscriptions: tuple[SubscriptionStats, ...]


@frozen
class RoomStats:
    """A room at one moment."""

    #: Seconds since 1970.
    at: float
    peers: tuple[PeerStats, ...]
    #: Subscriptions that there are and that are not told of.
    left_out: int


def room_stats(room: Room, now: float, peer_id: str | None = None, most: int = MOST_SUBSCRIPTIONS) -> RoomStats:
    """What goes on in *room*; 6 µs a subscription, and as much again to make JSON of it.

    :param peer_id: tell of this peer alone.
    :param most: subscriptions beyond which none is told of.
    """
    peers = [peer for peer in room.peers.values() if peer_id in (None, peer.peer_id)]
    found = {peer.peer_id: tuple(peer.connection.media.subscriptions()) for peer in peers}
    count = sum(map(len, found.values()))
    whole = peer_id is not None or count <= most
    shown = tuple(_peer(room, peer, found[peer.peer_id] if whole else (), now) for peer in peers)
    return RoomStats(now, shown, 0 if whole else count)


def _peer(room: Room, peer: Peer, subscriptions: tuple[Downlink, ...], now: float) -> PeerStats:
    media = peer.connection.media.stats()
    return PeerStats(
        peer.peer_id,
        peer.user_id,
        peer.state,
        peer.joined_at,
        media.round_trip,
        media.estimate,
        tuple(_track(publication, now) for publication in peer.publications.values()),
        tuple(_subscription(room, downlink) for downlink in subscriptions),
    )


def _track(publication: Publication, now: float) -> TrackStats:
    track, described = publication.track, publication.described()
    return TrackStats(
        publication.track_id,
        publication.kind,
        publication.source,
        described["codec"],
        publication.muted,
        track.layers,
        track.subscribers,
        tuple(_stream(stream, now) for stream in track.ranked()),
        track.qualities(now),
    )


def _stream(stream: Stream, now: float) -> StreamStats:
    tally, reception = stream.tally, stream.reception
    return StreamStats(
        stream.rid,
        _layer(stream),
        round(total(stream.meter.rates)),
        0 if reception is None else reception.received,
        max(0, stream.expected - reception.received) if reception is not None else 0,
        tally.recovered,
        0.0 if reception is None else round(reception.jitter / stream.rate, 6),
        0.0 if reception is None else round(max(0.0, now - stream.last_arrival), 3),
        tally.nacks,
        tally.keyframes,
        tally.keyframe_requests,
    )


def _subscription(room: Room, downlink: Downlink) -> SubscriptionStats:
    track, tally = downlink.track, downlink.tally
    publication = room.tracks.get(track.track_id)
    return SubscriptionStats(
        track.track_id,
        None if publication is None else publication.peer.peer_id,
        track.kind,
        state(downlink),
        downlink.choice.layer,
        downlink.choice.priority,
        downlink.shown,
        downlink.choice.allowed,
        None if tally.bitrate is None else round(tally.bitrate),
        downlink.packets_sent,
        downlink.packets_lost,
        tally.nacks,
        tally.resends,
        tally.keyframe_requests,
        tally.switches,
        dict(tally.dropped),
    )


def as_json(stats: RoomStats) -> dict[str, Any]:
    """The same as JSON has it, with the names of the fields."""
    value: dict[str, Any] = _converter.unstructure(stats)
    return value


def _layer(stream: Stream) -> str | None:
    track = stream.track
    return track.layers[track.rids.index(stream.rid)] if len(track.rids) > 1 and stream.rid in track.rids else None
