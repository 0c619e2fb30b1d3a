"""DTLS and SCTP against aiortc's own client ends, and one test for each private seam of aiortc that we use.

Everything is in memory: what one end sends is the other's next datagram, unless the test loses it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import (
    SRTP_AEAD_AES_128_GCM,
    SRTP_AEAD_AES_256_GCM,
    SRTP_AES128_CM_SHA1_80,
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
    State,
)
from aiortc.rtcsctptransport import (
    DataChunk,
    ForwardTsnChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
    SackChunk,
)
from google_crc32c import value as crc32c
from OpenSSL import SSL
from pylibsrtp import Policy, Session
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.sfu import _aiortc, _sctp
from orama.sfu._aiortc import EARLY_DATAGRAMS, MAX_DATAGRAM, WAITING_DATAGRAMS, DtlsCertificate, DtlsTransport
from orama.sfu._sctp import MAX_MESSAGE_SIZE
from orama.sfu._sctp_channels import FIRST_STREAM, Channel, SctpTransport
from orama.sfu._sctp_inbound import MAX_CHUNKS, MAX_STREAMS, WINDOW
from orama.sfu.values import SrtpKeys

CERTIFICATE = DtlsCertificate()
CLIENT_CERTIFICATE = RTCCertificate.generateCertificate()
FINGERPRINTS = [(f.algorithm, f.value) for f in CLIENT_CERTIFICATE.getFingerprints()]
RTP = struct.pack("!BBHII", 0x80, 96, 7, 1000, 0x1234) + bytes(100)
RTCP = struct.pack("!BBHI", 0x80, 201, 1, 0x1234)
LIBSRTP = {
    "AEAD_AES_128_GCM": Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
    "AES128_CM_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}


def on_loop(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], Deferred[None]]:
    """Run a test that is a coroutine of asyncio, as aiortc's clients need."""

    @functools.wraps(test)
    def run(self: Any) -> Deferred[None]:
        loop = asyncio.get_event_loop()
        return Deferred.fromFuture(loop.create_task(test(self)))

    return run


async def closed(deferred: Deferred[None]) -> None:
    await deferred.asFuture(asyncio.get_running_loop())


class Wire:
    """The client's ICE transport. ``lose`` looks at each datagram in either direction."""

    role = "controlling"

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.to_server: Callable[[bytes], None] = lambda datagram: None
        self.lose: Callable[[bytes, bool], bool] = lambda datagram, up: False
        self.sent = 0

    def to_client(self, datagrams: Sequence[bytes]) -> None:
        for datagram in datagrams:
            if not self.lose(datagram, False):
                self.queue.put_nowait(datagram)

    async def _recv(self) -> bytes:
        return await self.queue.get()

    async def _send(self, datagram: bytes) -> None:
        self.sent += 1
        if not self.lose(datagram, True):
            self.to_server(datagram)


class Call:
    """A client of aiortc's making and our server end."""

    def __init__(self, **options: Any) -> None:
        self.wire = Wire()
        self.server = DtlsTransport(CERTIFICATE, self.wire.to_client, **options)
        self.wire.to_server = self.server.received
        self.client = RTCDtlsTransport(self.wire, [CLIENT_CERTIFICATE])  # type: ignore[arg-type]
        self.client._set_role("client")
        self.states: list[str] = []
        self.keys: list[SrtpKeys] = []
        self.server.on_state = self._stated
        self.server.on_keys = self.keys.append
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def _stated(self, state: str) -> None:
        self.states.append(state)
        self.look()

    def look(self, *_: object) -> None:
        """Wake who waits for what is so now."""
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((condition, future))
            await asyncio.wait_for(future, 15)

    async def state(self, state: str) -> None:
        await self.until(lambda: state in self.states)

    async def client_handshake(self) -> None:
        await self.client.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", CERTIFICATE.fingerprint())]))

    async def connect(self, fingerprints: list[tuple[str, str]] = FINGERPRINTS) -> None:
        self.server.start(fingerprints)
        await self.client_handshake()

    async def close(self) -> None:
        await closed(self.server.close())
        await self.client.stop()


