"""TCP and TLS: who says nothing, half of it, too much or something else, and who does not listen."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import struct
from pathlib import Path

from OpenSSL import SSL

from tests.attacks.probe import PROXY_V2, Probe, client_hello, memory
from tests.attacks.stage import AttackTestCase, address, lurkers, opened
from tests.contract import turn
from tests.contract.turn import Address
from tests.node import NodeProcess

#: docs/turn.rst, "Limits": seconds until an allocation, and for one message; a node looks once a second.
STRANGER_TIME, MESSAGE_TIME, LOOK = 30.0, 10.0, 1.0
#: Messages of a stranger, and bytes of one; strangers of one address.
MESSAGES, LENGTH, OF_ADDRESS = 64, 2048, 128
#: Bytes that the process may grow by for half-open connections, 512 of them at a time, and for one slow reader.
HALF_OPEN_GROWTH, SLOW_GROWTH = 64 << 20, 8 << 20


class StreamTestCase(AttackTestCase):
    def stream(self, transport: str = "tcp", source: str = "") -> socket.socket:
        """A connection without anything on it yet, TLS or not."""
        made = socket.create_connection(
            address(self.node, transport), turn.PATIENCE, source_address=(source, 0) if source else None
        )
        self.addCleanup(made.close)
        return made

    def assertClosed(self, stream: socket.socket) -> None:
        """The server closes it without being asked again."""
        try:
            while stream.recv(65536):
                pass
        except TimeoutError:
            self.fail("it is still open")
        except OSError:
            pass


class TimeTests(StreamTestCase):
    """Slowloris, coturn and pion: a place that is taken is given back after a time that the client cannot move."""

    def assertLived(self, seconds: float, *names: str) -> None:
        for name in names:
            lived = lurkers().lived(name)
            assert lived is not None, name
            self.assertTrue(seconds - LOOK <= lived <= seconds + 5 * LOOK, (name, lived))

    def test_nothing(self) -> None:
        """No Allocate: who says nothing, a Binding, or never comes to the end of a handshake, has 30 seconds."""
        self.assertLived(STRANGER_TIME, "silent", "silent over TLS", "no Allocate")
        self.assertLived(STRANGER_TIME, "half a ClientHello", "half a handshake", "a ClientHello by bytes")

    def test_half_a_proxy(self) -> None:
        """Nor has a proxy more time, or one who has got its address: a header that does not end is ended."""
        for name in ("half a PROXY header", "a PROXY header by bytes"):
            lived = lurkers().lived(name)
            assert lived is not None, name
            self.assertLessEqual(lived, STRANGER_TIME + 5 * LOOK)

    def test_half_a_message(self) -> None:
        """A partial header, a partial message, partial ChannelData, then silence: ten seconds."""
        self.assertLived(MESSAGE_TIME, "half a header", "half a message", "half a ChannelData")

    def test_a_byte_a_second(self) -> None:
        """Slowloris: a byte a second makes the time of a message no longer."""
        self.assertLived(MESSAGE_TIME, "a byte a second")


class FrameTests(StreamTestCase):
    def test_long_frames_of_strangers(self) -> None:
        """A frame of 64 KiB, STUN or ChannelData, that is announced by nobody we know, is closed at its header."""
        for head in (
            struct.pack("!HHI", turn.ALLOCATE, 0xFFFC, turn.MAGIC) + bytes(12),
            struct.pack("!HHI", turn.ALLOCATE, LENGTH, turn.MAGIC) + bytes(12),
            struct.pack("!HH", 0x4000, 0xFFFF) + bytes(16),
        ):
            stream = self.stream()
            stream.sendall(head)
            self.assertClosed(stream)

    def test_junk(self) -> None:
        """What begins neither like STUN nor like ChannelData is closed at its first bytes: the rest has no frames."""
        for junk in (
            b"\x80" * 20, b"\xff" * 20, bytes(20), b"\x00\x01\x00\x00" + bytes(16), b"\x00\x01\x00\x01" + bytes(16),
            client_hello(), b"SSH-2.0-probe\r\n", b"\x16\x03\x01", os.urandom(3) + b"\xff" * 40,
        ):  # fmt: skip
            stream = self.stream()
            stream.sendall(junk.ljust(20, b"\0"))
            self.assertClosed(stream)

    def test_junk_instead_of_tls(self) -> None:
        """What is no TLS is closed on its port, and so is a record that is longer than any, and SSLv2."""
        for junk in (
            turn.build(turn.BINDING), b"\x80\x2e\x01\0\2" + bytes(43), b"\x16\x03\x01\xff\xff" + bytes(100), bytes(99),
            b"\x15\x03\x03\0\2\2\x28", b"\x17\x03\x03\0\x20" + os.urandom(32), b"GET / HTTP/1.1\r\n\r\n",
        ):  # fmt: skip
            stream = self.stream("tls")
            stream.sendall(junk)
            self.assertClosed(stream)

    def test_http(self) -> None:
        """CVE-2020-6061, CVE-2020-6062 (coturn spoke HTTP on its STUN port): it is closed, whatever its length says."""
        for request in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /logon HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967295\r\n\r\nuname=",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n" + b"x" * 100,
            b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + b"\0" * 2000,
            b"POST " + b"A" * 4000,
        ):
            stream = self.stream()
            stream.sendall(request)
            self.assertClosed(stream)

    def test_many_messages_of_strangers(self) -> None:
        """A stranger has 64 messages; what is sent at once behind them is not answered."""
        stream = self.stream()
        stream.sendall(turn.build(turn.BINDING) * (MESSAGES + 100))
        read = b""
        try:
            while data := stream.recv(65536):
                read += data
        except ConnectionError:
            pass
        self.assertLessEqual(len(read), 32 * (MESSAGES + 100))

    def test_messages_in_every_cut(self) -> None:
        """Frames that come cut at every byte, and two in one segment, are the same frames."""
        bound = turn.build(turn.BINDING)
        stream = self.stream()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in range(1, len(bound)):
            stream.sendall(bound[:cut])
            stream.sendall(bound[cut:])
        for _ in range(1, len(bound)):
            self.assertEqual(len(stream.recv(32, socket.MSG_WAITALL)), 32)

    def test_long_frames_of_friends(self) -> None:
        """64 KiB of ChannelData from who has an allocation: it fits no datagram, and nothing worse comes of it."""
        self.node = opened()
        for transport in ("tcp", "tls"):
            client, peer = self.allocated(transport=transport), self.bound("127.0.0.1")
            self.assertEqual(client.bind(peer.getsockname()), 0)
            for length in (65535, 65508, 65000):
                client.channel_data(bytes(length))
            client.channel_data(b"small")
            received = [peer.recv(65535)]
            while received[-1] != b"small":
                received.append(peer.recv(65535))
            self.assertLessEqual({len(each) for each in received}, {65000, 5})
            self.assertEqual(client.code(turn.REFRESH), 0)


class CrowdTests(StreamTestCase):
    def attacked(self) -> NodeProcess:
        return opened()

    def test_half_open_handshakes(self) -> None:
        """1,000 TLS handshakes that stop in the middle: bounded memory, and who comes then gets in."""
        hello = client_hello()
        before = memory(self.node.process.pid)
        crowd = []
        for number in range(1000):
            stream = self.stream("tls", f"127.51.{number // 100}.1")
            stream.sendall((hello, hello[:50], hello[:-1])[number % 3])
            crowd.append(stream)
        self.assertEqual(self.client("tls").allocate().code, 0)
        grown = memory(self.node.process.pid) - before
        self.assertLess(grown, HALF_OPEN_GROWTH)
        for stream in crowd:
            stream.close()
        again = [self.stream("tls", f"127.52.{number // 100}.1") for number in range(300)]
        for stream in again:
            stream.sendall(hello)
        self.assertEqual(self.client("tls").allocate().code, 0)
        self.assertLess(memory(self.node.process.pid) - before, HALF_OPEN_GROWTH)

    def test_no_descriptor_is_left(self) -> None:
        """Who opens connections until accept fails stops nobody, fills no log, and is served when there is room."""
        process = self.node.process.pid
        limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
        client, before = self.allocated(), len(self.node.said())
        there = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
        resource.prlimit(process, resource.RLIMIT_NOFILE, (there + 10, limits[1]))
        try:
            crowd = [self.stream(("tcp", "tls")[number % 2], "127.54.0.1") for number in range(60)]
            for _ in range(500):
                self.assertEqual(client.code(turn.REFRESH), 0)
            self.assertLess(len(self.node.said()) - before, 30)
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, limits)
        crowd[58].sendall(turn.build(turn.BINDING))
        self.assertEqual(len(crowd[58].recv(32, socket.MSG_WAITALL)), 32)

    def test_many_of_one_address(self) -> None:
        """An address has 128 connections without an allocation: the oldest makes room, nobody else's does."""
        other = self.stream(source="127.53.0.2")
        crowd = [self.stream(source="127.53.0.1") for _ in range(OF_ADDRESS + 20)]
        for stream in crowd[:20]:
            self.assertClosed(stream)
        for stream in (crowd[-1], other):
            stream.sendall(turn.build(turn.BINDING))
            self.assertEqual(len(stream.recv(32, socket.MSG_WAITALL)), 32)


