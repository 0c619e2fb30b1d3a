"""TURN over TCP and TLS (RFC 8656, 3.1): one framer for both, and the bounds that a stream needs.

A client that says nothing, half a message, or too much before it has an allocation is dropped by
time and by size. One that does not read loses relayed packets, as it would on UDP; answers to its
requests still get through, since on a stream nobody repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from orama.net.fabric import Address, Buffer, Burst, Fabric
from orama.turn.server import Server
from orama.wire.channeldata import HEADER, START_LENGTH, FrameError, frame_length

#: Seconds that a client may be here without an allocation; a TLS handshake is part of it.
STRANGER_TIME = 30.0
#: Seconds that one message may take to arrive.
MESSAGE_TIME = 10.0
#: What a client may send before it has an allocation: the length of one message, and how many.
STRANGER_LENGTH = 2048
STRANGER_MESSAGES = 64
#: Clients without an allocation at a time, in all and from one address; the oldest makes room.
MAX_STRANGERS = 512
MAX_STRANGERS_OF_ADDRESS = 128
#: Answers that may wait for a client which does not read.
MAX_WAITING_ANSWERS = 64
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
#: The bit of the message class that tells responses from requests and indications (RFC 8489, 5).
_RESPONSE = 0x01


@implementer(IPushProducer)
class StreamClient(Protocol):
    """One connection: a ``Link`` to its client."""

    #: ITCPTransport and IConsumer; over TLS likewise.
    transport: Any

    def __init__(self, clients: StreamClients) -> None:
        self.address: Address = ("", 0)
        self.stranger_since = 0.0
        self._clients = clients
        self._server = clients.server
        self._buffer = bytearray()
        self._needed = 0
        self._incomplete_since = 0.0
        self._messages = 0
        self._paused = False
        self._closing = False
        self._waiting_answers = 0

    # ---- from the client --------------------------------------------------------------------

    def connectionMade(self) -> None:
        peer = self.transport.getPeer()
        self.address = (peer.host.partition("%")[0], peer.port)
        self.stranger_since = self._clients.clock.seconds()
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._clients.arrived(self)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        now = self._clients.clock.seconds()
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
        known = self._server.has_allocation(self, self.address)
        messages, used, good = self._split(data, known)
        if not self._buffer or messages:
            self._incomplete_since = now
        self._buffer = bytearray(data[used:])
        if messages:
            fabric = self._clients.fabric
            fabric.begin()
            try:
                self._server.received(self, messages, self.address, verified=True)
            finally:
                fabric.end()
            if not known:
                self._messages += len(messages)
                good = good and self._messages <= STRANGER_MESSAGES
                if self._server.has_allocation(self, self.address):
                    self._messages = 0
                    self._clients.known(self)
        if not good:
            self.close()

    def _split(self, data: bytes, known: bool) -> tuple[list[Buffer], int, bool]:
        """The whole messages in *data*, how much they take, and whether what follows can still be one."""
        view = memoryview(data)
        messages: list[Buffer] = []
        at = 0
        try:
            while length := frame_length(data, at):
                if length > STRANGER_LENGTH and not known:
                    return messages, at, False
                if at + length > len(data):
                    self._needed = length
                    return messages, at, True
                messages.append(view[at : at + length])
                at += length
        except FrameError:
            return messages, at, False
        self._needed = HEADER.size if len(data) - at < HEADER.size else START_LENGTH
        return messages, at, True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        self._clients.left(self)
        self._server.disconnected(self, self.address)

    # ---- to the client ----------------------------------------------------------------------

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        """Write *packets*; relayed ones are lost while the client does not read."""
        if self._closing:
            return
        if self._paused:
            if headers is not None or not packets[0][0] & _RESPONSE:
                self._server.drops["slow_client"] += len(packets)
                return
            self._waiting_answers += 1
            if self._waiting_answers > MAX_WAITING_ANSWERS:
                self.close()
                return
        # A write for each message: over TLS it becomes a record for each, and there are clients (coturn's own)
        # that take a record for a message.
        write = self.transport.write
        if headers is None:
            for packet in packets:
                write(bytes(packet))
            return
        for header, packet in zip(headers, packets, strict=True):
            write(b"".join((header, packet, _PADDING[len(packet) % 4])))  # RFC 8656, 12.5

    def pauseProducing(self) -> None:
        """64 KiB wait to be written."""
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._waiting_answers = 0

    def stopProducing(self) -> None:
        self._closing = True

    # ---- bounds -----------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Close the connection when its time is over."""
        if self._server.has_allocation(self, self.address):
            self.stranger_since = now
        elif now - self.stranger_since >= STRANGER_TIME:
            self.close()
            return
        if self._buffer and now - self._incomplete_since >= MESSAGE_TIME:
            self.close()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.transport.abortConnection()


class StreamClients(Factory):
    """The connections of one process, TCP and TLS alike."""

    noisy = False

    def __init__(self, clock: IReactorTime, server: Server, fabric: Fabric) -> None:
        self.clock = clock
        self.server = server
        self.fabric = fabric
        self._clients: dict[StreamClient, None] = {}
        self._strangers: dict[StreamClient, None] = {}
        self._stopped: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._clients)

    def buildProtocol(self, addr: IAddress | None) -> StreamClient:
        return StreamClient(self)

    def arrived(self, client: StreamClient) -> None:
        """A connection was made: it is a stranger's until it gets an allocation."""
        self._clients[client] = None
        self._strangers[client] = None
        same = [each for each in self._strangers if each.address[0] == client.address[0]]
        if len(same) > MAX_STRANGERS_OF_ADDRESS:
            same[0].close()
        elif len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).close()

    def known(self, client: StreamClient) -> None:
        """The client has an allocation."""
        self._strangers.pop(client, None)

    def left(self, client: StreamClient) -> None:
        """The connection is gone."""
        self._clients.pop(client, None)
        self._strangers.pop(client, None)
        if self._stopped is not None and not self._clients:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def tick(self) -> None:
        """Drop whose time is over; to be called about once a second."""
        now = self.clock.seconds()
        for client in list(self._clients):
            client.check(now)

    def stop(self) -> Deferred[None]:
        """Drop every connection; fires when the last one is gone."""
        if not self._clients:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        for client in list(self._clients):
            client.close()
        return stopped
