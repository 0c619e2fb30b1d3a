"""The namespaces that this node serves: what is wanted of each, put into the running parts.

Serving a namespace is three things: TURN knows its secret and its peers, the SFU has its media port, and its
signalling port on the internal address answers. All three or none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

from attrs import define
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.web.resource import IResource

from orama.cluster.namespaces import WebRtcConfig
from orama.cluster.rooms import RoomRecord
from orama.errors import NotFound, OramaError, Unavailable
from orama.listening import busy
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings
from orama.sfu.room import Rooms
from orama.turn.tenants import Tenant, Tenants

#: Namespace → nothing; raises NotFound when it has no WebRTC.
Require = Callable[[str], Awaitable[object]]
_log = Logger()


@define
class _Served:
    config: WebRtcConfig
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
        tenants: Tenants,
        rooms: Rooms,
        signal: Callable[[Settings, Require], IResource],
        require: Require,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._tenants = tenants
        self._rooms = rooms
        self._signal = signal
        self._require = require
        self._served: dict[str, _Served] = {}

    @property
    def names(self) -> list[str]:
        """The namespaces that are served."""
        return sorted(self._served)

    def serves(self, namespace: str) -> bool:
        return namespace in self._served

    def signaling_port(self, namespace: str) -> int | None:
        """Where its signalling answers on the internal address."""
        served = self._served.get(namespace)
        return None if served is None else served.config.blocks.signaling[0]

    async def apply(self, namespace: str, config: WebRtcConfig | None) -> None:
        """Serve *namespace* as *config* has it, or (None) no more.

        :raises Unavailable: ``port_in_use``.
        """
        await self._withdraw(namespace)
        if config is None:
            return
        site = self._site(namespace)
        try:
            self._rooms.start_namespace(namespace, config.blocks.media, config.blocks.relay)
            port = self._reactor.listenTCP(config.blocks.signaling[0], site, interface=self._settings.internal_ip)
        except CannotListenError as error:
            await self._rooms.stop_namespace(namespace)
            raise Unavailable("port_in_use", f"{namespace} cannot be served: {busy(error)}") from None
        self._tenants.put(self._tenant(config))
        self._served[namespace] = _Served(config, site, port)
        _log.info("{namespace} is served", namespace=namespace)

    def configure(self, settings: Settings) -> None:
        """Take over the limits, and the peers that relays may reach."""
        self._settings = settings
        for namespace, served in self._served.items():
            served.site.adopt(self._site(namespace))
            self._tenants.put(self._tenant(served.config))

    async def stop(self) -> None:
        """Serve nobody any more."""
        for namespace in tuple(self._served):
            await self._withdraw(namespace)

    def _site(self, namespace: str) -> Site:
        """What answers on the signalling port of *namespace*: its signalling and nothing else."""

        async def require(asked: str) -> None:
            if asked != namespace:
                raise NotFound("namespace_not_found", "another namespace is served here")
            await self._require(asked)

        origins = Origins(self._settings.limits.origins)
        root, version, webrtc = (JsonResource(origins) for _ in range(3))
        root.putChild(b"v1", version)
        version.putChild(b"webrtc", webrtc)
        webrtc.putChild(b"signal", self._signal(self._settings, require))
        site = Site(root, self._settings, self._reactor)
        site.noisy = False
        return site

    def _tenant(self, config: WebRtcConfig) -> Tenant:
        return Tenant(
            config.namespace,
            (config.turn_secret,),
            config.blocks.relay,
            ((self._settings.internal_ip, *config.blocks.media),),
            tuple(map(ip_network, self._settings.turn.allowed_peers)),
        )

    async def _withdraw(self, namespace: str) -> None:
        served = self._served.pop(namespace, None)
        if served is None:
            return
        await maybeDeferred(served.port.stopListening)
        await self._rooms.stop_namespace(namespace)
        self._tenants.remove(namespace)


class LiveRooms:
    """The rooms of SFUs as REST asks for them.

    :param elsewhere: closes a room that this node's SFU does not have.
    """

    def __init__(self, rooms: Rooms, elsewhere: Callable[[RoomRecord, str], Awaitable[None]] | None = None) -> None:
        self._rooms = rooms
        self._elsewhere = elsewhere

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

    def participants(self, namespace: str, room_id: str) -> int:
        room = self._rooms.get(namespace, room_id)
        return 0 if room is None else room.participants
