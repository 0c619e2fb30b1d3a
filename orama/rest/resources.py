"""The resources of the contract's section 3, one class an address."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from re import compile as pattern
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from orama.cluster.namespaces import DEFAULT, Namespaces
from orama.cluster.rooms import RoomDirectory, RoomRecord
from orama.cluster.turn_access import TurnAccess
from orama.errors import BadRequest, Forbidden, NotFound, Unavailable
from orama.rest.auth import Authenticator, Principal
from orama.rest.json_resource import JsonResource, Reply, headers, json_object, query
from orama.rest.loopback import local, on_internal_address
from orama.rest.openapi import PEER_ID
from orama.rest.origins import Origins
from orama.rest.streaming import Progress, SteppedResource
from orama.rest.tokens import ROOM_ID
from orama.timestamp import timestamp

#: Life of a guest's token, seconds.
GUEST_TTL = 12 * 3600
_PEER_ID = pattern(PEER_ID)
#: The exposition format of Prometheus.
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LiveRooms(Protocol):
    """The rooms that SFUs have."""

    def create(self, namespace: str, room_id: str, max_participants: int) -> object:
        """Make a room here; nothing happens when no SFU of the namespace is."""

    async def close(self, record: RoomRecord, reason: str) -> None:
        """Send everybody away, on whichever node the room is."""

    def participants(self, namespace: str, room_id: str) -> int:
        """How many are in it; 0 when it is not here."""

    async def stats(self, record: RoomRecord, peer_id: str | None) -> Mapping[str, Any] | None:
        """What goes on in it, on whichever node it is; None when nobody has been in it yet.

        :param peer_id: tell of that peer alone.
        :raises Unavailable: whoever has it does not say.
        """


#: Namespace → what runs for it, one mapping a node: ``node_id``, ``state``, ``roles``, ``sfu_up``, ``turn_up``,
#: ``rooms``, ``participants``, ``error``.
Observed = Callable[[str], Awaitable[Iterable[Mapping[str, Any]]]]


class Guarded(JsonResource):
    """What only somebody with a credential may ask."""

    def __init__(self, origins: Origins, authenticator: Authenticator) -> None:
        super().__init__(origins)
        self._authenticator = authenticator

    async def member(self, request: Request) -> Principal:
        """:raises NotAuthenticated: as :meth:`Authenticator.authenticate`."""
        return await self._authenticator.authenticate(headers(request))

    async def owner(self, request: Request) -> Principal:
        """:raises Forbidden: a member asks for what takes an owner."""
        principal = await self.member(request)
        principal.require_owner()
        return principal


class TurnCredentialsResource(Guarded):
    """``/v1/webrtc/turn/credentials``"""

    def __init__(self, origins: Origins, authenticator: Authenticator, access: TurnAccess) -> None:
        super().__init__(origins, authenticator)
        self._access = access

    async def post(self, request: Request) -> Reply:
        principal = await self.member(request)
        grant = await self._access.issue(principal.namespace, principal.user_id)
        return Reply(
            body={"uris": grant.uris, "username": grant.username, "password": grant.password, "ttl": grant.ttl}
        )


class RoomsResource(Guarded):
    """``/v1/webrtc/rooms``"""

    def __init__(
        self,
        origins: Origins,
        authenticator: Authenticator,
        namespaces: Namespaces,
        directory: RoomDirectory,
        rooms: LiveRooms,
        max_participants: int,
    ) -> None:
        super().__init__(origins, authenticator)
        self._namespaces = namespaces
        self._directory = directory
        self._rooms = rooms
        self._max_participants = max_participants

    async def get(self, request: Request) -> Reply:
        principal = await self.member(request)
        await self._namespaces.require_webrtc(principal.namespace)
        asked = query(request)
        wanted, peer_id = asked.get("stats", "0"), asked.get("peer_id")
        if wanted not in ("0", "1"):
            raise BadRequest("invalid_request", "stats is 0 or 1")
        if peer_id is not None and _PEER_ID.fullmatch(peer_id) is None:
            raise BadRequest("invalid_request", "peer_id is one of those that signalling tells")
        if "room_id" in asked:
            room_id = _room_id(asked["room_id"])
            return Reply(body={"rooms": [await self._one(principal, room_id, wanted == "1", peer_id)]})
        records = await self._directory.list(principal.namespace)
        return Reply(body={"rooms": [self._shown(record) for record in records]})

    async def _one(self, principal: Principal, room_id: str, stats: bool, peer_id: str | None) -> dict[str, Any]:
        """One room, with what goes on in it where that is asked for.

        Whoever may join it may see that: by joining he would be told who is there and what they publish, too.
        """
        principal.require_room(room_id)
        record = await self._directory.find(principal.namespace, room_id)
        if record is None:
            raise NotFound("room_not_found", "there is no such room")
        shown = self._shown(record)
        if stats:
            found = await self._rooms.stats(record, peer_id)
            shown["stats"] = None if found is None else shown_stats(found)
        return shown

    async def post(self, request: Request) -> Reply:
        principal = await self.owner(request)
        await self._namespaces.require_webrtc(principal.namespace)
        body = json_object(request)
        for name in body:
            if name not in ("room_id", "max_participants"):
                raise BadRequest("invalid_request", "a room has a room_id and a max_participants, and nothing else")
        room_id = _room_id(body.get("room_id"))
        principal.require_room(room_id)
        limit = self._limit(body.get("max_participants", self._max_participants))
        record = await self._directory.claim(principal.namespace, room_id, limit, explicit=True)
        if record.node_id == self._directory.node_id:
            try:
                self._rooms.create(record.namespace, record.room_id, record.max_participants)
            except Exception:
                await self._directory.remove(record)
                raise
        return Reply(201, self._shown(record))

    async def delete(self, request: Request) -> Reply:
        principal = await self.owner(request)
        await self._namespaces.require_webrtc(principal.namespace)
        room_id = _room_id(query(request).get("room_id"))
        principal.require_room(room_id)
        record = await self._directory.delete(principal.namespace, room_id)
        await self._rooms.close(record, "room-closed")
        return Reply(204)

    def _limit(self, value: object) -> int:
        # JSON has one kind of number: 8.0 is the integer 8 (RFC 8259, 6).
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= self._max_participants:
            raise BadRequest("invalid_request", f"max_participants is a number from 1 to {self._max_participants}")
        return value

    def _shown(self, record: RoomRecord) -> dict[str, Any]:
        here = record.node_id == self._directory.node_id
        live = self._rooms.participants(record.namespace, record.room_id) if here else record.participants
        return {
            "room_id": record.room_id,
            "participants": live,
            "max_participants": record.max_participants,
            "node_id": record.node_id,
            "created_at": timestamp(record.created_at),
        }


class EnablementResource(SteppedResource):
    """``/v1/namespace/webrtc/enable`` and ``…/disable``"""

    def __init__(
        self, origins: Origins, authenticator: Authenticator, namespaces: Namespaces, clock: IReactorTime, enable: bool
    ) -> None:
        super().__init__(origins, clock, self._change)
        self._authenticator = authenticator
        self._namespaces = namespaces
        self._enable = enable

    async def _change(self, request: Request, progress: Progress) -> Mapping[str, Any]:
        principal = await self._authenticator.authenticate(headers(request))
        principal.require_owner()
        if self._enable:
            await self._namespaces.enable(principal.namespace, principal.user_id or "api", progress)
        else:
            await self._namespaces.disable(principal.namespace, progress)
        message = f"WebRTC is {'enabled' if self._enable else 'disabled'}"
        return {"status": "ok", "namespace": principal.namespace, "message": message}


class StatusResource(Guarded):
    """``/v1/namespace/webrtc/status``"""

    def __init__(
        self, origins: Origins, authenticator: Authenticator, namespaces: Namespaces, observed: Observed
    ) -> None:
        super().__init__(origins, authenticator)
        self._namespaces = namespaces
        self._observed = observed

    async def get(self, request: Request) -> Reply:
        principal = await self.member(request)
        wanted = await self._namespaces.status(principal.namespace)
        desired = {
            "enabled": wanted.enabled,
            "sfu_node_count": wanted.sfu_node_count,
            "turn_node_count": wanted.turn_node_count,
            "turn_credential_ttl": wanted.credential_ttl,
            "rooms_on_join": wanted.rooms_on_join,
            "enabled_by": wanted.enabled_by,
            "enabled_at": _timestamp_or_none(wanted.enabled_at),
            "disabled_at": _timestamp_or_none(wanted.disabled_at),
        }
        nodes = [dict(node) for node in await self._observed(principal.namespace)]
        return Reply(
            body={
                "namespace": principal.namespace,
                "enabled": wanted.enabled,
                "desired": desired,
                "observed": {"nodes": nodes},
            }
        )


class HealthResource(JsonResource):
    """``/health``: this process answers."""

    def __init__(self, origins: Origins, health: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__(origins)
        self._health = health

    async def get(self, request: Request) -> Reply:
        return Reply(body=dict(self._health()))


class Internal(JsonResource):
    """What exists only on the internal address; elsewhere there is nothing at all at its address."""

    def __init__(self, origins: Origins, internal_ip: str) -> None:
        super().__init__(origins)
        self._internal_ip = internal_ip

    def render(self, request: Request) -> int:
        if not on_internal_address(request, self._internal_ip):
            return self.missing(request)
        return super().render(request)


class ReadyResource(Internal):
    """``/ready``: this node can take calls, or why it cannot."""

    def __init__(self, origins: Origins, internal_ip: str, ready: Callable[[], str]) -> None:
        super().__init__(origins, internal_ip)
        self._ready = ready

    async def get(self, request: Request) -> Reply:
        reason = self._ready()
        if reason:
            raise Unavailable("not_ready", reason)
        return Reply(body={"status": "ready"})


class MetricsResource(Internal):
    """``/metrics``"""

    def __init__(self, origins: Origins, internal_ip: str, metrics: Callable[[], bytes]) -> None:
        super().__init__(origins, internal_ip)
        self._metrics = metrics

    async def get(self, request: Request) -> Reply:
        return Reply(body=self._metrics(), content_type=METRICS_TYPE)


class GuestResource(JsonResource):
    """``/v1/webrtc/guest``: a token for a browser on this very machine, so that the room page works at once."""

    def __init__(
        self, origins: Origins, authenticator: Authenticator, namespaces: Namespaces, allowed: bool, longest: int
    ) -> None:
        super().__init__(origins)
        self._authenticator = authenticator
        self._namespaces = namespaces
        self._allowed = allowed
        self._ttl = min(GUEST_TTL, longest)

    async def post(self, request: Request) -> Reply:
        if not self._allowed or not local(request):
            raise Forbidden("guests_not_allowed", "only a browser on the node's own machine may come without a key")
        await self._namespaces.require_webrtc(DEFAULT)
        token = self._authenticator.tokens.issue(DEFAULT, f"guest-{secrets.token_hex(8)}", ttl=self._ttl)
        return Reply(body={"token": token, "namespace": DEFAULT})


class DocumentResource(JsonResource):
    """A JSON document that does not change."""

    def __init__(self, origins: Origins, document: Mapping[str, Any]) -> None:
        super().__init__(origins)
        self._document = document

    async def get(self, request: Request) -> Reply:
        return Reply(body=dict(self._document))


def shown_stats(found: Mapping[str, Any]) -> dict[str, Any]:
    """As ``sfu.stats`` has it, with moments as everywhere in REST."""
    peers = [{**peer, "joined_at": timestamp(peer["joined_at"])} for peer in found["peers"]]
    return {**found, "at": timestamp(found["at"]), "peers": peers}


def _timestamp_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)


def _room_id(value: object) -> str:
    if not isinstance(value, str) or ROOM_ID.match(value) is None:
        raise BadRequest("invalid_request", "room_id is 1 to 128 of A-Z, a-z, 0-9 and _ . : -")
    return value
