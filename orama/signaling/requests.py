"""What a client asks of its place in the room: which message is which call of the peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orama.signaling import messages
from orama.signaling.interfaces import Peer


def _offer(peer: Peer, request: messages.Offer) -> None:
    peer.offer(request.sdp, request.sources, request.encrypted)


def _answer(peer: Peer, request: messages.Answer) -> None:
    peer.answer(request.sdp)


def _candidate(peer: Peer, request: messages.IceCandidate) -> None:
    peer.candidate(request.candidate, request.sdp_mid, request.sdp_m_line_index, request.username_fragment)


def _track_state(peer: Peer, request: messages.TrackState) -> None:
    peer.track_state(request.track_id, request.muted)


def _subscribe(peer: Peer, request: messages.Subscribe) -> None:
    peer.subscribe(request.track_id, request.layer, request.priority)


def _unsubscribe(peer: Peer, request: messages.Unsubscribe) -> None:
    peer.unsubscribe(request.track_id)


def _receive(peer: Peer, request: messages.Receive) -> None:
    peer.receive(request.kind, request.last_n, request.tracks)


def _kick(peer: Peer, request: messages.Kick) -> None:
    peer.kick(request.peer_id)


def _mute(peer: Peer, request: messages.Mute) -> None:
    peer.mute(request.track_id)


#: The peer raises SignalError for what it does not obey.
CALLS: dict[type[Any], Callable[[Peer, Any], None]] = {
    messages.Offer: _offer,
    messages.Answer: _answer,
    messages.IceCandidate: _candidate,
    messages.TrackState: _track_state,
    messages.Subscribe: _subscribe,
    messages.Unsubscribe: _unsubscribe,
    messages.Receive: _receive,
    messages.Kick: _kick,
    messages.Mute: _mute,
}
#: What only an owner may ask.
OWNERS = frozenset({messages.Kick, messages.Mute})
