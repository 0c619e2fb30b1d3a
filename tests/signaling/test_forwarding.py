"""Clients whose room is on another node: handed over as they came, held to the limits here, and told where to go."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import BadRequest
from orama.signaling.session import MAX_ATTEMPTS, State
from orama.signaling.visitors import ForwardedVisitor, read_visitor, write_visitor
from tests.signaling.doubles import ALL, Client, MemoryTrunk, Node, Somebody


class ForwardCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.node.owners["room"] = "node-2"

    @property
    def trunk(self) -> MemoryTrunk:
        return self.node.trunks.trunks[-1]

    def forwarded(self, **fields: Any) -> Client:
        client = self.node.join(**fields)
        self.trunk.say("welcome", peerId="p9")
        self.assertIs(client.session.state, State.FORWARDED)
        return client


class HandoverTests(ForwardCase):
    def test_first_message_as_it_came(self) -> None:
        """The first message goes there byte for byte; what the SFU there says reaches the client as it is."""
        client = self.node.open(visitor=Somebody(user_id="ann"))
        text = '{"type": "join",  "metadata": {"a": 1.0}, "x-new": true}'
        client.raw(text)
        self.assertEqual((self.trunk.node_id, self.trunk.sent), ("node-2", [text]))
        self.assertEqual(self.trunk.visitor, Somebody(user_id="ann"))
        self.trunk.say("welcome", peerId="p9")
        self.trunk.say("from-the-future")
        self.assertEqual(client.socket.types, ["welcome", "from-the-future"])
        self.assertEqual(self.node.rooms.everybody, [])

    def test_offer_first(self) -> None:
        """An offer that comes first is handed over likewise."""
        client = self.node.open()
        client.say("offer", sdp="v=0")
        self.assertEqual(self.trunk.types, ["offer"])

    def test_order(self) -> None:
        """What comes while the client is handed over waits its turn."""
        client = self.node.open()
        client.say("join")
        client.say("offer", sdp="v=0")
        self.assertEqual(self.trunk.types, ["join"])
        self.trunk.say("welcome")
        client.say("ice-candidate", candidate="", sdpMid=None, sdpMLineIndex=None)
        client.raw('{"type": "from-the-future"}')
        self.assertEqual(self.trunk.types, ["join", "offer", "ice-candidate", "from-the-future"])

    def test_resume_there(self) -> None:
        """A token for a seat on the other node goes there; no credentials are made here that nobody gets."""
        self.forwarded(resume="token-of-node-2")
        self.assertIn("token-of-node-2", str(self.trunk.sent[0]))

    def test_here_in_another_process(self) -> None:
        """A room of this node whose SFU is another process is forwarded there."""
        self.node.rooms.elsewhere.add("default")
        self.node.join("other-room")
        self.assertEqual(self.trunk.node_id, "node-1")

    def test_node_without_trunks(self) -> None:
        """A node that is alone tells the client to try again."""
        self.node.lobby._trunks = None
        client = self.node.join()
        self.assertEqual((client.socket.errors, client.socket.code), (["internal"], 1013))


class OwnerTests(ForwardCase):
    def test_gone(self) -> None:
        """Where nobody listens the room is taken over at once, here as elsewhere."""
        self.node.trunks.gone.add("node-2")
        client = self.node.join()
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials"])
        self.assertEqual(len(self.node.claimed), 2)

    def test_silent(self) -> None:
        """Where nobody answers the claim is asked for again, some times, and then the client is told to come again."""
        self.node.trunks.silent.add("node-2")
        client = self.node.join()
        self.assertEqual((client.socket.errors, client.socket.code), (["internal"], 1013))
        self.assertEqual((len(self.node.claimed), self.node.trunks.pauses), (MAX_ATTEMPTS, MAX_ATTEMPTS))

    def test_not_there_either(self) -> None:
        """A node that closes without a word has not got the room any more: the claim says where it is now."""
        client = self.node.join()
        self.node.owners["room"] = "node-3"
        self.trunk.lose(1012)
        self.assertEqual(self.trunk.node_id, "node-3")
        self.trunk.say("welcome")
        self.assertEqual(client.socket.types, ["welcome"])

    def test_no_further(self) -> None:
        """Whom another node has forwarded goes no further, so that nobody runs in circles."""
        client = self.node.open()
        client.session.from_node = True
        client.say("join")
        self.assertEqual((client.socket.code, self.node.trunks.trunks), (1012, []))

    def test_further_inside(self) -> None:
        """But into the process of this node that has the room, where its rooms are in several; not to a third node."""
        self.node.trunks.inward = True
        self.node.rooms.elsewhere.add("default")
        client, astray = self.node.open("here"), self.node.open("room")
        for each in (client, astray):
            each.session.from_node = True
            each.say("join")
        self.assertEqual((self.trunk.node_id, len(self.node.trunks.trunks)), ("node-1", 1))
        self.trunk.say("welcome")
        self.assertEqual((client.socket.types, astray.socket.code), (["welcome"], 1012))

    def test_not_held_to_the_rate_twice(self) -> None:
        """Whom another node has forwarded was held to the message rate there."""
        client = self.node.open("here")
        client.session.from_node = True
        client.say("join")
        for _ in range(1000):
            client.say("track-state", trackId="t", muted=True)
        self.assertEqual(client.socket.errors, [])


class EndTests(ForwardCase):
    def test_closing_codes(self) -> None:
        """The other node's closing code is the client's."""
        for code in (1000, 1001, 1008, 4403, 4409):
            client = self.forwarded()
            self.trunk.lose(code, "why")
            self.assertEqual(client.socket.closed, (code, "why"))

    def test_owner_dies(self) -> None:
        """A trunk that breaks closes the socket with 1012: who joins again finds where the room is now."""
        client = self.forwarded()
        self.trunk.lose()
        self.assertEqual(client.socket.code, 1012)
        self.node.trunks.gone.add("node-2")
        again = self.node.join()
        self.assertEqual(again.socket.types[0], "welcome")

    def test_client_leaves(self) -> None:
        """``leave`` is the other node's business, a lost socket closes the trunk."""
        client = self.forwarded()
        client.say("leave")
        self.assertEqual(self.trunk.types[-1], "leave")
        client.drop()
        self.assertTrue(self.trunk.closed)
        self.assertEqual(len(self.node.lobby), 0)

    def test_lost_while_joining(self) -> None:
        """A client that goes while it is handed over leaves no trunk and no attempt behind."""
        client = self.node.join()
        client.drop()
        self.assertTrue(self.trunk.closed)
        self.assertEqual((len(self.node.trunks.trunks), self.node.trunks.pauses), (1, 0))

    def test_lost_while_the_trunk_opens(self) -> None:
        """Nor does one that goes before the trunk is open."""
        self.node.trunks.opening = opening = Deferred()
        client = self.node.join()
        client.drop()
        opening.callback(None)
        self.assertTrue(self.trunk.closed)
        self.assertEqual(self.trunk.sent, [])

    def test_draining(self) -> None:
        """A gateway that goes down tells those whom it forwards, too, and waits for them."""
        client = self.forwarded()
        done: list[bool] = []
        self.node.lobby.drain("bye", 30, self.node.now, lambda: done.append(True), "wss://two.example/v1/webrtc/signal")
        self.assertEqual(client.socket.last("server-draining")["reconnectUrl"], "wss://two.example/v1/webrtc/signal")
        self.assertEqual(done, [])
        client.drop()
        self.assertEqual(done, [True])

    def test_drain_deadline(self) -> None:
        """At the deadline who is still forwarded is closed with 1001, and the trunk with it."""
        client = self.forwarded()
        self.node.lobby.drain("bye", 2, self.node.now, lambda: None)
        self.node.advance(2)
        self.assertEqual((client.socket.code, self.trunk.closed), (1001, True))


