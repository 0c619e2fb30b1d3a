"""The data connections of TCP allocations (RFC 6062): a peer's connection, the client's, and the bytes between them.

A connection begins with the peer, waits half a minute for a ConnectionBind of the client, and is from
then on two streams joined end to end. No byte is kept here: a side is read only as fast as the other one
is written, so that what cannot go on waits in the sender's own kernel. Who may connect to whom is
``connecting``'s to decide; the sockets are ``tcp``'s.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol, runtime_checkable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from orama.net.fabric import Address, Buffer, Burst
from orama.net.stream import Flow
from orama.turn.allocation import Allocation
from orama.turn.relay import Relay, RelayUnavailable
from orama.turn.shared import Crew

#: RFC 6062, 5.2: a connection attempt gets at least 30 s.
CONNECT_TIME = 30.0
#: RFC 6062, 5.2 and 5.3: for the ConnectionBind of a connection.
BIND_TIME = 30.0
#: Seconds that one side gets to take what the other one said last.
CLOSE_TIME = 30.0
#: Of one allocation, in any state; more is a scanner.
MAX_CONNECTIONS = 32
#: Seconds between two looks whether there is bandwidth again.
BANDWIDTH_LOOK = 0.05
_ID_BITS = 32


class Pipe(Protocol):
    """One end of a connection: raw bytes. Nothing happens to an end that is gone."""

    def write(self, data: Buffer) -> None:
        """Send *data*, which may be reused when this returns."""

    def pause(self) -> None:
        """Read no more."""

    def resume(self) -> None:
        """Read again. What has come meanwhile is told in a later turn of the reactor, never in this call."""

    def finish(self) -> None:
        """Send no more behind what was written, and still read. It is gone when they have ended too."""

    def abort(self) -> None:
        """End it now."""


@runtime_checkable
class Stream(Protocol):
    """A connection that may become a pipe."""

    def pipe(self, flow: Flow) -> Pipe:
        """Give *flow* all that comes from now on, as it comes."""


class PeerStream(Stream, Protocol):
    """A connection with a peer, which is not read before it is a pipe that is resumed."""

    def abort(self) -> None:
        """End it now."""


class Listener(Protocol):
    """A TCP port that takes connections."""

    def resume(self) -> None:
        """Take connections again where there was no room for them."""

    def close(self) -> None: ...


class Tcp(Protocol):
    """The kernel's TCP."""

    def listen(self, address: Address, arrived: Callable[[PeerStream, Address], None]) -> Listener:
        """Give *arrived* each connection that comes to *address*, and who made it.

        :raises CannotListenError: the address is taken or not ours.
        """

    def connect(self, source: Address, peer: Address) -> Deferred[PeerStream]:
        """A connection from *source*, on which we may be listening, to *peer*. It may be cancelled at any time."""


class State(Enum):
    """How far a connection is."""

    CONNECTING = "connecting"
    #: With the peer, and without the client.
    PENDING = "pending"
    BOUND = "bound"
    #: One end is gone, and the other one takes what there was.
    CLOSING = "closing"
    GONE = "gone"


