"""What a session needs of the rest, and no more of it: rooms, who may come in, credentials, the socket, other nodes.

``hierarchy`` hands in the real ones; the tests of this package bring small ones of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from orama.errors import Unavailable
from orama.sfu.events import Event, PeerInfo


class OwnerGone(Unavailable):
    """Nobody listens where the SFU of a room was: its process is gone, and its rooms with it."""


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
    def offer(self, sdp: str, sources: Mapping[str, str] = ..., encrypted: bool = ...) -> None: ...
    def answer(self, sdp: str) -> None: ...
    def candidate(
        self, candidate: str, sdp_mid: str | None, sdp_m_line_index: int | None, username_fragment: str | None
    ) -> None: ...
    def track_state(self, track_id: str, muted: bool) -> None: ...
    def subscribe(self, track_id: str, layer: str, priority: int) -> None: ...
    def unsubscribe(self, track_id: str) -> None: ...
    def receive(self, kind: str, slots: int | None, tracks: Sequence[str]) -> None: ...
    def kick(self, peer_id: str) -> None: ...
    def mute(self, track_id: str) -> None: ...


class Rooms(Protocol):
    """The rooms of this node (``sfu.rooms.Rooms``)."""

    def serves(self, namespace: str) -> bool:
        """Whether rooms of *namespace* can be here."""

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
    def node_id(self) -> str:
        """Where it is."""

    @property
    def max_participants(self) -> int: ...


class Directory(Protocol):
    """Which node has which room (``cluster.rooms.RoomDirectory``)."""

    @property
    def node_id(self) -> str:
        """This node's."""

    async def claim(self, namespace: str, room_id: str, *, gone: Collection[str] = ()) -> Record:
        """Make the room and give it to a node, or find it.

        :param gone: nodes whose SFU of the namespace does not answer any more.
        :raises NotFound: the namespace has no WebRTC, or its rooms do not come into being by joining.
        :raises Unavailable: nobody can have the room now.
        """


class Hop(Protocol):
    """A session whose room is elsewhere, as its trunk sees it."""

    def forwarded(self, text: str) -> None:
        """The SFU said something to the client."""

    def trunk_lost(self, code: int, reason: str) -> None:
        """The SFU, or what lies between, has closed the trunk."""


class Trunk(Protocol):
    """One client's way to the node of its room."""

    @property
    def answered(self) -> Awaitable[bool]:
        """Whether the SFU said anything at all; False when the trunk was closed before that."""

    def send(self, text: str | bytes) -> None: ...
    def close(self) -> None:
        """The client is gone; nothing comes of it any more."""


class Trunks(Protocol):
    """Ways to the SFUs that are elsewhere (``signaling.trunks.Trunks``)."""

    @property
    def inward(self) -> bool:
        """Whether the rooms of this node are in several processes of it, among which it finds the right one."""

    async def connect(self, record: Record, visitor: Visitor, room_id: str, hop: Hop) -> Trunk:
        """
        :raises OwnerGone: nobody listens there: the SFU's process is gone.
        :raises Unavailable: any other reason why not.
        """

    async def pause(self, attempt: int) -> None:
        """Wait before the next attempt, longer with each."""

    def tick(self, now: float) -> None:
        """Time goes by."""

    async def stop(self) -> None:
        """Leave nothing behind; the sessions are closed by then."""


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
