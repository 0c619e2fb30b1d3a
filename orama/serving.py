"""The namespaces that this node serves: what is wanted of each, put into the running parts.

The SFU part of a namespace is its media port and its signalling port on the internal address; the TURN part is its
secret, its relay ports and the SFUs that its relays may reach. A node has one, the other, or both. What has not
changed is left alone: a new secret or another node's ports cost nobody a call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from attrs import define
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.web.resource import IResource

from orama.cluster.desired import Blocks, WebRtcConfig
from orama.cluster.placement import SFU, TURN
from orama.cluster.rooms import RoomRecord
from orama.errors import NotFound, OramaError, Unavailable
from orama.listening import busy
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import NamespaceTurnSettings, Settings
from orama.sfu.rooms import Rooms
from orama.signaling.site import signaling_site
from orama.turn.peers import read_network
from orama.turn.tenants import Shut, Tenant, Tenants
from orama.turn.workers import worker_count

#: Namespace → nothing; raises NotFound when it has no WebRTC.
Require = Callable[[str], Awaitable[object]]
#: Seconds that people get to hear that their room is closed before its port is.
CLOSING = 1.0
_log = Logger()


@define
class _Sfu:
    """The SFU part of one namespace."""

    blocks: Blocks
    site: Site
    port: IListeningPort


class ServedNamespaces:
    """:param signal: makes the signalling resource of the namespaces that a :data:`Require` lets in.

    :param require: whether a namespace has WebRTC at all.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        node_id: str,
        tenants: Tenants,
        rooms: Rooms,
        signal: Callable[[Settings, Require], IResource],
        require: Require,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._node_id = node_id
        self._tenants = tenants
        self._rooms = rooms
        self._signal = signal
        self._require = require
        #: Whether relays of this node may be another process's: only the first worker has ours.
        self._elsewhere = worker_count(settings.turn) > 1
        self._sfus: dict[str, _Sfu] = {}
        self._configs: dict[str, WebRtcConfig] = {}
        #: Called when the TURN part of a namespace is about to end: nobody new, please.
        self.drain_tenant: Callable[[str], None] = _nothing
        #: What no relay may reach of what this node serves and uses.
        self.shut: Callable[[], Shut] = Shut
        #: Called when the SFU part of a namespace goes elsewhere: whoever is in its rooms is sent after it.
        self.lose_namespace: Callable[[str], None] = _nothing

    @property
    def names(self) -> list[str]:
        """The namespaces that are served in any part."""
        return sorted(self._configs)

    def config(self, namespace: str) -> WebRtcConfig | None:
        """What *namespace* is served with."""
        return self._configs.get(namespace)

    def roles(self, namespace: str) -> tuple[str, ...]:
        """The parts of *namespace* that run here."""
        sfu, turn = namespace in self._sfus, self._tenants.get(namespace) is not None
        return (*([SFU] if sfu else []), *([TURN] if turn else []))

    def serves(self, namespace: str) -> bool:
        return bool(self.roles(namespace))

    def signaling_port(self, namespace: str) -> int | None:
        """Where its signalling answers on the internal address."""
        served = self._sfus.get(namespace)
        return None if served is None else int(served.port.getHost().port)  # type: ignore[attr-defined]

    async def apply(self, namespace: str, config: WebRtcConfig | None) -> None:
        """Serve *namespace* as *config* has it, or (None) no more.

        :raises Unavailable: ``port_in_use``; the parts that could be served are.
        """
        if config is None:
            await self._withdraw(namespace)
            return
        self._configs[namespace] = config
        if config.blocks.relay is None:
            self._tenants.remove(namespace)
        else:
            self._tenants.put(tenant_of(config, self._settings, self.shut()))
        await self._apply_sfu(namespace, config)

    async def _apply_sfu(self, namespace: str, config: WebRtcConfig) -> None:
        blocks, running = config.blocks, self._sfus.get(namespace)
        wanted = blocks.signaling, blocks.media
        if running is not None and (running.blocks.signaling, running.blocks.media) != wanted:
            self.lose_namespace(namespace)
            await self._stop_sfu(namespace)
            running = None
        relays = [
            (place.relay_ip, *place.relay)
            for place in config.turns
            if place.node_id != self._node_id or blocks.relay is None or self._elsewhere
        ]
        if running is not None:
            self._rooms.set_relays(namespace, relays, blocks.relay)
            return
        if blocks.signaling is None or blocks.media is None:
            return
        site = self._site(namespace)
        try:
            self._rooms.start_namespace(namespace, blocks.media, blocks.relay, relays)
            port = self._reactor.listenTCP(blocks.signaling[0], site, interface=self._settings.internal_ip)
        except CannotListenError as error:
            await self._rooms.stop_namespace(namespace)
            raise Unavailable("port_in_use", f"{namespace} cannot be served: {busy(error)}") from None
        self._sfus[namespace] = _Sfu(blocks, site, port)
        _log.info("{namespace} is served", namespace=namespace)

    def configure(self, settings: Settings) -> None:
        """Take over the limits, and the peers that relays may reach."""
        self._settings = settings
        for namespace, served in self._sfus.items():
            served.site.adopt(self._site(namespace))
        for config in self._configs.values():
            if config.blocks.relay is not None:
                self._tenants.put(tenant_of(config, self._settings, self.shut()))

    async def stop(self) -> None:
        """Serve nobody any more, at once."""
        for namespace in self.names:
            await self._withdraw(namespace, 0.0)

    def _site(self, namespace: str) -> Site:
        """What answers on the signalling port of *namespace*."""
        signal = self._signal(self._settings, only(namespace, self._require))
        return signaling_site(self._reactor, self._settings, Origins(self._settings.limits.origins), signal)

    async def _stop_sfu(self, namespace: str, grace: float = CLOSING) -> None:
        served = self._sfus.pop(namespace, None)
        if served is None:
            return
        stopping = maybeDeferred(served.port.stopListening)
        if grace:
            await self._rooms.close_namespace(namespace, grace)
        else:
            await self._rooms.stop_namespace(namespace)
        await stopping

    async def _withdraw(self, namespace: str, grace: float = CLOSING) -> None:
        """Nobody new first, then the rooms, and the relays that carried them last."""
        if self._configs.pop(namespace, None) is None:
            return
        self.drain_tenant(namespace)
        await self._stop_sfu(namespace, grace)
        self._tenants.remove(namespace)
        _log.info("{namespace} is served no more", namespace=namespace)


