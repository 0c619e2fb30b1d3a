"""The state machine of a socket, row by row of the contract's section 4, without a socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import SignalError, Unavailable
from orama.sfu import events
from orama.signaling.codes import CODES
from orama.signaling.session import MAX_WAITING, State
from tests.signaling.doubles import ALL, Node, Somebody

OWNER = Somebody(role="owner")


class JoinTests(SynchronousTestCase):
    """The first message, and what it leads to."""

    def test_welcome_comes_first_then_credentials_then_events(self) -> None:
        """``welcome``, ``turn-credentials`` right after it, and only then what the SFU has to say."""
        node = Node()
        client = node.open()
        original = node.rooms.join

        def join(*args: Any, **kwargs: Any) -> Any:
            peer = original(*args, **kwargs)
            peer.tell(events.Offer("v=0"))
            return peer

        node.rooms.join = join  # type: ignore[method-assign]
        client.say("join")
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials", "offer"])

    def test_welcome_fields(self) -> None:
        """``welcome`` holds peerId, roomId, userId, resume and the others, without yourself."""
        node = Node()
        first = node.join(userId="ann", metadata={"name": "Ann"})
        second = node.join(userId="bob")
        self.assertEqual(
            first.socket.sent[0],
            {"type": "welcome", "peerId": "p1", "roomId": "room", "userId": "ann", "resume": first.resume, "peers": []},
        )
        self.assertEqual(
            second.socket.sent[0]["peers"],
            [{"peerId": "p1", "userId": "ann", "metadata": {"name": "Ann"}, "tracks": []}],
        )

    def test_credentials_fields(self) -> None:
        """``turn-credentials`` holds uris, username, password and ttl, for the user that joined."""
        node = Node()
        client = node.join(userId="ann")
        self.assertEqual(
            client.socket.sent[1],
            {
                "type": "turn-credentials",
                "uris": ["turn:127.0.0.1:3478?transport=udp"],
                "username": f"{node.now:.0f}:default",
                "password": "pw",
                "ttl": 600,
            },
        )
        self.assertEqual(node.issued, [("default", "ann")])

    def test_others_learn(self) -> None:
        """The others get ``peer-joined`` with peerId, userId and metadata."""
        node = Node()
        first = node.join()
        node.join(userId="bob", metadata={"name": "Bob"})
        self.assertEqual(
            first.socket.sent[-1], {"type": "peer-joined", "peerId": "p2", "userId": "bob", "metadata": {"name": "Bob"}}
        )

    def test_metadata_is_an_object_when_none_was_given(self) -> None:
        """A page can read ``metadata.name`` of a peer that gave none."""
        node = Node()
        first = node.join()
        node.join()
        self.assertEqual(first.socket.last("peer-joined")["metadata"], {})

    def test_room_of_the_message(self) -> None:
        """Without ``?room=`` the message names the room."""
        node = Node()
        client = node.open(None)
        client.say("join", roomId="other")
        self.assertEqual(client.socket.last("welcome")["roomId"], "other")

    def test_no_room_at_all(self) -> None:
        """Neither the address nor the message names a room: ``invalid_join``, and a better join may follow."""
        client = Node().open(None)
        client.say("join")
        self.assertEqual(client.socket.errors, ["invalid_join"])
        client.say("join", roomId="room")
        self.assertEqual(client.socket.types[1:], ["welcome", "turn-credentials"])

    def test_room_mismatch(self) -> None:
        """``roomId`` must equal ``?room=``; the error is not fatal."""
        client = Node().open("room")
        client.say("join", roomId="other")
        self.assertEqual(client.socket.errors, ["room_mismatch"])
        self.assertFalse(client.socket.sent[0]["fatal"])
        client.say("join", roomId="room")
        self.assertIs(client.session.state, State.JOINED)

    def test_user_of_a_token(self) -> None:
        """``userId`` is ignored under a JWT: ``sub`` it is."""
        client = Node().join(visitor=Somebody(user_id="sub"), userId="somebody else")
        self.assertEqual(client.socket.last("welcome")["userId"], "sub")

    def test_user_without_a_name(self) -> None:
        """Under an API key without ``userId`` everybody gets a name of their own."""
        node = Node()
        names = {node.join().socket.last("welcome")["userId"] for _ in range(3)}
        self.assertEqual(len(names), 3)

    def test_rights_reach_the_room(self) -> None:
        """Role and permissions of the credential are those of the peer."""
        node = Node()
        self.assertTrue(node.join(visitor=OWNER).peer.owner)
        self.assertFalse(node.join().peer.owner)

    def test_offer_first(self) -> None:
        """An ``offer`` that comes first joins the room of ``?room=`` and publishes."""
        client = Node().open("room")
        client.say("offer", sdp="v=0", sources={"0": "screen"})
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials"])
        self.assertEqual(client.peer.calls, [("offer", "v=0", {"0": "screen"})])

    def test_offer_first_without_a_room(self) -> None:
        """There is no room to join by an offer without ``?room=``."""
        client = Node().open(None)
        client.say("offer", sdp="v=0")
        self.assertEqual(client.socket.errors, ["invalid_join"])

    def test_bad_offer_first(self) -> None:
        """The room is joined, and the offer is answered with what is wrong with it."""
        node = Node()
        client = node.open("room")
        original = node.rooms.join

        def join(*args: Any, **kwargs: Any) -> Any:
            peer = original(*args, **kwargs)
            peer.fails = SignalError("invalid_offer", "no bundle")
            return peer

        node.rooms.join = join  # type: ignore[method-assign]
        client.say("offer", sdp="v=0")
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials", "error"])
        self.assertEqual(client.socket.errors, ["invalid_offer"])

    def test_anything_else_first(self) -> None:
        """Every other type before joining is ``not_joined``, and joining is still possible."""
        client = Node().open()
        for kind, fields in (
            ("answer", {"sdp": "v=0"}),
            ("ice-candidate", {"candidate": ""}),
            ("track-state", {"trackId": "t", "muted": True}),
            ("subscribe", {"trackId": "t"}),
            ("unsubscribe", {"trackId": "t"}),
            ("kick", {"peerId": "p"}),
            ("mute", {"trackId": "t"}),
            ("leave", {}),
        ):
            client.say(kind, **fields)
        self.assertEqual(client.socket.errors, ["not_joined"] * 8)
        client.say("join")
        self.assertIs(client.session.state, State.JOINED)

    def test_join_twice(self) -> None:
        """A second ``join`` is ``invalid_join``, not fatal, and changes nothing."""
        node = Node()
        client = node.join()
        client.say("join")
        self.assertEqual(client.socket.sent[-1]["code"], "invalid_join")
        self.assertFalse(client.socket.sent[-1]["fatal"])
        self.assertEqual(len(node.rooms.everybody), 1)
        self.assertIsNone(client.socket.closed)

    def test_timeout(self) -> None:
        """Nothing within 10 s: 4408. What is no join does not buy time."""
        node = Node()
        client = node.open()
        node.advance(9)
        client.say("leave")
        self.assertIsNone(client.socket.closed)
        node.advance(1)
        self.assertEqual(client.socket.code, 4408)

    def test_no_timeout_once_joined(self) -> None:
        """Whoever has joined may be silent."""
        node = Node()
        client = node.join()
        node.advance(60)
        self.assertIsNone(client.socket.closed)

    def test_no_timeout_while_the_directory_thinks(self) -> None:
        """The wait is for the client's message, not for our database."""
        node = Node()
        node.claiming = Deferred()
        client = node.join()
        node.advance(11)
        self.assertIsNone(client.socket.closed)
        node.claiming.callback(None)
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials"])

    def test_room_full(self) -> None:
        """``room_full`` is fatal."""
        node = Node()
        node.limit = 1
        node.join()
        client = node.join()
        self.assertEqual(
            client.socket.sent, [{"type": "error", "code": "room_full", "message": "the room is full", "fatal": True}]
        )
        self.assertEqual(client.socket.code, 1013)

    def test_room_of_another_token(self) -> None:
        """A JWT whose ``rooms`` lacks the room: ``forbidden``, 4403, and nothing was claimed."""
        node = Node()
        client = node.open(None, Somebody(user_id="u", rooms=frozenset({"mine"})))
        client.say("join", roomId="other")
        self.assertEqual(client.socket.errors, ["forbidden"])
        self.assertEqual(client.socket.code, 4403)
        self.assertEqual(node.claimed, [])

    def test_room_of_the_token(self) -> None:
        """A room in ``rooms`` may be joined."""
        client = Node().join("mine", Somebody(user_id="u", rooms=frozenset({"mine"})))
        self.assertIs(client.session.state, State.JOINED)

    def test_unknown_room(self) -> None:
        """A room that does not come into being by joining: 4404."""
        node = Node()
        node.unknown.add("room")
        client = node.join()
        self.assertEqual((client.socket.errors, client.socket.code), (["invalid_join"], 4404))

    def test_namespaces_are_apart(self) -> None:
        """The same room id in two namespaces is two rooms."""
        node = Node()
        node.join(visitor=Somebody("one"))
        second = node.join(visitor=Somebody("two"))
        self.assertEqual(second.socket.last("welcome")["peers"], [])
        self.assertEqual(set(node.rooms.rooms), {("one", "room"), ("two", "room")})

    def test_directory_is_away(self) -> None:
        """Something of ours fails: ``internal``, no detail, and the client may try again on the same socket."""
        node = Node()
        node.claiming = Deferred()
        client = node.join()
        failing, node.claiming = node.claiming, None
        failing.errback(RuntimeError("password=hunter2"))
        self.assertEqual(client.socket.errors, ["internal"])
        self.assertNotIn("hunter2", str(client.socket.sent))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        client.say("join")
        self.assertIs(client.session.state, State.JOINED)

    def test_database_unavailable(self) -> None:
        """A named failure keeps its text and becomes ``internal``."""
        node = Node()
        node.issuing = Deferred()
        client = node.join()
        node.issuing.errback(Unavailable("starting", "the database is away"))
        self.assertEqual(client.socket.errors, ["internal"])
        self.assertEqual(client.socket.sent[0]["message"], "the database is away")


