"""DTLS and SCTP by aiortc: the one file that knows its private seams, and the bridge out of asyncio.

aiortc's transports are coroutines over an ICE transport of their own kind; here they run over datagrams
that the media port hands in, always as the DTLS server (RFC 8842, 5.3: ``passive``), and speak to the rest
of the SFU by plain calls and callables, from within the reactor. Media never enters aiortc: DTLS gives up
its SRTP keys (RFC 5764, 4.2), and that is all. The version is pinned; a test stands for each seam.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeAlias, cast

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
    DATA_CHANNEL_OPEN,
    WEBRTC_DCEP,
    WEBRTC_STRING,
    DataChunk,
    ForwardTsnChunk,
    RTCSctpTransport,
    SackChunk,
)
from attrs import define
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orama.sfu.values import SrtpKeys

Message: TypeAlias = str | bytes
#: ``(algorithm, value)`` of an ``a=fingerprint`` line.
Fingerprint: TypeAlias = tuple[str, str]

#: In the order of our liking; the server's order decides (RFC 5764, 4.1.1). AES-128-GCM costs least.
PROFILES: tuple[SRTPProtectionProfile, ...] = (SRTP_AEAD_AES_128_GCM, SRTP_AEAD_AES_256_GCM, SRTP_AES128_CM_SHA1_80)
#: What may wait before the description with the fingerprint is here: a ClientHello of two datagrams,
#: sent a few times over.
EARLY_DATAGRAMS = 16
#: What may wait for aiortc's reader. An SCTP window of 1 MiB is some 900 datagrams.
WAITING_DATAGRAMS = 1024
#: No DTLS record of a WebRTC client is longer than its path's MTU.
MAX_DATAGRAM = 2048
#: Seconds from the start of DTLS to its keys.
HANDSHAKE_TIMEOUT = 30.0
#: The longest message that we take (``a=max-message-size``, RFC 8841, 6).
MAX_MESSAGE_SIZE = 262144
#: Stream identifiers in each direction; every channel of ours takes an odd one, the client's an even one.
MAX_STREAMS = 1024
#: How far beyond the last TSN in order a DATA chunk may lie, and how many chunks may wait to be put
#: together. The window counts bytes alone, and a chunk costs some 500 bytes beside its own.
MAX_CHUNKS = 4096
#: Seconds with data on the way and nothing acknowledged, after which the association is dead.
ACKNOWLEDGE_TIMEOUT = 30.0
#: Our ``a=sctp-port``.
LOCAL_PORT = 5000
#: Where the parameters begin in the chunks that have them (RFC 9260, 3.3; RFC 6525, 3.1), by chunk type.
PARAMETERS_AT = {1: 20, 2: 20, 4: 4, 5: 4, 6: 4, 9: 4, 130: 4}
COMMON_HEADER = 12
#: Gap blocks and duplicates that fit a SACK beside each other in one packet.
MAX_GAPS = 240
MAX_DUPLICATES = 32
DCEP_OPEN = bytes([DATA_CHANNEL_OPEN])

_chunk_header = struct.Struct("!BxH")
_length = struct.Struct("!H")
_open_lengths = struct.Struct("!HH")
_log = Logger()


class DtlsCertificate:
    """The certificate that all DTLS transports of the process show. It proves itself by its fingerprint."""

    def __init__(self) -> None:
        self._certificate = RTCCertificate.generateCertificate()
        self._fingerprints = {f.algorithm: f.value for f in self._certificate.getFingerprints()}

    def fingerprint(self) -> str:
        """SHA-256 as in ``a=fingerprint:sha-256 …`` (RFC 8122): upper-case hex with colons."""
        return self._fingerprints["sha-256"]

    @property
    def certificate(self) -> RTCCertificate:
        return self._certificate


@define(eq=False)
class DtlsCounters:
    """Datagrams that went no further."""

    #: More than may wait before the start, or for the reader.
    overflowed: int = 0
    #: Longer than any client's.
    oversized: int = 0
    #: Outgoing ones that found the transport closed.
    unsent: int = 0


def _ignore(*_: object) -> None:
    """Nobody listens."""


class _Datagrams:
    """What aiortc takes for an ICE transport: ``_recv``, ``_send`` and a role."""

    #: ICE-lite is never controlling; aiortc looks at it for DTLS role "auto" and in statistics alone.
    role = "controlled"

    def __init__(self, send: Callable[[bytes], None], counters: DtlsCounters) -> None:
        self._deliver = send
        self._counters = counters
        self._waiting: deque[bytes] = deque()
        self._reader: asyncio.Future[bytes] | None = None
        self._closed = False
        self.limit = EARLY_DATAGRAMS

    def received(self, datagram: bytes) -> None:
        if self._closed or not datagram:
            return
        if len(datagram) > MAX_DATAGRAM:
            self._counters.oversized += 1
        elif self._reader is not None and not self._reader.done():
            self._reader.set_result(datagram)
        elif len(self._waiting) < self.limit:
            self._waiting.append(datagram)
        else:
            self._counters.overflowed += 1

    def close(self) -> None:
        """Whoever reads gets a ConnectionError, which aiortc takes for the end."""
        self._closed = True
        self._waiting.clear()
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(ConnectionError("closed"))

    async def _recv(self) -> bytes:
        if self._waiting:
            return self._waiting.popleft()
        if self._closed:
            raise ConnectionError("closed")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            return await self._reader
        finally:
            self._reader = None

    async def _send(self, datagram: bytes) -> None:
        if self._closed:
            self._counters.unsent += 1
            raise ConnectionError("closed")
        self._deliver(datagram)


class _Dtls(RTCDtlsTransport):  # type: ignore[misc]
    """aiortc's DTLS with the keys taken out before libsrtp gets them."""

    keys: SrtpKeys | None = None

    def _setup_srtp(self) -> None:
        assert self._ssl is not None
        name = self._ssl.get_selected_srtp_profile()
        profile = next((p for p in self._srtp_profiles if p.openssl_profile == name), None)
        if profile is None:
            self._set_state(State.FAILED)
            return
        key, salt = profile.key_length, profile.salt_length
        # RFC 5764, 4.2: client key, server key, client salt, server salt. We are the server.
        block = self._ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
        self.keys = SrtpKeys(
            profile=name.decode().removeprefix("SRTP_"),
            receive_key=block[:key],
            send_key=block[key : 2 * key],
            receive_salt=block[2 * key : 2 * key + salt],
            send_salt=block[2 * key + salt :],
        )

    async def refuse(self) -> None:
        """Tell a client that believes itself connected that it is not: close_notify."""
        assert self._ssl is not None
        try:
            self._ssl.shutdown()
            await self._write_ssl()
        except (SSL.Error, ConnectionError):
            return

    def pump(self) -> asyncio.Future[None] | None:
        """The task that reads, once connected."""
        task: asyncio.Future[None] | None = self._task
        return task