class _End:
    """One end of a connection, and the way from it to the other one.

    :param up: whether that way leads to the peer.
    """

    def __init__(self, connection: Connection, up: bool) -> None:
        self.pipe: Pipe | None = None
        self.other: _End
        self._connection = connection
        self._up = up
        #: What there was no bandwidth for.
        self._held = b""
        self._over = False
        self._finished = False
        #: Why this end is not read.
        self._blocked = False
        self._waiting: IDelayedCall | None = None

    def received(self, data: Buffer) -> None:
        if self._finished or self.other.pipe is None:
            return
        if self._held or not self._pass(data):
            self._held += bytes(data)
            self._wait()

    def ended(self) -> None:
        self._over = True
        self._finish()

    def lost(self) -> None:
        self.pipe = None
        self._over = self._finished = True
        self._stop_waiting()
        if self._held:  # who has gone already cannot be made to wait
            self._write(self._held)
            self._held = b""
        self._connection.lost_end(self)

    def full(self) -> None:
        self.other._blocked = True
        if self.other.pipe is not None:
            self.other.pipe.pause()

    def drained(self) -> None:
        self.other._blocked = False
        self.other.go_on()

    def go_on(self) -> None:
        """Read this end unless something is in the way."""
        if self.pipe is not None and not self._blocked and self._waiting is None:
            self.pipe.resume()

    def abort(self) -> None:
        """End it now; :meth:`lost` comes once."""
        self._finished = True
        self._held = b""
        self._stop_waiting()
        if self.pipe is not None:
            self.pipe.abort()

    def _pass(self, data: Buffer) -> bool:
        """Write *data* to the other end; False when the quota has nothing left for it."""
        if not self._connection.take(len(data)):
            return False
        self._write(data)
        return True

    def _write(self, data: Buffer) -> None:
        self._connection.count(len(data), self._up)
        if self.other.pipe is not None:
            self.other.pipe.write(data)

    def _wait(self) -> None:
        """Read no more until there is bandwidth."""
        if self.pipe is not None:
            self.pipe.pause()
        if self._waiting is None:
            self._waiting = self._connection.clock.callLater(BANDWIDTH_LOOK, self._look)

    def _look(self) -> None:
        self._waiting = None
        if self._pass(self._held):
            self._held = b""
            self._finish()
            self.go_on()
        else:
            self._wait()

    def _finish(self) -> None:
        """Tell the other end that nothing comes any more, once everything has gone."""
        if self._over and not self._held and not self._finished:
            self._finished = True
            if self.other.pipe is not None:
                self.other.pipe.finish()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Connection:
    """One data connection of a TCP allocation."""

    def __init__(self, relay: TcpRelay, id_: int, peer: Address, expires: float, clock: IReactorTime) -> None:
        self.id = id_
        self.peer = peer
        self.state = State.CONNECTING
        #: When :attr:`state` has lasted too long.
        self.expires = expires
        self.clock = clock
        self.allocation = relay.allocation
        self._relay = relay
        self._peer_end = _End(self, up=False)
        self._client_end = _End(self, up=True)
        self._peer_end.other, self._client_end.other = self._client_end, self._peer_end
        self._attempt: Deferred[PeerStream] | None = None

    def attempt(self, connecting: Deferred[PeerStream]) -> None:
        """*connecting* will give the peer's stream."""
        self._attempt = connecting

    def connected(self, stream: Stream, now: float) -> None:
        """The peer is there. It is not read before there is a client: what it sends waits in its kernel and ours
        (RFC 6062, 5.2)."""
        self._attempt = None
        self.state = State.PENDING
        self.expires = now + BIND_TIME
        self._peer_end.pipe = stream.pipe(self._peer_end)

    def bind(self, stream: Stream) -> None:
        """The client's stream is there: join the two (RFC 6062, 5.4)."""
        self.state = State.BOUND
        self.expires = 0.0
        self._client_end.pipe = stream.pipe(self._client_end)
        self._client_end.go_on()
        self._peer_end.go_on()

    def lost_end(self, end: _End) -> None:
        """RFC 6062, 5.5: the other one is closed too, behind what it is still to get. It is read to its end, for who
        closes a connection with something unread takes back what is on its way."""
        other = end.other.pipe
        if other is None:
            self._gone()
        elif self.state is not State.GONE:
            self.state = State.CLOSING
            self.expires = self.clock.seconds() + CLOSE_TIME
            other.finish()
            end.drained()

    def abort(self) -> None:
        """End it now, both ways."""
        attempt, self._attempt = self._attempt, None
        self._gone()
        if attempt is not None:
            attempt.cancel()
        self._peer_end.abort()
        self._client_end.abort()

    def take(self, size: int) -> bool:
        """Take *size* bytes of the quota's bandwidth when there is some left."""
        now = self.clock.seconds()
        return all(bucket.take(size, now) for bucket in self.allocation.share.buckets)

    def count(self, size: int, up: bool) -> None:
        """Count *size* bytes that pass, towards the peer or from it."""
        traffic = self.allocation.traffic
        if up:
            traffic.bytes_up += size
        else:
            traffic.bytes_down += size

    def _gone(self) -> None:
        self.state = State.GONE
        self._relay.forget(self)