class SctpCall(Call):
    """The same with an SCTP association."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.sctp = SctpTransport(self.server, 5000, MAX_MESSAGE_SIZE, **options)
        self.sctp_states: list[str] = []
        self.sctp.on_state = self._sctp_stated
        self.channels: dict[str, Channel] = {}
        self.received: list[tuple[str, str | bytes]] = []
        self.lost: list[str] = []
        self.sctp.on_channel = self.take
        self.client_sctp = RTCSctpTransport(self.client, 5000)
        self.client_channels: dict[str, RTCDataChannel] = {}
        self.client_received: list[tuple[str, str | bytes]] = []
        self.client_lost: list[str] = []
        self.client_sctp.on("datachannel", self.client_take)

    def _sctp_stated(self, state: str) -> None:
        self.sctp_states.append(state)
        self.look()

    def take(self, channel: Channel) -> Channel:
        self.channels[channel.label] = channel

        def message(data: str | bytes) -> None:
            self.received.append((channel.label, data))
            self.look()

        def gone() -> None:
            self.lost.append(channel.label)
            self.look()

        channel.on_message, channel.on_close = message, gone
        self.look()
        return channel

    def client_take(self, channel: RTCDataChannel) -> RTCDataChannel:
        self.client_channels[channel.label] = channel

        def message(data: str | bytes) -> None:
            self.client_received.append((channel.label, data))
            self.look()

        def gone() -> None:
            self.client_lost.append(channel.label)
            self.look()

        channel.on("message", message)
        channel.on("close", gone)
        channel.on("open", self.look)
        self.look()
        return channel

    def client_open(self, label: str, **parameters: Any) -> RTCDataChannel:
        return self.client_take(RTCDataChannel(self.client_sctp, RTCDataChannelParameters(label=label, **parameters)))

    async def connect(self, fingerprints: list[tuple[str, str]] = FINGERPRINTS) -> None:
        await super().connect(fingerprints)
        self.sctp.start()
        await self.client_sctp.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), 5000)
        await self.until(lambda: "connected" in self.sctp_states)

    async def close(self) -> None:
        await self.client_sctp.stop()
        await super().close()

    async def send_raw(self, *chunks: Any) -> None:
        """Chunks as the client's association would send them."""
        for chunk in chunks:
            await self.client_sctp._send_chunk(chunk)

    async def send_body(self, body: bytes) -> None:
        """One chunk of these very bytes, with the right tag and checksum."""
        header = struct.pack("!HHL", 5000, 5000, self.client_sctp._remote_verification_tag)
        checksum = crc32c(header + bytes(4) + body)
        await self.client._send_data(header + struct.pack("<L", checksum) + body)

    def data(self, ahead: int, payload: bytes, flags: int = 3, stream_id: int = 0, sequence: int = 0) -> DataChunk:
        """A DATA chunk *ahead* of the last that the client has sent (1 is the next in order)."""
        chunk = DataChunk(flags=flags)
        chunk.tsn = (self.client_sctp._local_tsn - 1 + ahead) % 2**32
        chunk.stream_id = stream_id
        chunk.stream_seq = sequence
        chunk.protocol = 53
        chunk.user_data = payload
        return chunk


def swallow(loop: asyncio.AbstractEventLoop, errors: list[dict[str, Any]]) -> None:
    loop.set_exception_handler(lambda _, context: errors.append(context))


class LoopCase(TestCase):
    """Nothing is left behind: no task, no exception that nobody looked at."""

    timeout = 40

    def setUp(self) -> None:
        loop = asyncio.get_event_loop()
        self._tasks = asyncio.all_tasks(loop)
        self._errors: list[dict[str, Any]] = []
        swallow(loop, self._errors)
        self.addCleanup(loop.set_exception_handler, None)

    async def assert_nothing_left(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        ours = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task not in self._tasks and task is not ours]
        self.assertEqual(left, [])
        self.assertEqual(self._errors, [])


