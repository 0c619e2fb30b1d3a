"""The DNS server on real sockets: Twisted's client, dig, and what no client would send."""

from __future__ import annotations

import random
import shutil
import socket
import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.names import client, dns
from twisted.names.error import DNSNameError
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from orama.cluster.dns import DnsService
from orama.cluster.zone import DnsRecord
from tests.cluster.test_answering import LONG, ask
from tests.cluster.test_dns import SETTINGS, TURN
from tests.cluster.test_zone import BASE, NODES, RECORDS


class RealCase(TestCase):
    """A server on real sockets."""

    timeout = 120
    records = (*RECORDS, *LONG)

    async def setUp(self) -> None:
        async def read() -> tuple[DnsRecord, ...]:
            return self.records

        alive = {"one", "three"}
        self.service = DnsService(reactor, SETTINGS, read, lambda: NODES, alive.__contains__, random.Random())
        self.service.startService()
        self.addCleanup(self.service.stopService)


class ResolverTests(RealCase):
    """Twisted's own client."""

    def setUp(self) -> Any:
        def resolver(_: object) -> None:
            self.resolver = client.Resolver(servers=[("127.0.0.1", self.service.port)], timeout=(5,))

        return Deferred.fromCoroutine(super().setUp()).addCallback(resolver)

    async def test_addresses(self) -> None:
        """It gets the living addresses."""
        answers, authority, _ = await self.resolver.lookupAddress(TURN)
        self.assertEqual([record.payload.dottedQuad() for record in answers], ["203.0.113.1"])
        self.assertEqual((answers[0].auth, authority), (True, []))

    async def test_denied(self) -> None:
        """It is told that a name is not there, by one who knows."""
        await self.assertFailure(self.resolver.lookupAddress(f"no.{BASE}"), DNSNameError)

    async def test_long(self) -> None:
        """It comes back over TCP for what is too long for a datagram."""
        answers, _, _ = await self.resolver.lookupText(f"long.{BASE}")
        self.assertEqual(len(answers), len(LONG))
        self.assertEqual(self.service._streams.counts["answered"], 1)


class DigTests(RealCase):
    """dig, which says what it does not like."""

    async def dig(self, *arguments: str) -> str:
        program = shutil.which("dig")
        if program is None:
            raise SkipTest("dig is not here")
        command = ["@127.0.0.1", "-p", str(self.service.port), "+tries=1", "+timeout=5", *arguments]
        out, err, code = await getProcessOutputAndValue(program, command)
        text: str = out.decode()
        self.assertEqual((code, err), (0, b""), text)
        for complaint in ("WARNING", "malformed", "Question section mismatch", "extra bytes"):
            self.assertNotIn(complaint, text.replace("WARNING: recursion requested but not available", ""))
        return text

    async def test_answers(self) -> None:
        """Over UDP and TCP, with and without EDNS and with changed case, the same."""
        for options in (
            [],
            ["+tcp"],
            ["+noedns"],
            ["+dnssec"],
            ["+bufsize=512"],
            ["+nocookie"],
            ["+subnet=192.0.2.0/24"],
        ):
            text = await self.dig(*options, "TURN.ns-a.lab.EXAMPLE", "A")
            self.assertIn("status: NOERROR", text)
            self.assertIn("flags: qr aa rd;", text)
            self.assertRegex(text, r"TURN\.ns-a\.lab\.EXAMPLE\.\s+60\s+IN\s+A\s+203\.0\.113\.1\n")
            self.assertEqual("OPT PSEUDOSECTION" in text, "+noedns" not in options)

    async def test_apex(self) -> None:
        """NS with addresses, and SOA."""
        text = await self.dig(BASE, "NS")
        self.assertRegex(text, r"lab\.example\.\s+60\s+IN\s+NS\s+ns1\.lab\.example\.")
        self.assertRegex(text, r"ns3\.lab\.example\.\s+60\s+IN\s+AAAA\s+2001:db8::3")
        text = await self.dig("+short", BASE, "SOA")
        self.assertRegex(text, r"^ns1\.lab\.example\. hostmaster\.lab\.example\. \d+ 3600 600 604800 60\n$")

    async def test_truncation(self) -> None:
        """It falls back to TCP by itself, and sees TC when it may not."""
        text = await self.dig(f"long.{BASE}", "TXT")
        self.assertIn(f"ANSWER: {len(LONG)},", text)
        self.assertIn("Truncated, retrying in TCP mode", text)
        self.assertIn("flags: qr aa tc rd;", await self.dig("+ignore", f"long.{BASE}", "TXT"))

    async def test_statuses(self) -> None:
        """Denials, refusals and what is not implemented are told as what they are."""
        for status, arguments in {
            "NXDOMAIN": [f"no.{BASE}", "A"],
            "REFUSED": ["example.org", "A"],
            "NOTIMP": ["+noedns", "+opcode=NOTIFY", BASE, "SOA"],
            "BADVERS": ["+edns=1", "+noednsneg", BASE, "SOA"],
        }.items():
            self.assertIn(f"status: {status}", await self.dig(*arguments))
        self.assertIn("status: REFUSED", await self.dig("-c", "CH", "version.bind", "TXT"))
        self.assertIn("status: NOERROR", await self.dig(f"ns-a.{BASE}", "A"))
        self.assertIn("; Transfer failed.", await self.dig("+tcp", BASE, "AXFR"))