class DeafTests(StreamTestCase):
    """A client that does not read: what waits for it is bounded."""

    def attacked(self) -> NodeProcess:
        return opened()

    def test_relayed_data(self) -> None:
        """40 MB from a peer for a client that reads nothing: they are dropped, over TCP and TLS; then it goes on."""
        for transport in ("tcp", "tls"):
            client, peer = self.allocated(transport=transport), self.bound("127.0.0.1")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            self.assertEqual(client.bind(peer.getsockname()), 0)
            before = memory(self.node.process.pid)
            watch = Probe(address(self.node))
            for number in range(40_000):
                peer.sendto(bytes(1000), self.relayed)
                if number % 200 == 0:
                    self.assertTrue(watch.is_alive())
            watch.socket.close()
            self.assertLess(memory(self.node.process.pid) - before, SLOW_GROWTH)
            self.assertEqual(client.code(turn.REFRESH), 0)

    def test_answers(self) -> None:
        """A client that asks and asks and reads no answer is closed before its answers fill the memory."""
        client = self.allocated(transport="tcp")
        before = memory(self.node.process.pid)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        requests = client.signed(turn.REFRESH) * 500
        with self.assertRaises((ConnectionError, TimeoutError)):
            for _ in range(2000):
                client.socket.sendall(requests)
        self.assertLess(memory(self.node.process.pid) - before, SLOW_GROWTH)


