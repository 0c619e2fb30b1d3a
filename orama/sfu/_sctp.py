"""SCTP by aiortc with the path of the data replaced: what knows the private seams of ``rtcsctptransport``.

aiortc sets the association up, opens and closes channels (RFC 8832), resets streams (RFC 6525) and ends; DATA, SACK
and FORWARD TSN go through :mod:`orama.sfu._sctp_inbound` and :mod:`orama.sfu._sctp_outbound` instead, many packets at
a time. The version is pinned; a test stands for each seam.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from aiortc.rtcdatachannel import RTCDataChannel
from aiortc.rtcsctptransport import (
    CHUNK_TYPES,
    DATA_CHANNEL_OPEN,
    WEBRTC_BINARY,
    WEBRTC_BINARY_EMPTY,
    WEBRTC_DCEP,
    WEBRTC_STRING,
    WEBRTC_STRING_EMPTY,
    InitChunk,
    RTCSctpTransport,
)
from attrs import define
from OpenSSL import SSL
from twisted.logger import Logger

from orama.sfu._aiortc import Dtls, at_once
from orama.sfu._sctp_inbound import MAX_STREAMS, Inbound, Incoming
from orama.sfu._sctp_outbound import Outbound
from orama.wire import sctp
from orama.wire.sctp import SctpError

#: The longest message that we take (``a=max-message-size``, RFC 8841, 6).
MAX_MESSAGE_SIZE = 262144
#: Our ``a=sctp-port``.
LOCAL_PORT = 5000
#: A burst is acknowledged after each so many packets (RFC 9260, 6.2 wants every second: of a burst that is read at
#: once that is 10 µs a packet for nothing) and at its end, for the sender's window to grow.
ACKNOWLEDGED = 4
#: Packets that one association sends before others have their turn: some 0.5 ms.
PIECE = 32
#: Where the parameters begin in the bodies of chunks that have them (RFC 9260, 3.3; RFC 6525, 3.1), by chunk type.
PARAMETERS_AT = {1: 16, 2: 16, 4: 0, 5: 0, 6: 0, 9: 0, 130: 0}
#: The window is told once more when it has been nearly shut and opens (RFC 9260, 6.2).
NEARLY_SHUT = 1 << 17

DCEP_OPEN = bytes([DATA_CHANNEL_OPEN])
_length = struct.Struct("!H")
_open_lengths = struct.Struct("!HH")
_log = Logger()


@define(eq=False)
class SctpCounters:
    """What clients sent on their associations that could not be taken, and what was not sent to them."""

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
    #: Messages of unreliable channels that were too old before they could leave.
    stale: int = 0
    #: Messages of unreliable channels that were given up on their way.
    abandoned: int = 0


class _Resets:
    """Stands where aiortc keeps a stream's sequence numbers, of which it drops those of a stream that is reset."""

    def __init__(self, reset: Callable[[int], None]) -> None:
        self._reset = reset

    def pop(self, stream: int, default: object = None) -> None:
        self._reset(stream)