def only(namespace: str, require: Require) -> Require:
    """*require* for what is *namespace*'s alone."""

    async def require_that(asked: str) -> None:
        if asked != namespace:
            raise NotFound("namespace_not_found", "another namespace is served here")
        await require(asked)

    return require_that


def tenant_of(config: WebRtcConfig, settings: Settings, shut: Shut) -> Tenant:
    """What TURN has to know of a namespace that has a relay block here."""
    assert config.blocks.relay is not None
    turn = settings.turn
    own = turn.namespaces.get(config.namespace, NamespaceTurnSettings())
    return Tenant(
        config.namespace,
        config.turn_secrets,
        config.blocks.relay,
        tuple((place.ip, *place.media) for place in config.sfus),
        tuple(map(read_network, (*turn.allowed_peers, *own.allowed_peers))),
        tuple(map(read_network, (*turn.denied_peers, *own.denied_peers))),
        shut,
    )


class SfuRooms(Protocol):
    """The rooms of this node, in this process (``sfu.rooms.Rooms``) or in others (``cluster.workers.Workers``)."""

    def serves(self, namespace: str) -> bool: ...
    def create(self, namespace: str, room_id: str, max_participants: int) -> object: ...
    def get(self, namespace: str, room_id: str) -> Any: ...
    def close(self, namespace: str, room_id: str, reason: str) -> object: ...
    async def stats(self, namespace: str, room_id: str, peer_id: str | None) -> Mapping[str, Any] | None: ...


#: What another node says of what goes on in a room that it has: (record, peer id or None) → as ``sfu.stats`` has it.
AskStats = Callable[[RoomRecord, str | None], Awaitable[Mapping[str, Any] | None]]


def _nothing(namespace: str) -> None:
    """Nobody is told."""


class LiveRooms:
    """The rooms of SFUs as REST asks for them.

    :param elsewhere: closes a room that this process's SFU does not have.
    :param stats_elsewhere: asks the node that has it what goes on there.
    """

    def __init__(
        self,
        rooms: SfuRooms,
        elsewhere: Callable[[RoomRecord, str], Awaitable[None]] | None = None,
        stats_elsewhere: AskStats | None = None,
    ) -> None:
        self._rooms = rooms
        self._elsewhere = elsewhere
        self._stats_elsewhere = stats_elsewhere

    def create(self, namespace: str, room_id: str, max_participants: int) -> object:
        return self._rooms.create(namespace, room_id, max_participants) if self._rooms.serves(namespace) else None

    async def close(self, record: RoomRecord, reason: str) -> None:
        if self.close_here(record.namespace, record.room_id, reason) or self._elsewhere is None:
            return
        try:
            await self._elsewhere(record, reason)
        except OramaError as error:  # it finds out by itself that its room is gone
            _log.warn("{node} is not told to close {room}: {why}", node=record.node_id, room=record.room_id, why=error)

    def close_here(self, namespace: str, room_id: str, reason: str) -> bool:
        """Send everybody away when the room is here; whether it was."""
        if self._rooms.get(namespace, room_id) is None:
            return False
        self._rooms.close(namespace, room_id, reason)
        return True

    async def stats(self, record: RoomRecord, peer_id: str | None) -> Mapping[str, Any] | None:
        """What goes on in a room, wherever it is; None when nobody has been in it yet.

        :raises Unavailable: whoever has it does not say.
        """
        found = await self.stats_here(record.namespace, record.room_id, peer_id)
        if found is None and self._stats_elsewhere is not None:
            return await self._stats_elsewhere(record, peer_id)
        return found

    async def stats_here(self, namespace: str, room_id: str, peer_id: str | None) -> Mapping[str, Any] | None:
        """The same of a room of this node; None when it has none of that name."""
        return await self._rooms.stats(namespace, room_id, peer_id)

    def participants(self, namespace: str, room_id: str) -> int:
        room = self._rooms.get(namespace, room_id)
        return 0 if room is None else room.participants
