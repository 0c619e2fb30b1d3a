"""What the SFU tells a client: one frozen class per signalling message of the contract, section 4.

``signaling.messages`` turns them into JSON by rule: the class name gives ``type`` in kebab case, the
fields their camelCase names, and None is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class TrackInfo:
    """A published track as another client sees it; ``mid`` is of the receiver's own connection."""

    peer_id: str
    track_id: str
    kind: str
    source: str
    muted: bool = False
    mid: str | None = None
    layers: tuple[str, ...] = ()


@frozen
class PeerInfo:
    peer_id: str
    user_id: str
    metadata: Any
    tracks: tuple[TrackInfo, ...] = ()


@frozen
class Offer:
    sdp: str


@frozen
class Answer:
    sdp: str


@frozen
class IceCandidate:
    candidate: str
    sdp_mid: str | None
    sdp_m_line_index: int | None  # JSON: sdpMLineIndex
    username_fragment: str | None = None


@frozen
class PeerJoined:
    peer_id: str
    user_id: str
    metadata: Any


@frozen
class PeerLeft:
    peer_id: str
    reason: str


@frozen
class TrackAdded:
    peer_id: str
    track_id: str
    kind: str
    source: str
    mid: str | None
    layers: tuple[str, ...] = ()
    muted: bool = False


@frozen
class TrackRemoved:
    peer_id: str
    track_id: str
    kind: str
    source: str
    mid: str | None
    layers: tuple[str, ...] = ()


@frozen
class TrackState:
    track_id: str
    muted: bool
    #: Those of the track where it has any.
    layers: tuple[str, ...] | None = None


@frozen
class Layers:
    """To a publisher: which layers of its track somebody watches, lowest first."""

    track_id: str
    mid: str
    layers: tuple[str, ...]
    #: Of the same layers, where it named them.
    rids: tuple[str, ...]


@frozen
class Slot:
    """What the m-line of a slot shows from now on; without a track nothing."""

    mid: str
    kind: str
    peer_id: str | None = None
    track_id: str | None = None


@frozen
class ActiveSpeakers:
    #: Mappings with ``peerId`` and ``level`` (0 to 127, −dBov turned round: 127 is loudest).
    peers: tuple[Mapping[str, Any], ...]


@frozen
class DataChannel:
    peer_id: str
    label: str
    id: int


@frozen
class RoomClosed:
    reason: str


@frozen
class Kicked:
    reason: str


@frozen
class Error:
    code: str
    message: str
    fatal: bool = False


Event = (
    Offer
    | Answer
    | IceCandidate
    | PeerJoined
    | PeerLeft
    | TrackAdded
    | TrackRemoved
    | TrackState
    | Layers
    | Slot
    | ActiveSpeakers
    | DataChannel
    | RoomClosed
    | Kicked
    | Error
)
