"""Data channels of one client (RFC 8831), and the SCTP association under them, for the rest of the SFU.

Plain calls and callables from within the reactor; nothing here waits, and nothing is sent at once: what one turn of
the loop brings leaves together, and with many clients each in its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcsctptransport import (
    WEBRTC_BINARY,
    WEBRTC_BINARY_EMPTY,
    WEBRTC_STRING,
    WEBRTC_STRING_EMPTY,
)
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orama.sfu._aiortc import DtlsTransport
from orama.sfu._sctp import LOCAL_PORT, Sctp, SctpCounters
from orama.sfu._sctp_inbound import MAX_STREAMS
from orama.sfu._turns import turns_of

Message: TypeAlias = str | bytes

#: Seconds with data on the way and nothing acknowledged, after which the association is dead.
ACKNOWLEDGE_TIMEOUT: Final = 30.0
#: Seconds that a message of an unreliable channel may wait to leave. Where its sender has set a lifetime, that counts.
PATIENCE: Final = 0.1
#: Where our streams begin, as long as there are free ones from here on: Firefox, which takes fewest, takes 256.
FIRST_STREAM: Final = 65

_log = Logger()


def _ignore(*_: object) -> None:
    """Nobody listens."""


class Channel:
    """One data channel (RFC 8831): an end of it, of the client's making or of ours.

    ``on_message`` gets text as str and binary as bytes, ``on_close`` is called once.
    """

    def __init__(self, sctp: Sctp, channel: RTCDataChannel, longest: int) -> None:
        self.on_message: Callable[[Message], None] = _ignore
        self.on_close: Callable[[], None] = _ignore
        self._sctp = sctp
        self._channel = channel
        self._longest = longest
        #: What was sent before the client acknowledged the channel.
        self._unopened: deque[tuple[bytes, bool]] = deque()
        self._unopened_size = 0
        self._ending = False
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
        """Bytes that wait here; what has left once is not among them."""
        return self._sctp.buffered(self.id) + self._unopened_size

    @property
    def unopened(self) -> int:
        """Messages that wait for the client to acknowledge the channel."""
        return len(self._unopened)

    @property
    def waited(self) -> float:
        """Seconds that the oldest message has waited for its turn."""
        return self._sctp.waited(self.id)

    def send(self, data: Message) -> None:
        """Send one message, as :meth:`put` does."""
        self.put(data.encode() if isinstance(data, str) else data, isinstance(data, str))

    def put(self, data: bytes, text: bool) -> None:
        """Send one message, of UTF-8 where it is *text*. There is no limit on what may wait: look at ``buffered``.

        :raises ValueError: longer than the client takes.
        :raises ConnectionError: the channel is closed.
        """
        state = self._channel.readyState
        if self._longest and len(data) > self._longest:
            raise ValueError(f"{len(data)} bytes for a client that takes {self._longest}")
        if state == "open" or (state == "connecting" and self._channel.ordered):
            self._queue(data, text)
        elif state == "connecting":
            # RFC 8832, 6: an unordered message could overtake the opening of its channel.
            self._unopened.append((data, text))
            self._unopened_size += len(data)
            self._sctp.keep_early(1, len(data))
        else:
            raise ConnectionError("the channel is closed")

    def _queue(self, data: bytes, text: bool) -> None:
        if data:
            protocol = WEBRTC_STRING if text else WEBRTC_BINARY
        else:
            protocol, data = WEBRTC_STRING_EMPTY if text else WEBRTC_BINARY_EMPTY, b"\0"
        channel = self._channel
        lifetime = channel.maxPacketLifeTime
        self._sctp.queue(
            self.id,
            protocol,
            data,
            ordered=channel.ordered,
            max_retransmits=channel.maxRetransmits,
            lifetime=None if lifetime is None else lifetime / 1000,
            patience=None if channel.maxRetransmits is None else PATIENCE,
        )

    def close(self) -> None:
        """Close, once all that waits is sent. ``on_close`` follows; nothing happens the second time."""
        if self._unopened and self._channel.readyState == "connecting":
            self._ending = True
        else:
            self._channel.close()

    def abort(self) -> None:
        """Close, and lose what waits."""
        self._forget()
        self._sctp.discard(self.id)
        self._channel.close()

    def received(self, data: Message) -> None:
        """The client has sent *data*."""
        try:
            self.on_message(data)
        except Exception:
            _log.failure("a listener of a data channel failed")

    def _open(self) -> None:
        waiting = list(self._unopened)
        self._forget()
        for data, text in waiting:
            self._queue(data, text)
        if self._ending:
            self._channel.close()

    def _closed(self) -> None:
        self._forget()
        told, self.on_close, self.on_message = self.on_close, _ignore, _ignore
        try:
            told()
        except Exception:
            _log.failure("a listener of a data channel failed")

    def _forget(self) -> None:
        self._sctp.keep_early(-len(self._unopened), -self._unopened_size)
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
        self._longest = remote_max_message_size
        self._turns = turns_of(self._loop)
        carrier = dtls.carry(self)
        self._sctp = Sctp(carrier, self.counters, self._changed, self._delivered, self._wake, acknowledge_timeout)
        self._sctp.on("datachannel", self._opened)

    @property
    def state(self) -> str:
        """``new``, ``connecting``, ``connected`` or ``closed``."""
        return self._state

    @property
    def buffered(self) -> int:
        """Bytes that wait on all channels together."""
        return self._sctp.waiting

    @property
    def queued(self) -> int:
        """Messages that wait on all channels together, and openings."""
        return self._sctp.messages

    def hold(self, size: int) -> None:
        """*size* bytes of messages that were delivered are not done with: the client may send so much less. A negative
        number gives them back."""
        self._sctp.hold(size)

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
        # RFC 8832, 6: the DTLS server takes odd identifiers. werift takes them too, from the lowest, as it goes by the
        # ICE role, and so do others that think that they are the server.
        last = min(MAX_STREAMS, self._sctp._outbound_streams_count)
        numbers = (*range(FIRST_STREAM, last, 2), *range(1, min(FIRST_STREAM, last), 2))
        number = next((n for n in numbers if n not in self._sctp._data_channels), None)
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
        kept = Channel(self._sctp, channel, self._longest)
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
        if state == "closed":
            self._turns.leave(self._sctp.flush)
        if state != self._state:
            self._state = state
            try:
                self.on_state(state)
            except Exception:
                _log.failure("a listener of SCTP failed")

    def _wake(self) -> None:
        self._turns.enter(self._sctp.flush)

    def _delivered(self, channel: RTCDataChannel, data: Message) -> None:
        kept = self._channels.get(cast(int, channel.id))
        if kept is not None:
            kept.received(data)