class TcpRelay(Relay):
    """The relayed address of a TCP allocation: takes connections there, makes them from there, and ends them.

    :param arrived: is told of each connection that a peer makes.
    :raises CannotListenError: the address is taken.
    """

    __slots__ = ("_connections", "_listener", "_live", "allocation")
    has_packets = False

    def __init__(
        self,
        address: Address,
        allocation: Allocation,
        connections: Connections,
        arrived: Callable[[TcpRelay, PeerStream, Address], None],
    ) -> None:
        super().__init__(address)
        self.allocation = allocation
        self._connections = connections
        self._live: dict[int, Connection] = {}
        self._listener = connections.tcp.listen(address, lambda stream, peer: arrived(self, stream, peer))
        connections.relays.add(self)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def open(self) -> None:
        """Nothing: the port is open from the start (RFC 6062, 5.1)."""

    def send(self, packets: Burst, peer: Address) -> None:
        raise RelayUnavailable("a TCP relay has no packets")

    def resume(self) -> None:
        """Take connections again where there was no room for them."""
        self._listener.resume()

    def accept(self, stream: Stream, peer: Address, now: float) -> Connection:
        """A connection of *peer*, which waits for its ConnectionBind."""
        connection = self._new(peer, now)
        connection.connected(stream, now)
        return connection

    def connect(self, peer: Address, now: float) -> Deferred[Connection]:
        """Connect to *peer*. The Deferred fails when that does not come about in time, or the allocation ends."""
        connection = self._new(peer, now)
        attempt = self._connections.tcp.connect(self.address, peer)
        connection.attempt(attempt)

        def connected(stream: Stream) -> Connection:
            connection.connected(stream, connection.clock.seconds())
            return connection

        def failed(failure: Failure) -> Failure:
            connection.abort()
            return failure

        return attempt.addCallbacks(connected, failed)

    def forget(self, connection: Connection) -> None:
        """*connection* is gone."""
        self._live.pop(connection.id, None)
        self._connections.forget(connection)

    def close(self) -> None:
        """Give the address back, and end the connections (RFC 6062, 5.5)."""
        self._connections.relays.discard(self)
        self._listener.close()
        for connection in self:
            connection.abort()

    def _new(self, peer: Address, now: float) -> Connection:
        connection = self._connections.new(self, peer, now + CONNECT_TIME)
        self._live[connection.id] = connection
        return connection


class Connections:
    """Every data connection of the process, by CONNECTION-ID.

    :param random: for the ids; not to be guessed in production.
    :param crew: where there are several workers, so that each can tell whose an id is.
    """

    def __init__(self, clock: IReactorTime, random: _random.Random, tcp: Tcp, crew: Crew | None = None) -> None:
        self._crew = crew
        self.tcp = tcp
        #: Those that are there.
        self.relays: set[TcpRelay] = set()
        self._clock = clock
        self._random = random
        self._live: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def new(self, relay: TcpRelay, peer: Address, expires: float) -> Connection:
        """A connection with an id of its own."""
        while (id_ := self._id()) in self._live:
            pass
        connection = self._live[id_] = Connection(relay, id_, peer, expires, self._clock)
        return connection

    def _id(self) -> int:
        id_ = self._random.getrandbits(_ID_BITS)
        return id_ if self._crew is None else self._crew.mark(id_)

    def pending(self, id_: int) -> Connection | None:
        """The connection of that id, when it waits for its ConnectionBind."""
        connection = self._live.get(id_)
        return connection if connection is not None and connection.state is State.PENDING else None

    def forget(self, connection: Connection) -> None:
        self._live.pop(connection.id, None)

    def expire(self, now: float) -> None:
        """End what has waited too long; to be called about once a second."""
        for relay in self.relays:
            relay.resume()
        for connection in self:
            if connection.state is not State.BOUND and connection.expires <= now:
                connection.abort()
