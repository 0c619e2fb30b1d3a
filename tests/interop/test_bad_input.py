"""Bad input to a running node: each kind has its exact answer, leaves nothing behind, and harms nobody else."""

from __future__ import annotations

import atexit
import json
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.contract import sdp, turn
from tests.contract.commands import OTHER, key
from tests.contract.rest import ask, gauges
from tests.contract.signalling import Client, connect, join
from tests.contract.stage import end, started, toml
from tests.interop.dtls import DtlsClient
from tests.node import NodeProcess

TRANSPORTS = ("udp", "tcp", "tls")
#: What a client holds while it is there.
HELD = (
    "orama_turn_allocations",
    "orama_turn_stream_clients",
    "orama_sfu_rooms",
    "orama_sfu_peers",
    "orama_sfu_tracks",
    "orama_signaling_sockets",
    "orama_signaling_seats",
)
DROPPED = "orama_sfu_dropped_packets_total"
#: Pieces of bad input of one kind.
MANY = 400
#: Descriptions that one client may send at once.
DESCRIPTIONS = 100


@cache
def node() -> NodeProcess:
    """Rooms go with their last peer, and peers soon after their sockets, so that what is left can be counted."""
    made = started(
        config=toml(
            sfu="resume_timeout = 0.2\nempty_room_timeout = 0",
            signaling="message_rate = 100000\nmessage_burst = 100000",
        )
    )
    atexit.register(end, made)
    return made


class BadInputTestCase(SynchronousTestCase):
    """After every test the node serves a healthy client, nothing is held any more, and its log has no traceback."""

    def setUp(self) -> None:
        self.node = node()
        # Cleanups run last first: what a test opens is closed before this looks.
        self.addCleanup(self.check)
        self.random = random.Random(self.id())
        self.said = len(self.node.output)

    def check(self) -> None:
        self.serves()
        deadline = time.monotonic() + 60
        while any((held := gauges(self.node, *HELD)).values()):
            self.assertLess(time.monotonic(), deadline, held)
            time.sleep(0.05)
        while not self.node._lines.empty():
            self.node.output += filter(None, [self.node._lines.get()])
        self.assertEqual([line for line in self.node.output[self.said :] if "Traceback" in line], [])
        self.assertIsNone(self.node.process.poll())

    def serves(self) -> None:
        """Credentials, an allocation, a join and an answer, for somebody who does nothing wrong."""
        relay = turn.of(self.node.credentials())
        self.assertEqual(relay.allocate().code, 0)
        client = join(self.node, "healthy")
        client.say("offer", sdp=sdp.offer("audio", "video"))
        address = sdp.media_address(client.until("answer")["sdp"])
        self.assertEqual(relay.bind(address), 0)
        relay.release()
        client.say("leave")
        self.assertEqual(client.until_closed(), 1000)

    def join(self, **fields: Any) -> Client:
        client = join(self.node, "room", **fields)
        self.addCleanup(client.close)
        return client

    def allocated(self, transport: str = "udp") -> turn.Turn:
        client = turn.of(self.node.credentials(), transport)
        self.addCleanup(client.release)
        self.assertEqual(client.allocate().code, 0)
        return client

    def quiet(self, client: turn.Turn) -> None:
        """Nothing came back: the next thing that comes is the answer to what is asked now."""
        request = turn.build(turn.BINDING)
        client.send(request)
        raw = client.receive()
        self.assertEqual(raw[8:20] if raw else raw, request[8:20])

    def mutated(self, good: bytes) -> Iterator[bytes]:
        """*good* with some bytes changed, cut, doubled or put in."""
        for _ in range(MANY):
            data = bytearray(good)
            for _ in range(self.random.randint(1, 4)):
                at = self.random.randrange(len(data) + 1)
                data[at : at + self.random.randint(0, 4)] = self.random.randbytes(self.random.randint(0, 4))
            yield bytes(data)


