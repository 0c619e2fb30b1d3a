"""TCP in memory: connections whose other side the test plays, and a kernel that listens and connects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime

from orama.net.fabric import Address, Buffer, Burst
from orama.net.stream import Flow
from orama.turn.connections import PeerStream, Pipe

#: Bytes that may wait to be written before the flow is told.
ROOM = 65536


@define(eq=False)
class MemoryStream:
    """Our end of a connection: a ``Link``, a ``Stream`` and, from then on, a ``Pipe``.

    The other side is the test: :meth:`gives`, :meth:`ends`, :meth:`breaks` and :meth:`takes`.
    """

    clock: IReactorTime
    transport: str = "tcp"
    flow: Flow | None = None
    reading: bool = False
    #: The other side does not read: what is written waits.
    stuck: bool = False
    #: What we have done to it.
    finished: bool = False
    aborted: bool = False
    gone: bool = False
    _written: bytearray = field(factory=bytearray)
    _full: bool = False
    #: What came while nobody read.
    _kernel: bytearray = field(factory=bytearray)
    _ending: bool = False

    # ---- as a link --------------------------------------------------------------------------

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        assert headers is None, "these tests relay no packets"
        for packet in packets:
            self._written += packet

    def packets(self) -> list[bytes]:
        """What was sent since the last call, which was one message at a time."""
        taken = self.takes()
        return [taken] if taken else []

    # ---- as a stream and a pipe -------------------------------------------------------------

    def pipe(self, flow: Flow) -> Pipe:
        assert self.flow is None
        self.flow = flow
        return self

    def write(self, data: Buffer) -> None:
        assert not self.finished
        if self.gone or self.aborted:
            return
        self._written += data
        if self.stuck and len(self._written) >= ROOM and not self._full:
            self._full = True
            assert self.flow is not None
            self.flow.full()

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True
        self.clock.callLater(0, self._deliver)

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.aborted = True
        self.clock.callLater(0, self.breaks)

    # ---- the other side ---------------------------------------------------------------------

    def gives(self, data: bytes) -> None:
        """It sends *data*."""
        self._kernel += data
        self._deliver()

    def ends(self) -> None:
        """It sends no more."""
        self._ending = True
        self._deliver()

    def breaks(self) -> None:
        """The connection is gone, whoever ended it."""
        if not self.gone:
            self.gone = True
            if self.flow is not None:
                self.flow.lost()

    def takes(self) -> bytes:
        """It reads all that was written."""
        taken = bytes(self._written)
        self._written.clear()
        if self._full:
            self._full = False
            assert self.flow is not None
            self.flow.drained()
        return taken

    @property
    def unread(self) -> int:
        """Bytes that wait in our kernel."""
        return len(self._kernel)

    def _deliver(self) -> None:
        if self.flow is None or not self.reading or self.gone:
            return
        if self._kernel:
            data = bytes(self._kernel)
            self._kernel.clear()
            self.flow.received(memoryview(data))
        if self._ending and self.reading and not self._kernel:
            self._ending = False
            self.flow.ended()


@define(eq=False)
class Attempt:
    """A connection that is being made; the test says what becomes of it."""

    source: Address
    peer: Address
    cancelled: bool
    done: Deferred[PeerStream]
    clock: IReactorTime

    def succeeds(self) -> MemoryStream:
        stream = MemoryStream(self.clock)
        self.done.callback(stream)
        return stream

    def fails(self) -> None:
        self.done.errback(ConnectionRefusedError())


@define(eq=False)
class MemoryListener:
    address: Address
    arrived: Callable[[PeerStream, Address], None]
    closed: bool = False
    #: How often it was told that there may be room again.
    resumed: int = 0

    def resume(self) -> None:
        self.resumed += 1

    def close(self) -> None:
        self.closed = True


@define(eq=False)
class MemoryTcp:
    """``connections.Tcp`` without a kernel."""

    clock: IReactorTime
    #: The last one of each address.
    listeners: dict[Address, MemoryListener] = field(factory=dict)
    attempts: list[Attempt] = field(factory=list)
    #: Addresses that somebody else has.
    busy: set[Address] = field(factory=set)

    def listen(self, address: Address, arrived: Callable[[PeerStream, Address], None]) -> MemoryListener:
        if address in self.busy:
            raise CannotListenError(address[0], address[1], OSError("in use"))
        listener = self.listeners[address] = MemoryListener(address, arrived)
        return listener

    def connect(self, source: Address, peer: Address) -> Deferred[PeerStream]:
        def cancel(_: object) -> None:
            attempt.cancelled = True

        attempt = Attempt(source, peer, False, Deferred(cancel), self.clock)
        self.attempts.append(attempt)
        return attempt.done

    def arrives(self, address: Address, peer: Address) -> MemoryStream:
        """*peer* connects to *address*."""
        stream = MemoryStream(self.clock)
        listener = self.listeners[address]
        assert not listener.closed
        listener.arrived(stream, peer)
        return stream
