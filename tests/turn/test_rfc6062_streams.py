"""TCP relays on real sockets of the loopback: the server's kernel side, and data connections from end to end."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from orama.net.fabric import Address, Fabric
from orama.net.poll import Poll
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.connections import PeerStream, Pipe
from orama.turn.credentials import issue
from orama.turn.listeners import TurnService
from orama.turn.tcp import KernelTcp
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.channeldata import frame_length
from orama.wire.stun import Attribute, Class, Message, Method

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def turn() -> Deferred[None]:
    """Fires in the next turn of the reactor."""
    next_turn: Deferred[None] = Deferred()
    reactor.callLater(0, next_turn.callback, None)  # type: ignore[attr-defined]
    return next_turn


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """The other side of a connection: collects what comes, and fires what somebody waits for."""

    transport: Any

    def __init__(self) -> None:
        self.got = bytearray()
        self.over = False
        self.lost = False
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires when *condition* holds after something has happened here."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._look()
        return waiting

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self._look()

    def readConnectionLost(self) -> None:
        self.over = True
        self._look()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.over = self.lost = True
        self._look()

    def _look(self) -> None:
        for pair in [pair for pair in self._waiting if pair[0]()]:
            self._waiting.remove(pair)
            pair[1].callback(None)


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

    timeout = 20

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


class Control(Peer):
    """A TURN client's connection, which asks and hears one message at a time."""

    def __init__(self, username: str, password: str) -> None:
        super().__init__()
        self._credentials = username, password
        self._key = stun.long_term_key(username, "orama", password)
        self._nonce = b""

    async def ask(self, method: int, *attributes: tuple[Attribute[Any], Any]) -> Message:
        """A signed request and its answer."""
        if not self._nonce:
            self.say(stun.build(Method.REFRESH, Class.REQUEST, random.randbytes(12), []))
            self._nonce = (await self.hear()).get(stun.NONCE) or b""
        name = [(stun.USERNAME, self._credentials[0]), (stun.REALM, "orama"), (stun.NONCE, self._nonce)]
        self.say(stun.build(method, Class.REQUEST, random.randbytes(12), [*attributes, *name], key=self._key))
        return await self.hear()

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    async def hear(self) -> Message:
        """The next message; what comes behind it stays."""
        await self.until(lambda: 0 < frame_length(bytes(self.got), 0) <= len(self.got))
        length = frame_length(bytes(self.got), 0)
        message = stun.parse(bytes(self.got[:length]))
        del self.got[:length]
        return message