class DatagramTests(BadInputTestCase):
    """What comes to the TURN port over UDP."""

    def setUp(self) -> None:
        super().setUp()
        self.stranger = turn.Turn(("127.0.0.1", turn.port(self.node.credentials())))
        self.addCleanup(self.stranger.socket.close)

    def good(self) -> list[bytes]:
        """A request of each kind, as a client sends it."""
        client = self.allocated()
        known = [(turn.USERNAME, client.username.encode()), (turn.REALM, client.realm), (turn.NONCE, client.nonce)]
        transaction = os.urandom(12)
        peer = (turn.XOR_PEER_ADDRESS, turn.xor(("127.0.0.1", 20000), transaction))
        channel = (turn.CHANNEL_NUMBER, struct.pack("!HH", 0x4000, 0))
        requests = [
            turn.build(turn.BINDING, fingerprint=True),
            turn.build(turn.ALLOCATE, attributes=[(turn.REQUESTED_TRANSPORT, turn.UDP)]),
        ]
        for method, attributes in (
            (turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]),
            (turn.REFRESH, [(turn.LIFETIME, struct.pack("!I", 600))]),
            (turn.CREATE_PERMISSION, [peer]),
            (turn.CHANNEL_BIND, [channel, peer]),
        ):
            requests.append(
                turn.build(
                    method, attributes=[*attributes, *known], key=client.key, fingerprint=True, transaction=transaction
                )
            )
        return requests

    def test_truncated(self) -> None:
        """A message that is cut anywhere gets no answer, and is counted."""
        cut = [request[:length] for request in self.good() for length in range(len(request))]
        before = gauges(self.node, "orama_turn_dropped_total")["orama_turn_dropped_total"]
        for at, data in enumerate(cut):
            self.stranger.send(data)
            if at % 50 == 0:
                self.quiet(self.stranger)
        self.quiet(self.stranger)
        dropped = gauges(self.node, "orama_turn_dropped_total")["orama_turn_dropped_total"] - before
        self.assertEqual(dropped, len(cut))

    def test_random(self) -> None:
        """Random bytes get no answer."""
        for at in range(2000):
            self.stranger.send(self.random.randbytes(self.random.randint(0, 1500)))
            if at % 50 == 0:
                self.quiet(self.stranger)
        self.quiet(self.stranger)

    def test_mutated(self) -> None:
        """What was changed on the way gets no answer or an error, never more than twice its size from us."""
        codes: Counter[int] = Counter()
        for good in self.good():
            for data in self.mutated(good):
                self.stranger.send(data)
                while (raw := self.stranger.receive(0.0005)) is not None:
                    codes[turn.parse(raw).code] += 1
                    self.assertLess(len(raw), 2 * max(len(data), 28))
        self.assertLessEqual(set(codes), {0, 400, 401, 420, 437, 438, 441})

    def test_mutated_with_an_allocation(self) -> None:
        """The five-tuple of an allocation is no softer: the allocation is there afterwards."""
        client = self.allocated()
        for good in self.good():
            for data in self.mutated(good):
                client.send(data)
                while client.receive(0.0005) is not None:
                    pass
        for data in (
            b"\x40\x00",
            b"\x40\x00\xff\xff",
            b"\x40\x00\x00\x04abc",
            b"\x7f\xff\x00\x00",
            b"\x4f\xff\x00\x01x",
        ):
            client.send(data)
        while client.receive(turn.SILENCE) is not None:
            pass
        self.assertEqual(client.request(turn.REFRESH).code, 0)


class StreamTests(BadInputTestCase):
    """What comes to the TURN ports over TCP and TLS."""

    def test_garbage(self) -> None:
        """What cannot be a message ends the connection, at once."""
        made = self.node.credentials()
        junk: tuple[bytes, ...] = (
            b"\xff" * 40,
            b"\x80" * 40,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x00\x01\xff\xff" + bytes(16),
        )
        for transport in ("tcp", "tls"):
            for data in junk:
                client = turn.of(made, transport)
                client.send(data)
                self.assertRaises((ConnectionError, OSError), self.until_closed, client)
                client.socket.close()

    def test_no_tls(self) -> None:
        """What is no TLS on the TLS port is hung up on."""
        made = self.node.credentials()
        for data in (turn.build(turn.BINDING), b"\x16\x03\x01\xff\xff" + bytes(100), bytes(100)):
            client = turn.Turn(("127.0.0.1", turn.port(made, "tls")), transport="tcp")
            client.send(data)
            with self.assertRaises((ConnectionError, OSError)):
                self.until_closed(client)
            client.socket.close()

    def test_half_messages(self) -> None:
        """Whoever hangs up in the middle of a message leaves nothing behind."""
        made = self.node.credentials()
        request = turn.build(turn.ALLOCATE, attributes=[(turn.REQUESTED_TRANSPORT, turn.UDP)])
        for transport in ("tcp", "tls"):
            for length in (1, 3, 4, 19, 20, 27):
                client = turn.of(made, transport)
                client.send(request[:length])
                client.socket.close()

    def test_with_an_allocation(self) -> None:
        """Garbage on a stream with an allocation ends both."""
        for transport in ("tcp", "tls"):
            client = turn.of(self.node.credentials(), transport)
            self.assertEqual(client.allocate().code, 0)
            client.send(b"\xff" * 40)
            with self.assertRaises((ConnectionError, OSError)):
                self.until_closed(client)
            client.socket.close()

    def until_closed(self, client: turn.Turn) -> None:
        while client.receive() is not None:
            pass


