"""A room, peers, a directory and a socket in memory: what the session talks to, as small as it can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from orama.errors import NotFound, SignalError, Unavailable
from orama.settings import Settings, SignalingSettings
from orama.sfu.events import Event, Kicked, PeerInfo, PeerJoined, PeerLeft, RoomClosed
from orama.signaling.interfaces import Hop, OwnerGone, Record, Visitor
from orama.signaling.lobby import Lobby
from orama.signaling.messages import TurnCredentials
from orama.signaling.session import Session

ALL = frozenset({"publish", "subscribe", "data"})
START = 1_700_000_000.0


@frozen
class Somebody:
    namespace: str = "default"
    role: str = "member"
    user_id: str | None = None
    rooms: frozenset[str] | None = None
    permissions: frozenset[str] = ALL


@define(eq=False)
class MemorySocket:
    """Keeps what was sent, decoded, and how it was closed."""

    sent: list[dict[str, Any]] = field(factory=list)
    closed: tuple[int, str] | None = None

    def send(self, text: str) -> None:
        assert self.closed is None, "nothing is sent after a close"
        self.sent.append(json.loads(text))

    def close(self, code: int, reason: str) -> None:
        assert self.closed is None, "a socket is closed once"
        self.closed = (code, reason)

    @property
    def code(self) -> int | None:
        return None if self.closed is None else self.closed[0]

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.sent]

    def last(self, kind: str) -> dict[str, Any]:
        return [message for message in self.sent if message["type"] == kind][-1]

    @property
    def errors(self) -> list[str]:
        return [message["code"] for message in self.sent if message["type"] == "error"]


@define(eq=False)
class MemoryPeer:
    """Does what sfu.peer.Peer does towards the session; what it was told is in *calls*."""

    peer_id: str
    user_id: str
    metadata: Any
    owner: bool
    room: MemoryRoom
    send: Callable[[Event], None] | None
    calls: list[tuple[Any, ...]] = field(factory=list)
    queued: list[Event] = field(factory=list)
    started: bool = False
    fails: BaseException | None = None
    left: bool = False

    def tell(self, event: Event) -> None:
        if self.send is None or not self.started:
            self.queued.append(event)
        else:
            self.send(event)

    def others(self) -> tuple[PeerInfo, ...]:
        return tuple(
            PeerInfo(peer.peer_id, peer.user_id, peer.metadata) for peer in self.room.peers.values() if peer is not self
        )

    def _flush(self) -> None:
        queued, self.queued = self.queued, []
        for event in queued:
            self.tell(event)

    def start(self) -> None:
        self.started = True
        self._flush()

    def attach(self, send: Callable[[Event], None]) -> None:
        self.calls.append(("attach",))
        self.send = send
        self._flush()

    def detach(self) -> None:
        self.calls.append(("detach",))
        self.send = None

    def leave(self, reason: str = "left") -> None:
        if self.left:
            return
        self.left = True
        self.calls.append(("leave", reason))
        del self.room.peers[self.peer_id]
        for peer in tuple(self.room.peers.values()):
            peer.tell(PeerLeft(self.peer_id, reason))

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails

    def offer(self, sdp: str, sources: Mapping[str, str] | None = None, encrypted: bool = True) -> None:
        self._call("offer", sdp, dict(sources or {}))

    def answer(self, sdp: str) -> None:
        self._call("answer", sdp)

    def candidate(self, *args: Any) -> None:
        self._call("candidate", *args)

    def track_state(self, track_id: str, muted: bool) -> None:
        self._call("track_state", track_id, muted)

    def subscribe(self, track_id: str, layer: str, priority: int) -> None:
        self._call("subscribe", track_id, layer, priority)

    def unsubscribe(self, track_id: str) -> None:
        self._call("unsubscribe", track_id)

    def receive(self, kind: str, slots: int | None, tracks: Sequence[str]) -> None:
        self._call("receive", kind, slots, tracks)

    def kick(self, peer_id: str) -> None:
        self._call("kick", peer_id)
        peer = self.room.peers[peer_id]
        peer.tell(Kicked("kicked"))
        peer.leave("kicked")

    def mute(self, track_id: str) -> None:
        self._call("mute", track_id)


@define(eq=False)
class MemoryRoom:
    limit: int
    peers: dict[str, MemoryPeer] = field(factory=dict)


class MemoryRooms:
    def __init__(self) -> None:
        self.rooms: dict[tuple[str, str], MemoryRoom] = {}
        self.everybody: list[MemoryPeer] = []
        #: Namespaces whose SFU is another process.
        self.elsewhere: set[str] = set()

    def serves(self, namespace: str) -> bool:
        return namespace not in self.elsewhere

    def get(self, namespace: str, room_id: str) -> MemoryRoom | None:
        return self.rooms.get((namespace, room_id))

    def create(self, namespace: str, room_id: str, max_participants: int) -> MemoryRoom:
        room = self.rooms[namespace, room_id] = MemoryRoom(max_participants)
        return room

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
    ) -> MemoryPeer:
        room = self.rooms[namespace, room_id]
        if len(room.peers) >= room.limit:
            raise SignalError("room_full", "the room is full")
        peer = MemoryPeer(f"p{len(self.everybody) + 1}", user_id, metadata, owner, room, send)
        for other in room.peers.values():
            other.tell(PeerJoined(peer.peer_id, user_id, metadata))
        room.peers[peer.peer_id] = peer
        self.everybody.append(peer)
        return peer

    def close(self, namespace: str, room_id: str) -> None:
        for peer in tuple(self.rooms[namespace, room_id].peers.values()):
            peer.tell(RoomClosed("closed"))
            peer.leave("room-closed")


@frozen
class MemoryRecord:
    node_id: str
    max_participants: int


@define(eq=False)
class MemoryTrunk:
    """A way to another node. *hop* is whom it belongs to."""

    node_id: str
    visitor: Visitor
    hop: Hop
    sent: list[str | bytes] = field(factory=list)
    closed: bool = False
    answered: Deferred[bool] = field(factory=Deferred)

    def send(self, text: str | bytes) -> None:
        self.sent.append(text)

    def close(self) -> None:
        self.closed = True
        if not self.answered.called:
            self.answered.callback(False)

    @property
    def types(self) -> list[str]:
        return [json.loads(text)["type"] for text in self.sent]

    def say(self, kind: str, **fields: Any) -> None:
        """The other node says something."""
        self.hop.forwarded(json.dumps({"type": kind, **fields}))
        if not self.answered.called:
            self.answered.callback(True)

    def lose(self, code: int = 1012, reason: str = "gone") -> None:
        if self.answered.called:
            self.hop.trunk_lost(code, reason)
        else:
            self.answered.callback(False)


@define
class MemoryTrunks:
    """The other nodes; those in *gone* have no SFU any more, those in *silent* do not answer."""

    trunks: list[MemoryTrunk] = field(factory=list)
    gone: set[str] = field(factory=set)
    silent: set[str] = field(factory=set)
    #: Set to a Deferred to keep the next ones waiting.
    opening: Deferred[None] | None = None
    pauses: int = 0
    #: Whether the rooms of this node are in several processes of it.
    inward: bool = False

    async def connect(self, record: Record, visitor: Visitor, room_id: str, hop: Hop) -> MemoryTrunk:
        if self.opening is not None:
            await self.opening
        if record.node_id in self.gone:
            raise OwnerGone("sfu_gone", "nobody listens")
        if record.node_id in self.silent:
            raise Unavailable("sfu_silent", "nobody answers")
        trunk = MemoryTrunk(record.node_id, visitor, hop)
        self.trunks.append(trunk)
        return trunk

    async def pause(self, attempt: int) -> None:
        self.pauses += 1

    def tick(self, now: float) -> None:
        pass

    async def stop(self) -> None:
        pass


class Node:
    """A lobby with everything in memory, a clock that is a number, and handles on what is asynchronous.

    It is its own room directory and its own maker of credentials.

    :ivar owners: rooms that are on other nodes; :ivar trunks: the ways there.
    """

    def __init__(self, settings: Settings | None = None, node_id: str = "node-1", **signaling: Any) -> None:
        self.node_id = node_id
        self.owners: dict[str, str] = {}
        self.trunks = MemoryTrunks()
        self.now = START
        self.rooms = MemoryRooms()
        self.limit = 100
        self.ttl = 600
        #: Set to a Deferred to keep the next claims waiting.
        self.claiming: Deferred[None] | None = None
        self.issuing: Deferred[None] | None = None
        self.claimed: list[tuple[str, str]] = []
        self.issued: list[tuple[str, str]] = []
        #: Rooms that do not come into being by joining.
        self.unknown: set[str] = set()
        self.tokens = 0
        settings = settings or Settings(signaling=SignalingSettings(**signaling))
        self.lobby = Lobby(settings, self.rooms, self, self, self._token, self.trunks)

    async def claim(self, namespace: str, room_id: str, *, gone: Collection[str] = ()) -> MemoryRecord:
        self.claimed.append((namespace, room_id))
        if self.claiming is not None:
            await self.claiming
        if room_id in self.unknown:
            raise NotFound("room_not_found", "there is no such room")
        owner = self.owners.get(room_id, self.node_id)
        if owner in gone:
            owner = self.owners[room_id] = self.node_id
        return MemoryRecord(owner, self.limit)

    async def issue(self, namespace: str, user_id: str) -> TurnCredentials:
        self.issued.append((namespace, user_id))
        if self.issuing is not None:
            await self.issuing
        return TurnCredentials(("turn:127.0.0.1:3478?transport=udp",), f"{self.now:.0f}:{namespace}", "pw", self.ttl)

    def _token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:08}-token"

    def open(self, room_id: str | None = "room", visitor: Somebody | None = None) -> Client:
        socket = MemorySocket()
        return Client(self, socket, self.lobby.open(visitor or Somebody(), room_id, socket, self.now))

    def join(self, room_id: str = "room", visitor: Somebody | None = None, **fields: Any) -> Client:
        client = self.open(room_id, visitor)
        client.say("join", **fields)
        return client

    def advance(self, seconds: float) -> None:
        """Let time go by in steps of half a second, as the service does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.lobby.tick(self.now)


@define(eq=False)
class Client:
    node: Node
    socket: MemorySocket
    session: Session

    def say(self, kind: str, **fields: Any) -> None:
        self.raw(json.dumps({"type": kind, **fields}))

    def raw(self, text: str | bytes) -> None:
        self.session.received(text, self.node.now)

    def drop(self) -> None:
        """The socket is gone."""
        self.session.lost(self.node.now)

    @property
    def peer(self) -> MemoryPeer:
        wanted = self.socket.last("welcome")["peerId"]
        return next(peer for peer in self.node.rooms.everybody if peer.peer_id == wanted)

    @property
    def resume(self) -> str:
        token = self.socket.last("welcome")["resume"]
        assert isinstance(token, str)
        return token
