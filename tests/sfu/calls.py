"""DTLS and SCTP of a client of aiortc's making, and our ends of them, in memory.

What one end sends is the other's next datagram, unless the test loses it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import (
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
)
from aiortc.rtcsctptransport import (
    DataChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
)
from google_crc32c import value as crc32c
from pylibsrtp import Policy
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.sfu._aiortc import DtlsCertificate, DtlsTransport
from orama.sfu._sctp import MAX_MESSAGE_SIZE
from orama.sfu._sctp_channels import Channel, SctpTransport
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
        #: What the server sent at once each time.
        self.bursts: list[Sequence[bytes]] = []

    def to_client(self, datagrams: Sequence[bytes]) -> None:
        self.bursts.append(datagrams)
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
    """The same with an SCTP association.

    :param client: what the client uses.
    """

    def __init__(self, client: type[RTCSctpTransport] = RTCSctpTransport, **options: Any) -> None:
        super().__init__()
        self.sctp = SctpTransport(self.server, 5000, MAX_MESSAGE_SIZE, **options)
        self.sctp_states: list[str] = []
        self.sctp.on_state = self._sctp_stated
        self.channels: dict[str, Channel] = {}
        self.received: list[tuple[str, str | bytes]] = []
        self.lost: list[str] = []
        self.sctp.on_channel = self.take
        self.client_sctp = client(self.client, 5000)
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