class DtlsTransport:
    """One client's DTLS association. We are the server.

    ``on_state`` is called with ``connecting``, ``connected``, ``failed`` or ``closed``; ``on_keys`` once,
    just before ``connected``. Neither is called again after :meth:`close`.

    :param send: gets each datagram for the client.
    """

    def __init__(
        self,
        certificate: DtlsCertificate,
        send: Callable[[bytes], None],
        *,
        counters: DtlsCounters | None = None,
        profiles: Iterable[SRTPProtectionProfile] = PROFILES,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self.counters = DtlsCounters() if counters is None else counters
        self.on_keys: Callable[[SrtpKeys], None] = _ignore
        self.on_state: Callable[[str], None] = _ignore
        self.reason = ""
        self._certificate = certificate
        self._loop = asyncio.get_event_loop()
        self._datagrams = _Datagrams(send, self.counters)
        self._dtls = _Dtls(cast(Any, self._datagrams), [certificate.certificate])
        self._dtls._set_role("server")
        self._dtls._srtp_profiles = list(profiles)
        self._dtls.on("statechange", self._changed)
        self._timeout = handshake_timeout
        self._state = "new"
        self._started = False
        self._handshake: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._sctp: SctpTransport | None = None

    @property
    def state(self) -> str:
        """``new``, ``connecting``, ``connected``, ``failed`` or ``closed``."""
        return self._state

    def fingerprint(self) -> str:
        """Ours, SHA-256."""
        return self._certificate.fingerprint()

    def start(self, remote_fingerprints: list[Fingerprint]) -> None:
        """Begin, now that the client's fingerprints are known; what came before is read first.

        Without a fingerprint that we can check the state becomes ``failed`` at once. A second start does nothing.
        """
        if self._started or self._ending is not None:
            return
        self._started = True
        self._datagrams.limit = WAITING_DATAGRAMS
        if not remote_fingerprints:
            self._fail("no fingerprint")
            return
        parameters = RTCDtlsParameters([RTCDtlsFingerprint(a, v) for a, v in remote_fingerprints], role="client")
        self._handshake = self._loop.create_task(self._shake(parameters))

    def received(self, datagram: bytes) -> None:
        """A datagram with a first byte of 20 to 63 from the client's proved address."""
        self._datagrams.received(datagram)

    def close(self) -> Deferred[None]:
        """Say close_notify and end. Fires when nothing of it is left; any number of calls is good."""
        self.on_keys = self.on_state = _ignore
        return self._end()

    def _end(self) -> Deferred[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._finish())
        done: Deferred[None] = Deferred()
        self._ending.add_done_callback(lambda task: done.callback(None))
        return done

    async def _shake(self, parameters: RTCDtlsParameters) -> None:
        dtls = self._dtls
        try:
            async with asyncio.timeout(self._timeout):
                await dtls.start(parameters)
        except TimeoutError:
            self._fail("handshake timed out")
        except Exception as error:  # OpenSSL gives up in several ways
            self._fail(f"handshake failed: {type(error).__name__}")
        else:
            if dtls.state == "failed":
                if dtls.encrypted:
                    await dtls.refuse()
                    self._fail("the fingerprint or the SRTP profiles do not match")
                else:
                    self._fail("handshake failed")
        if self._state == "failed":
            self._datagrams.close()

    def _changed(self) -> None:
        """aiortc's state has changed; a failure is told with its reason once the handshake task is through."""
        state = self._dtls.state
        if state == "connecting":
            self._tell(state)
        elif state == "connected" and self._dtls.keys is not None:
            keys, self._dtls.keys = self._dtls.keys, None
            self._call(self.on_keys, keys)
            self._tell(state)
            if self._sctp is not None:
                self._sctp.carried()
        elif state == "closed" and self._ending is None:
            self._end()

    def _fail(self, reason: str) -> None:
        if self._ending is None:
            self.reason = reason
            _log.info("DTLS failed: {reason}", reason=reason)
            self._tell("failed")

    def _tell(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._call(self.on_state, state)

    def _call(self, listener: Callable[..., None], *arguments: object) -> None:
        try:
            listener(*arguments)
        except Exception:
            _log.failure("a listener of DTLS failed")

    async def _finish(self) -> None:
        """Stop SCTP before DTLS, and wait for every task (what they raise at the end is of no interest)."""
        pump = self._dtls.pump()
        try:
            if self._sctp is not None:
                await self._sctp.stop()
            await self._dtls.stop()
        except Exception:
            _log.failure("closing DTLS failed")
        self._datagrams.close()
        tasks = [task for task in (pump, self._handshake) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        # aiortc's own loose tasks (flushes) run to their end in one turn, since nothing in them waits.
        await asyncio.sleep(0)
        self._dtls.remove_all_listeners()
        self._tell("closed")

    # ---- what SctpTransport needs -------------------------------------------------------------------

    def carry(self, sctp: SctpTransport) -> RTCDtlsTransport:
        """Carry *sctp* from now on: it starts no sooner and stops no later than this.

        :raises ValueError: there is one that has not ended (RFC 8841, 9.1: one association).
        """
        if self._sctp is not None and self._sctp.state != "closed":
            raise ValueError("this DTLS transport carries an SCTP association")
        self._sctp = sctp
        return self._dtls


@define(eq=False)
class SctpCounters:
    """What clients sent on their associations that could not be taken."""

    #: Associations aborted: what came made no sense, or went beyond the window.
    aborted: int = 0
    #: Associations with data on the way that nobody acknowledged.
    timed_out: int = 0
    #: Channels closed for a message over the limit.
    oversized: int = 0
    #: Channels closed for text that is not UTF-8.
    bad_text: int = 0
    #: Chunks beyond what we keep, which the client sends again.
    chunks_dropped: int = 0


class _Violation(Exception):
    """The client's SCTP broke a limit."""


class _Sctp(RTCSctpTransport):  # type: ignore[misc]
    """aiortc's SCTP with limits on what a client can make it keep, and an end to associations that are dead.

    aiortc announces a window and does not hold it, retransmits for ever, loops for ever over a parameter of
    length zero, and lets what it cannot read end the task that reads DTLS.
    """

    def __init__(
        self,
        dtls: RTCDtlsTransport,
        counters: SctpCounters,
        changed: Callable[[str], None],
        acknowledge_timeout: float,
    ) -> None:
        super().__init__(dtls, LOCAL_PORT)
        self._acknowledge_timeout = acknowledge_timeout
        self._inbound_streams_max = MAX_STREAMS
        self._outbound_streams_count = MAX_STREAMS
        self.counters = counters
        self._changed = changed
        self._held = 0
        self._unacknowledged_since: float | None = None

    def discard(self, channel: RTCDataChannel) -> None:
        """Forget what waits to be sent on *channel*, but for its own opening."""
        queue, self._data_channel_queue = self._data_channel_queue, deque()
        for item in queue:
            if item[0] is channel and item[1] != WEBRTC_DCEP:
                channel._addBufferedAmount(-len(item[2]))
            else:
                self._data_channel_queue.append(item)

    async def _handle_data(self, data: bytes) -> None:
        try:
            _check_parameters(data)
            await super()._handle_data(data)
        except Exception as error:  # aiortc asserts and unpacks; the DTLS reader must survive that
            _log.info("SCTP association aborted: {error}", error=type(error).__name__)
            self.counters.aborted += 1
            await self.stop()

    async def _send_chunk(self, chunk: Any) -> None:
        if isinstance(chunk, SackChunk):
            # What does not fit one packet is told by the next SACK (RFC 9260, 3.3.4).
            del chunk.gaps[MAX_GAPS:], chunk.duplicates[MAX_DUPLICATES:]
        try:
            await super()._send_chunk(chunk)
        except (ConnectionError, SSL.Error):
            return  # DTLS is closed or closing; it stops this in a moment

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        ahead = (chunk.tsn - self._last_received_tsn) % 2**32
        if chunk.stream_id >= MAX_STREAMS:
            raise _Violation("stream identifier")
        if 0 < ahead < 2**31:
            if self._held >= MAX_CHUNKS:
                self._held = sum(len(stream.reassembly) for stream in self._inbound_streams.values())
            if ahead > MAX_CHUNKS or self._held >= MAX_CHUNKS or len(chunk.user_data) > self._advertised_rwnd:
                if ahead == 1:
                    raise _Violation("a message that does not fit the window")
                self.counters.chunks_dropped += 1
                self._sack_needed = True
                return
        stream = self._get_inbound_stream(chunk.stream_id)
        before = len(stream.reassembly)
        await super()._receive_data_chunk(chunk)
        self._held += len(stream.reassembly) - before

    def _mark_received(self, tsn: int) -> bool:
        """Whether *tsn* has come before.

        aiortc sorts all that is out of order for each chunk, 0.5 ms with 4,000, and stops where the numbers wrap.
        """
        last = cast(int, self._last_received_tsn)
        if (last - tsn) % 2**32 < 2**31 or tsn in self._sack_misordered:
            if len(self._sack_duplicates) < MAX_DUPLICATES:
                self._sack_duplicates.append(tsn)
            return True
        self._sack_misordered.add(tsn)
        while (last + 1) % 2**32 in self._sack_misordered:
            last = (last + 1) % 2**32
            self._sack_misordered.discard(last)
        self._last_received_tsn = last
        return False

    async def _receive_sack_chunk(self, chunk: SackChunk) -> None:
        # aiortc walks every TSN that a gap block spans, sent or not: let them be in order and within
        # what is on its way (RFC 9260, 3.3.4), so that a SACK costs no more than what it acknowledges.
        flight = (self._local_tsn - 1 - chunk.cumulative_tsn) % 2**32
        last = 0
        if flight >= 2**31:
            raise _Violation("an acknowledgement of what was not sent")
        for first, end in chunk.gaps:
            if not last < first <= end <= flight:
                raise _Violation("gap blocks")
            last = end
        self._unacknowledged_since = None
        await super()._receive_sack_chunk(chunk)

    async def _receive_forward_tsn_chunk(self, chunk: ForwardTsnChunk) -> None:
        if any(stream_id >= MAX_STREAMS for stream_id, _ in chunk.streams):
            raise _Violation("stream identifier")
        await super()._receive_forward_tsn_chunk(chunk)

    async def _receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        channel = self._data_channels.get(stream_id)
        if channel is None and (pp_id != WEBRTC_DCEP or data[:1] != DCEP_OPEN):
            return
        if pp_id == WEBRTC_DCEP:
            data = _readable_open(data)
        elif channel is not None:
            if len(data) > MAX_MESSAGE_SIZE:
                self.counters.oversized += 1
                channel.close()
                return
            if pp_id == WEBRTC_STRING and not _is_utf8(data):
                self.counters.bad_text += 1
                channel.close()
                return
        await super()._receive(stream_id, pp_id, data)

    def _t3_expired(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._unacknowledged_since is None:
            self._unacknowledged_since = now
        elif now - self._unacknowledged_since > self._acknowledge_timeout:
            self._t3_handle = None
            self.counters.timed_out += 1
            self._set_state(self.State.CLOSED)
            return
        super()._t3_expired()

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        if state == self.State.CLOSED:
            # For good: a later INIT would revive an association whose channels are gone.
            self.transport._unregister_data_receiver(self)
        super()._set_state(state)
        self._changed(self.state)

    def _data_channel_open(self, channel: RTCDataChannel) -> None:
        """aiortc gives the lengths of label and protocol in characters; RFC 8832, 5.1 means bytes."""
        super()._data_channel_open(channel)
        _, pp_id, message = self._data_channel_queue.pop()
        label, protocol = channel.label.encode(), channel.protocol.encode()
        message = message[:8] + _open_lengths.pack(len(label), len(protocol)) + label + protocol
        self._data_channel_queue.append((channel, pp_id, message))


class Channel:
    """One data channel (RFC 8831): an end of it, of the client's making or of ours.

    ``on_message`` gets text as str and binary as bytes, ``on_close`` is called once.
    """

    def __init__(self, sctp: _Sctp, channel: RTCDataChannel) -> None:
        self.on_message: Callable[[Message], None] = _ignore
        self.on_close: Callable[[], None] = _ignore
        self._sctp = sctp
        self._channel = channel
        #: What was sent before the client acknowledged the channel.
        self._unopened: deque[Message] = deque()
        self._unopened_size = 0
        self._ending = False
        channel.on("message", self._message)
        channel.on("open", self._open)
        channel.on("close", self._closed)

    @property
    def id(self) -> int:
        """The stream identifier."""
        return cast(int, self._channel.id)

    @property
    def label(self) -> str:
        return self._channel.label

    @property
    def protocol(self) -> str:
        return self._channel.protocol

    @property
    def ordered(self) -> bool:
        return self._channel.ordered

    @property
    def max_retransmits(self) -> int | None:
        return self._channel.maxRetransmits

    @property
    def max_packet_life_time(self) -> int | None:
        """Milliseconds."""
        return self._channel.maxPacketLifeTime

    @property
    def buffered(self) -> int:
        """Bytes that wait here: at most one message beside them is on its way."""
        return self._channel.bufferedAmount + self._unopened_size

    @property
    def unopened(self) -> int:
        """Messages that wait for the client to acknowledge the channel."""
        return len(self._unopened)

    def send(self, data: Message) -> None:
        """Send one message. There is no limit on what may wait: look at ``buffered``.

        :raises ValueError: longer than the client takes.
        :raises ConnectionError: the channel is closed.
        """
        state = self._channel.readyState
        if state == "open" or (state == "connecting" and self._channel.ordered):
            self._sctp._data_channel_send(self._channel, data)
        elif state == "connecting":
            # RFC 8832, 6: an unordered message could overtake the opening of its channel.
            self._unopened.append(data)
            self._unopened_size += len(data) or 1
        else:
            raise ConnectionError("the channel is closed")

    def close(self) -> None:
        """Close, once all that waits is sent. ``on_close`` follows; nothing happens the second time."""
        if self._unopened and self._channel.readyState == "connecting":
            self._ending = True
        else:
            self._channel.close()

    def abort(self) -> None:
        """Close, and lose what waits."""
        self._forget()
        self._sctp.discard(self._channel)
        self._channel.close()

    def _message(self, data: Message) -> None:
        try:
            self.on_message(data)
        except Exception:
            _log.failure("a listener of a data channel failed")

    def _open(self) -> None:
        waiting = list(self._unopened)
        self._forget()
        for data in waiting:
            with suppress(ValueError):
                self._sctp._data_channel_send(self._channel, data)
        if self._ending:
            self._channel.close()

    def _closed(self) -> None:
        self._forget()
        try:
            self.on_close()
        except Exception:
            _log.failure("a listener of a data channel failed")

    def _forget(self) -> None:
        self._unopened.clear()
        self._unopened_size = 0


class SctpTransport:
    """One client's SCTP association over its DTLS transport.

    It may be made, started, and have channels opened before DTLS is up or long after (a data m-line that
    comes late): everything waits for what it needs. ``on_channel`` gets each channel that the client opens,
    before any message on it; ``on_state`` is called with ``connecting``, ``connected`` and ``closed``, which
    is final: by either side, by the end of DTLS, or because nothing is acknowledged any more.

    :param remote_port: ``a=sctp-port`` of the client's description.
    :param remote_max_message_size: its ``a=max-message-size``; 0 means any size, and without the line
        it is 65,536 (RFC 8841, 6.1).
    """

    def __init__(
        self,
        dtls: DtlsTransport,
        remote_port: int = LOCAL_PORT,
        remote_max_message_size: int = 65536,
        *,
        counters: SctpCounters | None = None,
        acknowledge_timeout: float = ACKNOWLEDGE_TIMEOUT,
    ) -> None:
        self.counters = SctpCounters() if counters is None else counters
        self.on_channel: Callable[[Channel], None] = _ignore
        self.on_state: Callable[[str], None] = _ignore
        self._dtls = dtls
        self._remote_port = remote_port
        self._state = "new"
        self._wanted = False
        self._starting: asyncio.Task[None] | None = None
        self._loop = asyncio.get_event_loop()
        self._channels: dict[int, Channel] = {}
        self._sctp = _Sctp(dtls.carry(self), self.counters, self._changed, acknowledge_timeout)
        self._sctp._remote_max_message_size = remote_max_message_size
        self._sctp.on("datachannel", self._opened)

    @property
    def state(self) -> str:
        """``new``, ``connecting``, ``connected`` or ``closed``."""
        return self._state

    @property
    def buffered(self) -> int:
        """Bytes that wait on all channels together."""
        return sum(channel.buffered for channel in self._channels.values())

    @property
    def queued(self) -> int:
        """Messages that wait on all channels together."""
        return len(self._sctp._data_channel_queue) + sum(each.unopened for each in self._channels.values())

    def start(self) -> None:
        """Begin as soon as DTLS is up. Nothing happens the second time."""
        if not self._wanted:
            self._wanted = True
            if self._dtls.state == "connected":
                self.carried()

    def open(
        self,
        label: str,
        *,
        protocol: str = "",
        ordered: bool = True,
        max_retransmits: int | None = None,
        max_packet_life_time: int | None = None,
    ) -> Channel:
        """Open a channel of ours. Its id is known at once; messages wait until the client has it.

        :raises ConnectionError: the association is closed, or has no stream left.
        """
        if self._state == "closed":
            raise ConnectionError("the association is closed")
        # RFC 8832, 6: the DTLS server takes odd identifiers.
        last = min(MAX_STREAMS, self._sctp._outbound_streams_count)
        number = next((n for n in range(1, last, 2) if n not in self._sctp._data_channels), None)
        if number is None:
            raise ConnectionError("no stream left")
        parameters = RTCDataChannelParameters(
            label=label,
            protocol=protocol,
            ordered=ordered,
            maxRetransmits=max_retransmits,
            # aiortc takes a lifetime of 0 for none at all.
            maxPacketLifeTime=max_packet_life_time if max_packet_life_time != 0 else 1,
            id=number,
        )
        return self._keep(RTCDataChannel(self._sctp, parameters))

    def close(self) -> Deferred[None]:
        """Abort the association; its channels close. Fires when nothing of it is left."""
        task = self._loop.create_task(self.stop())
        done: Deferred[None] = Deferred()
        task.add_done_callback(lambda _: done.callback(None))
        return done

    # ---- what DtlsTransport calls -------------------------------------------------------------------

    def carried(self) -> None:
        """DTLS is up."""
        if self._wanted and self._starting is None and self._state != "closed":
            self._starting = self._loop.create_task(self._sctp.start(None, self._remote_port))

    async def stop(self) -> None:
        await self._sctp.stop()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)

    def _keep(self, channel: RTCDataChannel) -> Channel:
        kept = Channel(self._sctp, channel)
        self._channels[kept.id] = kept
        channel.on("close", lambda: self._channels.pop(kept.id, None))
        return kept

    def _opened(self, channel: RTCDataChannel) -> None:
        kept = self._keep(channel)
        try:
            self.on_channel(kept)
        except Exception:
            _log.failure("a listener of SCTP failed")

    def _changed(self, state: str) -> None:
        if state != self._state:
            self._state = state
            try:
                self.on_state(state)
            except Exception:
                _log.failure("a listener of SCTP failed")


def _check_parameters(packet: bytes) -> None:
    """Walk the parameters of a packet's chunks before aiortc does.

    :raises _Violation: one is shorter than its header.
    """
    at = COMMON_HEADER
    while at + 4 <= len(packet):
        kind, length = _chunk_header.unpack_from(packet, at)
        if length < 4:
            return  # aiortc drops the packet
        if kind in PARAMETERS_AT:
            inner, end = at + PARAMETERS_AT[kind], min(at + length, len(packet))
            while inner + 4 <= end:
                (size,) = _length.unpack_from(packet, inner + 2)
                if size < 4:
                    raise _Violation("a parameter without its header")
                inner += size + -size % 4
        at += length + -length % 4


def _readable_open(message: bytes) -> bytes:
    """A DATA_CHANNEL_OPEN (RFC 8832, 5.1) whose names are UTF-8 of the lengths that it says; others as they are.

    aiortc's clients count characters, and would otherwise lose the end of each name that is not ASCII.
    """
    if message[:1] != DCEP_OPEN or len(message) < 12:
        return message
    first, second = _open_lengths.unpack_from(message, 8)
    rest = message[12:]
    text = rest.decode("utf-8", "replace")
    if first + second == len(text) < len(rest):
        label, protocol = text[:first], text[first:]
    else:
        label = rest[:first].decode("utf-8", "replace")
        protocol = rest[first : first + second].decode("utf-8", "replace")
    # A name of invalid bytes can grow; the field has 16 bits.
    names = label.encode()[:0xFFFF], protocol.encode()[:0xFFFF]
    return message[:8] + _open_lengths.pack(*map(len, names)) + b"".join(names)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