class LimitTests(ForwardCase):
    def test_rate(self) -> None:
        """The message rate holds here: what is too fast is refused and not passed on, and who goes on is closed."""
        client = self.forwarded()
        passed = len(self.trunk.sent)
        for _ in range(199):
            client.say("track-state", trackId="t", muted=True)
        self.assertEqual(len(self.trunk.sent) - passed, 199)
        client.say("track-state", trackId="t", muted=True)
        self.assertEqual((len(self.trunk.sent) - passed, client.socket.errors), (199, ["rate_limited"]))
        for _ in range(300):
            if client.socket.code is None:
                client.say("track-state", trackId="t", muted=True)
        self.assertEqual((client.socket.code, self.trunk.closed), (4429, True))

    def test_binary(self) -> None:
        """A binary frame is refused here."""
        client = self.forwarded()
        client.session.received_binary(self.node.now)
        self.assertEqual(client.socket.errors, ["invalid_message"])
        self.assertEqual(len(self.trunk.sent), 1)


class NamespaceDrainTests(SynchronousTestCase):
    """The SFU of one namespace goes, the node stays."""

    def setUp(self) -> None:
        self.node = Node()
        self.done: list[str] = []

    def drain(self, seconds: float = 30.0, url: str | None = "wss://two.example/v1/webrtc/signal") -> None:
        lobby = self.node.lobby
        lobby.drain_namespace("default", "moving", seconds, self.node.now, lambda: self.done.append("done"), url)

    def test_told_and_waited_for(self) -> None:
        """Those in its rooms are told where to go and may stay until the deadline; the others hear nothing."""
        here, other = self.node.join(), self.node.join(visitor=Somebody(namespace="other"))
        self.drain()
        notice = here.socket.last("server-draining")
        self.assertEqual((notice["deadlineMs"], notice["reconnectUrl"]), (30000, "wss://two.example/v1/webrtc/signal"))
        self.assertNotIn("server-draining", other.socket.types)
        self.assertEqual(self.done, [])
        here.say("leave")
        here.drop()
        self.assertEqual(self.done, ["done"])

    def test_deadline(self) -> None:
        """At the deadline they are closed with 1001."""
        client, away = self.node.join(), self.node.join()
        away.drop()
        self.drain(2)
        self.assertTrue(away.peer.left)
        self.node.advance(2)
        self.assertEqual((client.socket.code, self.done), (1001, ["done"]))
        self.assertTrue(client.peer.left)

    def test_nobody(self) -> None:
        """With nobody there it is done at once."""
        self.drain()
        self.assertEqual(self.done, ["done"])

    def test_undrained(self) -> None:
        """Taken back, nobody is put out."""
        client = self.node.join()
        self.drain(2)
        self.node.lobby.undrain_namespace("default")
        self.node.advance(5)
        self.assertEqual((client.socket.code, self.done), (None, ["done"]))

    def test_undrained_node(self) -> None:
        """A node that was drained and stays after all lets people in again."""
        client = self.node.join()
        self.node.lobby.drain("bye", 2, self.node.now, lambda: self.done.append("done"))
        self.node.lobby.undrain()
        self.node.advance(5)
        self.assertEqual((client.socket.code, self.done), (None, ["done"]))
        self.assertEqual(self.node.join().socket.types[0], "welcome")

    def test_lost_room(self) -> None:
        """Those in a room that has become another node's are sent after it with 1012; unless a drain gave them time."""
        one, away, other = self.node.join(), self.node.join(), self.node.join("elsewhere")
        away.drop()
        self.node.lobby.lose_room("default", "room")
        self.assertEqual((one.socket.code, other.socket.code), (1012, None))
        self.assertTrue(one.peer.left and away.peer.left)
        self.drain()
        self.node.lobby.lose_room("default", "elsewhere")
        self.assertIsNone(other.socket.code)

    def test_lost_namespace(self) -> None:
        """When the SFU of a namespace goes on elsewhere its people are told to join again; nobody's room was closed."""
        one, away, other = self.node.join(), self.node.join("b"), self.node.join(visitor=Somebody(namespace="other"))
        away.drop()
        self.node.lobby.lose_namespace("default")
        self.assertEqual((one.socket.code, other.socket.code), (1012, None))
        self.assertNotIn("room-closed", one.socket.types)
        self.assertTrue(one.peer.left and away.peer.left)


