"""Data connections of TCP allocations from end to end: a whole service, real clients and peers on the loopback."""

from __future__ import annotations

import random
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.trial.unittest import TestCase

from orama.net.fabric import Address, Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.credentials import issue
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.channeldata import frame_length
from orama.wire.stun import Attribute, Class, Message, Method
from tests.turn.tcp_peer import Peer

HOST = "127.0.0.1"


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

    timeout = 120

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