class OrderTests(SynchronousTestCase):
    """One message after the other."""

    def test_an_offer_does_not_overtake_a_join(self) -> None:
        """What follows a join that takes its time is handled after it, in order."""
        node = Node()
        node.claiming = Deferred()
        client = node.join()
        client.say("offer", sdp="v=0")
        client.say("ice-candidate", candidate="")
        client.say("join")
        self.assertEqual(client.socket.sent, [])
        node.claiming.callback(None)
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials", "error"])
        self.assertEqual([call[0] for call in client.peer.calls], ["offer", "candidate"])

    def test_queue_is_bounded(self) -> None:
        """More than a bounded number of waiting messages is ``rate_limited``."""
        node = Node(message_burst=10_000)
        node.claiming = Deferred()
        client = node.join()
        for _ in range(MAX_WAITING + 3):
            client.say("ice-candidate", candidate="")
        self.assertEqual(client.socket.errors, ["rate_limited"] * 3)
        node.claiming.callback(None)
        self.assertEqual(len(client.peer.calls), MAX_WAITING)

    def test_socket_lost_while_joining(self) -> None:
        """Who is gone before the directory has answered never enters the room."""
        for step in ("claiming", "issuing"):
            node = Node()
            waiting: Deferred[None] = Deferred()
            setattr(node, step, waiting)
            client = node.join()
            client.drop()
            waiting.callback(None)
            self.assertEqual(node.rooms.everybody, [])
            self.assertEqual(client.socket.sent, [])
            self.assertEqual(len(node.lobby), 0)

    def test_leave_while_messages_wait(self) -> None:
        """After ``leave`` nothing that waited is handled."""
        node = Node()
        node.claiming = Deferred()
        client = node.join()
        client.say("leave")
        client.say("offer", sdp="v=0")
        node.claiming.callback(None)
        self.assertEqual(client.peer.calls, [("leave", "left")])