class ServiceTests(TestCase):
    """A whole service with TCP relays on the loopback."""

    timeout = 20

    def setUp(self) -> None:
        tenants = Tenants()
        tenants.put(Tenant("myapp", ("s",), (61000, 61099), allowed_peers=(ip_network("127.0.0.0/8"),)))
        directory = self.mktemp()
        certificates = ServerCertificates(Path(directory), ["127.0.0.1"], reactor)  # type: ignore[arg-type]
        settings = evolve(Settings(), turn_port=0, turns_port=0, turn=TurnSettings(tcp_relays=True))
        self.service = TurnService(reactor, settings, tenants, Fabric(reactor), certificates)
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.accepted: list[Peer] = []
        self.came: Deferred[None] = Deferred()
        factory = Factory.forProtocol(self._accept)
        self.there = reactor.listenTCP(0, factory, interface=HOST)  # type: ignore[attr-defined]
        self.addCleanup(self.there.stopListening)
        self.peer = (HOST, self.there.getHost().port)

    def _accept(self) -> Peer:
        peer = Peer()
        self.accepted.append(peer)
        self.addCleanup(lambda: peer.lost or peer.transport.abortConnection())
        reactor.callLater(0, self.came.callback, None)  # type: ignore[attr-defined]
        return peer

    async def control(self, tls: bool = False) -> Control:
        credentials = issue("s", "myapp", 600, reactor.seconds())  # type: ignore[attr-defined]
        port = self.service.tls_port if tls else self.service.tcp_port
        endpoint: Any = TCP4ClientEndpoint(reactor, HOST, port)
        if tls:
            endpoint = wrapClientTLS(_Trusting(), endpoint)
        control = Control(credentials.username, credentials.password)
        await connectProtocol(endpoint, control)
        self.addCleanup(lambda: control.lost or control.transport.abortConnection())
        return control

    async def allocated(self, tls: bool = False) -> tuple[Control, Address]:
        control = await self.control(tls)
        answer = await control.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 6))
        relay = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert relay is not None, answer
        return control, relay

    async def joined(self, tls: bool = False) -> tuple[Control, Control, Peer]:
        """The control connection, the client's data connection, and the peer."""
        control, _ = await self.allocated(tls)
        answer = await control.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, self.peer))
        data = await self.control(tls)
        bound = await data.ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, answer.get(stun.CONNECTION_ID)))
        self.assertEqual(bound.cls, Class.SUCCESS)
        await self.came
        return control, data, self.accepted[0]

    async def test_through(self) -> None:
        """A megabyte each way between client and peer, over TCP and over TLS, arrives whole and in order."""
        for tls in (False, True):
            self.accepted, self.came = [], Deferred()
            _, data, peer = await self.joined(tls)
            up, down = random.randbytes(1_000_000), random.randbytes(1_000_000)
            data.transport.write(up)
            peer.transport.write(down)
            await peer.until(lambda peer=peer: len(peer.got) == 1_000_000)  # type: ignore[misc]
            await data.until(lambda data=data: len(data.got) == 1_000_000)  # type: ignore[misc]
            self.assertEqual((bytes(peer.got), bytes(data.got)), (up, down))

    async def test_peer_sees_the_relay(self) -> None:
        """The peer sees the relayed address."""
        control, relay = await self.allocated()
        await control.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, self.peer))
        await self.came
        seen = self.accepted[0].transport.getPeer()
        self.assertEqual((seen.host, seen.port), relay)

    async def test_data_behind_the_bind(self) -> None:
        """What a client sends right behind its ConnectionBind, in one write, goes to the peer as it is, although it
        looks like a message."""
        control, _ = await self.allocated()
        answer = await control.ask(Method.CONNECT, (stun.XOR_PEER_ADDRESS, self.peer))
        data = await self.control()
        await data.ask(Method.REFRESH)
        behind = stun.build(Method.BINDING, Class.REQUEST, bytes(12)) + b"\xff\xff\xff\xff"
        data.say = lambda bound: data.transport.write(bound + behind)  # type: ignore[method-assign]
        await data.ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, answer.get(stun.CONNECTION_ID)))
        await self.came
        await self.accepted[0].until(lambda: bytes(self.accepted[0].got) == behind)
        self.assertEqual(bytes(data.got), b"")

    async def test_refused_bind_goes_on(self) -> None:
        """What comes behind a ConnectionBind that is refused is messages as before."""
        data = await self.control()
        await data.ask(Method.REFRESH)
        behind = stun.build(Method.BINDING, Class.REQUEST, bytes(12))
        data.say = lambda bound: data.transport.write(bound + behind)  # type: ignore[method-assign]
        refused = await data.ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, 7))
        self.assertEqual(refused.cls, Class.ERROR)
        self.assertEqual((await data.hear()).method, Method.BINDING)

    async def test_peer_connects(self) -> None:
        """A peer connects to the relayed address with a permission, and is dropped without one."""
        control, relay = await self.allocated()
        stranger = Peer()
        try:
            await connectProtocol(TCP4ClientEndpoint(reactor, *relay), stranger)
        except ConnectError:  # it was dropped before it was told that it is there
            pass
        else:
            await stranger.until(lambda: stranger.lost)
        await control.ask(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, self.peer))
        caller = Peer()
        await connectProtocol(TCP4ClientEndpoint(reactor, *relay), caller)
        self.addCleanup(lambda: caller.lost or caller.transport.abortConnection())
        attempt = await control.hear()
        self.assertEqual(attempt.method, Method.CONNECTION_ATTEMPT)
        self.assertEqual(attempt.get(stun.XOR_PEER_ADDRESS), (HOST, caller.transport.getHost().port))
        caller.transport.write(b"hello")
        data = await self.control()
        await data.ask(Method.CONNECTION_BIND, (stun.CONNECTION_ID, attempt.get(stun.CONNECTION_ID)))
        await data.until(lambda: bytes(data.got) == b"hello")

    async def test_half_closed(self) -> None:
        """The end of the client's stream reaches the peer, whose answer still reaches the client."""
        _, data, peer = await self.joined()
        data.transport.write(b"request")
        data.transport.loseWriteConnection()
        await peer.until(lambda: peer.over)
        self.assertEqual(bytes(peer.got), b"request")
        peer.transport.write(b"answer")
        peer.transport.loseConnection()
        await data.until(lambda: data.over)
        self.assertEqual(bytes(data.got), b"answer")

    async def test_tls_client_closes(self) -> None:
        """A client on TLS that closes behind its last bytes: the peer gets them and then the end."""
        _, data, peer = await self.joined(tls=True)
        data.transport.write(bytes(300_000))
        data.transport.loseConnection()
        await peer.until(lambda: peer.over)
        self.assertEqual(len(peer.got), 300_000)

    async def test_slow_client_slows_the_peer(self) -> None:
        """A client that does not read keeps the peer from sending, so that nothing piles up here; it loses nothing."""
        for tls in (False, True):
            self.accepted, self.came = [], Deferred()
            _, data, peer = await self.joined(tls)
            data.transport.pauseProducing()
            stuck: Deferred[None] = Deferred()
            feeder = _Feeder(peer.transport, stuck)
            await stuck
            # What is on its way is in the kernels' buffers and ours: a few megabytes and no more.
            self.assertLess(feeder.sent, 64_000_000)
            data.transport.resumeProducing()
            feeder.stop()
            await data.until(lambda data=data, feeder=feeder: len(data.got) == feeder.sent)  # type: ignore[misc]

    async def test_control_connection_lost(self) -> None:
        """When the control connection goes, the data connections go with it."""
        control, data, peer = await self.joined()
        control.transport.abortConnection()
        await data.until(lambda: data.lost)
        await peer.until(lambda: peer.lost)

    async def test_no_stranger(self) -> None:
        """A data connection outlives the half minute that a stranger has."""
        _, data, peer = await self.joined()
        clients = self.service._clients
        for client in list(clients._clients):  # what the clock would do
            client.check(reactor.seconds() + 3600)  # type: ignore[attr-defined]
        data.transport.write(b"still here")
        await peer.until(lambda: bytes(peer.got) == b"still here")


class _Feeder:
    """Writes as long as the transport takes it; *stuck* fires when it has taken none for a while of turns."""

    def __init__(self, transport: Any, stuck: Deferred[None]) -> None:
        self.sent = 0
        self._transport = transport
        self._stuck = stuck
        self._going = True
        self._idle = 0
        transport.registerProducer(self, True)
        self._turn()

    def _turn(self) -> None:
        if self._stuck.called:
            return
        if self._going:
            self._idle = 0
            self._transport.write(bytes(65536))
            self.sent += 65536
        else:
            self._idle += 1
            if self._idle > 200:
                self._stuck.callback(None)
                return
        reactor.callLater(0.001, self._turn)  # type: ignore[attr-defined]

    def pauseProducing(self) -> None:
        self._going = False

    def resumeProducing(self) -> None:
        self._going = True

    def stopProducing(self) -> None:
        self._going = False

    def stop(self) -> None:
        self._transport.unregisterProducer()


class _Trusting(CertificateOptions):
    """Believes any certificate: the server's is its own."""

    def __init__(self) -> None:
        super().__init__()

    def clientConnectionForTLS(self, _: object) -> SSL.Connection:
        return SSL.Connection(self.getContext(), None)
