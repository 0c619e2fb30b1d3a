"""The nodes of the cluster on the control socket: list, drain, remove, and what each of them reports.

Only the form is here: which fields a request has and what its answer looks like. What is done is in what is passed in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

from twisted.web.server import Request

from orama.errors import BadRequest
from orama.rest.json_resource import JsonResource, Reply, json_object, query
from orama.rest.origins import Origins

#: One mapping a node: ``node_id``, ``status`` (``ready``, or why it is not), ``state`` (``active``, ``draining``,
#: ``drained``), ``alive``, ``public_ip``, ``internal_ip``, ``version``, ``cpus``, ``load``, ``memory_mb``,
#: ``memory_free_mb``, ``namespaces`` (how many have a role there), ``streams`` (live peers).
Listed: TypeAlias = Callable[[], Awaitable[Iterable[Mapping[str, Any]]]]
#: Node and whether it shall drain → ``node_id``, ``state``, ``moves``: one mapping (``namespace``, ``role``) for each
#: role that goes elsewhere. Raises NotFound ``node_not_found``.
Drained: TypeAlias = Callable[[str, bool], Awaitable[Mapping[str, Any]]]
#: Node and whether it goes although it still has roles. Raises NotFound ``node_not_found``, Conflict ``node_alive`` or
#: ``node_has_roles``.
Removed: TypeAlias = Callable[[str, bool], Awaitable[None]]
#: ``{"nodes": [{"node_id", "internal_ip", "report", "error"}]}``: a report or an error each.
Reported: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]


def nodes_resource(listed: Listed, drained: Drained, removed: Removed) -> JsonResource:
    """``/v1/control/nodes`` and ``/v1/control/nodes/drain``"""
    nodes = _NodesResource(listed, removed)
    nodes.putChild(b"drain", _DrainResource(drained))
    return nodes


class _NodesResource(JsonResource):
    def __init__(self, listed: Listed, removed: Removed) -> None:
        super().__init__(Origins(()))
        self._listed = listed
        self._removed = removed

    async def get(self, request: Request) -> Reply:
        return Reply(body={"nodes": [dict(node) for node in await self._listed()]})

    async def delete(self, request: Request) -> Reply:
        asked = query(request)
        node_id, force = asked.get("node_id"), asked.get("force", "false")
        if not node_id:
            raise BadRequest("invalid_request", "node_id is missing")
        if force not in ("true", "false"):
            raise BadRequest("invalid_request", "force is true or false")
        await self._removed(node_id, force == "true")
        return Reply(204)


class _DrainResource(JsonResource):
    def __init__(self, drained: Drained) -> None:
        super().__init__(Origins(()))
        self._drained = drained

    async def post(self, request: Request) -> Reply:
        body = json_object(request)
        node_id, draining = body.get("node_id"), body.get("draining")
        if set(body) != {"node_id", "draining"} or not isinstance(node_id, str) or not isinstance(draining, bool):
            raise BadRequest("invalid_request", "a drain has a node_id and draining, true or false, and nothing else")
        return Reply(body=dict(await self._drained(node_id, draining)))


class ReportResource(JsonResource):
    """``/v1/control/report``"""

    def __init__(self, reported: Reported) -> None:
        super().__init__(Origins(()))
        self._reported = reported

    async def get(self, request: Request) -> Reply:
        return Reply(body=dict(await self._reported()))