class RequestTests(SynchronousTestCase):
    """What a client may say once it is in."""

    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.join()

    def test_every_request_reaches_the_peer(self) -> None:
        """offer, answer, ice-candidate, track-state, subscribe, unsubscribe and receive, field by field."""
        say = self.client.say
        say("offer", sdp="o")
        say("answer", sdp="a")
        say("ice-candidate", candidate="candidate:1", sdpMid="0", sdpMLineIndex=0, usernameFragment="abcd")
        say("ice-candidate", candidate="", sdpMid=None, sdpMLineIndex=None)
        say("track-state", trackId="t", muted=True)
        say("subscribe", trackId="t")
        say("subscribe", trackId="t", layer="high", priority=3)
        say("unsubscribe", trackId="t")
        self.client.raw('{"type": "receive", "kind": "video", "lastN": 9, "tracks": ["t", "u"]}')
        self.client.raw('{"type": "receive", "kind": "audio"}')
        self.assertEqual(
            self.client.peer.calls,
            [
                ("offer", "o", {}),
                ("answer", "a"),
                ("candidate", "candidate:1", "0", 0, "abcd"),
                ("candidate", "", None, None, None),
                ("track_state", "t", True),
                ("subscribe", "t", "auto", 0),
                ("subscribe", "t", "high", 3),
                ("unsubscribe", "t"),
                ("receive", "video", 9, ("t", "u")),
                ("receive", "audio", None, ()),
            ],
        )
        self.assertEqual(self.client.socket.types, ["welcome", "turn-credentials"])

    def test_errors_of_the_peer(self) -> None:
        """What the SFU refuses is an ``error`` with its code, and the socket lives on."""
        for code in ("invalid_offer", "invalid_answer", "invalid_candidate", "unknown_track", "forbidden"):
            self.client.peer.fails = SignalError(code, "no")
            self.client.say("answer", sdp="a")
            expected = {"type": "error", "code": code, "message": "no", "fatal": False}
            self.assertEqual(self.client.socket.sent[-1], expected)
        self.assertIsNone(self.client.socket.closed)

    def test_bug_in_the_peer(self) -> None:
        """Any other failure is ``internal``, logged, and tells the client nothing."""
        self.client.peer.fails = ZeroDivisionError("secret")
        self.client.say("answer", sdp="a")
        self.assertEqual(self.client.socket.errors, ["internal"])
        self.assertNotIn("secret", self.client.socket.sent[-1]["message"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.client.peer.fails = None
        self.client.say("answer", sdp="b")
        self.assertEqual(self.client.peer.calls[-1], ("answer", "b"))

    def test_foreign_code(self) -> None:
        """A code that the contract does not have never reaches a client."""
        self.client.peer.fails = SignalError("no_such_code", "no")
        self.client.say("answer", sdp="a")
        self.assertEqual(self.client.socket.errors, ["internal"])

    def test_fatal_error_of_the_peer(self) -> None:
        """A fatal error ends the socket and the peer."""
        self.client.peer.fails = SignalError("internal", "no", fatal=True)
        peer = self.client.peer
        self.client.say("answer", sdp="a")
        self.assertEqual(self.client.socket.code, 1011)
        self.assertTrue(peer.left)

    def test_invalid_messages(self) -> None:
        """Each malformed message has its exact code; none ends the socket."""
        for text, code in (
            ("", "invalid_message"),
            ("{", "invalid_message"),
            ("[]", "invalid_message"),
            ("{}", "invalid_message"),
            ('{"type": 7}', "invalid_message"),
            ('{"type": "nonsense"}', "unknown_type"),
            ('{"type": "welcome"}', "unknown_type"),
            ('{"type": "offer"}', "invalid_offer"),
            ('{"type": "offer", "sdp": 1}', "invalid_offer"),
            ('{"type": "answer", "sdp": ""}', "invalid_answer"),
            ('{"type": "ice-candidate"}', "invalid_candidate"),
            ('{"type": "ice-candidate", "candidate": "' + "x" * 5000 + '"}', "invalid_candidate"),
            ('{"type": "join", "roomId": "a b"}', "invalid_join"),
            ('{"type": "subscribe"}', "invalid_message"),
            ('{"type": "subscribe", "trackId": "t", "layer": "best"}', "invalid_message"),
            ('{"type": "track-state", "trackId": "t", "muted": "yes"}', "invalid_message"),
        ):
            self.client.raw(text)
            self.assertEqual(self.client.socket.sent[-1].get("code"), code, text)
        self.assertIsNone(self.client.socket.closed)

    def test_binary(self) -> None:
        """Binary frames are ``invalid_message``."""
        self.client.session.received_binary(self.node.now)
        self.assertEqual(self.client.socket.errors, ["invalid_message"])

    def test_leave(self) -> None:
        """``leave`` ends the peer at once, for the others too, and closes the socket with 1000."""
        other = self.node.join()
        self.client.say("leave")
        self.assertEqual(self.client.socket.code, 1000)
        self.assertEqual(other.socket.sent[-1], {"type": "peer-left", "peerId": "p1", "reason": "left"})
        self.assertEqual(len(self.node.lobby.seats), 1)

    def test_kick_and_mute_need_an_owner(self) -> None:
        """``kick`` and ``mute`` are for owners; anybody else gets ``forbidden`` and nothing happens."""
        other = self.node.join()
        self.client.say("kick", peerId="p2")
        self.client.say("mute", trackId="t")
        self.assertEqual(self.client.socket.errors, ["forbidden", "forbidden"])
        self.assertIsNone(self.client.socket.closed)
        self.assertEqual(self.client.peer.calls, [])
        self.assertFalse(other.peer.left)

    def test_kick(self) -> None:
        """An owner puts a peer out: it gets ``kicked`` and its socket closes; the others learn why it left."""
        owner = self.node.join(visitor=OWNER)
        owner.say("kick", peerId="p1")
        self.assertEqual(self.client.socket.sent[-1], {"type": "kicked", "reason": "kicked"})
        self.assertEqual(self.client.socket.code, 1000)
        self.assertEqual(owner.socket.sent[-1], {"type": "peer-left", "peerId": "p1", "reason": "kicked"})

    def test_mute(self) -> None:
        """An owner's ``mute`` reaches the SFU."""
        owner = self.node.join(visitor=OWNER)
        owner.say("mute", trackId="t")
        self.assertEqual(owner.peer.calls, [("mute", "t")])


class EventTests(SynchronousTestCase):
    """What the SFU tells a client."""

    def test_every_event(self) -> None:
        """Each event is one flat message of the contract, fields in camelCase, None left out."""
        client = Node().join()
        for event, message in (
            (events.Offer("o"), {"type": "offer", "sdp": "o"}),
            (events.Answer("a"), {"type": "answer", "sdp": "a"}),
            (
                events.IceCandidate("candidate:1", "0", 0, None),
                {"type": "ice-candidate", "candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0},
            ),
            (
                events.TrackAdded("p", "t", "video", "screen", "3", ("low", "high")),
                {
                    "type": "track-added",
                    "peerId": "p",
                    "trackId": "t",
                    "kind": "video",
                    "source": "screen",
                    "mid": "3",
                    "layers": ["low", "high"],
                    "muted": False,
                },
            ),
            (
                events.TrackRemoved("p", "t", "video", "camera", None, ("low", "high")),
                {
                    "type": "track-removed",
                    "peerId": "p",
                    "trackId": "t",
                    "kind": "video",
                    "source": "camera",
                    "layers": ["low", "high"],
                },
            ),
            (
                events.Slot("s1", "video", "p", "t"),
                {"type": "slot", "mid": "s1", "kind": "video", "peerId": "p", "trackId": "t"},
            ),
            (events.Slot("s1", "video"), {"type": "slot", "mid": "s1", "kind": "video"}),
            (events.TrackState("t", True), {"type": "track-state", "trackId": "t", "muted": True}),
            (
                events.TrackState("t", False, ("low", "high")),
                {"type": "track-state", "trackId": "t", "muted": False, "layers": ["low", "high"]},
            ),
            (
                events.Layers("t", "0", ("low",), ("q",)),
                {"type": "layers", "trackId": "t", "mid": "0", "layers": ["low"], "rids": ["q"]},
            ),
            (
                events.ActiveSpeakers(({"peerId": "p", "level": 90},)),
                {"type": "active-speakers", "peers": [{"peerId": "p", "level": 90}]},
            ),
            (events.DataChannel("p", "chat", 3), {"type": "data-channel", "peerId": "p", "label": "chat", "id": 3}),
            (events.PeerLeft("p", "timeout"), {"type": "peer-left", "peerId": "p", "reason": "timeout"}),
        ):
            client.peer.tell(event)
            self.assertEqual(client.socket.sent[-1], message)

    def test_room_closed(self) -> None:
        """``room-closed`` with its reason; then the socket closes, for everybody in it."""
        node = Node()
        clients = [node.join(), node.join()]
        node.rooms.close("default", "room")
        for client in clients:
            self.assertEqual(client.socket.last("room-closed"), {"type": "room-closed", "reason": "closed"})
            self.assertEqual(client.socket.code, 1000)
        self.assertEqual(len(node.lobby.seats), 0)

    def test_error_event(self) -> None:
        """An error that comes from the SFU by itself looks like any other."""
        client = Node().join()
        client.peer.tell(events.Error("internal", "dtls failed", fatal=True))
        self.assertEqual(client.socket.errors, ["internal"])
        self.assertEqual(client.socket.code, 1011)

    def test_codes(self) -> None:
        """The codes are those of the contract, all thirteen."""
        self.assertEqual(len(CODES), 13)


class RefreshTests(SynchronousTestCase):
    """Credentials never run out under a peer."""

    def test_at_eighty_per_cent_and_for_as_long_as_the_peer_stays(self) -> None:
        """``refresh-credentials`` with the same fields at 80 % of the ttl, again and again."""
        node = Node()
        client = node.join(userId="ann")
        node.advance(479.5)
        self.assertNotIn("refresh-credentials", client.socket.types)
        node.advance(0.5)
        fresh = client.socket.last("refresh-credentials")
        self.assertEqual(set(fresh), {"type", "uris", "username", "password", "ttl"})
        self.assertEqual(fresh["username"], f"{node.now:.0f}:default")
        node.advance(480 * 3)
        self.assertEqual(client.socket.types.count("refresh-credentials"), 4)
        self.assertEqual(node.issued, [("default", "ann")] * 5)

    def test_short_ttl(self) -> None:
        """A ttl of 20 s is renewed after 16."""
        node = Node()
        node.ttl = 20
        client = node.join()
        node.advance(60)
        self.assertEqual(client.socket.types.count("refresh-credentials"), 3)

    def test_failure_is_tried_again(self) -> None:
        """A database that is away delays the renewal and does not end it."""
        node = Node()
        client = node.join()
        node.issuing = Deferred()
        node.advance(480)
        failing, node.issuing = node.issuing, None
        failing.errback(RuntimeError("away"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        node.advance(3)
        self.assertEqual(client.socket.types.count("refresh-credentials"), 1)

    def test_not_after_leaving(self) -> None:
        """Nobody is sent anything after the end, also when the renewal was under way."""
        node = Node()
        client = node.join()
        node.issuing = Deferred()
        node.advance(480)
        client.say("leave")
        node.issuing.callback(None)
        node.advance(1000)
        self.assertNotIn("refresh-credentials", client.socket.types)


class ResumeTests(SynchronousTestCase):
    """A socket that drops keeps its media for 15 s."""

    def test_takes_the_place_again(self) -> None:
        """Same peerId, a new token, credentials, then what was missed; nobody else notices and media is not touched."""
        node = Node()
        other = node.join()
        client = node.join(userId="ann")
        before = len(other.socket.sent)
        client.drop()
        client.peer.tell(events.TrackState("t", True))
        node.advance(14)
        again = node.join(resume=client.resume)
        self.assertEqual(again.socket.types, ["welcome", "turn-credentials", "track-state"])
        self.assertEqual(again.socket.last("welcome")["peerId"], "p2")
        self.assertEqual(again.socket.last("welcome")["userId"], "ann")
        self.assertEqual([peer["peerId"] for peer in again.socket.last("welcome")["peers"]], ["p1"])
        self.assertNotEqual(again.resume, client.resume)
        self.assertEqual(client.peer.calls, [("detach",), ("attach",)])
        self.assertEqual(len(other.socket.sent), before)
        again.say("answer", sdp="a")
        self.assertEqual(again.peer.calls[-1], ("answer", "a"))

    def test_too_late(self) -> None:
        """After 15 s the token is worth nothing: the client joins anew as a fresh peer."""
        node = Node()
        client = node.join()
        client.drop()
        node.advance(15)
        again = node.join(resume=client.resume)
        self.assertEqual(again.socket.last("welcome")["peerId"], "p2")

    def test_old_socket_is_replaced(self) -> None:
        """The old socket may still look open: it is closed with 4409 and its end changes nothing."""
        node = Node()
        client = node.join()
        again = node.join(resume=client.resume)
        self.assertEqual(client.socket.code, 4409)
        client.drop()
        self.assertEqual(again.socket.last("welcome")["peerId"], "p1")
        self.assertFalse(again.peer.left)
        again.peer.tell(events.TrackState("t", True))
        self.assertEqual(again.socket.types[-1], "track-state")
        self.assertEqual(client.socket.types.count("track-state"), 0)

    def test_a_token_works_once(self) -> None:
        """The second use of a token is a fresh peer, and the first stays where it is."""
        node = Node()
        client = node.join()
        client.drop()
        again = node.join(resume=client.resume)
        third = node.join(resume=client.resume)
        self.assertIsNone(again.socket.closed)
        self.assertEqual(third.socket.last("welcome")["peerId"], "p2")

    def test_bound_to_namespace_room_user_and_rights(self) -> None:
        """A token is good for its own namespace, room, user and rights; elsewhere it is as if it were not there."""
        ann = Somebody(user_id="ann")
        for visitor, room in (
            (Somebody("other", user_id="ann"), "room"),
            (ann, "other"),
            (Somebody(user_id="bob"), "room"),
            (Somebody(user_id="ann", role="owner"), "room"),
            (Somebody(user_id="ann", permissions=ALL - {"publish"}), "room"),
        ):
            node = Node()
            client = node.join("room", ann)
            client.drop()
            again = node.join(room, visitor, resume=client.resume)
            self.assertEqual(again.socket.last("welcome")["peerId"], "p2")
            mine = node.join("room", ann, resume=client.resume)
            self.assertEqual(mine.socket.last("welcome")["peerId"], "p1")

    def test_unknown_token(self) -> None:
        """A token that was never given joins anew."""
        client = Node().join(resume="guess")
        self.assertEqual(client.socket.types, ["welcome", "turn-credentials"])

    def test_not_after_leaving(self) -> None:
        """Who left has no place to come back to."""
        node = Node()
        client = node.join()
        client.say("leave")
        client.drop()
        again = node.join(resume=client.resume)
        self.assertEqual(again.socket.last("welcome")["peerId"], "p2")

    def test_dropped_while_resuming(self) -> None:
        """A socket that drops before its ``welcome`` has used nothing up."""
        node = Node()
        client = node.join()
        client.drop()
        node.issuing = Deferred()
        again = node.join(resume=client.resume)
        again.drop()
        waiting, node.issuing = node.issuing, None
        waiting.callback(None)
        self.assertEqual(again.socket.sent, [])
        third = node.join(resume=client.resume)
        self.assertEqual(third.socket.last("welcome")["peerId"], "p1")

    def test_gone_while_away(self) -> None:
        """A peer that was put out, or timed out, while its socket was away is gone: the client joins anew."""
        node = Node()
        owner = node.join(visitor=OWNER)
        client = node.join()
        client.drop()
        owner.say("kick", peerId="p2")
        again = node.join(resume=client.resume)
        self.assertEqual(again.socket.last("welcome")["peerId"], "p3")
        node.advance(1)
        self.assertEqual(len(node.lobby.seats), 2)

    def test_credentials_go_on(self) -> None:
        """The resumed socket is sent renewals, the old one nothing."""
        node = Node()
        client = node.join()
        client.drop()
        again = node.join(resume=client.resume)
        node.advance(480)
        self.assertEqual(again.socket.types.count("refresh-credentials"), 1)
        self.assertNotIn("refresh-credentials", client.socket.types)

    def test_nothing_grows(self) -> None:
        """A thousand joins that drop leave no seat behind once their time is over."""
        node = Node()
        for _ in range(1000):
            node.join().drop()
        self.assertEqual(len(node.lobby), 0)
        node.advance(15)
        self.assertEqual(len(node.lobby.seats), 0)


class RateTests(SynchronousTestCase):
    """A client may talk so fast."""

    def test_too_fast(self) -> None:
        """Beyond the burst messages are refused with ``rate_limited``, one error each, not fatal."""
        node = Node(message_rate=10, message_burst=20)
        client = node.join()
        for _ in range(22):
            client.say("ice-candidate", candidate="")
        self.assertEqual(client.socket.errors, ["rate_limited"] * 3)
        self.assertEqual(len(client.peer.calls), 19)
        self.assertIsNone(client.socket.closed)

    def test_recovers(self) -> None:
        """Who slows down is heard again."""
        node = Node(message_rate=10, message_burst=20)
        client = node.join()
        for _ in range(25):
            client.say("ice-candidate", candidate="")
        node.advance(1)
        client.say("answer", sdp="a")
        self.assertEqual(client.peer.calls[-1], ("answer", "a"))

    def test_persists(self) -> None:
        """Going on regardless is 4429, and the peer is out."""
        node = Node(message_rate=10, message_burst=20)
        client = node.join()
        peer = client.peer
        for _ in range(200):
            client.raw("nonsense")
        self.assertEqual(client.socket.code, 4429)
        self.assertEqual(client.socket.sent[-1]["code"], "rate_limited")
        self.assertTrue(client.socket.sent[-1]["fatal"])
        self.assertTrue(peer.left)

    def test_before_joining(self) -> None:
        """The rate holds for whoever has not joined, too."""
        node = Node(message_rate=10, message_burst=20)
        client = node.open()
        for _ in range(200):
            client.session.received_binary(node.now)
        self.assertEqual(client.socket.code, 4429)

    def test_steady_talk_is_free(self) -> None:
        """A client at the rate is never refused."""
        node = Node(message_rate=10, message_burst=20)
        client = node.join()
        for _ in range(100):
            node.advance(0.5)
            for _ in range(5):
                client.say("ice-candidate", candidate="")
        self.assertEqual(client.socket.errors, [])


class DrainTests(SynchronousTestCase):
    """The node goes down."""

    def setUp(self) -> None:
        self.node = Node()
        self.ended: list[float] = []

    def drain(self, seconds: float = 30.0, url: str | None = None) -> None:
        self.node.lobby.drain("restart", seconds, self.node.now, lambda: self.ended.append(self.node.now), url)

    def test_existing_peers_are_told_at_once(self) -> None:
        """``server-draining {reason, deadlineMs, reconnectUrl?}``, and the call goes on."""
        client = self.node.join()
        self.drain(30, "wss://two.example/v1/webrtc/signal")
        self.assertEqual(
            client.socket.sent[-1],
            {
                "type": "server-draining",
                "reason": "restart",
                "deadlineMs": 30000,
                "reconnectUrl": "wss://two.example/v1/webrtc/signal",
            },
        )
        client.say("answer", sdp="a")
        self.assertEqual(client.peer.calls, [("answer", "a")])
        self.assertIsNone(client.socket.closed)

    def test_new_joins_are_refused(self) -> None:
        """Who joins now gets ``server-draining`` and 1001, by join or by offer."""
        self.node.join()
        self.drain()
        self.node.advance(10)
        client = self.node.join()
        self.assertEqual(client.socket.sent, [{"type": "server-draining", "reason": "restart", "deadlineMs": 20000}])
        self.assertEqual(client.socket.code, 1001)
        offering = self.node.open()
        offering.say("offer", sdp="v=0")
        self.assertEqual((offering.socket.types, offering.socket.code), (["server-draining"], 1001))
        self.assertEqual(len(self.node.rooms.everybody), 1)

    def test_waiting_sockets_are_refused(self) -> None:
        """A socket that has not joined yet is told and closed at once."""
        client = self.node.open()
        self.drain()
        self.assertEqual((client.socket.types, client.socket.code), (["server-draining"], 1001))

    def test_join_under_way_is_refused(self) -> None:
        """A join that was waiting for the directory when the drain began does not slip in."""
        self.node.claiming = Deferred()
        client = self.node.join()
        self.drain()
        self.assertEqual(self.ended, [])
        self.node.claiming.callback(None)
        self.assertEqual((client.socket.types, client.socket.code), (["server-draining"], 1001))
        self.node.advance(1)
        self.assertEqual(len(self.ended), 1)

    def test_empty_node(self) -> None:
        """Nobody is there: the end is now."""
        self.drain()
        self.assertEqual(len(self.ended), 1)

    def test_ends_with_the_last_one(self) -> None:
        """The drain ends when the last peer has left, once."""
        first, second = self.node.join(), self.node.join()
        self.drain()
        self.node.advance(3)
        first.say("leave")
        first.drop()
        self.node.advance(1)
        self.assertEqual(self.ended, [])
        second.say("leave")
        second.drop()
        self.assertEqual(self.ended, [self.node.now])
        self.node.advance(60)
        self.assertEqual(len(self.ended), 1)

    def test_dropping_the_socket_is_leaving(self) -> None:
        """During a drain nobody keeps a place for whoever went elsewhere."""
        client = self.node.join()
        self.drain()
        client.drop()
        self.assertTrue(client.peer.left)
        self.assertEqual(len(self.ended), 1)

    def test_deadline(self) -> None:
        """Whoever is still there at the deadline is closed with 1001 and leaves."""
        client = self.node.join()
        self.drain(30)
        self.node.advance(29.5)
        self.assertIsNone(client.socket.closed)
        self.node.advance(0.5)
        self.assertEqual(client.socket.code, 1001)
        self.assertTrue(client.peer.left)
        self.assertEqual(len(self.ended), 1)

    def test_nobody_waits_for_a_socket_that_is_away(self) -> None:
        """A peer whose socket dropped before the drain has left, for the others too, and does not hold up the end."""
        client, other = self.node.join(), self.node.join()
        client.drop()
        self.drain()
        self.assertTrue(client.peer.left)
        self.assertEqual(other.socket.last("peer-left")["reason"], "left")
        self.assertEqual(self.ended, [])
        other.say("leave")
        other.drop()
        self.assertEqual(self.ended, [self.node.now])

    def test_no_resume_during_a_drain(self) -> None:
        """Its token is worth nothing from then on: who comes back goes elsewhere."""
        client = self.node.join()
        client.drop()
        self.drain()
        self.assertEqual(len(self.ended), 1)
        again = self.node.join(resume=client.resume)
        self.assertEqual((again.socket.types, again.socket.code), (["server-draining"], 1001))


class CounterTests(SynchronousTestCase):
    def test_counts(self) -> None:
        """Messages, joins, errors by code and closes by code are counted."""
        node = Node()
        client = node.join()
        client.raw("{")
        client.say("leave")
        counters = node.lobby.counters
        self.assertEqual((counters.received, counters.joined, counters.resumed), (3, 1, 0))
        self.assertEqual(counters.sent, 3)
        self.assertEqual(dict(counters.errors), {"invalid_message": 1})
        self.assertEqual(dict(counters.closed), {1000: 1})