class Sctp(RTCSctpTransport):  # type: ignore[misc]
    """One association.

    :param changed: called with aiortc's name of each new state.
    :param deliver: called with each message that is not of the channel protocol.
    :param wake: called when there may be something to send.
    """

    def __init__(
        self,
        dtls: Dtls,
        counters: SctpCounters,
        changed: Callable[[str], None],
        deliver: Callable[[RTCDataChannel, str | bytes], None],
        wake: Callable[[], None],
        acknowledge_timeout: float,
    ) -> None:
        self.inbound: Inbound | None = None
        self.outbound: Outbound | None = None
        self.held = 0
        super().__init__(dtls, LOCAL_PORT)
        self._clock = asyncio.get_event_loop()
        self.outbound = Outbound(self._first_tsn)
        self.counters = counters
        self._dtls = dtls
        self._changed = changed
        self._deliver = deliver
        self._wake = wake
        self._acknowledge_timeout = acknowledge_timeout
        self._inbound_streams_max = MAX_STREAMS
        self._outbound_streams_count = MAX_STREAMS
        self._inbound_streams = cast(Any, _Resets(self._reset_inbound))
        self._outbound_stream_seq = cast(Any, _Resets(self._reset_outbound))
        self._early_messages = self._early_bytes = 0
        self._sacks: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopping = False

    # ---- what aiortc keeps and we have instead

    @property
    def _local_tsn(self) -> int:
        return self._first_tsn if self.outbound is None else self.outbound.next

    @_local_tsn.setter
    def _local_tsn(self, tsn: int) -> None:
        self._first_tsn = tsn

    @property
    def _last_received_tsn(self) -> int | None:
        return None if self.inbound is None else self.inbound.last % 0x100000000

    @_last_received_tsn.setter
    def _last_received_tsn(self, tsn: int | None) -> None:
        if tsn is not None:
            self.inbound = Inbound(tsn)
            self.inbound.hold(self.held)

    @property
    def _ssthresh(self) -> int:
        return 0

    @_ssthresh.setter
    def _ssthresh(self, window: int) -> None:
        """aiortc takes the client's window for this."""
        self._out.allow(window)

    @property
    def _out(self) -> Outbound:
        assert self.outbound is not None
        return self.outbound

    def _reset_outbound(self, stream: int) -> None:
        self._out.reset(stream)

    def _reset_inbound(self, stream: int) -> None:
        if self.inbound is not None:
            self.inbound.reset(stream)

    async def _init(self) -> None:
        """Let the client begin, as RFC 8841, 9.3 has it do anyway; ours goes out when T1 expires first.

        One handshake does instead of two, and werift is lost when an INIT comes before it has sent its own.
        """
        init = InitChunk()
        init.initiate_tag = self._local_verification_tag
        init.advertised_rwnd = self._advertised_rwnd
        init.outbound_streams = self._outbound_streams_count
        init.inbound_streams = self._inbound_streams_max
        init.initial_tsn = self._local_tsn
        self._set_extensions(init.params)
        self._t1_start(init)
        self._set_state(self.State.COOKIE_WAIT)

    # ---- in

    def handle_burst(self, packets: Sequence[bytes]) -> None:
        """Take what was read at once, and acknowledge it."""
        count = 0
        try:
            for packet in packets:
                if self._stopping:
                    return
                self._take(packet)
                inbound = self.inbound
                if inbound is not None and inbound.unacknowledged:
                    count += 1
                    # A hole is told with every packet (RFC 9260, 6.7): the sender counts.
                    if count == ACKNOWLEDGED or inbound.broken:
                        count = 0
                        self._sacks.append(inbound.sack())
        except Exception as error:  # aiortc asserts and unpacks; the DTLS reader must survive that
            _log.info("SCTP association aborted: {error}", error=type(error).__name__)
            self.counters.aborted += 1
            at_once(self.stop())
        else:
            if self.inbound is not None and self.inbound.dropped:
                self.counters.chunks_dropped += self.inbound.dropped
                self.inbound.dropped = 0
            self._wake()

    async def _handle_data(self, data: bytes) -> None:
        self.handle_burst((data,))

    def _take(self, packet: bytes) -> None:
        try:
            tag, chunks = sctp.split(packet)
        except SctpError:
            return
        initial = any(kind == sctp.INIT for kind, *_ in chunks)
        if initial and len(chunks) > 1:
            raise SctpError("INIT in company")
        if tag != (0 if initial else self._local_verification_tag):
            return
        for kind, flags, start, end in chunks:
            if kind == sctp.DATA:
                if self.inbound is not None:
                    for message in self.inbound.data(sctp.fragment(packet, flags, start, end)):
                        self._message(message)
            elif kind == sctp.SACK:
                self._out.acknowledge(sctp.acknowledgement(packet, start, end), self._clock.time())
            elif kind == sctp.FORWARD_TSN:
                if self.inbound is not None:
                    for message in self.inbound.forward(sctp.forward(packet, start, end)):
                        self._message(message)
            elif kind in CHUNK_TYPES:
                self._control(kind, flags, packet[start:end])
            if self._association_state == self.State.CLOSED:
                return
        if self._reconfig_deferred is not None:
            at_once(self._reset_deferred_streams())

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        _check_parameters(kind, body)
        if kind == sctp.INIT and self._association_state == self.State.ESTABLISHED:
            return  # a late copy: aiortc would count from its TSN again
        at_once(self._receive_chunk(CHUNK_TYPES[kind](flags=flags, body=body)))

    def _message(self, message: Incoming) -> None:
        channel = self._data_channels.get(message.stream)
        data, protocol = message.data, message.protocol
        if protocol == WEBRTC_DCEP:
            if channel is not None or data[:1] == DCEP_OPEN:
                at_once(self._data_channel_receive(message.stream, protocol, _readable_open(data)))
        elif channel is None:
            return
        elif len(data) > MAX_MESSAGE_SIZE:
            self.counters.oversized += 1
            channel.close()
        elif protocol == WEBRTC_STRING:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                self.counters.bad_text += 1
                channel.close()
            else:
                self._deliver(channel, text)
        elif protocol == WEBRTC_STRING_EMPTY:
            self._deliver(channel, "")
        elif protocol == WEBRTC_BINARY_EMPTY:
            self._deliver(channel, b"")
        elif protocol == WEBRTC_BINARY:
            self._deliver(channel, data)

    def hold(self, size: int) -> None:
        """*size* bytes that were delivered are not done with, and leave the client's window; negative, they are."""
        self.held += size
        inbound = self.inbound
        if inbound is not None:
            inbound.hold(size)
            if size < 0 and inbound.told < NEARLY_SHUT <= inbound.window and not self._stopping:
                self._sacks.append(inbound.sack())
                self._wake()

    # ---- out

    @property
    def waiting(self) -> int:
        """Bytes that wait on all channels."""
        return self._out.waiting + self._early_bytes

    @property
    def messages(self) -> int:
        """Messages that wait on all channels."""
        return self._out.messages + self._early_messages

    def keep_early(self, messages: int, size: int) -> None:
        """So many messages, of so many bytes, wait in channels that the client has not acknowledged."""
        self._early_messages += messages
        self._early_bytes += size

    def buffered(self, stream: int) -> int:
        return self._out.buffered(stream)

    def waited(self, stream: int) -> float:
        return self._out.waited(stream, self._clock.time())

    def queue(
        self,
        stream: int,
        protocol: int,
        data: bytes,
        *,
        ordered: bool,
        max_retransmits: int | None,
        lifetime: float | None,
        patience: float | None,
    ) -> None:
        """Send a message of one byte at least; see :meth:`Outbound.queue`."""
        self._out.queue(
            stream,
            protocol,
            data,
            self._clock.time(),
            ordered=ordered,
            max_retransmits=max_retransmits,
            lifetime=lifetime,
            patience=patience,
        )
        self._wake()

    def discard(self, stream: int) -> None:
        """Forget what waits to be sent, but for the opening of the channel."""
        self._out.discard(stream, WEBRTC_DCEP)
        self._wake()

    def flush(self) -> bool:
        """Send what may leave now; whether there may be more at once."""
        if self._stopping:
            return False
        out, now, packets = self._out, self._clock.time(), []
        first = b""
        for sack in self._sacks:
            packets.append(self._packet(sack))
        self._sacks.clear()
        inbound = self.inbound
        if inbound is not None and inbound.unacknowledged:
            first = inbound.sack()
        established = self._association_state == self.State.ESTABLISHED
        while len(packets) < PIECE:
            chunks = out.take(sctp.MAX_CHUNKS - len(first), now) if established else b""
            if not chunks and not first:
                break
            packets.append(self._packet(first + chunks))
            first = b""
        else:
            if first:
                packets.append(self._packet(first))
        self._send_packets(packets)
        self._arm()
        if out.stale or out.abandoned:
            self.counters.stale += out.stale
            self.counters.abandoned += out.abandoned
            out.stale = out.abandoned = 0
        resets = self._reconfig_queue
        if resets and established and self._reconfig_request is None and not all(map(out.busy, resets)):
            at_once(self._transmit_reconfig())
        return len(packets) >= PIECE

    def _packet(self, chunks: bytes) -> bytes:
        return sctp.packet(self._local_port, self._remote_port or 0, self._remote_verification_tag, chunks)

    def _send_packets(self, packets: Sequence[bytes]) -> None:
        if packets:
            try:
                self._dtls.send_burst(packets)
            except (ConnectionError, SSL.Error):
                return  # DTLS is closed or closing; it stops this in a moment

    async def _send_chunk(self, chunk: Any) -> None:
        self._send_packets((self._packet(bytes(chunk)),))

    def _arm(self) -> None:
        """Be woken at the deadline, which mostly moves on: the timer that is there looks again."""
        deadline = self._out.deadline
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._clock.call_at(deadline, self._expired), deadline

    def _expired(self) -> None:
        self._timer = None
        out, now = self._out, self._clock.time()
        if out.deadline is not None and out.deadline <= now:
            if out.silent_since is not None and now - out.silent_since > self._acknowledge_timeout:
                self.counters.timed_out += 1
                self._set_state(self.State.CLOSED)
                return
            out.expire(now)
            self._wake()
        self._arm()

    # ---- channels and states

    async def _data_channel_flush(self) -> None:
        while self._data_channel_queue:
            channel, protocol, data = self._data_channel_queue.popleft()
            self._out.queue(cast(int, channel.id), protocol, data, self._clock.time())
        self._wake()

    def _data_channel_open(self, channel: RTCDataChannel) -> None:
        """aiortc gives the lengths of label and protocol in characters; RFC 8832, 5.1 means bytes."""
        super()._data_channel_open(channel)
        _, pp_id, message = self._data_channel_queue.pop()
        label, protocol = channel.label.encode(), channel.protocol.encode()
        message = message[:8] + _open_lengths.pack(len(label), len(protocol)) + label + protocol
        self._out.queue(cast(int, channel.id), pp_id, message, self._clock.time())

    def _data_channel_close(self, channel: RTCDataChannel) -> None:
        super()._data_channel_close(channel)
        if channel.id in self._data_channel_inbound_reset:
            self._out.discard(channel.id, WEBRTC_DCEP)  # the client has closed it, and hears nothing more
        self._wake()

    async def _transmit_reconfig(self) -> None:
        """Reset the streams of which everything has left; the others wait, and nobody waits for them."""
        busy = [stream for stream in self._reconfig_queue if self._out.busy(stream)]
        self._reconfig_queue = [stream for stream in self._reconfig_queue if stream not in busy]
        try:
            await super()._transmit_reconfig()
        finally:
            self._reconfig_queue += busy

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        if state == self.State.CLOSED:
            # For good: a later INIT would revive an association whose channels are gone.
            self._stopping = True
            self.transport._unregister_data_receiver(self)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.outbound = Outbound(0)
            self._sacks.clear()
        elif state == self.State.ESTABLISHED:
            self._out.partial = self._remote_partial_reliability
        super()._set_state(state)
        self._changed(self.state)
        if state == self.State.CLOSED:
            # Nobody is told anything any more, and nothing holds itself.
            self._changed = self._deliver = self._wake = _ignore
            self._inbound_streams, self._outbound_stream_seq = {}, {}


def _ignore(*_: object) -> None:
    """It is over."""


def _check_parameters(kind: int, body: bytes) -> None:
    """Walk the parameters of a chunk before aiortc does, which loops for ever over one of length zero.

    :raises SctpError: one is shorter than its header.
    """
    at = PARAMETERS_AT.get(kind)
    while at is not None and at + 4 <= len(body):
        (size,) = _length.unpack_from(body, at + 2)
        if size < 4:
            raise SctpError("a parameter without its header")
        at += size + -size % 4


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
