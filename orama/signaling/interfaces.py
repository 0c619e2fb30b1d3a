"""What a session needs of the rest of the node, and no more of it: the rooms, who may come in, credentials, the socket.

``hierarchy`` hands in the real ones; the tests of this package bring small ones of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from orama.sfu.events import Event, PeerInfo


class Visitor(Protocol):
    """Who authenticated (``rest.auth.Principal``)."""

    @property
    def namespace(self) -> str: ...
    @property
    def role(self) -> str:
        """``owner`` or ``member``."""

    @property
    def user_id(self) -> str | None:
        """The ``sub`` of a token; None with an API key, whose client names its user itself."""

    @property
    def rooms(self) -> frozenset[str] | None:
        """The rooms that may be joined; None is any."""

    @property
    def permissions(self) -> frozenset[str]: ...


class Peer(Protocol):
    """A place in a room (``sfu.peer.Peer``). What cannot be obeyed raises SignalError."""

    @property
    def peer_id(self) -> str: ...
    @property
    def left(self) -> bool:
        """It is in the room no more."""

    def others(self) -> tuple[PeerInfo, ...]: ...
    def start(self) -> None: ...
    def attach(self, send: Callable[[Event], None]) -> None: ...
    def detach(self) -> None: ...
    def leave(self, reason: str = "left") -> None: ...
    def offer(self, sdp: str, sources: Mapping[str, str] = ...) -> None: ...
    def answer(self, sdp: str) -> None: ...
    def candidate(
        self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None, username_fragment: str | None
    ) -> None: ...
    def track_state(self, track_id: str, muted: bool) -> None: ...
    def subscribe(self, track_id: str, layer: str, priority: int) -> None: ...
    def unsubscribe(self, track_id: str) -> None: ...
    def kick(self, peer_id: str) -> None: ...
    def mute(self, track_id: str) -> None: ...


class Rooms(Protocol):
    """The rooms of this node (``sfu.room.Rooms``)."""

    def get(self, namespace: str, room_id: str) -> Any | None: ...
    def create(self, namespace: str, room_id: str, max_participants: int) -> Any: ...
    def join(
        self,
        namespace: str,
        room_id: str,
        *,
        user_id: str,
        metadata: Any,
        permissions: frozenset[str],
        owner: bool,
        send: Callable[[Event], None],
    ) -> Peer: ...


class Socket(Protocol):
    """The client's WebSocket."""

    def send(self, text: str) -> None:
        """Send one text frame, or drop the client when it does not read."""

    def close(self, code: int, reason: str) -> None:
        """Send what is waiting, then close; nothing is sent after it."""


class Record(Protocol):
    """A room that is claimed."""

    @property
    def max_participants(self) -> int: ...


class Directory(Protocol):
    """Which node has which room (``cluster.rooms.RoomDirectory``)."""

    async def claim(self, namespace: str, room_id: str) -> Record:
        """Make the room and take it to this node, or find it.

        :raises NotFound: the namespace has no WebRTC, or its rooms do not come into being by joining.
        """


class Grant(Protocol):
    """TURN credentials."""

    @property
    def uris(self) -> tuple[str, ...]: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...
    @property
    def ttl(self) -> int: ...


class Access(Protocol):
    """Who makes TURN credentials (``cluster.turn_access.TurnAccess``)."""

    async def issue(self, namespace: str, user_id: str) -> Grant:
        """:raises NotFound: the namespace has no WebRTC."""
