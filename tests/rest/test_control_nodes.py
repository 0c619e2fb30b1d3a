"""The form of what the control socket says and takes about nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from orama.errors import Conflict, NotFound
from orama.rest.control_nodes import ReportResource, nodes_resource
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings
from tests.rest.service import Answer, Listener, ask


class Nodes:
    """Nodes in memory: id → state."""

    def __init__(self) -> None:
        self.states = {"n1": "active", "n2": "active"}

    async def listed(self) -> Iterable[Mapping[str, Any]]:
        return [{"node_id": node, "state": state} for node, state in self.states.items()]

    async def drained(self, node_id: str, draining: bool) -> Mapping[str, Any]:
        if node_id not in self.states:
            raise NotFound("node_not_found", "there is no such node")
        self.states[node_id] = "draining" if draining else "active"
        moves = [{"namespace": "alpha", "role": "turn"}] if draining else []
        return {"node_id": node_id, "state": self.states[node_id], "moves": moves}

    async def removed(self, node_id: str, force: bool) -> None:
        if node_id not in self.states:
            raise NotFound("node_not_found", "there is no such node")
        if not force:
            raise Conflict("node_alive", "the node is alive")
        del self.states[node_id]

    async def reported(self) -> Mapping[str, Any]:
        return {"nodes": [{"node_id": "n1", "internal_ip": "10.0.0.1", "report": None, "error": "refused"}]}


class ControlNodesTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.nodes = Nodes()
        root = JsonResource(Origins(()))
        root.putChild(b"nodes", nodes_resource(self.nodes.listed, self.nodes.drained, self.nodes.removed))
        root.putChild(b"report", ReportResource(self.nodes.reported))
        self.listener = Listener(self, Site(root, Settings(), Clock()))  # type: ignore[arg-type]

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        return await ask(method, f"{self.listener.base}/{path}", **options)

    async def test_list(self) -> None:
        """The nodes are what they are said to be."""
        answer = await self.call("GET", "nodes")
        self.assertEqual([node["node_id"] for node in answer.json["nodes"]], ["n1", "n2"])

    async def test_drain(self) -> None:
        """A drain says what moves, and is taken back in the same way."""
        answer = await self.call("POST", "nodes/drain", json={"node_id": "n2", "draining": True})
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json, {"node_id": "n2", "state": "draining", "moves": [{"namespace": "alpha", "role": "turn"}]}
        )
        await self.call("POST", "nodes/drain", json={"node_id": "n2", "draining": False})
        self.assertEqual(self.nodes.states["n2"], "active")

    async def test_wrong_drain(self) -> None:
        """Anything but a node and a truth value is 400, and an unknown node 404."""
        for body in ({}, {"node_id": "n1"}, {"node_id": 1, "draining": True}, {"node_id": "n1", "draining": 1}):
            answer = await self.call("POST", "nodes/drain", json=body)
            self.assertEqual(answer.outcome, (400, "invalid_request"), body)
        answer = await self.call("POST", "nodes/drain", json={"node_id": "n1", "draining": True, "x": 1})
        self.assertEqual(answer.outcome, (400, "invalid_request"))
        answer = await self.call("POST", "nodes/drain", json={"node_id": "n9", "draining": True})
        self.assertEqual(answer.outcome, (404, "node_not_found"))
        self.assertEqual(set(self.nodes.states.values()), {"active"})

    async def test_remove(self) -> None:
        """A node goes when it is dead, or by force."""
        self.assertEqual((await self.call("DELETE", "nodes?node_id=n1")).outcome, (409, "node_alive"))
        self.assertEqual((await self.call("DELETE", "nodes?node_id=n1&force=true")).status, 204)
        self.assertEqual(set(self.nodes.states), {"n2"})
        self.assertEqual((await self.call("DELETE", "nodes?node_id=n1")).outcome, (404, "node_not_found"))

    async def test_wrong_removal(self) -> None:
        """Force is true or false, and the node must be named."""
        for query in ("", "?node_id=", "?node_id=n1&force=1", "?force=true"):
            self.assertEqual((await self.call("DELETE", f"nodes{query}")).outcome, (400, "invalid_request"), query)

    async def test_report(self) -> None:
        """A report or an error for each node."""
        self.assertEqual((await self.call("GET", "report")).json["nodes"][0]["error"], "refused")
