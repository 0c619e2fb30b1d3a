"""The rooms of a node: those of every namespace, with the media port of each.

The same room id in two namespaces is two rooms. All is made, started and ended here; what happens inside a room is
``sfu.room``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from random import SystemRandom
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from orama.errors import Conflict, NotFound, SignalError
from orama.net.fabric import Fabric
from orama.net.poll import Poll
from orama.settings import Settings
from orama.sfu._aiortc import DtlsCertificate
from orama.sfu.connection import Connection, Counters, Listener
from orama.sfu.events import Event
from orama.sfu.ice import MediaPort, RelayOnly, RelayPlace
from orama.sfu.media import RandomBits
from orama.sfu.occurrences import ROOM_FINISHED, ROOM_STARTED, Occurrence
from orama.sfu.peer import Peer
from orama.sfu.room import Room
from orama.sfu.samples import counted, seen
from orama.sfu.stats import FRESH, as_json, room_stats

#: Seconds between two ticks of the media path, and between two looks for clients that have gone silent.
TICK = 0.05
CHECK = 1.0
ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_log = Logger()


@define(eq=False)
class _Namespace:
    port: MediaPort
    accepts: RelayOnly
    rooms: dict[str, Room] = field(factory=dict)
    counters: Counters = field(factory=Counters)
    joins: int = 0


class Rooms:
    """All rooms of this node.

    :param certificate: what our side of DTLS shows; one is made when there is none.
    :param poll: where the media sockets are, beside those of a TURN server in this process.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        fabric: Fabric,
        *,
        random: RandomBits | None = None,
        certificate: DtlsCertificate | None = None,
        poll: Poll | None = None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._fabric = fabric
        self._poll = Poll(reactor, fabric) if poll is None else poll
        self._random: RandomBits = SystemRandom() if random is None else random
        self._certificate = DtlsCertificate() if certificate is None else certificate
        self._namespaces: dict[str, _Namespace] = {}
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        self._checked = 0.0
        self._closing: dict[Deferred[None], str] = {}
        #: Called with namespace and room id when a room has been empty for too long and is gone.
        self.on_empty: Callable[[str, str], None] = _ignore
        #: Called with the seconds from a join to the keys of its media.
        self.on_secured: Callable[[float], None] = _ignore
        #: Called with the seconds from the start of a video subscription to its first keyframe.
        self.on_first_frame: Callable[[float], None] = _ignore
        #: Called with all that happens.
        self.on_occurrence: Callable[[Occurrence], None] = _ignore

    # ---- namespaces

    def start_namespace(
        self,
        namespace: str,
        media_block: tuple[int, int],
        relay_block: tuple[int, int] | None = None,
        relays: Iterable[RelayPlace] = (),
    ) -> int:
        """Open the namespace's media port, the first of the block that is free (0 to 0 is any), and give its number.

        :param relay_block: ports of its relays in this very process; None when TURN does not run here.
        :param relays: where its relays in other processes are, which may be the same ports; :meth:`set_relays`
            changes that.
        :raises CannotListenError: none is free.
        """
        if namespace in self._namespaces:
            raise Conflict("already_enabled", f"namespace {namespace} is running already")
        settings = self._settings
        accepts = RelayOnly(self._own(relay_block), self._others(relays))
        ports = range(media_block[0], media_block[1] + 1)
        offload = settings.turn.offload
        port = MediaPort.listen(self._poll, namespace, settings.internal_ip, ports, accepts, offload=offload)
        held = self._namespaces[namespace] = _Namespace(port, accepts)
        held.counters.media.first_frame = lambda seconds: self.on_first_frame(seconds)
        return port.address[1]

    def set_relays(
        self, namespace: str, relays: Iterable[RelayPlace], relay_block: tuple[int, int] | None = None
    ) -> None:
        """Take connectivity checks from *relays* in other processes and *relay_block* of this one, and no others.

        An address that a client has proved before stays good for as long as that client is here: a TURN server that is
        on its way out relays what it has to the end.

        :raises NotFound: ``webrtc_not_enabled``.
        """
        accepts = self._held(namespace).accepts
        accepts.own = None if relay_block is None else (self._settings.relay_ip, *relay_block)
        accepts.others = self._others(relays)

    def serves(self, namespace: str) -> bool:
        """Whether the namespace's media port is open here."""
        return namespace in self._namespaces

    def stop_namespace(self, namespace: str) -> Deferred[None]:
        """Close its rooms and its media port. Fires when nothing is left."""
        return self._end_namespace(namespace, None, "room-closed")

    def close_namespace(self, namespace: str, grace: float, reason: str = "room-closed") -> Deferred[None]:
        """Close its rooms, so that everybody hears of it, and the media port when their connections are closed.

        Fires when the port is closed: after *grace* seconds at the latest.
        """
        return self._end_namespace(namespace, grace, reason)

    def _end_namespace(self, namespace: str, grace: float | None, reason: str) -> Deferred[None]:
        held = self._namespaces.get(namespace)
        for room in list(held.rooms.values()) if held is not None else ():
            self.close(namespace, room.room_id, reason)
        self._namespaces.pop(namespace, None)
        unclosed = [done for done, whose in self._closing.items() if whose == namespace]
        closing = DeferredList(unclosed, consumeErrors=True)
        ended: Deferred[Any] = closing
        if grace is not None and not closing.called:
            ended = Deferred()
            impatience = self._reactor.callLater(grace, ended.callback, None)

            def closed(_: object) -> None:
                if impatience.active():
                    impatience.cancel()
                    ended.callback(None)

            closing.addCallback(closed)

        def close(_: object) -> None:
            if held is not None:
                held.port.close()

        return ended.addCallback(close)

    def _own(self, relay_block: tuple[int, int] | None) -> RelayPlace | None:
        return None if relay_block is None else (self._settings.relay_ip, *relay_block)

    def _others(self, relays: Iterable[RelayPlace]) -> tuple[RelayPlace, ...]:
        """*relays*, and those of the configuration."""
        first, last = self._settings.turn.relay_ports
        given = ((ip, first, last) for ip in self._settings.sfu.relay_addresses)
        return (*((str(ip_address(ip)), low, high) for ip, low, high in relays), *given)

    def stop(self) -> Deferred[None]:
        """Everything ends. Fires when nothing is left."""
        return DeferredList([self.stop_namespace(each) for each in list(self._namespaces)]).addCallback(_ignore)

    # ---- rooms

    def create(self, namespace: str, room_id: str, max_participants: int | None = None) -> Room:
        """
        :raises Conflict: ``room_exists``.
        :raises NotFound: ``webrtc_not_enabled``.
        """
        held = self._held(namespace)
        rooms = held.rooms
        if room_id in rooms:
            raise Conflict("room_exists", "there is a room of that name")
        limit = self._settings.sfu.max_participants if max_participants is None else max_participants
        loudest = self._settings.sfu.loudest
        room = rooms[room_id] = Room(self, namespace, room_id, limit, self._reactor, loudest, held.counters.data)
        self.occurred(ROOM_STARTED, room, {"max_participants": limit})
        self.watch_empty(room)
        return room

    def get(self, namespace: str, room_id: str) -> Room | None:
        held = self._namespaces.get(namespace)
        return held.rooms.get(room_id) if held is not None else None

    def all(self, namespace: str) -> tuple[Room, ...]:
        held = self._namespaces.get(namespace)
        return tuple(held.rooms.values()) if held is not None else ()

    def close(self, namespace: str, room_id: str, reason: str = "room-closed") -> None:
        """Send everybody away, and forget the room.

        :raises NotFound: ``room_not_found``.
        """
        held = self._namespaces.get(namespace)
        room = held.rooms.pop(room_id, None) if held is not None else None
        if room is None:
            raise NotFound("room_not_found", "there is no room of that name")
        room.close(reason)

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
    ) -> Peer:
        """A place in the room, which comes into being with it; *send* is called once the peer has been started.

        :raises SignalError: ``room_full``.
        :raises NotFound: ``webrtc_not_enabled``.
        """
        held = self._held(namespace)
        room = held.rooms.get(room_id) or self.create(namespace, room_id)
        if len(room.peers) >= room.max_participants:
            raise SignalError("room_full", f"the room takes {room.max_participants} participants", fatal=True)
        peer_id = f"p{self.new_id()}"

        def connect(listener: Listener, may_use_data: bool) -> Connection:
            return Connection(
                self._reactor,
                self._settings.sfu,
                self._fabric,
                held.port,
                self._certificate,
                self._random,
                held.counters,
                listener,
                may_use_data=may_use_data,
            )

        peer = Peer(
            room, peer_id, user_id, metadata, permissions, owner, send, self._reactor, self._settings.sfu, connect
        )
        room.add(peer)
        held.joins += 1
        if not self._ticker.running:
            self._ticker.start(TICK, now=False).addErrback(lambda failure: _log.failure("the tick failed", failure))
        return peer

    def peers(self) -> int:
        return sum(len(room.peers) for room in self._every_room())

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Name, labels and value of everything that is counted."""
        for namespace, held in self._namespaces.items():
            labels = {"namespace": namespace}
            yield "orama_sfu_rooms", labels, len(held.rooms)
            yield "orama_sfu_peers", labels, sum(len(room.peers) for room in held.rooms.values())
            yield "orama_sfu_tracks", labels, sum(len(room.tracks) for room in held.rooms.values())
            yield "orama_sfu_joins_total", labels, held.joins
            yield from counted(held.counters, held.port.counters, labels)
            yield from seen((peer for room in held.rooms.values() for peer in room.peers.values()), labels)

    async def stats(self, namespace: str, room_id: str, peer_id: str | None = None) -> Mapping[str, Any] | None:
        """What goes on in a room (``sfu.stats``); None when it is not here."""
        room = self.get(namespace, room_id)
        if room is None:
            return None
        now = self._reactor.seconds()
        if peer_id is not None:
            return as_json(room_stats(room, now, peer_id))
        if room.stats is None or not 0 <= now - room.stats["at"] < FRESH:
            room.stats = as_json(room_stats(room, now))
        return room.stats

    # ---- what rooms and peers call

    def watch_empty(self, room: Room) -> None:
        room.empty_in(self._reactor, self._settings.sfu.empty_room_timeout, lambda: self._emptied(room))

    def _emptied(self, room: Room) -> None:
        held = self._namespaces.get(room.namespace)
        if held is not None and held.rooms.get(room.room_id) is room:
            del held.rooms[room.room_id]
            self.occurred(ROOM_FINISHED, room, {"reason": "empty"})
            room.ranking.close()
            self.on_empty(room.namespace, room.room_id)

    def occurred(self, event: str, room: Room, about: Mapping[str, Any]) -> None:
        """Tell whoever looks after the namespace. Whatever he makes of it, the room goes on."""
        if self.on_occurrence is _ignore:
            return
        name, now = f"ev_{self.new_id()}{self.new_id()}", self._reactor.seconds()
        try:
            self.on_occurrence(Occurrence(name, event, now, room.namespace, room.room_id, room.created_at, about))
        except Exception:
            _log.failure("{event} was not told", event=event)

    def released(self, peer: Peer) -> None:
        """*peer* has left: end its connection, and stop the clock after the last one."""
        done = peer.connection.close()
        if not done.called:
            self._closing[done] = peer.room.namespace
            done.addBoth(lambda result: self._closing.pop(done, None) and None)
        if self._ticker.running and not self.peers():
            self._ticker.stop()

    def now(self) -> float:
        seconds: float = self._reactor.seconds()
        return seconds

    def new_id(self) -> str:
        """Sixty random bits as text."""
        bits = self._random.getrandbits(60)
        return "".join(ID_ALPHABET[bits >> 5 * i & 31] for i in range(12))

    def _held(self, namespace: str) -> _Namespace:
        held = self._namespaces.get(namespace)
        if held is None:
            raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")
        return held

    def _every_room(self) -> Iterator[Room]:
        return (room for held in list(self._namespaces.values()) for room in list(held.rooms.values()))

    def _tick(self) -> None:
        now = self._reactor.seconds()
        look = now - self._checked >= CHECK
        self._fabric.begin()
        try:
            for room in self._every_room():
                try:
                    room.tick(now)
                    if look:
                        room.check(now)
                except Exception:
                    _log.failure("the tick of a room failed")
        finally:
            self._fabric.end()
        if look:
            self._checked = now


def _ignore(*_: object) -> None:
    """Nobody listens."""