class VisitorTests(SynchronousTestCase):
    texts = st.text(max_size=20)

    @given(
        namespace=texts,
        role=st.sampled_from(["owner", "member"]),
        user_id=st.none() | texts,
        some=st.booleans(),
        permissions=st.frozensets(st.sampled_from(sorted(ALL))),
    )
    def test_round_trip(
        self, namespace: str, role: str, user_id: str | None, some: bool, permissions: frozenset[str]
    ) -> None:
        """A visitor arrives as they were, with the one room that they were let in for."""
        rooms = frozenset({"room", "other"}) if some else None
        visitor = ForwardedVisitor(namespace, role, user_id, rooms, permissions)
        read = read_visitor(write_visitor(visitor, "room"))
        self.assertEqual(
            read, ForwardedVisitor(namespace, role, user_id, frozenset({"room"}) if some else None, permissions)
        )

    @given(st.text() | st.binary().map(lambda raw: raw.hex()))
    def test_any_text(self, text: str) -> None:
        """Anything else is refused."""
        with self.assertRaises(BadRequest):
            read_visitor(text)

    def test_fields(self) -> None:
        """So is a visitor with something wrong."""
        good = json.loads(_decoded(write_visitor(Somebody(), "room")))
        for name, value in (
            ("namespace", 1),
            ("role", "root"),
            ("user_id", 1),
            ("rooms", "room"),
            ("rooms", [1]),
            ("permissions", None),
        ):
            with self.assertRaises(BadRequest):
                read_visitor(_encoded({**good, name: value}))
        self.assertEqual(read_visitor(_encoded(good)).namespace, "default")


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(fields: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(fields).encode()).decode()
