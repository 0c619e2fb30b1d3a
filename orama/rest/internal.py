"""What a node answers to other nodes and to operators, on its internal address and nowhere else.

Who asks has signed with the cluster key (see :mod:`orama.cluster.signing`). Whatever changes something also names the
node that it is meant for, ``?to=``, within what is signed: what was taken down on the way to one node is no good at
another. ``/health``, ``/ready`` and ``/metrics`` are for monitoring and take no signature.

=========================== ======================================= ====================================
``GET  /v1/internal/report``                                         what this node sees of itself
``POST /v1/internal/reconcile``   ``{namespace}``, or null for all   what is after a pass
``POST /v1/internal/rooms/close`` ``{namespace, room_id, reason}``   ``{"closed": bool}``
``GET  /v1/internal/rooms/stats`` ``?namespace=&room_id=&peer_id=``  ``{"stats": … or null}``
``POST /v1/internal/drain``       ``{draining}``                     ``{"draining": bool}``
``POST /v1/internal/keys``        ``{stage, sealed}``                ``{"current", "keys"}``, fingerprints
=========================== ======================================= ====================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Request

from orama.cluster.neighbours import TO
from orama.cluster.signing import Verifier
from orama.errors import BadRequest, Conflict, NotAuthenticated
from orama.rest.json_resource import JsonResource, Reply, error_reply, headers, json_object, query
from orama.rest.origins import Origins
from orama.rest.resources import HealthResource, MetricsResource, ReadyResource
from orama.rest.site import Site, put_resource
from orama.settings import Settings

REPORT = "v1/internal/report"
RECONCILE = "v1/internal/reconcile"
CLOSE_ROOM = "v1/internal/rooms/close"
ROOM_STATS = "v1/internal/rooms/stats"
DRAIN = "v1/internal/drain"
KEYS = "v1/internal/keys"
#: What a 401 asks for.
CHALLENGE = 'Orama realm="cluster"'
#: Requests a second from one node: forwarded joins come in crowds when a node goes down.
REQUEST_RATE = 500
REQUEST_BURST = 2000

_log = Logger()


@frozen
class Gate:
    """Lets the requests of our nodes in.

    :param node_id: this node.
    """

    verifier: Verifier
    node_id: str

    def admit(self, request: Request, addressed: bool = False) -> str:
        """The node that asks.

        :param addressed: *request* must say whom it is for.
        :raises NotAuthenticated: it is no node of ours, or a copy of what one has sent.
        :raises Conflict: ``wrong_node``: it is for another node.
        """
        target = request.uri.decode("latin-1")
        # A Request of our own site has its whole body in memory.
        body: bytes = request.content.getvalue() if request.content is not None else b""  # type: ignore[attr-defined]
        asker = self.verifier.check(request.method.decode("latin-1"), target, headers(request), body)
        to = query(request).get(TO)
        if to != self.node_id and (addressed or to is not None):
            raise Conflict("wrong_node", f"this is node {self.node_id}, and not the one that was meant")
        return asker


class Signed(JsonResource):
    """Answers nodes of the cluster only."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(Origins(()))
        self._gate = gate

    def _run(self, request: Request, coroutine: Callable[[Request], Awaitable[Reply]], cancellable: bool) -> None:
        async def admitted(request: Request) -> Reply:
            try:
                asker = self._gate.admit(request, addressed=not cancellable)
            except NotAuthenticated as error:
                client = getattr(request.client, "host", "local")
                _log.warn("a request of {client} was refused: {why}", client=client, why=error.message, code=error.code)
                return evolve(error_reply(error), headers={"WWW-Authenticate": CHALLENGE})
            path = (request.path or b"").decode("latin-1")
            _log.debug("node {node} asks for {path}", node=asker, path=path)
            return await coroutine(request)

        super()._run(request, admitted, cancellable)