class MediaTests(BadInputTestCase):
    """What comes to the SFU's port through a relay of somebody who may have one."""

    def setUp(self) -> None:
        super().setUp()
        self.dtls = DtlsClient()
        self.client = join(self.node, "media")
        self.addCleanup(self.client.close)
        self.relay = self.allocated()

    def offer(self, fingerprint: str) -> None:
        self.client.say("offer", sdp=sdp.offer("audio", "video", "data", fingerprint=fingerprint))
        self.answer: str = self.client.until("answer")["sdp"]
        self.assertEqual(self.relay.bind(sdp.media_address(self.answer)), 0)

    def check(self, **other: str) -> bytes:  # type: ignore[override]
        values = {"ufrag": sdp.value(self.answer, "ice-ufrag"), "pwd": sdp.value(self.answer, "ice-pwd"), **other}
        attributes = [
            (turn.USERNAME, f"{values['ufrag']}:{sdp.UFRAG}".encode()),
            (turn.PRIORITY, struct.pack("!I", 1)),
            (turn.ICE_CONTROLLING, bytes(8)),
            (turn.USE_CANDIDATE, b""),
        ]
        return turn.build(turn.BINDING, attributes=attributes, key=values["pwd"].encode(), fingerprint=True)

    def checked(self) -> None:
        """A check is answered: we are known by our address."""
        request = self.check()
        self.relay.channel_data(request)
        while (raw := self.relay.relayed()) is not None:
            if raw[8:20] == request[8:20]:
                self.assertEqual(turn.parse(raw).kind, turn.BINDING | turn.SUCCESS)
                return
        self.fail("the check was not answered")

    def shaken(self) -> bool:
        return self.dtls.handshake(self.relay.channel_data, lambda: self.relay.relayed(3.0))

    def junk(self) -> Iterator[bytes]:
        """STUN, DTLS, RTP, RTCP and none of them, all of it wrong."""
        hello = DtlsClient().hello()[0]
        good = self.check()
        for length in range(0, len(good), 3):
            yield good[:length]
        for length in range(0, len(hello), 7):
            yield hello[:length]
        # By the first bytes STUN, DTLS, RTP, RTCP, and what lies between them.
        for start in ("0001", "0101", "14fe", "16fe", "17fe", "3f00", "8060", "80c8", "906f", "b0cd", "bfff", "0303",
                      "4000", "7fff", "ffff"):  # fmt: skip
            for length in (0, 1, 2, 8, 12, 13, 20, 40, 400, 1400):
                yield bytes.fromhex(start) + self.random.randbytes(length)
        # Headers that are right as far as they go.
        for number in range(50):
            rtp = struct.pack("!BBHII", 0x80, 96 + number % 32, number, number, 1000)
            yield rtp + self.random.randbytes(self.random.randint(0, 60))
            yield struct.pack("!BBHII", 0x9F, 111, number, 0, 1000) + self.random.randbytes(30)
            yield struct.pack("!BBHI", 0x81, 200 + number % 8, 0xFFFF, 1000) + self.random.randbytes(24)
            yield struct.pack("!BBHHHIH", 22, 254, 253, 0, 0, number, 300) + self.random.randbytes(number)

    def test_from_nobody(self) -> None:
        """Before a check has shown who sends it, nothing is answered."""
        self.offer(self.dtls.fingerprint)
        before = gauges(self.node, DROPPED)[DROPPED]
        junk = list(self.junk())
        for at, data in enumerate(junk):
            self.relay.channel_data(data)
            if at % 50 == 0:
                self.quiet(self.relay)
        self.quiet(self.relay)
        self.assertGreaterEqual(gauges(self.node, DROPPED)[DROPPED] - before, 0.9 * len(junk))
        self.checked()

    def test_wrong_checks(self) -> None:
        """A check for nobody gets no answer; one with the wrong password gets at most an error."""
        self.offer(self.dtls.fingerprint)
        self.relay.channel_data(self.check(ufrag="nobody"))
        self.assertIsNone(self.relay.relayed(turn.SILENCE))
        self.relay.channel_data(self.check(pwd="x" * 24))
        raw = self.relay.relayed(turn.SILENCE)
        self.assertEqual(turn.parse(raw).code if raw else 401, 401)
        for data in self.mutated(self.check()):
            self.relay.channel_data(data)
        self.checked()

    def test_from_a_client(self) -> None:
        """From a client that is known it is dropped: neither the handshake nor what comes after it takes any harm."""
        self.offer(self.dtls.fingerprint)
        self.checked()
        for data in self.junk():
            self.relay.channel_data(data)
        self.checked()
        self.assertTrue(self.shaken())
        for data in self.junk():
            self.relay.channel_data(data)
        self.checked()
        self.assertNotIn("error", self.client.settled())

    def test_wrong_fingerprint(self) -> None:
        """A certificate that is not the one of the offer: ``invalid_offer``, fatal, and the peer is gone."""
        watcher = join(self.node, "media")
        self.addCleanup(watcher.close)
        self.offer(sdp.FINGERPRINT)
        self.checked()
        self.shaken()
        error = self.client.until("error")
        self.assertEqual((error["code"], error["fatal"]), ("invalid_offer", True))
        self.assertEqual(self.client.until_closed(), 1008)
        self.assertEqual(watcher.until("peer-left")["peerId"], self.client.received[0]["peerId"])