class SocketTests(RealCase):
    async def test_many_on_one_connection(self) -> None:
        """A client that asks for much more than the buffers take gets every answer."""
        count, done = 3000, Deferred[int]()
        message = ask(f"long.{BASE}", dns.TXT)
        framed = struct.pack("!H", len(message)) + message

        class Asker(Protocol):
            received = 0

            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(framed * count)

            def dataReceived(self, data: bytes) -> None:
                self.received += len(data)
                if self.received == whole * count and self.transport is not None:
                    self.transport.loseConnection()

            def connectionLost(self, reason: object = None) -> None:
                done.callback(self.received)

        whole = 2 + len(self.service._answering.respond(message, 65535) or b"")
        reactor.connectTCP("127.0.0.1", self.service.port, ClientFactory.forProtocol(Asker))  # type: ignore[attr-defined]
        self.assertEqual(await done, whole * count)

    async def test_half_closed(self) -> None:
        """Who says that there are no more questions gets the answers to those that were, and then the end."""
        done = Deferred[bytes]()
        message = ask(f"long.{BASE}", dns.TXT)
        framed = struct.pack("!H", len(message)) + message

        @implementer(IHalfCloseableProtocol)
        class Asker(Protocol):
            received = b""

            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(framed * 200)
                self.transport.loseWriteConnection()  # type: ignore[attr-defined]

            def readConnectionLost(self) -> None:
                assert self.transport is not None
                self.transport.loseConnection()

            def writeConnectionLost(self) -> None:
                pass

            def dataReceived(self, data: bytes) -> None:
                self.received += data

            def connectionLost(self, reason: object = None) -> None:
                done.callback(self.received)

        reactor.connectTCP("127.0.0.1", self.service.port, ClientFactory.forProtocol(Asker))  # type: ignore[attr-defined]
        whole = 2 + len(self.service._answering.respond(message, 65535) or b"")
        self.assertEqual(len(await done), whole * 200)

    async def test_garbage(self) -> None:
        """Garbage on the real sockets harms nobody."""
        generator = random.Random(20260)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as garbage:
            for _ in range(200):
                garbage.sendto(generator.randbytes(generator.randrange(0, 600)), ("127.0.0.1", self.service.port))
            garbage.sendto(b"\0" * 9000, ("127.0.0.1", self.service.port))
        # The queue of the socket may be full of it when the first question comes.
        resolver = client.Resolver(servers=[("127.0.0.1", self.service.port)], timeout=(1, 5))
        answers, _, _ = await resolver.lookupAddress(f"www.{BASE}")
        self.assertEqual(len(answers), 1)