class HandshakeTests(LoopCase):
    """DTLS as the passive end."""

    @on_loop
    async def test_keys_of_each_profile(self) -> None:
        """With each profile, what libsrtp of the client protects our keys open, and the other way round."""
        for profile, name in (
            (SRTP_AEAD_AES_128_GCM, "AEAD_AES_128_GCM"),
            (SRTP_AEAD_AES_256_GCM, "AEAD_AES_256_GCM"),
            (SRTP_AES128_CM_SHA1_80, "AES128_CM_SHA1_80"),
        ):
            call = Call()
            call.client._srtp_profiles = [profile]
            await call.connect()
            self.assertEqual(call.states, ["connecting", "connected"])
            (keys,) = call.keys
            self.assertEqual(keys.profile, name)
            self.assertEqual((len(keys.send_key), len(keys.send_salt)), (profile.key_length, profile.salt_length))
            ours = {
                "key": keys.send_key + keys.send_salt,
                "ssrc_type": Policy.SSRC_ANY_OUTBOUND,
                "srtp_profile": LIBSRTP[name],
            }
            theirs = {
                "key": keys.receive_key + keys.receive_salt,
                "ssrc_type": Policy.SSRC_ANY_INBOUND,
                "srtp_profile": LIBSRTP[name],
            }
            sender, receiver = Session(Policy(**ours)), Session(Policy(**theirs))
            self.assertEqual(receiver.unprotect(call.client._tx_srtp.protect(RTP)), RTP)
            self.assertEqual(receiver.unprotect_rtcp(call.client._tx_srtp.protect_rtcp(RTCP)), RTCP)
            self.assertEqual(call.client._rx_srtp.unprotect(sender.protect(RTP)), RTP)
            self.assertEqual(call.client._rx_srtp.unprotect_rtcp(sender.protect_rtcp(RTCP)), RTCP)
            await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_preference(self) -> None:
        """Whatever order the client offers, AES-128-GCM is taken first, then AES-256-GCM, then CM."""
        every = [SRTP_AES128_CM_SHA1_80, SRTP_AEAD_AES_256_GCM, SRTP_AEAD_AES_128_GCM]
        for offered, expected in ((every, "AEAD_AES_128_GCM"), (every[:2], "AEAD_AES_256_GCM")):
            call = Call()
            call.client._srtp_profiles = offered
            await call.connect()
            self.assertEqual(call.keys[0].profile, expected)
            await call.close()

    @on_loop
    async def test_no_profile(self) -> None:
        """Without a profile in common the state is failed, it says why, and there are no keys."""
        call = Call()
        call.client._srtp_profiles = [SRTPProtectionProfile(0, b"SRTP_AES128_CM_SHA1_32", 16, 14)]
        call.server.start(FINGERPRINTS)
        handshake = asyncio.ensure_future(call.client_handshake())
        await call.state("failed")
        self.assertEqual(call.keys, [])
        self.assertIn("profiles", call.server.reason)
        await asyncio.gather(handshake, return_exceptions=True)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_fingerprint(self) -> None:
        """Any algorithm that we know is good, in either case, if all that we know fit; else the state is failed."""
        by_name = dict(FINGERPRINTS)
        wrong = by_name["sha-256"][:-2] + ("00" if by_name["sha-256"][-2:] != "00" else "01")
        for good, fingerprints in (
            (True, [("sha-512", by_name["sha-512"])]),
            (True, [("SHA-256", by_name["sha-256"].lower())]),
            (True, [("sha-1", "00:00"), ("sha-256", by_name["sha-256"])]),
            (False, [("sha-256", wrong)]),
            (False, [("sha-256", by_name["sha-256"]), ("sha-512", wrong)]),
            (False, [("sha-1", "00:00")]),
            (False, [("sha-256", "")]),
        ):
            call = Call()
            call.server.start(fingerprints)
            handshake = asyncio.ensure_future(call.client_handshake())
            await call.state("connected" if good else "failed")
            await handshake
            self.assertEqual(len(call.keys), good, fingerprints)
            if not good:
                self.assertIn("fingerprint", call.server.reason)
            await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_refused_client_is_told(self) -> None:
        """A client with the wrong certificate, which believes itself connected, is told that it is not."""
        call = Call()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.client.on("statechange", lambda: call.client.state == "closed" and over.set_result(None))
        await call.connect([("sha-256", ":".join(["AB"] * 32))])
        await asyncio.wait_for(over, 10)
        self.assertEqual(call.states, ["connecting", "failed"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_no_fingerprint(self) -> None:
        """A description without a fingerprint fails at once."""
        call = Call()
        call.server.start([])
        self.assertEqual(call.states, ["failed"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_early_datagrams(self) -> None:
        """What comes before the start is kept, so that no timer is waited for; and it is bounded."""
        call = Call()
        handshake = asyncio.ensure_future(call.client_handshake())
        for _ in range(20):
            await asyncio.sleep(0)
        sent = call.wire.sent
        self.assertGreater(sent, 0)
        call.server.start(FINGERPRINTS)
        await handshake
        self.assertEqual(call.client.state, "connected")
        # The ClientHello was not sent again, the rest is the client's one further flight.
        self.assertLessEqual(call.wire.sent, sent + 8)
        await call.close()

        other = Call()
        for _ in range(EARLY_DATAGRAMS + 5):
            other.server.received(b"\x16" * 100)
        other.server.received(b"")
        self.assertEqual(other.server.counters.overflowed, 5)
        await other.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_bounded_queue(self) -> None:
        """What waits for the reader is bounded in number and in size, and counted beyond."""
        call = Call()
        await call.connect()
        for _ in range(WAITING_DATAGRAMS + 200):
            call.server.received(b"\x17" * 50)
        call.server.received(b"\x17" * (MAX_DATAGRAM + 1))
        self.assertGreaterEqual(call.server.counters.overflowed, 199)
        self.assertEqual(call.server.counters.oversized, 1)
        await call.close()

    @on_loop
    async def test_lost_datagrams(self) -> None:
        """The handshake comes through when the first flights of both sides are lost."""
        call = Call()
        lost = {True: 0, False: 0}

        def lose(datagram: bytes, up: bool) -> bool:
            lost[up] += 1
            return lost[up] == 1

        call.wire.lose = lose
        await call.connect()
        await call.state("connected")
        self.assertEqual(call.client.state, "connected")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_random_datagrams(self) -> None:
        """Random records before, during and after the handshake change nothing."""
        generator = random.Random(5)

        def rubbish() -> bytes:
            kind = generator.choice((20, 21, 22, 23, 24, 25, 63))
            return bytes([kind]) + generator.choice((b"", b"\xfe\xfd", b"\xfe\xff")) + generator.randbytes(40)

        call = SctpCall()
        call.server.received(rubbish())
        original = call.wire.to_server

        def spoiled(datagram: bytes) -> None:
            call.server.received(rubbish())
            original(datagram)

        call.wire.to_server = spoiled
        await call.connect()
        for _ in range(100):
            for _ in range(100):
                call.server.received(rubbish())
            await asyncio.sleep(0)
        channel = call.client_open("still")
        await call.until(lambda: channel.readyState == "open")
        channel.send("here")
        await call.until(lambda: ("still", "here") in call.received)
        self.assertEqual(call.states, ["connecting", "connected"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_handshake_times_out(self) -> None:
        """A client that never says anything fails after the timeout."""
        call = Call(handshake_timeout=0.05)
        call.server.start(FINGERPRINTS)
        await call.state("failed")
        self.assertIn("timed out", call.server.reason)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_close(self) -> None:
        """Closing at any time, any number of times, leaves nothing; the client of a connection is told."""
        unused = Call()
        await closed(unused.server.close())
        await closed(unused.server.close())
        self.assertEqual((unused.server.state, unused.states), ("closed", []))
        unused.server.start(FINGERPRINTS)
        unused.server.received(b"\x16" * 20)
        self.assertEqual(unused.server.state, "closed")

        waiting = Call()
        waiting.server.start(FINGERPRINTS)
        await asyncio.sleep(0)
        both = waiting.server.close(), waiting.server.close()
        for each in both:
            await closed(each)

        halfway = Call()
        halfway.wire.lose = lambda datagram, up: not up
        handshake = asyncio.ensure_future(halfway.client_handshake())
        halfway.server.start(FINGERPRINTS)
        await halfway.state("connecting")
        await closed(halfway.server.close())
        handshake.cancel()
        await asyncio.gather(handshake, return_exceptions=True)

        call = Call()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.client.on("statechange", lambda: call.client.state == "closed" and over.set_result(None))
        await call.connect()
        await closed(call.server.close())
        await asyncio.wait_for(over, 10)
        self.assertEqual(call.states, ["connecting", "connected"])
        self.assertEqual(call.server.state, "closed")
        await self.assert_nothing_left()

    @on_loop
    async def test_client_closes(self) -> None:
        """close_notify of the client gives closed, and ends SCTP and its channels; no exception is left over."""
        call = SctpCall()
        await call.connect()
        call.client_open("chat")
        ours = call.take(call.sctp.open("ours"))
        await call.until(lambda: "chat" in call.channels)
        ours.send("x" * 100000)
        await call.client.stop()
        await call.state("closed")
        self.assertEqual(call.sctp_states[-1], "closed")
        self.assertEqual(sorted(call.lost), ["chat", "ours"])
        self.assertRaises(ConnectionError, ours.send, "more")
        self.assertRaises(ConnectionError, call.sctp.open, "late")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_listener_fails(self) -> None:
        """A listener that raises is logged and does not end the connection."""
        call = Call()

        def fail(keys: SrtpKeys) -> None:
            raise RuntimeError("by the test")

        call.server.on_keys = fail
        await call.connect()
        await call.state("connected")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        await call.close()


class DataTests(LoopCase):
    """SCTP and data channels."""

    @on_loop
    async def test_client_opens(self) -> None:
        """A client's channel comes with label, protocol and reliability, and carries text, binary and nothing."""
        call = SctpCall()
        await call.connect()
        for label, parameters in (
            ("reliable", {}),
            ("größe 📦", {"protocol": "jsön", "ordered": False}),
            ("lossy", {"ordered": False, "maxRetransmits": 0}),
            ("timed", {"maxPacketLifeTime": 500}),
        ):
            theirs = call.client_open(label, **parameters)
            await call.until(lambda theirs=theirs: theirs.readyState == "open")
        lossy, timed, reliable = (call.channels[label] for label in ("lossy", "timed", "reliable"))
        self.assertEqual((call.channels["größe 📦"].protocol, call.channels["größe 📦"].ordered), ("jsön", False))
        self.assertEqual((lossy.ordered, lossy.max_retransmits, lossy.max_packet_life_time), (False, 0, None))
        self.assertEqual((timed.ordered, timed.max_retransmits, timed.max_packet_life_time), (True, None, 500))
        self.assertEqual((reliable.ordered, reliable.max_retransmits), (True, None))
        self.assertEqual(reliable.id % 2, 0)
        messages: list[str | bytes] = ["text", b"\x00\xff", "", b"", "größe 📦"]
        for message in messages:
            call.client_channels["reliable"].send(message)
        await call.until(lambda: len(call.received) == len(messages))
        self.assertEqual(call.received, [("reliable", message) for message in messages])
        for message in messages:
            reliable.send(message)
        await call.until(lambda: len(call.client_received) == len(messages))
        self.assertEqual(call.client_received, [("reliable", message) for message in messages])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_we_open_early(self) -> None:
        """Channels opened and used before DTLS is up have their odd ids at once and lose nothing, in order."""
        call = SctpCall()
        call.sctp.start()
        first = call.sctp.open("größe 📦", protocol="prötocol")
        second = call.sctp.open("lossy", ordered=False, max_retransmits=0)
        self.assertEqual((first.id, second.id), (FIRST_STREAM, FIRST_STREAM + 2))
        for i in range(5):
            first.send(f"{i}")
        second.send(b"unordered")
        self.assertGreater(first.buffered, 0)
        self.assertEqual(call.sctp.buffered, first.buffered + second.buffered)
        # Beside the messages each channel's opening waits.
        self.assertEqual((call.sctp.queued, second.unopened), (2 + 6, 1))
        await call.connect()
        await call.until(lambda: len(call.client_received) == 6)
        ordered = [data for label, data in call.client_received if label == "größe 📦"]
        self.assertEqual(ordered, ["0", "1", "2", "3", "4"])
        theirs = call.client_channels["größe 📦"]
        self.assertEqual((theirs.protocol, theirs.id), ("prötocol", FIRST_STREAM))
        lossy = call.client_channels["lossy"]
        self.assertEqual((lossy.ordered, lossy.maxRetransmits, lossy.id), (False, 0, FIRST_STREAM + 2))
        self.assertEqual(call.sctp.buffered, 0)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_late_start(self) -> None:
        """SCTP can begin long after DTLS is up (a data m-line that comes late); starting twice is once."""
        call = Call()
        await call.connect()
        sctp = SctpTransport(call.server)
        self.assertRaises(ValueError, SctpTransport, call.server)
        sctp.on_state = lambda state: call.look()
        client = RTCSctpTransport(call.client, 5000)
        await client.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), 5000)
        sctp.start()
        sctp.start()
        await call.until(lambda: sctp.state == "connected")
        await closed(sctp.close())
        self.assertEqual(sctp.state, "closed")
        SctpTransport(call.server)
        await client.stop()
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_send_and_close(self) -> None:
        """What was sent before a close arrives, also when the client had not acknowledged the channel yet."""
        call = SctpCall()
        await call.connect()
        for label, ordered in (("a", True), ("b", False)):
            channel = call.sctp.open(label, ordered=ordered)
            channel.send("last words")
            channel.close()
            channel.close()
        await call.until(lambda: set(call.client_lost) == {"a", "b"})
        self.assertEqual(sorted(call.client_received), [("a", "last words"), ("b", "last words")])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_longest_message(self) -> None:
        """262,144 bytes pass both ways; one more is refused to us, and closes the channel of a client that sends it."""
        call = SctpCall()
        await call.connect()
        call.client_open("big")
        await call.until(lambda: "big" in call.channels and call.client_channels["big"].readyState == "open")
        longest = bytes(range(256)) * 1024
        call.client_channels["big"].send(longest)
        await call.until(lambda: len(call.received) == 1)
        self.assertEqual(call.received, [("big", longest)])
        call.channels["big"].send(longest)
        await call.until(lambda: len(call.client_received) == 1)
        self.assertEqual(call.client_received, [("big", longest)])
        self.assertRaises(ValueError, call.channels["big"].send, longest + b"x")
        self.assertRaises(ValueError, call.sctp.open("new").send, longest + b"x")
        self.assertRaises(ValueError, call.sctp.open("text").send, "ö" * 131073)

        call.client_sctp._remote_max_message_size = 0
        call.client_channels["big"].send(longest + b"x")
        await call.until(lambda: call.client_lost == ["big"])
        self.assertEqual(call.received, [("big", longest)])
        self.assertEqual(call.sctp.counters.oversized, 1)
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_bad_names(self) -> None:
        """A channel whose names are not UTF-8, or not as long as it says, opens with what can be read of them."""
        call = SctpCall()
        await call.connect()
        for i, (lengths, names) in enumerate(
            (((2, 1), b"\xffa\xff"), ((9, 9), b"abc"), ((0, 0), b""), ((3, 0), b"a\xc3\xa4"))
        ):
            opening = struct.pack("!BBHLHH", 3, 0, 0, 0, *lengths) + names
            await call.client_sctp._send(2 * i, 50, opening)
        await call.until(lambda: len(call.channels) == 4)
        found = [(channel.label, channel.protocol) for channel in call.channels.values()]
        self.assertEqual(found, [("\ufffda", "\ufffd"), ("abc", ""), ("", ""), ("aä", "")])
        await call.close()

    @on_loop
    async def test_bad_text(self) -> None:
        """Text that is not UTF-8 closes its channel, and nothing else."""
        call = SctpCall()
        await call.connect()
        channel = call.client_open("text")
        await call.until(lambda: channel.readyState == "open")
        await call.client_sctp._send(channel.id, 51, b"\xff\xfe")
        await call.until(lambda: call.client_lost == ["text"])
        self.assertEqual((call.received, call.sctp.counters.bad_text), ([], 1))
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_buffered(self) -> None:
        """What waits for a client that takes nothing is visible; aborting the channel gives it up."""
        call = SctpCall()
        await call.connect()
        ours = call.sctp.open("ours")
        await call.until(lambda: "ours" in call.client_channels)
        call.wire.lose = lambda datagram, up: not up
        for _ in range(20):
            ours.send(b"x" * 100_000)
        await asyncio.sleep(0)
        self.assertGreater(ours.buffered, 1_700_000)
        self.assertEqual(call.sctp.buffered, ours.buffered)
        ours.abort()
        self.assertEqual((ours.buffered, call.sctp.buffered), (0, 0))
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_dead_client(self) -> None:
        """A client that acknowledges nothing for the timeout is given up: the association closes."""
        call = SctpCall(acknowledge_timeout=0.1)
        await call.connect()
        ours = call.take(call.sctp.open("ours"))
        await call.until(lambda: "ours" in call.client_channels and call.client_channels["ours"].readyState == "open")
        call.sctp._sctp._out.timeout = 0.05
        call.wire.lose = lambda datagram, up: True
        ours.send("anybody?")
        await call.until(lambda: call.sctp.state == "closed")
        self.assertEqual(call.lost, ["ours"])
        self.assertEqual(call.sctp.counters.timed_out, 1)
        self.assertEqual(call.server.state, "connected")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_streams_run_out(self) -> None:
        """When all identifiers are taken, opening one more says so; a closed one can be had again."""
        call = SctpCall()
        await call.connect()
        opened = [call.sctp.open(f"{i}") for i in range(MAX_STREAMS // 2)]
        self.assertEqual({each.id for each in opened}, set(range(1, MAX_STREAMS, 2)))
        self.assertRaises(ConnectionError, call.sctp.open, "more")
        await call.until(lambda: len(call.client_channels) == MAX_STREAMS // 2)
        call.take(opened[0]).close()
        await call.until(lambda: call.lost == ["0"])
        self.assertEqual(call.sctp.open("again").id, opened[0].id)
        await call.close()

    @on_loop
    async def test_client_aborts(self) -> None:
        """ABORT of the client closes for good: an INIT that follows does not revive the association."""
        call = SctpCall()
        await call.connect()
        await call.client_sctp._abort()
        await call.until(lambda: call.sctp.state == "closed")
        again = RTCSctpTransport(call.client, 5000)
        call.client._data_receiver = None
        await again.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), 5000)
        for _ in range(20):
            await asyncio.sleep(0)
        self.assertEqual((call.sctp.state, again.state), ("closed", "connecting"))
        self.assertEqual(call.server.state, "connected")
        await again.stop()
        await call.close()
        await self.assert_nothing_left()


class HostileTests(LoopCase):
    """What a client cannot make us do or keep."""

    async def assert_aborted(self, call: SctpCall, attack: Awaitable[None]) -> None:
        await attack
        await call.until(lambda: call.sctp.state == "closed")
        self.assertEqual(call.sctp.counters.aborted, 1)
        self.assertEqual((call.server.state, call.states), ("connected", ["connecting", "connected"]))
        await call.close()
        await self.assert_nothing_left()

    async def start(self) -> SctpCall:
        call = SctpCall()
        await call.connect()
        return call

    @on_loop
    async def test_parameter_of_no_length(self) -> None:
        """A parameter of length zero, in any chunk that has parameters, ends the association and not the process."""
        for kind, before in ((4, 0), (5, 0), (6, 0), (9, 0), (130, 0), (2, 16)):
            call = await self.start()
            body = bytes(before) + bytes(4)
            await self.assert_aborted(call, call.send_body(struct.pack("!BBH", kind, 0, 4 + len(body)) + body))

    @on_loop
    async def test_message_without_end(self) -> None:
        """A message longer than the window ends the association; no more than the window was kept."""
        call = await self.start()

        async def attack() -> None:
            for i in range(1100):
                await call.send_raw(call.data(1 + i, bytes(1000), flags=0 if i else 2))
                if i % 100 == 0:
                    await asyncio.sleep(0)

        await self.assert_aborted(call, attack())

    @on_loop
    async def test_many_small_fragments(self) -> None:
        """Fragments are counted as well as measured."""
        call = await self.start()

        async def attack() -> None:
            for i in range(MAX_CHUNKS + 2):
                await call.send_raw(call.data(1 + i, b"x", flags=0 if i else 2))
                if i % 50 == 0:
                    await asyncio.sleep(0)

        await self.assert_aborted(call, attack())

    @on_loop
    async def test_gaps(self) -> None:
        """Chunks beyond a gap are kept within the window and dropped beyond, and the association lives."""
        call = await self.start()
        for i in range(1200):
            await call.send_raw(call.data(2 + i, bytes(1000), sequence=1))
            if i % 100 == 0:
                await asyncio.sleep(0)
        await call.send_raw(call.data(MAX_CHUNKS + 10, b"far ahead"))
        channel = call.client_open("closes the gap")
        await call.until(lambda: channel.readyState == "open")
        self.assertGreaterEqual(call.sctp.counters.chunks_dropped, 1200 - 1049)
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_stream_out_of_range(self) -> None:
        """A stream that was not negotiated ends the association, in DATA and in FORWARD TSN."""
        call = await self.start()
        await self.assert_aborted(call, call.send_raw(call.data(1, b"x", stream_id=MAX_STREAMS)))
        call = await self.start()
        chunk = ForwardTsnChunk()
        chunk.cumulative_tsn = call.client_sctp._local_tsn
        chunk.streams = [(MAX_STREAMS, 0)]
        await self.assert_aborted(call, call.send_raw(chunk))

    @on_loop
    async def test_acknowledgements(self) -> None:
        """A SACK of what was not sent, or with gap blocks that span more, ends the association."""
        for ahead, gaps in ((1, []), (0, [(1, 65535)]), (0, [(2, 1)]), (-1, [(1, 1), (1, 1)])):
            call = await self.start()
            chunk = SackChunk()
            chunk.cumulative_tsn = (call.sctp._sctp._local_tsn - 1 + ahead) % 2**32
            chunk.gaps = list(gaps)
            await self.assert_aborted(call, call.send_raw(chunk))

    @on_loop
    async def test_client_begins(self) -> None:
        """A client that begins the association, as all do, gets no INIT of ours: werift would be lost."""
        came: list[str] = []

        class Client(RTCSctpTransport):  # type: ignore[misc]
            async def _receive_chunk(self, chunk: Any) -> None:
                came.append(type(chunk).__name__)
                await super()._receive_chunk(chunk)

        call = SctpCall()
        call.client_sctp = Client(call.client, 5000)
        await call.connect()
        await call.until(lambda: call.client_sctp.state == "connected")
        self.assertIn("InitAckChunk", came)
        self.assertNotIn("InitChunk", came)
        await call.close()

    @on_loop
    async def test_odd_client(self) -> None:
        """A client that takes odd ids too, and from the lowest (werift), does not meet ours, whoever opens first."""
        call = await self.start()
        ours = call.sctp.open("ours")
        call.client_sctp._data_channel_id = 1
        theirs = call.client_open("theirs")
        await call.until(lambda: theirs.readyState == "open" and "ours" in call.client_channels)
        theirs.send("one")
        ours.send("two")
        await call.until(lambda: bool(call.received and call.client_received))
        self.assertEqual((call.received, call.client_received), ([("theirs", "one")], [("ours", "two")]))
        await call.close()

    @on_loop
    async def test_chunks_that_make_no_sense(self) -> None:
        """What aiortc stumbles over ends the association; DTLS, and so the media, stay."""
        for body in (
            struct.pack("!BBH", 0, 3, 6) + b"\x00\x00" + bytes(2),
            struct.pack("!BBH", 3, 0, 8) + bytes(4),
            struct.pack("!BBHLLHH", 3, 0, 16, 0, 0, 9, 9),
            struct.pack("!BBH", 130, 0, 12) + struct.pack("!HHL", 13, 8, 1),
        ):
            call = await self.start()
            await self.assert_aborted(call, call.send_body(body))

    @on_loop
    async def test_opening_twice(self) -> None:
        """An OPEN for a channel that is open ends the association; an ACK for none is ignored."""
        call = await self.start()
        await call.client_sctp._send(9, 50, b"\x02")
        channel = call.client_open("chat")
        await call.until(lambda: channel.readyState == "open")
        self.assertEqual(call.sctp.state, "connected")
        opening = struct.pack("!BBHLHH", 3, 0, 0, 0, 0, 0)
        await self.assert_aborted(call, call.client_sctp._send(channel.id, 50, opening))

    @on_loop
    async def test_random_packets(self) -> None:
        """Random chunks with the right checksum do nothing worse than end the association."""
        generator = random.Random(11)
        call = await self.start()
        for i in range(3000):
            kind = generator.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192, 200))
            body = generator.randbytes(generator.randrange(40))
            chunk = struct.pack("!BBH", kind, generator.randrange(8), 4 + len(body)) + body + bytes(-len(body) % 4)
            await call.send_body(chunk)
            await asyncio.sleep(0)
            if call.sctp.state == "closed" or i % 50 == 49:
                self.assertEqual(call.server.state, "connected")
                await call.close()
                call = await self.start()
        await call.close()
        await self.assert_nothing_left()


class SeamTests(LoopCase):
    """One test for each thing of aiortc's that is not public and that we lean on."""

    def test_version(self) -> None:
        """The version that all of this was tried with."""
        import aiortc

        self.assertEqual(aiortc.__version__.split(".")[:2], ["1", "16"])

    @on_loop
    async def test_dtls_names(self) -> None:
        """RTCDtlsTransport: role, profiles, states, the SSL connection and the task that reads."""
        call = Call()
        dtls = call.server._dtls
        self.assertEqual((dtls._role, dtls._state, dtls._ssl, dtls._task), ("server", State.NEW, None, None))
        self.assertEqual(
            [p.openssl_profile for p in dtls._srtp_profiles],
            [b"SRTP_AEAD_AES_128_GCM", b"SRTP_AEAD_AES_256_GCM", b"SRTP_AES128_CM_SHA1_80"],
        )
        await call.connect()
        self.assertTrue(dtls.encrypted)
        self.assertIsInstance(dtls._ssl, SSL.Connection)
        self.assertIsInstance(dtls._task, asyncio.Task)
        # Our _setup_srtp has taken the place of the one that makes libsrtp sessions.
        self.assertIsNone(dtls._rx_srtp)
        self.assertIsNone(dtls.keys)
        await call.close()

    def test_one_context(self) -> None:
        """All connections of a certificate share an SSL context, which keeps no sessions."""
        certificate = DtlsCertificate().certificate
        context = certificate._create_ssl_context(list(_aiortc.PROFILES))
        self.assertIs(certificate._create_ssl_context(list(_aiortc.PROFILES)), context)
        self.assertIsNot(certificate._create_ssl_context([SRTP_AEAD_AES_128_GCM]), context)
        self.assertEqual(context.set_session_cache_mode(SSL.SESS_CACHE_SERVER), SSL.SESS_CACHE_OFF)

    @on_loop
    async def test_identity_before_keys(self) -> None:
        """aiortc checks the fingerprint before it sets SRTP up, and goes no further when it is wrong."""
        order: list[str] = []

        class Watched(_aiortc.Dtls):
            def _validate_peer_identity(self, parameters: Any) -> None:
                order.append("identity")
                super()._validate_peer_identity(parameters)

            def _setup_srtp(self) -> None:
                order.append("keys")
                super()._setup_srtp()

        for value, expected in ((dict(FINGERPRINTS)["sha-256"], ["identity", "keys"]), ("00", ["identity"])):
            order.clear()
            wire, back = Wire(), Wire()
            wire.to_server, back.to_server = back.queue.put_nowait, wire.queue.put_nowait
            client = RTCDtlsTransport(wire, [CLIENT_CERTIFICATE])  # type: ignore[arg-type]
            client._set_role("client")
            server = Watched(back, [CERTIFICATE.certificate])  # type: ignore[arg-type]
            server._set_role("server")
            await asyncio.gather(
                client.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", CERTIFICATE.fingerprint())])),
                server.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", value)])),
            )
            self.assertEqual(order, expected)
            for end in (client, server):
                task = end._task
                await end.stop()
                await asyncio.gather(*([task] if task else []), return_exceptions=True)

    @on_loop
    async def test_data_receiver(self) -> None:
        """DTLS hands what it decrypts to ``_handle_data`` of the one receiver that is registered."""
        call = Call()
        await call.connect()
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        class Receiver:
            async def _handle_data(self, data: bytes) -> None:
                got.set_result(data)

        receiver = Receiver()
        call.server._dtls._register_data_receiver(receiver)
        await call.client._send_data(b"decrypted")
        self.assertEqual(await asyncio.wait_for(got, 10), b"decrypted")
        call.server._dtls._unregister_data_receiver(receiver)
        self.assertIsNone(call.server._dtls._data_receiver)
        await call.close()

    @on_loop
    async def test_sctp_names(self) -> None:
        """RTCSctpTransport: the state, counters and queues that our limits read and write."""
        call = SctpCall()
        await call.connect()
        sctp = call.sctp._sctp
        self.assertEqual(sctp._association_state, sctp.State.ESTABLISHED)
        self.assertTrue(sctp.is_server)
        self.assertEqual(sctp._advertised_rwnd, WINDOW)
        self.assertEqual(sctp._inbound_streams_max, MAX_STREAMS)
        self.assertEqual(sctp._outbound_streams_count, MAX_STREAMS)
        self.assertEqual(call.client_sctp._outbound_streams_count, MAX_STREAMS)
        self.assertEqual((dict(sctp._data_channels), list(sctp._data_channel_queue)), ({}, []))
        self.assertEqual((sctp._reconfig_queue, sctp._reconfig_request, sctp._reconfig_deferred), ([], None, None))
        self.assertTrue(sctp._remote_partial_reliability)
        # What aiortc would keep is never used, but for the numbers that it asks for.
        self.assertEqual((len(sctp._outbound_queue), len(sctp._sent_queue)), (0, 0))
        self.assertEqual(sctp._last_received_tsn, (call.client_sctp._local_tsn - 1) % 2**32)
        self.assertEqual(call.client_sctp._last_received_tsn, (sctp._local_tsn - 1) % 2**32)
        await call.close()
        self.assertIsNone(sctp._t1_handle or sctp._t2_handle or sctp._t3_handle or sctp._reconfig_handle)
        self.assertIsNone(sctp._timer)

    @on_loop
    async def test_sctp_hooks(self) -> None:
        """RTCSctpTransport calls each method that we override."""
        called: set[str] = set()
        hooks = (
            "_send_chunk",
            "_local_tsn",
            "_last_received_tsn",
            "_ssthresh",
            "_transmit_reconfig",
            "_set_state",
            "_data_channel_open",
            "_data_channel_close",
            "_data_channel_flush",
        )

        class Watched(_sctp.Sctp):
            def __getattribute__(self, name: str) -> Any:
                if name in hooks:
                    called.add(name)
                return super().__getattribute__(name)

            def __setattr__(self, name: str, value: Any) -> None:
                if name in hooks:
                    called.add(name)
                super().__setattr__(name, value)

        for name in hooks:
            self.assertIn(name, vars(_sctp.Sctp))
        call = SctpCall()
        transport = call.sctp
        watched = Watched(
            call.server._dtls, transport.counters, transport._changed, transport._delivered, transport._wake, 30
        )
        transport._sctp = watched
        called.clear()
        await call.connect()
        channel = call.take(transport.open("ours"))
        await call.until(lambda: "ours" in call.client_channels)
        channel.close()
        await call.until(lambda: call.lost == ["ours"])
        self.assertEqual(called, set(hooks))
        await call.close()

    @on_loop
    async def test_streams_begin_anew(self) -> None:
        """RTCSctpTransport drops what it knows of a stream that was reset, in each direction, where we stand by."""
        call = SctpCall()
        await call.connect()
        for _ in range(2):
            ours = call.take(call.sctp.open("ours"))
            await call.until(lambda: "ours" in call.client_channels)
            ours.send("1")
            ours.send("2")
            await call.until(lambda: len(call.client_received) == 2)
            call.client_channels["ours"].send("3")
            await call.until(lambda: call.received == [("ours", "3")])
            ours.close()
            await call.until(lambda: call.lost == ["ours"] and call.client_lost == ["ours"])
            for log in (call.client_received, call.received, call.lost, call.client_lost):
                log.clear()
            call.client_channels.clear()
        await call.close()

    @on_loop
    async def test_loose_tasks(self) -> None:
        """aiortc sends from tasks that nobody awaits: what they meet on a closed DTLS must not surface there."""
        call = SctpCall()
        await call.connect()
        ours = call.sctp.open("ours")
        await call.until(lambda: "ours" in call.client_channels)
        dtls, sctp = call.server._dtls, call.sctp._sctp
        call.wire.lose = lambda datagram, up: not up
        ours.send("into the void")
        late: list[int] = []

        def timer() -> None:
            if dtls.state == "closed":
                late.append(sctp._out.flight)
                sctp._out.expire(sctp._out.deadline)
                sctp.flush()

        dtls.on("statechange", timer)
        await call.client.stop()
        await call.state("closed")
        self.assertEqual(late, [len("into the void")])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_opening_counts_characters(self) -> None:
        """aiortc still gives lengths in characters, so that ours still has to be there; it queues the OPEN last."""
        call = SctpCall()
        channel = RTCDataChannel(call.client_sctp, RTCDataChannelParameters(label="größe"))
        queued, kind, message = call.client_sctp._data_channel_queue[-1]
        self.assertEqual((queued, kind), (channel, 50))
        self.assertEqual(struct.unpack_from("!HH", message, 8), (5, 0))
        call.sctp.open("größe")
        self.assertEqual(len(call.sctp._sctp._data_channel_queue), 0)
        self.assertEqual(call.sctp.buffered, 12 + len("größe".encode()))
        await call.close()