class SdpTests(BadInputTestCase):
    """Descriptions that cannot be used: ``invalid_offer``, not fatal, and the next one may be better."""

    def refused(self, client: Client, text: str) -> None:
        client.say("offer", sdp=text)
        error = client.until_one(lambda message: message["type"] in ("error", "answer"), "answer")
        self.assertEqual((error.get("code"), error.get("fatal")), ("invalid_offer", False), text[:300])

    def test_wrong(self) -> None:
        """No bundle, 200 m-lines, and every part that must be there, missing or wrong."""
        client = self.join()
        good = sdp.offer("audio", "video", "data")
        many = sdp.offer().replace("a=group:BUNDLE ", f"a=group:BUNDLE {' '.join(map(str, range(200)))}")
        line = (
            "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:{mid}\r\na=sendonly\r\na=rtcp-mux\r\n"
            "a=rtpmap:111 opus/48000/2\r\na=setup:actpass\r\n"
            f"a=ice-ufrag:{sdp.UFRAG}\r\na=ice-pwd:{sdp.PWD}\r\na=fingerprint:sha-256 {sdp.FINGERPRINT}\r\n"
        )
        many += "".join(line.format(mid=mid) for mid in range(200))
        self.assertLess(len(json.dumps({"type": "offer", "sdp": many})), 65536)
        for text in (
            sdp.offer("audio", "video", bundle=False),
            many,
            "",
            " ",
            "v=0",
            "v=1\r\n" + good[5:],
            good.partition("m=")[0],
            good.replace("a=mid:1\r\n", "a=mid:0\r\n"),
            good.replace("a=mid:1\r\n", ""),
            good.replace("a=rtcp-mux\r\n", ""),
            good.replace("a=setup:actpass", "a=setup:passive"),
            good.replace("a=setup:actpass\r\n", ""),
            good.replace(f"a=fingerprint:sha-256 {sdp.FINGERPRINT}\r\n", ""),
            good.replace(sdp.FINGERPRINT, "AB:CD:nonsense"),
            good.replace("sha-256", "md5"),
            good.replace(f"a=ice-ufrag:{sdp.UFRAG}\r\n", ""),
            good.replace(sdp.PWD, "short"),
            good.replace("a=ssrc:1000", "a=ssrc:99999999999"),
            good.replace("a=mid:0", "a=mid:" + "x" * 300),
            good + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:0\r\n",
            sdp.offer("audio", "data", "data"),
            "\0" * 1000,
            "a=" * 20000,
        ):
            self.refused(client, text)
        client.say("offer", sdp=good)
        client.until("answer")

    def test_truncated_and_mutated(self) -> None:
        """Cut or changed anywhere: an answer where it can still be read, else ``invalid_offer``; one for each."""
        good = sdp.offer("audio", "video", "data")
        texts = [good[:length] for length in range(0, len(good) - 2, 11)]
        texts += [data.decode("latin-1") for data in self.mutated(good.encode())]
        answered: Counter[str] = Counter()
        # A client has an allowance of descriptions, beside that of messages.
        for at in range(0, len(texts), DESCRIPTIONS):
            client = self.join()
            for text in texts[at : at + DESCRIPTIONS]:
                client.say("offer", sdp=text)
                answer = client.until_one(lambda message: message["type"] in ("error", "answer"), "answer")
                answered[answer.get("code", "answer")] += 1
        self.assertLessEqual(set(answered), {"answer", "invalid_offer"})
        self.assertGreater(answered["invalid_offer"], len(texts) // 2)

    def test_answers(self) -> None:
        """The same for answers: ``invalid_answer``, and the offer is made again."""
        publisher, client = self.join(), self.join()
        publisher.say("offer", sdp=sdp.offer("audio", "video"))
        offered = client.until("offer")["sdp"]
        good = sdp.answer(offered)
        for text in (
            "",
            "v=0",
            good[: len(good) // 2],
            good.replace("a=group", "a=grouq"),
            good.replace("active", "passive"),
            good.replace("m=audio 9", "m=video 9"),
            good.replace(sdp.FINGERPRINT, "x"),
        ):
            client.say("answer", sdp=text)
            self.assertEqual(client.error(), "invalid_answer", text[:200])
        client.say("answer", sdp=good)
        client.settled()


class MessageTests(BadInputTestCase):
    """What is no message, or one that nobody may send."""

    def value(self, depth: int = 0) -> Any:
        """Any JSON."""
        kind = self.random.randrange(9 if depth < 4 else 7)
        if kind == 0:
            return self.random.choice([None, True, False])
        if kind == 1:
            return self.random.choice([0, -1, 1e308, 2**70, 0.1, self.random.randrange(2**33)])
        if kind < 5:
            return self.random.choice(
                ["", "x" * self.random.randrange(300), "\0", "ä\U0001f600", "__proto__", "../..", "%s"]
            )
        if kind < 7:
            return self.random.choice(
                ["join", "offer", "answer", "ice-candidate", "leave", "welcome", "t", "auto", "v=0"]
            )
        if kind == 7:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return {str(self.value(4)): self.value(depth + 1) for _ in range(self.random.randrange(4))}

    def test_random_json(self) -> None:
        """Any JSON, and messages with anything in their fields: one error each, of the codes of the contract."""
        client = self.join()
        kinds = ["join", "offer", "answer", "ice-candidate", "track-state", "subscribe", "unsubscribe", "kick", "mute"]
        fields = ["sdp", "candidate", "sdpMid", "sdpMLineIndex", "trackId", "muted", "layer", "priority", "peerId",
                  "roomId", "userId", "metadata", "resume", "sources"]  # fmt: skip
        sent = 0
        for _ in range(MANY * 2):
            message = self.value()
            if self.random.random() < 0.7:
                message = {self.random.choice(fields): self.value() for _ in range(3)}
                message["type"] = self.random.choice(kinds)
            if isinstance(message, dict) and message.get("type") in ("ice-candidate", "leave"):
                # The one that may be right by chance, and the one that is.
                message.pop("candidate", None)
                message["type"] = "ice-candidate"
            client.text(json.dumps(message))
            sent += 1
        codes = Counter(client.error() for _ in range(sent))
        self.assertLessEqual(
            set(codes),
            {"invalid_message", "invalid_join", "invalid_offer", "invalid_answer", "invalid_candidate", "unknown_type",
             "unknown_track", "room_mismatch"},
        )  # fmt: skip
        self.assertEqual(client.settled(), ["welcome", "turn-credentials"] + ["error"] * sent)

    def test_random_text(self) -> None:
        """What is no JSON at all is ``invalid_message``."""
        client = self.join()
        good = json.dumps({"type": "offer", "sdp": "v=0", "sources": {"0": "camera"}})
        texts = [good[:length] for length in range(len(good))]
        texts += [
            "".join(chr(self.random.randrange(1, 0x7F)) for _ in range(self.random.randrange(80))) for _ in range(MANY)
        ]
        texts += ["[" * 60000, '{"a":' * 10000, "1" * 60000, '"\\ud800"', '{"type": "\\ud800"}', "NaN", "-Infinity"]
        for text in texts:
            client.text(text)
        self.assertEqual(Counter(client.error() for _ in texts), {"invalid_message": len(texts)})

    def test_unknown_types(self) -> None:
        """``unknown_type``, not fatal."""
        client = self.join()
        for _ in range(20):
            client.say("x" * self.random.randrange(1, 60_000))
            error = client.until("error")
            self.assertEqual((error["code"], error["fatal"]), ("unknown_type", False))
            self.assertLess(len(error["message"]), 200)

    def test_over_the_limit(self) -> None:
        """A frame over 64 KiB closes with 1009, the candidate of a megabyte among them; its peer leaves in time."""
        for message in (
            {"type": "ice-candidate", "candidate": "candidate:" + "x" * (1 << 20)},
            {"type": "offer", "sdp": "v=0\r\n" * 20_000},
            {"type": "join", "metadata": "x" * 70_000},
        ):
            client = self.join()
            try:
                client.text(json.dumps(message))
            except OSError:
                pass  # it is closed while we send
            self.assertIn(client.until_closed(), (1009, 1006))
        before = self.join()
        before.say("ice-candidate", candidate="candidate:" + "x" * 60_000)
        self.assertEqual(before.error(), "invalid_candidate")

    def test_over_the_limit_says_so(self) -> None:
        """Who reads before it sends more learns the code."""
        client = self.join()
        client.text(json.dumps({"type": "leave", "x": "x" * 65_536}))
        self.assertEqual(client.until_closed(), 1009)

    def test_second_join(self) -> None:
        """``invalid_join``, not fatal, whatever it asks for; the place is as it was."""
        client, watcher = self.join(userId="ann"), self.join()
        for fields in (
            {},
            {"userId": "bob"},
            {"roomId": "room"},
            {"resume": client.received[0]["resume"]},
            {"roomId": "x"},
        ):
            client.say("join", **fields)
            error = client.until("error")
            self.assertEqual((error["code"], error["fatal"]), ("invalid_join", False))
        self.assertEqual(watcher.settled(), ["welcome", "turn-credentials"])
        self.assertEqual(self.join().received[0]["peers"][0]["userId"], "ann")

    def test_another_tenants_key(self) -> None:
        """It opens that tenant's own rooms and nothing of ours: not the room, a place in it, its list, or its media."""
        theirs = key(self.node, OTHER, "owner")
        ours = self.join()
        stranger = connect(self.node, "room", theirs)
        self.addCleanup(stranger.close)
        stranger.say("join", resume=ours.received[0]["resume"])
        welcome = stranger.until("welcome")
        self.assertEqual(welcome["peers"], [])
        self.assertNotEqual(welcome["peerId"], ours.received[0]["peerId"])
        stranger.say("kick", peerId=ours.received[0]["peerId"])
        self.assertEqual(stranger.error(), "invalid_message")
        ours.say("offer", sdp=sdp.offer("audio"))
        media = sdp.media_address(ours.until("answer")["sdp"])
        relay = turn.of(_their(stranger))
        self.addCleanup(relay.release)
        self.assertEqual(relay.allocate().code, 0)
        self.assertEqual(relay.bind(media), 403)
        headers = {"X-API-Key": theirs}
        rooms = ask(self.node, "GET", "/v1/webrtc/rooms", headers=headers).json["rooms"]
        self.assertEqual([room["participants"] for room in rooms], [1])
        self.assertEqual(ask(self.node, "DELETE", "/v1/webrtc/rooms?room_id=room", headers=headers).status, 204)
        stranger.until("room-closed")
        self.assertEqual(ours.settled(), ["welcome", "turn-credentials", "answer"])
        mixed = {"X-API-Key": theirs.replace(f":{OTHER}", ":default")}
        self.assertEqual(ask(self.node, "GET", "/v1/webrtc/rooms", headers=mixed).status, 401)


def _their(client: Client) -> dict[str, Any]:
    [credentials] = [message for message in client.received if message["type"] == "turn-credentials"]
    return credentials
