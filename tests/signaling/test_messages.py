"""Messages: any bytes give a message or one exact error, and our own classes come out as the contract has them."""

from __future__ import annotations

import json
import random
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import SignalError
from orama.sfu import events
from orama.signaling import messages
from orama.signaling.codes import CODES
from tests.signaling.doubles import MemorySocket, Node

GOOD: tuple[dict[str, Any], ...] = (
    {"type": "join", "roomId": "room", "userId": "ann", "metadata": {"name": "Ann"}, "resume": "abc"},
    {"type": "offer", "sdp": "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\n", "sources": {"0": "camera"}, "encrypted": False},
    {"type": "answer", "sdp": "v=0\r\n"},
    {
        "type": "ice-candidate",
        "candidate": "candidate:1 1 udp 1 1.2.3.4 5 typ relay",
        "sdpMid": "0",
        "sdpMLineIndex": 0,
    },
    {"type": "track-state", "trackId": "t", "muted": False},
    {"type": "subscribe", "trackId": "t", "layer": "low", "priority": 1},
    {"type": "unsubscribe", "trackId": "t"},
    {"type": "receive", "kind": "video", "lastN": 9, "tracks": ["t"]},
    {"type": "kick", "peerId": "p"},
    {"type": "mute", "trackId": "t"},
    {"type": "leave"},
)
ODD = (None, True, False, 0, -1, 1e308, 2**70, "", "x" * 2000, "\x00", "\ud800", [], {}, [[[[]]]], {"type": "join"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def code_of(text: str | bytes) -> str | None:
    """The code of the error that *text* gives, None for a message. Anything else that is raised is a failure."""
    try:
        messages.parse(text)
    except SignalError as error:
        return error.code
    return None


class ParseTests(SynchronousTestCase):
    def test_good(self) -> None:
        """Each type of the contract is read, with all its fields."""
        for value in GOOD:
            parsed = messages.parse(json.dumps(value))
            self.assertEqual(messages.type_of(parsed), value["type"])
            again = json.loads(messages.serialise(parsed))
            self.assertEqual({key: again[key] for key in value}, value)

    def test_browser_objects(self) -> None:
        """What a browser gives for a description and a candidate goes through with its extra and null fields."""
        description = {"type": "offer", "sdp": "v=0\r\n"}
        self.assertEqual(messages.parse(json.dumps(description)), messages.Offer("v=0\r\n"))
        candidate = {"candidate": "", "sdpMid": None, "sdpMLineIndex": None, "usernameFragment": None, "x": 1}
        self.assertEqual(messages.parse(json.dumps({"type": "ice-candidate", **candidate})), messages.IceCandidate(""))
        last = {"type": "ice-candidate", "candidate": None, "sdpMid": "0", "sdpMLineIndex": 0}
        self.assertEqual(messages.parse(json.dumps(last)), messages.IceCandidate("", "0", 0))

    def test_not_json(self) -> None:
        """What is no JSON object with a type is ``invalid_message``, however it is broken."""
        for text in (
            b"",
            b"\xff\xfe",
            b"{",
            b"nul",
            b"null",
            b"7",
            b'"join"',
            b"[]",
            b"{}",
            b'{"type": null}',
            b'{"type": ["join"]}',
            b'{"type": "join", "metadata": NaN}',
            b'{"type": "join", "metadata": -Infinity}',
            b'{"type": "join", "userId": "\\ud800"}',
            b'{"type": "join", "metadata": {"\\udfff": 1}}',
            b'{"type": "join", "metadata": ' + b"9" * 5000 + b"}",
            b"[" * 60000,
            b'{"a":' * 10000,
            b'{"type": "join", "metadata": ' + b"[" * 30 + b"]" * 30 + b"}",
        ):
            self.assertEqual(code_of(text), "invalid_message", text[:60])

    def test_unknown_types(self) -> None:
        """A type that clients do not send is ``unknown_type``, and is named shortly."""
        for kind in ("", "JOIN", "welcome", "error", "x" * 60000):
            with self.assertRaises(SignalError) as caught:
                messages.parse(json.dumps({"type": kind}))
            self.assertEqual(caught.exception.code, "unknown_type")
            self.assertLess(len(caught.exception.message), 100)

    def test_limits(self) -> None:
        """Each limit is kept, with the code of its type."""
        for value, code in (
            ({"type": "join", "roomId": "a" * 128}, None),
            ({"type": "join", "roomId": "a" * 129}, "invalid_join"),
            ({"type": "join", "roomId": ""}, "invalid_join"),
            ({"type": "join", "roomId": "a/b"}, "invalid_join"),
            ({"type": "join", "roomId": "é"}, "invalid_join"),
            ({"type": "join", "roomId": "a\n"}, "invalid_join"),
            ({"type": "join", "userId": "é" * 128}, None),
            ({"type": "join", "userId": "u" * 129}, "invalid_join"),
            ({"type": "join", "userId": ""}, "invalid_join"),
            ({"type": "join", "userId": "a\x00b"}, "invalid_join"),
            ({"type": "join", "userId": 7}, "invalid_join"),
            ({"type": "join", "metadata": "m" * 4094}, None),
            ({"type": "join", "metadata": "m" * 4095}, "invalid_join"),
            ({"type": "join", "metadata": "é" * 2048}, "invalid_join"),
            ({"type": "join", "resume": []}, "invalid_join"),
            ({"type": "offer", "sdp": "v", "sources": []}, "invalid_offer"),
            ({"type": "offer", "sdp": "v", "encrypted": 1}, "invalid_offer"),
            ({"type": "offer", "sdp": "v", "sources": {"0": "A b"}}, "invalid_offer"),
            ({"type": "offer", "sdp": "v", "sources": {str(mid): "camera" for mid in range(257)}}, "invalid_offer"),
            ({"type": "ice-candidate", "candidate": "c" * 1025}, "invalid_candidate"),
            ({"type": "ice-candidate", "candidate": "a\r\nb"}, "invalid_candidate"),
            ({"type": "ice-candidate", "candidate": "", "sdpMLineIndex": True}, "invalid_candidate"),
            ({"type": "ice-candidate", "candidate": "", "sdpMLineIndex": 65536}, "invalid_candidate"),
            ({"type": "ice-candidate", "candidate": "", "sdpMid": 0}, "invalid_candidate"),
            ({"type": "subscribe", "trackId": "t", "priority": -1}, "invalid_message"),
            ({"type": "subscribe", "trackId": "t", "priority": 1.5}, "invalid_message"),
            ({"type": "subscribe", "trackId": "t", "layer": ["low"]}, "invalid_message"),
            ({"type": "receive"}, "invalid_message"),
            ({"type": "receive", "kind": "smell"}, "invalid_message"),
            ({"type": "receive", "kind": "video", "lastN": 33}, "invalid_message"),
            ({"type": "receive", "kind": "video", "tracks": "t"}, "invalid_message"),
            ({"type": "receive", "kind": "video", "tracks": ["t", 1]}, "invalid_message"),
            ({"type": "receive", "kind": "video", "tracks": ["t"] * 101}, "invalid_message"),
            ({"type": "kick"}, "invalid_message"),
            ({"type": "mute", "trackId": "t" * 257}, "invalid_message"),
        ):
            self.assertEqual(code_of(json.dumps(value)), code, str(value)[:80])

    def test_infinite_number(self) -> None:
        """A number too big for a double would come out as something that is no JSON."""
        self.assertEqual(code_of('{"type": "join", "metadata": 1e999}'), "invalid_join")

    def test_texts_are_for_people(self) -> None:
        """The text names the type and the field, in the client's spelling."""
        with self.assertRaises(SignalError) as caught:
            messages.parse('{"type": "track-state", "muted": true}')
        self.assertEqual(caught.exception.message, "in track-state: trackId is missing")
        with self.assertRaises(SignalError) as caught:
            messages.parse('{"type": "track-state", "trackId": "t", "muted": 1}')
        self.assertEqual(caught.exception.message, "in track-state: muted must be true or false")

    def test_secrets_are_not_shown(self) -> None:
        """A message that is logged by mistake shows neither a password nor a token."""
        shown = repr(messages.TurnCredentials(("u",), "n", "PASSWORD", 1)) + repr(
            messages.Welcome("p", "r", "u", "TOKEN", ())
        )
        self.assertNotIn("PASSWORD", shown)
        self.assertNotIn("TOKEN", shown)


class SerialiseTests(SynchronousTestCase):
    def test_rule(self) -> None:
        """Class name → kebab type, fields → camelCase, None left out, tuples → arrays, nested values too."""
        track = events.TrackInfo("p", "t", "video", "camera", True, None, ("low",))
        welcome = messages.Welcome("p", "room", "ann", "token", (events.PeerInfo("q", "bob", {"a": [1]}, (track,)),))
        self.assertEqual(
            json.loads(messages.serialise(welcome)),
            {
                "type": "welcome",
                "peerId": "p",
                "roomId": "room",
                "userId": "ann",
                "resume": "token",
                "peers": [
                    {
                        "peerId": "q",
                        "userId": "bob",
                        "metadata": {"a": [1]},
                        "tracks": [
                            {
                                "peerId": "p",
                                "trackId": "t",
                                "kind": "video",
                                "source": "camera",
                                "muted": True,
                                "layers": ["low"],
                            }
                        ],
                    }
                ],
            },
        )

    def test_names_of_the_contract(self) -> None:
        """Every type that a client may be told is the name of a class, and there is no other."""
        ours = {
            messages._kebab(kind.__name__)
            for kind in (
                messages.Welcome,
                messages.TurnCredentials,
                messages.RefreshCredentials,
                messages.ServerDraining,
                *events.Event.__args__,
            )
        }
        contract = (
            "welcome turn-credentials refresh-credentials offer answer ice-candidate peer-joined peer-left"
            " track-added track-removed track-state layers slot active-speakers data-channel room-closed kicked"
            " server-draining error"
        )
        self.assertEqual(ours, set(contract.split()))

    def test_unicode(self) -> None:
        """Names in any script go out as they are."""
        text = messages.serialise(events.PeerJoined("p", "Ωmega", {"n": "日本"}))
        self.assertIn("日本", text)


class FuzzTests(SynchronousTestCase):
    """10⁵ hostile frames: never anything but a message or an error of the contract."""

    @settings(max_examples=1500, deadline=None)
    @given(st.binary(max_size=300))
    def test_bytes(self, data: bytes) -> None:
        """Any bytes."""
        self.assertIn(code_of(data), CODES | {None})

    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from(GOOD), st.dictionaries(st.sampled_from(sorted({k for g in GOOD for k in g})), JSON))
    def test_fields(self, good: dict[str, Any], wrong: dict[str, Any]) -> None:
        """Any JSON in any field."""
        self.assertIn(code_of(json.dumps({**good, **wrong})), CODES | {None})

    @settings(max_examples=400, deadline=None)
    @given(JSON)
    def test_metadata_round_trip(self, metadata: Any) -> None:
        """Metadata that is let in comes out of ``peer-joined`` the same, as JSON and as UTF-8."""
        try:
            joined = messages.parse(json.dumps({"type": "join", "metadata": metadata}))
        except SignalError:
            return
        assert isinstance(joined, messages.Join)
        event = json.loads(messages.serialise(events.PeerJoined("p", "u", joined.metadata)).encode())
        self.assertEqual(event.get("metadata"), metadata)

    def test_mutations(self) -> None:
        """100,000 good messages with bytes changed, cut, doubled, or odd values put in."""
        rng = random.Random(20)
        seen: set[str | None] = set()
        texts = [json.dumps(value) for value in GOOD]
        for _ in range(100_000):
            if rng.random() < 0.5:
                value = dict(rng.choice(GOOD))
                value[rng.choice([*value, "type", "metadata", "layer"])] = rng.choice(ODD)
                data = json.dumps(value).encode()
            else:
                data = bytearray(rng.choice(texts).encode())  # type: ignore[assignment]
                for _ in range(rng.randrange(1, 4)):
                    place = rng.randrange(len(data))
                    end = place + rng.randrange(3)
                    data = bytes(data[:place]) + rng.choice(string.printable).encode() + bytes(data[end:])
            seen.add(code_of(bytes(data)))
        expected = {"invalid_message", "unknown_type", "invalid_join", "invalid_offer", "invalid_answer"}
        self.assertEqual(seen, expected | {"invalid_candidate", None})

    def test_a_session_survives_anything(self) -> None:
        """What a whole session makes of hostile frames is answers; the room and the others are as before."""
        rng = random.Random(21)
        node = Node(message_rate=10**6, message_burst=10**6)
        witness = node.join()
        client = node.join()
        for _ in range(20_000):
            data = bytearray(json.dumps(rng.choice(GOOD[1:-1])).encode())
            if rng.random() < 0.7:
                data[rng.randrange(len(data))] = rng.randrange(256)
            client.raw(bytes(data))
        self.assertIsInstance(client.socket, MemorySocket)
        self.assertIsNone(client.socket.closed)
        self.assertNotIn("internal", client.socket.errors)
        self.assertEqual(witness.socket.types, ["welcome", "turn-credentials", "peer-joined"])
