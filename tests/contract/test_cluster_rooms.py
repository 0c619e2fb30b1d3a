"""Contract, sections 3 and 4, in a cluster: a room is one, whatever gateway its people come by."""

from __future__ import annotations

import signal
from itertools import count
from typing import Any

from tests.contract.cluster import HEARTBEAT, ROOMS, SLACK, ClusterTestCase, Node, until
from tests.contract.signalling import Client, connect, join

_rooms = count(1)


class RoomsTestCase(ClusterTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.key = self.cluster.key
        self.room = f"room-{next(_rooms)}"
        self.addCleanup(self.nodes[0].ask, "DELETE", f"{ROOMS}?room_id={self.room}", self.key)

    def join(self, node: Node, key: str = "", room: str = "", **fields: Any) -> Client:
        client = join(node, room or self.room, key or self.key, **fields)
        self.addCleanup(client.close)
        return client

    def listed(self, node: Node, key: str = "") -> dict[str, Any] | None:
        """The room as *node* shows it."""
        answer = node.ask("GET", ROOMS, key or self.key)
        self.assertEqual(answer.status, 200)
        return next((each for each in answer.json["rooms"] if each["room_id"] == self.room), None)

    def counted(self, number: int) -> None:
        """Wait until every node says that there are so many."""
        for node in self.nodes:
            until(
                f"{node.public} counts {number}",
                lambda node=node: (self.listed(node) or {}).get("participants") == number,  # type: ignore[misc]
                5 * HEARTBEAT + SLACK,
            )


class MeetingTests(RoomsTestCase):
    def test_three_gateways(self) -> None:
        """Clients of different gateways meet in one room, learn of each other, and leave; each node counts them all,
        and shows what goes on."""
        clients = [self.join(node, userId=f"user{number}") for number, node in enumerate(self.nodes)]
        first, _, last = clients
        self.assertEqual([first.until("peer-joined")["userId"] for _ in range(2)], ["user1", "user2"])
        self.assertEqual({peer["userId"] for peer in last.received[0]["peers"]}, {"user0", "user1"})
        self.counted(3)
        rows = [self.listed(node) for node in self.nodes]
        self.assertEqual([row["node_id"] for row in rows if row], [self.nodes[0].node_id] * 3)
        for node in self.nodes:
            self.assertEqual(self.figures(node), {"user0", "user1", "user2"})
        gone = last.received[0]["peerId"]
        last.say("leave")
        self.assertEqual(last.until_closed(), 1000)
        for client in clients[:2]:
            left = client.until("peer-left")
            self.assertEqual((left["peerId"], left["reason"]), (gone, "left"))
        self.counted(2)

    def figures(self, node: Node) -> set[str]:
        """Whom the statistics of the room name, as *node* has them of the node that has the room."""
        answer = node.ask("GET", f"{ROOMS}?room_id={self.room}&stats=1", self.key)
        self.assertEqual(answer.status, 200, answer.json)
        [room] = answer.json["rooms"]
        return {peer["user_id"] for peer in room["stats"]["peers"]}

    def test_tenants_do_not_meet(self) -> None:
        """A room of the same name in another namespace is another room, on every node."""
        _, key = self.namespace()
        mine, theirs = self.join(self.nodes[0]), self.join(self.nodes[1], key)
        self.assertEqual(theirs.received[0]["peers"], [])
        self.counted(1)
        until("each sees its own", lambda: (self.listed(self.nodes[2], key) or {}).get("participants") == 1)
        theirs.say("kick", peerId=mine.received[0]["peerId"])
        self.assertIn(theirs.error(), ("unknown_peer", "invalid_message", "forbidden"))
        self.assertNotIn("kicked", mine.settled())

    def test_full(self) -> None:
        """The number of a room counts for all gateways together."""
        self.assertEqual(self.make(self.nodes[0], max_participants=1).status, 201)
        self.join(self.nodes[1])
        late = connect(self.nodes[2], self.room, self.key)
        late.say("join")
        self.assertEqual(late.error(), "room_full")
        self.assertEqual(late.until_closed(), 1013)

    def make(self, node: Node, **fields: Any) -> Any:
        return node.ask("POST", ROOMS, self.key, {"room_id": self.room, **fields})

    def test_made_and_deleted_elsewhere(self) -> None:
        """A room is made on one node, is 409 on another, and is deleted on a third: everybody gets ``room-closed``."""
        made = self.make(self.nodes[0])
        self.assertEqual(made.status, 201)
        for node in self.nodes[1:]:
            self.assertEqual(self.listed(node), made.json)
            again = self.make(node)
            self.assertEqual((again.status, again.code), (409, "room_exists"))
        clients = [self.join(node) for node in self.nodes]
        stranger = next(node for node in self.nodes if node.node_id != made.json["node_id"])
        self.assertEqual(stranger.ask("DELETE", f"{ROOMS}?room_id={self.room}", self.key).status, 204)
        for client in clients:
            self.assertTrue(client.until("room-closed")["reason"])
            self.assertEqual(client.until_closed(), 1000)
        for node in self.nodes:
            self.assertIsNone(self.listed(node))
            gone = node.ask("DELETE", f"{ROOMS}?room_id={self.room}", self.key)
            self.assertEqual((gone.status, gone.code), (404, "room_not_found"))

    def test_member_may_not(self) -> None:
        """Making and closing rooms takes an owner on every node; listing does not."""
        member = self.new_key("default", "member")
        for node in self.nodes:
            self.assertEqual(node.ask("POST", ROOMS, member, {"room_id": self.room}).status, 403)
            self.assertEqual(node.ask("DELETE", f"{ROOMS}?room_id={self.room}", member).status, 403)
            self.assertEqual(node.ask("GET", ROOMS, member).status, 200)

    def test_kick_across(self) -> None:
        """An owner by one gateway sends away who came by another; a member may not."""
        member = self.new_key("default", "member")
        owner, guest = self.join(self.nodes[1]), self.join(self.nodes[2], member)
        guest.say("kick", peerId=owner.received[0]["peerId"])
        self.assertEqual(guest.error(), "forbidden")
        owner.say("kick", peerId=guest.received[0]["peerId"])
        self.assertIn("reason", guest.until("kicked"))
        self.assertEqual(guest.until_closed(), 1000)
        self.assertEqual(owner.until("peer-left")["reason"], "kicked")

    def test_resume_by_another_gateway(self) -> None:
        """Who lost the socket takes the place again through another gateway, and nobody notices."""
        stays, drops = self.join(self.nodes[0]), self.join(self.nodes[1])
        stays.until("peer-joined")
        before = drops.received[0]
        drops.drop()
        back = self.join(self.nodes[2], resume=before["resume"])
        self.assertEqual(back.received[0]["peerId"], before["peerId"])
        self.assertNotEqual(back.received[0]["resume"], before["resume"])
        self.assertEqual([kind for kind in stays.settled() if kind.startswith("peer-")], ["peer-joined"])

    def test_replaced_by_another_gateway(self) -> None:
        """Resuming while the old socket is open closes that one with 4409, wherever it is."""
        first = self.join(self.nodes[1])
        self.join(self.nodes[2], resume=first.received[0]["resume"])
        self.assertEqual(first.until_closed(), 4409)


class DrainTests(RoomsTestCase):
    def test_owner_drains(self) -> None:
        """``orama node drain`` of the owner: everybody is told at once, and where to go; there the room goes on.

        Nobody new comes to the node, and its TURN and DNS names go elsewhere; ``activate`` brings it back.
        """
        owner, others = self.nodes[0], self.nodes[1:]
        self.addCleanup(self.cluster.settle)
        here, through = self.join(owner, userId="here"), self.join(others[0], userId="through")
        self.assertEqual((self.listed(others[1]) or {})["node_id"], owner.node_id)
        answer = others[1].told("node", "drain", owner.node_id)
        self.assertEqual(answer["node_id"], owner.node_id)
        self.assertIn(answer["state"], ("draining", "drained"))
        places = {f"ws://{node.authority}/v1/webrtc/signal" for node in others}
        for client in (here, through):
            told = client.until("server-draining")
            self.assertGreater(told["deadlineMs"], 0)
            self.assertIn(told["reconnectUrl"], places)
        again = [self.rejoin(client, user) for client, user in ((here, "here"), (through, "through"))]
        again[0].until("peer-joined")
        self.assertIn((self.listed(others[0]) or {})["node_id"], [node.node_id for node in others])
        until("it is drained", lambda: self.state(owner) == "drained")
        until("its roles are elsewhere", lambda: owner not in self.cluster.turns(self.key))
        for node in self.nodes:
            until(
                "DNS does not name it",
                lambda node=node: owner.public not in node.names("turn.ns-default") + node.names("ns-default"),  # type: ignore[misc]
            )
        self.assertIn("drain", owner.ready)
        self.assertEqual(owner.ask("GET", "/health").status, 200)
        self.assertEqual(others[0].told("node", "activate", owner.node_id)["state"], "active")
        until("it is ready again", lambda: not owner.ready)
        until("it serves again", lambda: self.cluster.serving(self.key) == (3, 2))
        until("DNS names it again", lambda: owner.public in others[0].names("ns-default"))

    def state(self, node: Node) -> str:
        return next(str(each["state"]) for each in self.nodes[1].listed() if each["node_id"] == node.node_id)

    def rejoin(self, client: Client, user: str) -> Client:
        """Do what a client does that is told ``server-draining``."""
        told = next(message for message in client.received if message["type"] == "server-draining")
        base = told["reconnectUrl"].removesuffix("/v1/webrtc/signal")
        found = Client(self.nodes[0], f"?room={self.room}&api_key={self.key}", base=base)
        self.addCleanup(found.close)
        found.say("join", userId=user, resume=client.received[0]["resume"])
        found.until("turn-credentials")
        client.say("leave")
        return found

    def test_node_goes_down(self) -> None:
        """SIGTERM: everybody is told where to go, the names go from DNS at once, and the node ends with 0."""
        node, other = self.nodes[1], self.nodes[0]
        self.addCleanup(self.cluster.settle)
        here = self.join(node)
        node.signal(signal.SIGTERM)
        told = here.until("server-draining")
        self.assertIn("reconnectUrl", told)
        self.assertNotIn(node.public, told["reconnectUrl"])
        self.rejoin(here, "here")
        self.assertEqual(node.wait(), 0)
        until("DNS does not name it", lambda: node.public not in other.names("ns-default"), 2 * HEARTBEAT + SLACK)