@frozen
class NodeCalls:
    """What other nodes may ask of this one.

    :param report: what it sees of itself.
    :param reconcile: make a namespace, or all, what they should be; what is then.
    :param close_room: (namespace, room id, reason) → whether it was here.
    :param room_stats: (namespace, room id, peer id or None) → what goes on there; None when it is not here.
    :param drain: empty the node, or let people in again.
    :param change_key: (stage, sealed key) of a rotation → fingerprints.
    """

    report: Callable[[], Awaitable[Mapping[str, Any]]]
    reconcile: Callable[[str | None], Awaitable[Mapping[str, Any]]]
    close_room: Callable[[str, str, str], Awaitable[bool]]
    room_stats: Callable[[str, str, str | None], Awaitable[Mapping[str, Any] | None]]
    drain: Callable[[bool], Awaitable[None]]
    change_key: Callable[[str, str], Awaitable[Mapping[str, Any]]]


class _ReportResource(Signed):
    def __init__(self, gate: Gate, report: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        super().__init__(gate)
        self._report = report

    async def get(self, request: Request) -> Reply:
        return Reply(body=dict(await self._report()))


class _StatsResource(Signed):
    def __init__(
        self, gate: Gate, stats: Callable[[str, str, str | None], Awaitable[Mapping[str, Any] | None]]
    ) -> None:
        super().__init__(gate)
        self._stats = stats

    async def get(self, request: Request) -> Reply:
        asked = query(request)
        if not asked.get("namespace") or not asked.get("room_id"):
            raise BadRequest("invalid_request", "namespace and room_id say which room")
        return Reply(body={"stats": await self._stats(asked["namespace"], asked["room_id"], asked.get("peer_id"))})


class _CallResource(Signed):
    """A change, with the fields of its body in the order of *fields*.

    :param fields: name → the type that it has; all of them must be there.
    """

    def __init__(
        self,
        gate: Gate,
        fields: Mapping[str, type | tuple[type, ...]],
        call: Callable[..., Awaitable[Mapping[str, Any]]],
    ) -> None:
        super().__init__(gate)
        self._fields = fields
        self._call = call

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        if body.keys() != self._fields.keys():
            raise BadRequest("invalid_request", f"the fields here are {', '.join(self._fields)}")
        for name, kind in self._fields.items():
            if not isinstance(body[name], kind):
                raise BadRequest("invalid_request", f"{name} is of another type")
        return Reply(body=dict(await self._call(*(body[name] for name in self._fields))))


def internal_routes(gate: Gate, calls: NodeCalls) -> dict[str, IResource]:
    """The resources of the table above, by their paths."""

    async def close_room(namespace: str, room_id: str, reason: str) -> Mapping[str, Any]:
        return {"closed": await calls.close_room(namespace, room_id, reason)}

    async def drain(draining: bool) -> Mapping[str, Any]:
        await calls.drain(draining)
        return {"draining": draining}

    return {
        REPORT: _ReportResource(gate, calls.report),
        RECONCILE: _CallResource(gate, {"namespace": (str, type(None))}, calls.reconcile),
        CLOSE_ROOM: _CallResource(gate, {"namespace": str, "room_id": str, "reason": str}, close_room),
        ROOM_STATS: _StatsResource(gate, calls.room_stats),
        DRAIN: _CallResource(gate, {"draining": bool}, drain),
        KEYS: _CallResource(gate, {"stage": str, "sealed": str}, calls.change_key),
    }


def internal_site(
    reactor: IReactorTime,
    settings: Settings,
    routes: Mapping[str, IResource],
    *,
    health: Callable[[], Mapping[str, Any]],
    ready: Callable[[], str],
    metrics: Callable[[], bytes],
) -> Site:
    """The site for ``internal_ip`` and the port of ``cluster.port``.

    :param routes: path → resource: :func:`internal_routes`, and whatever else is for the internal address only.
    """
    nobody, root = Origins(()), JsonResource(Origins(()))
    leaves: dict[str, IResource] = {
        "health": HealthResource(nobody, health),
        "ready": ReadyResource(nobody, settings.internal_ip, ready),
        "metrics": MetricsResource(nobody, settings.internal_ip, metrics),
        **routes,
    }
    for address, leaf in leaves.items():
        put_resource(root, address.encode().split(b"/"), leaf, nobody)
    limits = settings.limits
    limits = evolve(
        limits,
        request_rate=max(REQUEST_RATE, limits.request_rate),
        request_burst=max(REQUEST_BURST, limits.request_burst),
    )
    return Site(root, evolve(settings, limits=limits), reactor)
