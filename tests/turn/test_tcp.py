"""TCP as relays use it, on real sockets of the loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.trial.unittest import TestCase

from orama.net.fabric import Address, Fabric
from orama.net.poll import Poll
from orama.turn.connections import PeerStream, Pipe
from orama.turn.tcp import KernelTcp
from tests.ports import free_port
from tests.turn.tcp_peer import Peer

HOST = "127.0.0.1"


def turn() -> Deferred[None]:
    """Fires in the next turn of the reactor."""
    next_turn: Deferred[None] = Deferred()
    reactor.callLater(0, next_turn.callback, None)  # type: ignore[attr-defined]
    return next_turn


@define(eq=False)
class Recorder:
    """A flow that remembers."""

    told: list[str] = field(factory=list)
    got: bytearray = field(factory=bytearray)
    happened: Callable[[], None] = lambda: None

    def received(self, data: Any) -> None:
        self.got += data
        self._tell("received")

    def ended(self) -> None:
        self._tell("ended")

    def lost(self) -> None:
        self._tell("lost")

    def full(self) -> None:
        self._tell("full")

    def drained(self) -> None:
        self._tell("drained")

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()

        def look() -> None:
            if condition() and not waiting.called:
                waiting.callback(None)

        self.happened = look
        look()
        return waiting

    def _tell(self, what: str) -> None:
        if what != "received":
            self.told.append(what)
        self.happened()


class KernelTests(TestCase):
    """The kernel's TCP as relays use it."""

    timeout = 120

    def setUp(self) -> None:
        self.poll = Poll(reactor, Fabric(reactor))  # type: ignore[arg-type]
        self.tcp = KernelTcp(self.poll)
        self.arrivals: list[tuple[PeerStream, Address]] = []
        self.arrived: Deferred[None] = Deferred()

    def listen(self, host: str = HOST) -> Address:
        address = (host, free_port())
        listener = self.tcp.listen(address, self._arrived)
        self.addCleanup(listener.close)
        return address

    def _arrived(self, stream: PeerStream, peer: Address) -> None:
        self.addCleanup(stream.abort)
        self.arrivals.append((stream, peer))
        self.arrived.callback(None)

    async def meet(self) -> tuple[Pipe, Recorder, Peer]:
        """A connection that came to us: our pipe, what it tells, and the other side."""
        address = self.listen()
        peer = Peer()
        await connectProtocol(TCP4ClientEndpoint(reactor, *address), peer)
        self.addCleanup(peer.transport.abortConnection)
        await self.arrived
        recorder = Recorder()
        pipe = self.arrivals[0][0].pipe(recorder)
        return pipe, recorder, peer

    async def test_connects_from_where_it_listens(self) -> None:
        """A connection is made from the very address on which we listen, and connections still come in there."""
        address = self.listen()
        with socket.socket() as there:
            there.bind((HOST, 0))
            there.listen()
            stream = await self.tcp.connect(address, there.getsockname())
            self.addCleanup(stream.abort)
            accepted, source = there.accept()
            accepted.close()
        self.assertEqual(source, address)
        caller = Peer()
        await connectProtocol(TCP4ClientEndpoint(reactor, *address), caller)
        self.addCleanup(caller.transport.abortConnection)
        await self.arrived
        self.assertEqual(self.arrivals[0][1], (HOST, caller.transport.getHost().port))

    async def test_refused(self) -> None:
        """Where nobody listens the attempt fails with what the kernel says."""
        await self.assertFailure(self.tcp.connect((HOST, free_port()), (HOST, free_port())), ConnectionRefusedError)

    async def test_not_ours(self) -> None:
        """An address that is not ours, and one that is taken, fail at once."""
        await self.assertFailure(self.tcp.connect(("192.0.2.1", 5000), (HOST, free_port())), OSError)

    async def test_cancelled(self) -> None:
        """An attempt that is cancelled leaves nothing in the poll."""
        # A listener whose queue is full does not answer.
        with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
            silent.bind((HOST, 0))
            silent.listen(0)
            for filling in (first, second):
                filling.setblocking(False)
                filling.connect_ex(silent.getsockname())
            attempt = self.tcp.connect((HOST, free_port()), silent.getsockname())
            self.assertEqual(len(self.poll), 1)
            attempt.cancel()
            await self.assertFailure(attempt, CancelledError)
        self.assertEqual(len(self.poll), 0)

    async def test_unread_until_resumed(self) -> None:
        """A stream is not read before it is a pipe that is resumed; what came waits in the kernel."""
        pipe, recorder, peer = await self.meet()
        peer.transport.write(b"early")
        await turn()
        self.assertEqual(bytes(recorder.got), b"")
        pipe.resume()
        await recorder.until(lambda: bytes(recorder.got) == b"early")

    async def test_half_closed(self) -> None:
        """The end of what they send is told, and they can still be written to; after both ends the connection is
        gone."""
        pipe, recorder, peer = await self.meet()
        pipe.resume()
        peer.transport.loseWriteConnection()
        await recorder.until(lambda: recorder.told == ["ended"])
        pipe.write(b"answer")
        pipe.finish()
        await peer.until(lambda: peer.over)
        self.assertEqual(bytes(peer.got), b"answer")
        await recorder.until(lambda: recorder.told == ["ended", "lost"])

    async def test_finish_first(self) -> None:
        """We may end first, and still get what they send."""
        pipe, recorder, peer = await self.meet()
        pipe.resume()
        pipe.write(b"question")
        pipe.finish()
        await peer.until(lambda: peer.over)
        peer.transport.write(b"answer")
        peer.transport.loseConnection()
        await recorder.until(lambda: "lost" in recorder.told)
        self.assertEqual((bytes(peer.got), bytes(recorder.got)), (b"question", b"answer"))

    async def test_full_and_drained(self) -> None:
        """A pipe whose other side does not read says that it is full, and that it is drained when all is read."""
        pipe, recorder, peer = await self.meet()
        peer.transport.pauseProducing()
        total = 0
        while "full" not in recorder.told:
            pipe.write(bytes(65536))
            total += 65536
        peer.transport.resumeProducing()
        await peer.until(lambda: len(peer.got) == total)
        await recorder.until(lambda: "drained" in recorder.told)

    async def test_both_ended_while_paused(self) -> None:
        """What came before both sides ended is still read when the pipe was paused all the while."""
        pipe, recorder, peer = await self.meet()
        pipe.finish()
        await peer.until(lambda: peer.over)
        peer.transport.write(bytes(30_000))
        peer.transport.loseConnection()
        while len(self.poll) > 1:  # until the poll has seen that both directions are closed
            await turn()
        pipe.resume()
        await recorder.until(lambda: "lost" in recorder.told)
        self.assertEqual((len(recorder.got), recorder.told), (30_000, ["ended", "lost"]))

    async def test_abort(self) -> None:
        """Aborting ends it at once, told once."""
        pipe, recorder, peer = await self.meet()
        pipe.abort()
        await peer.until(lambda: peer.lost)
        await recorder.until(lambda: recorder.told == ["lost"])
        pipe.abort()
        pipe.finish()
        pipe.write(b"x")
