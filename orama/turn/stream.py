"""TURN over TCP and TLS (RFC 8656, 3.1): one framer for both, and the bounds that a stream needs.

A client that says nothing, half a message, or too much before it has an allocation is dropped by
time and by size. One that does not read loses relayed packets, as it would on UDP; answers to its
requests still get through, since on a stream nobody repeats them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from orama.net.fabric import Address, Buffer, Burst, Fabric
from orama.net.run import Run
from orama.net.stream import Flow
from orama.turn.server import Server
from orama.wire.channeldata import FIRST_CHANNEL, HEADER, START_LENGTH, FrameError, frame_length
from orama.wire.stun import Method

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
_CHANNEL_BYTE = FIRST_CHANNEL >> 8
_CONNECTION_BIND = Method.CONNECTION_BIND.to_bytes(2, "big")
_word = struct.Struct("!I").unpack_from


class Pipe(Protocol):
    """The connection under a client: what ``net.stream.Stream`` is."""

    flow: Flow

    def send(self, parts: Sequence[Buffer]) -> None: ...
    def write(self, data: Buffer) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class StreamClient:
    """One connection: a ``Link`` to its client, and the ``Flow`` of what comes from it.

    :param transport: "tcp" or "tls".
    """

    def __init__(self, clients: StreamClients, address: Address, transport: str) -> None:
        self.address = address
        self.transport = transport
        self.stranger_since = clients.clock.seconds()
        self._clients = clients
        self._server = clients.server
        self._pipe: Pipe | None = None
        self._raw: Flow | None = None
        self._buffer = bytearray()
        self._needed = 0
        self._incomplete_since = 0.0
        self._messages = 0
        #: The other worker that has what this client is about.
        self._elsewhere: int | None = None
        self._full = False
        self._closing = False
        self._waiting_answers = 0

    def begin(self, pipe: Pipe) -> None:
        """Be told which connection this is."""
        self._pipe = pipe

    # ---- from the client --------------------------------------------------------------------

    def identified(self, source: Address | None) -> None:
        """The proxy in between says whose the connection is."""
        if source is not None:
            self.address = source
        self._clients.identified(self)

    def pipe(self, flow: Flow) -> Pipe:
        """Be raw from now on, and *flow*'s: what comes in is no message any more (RFC 6062, 4.3)."""
        assert self._pipe is not None
        self._raw = flow
        self._clients.known(self)
        return self._pipe

    def received(self, data: Buffer) -> None:
        if self._raw is not None:
            self._raw.received(data)
            return
        if self._closing:
            return
        now = self._clients.clock.seconds()
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
        view = memoryview(data)
        while True:
            known = self._server.has_allocation(self, self.address)
            bursts, used, good = self._split(view, known)
            if not self._buffer or bursts:
                self._incomplete_since = now
            self._buffer = bytearray()
            for packets in bursts:
                self._server.received(self, packets, self.address, verified=True)
            if self._closing:
                return
            view = view[used:]
            if self._elsewhere is not None:
                self._clients.pass_on(self, view, self._elsewhere)
                return
            if self._raw is not None:
                if view:
                    self._raw.received(view)
                return
            if bursts and not known:
                self._messages += sum(map(len, bursts))
                good = good and self._messages <= STRANGER_MESSAGES
                if self._server.has_allocation(self, self.address):
                    self._messages = 0
                    self._clients.known(self)
            if not good:
                self.close()
                return
            if self._needed:
                self._buffer = bytearray(view)
                return

    def _split(self, data: memoryview, known: bool) -> tuple[list[Burst], int, bool]:
        """The whole messages in *data*, how much they take, and whether what follows can still be one.

        ChannelData of one channel and length in a row is one run. What follows a ConnectionBind is not looked at, since
        it may be no message (RFC 6062, 4.3): then, and only then, nothing is needed to go on.
        """
        bursts: list[Burst] = []
        singles: list[Buffer] = []
        at, end = 0, len(data)
        try:
            while length := frame_length(data, at):
                if length > STRANGER_LENGTH and not known:
                    return bursts, at, False
                start, at = at, at + length
                if at > end:
                    self._needed = length
                    return bursts, start, True
                if not known and (worker := self._server.elsewhere(data[start:at])) is not None:
                    self._elsewhere = worker
                    return bursts, start, True
                if data[start] < _CHANNEL_BYTE:
                    if not singles:
                        bursts.append(singles)
                    singles.append(data[start:at])
                    if data[start : start + 2] == _CONNECTION_BIND:
                        self._needed = 0
                        return bursts, at, True
                    continue
                head = _word(data, start)
                while at + length <= end and _word(data, at) == head:
                    at += length
                if at == start + length:
                    if not singles:
                        bursts.append(singles)
                    singles.append(data[start:at])
                else:
                    bursts.append(Run(data, range(start, at, length), length, length))
                    singles = []
        except FrameError:
            return bursts, at, False
        self._needed = HEADER.size if end - at < HEADER.size else START_LENGTH
        return bursts, at, True

    def ended(self) -> None:
        """They send no more: over TCP an allocation ends with its connection (RFC 8656, 7)."""
        if self._raw is not None:
            self._raw.ended()
        else:
            self.close()

    def lost(self) -> None:
        self._closing = True
        self._clients.left(self)
        if self._raw is not None:
            self._raw.lost()
        else:
            self._server.disconnected(self, self.address)

    def full(self) -> None:
        """64 KiB wait to be written."""
        if self._raw is not None:
            self._raw.full()
        self._full = True

    def drained(self) -> None:
        if self._raw is not None:
            self._raw.drained()
        self._full = False
        self._waiting_answers = 0

    # ---- to the client ----------------------------------------------------------------------

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        """Write *packets*; relayed ones are lost while the client does not read."""
        if self._closing or self._pipe is None:
            return
        if self._full:
            if headers is not None or not packets[0][0] & _RESPONSE:
                self._server.drops["slow_client"] += len(packets)
                return
            self._waiting_answers += 1
            if self._waiting_answers > MAX_WAITING_ANSWERS:
                self.close()
                return
        if headers is None:
            self._pipe.send(packets)
        else:  # RFC 8656, 12.5
            pairs = zip(headers, packets, strict=True)
            self._pipe.send([b"".join((header, packet, _PADDING[len(packet) % 4])) for header, packet in pairs])

    # ---- bounds -----------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Close the connection when its time is over."""
        if self._raw is not None:
            return
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
            self._clients.known(self)
            if self._pipe is not None:
                self._pipe.abort()


