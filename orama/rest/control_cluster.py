"""The cluster's key on the control socket: its fingerprint, and another one for all nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import DeferredLock
from twisted.web.server import Request

from orama.cluster.keyring import Keyring
from orama.cluster.rotation import Rotation, shown
from orama.errors import BadRequest, Conflict
from orama.rest.json_resource import JsonResource, Reply, json_object
from orama.rest.origins import Origins


class ClusterKeyResource(JsonResource):
    """``/v1/control/cluster/key``

    :param rotate: :func:`~orama.cluster.rotation.rotate_cluster_key` for this node.
    """

    def __init__(self, keyring: Keyring, rotate: Callable[[], Awaitable[Rotation]]) -> None:
        super().__init__(Origins(()))
        self._keyring = keyring
        self._rotate = rotate
        self._rotating = DeferredLock()

    async def get(self, request: Request) -> Reply:
        return Reply(body=shown(self._keyring))

    async def post(self, request: Request) -> Reply:
        if json_object(request):
            raise BadRequest("invalid_request", "there are no fields here")
        if self._rotating.locked:
            raise Conflict("rotation_running", "the key is being rotated already")
        async with self._rotating:
            done = await self._rotate()
        return Reply(body={**shown(self._keyring), "nodes": list(done.nodes), "resealed": done.resealed})
