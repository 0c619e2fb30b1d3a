"""Draining, activating and removing nodes, against nodes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet import reactor as _reactor

from orama.errors import Conflict, NotFound
from orama.rest.control import listen_control
from orama.rest.control_nodes import nodes_resource
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings
from tests.cli.commands import CommandCase

reactor: Any = _reactor


class Nodes:
    """Two nodes; of one that drains something goes each time that somebody looks.

    :ivar left: node → (namespaces, participants) at each look.
    """

    def __init__(self) -> None:
        self.states = {"n1": "active", "n2": "active"}
        self.alive = {"n1", "n2"}
        self.left: list[tuple[int, int]] = [(2, 5), (1, 5), (0, 1), (0, 0)]
        self.looks = 0
        self.on_look = lambda: None

    async def listed(self) -> Iterable[Mapping[str, Any]]:
        self.looks += 1
        self.on_look()
        namespaces, streams = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return [
            {
                "node_id": node,
                "status": state,
                "state": state,
                "alive": node in self.alive,
                "public_ip": "198.51.100.1",
                "internal_ip": "10.0.0.1",
                "version": "1.0",
                "namespaces": 2 if state == "active" else namespaces,
                "streams": streams,
                "load": 0.5,
            }
            for node, state in self.states.items()
        ]

    async def drained(self, node_id: str, draining: bool) -> Mapping[str, Any]:
        self.find(node_id)
        self.states[node_id] = "draining" if draining else "active"
        moves = [{"namespace": "alpha", "role": role} for role in ("sfu", "turn")] if draining else []
        return {"node_id": node_id, "state": self.states[node_id], "moves": moves}

    async def removed(self, node_id: str, force: bool) -> None:
        self.find(node_id)
        if node_id in self.alive:
            raise Conflict("node_alive", "the node is alive")
        if node_id == "n2" and not force:
            raise Conflict("node_has_roles", "the node still has to serve alpha")
        del self.states[node_id]

    def find(self, node_id: str) -> None:
        if node_id not in self.states:
            raise NotFound("node_not_found", "there is no such node")


class NodeCommandTests(CommandCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.nodes = Nodes()
        root = inner = JsonResource(Origins(()))
        for name in (b"v1", b"control"):
            child = JsonResource(Origins(()))
            inner.putChild(name, child)
            inner = child
        inner.putChild(b"nodes", nodes_resource(self.nodes.listed, self.nodes.drained, self.nodes.removed))
        port = listen_control(reactor, self.dir, Site(root, Settings(), reactor))
        self.addCleanup(port.stopListening)

    async def test_list(self) -> None:
        """What a node has and carries is in the table."""
        self.assertRegex(await self.good("node", "list"), r"n1 +active +active +198.51.100.1 +10.0.0.1 +1.0 +2 +5 +0.5")

    async def test_drain(self) -> None:
        """A drain says what moves, and does not wait unless it is told to."""
        self.assertEqual(
            await self.good("node", "drain", "n2"),
            "SFU of alpha moves away from n2\nTURN of alpha moves away from n2\nnode n2 is draining\n",
        )
        self.assertEqual((self.nodes.states["n2"], self.nodes.looks), ("draining", 0))
        answer = await self.data("node", "drain", "n2")
        self.assertEqual(set(answer), {"node_id", "state", "moves"})

    async def test_wait(self) -> None:
        """With ``--wait`` it comes back when the last namespace and the last participant have gone."""
        shown = (await self.good("node", "drain", "n2", "--wait")).splitlines()
        self.assertEqual(
            shown[2:],
            [
                "waiting  2 namespaces and 5 participants are there",
                "waiting  1 namespaces and 5 participants are there",
                "waiting  0 namespaces and 1 participants are there",
                "node n2 is drained",
            ],
        )
        self.assertEqual(self.nodes.looks, 4)
        self.nodes.on_look = lambda: self.nodes.states.update(n2="drained")
        self.assertTrue((await self.data("node", "drain", "n2", "--wait"))["drained"])

    async def test_wait_too_long(self) -> None:
        """After the timeout it fails, and the node goes on draining."""
        self.nodes.left = [(1, 1)]
        line = await self.bad("node", "drain", "n2", "--wait", "--timeout", "0.1")
        self.assertIn("not drained after 0.1 s: 1 namespaces and 1 participants are there", line)
        self.assertEqual(self.nodes.states["n2"], "draining")

    async def test_wait_for_nothing(self) -> None:
        """Who waits is told when somebody activates or removes the node meanwhile; a dead one has nothing left."""
        self.nodes.left = [(1, 1)]
        self.nodes.on_look = lambda: self.nodes.states.update(n2="active")
        self.assertIn("activated meanwhile", await self.bad("node", "drain", "n2", "--wait"))
        self.nodes.on_look = lambda: self.nodes.alive.discard("n2")
        self.assertIn("node n2 is drained", await self.good("node", "drain", "n2", "--wait"))
        self.nodes.on_look = lambda: self.nodes.states.clear()
        self.assertIn("removed meanwhile", await self.bad("node", "drain", "n2", "--wait"))

    async def test_activate(self) -> None:
        """A node that drains is taken back."""
        await self.good("node", "drain", "n1")
        self.assertEqual(await self.good("node", "activate", "n1"), "node n1 is active\n")
        self.assertEqual(self.nodes.states["n1"], "active")

    async def test_remove(self) -> None:
        """A dead node is forgotten, one that has something to do by force only, and one that lives not at all."""
        self.assertIn("alive", await self.bad("node", "remove", "n1"))
        self.assertIn("alive", await self.bad("node", "remove", "n1", "--force"))
        self.nodes.alive.clear()
        self.assertIn("alpha", await self.bad("node", "remove", "n2"))
        self.assertEqual(await self.data("node", "remove", "n1"), {"node_id": "n1", "removed": True})
        self.assertEqual(await self.good("node", "remove", "n2", "--force"), "node n2 is removed\n")
        self.assertEqual(self.nodes.states, {})

    async def test_no_such_node(self) -> None:
        """A node that is not there is one line."""
        for arguments in (("drain", "n9"), ("drain", "n9", "--wait"), ("activate", "n9"), ("remove", "n9")):
            self.assertIn("no such node", await self.bad("node", *arguments))
