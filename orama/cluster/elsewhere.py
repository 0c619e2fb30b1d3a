"""Rooms that another node has: it is asked to close them, and what goes on there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orama.cluster.neighbours import Neighbours
from orama.cluster.nodes import NodeRecord, NodeRegistry
from orama.cluster.rooms import RoomRecord


class Elsewhere:
    """The rooms of the other nodes."""

    def __init__(self, registry: NodeRegistry, neighbours: Neighbours) -> None:
        self._registry = registry
        self._neighbours = neighbours

    def _node(self, record: RoomRecord) -> NodeRecord | None:
        """Who has the room; None when it is this node's, or that of one that has gone."""
        node = self._registry.get(record.node_id)
        if node is None or node.node_id == self._registry.node_id or not self._registry.alive(node.node_id):
            return None
        return node

    async def close(self, record: RoomRecord, reason: str) -> None:
        """Have the node that has a room close it."""
        node = self._node(record)
        if node is not None:
            body = {"namespace": record.namespace, "room_id": record.room_id, "reason": reason}
            await self._neighbours.post(node, "/v1/internal/rooms/close", body)

    async def stats(self, record: RoomRecord, peer_id: str | None) -> Mapping[str, Any] | None:
        """Ask the node that has a room what goes on there; None when it is ours, or nobody's.

        :raises Unavailable: it does not answer.
        """
        node = self._node(record)
        if node is None:
            return None
        query = {"namespace": record.namespace, "room_id": record.room_id}
        if peer_id is not None:
            query["peer_id"] = peer_id
        answer = await self._neighbours.get(node, "/v1/internal/rooms/stats", query)
        found: Mapping[str, Any] | None = answer["stats"]
        return found
