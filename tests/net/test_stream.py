"""Streams over real connections of this machine: plain and TLS, with clients of the standard library."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Address, Buffer, Fabric
from orama.net.poll import Poll
from orama.net.stream import FULL, MAX_WAITING, Listener, Stream
from orama.net.tls import ServerCertificates


class Kept:
    """A flow that keeps what comes, and says when something it waits for is there."""

    def __init__(self) -> None:
        self.data = b""
        self.events: list[str] = []
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        #: What to do with each read besides.
        self.on_data: Callable[[], None] = lambda: None

    def received(self, data: Buffer) -> None:
        self.data += bytes(data)
        self.on_data()
        self._look()

    def ended(self) -> None:
        self._event("ended")

    def lost(self) -> None:
        self._event("lost")

    def full(self) -> None:
        self._event("full")

    def drained(self) -> None:
        self._event("drained")

    def _event(self, name: str) -> None:
        self.events.append(name)
        self._look()

    def _look(self) -> None:
        for pair in list(self._waiting):
            if pair[0]():
                self._waiting.remove(pair)
                pair[1].callback(None)

    def until(self, there: Callable[[], bool]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((there, waiting))
        self._look()
        return waiting


class StreamTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.fabric = Fabric(reactor)
        self.poll = Poll(reactor, self.fabric)
        self.certificates: ServerCertificates | None = None
        self.proxied = False
        self.flows: list[Kept] = []
        self.identities: list[Address | None] = []
        self.arrived: Deferred[tuple[Stream, Kept]] = Deferred()
        self.listener = Listener(self.poll, self.accept)
        listening = socket.socket()
        listening.setblocking(False)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.listener.adopt(listening)
        self.addCleanup(self.listener.close)

    def accept(self, connection: socket.socket, source: Address) -> None:
        flow = Kept()
        self.flows.append(flow)
        identified = self.identities.append if self.proxied else None
        stream = Stream(self.poll, connection, flow, self.certificates, identified)
        self.addCleanup(stream.abort)
        arrived, self.arrived = self.arrived, Deferred()
        arrived.callback((stream, flow))

    async def connected(self) -> tuple[Stream, Kept, socket.socket]:
        arrived = self.arrived
        client = socket.create_connection(self.listener.address, 5)
        self.addCleanup(client.close)
        stream, flow = await arrived
        return stream, flow, client

    def speak_tls(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.certificates = ServerCertificates(directory, ["localhost"], reactor, protocols=("stun.turn",))

    async def shaken(self, *protocols: str) -> tuple[Stream, Kept, ssl.SSLSocket]:
        stream, flow, client = await self.connected()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(list(protocols))
        secure = await deferToThread(context.wrap_socket, client)
        self.addCleanup(secure.close)
        return stream, flow, secure

    async def test_both_ways(self) -> None:
        """What is written arrives, on either side, in order."""
        stream, flow, client = await self.connected()
        client.sendall(b"hello " * 1000)
        await flow.until(lambda: len(flow.data) == 6000)
        stream.send([b"good", memoryview(b"bye")])
        stream.write(b"!")
        stream.finish()
        self.assertEqual(await deferToThread(read_all, client), b"goodbye!")

    async def test_their_end(self) -> None:
        """Their end is told once, what we write still arrives, and with our end the connection is gone."""
        stream, flow, client = await self.connected()
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        await flow.until(lambda: "ended" in flow.events)
        self.assertEqual(flow.data, b"last words")
        stream.write(b"answer")
        stream.finish()
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual(flow.events, ["ended", "lost"])
        self.assertEqual(await deferToThread(read_all, client), b"answer")

    async def test_our_end_first(self) -> None:
        """After our end we go on reading until theirs."""
        stream, flow, client = await self.connected()
        stream.finish()
        stream.write(b"too late")
        self.assertEqual(await deferToThread(read_all, client), b"")
        client.sendall(b"and yet")
        client.close()
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual((flow.data, flow.events), (b"and yet", ["ended", "lost"]))

    async def test_abort(self) -> None:
        """An abort resets the connection; ``lost`` comes once and later, whatever is called besides."""
        stream, flow, client = await self.connected()
        stream.abort()
        stream.abort()
        stream.write(b"x")
        stream.pause()
        stream.resume()
        stream.finish()
        self.assertEqual(flow.events, [])
        await flow.until(lambda: bool(flow.events))
        self.assertEqual(flow.events, ["lost"])
        self.assertRaises(ConnectionResetError, client.recv, 1)

    async def test_reset(self) -> None:
        """A connection that they reset is lost, while it is read and while it is not."""
        for paused in (False, True):
            stream, flow, client = await self.connected()
            if paused:
                stream.pause()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            await flow.until(lambda: "lost" in flow.events)  # noqa: B023
            self.assertEqual(flow.events, ["lost"])

    async def test_slow_reader(self) -> None:
        """Who does not read makes the stream full, once; when it has read everything, drained; nothing is lost."""
        stream, flow, client = await self.connected()
        sent = 0
        while "full" not in flow.events:
            stream.write(bytes(50000))
            sent += 50000
        stream.write(b"end")
        self.assertGreaterEqual(stream.waiting, FULL)
        drained = flow.until(lambda: "drained" in flow.events)
        stream.finish()
        self.assertEqual(len(await deferToThread(read_all, client)), sent + 3)
        await drained
        self.assertEqual(flow.events, ["full", "drained"])

    async def test_boundless_writer(self) -> None:
        """Who writes on to a reader that never reads loses the stream at the bound."""
        stream, flow, _client = await self.connected()
        for _ in range(1000):
            stream.write(bytes(50000))
            self.assertLessEqual(stream.waiting, MAX_WAITING)
        await flow.until(lambda: "lost" in flow.events)

    async def test_pause(self) -> None:
        """While a stream pauses nothing comes of it, and what was sent meanwhile comes after it resumes."""
        stream, flow, client = await self.connected()
        stream.pause()
        client.sendall(b"later")
        turns: Deferred[None] = Deferred()
        reactor.callLater(0.02, turns.callback, None)
        await turns
        self.assertEqual(flow.data, b"")
        stream.resume()
        self.assertEqual(flow.data, b"")
        await flow.until(lambda: flow.data == b"later")

    async def test_dropped_out_of_its_own_read(self) -> None:
        """A flow may abort the stream while it is given data."""
        stream, flow, client = await self.connected()
        flow.on_data = stream.abort
        client.sendall(b"x")
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual(flow.data, b"x")

    async def test_tls_both_ways(self) -> None:
        """Over TLS the same arrives: what is sent together in a record for each part."""
        self.speak_tls()
        stream, flow, client = await self.shaken("stun.turn")
        self.assertEqual(client.selected_alpn_protocol(), "stun.turn")
        await deferToThread(client.sendall, b"x" * 100_000)
        await flow.until(lambda: len(flow.data) == 100_000)
        stream.send([b"one", b"two", b"three"])
        self.assertEqual([await deferToThread(client.recv, 100) for _ in range(3)], [b"one", b"two", b"three"])

    async def test_tls_ends(self) -> None:
        """Their close_notify is their end; ours is told by one, and the connection goes with both."""
        self.speak_tls()
        stream, flow, client = await self.shaken()

        def close() -> bytes:
            client.sendall(b"bye")
            return read_all(client.unwrap())

        closing = deferToThread(close)
        await flow.until(lambda: "ended" in flow.events)
        stream.finish()
        self.assertEqual(await closing, b"")
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual((flow.data, flow.events), (b"bye", ["ended", "lost"]))

    async def test_tls_before_the_handshake(self) -> None:
        """What is written before the handshake is over goes nowhere, and hurts nothing."""
        self.speak_tls()
        stream, flow, client = await self.connected()
        stream.write(b"early")
        stream.finish()
        client.close()
        await flow.until(lambda: "lost" in flow.events)

    async def test_no_tls(self) -> None:
        """Junk where TLS belongs is answered with an alert, and the connection closed."""
        self.speak_tls()
        _stream, flow, client = await self.connected()
        client.sendall(b"\x16\x03\x01\0\x05hello")
        answer = await deferToThread(read_all, client)
        self.assertEqual(answer[:2], b"\x15\x03")
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual(flow.data, b"")

    async def test_foreign_protocol(self) -> None:
        """A client none of whose protocols is ours gets the alert for that (RFC 7301, 3.2)."""
        self.speak_tls()
        failure = await self.assertFailure(self.shaken_deferred("h2"), ssl.SSLError)
        self.assertIn("no application protocol", str(failure))
        (flow,) = self.flows
        await flow.until(lambda: "lost" in flow.events)

    def shaken_deferred(self, *protocols: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.shaken(*protocols))

    async def test_proxy_header(self) -> None:
        """Behind a PROXY header, however it is cut, come the client's bytes; the header's address is told once."""
        self.proxied = True
        for cut in (1, 20, 200):
            stream, flow, client = await self.connected()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            header = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 3478\r\nhello"
            client.sendall(header[:cut])
            client.sendall(header[cut:])
            await flow.until(lambda: flow.data == b"hello")  # noqa: B023
            self.assertEqual(self.identities.pop(), ("203.0.113.9", 4711))
            self.assertEqual(self.identities, [])
            stream.abort()

    async def test_proxy_header_before_tls(self) -> None:
        """The header comes before the handshake."""
        self.speak_tls()
        self.proxied = True
        arrived = self.arrived
        client = socket.create_connection(self.listener.address, 5)
        self.addCleanup(client.close)
        client.sendall(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 5349\r\n")
        _stream, flow = await arrived
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        secure = await deferToThread(context.wrap_socket, client)
        self.addCleanup(secure.close)
        await deferToThread(secure.sendall, b"hello")
        await flow.until(lambda: flow.data == b"hello")

    async def test_no_proxy_header(self) -> None:
        """Where a header belongs and none comes, the connection is dropped, and nothing of it is handed on."""
        self.proxied = True
        _stream, flow, client = await self.connected()
        client.sendall(b"\0\1\0\0!\x12\xa4B")
        await flow.until(lambda: "lost" in flow.events)
        self.assertEqual((flow.data, self.identities), (b"", []))

    async def test_out_of_descriptors(self) -> None:
        """Where there is no descriptor left, accepting stops until it is resumed; who waits is accepted then."""
        scarce = Scarce(self.listener)
        client = socket.create_connection(self.listener.address, 5)
        self.addCleanup(client.close)
        await scarce.tried
        scarce.give_back()
        arrived = self.arrived
        self.listener.resume()
        stream, _flow = await arrived
        stream.abort()


class Scarce:
    """Stands in front of a listener's socket and has no descriptors for it."""

    def __init__(self, listener: Listener) -> None:
        self.tried: Deferred[None] = Deferred()
        self._listener = listener
        self._socket = listener._socket
        listener._socket = self  # type: ignore[assignment]

    def accept(self) -> None:
        reactor.callLater(0, self.tried.callback, None)
        raise OSError(errno.EMFILE, "too many open files")

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def close(self) -> None:
        self.give_back()
        self._listener.close()

    def give_back(self) -> None:
        self._listener._socket = self._socket


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data