class StreamClients:
    """The connections of one process, TCP and TLS alike."""

    def __init__(self, clock: IReactorTime, server: Server, fabric: Fabric) -> None:
        self.clock = clock
        self.server = server
        self.fabric = fabric
        self._clients: dict[StreamClient, None] = {}
        self._strangers: dict[StreamClient, None] = {}
        self._stopped: Deferred[None] | None = None
        #: Has another worker serve a client from here on, with what has come already.
        self.pass_on: Callable[[StreamClient, Buffer, int], None] = _nobody_else

    def __len__(self) -> int:
        return len(self._clients)

    def arrive(self, address: Address, transport: str, *, proxied: bool = False) -> StreamClient:
        """A connection from *address*: it is a stranger's until it gets an allocation.

        :param proxied: the address is a proxy's, which has yet to say whose it is.
        """
        client = StreamClient(self, address, transport)
        self._clients[client] = None
        self._strangers[client] = None
        if not proxied:
            self.identified(client)
        elif len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).close()
        return client

    def identified(self, client: StreamClient) -> None:
        """The client's address is its own: nobody has more connections than are one's due."""
        same = [each for each in self._strangers if each.address[0] == client.address[0]]
        if len(same) > MAX_STRANGERS_OF_ADDRESS:
            same[0].close()
        elif len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).close()

    def known(self, client: StreamClient) -> None:
        """The client has an allocation, or is on its way out: it is no stranger any more."""
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


def _nobody_else(client: StreamClient, data: Buffer, worker: int) -> None:
    """There is no other worker."""
    client.close()
