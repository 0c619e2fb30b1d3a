"""Asking another node: what is sent, and what each way of not answering is called."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from orama.cluster.exchange import MAX_ANSWER
from orama.cluster.keyring import ClusterKey, Keyring
from orama.cluster.neighbours import Neighbours, NodeRefused
from orama.cluster.signing import Verifier
from orama.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientStorage,
    NotAuthenticated,
    NotFound,
    OramaError,
    PreconditionFailed,
    RateLimited,
    TooLarge,
    Unavailable,
)
from orama.rest.internal import Gate, Signed
from orama.rest.json_resource import JsonResource, Reply, json_object, query
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings

reactor: Any = _reactor
KEY = ClusterKey(0, b"k" * 32)


@frozen
class Place:
    node_id: str
    internal_ip: str
    internal_port: int


class Echo(Signed):
    """Says what it was asked, or raises what the test wants."""

    raising: Exception | None = None

    async def get(self, request: Request) -> Reply:
        if self.raising is not None:
            raise self.raising
        return Reply(body=query(request))

    async def post(self, request: Request) -> Reply:
        return Reply(body=json_object(request))


class Mute(Protocol):
    """Sends *said* when something has come, and then hangs up or waits.

    :ivar lost: fires when the other side has gone.
    """

    def __init__(self, said: bytes, hang_up: bool) -> None:
        self._said = said
        self._hang_up = hang_up
        self.heard: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self._said)
        if self._hang_up:
            self.transport.loseConnection()
        if not self.heard.called:
            self.heard.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class NeighbourTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.keyring = Keyring([KEY])
        self.neighbours = Neighbours(reactor, self.keyring, "node-2")
        self.echo = Echo(Gate(Verifier(self.keyring, reactor), "node-1"))
        root = JsonResource(Origins(()))
        root.putChild(b"echo", self.echo)
        self.node = self.listen(Site(root, Settings(), reactor))

    def listen(self, factory: Factory, interface: str = "127.0.0.1") -> Place:
        port = reactor.listenTCP(0, factory, interface=interface)
        self.addCleanup(port.stopListening)
        return Place("node-1", interface, port.getHost().port)

    def mute(self, said: bytes, hang_up: bool = True) -> tuple[Place, Mute]:
        protocol = Mute(said, hang_up)
        factory = Factory.forProtocol(lambda: protocol)  # type: ignore[arg-type]
        factory.noisy = False
        return self.listen(factory), protocol

    async def failure(self, asking: Any, kind: type[OramaError] = Unavailable) -> OramaError:
        try:
            await asking
        except OramaError as error:
            self.assertIs(type(error), kind)
            return error
        raise AssertionError("it was answered")

    async def test_asked(self) -> None:
        """A question arrives with its parameters, a change with its body, each saying whom it is for."""
        answer = await self.neighbours.get(self.node, "/echo", {"namespace": "ä & b", "room": "r"})
        self.assertEqual(answer, {"namespace": "ä & b", "room": "r", "to": "node-1"})
        self.assertEqual(
            await self.neighbours.post(self.node, "/echo", {"reason": "ü", "n": None}), {"reason": "ü", "n": None}
        )

    async def test_ipv6(self) -> None:
        """Internal addresses may be IPv6."""
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("there is no IPv6 here")
        root = JsonResource(Origins(()))
        root.putChild(b"echo", self.echo)
        node = self.listen(Site(root, Settings(), reactor), "::1")
        self.assertEqual(await self.neighbours.get(node, "/echo"), {"to": "node-1"})

    async def test_errors(self) -> None:
        """What the other node raises is raised here: the same kind and code, and which node it was."""
        kinds: list[Callable[[str, str], OramaError]] = [
            BadRequest,
            Forbidden,
            NotFound,
            Conflict,
            PreconditionFailed,
            TooLarge,
            Unavailable,
            InsufficientStorage,
        ]
        for kind in kinds:
            self.echo.raising = kind("some_code", "some text")
            error = await self.failure(self.neighbours.get(self.node, "/echo"), kind)  # type: ignore[arg-type]
            self.assertEqual((error.code, error.message), ("some_code", "node node-1: some text"))
        self.echo.raising = RateLimited("too often")
        await self.failure(self.neighbours.get(self.node, "/echo"), RateLimited)
        self.echo.raising = ValueError("not for others")
        error = await self.failure(self.neighbours.get(self.node, "/echo"))
        self.assertEqual(error.code, "internal")
        self.flushLoggedErrors(ValueError)

    async def test_wrong_key(self) -> None:
        """A node with another key is told so."""
        stranger = Neighbours(reactor, Keyring([ClusterKey(0, b"o" * 32)]), "node-2")
        error = await self.failure(stranger.get(self.node, "/echo"), NotAuthenticated)
        self.assertEqual(error.code, "bad_signature")

    async def test_wrong_node(self) -> None:
        """Whoever sits at the address of another node says so."""
        node = Place("node-9", self.node.internal_ip, self.node.internal_port)
        error = await self.failure(self.neighbours.post(node, "/echo", {}), Conflict)
        self.assertEqual(error.code, "wrong_node")

    async def test_refused(self) -> None:
        """A refused connection has an error of its own: the process is gone."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            node = Place("node-1", "127.0.0.1", free.getsockname()[1])
        for asking in (self.neighbours.get(node, "/echo"), self.neighbours.post(node, "/echo", {})):
            error = await self.failure(asking, NodeRefused)
            self.assertEqual(error.code, "node_unreachable")
            self.assertIn(f"node-1 at 127.0.0.1:{node.internal_port}: connection refused", error.message)

    async def test_silent(self) -> None:
        """A node that takes the question and says nothing is given up in time, and the connection closed."""
        node, protocol = self.mute(b"", hang_up=False)
        error = await self.failure(self.neighbours.get(node, "/echo", timeout=0.1))
        self.assertEqual(error.code, "node_unreachable")
        self.assertIn("no answer in 0.1 s", error.message)
        await protocol.lost

    async def test_half_an_answer(self) -> None:
        """Time runs until the last byte has come."""
        node, protocol = self.mute(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", hang_up=False)
        error = await self.failure(self.neighbours.get(node, "/echo", timeout=0.2))
        self.assertIn("no answer in 0.2 s", error.message)
        await protocol.lost

    async def test_lost(self) -> None:
        """A connection that ends before the answer does is no answer, and no proof that the node is gone."""
        for said in (
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{",
            b"no HTTP at all\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
        ):
            node, protocol = self.mute(said)
            error = await self.failure(self.neighbours.get(node, "/echo"))
            self.assertIn("the connection was lost", error.message)
            await protocol.lost

    async def test_not_a_node(self) -> None:
        """Something else that speaks HTTP is not taken for a node."""
        for status, body in ((200, b"<html>"), (404, b"<html>"), (302, b"{}"), (500, b'["error", "code"]'), (502, b"")):
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            node, protocol = self.mute(head + body)
            error = await self.failure(self.neighbours.get(node, "/echo"))
            self.assertIn(f"HTTP {status}", error.message)
            await protocol.lost

    async def test_too_long(self) -> None:
        """An answer without an end is cut off."""
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {2 * MAX_ANSWER}\r\n\r\n".encode()
        node, protocol = self.mute(head + b" " * (MAX_ANSWER + 1), hang_up=False)
        error = await self.failure(self.neighbours.get(node, "/echo"))
        self.assertIn("the connection was lost", error.message)
        await protocol.lost

    async def test_cancelled(self) -> None:
        """Whoever stops waiting leaves no connection behind, at any stage."""
        for said in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"):
            node, protocol = self.mute(said, hang_up=False)
            asking = Deferred.fromCoroutine(self.neighbours.get(node, "/echo"))
            await protocol.heard
            asking.cancel()
            await self.assertFailure(asking, CancelledError)
            await protocol.lost
        asking = Deferred.fromCoroutine(self.neighbours.get(Place("n", "192.0.2.1", 9), "/echo"))
        asking.cancel()
        await self.assertFailure(asking, CancelledError)