class TlsTests(StreamTestCase):
    def hands(self, context: ssl.SSLContext, name: str | None = None) -> ssl.SSLSocket:
        stream = context.wrap_socket(self.stream("tls"), server_hostname=name)
        self.addCleanup(stream.close)
        return stream

    def test_names_that_nobody_has(self) -> None:
        """An SNI that is unknown, absent, long or no name gets the certificate that there is, and the server lives."""
        for name in (None, "nobody.example", "a" * 63 + "." + "b" * 63, "xn--e1afmkfd", "*.example", "127.0.0.1"):
            stream = self.hands(turn.unchecked(), name)
            stream.sendall(turn.build(turn.BINDING))
            self.assertEqual(len(stream.recv(32)), 32, name)

    def test_protocols_that_nobody_speaks(self) -> None:
        """RFC 7301, 3.2: who offers other protocols alone is refused with no_application_protocol."""
        context = turn.unchecked()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with self.assertRaisesRegex(ssl.SSLError, "(?i)no.application.protocol"):
            stream = self.hands(context)
            stream.sendall(turn.build(turn.BINDING))
            stream.recv(32)

    def test_protocols_of_stun(self) -> None:
        """RFC 7443: stun.turn and stun.nat-discovery are taken, beside others too; none has to be offered."""
        for offered, taken in (
            (["stun.turn"], "stun.turn"),
            (["h2", "stun.turn"], "stun.turn"),
            (["stun.nat-discovery"], "stun.nat-discovery"),
            ([], None),
        ):
            context = turn.unchecked()
            if offered:
                context.set_alpn_protocols(offered)
            self.assertEqual(self.hands(context).selected_alpn_protocol(), taken)

    def test_old_versions(self) -> None:
        """TLS before 1.2 is refused with an alert."""
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = turn.unchecked()
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with self.assertRaises(ssl.SSLError):
                self.hands(context)

    def test_weak_ciphers(self) -> None:
        """Nothing without forward secrecy, authentication or encryption is agreed upon."""
        for ciphers in ("aNULL:eNULL:@SECLEVEL=0", "kRSA:@SECLEVEL=0", "PSK:@SECLEVEL=0"):
            context = turn.unchecked()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                self.hands(context)

    def test_renegotiation(self) -> None:
        """CVE-2009-3555, CVE-2011-1473: a client that wants to negotiate again is refused, and costs no handshake."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client = SSL.Connection(context, self.stream("tls"))
        client.get_app_data()
        client.setblocking(True)
        client.set_connect_state()
        client.do_handshake()
        self.assertTrue(client.renegotiate())
        with self.assertRaises(SSL.Error):
            for _ in range(3):
                client.do_handshake()
                client.send(turn.build(turn.BINDING))
                client.recv(100)

    def test_no_compression(self) -> None:
        """CVE-2012-4929 (CRIME): nothing is compressed."""
        self.assertIsNone(self.hands(turn.unchecked()).compression())


class ProxyTests(StreamTestCase):
    """coturn #1642 and eturnal: whose address a PROXY header names, and who may say so."""

    PROXY = "127.70.0.9"

    def mapped(self, header: bytes, source: str = PROXY, *, tls: bool = False) -> Address:
        """What a Binding behind *header* says is our address."""
        stream = self.stream("tls" if tls else "tcp", source)
        stream.sendall(header)
        stream = turn.unchecked().wrap_socket(stream) if tls else stream
        self.addCleanup(stream.close)
        stream.sendall(turn.build(turn.BINDING))
        return turn.parse(stream.recv(100)).address(turn.XOR_MAPPED_ADDRESS)

    def test_header_of_a_proxy(self) -> None:
        """A proxy's word counts, in both versions, with TLVs, cut into bytes, and before TLS."""
        line = b"PROXY TCP4 198.51.100.7 127.0.0.1 5555 3478\r\n"
        binary = (
            PROXY_V2 + b"\x21\x11\x00\x13" + bytes((198, 51, 100, 7, 127, 0, 0, 1)) + struct.pack("!HH", 5555, 3478)
        )
        binary += b"\x04\x00\x04null"
        for header in (line, binary):
            for tls in (False, True):
                self.assertEqual(self.mapped(header, tls=tls), ("198.51.100.7", 5555))
        six = b"PROXY TCP6 2001:db8::7 ::1 5555 3478\r\n"
        self.assertEqual(self.mapped(six), ("2001:db8::7", 5555))

    def test_header_of_nobody(self) -> None:
        """A header that comes from elsewhere is junk: the connection ends, and nobody gets another's address."""
        for header in (b"PROXY TCP4 198.51.100.7 127.0.0.1 5555 3478\r\n", PROXY_V2 + b"\x21\x11\x00\x0c" + bytes(12)):
            for transport in ("tcp", "tls"):
                stream = self.stream(transport)
                stream.sendall(header + turn.build(turn.BINDING))
                self.assertClosed(stream)

    def test_proxy_without_a_header(self) -> None:
        """A proxy that says nothing about its client is closed: its own address would stand for everybody's."""
        for transport in ("tcp", "tls"):
            stream = self.stream(transport, self.PROXY)
            stream.sendall(turn.build(turn.BINDING) if transport == "tcp" else client_hello())
            self.assertClosed(stream)

    def test_headers_that_lie(self) -> None:
        """Lines without an end, lengths beyond measure, ports and addresses that are none: closed, each of them."""
        for header in (
            b"PROXY " + b"x" * 200, b"PROXY TCP4 1.2.3.4 127.0.0.1 99999 3478\r\n", b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3 127.0.0.1 1 2\r\n", b"PROXY TCP9 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY TCP4\r\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 -1 2\r\n", b"PROXY TCP4 1.2.3.4 127.0.0.1 0x1 2\r\n",
            PROXY_V2 + b"\x21\x11\xff\xff" + bytes(3000), PROXY_V2 + b"\x31\x11\x00\x0c" + bytes(12),
            PROXY_V2 + b"\x21\x11\x00\x04" + bytes(4), PROXY_V2 + b"\x2f\x11\x00\x0c" + bytes(12),
            PROXY_V2 + b"\x21\xf1\x00\x0c" + bytes(12), PROXY_V2 + b"\x21\x21\x00\x0c" + bytes(12),
        ):  # fmt: skip
            stream = self.stream(source=self.PROXY)
            stream.sendall(header + turn.build(turn.BINDING))
            self.assertClosed(stream)

    def test_second_header(self) -> None:
        """One header is believed: a client behind the proxy that sends another one has sent junk."""
        line = b"PROXY TCP4 198.51.100.7 127.0.0.1 5555 3478\r\n"
        stream = self.stream(source=self.PROXY)
        stream.sendall(line + line.replace(b"100.7", b"100.8") + turn.build(turn.BINDING))
        self.assertClosed(stream)


class RestTests(StreamTestCase):
    def rest(self) -> Address:
        host, _, port = self.node.authority.rpartition(":")
        return host, int(port)

    def test_lengths_that_lie(self) -> None:
        """CVE-2020-6061, CVE-2020-6062: a Content-Length that is none, too long, or two of them is an error."""
        key = self.node.key.encode()
        for lines in (
            b"Content-Length: 99999999999999999999", b"Content-Length: -1", b"Content-Length: 1e3",
            b"Content-Length: 4294967296", b"Content-Length: 5\r\nContent-Length: 7",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding: chunked\r\nX: " + b"x" * 100_000,
        ):  # fmt: skip
            with socket.create_connection(self.rest(), turn.PATIENCE) as stream:
                head = b"POST /v1/webrtc/rooms HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key + b"\r\n" + lines
                try:
                    stream.sendall(head + b"\r\n\r\nffffffffffffffffff\r\n{}")
                    answer = stream.recv(65536)
                except ConnectionError:
                    answer = b""
                self.assertIn(answer[:12].partition(b" ")[2][:1], (b"4", b""), (lines, answer))
        self.assertEqual(self.node.request("GET", "/v1/webrtc/rooms")[0], 200)
