"""Looking from outside, at real sockets that answer well, badly or not at all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from orama.cli.environments import Address
from orama.cli.probes import certify, look, reach, resolve
from orama.cli.seen import CertificateProbe, Certified, DnsProbe, Reached, ReachProbe, Resolved
from orama.wire import stun
from tests.cluster.pairs import DAY, write_pair

HOST = "turn.ns-alpha.orama.example"
#: A datagram in, those that are sent back out.
Reply = Callable[[bytes], list[bytes]]


class ProbeCase(SynchronousTestCase):
    def udp(self, reply: Reply, port: int = 0) -> Address:
        """Answers datagrams until the test is over."""
        server = socket.socket(type=socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", port))

        def serve() -> None:
            while True:
                data, sender = server.recvfrom(4096)
                if data == b"end":
                    return
                for each in reply(data):
                    server.sendto(each, sender)

        address = Address(*server.getsockname())

        def end() -> None:
            with socket.socket(type=socket.SOCK_DGRAM) as last:
                last.sendto(b"end", (address.host, address.port))
            thread.join()
            server.close()

        thread = Thread(target=serve)
        thread.start()
        self.addCleanup(end)
        return address

    def tcp(self, serve: Callable[[socket.socket], None]) -> Address:
        """Serves one connection after the other until the test is over."""
        server = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        if not self.serving:
                            return
                        serve(connection)

        address = Address(*server.getsockname())

        def end() -> None:
            self.serving = False
            socket.create_connection((address.host, address.port)).close()
            thread.join()
            server.close()

        self.serving = True
        thread = Thread(target=accept)
        thread.start()
        self.addCleanup(end)
        return address

    def nobody(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> Address:
        with socket.socket(type=kind) as gone:
            gone.bind(("127.0.0.1", 0))
            return Address(*gone.getsockname())


def answered(question: bytes, *addresses: str, code: int = dns.OK, **changes: int) -> bytes:
    """A DNS answer to *question*."""
    asked = dns.Message()
    asked.fromStr(question)
    message = dns.Message(id=asked.id, answer=1, auth=1, rCode=code)
    message.queries = asked.queries
    for address in addresses:
        record = dns.Record_AAAA(address, 60) if ":" in address else dns.Record_A(address, 60)
        if asked.queries[0].type == record.TYPE:
            message.answers.append(dns.RRHeader(HOST.encode(), record.TYPE, ttl=60, payload=record))
    for name, value in changes.items():
        setattr(message, name, value)
    wire: bytes = message.toStr()
    return wire


class DnsTests(ProbeCase):
    def resolve(self, reply: Reply, ipv6: bool = False) -> Resolved:
        return resolve(DnsProbe(self.udp(reply), HOST, ipv6))

    def test_addresses(self) -> None:
        """All addresses, and those of IPv6 where somebody cares."""
        many = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
        self.assertEqual(self.resolve(lambda data: [answered(data, *many)]).addresses, {"192.0.2.1", "192.0.2.2"})
        self.assertEqual(self.resolve(lambda data: [answered(data, *many)], ipv6=True).addresses, set(many))

    def test_no_such_name(self) -> None:
        """A name that is denied has no addresses, and that is an answer."""
        found = self.resolve(lambda data: [answered(data, code=dns.ENAME)])
        self.assertEqual((found.addresses, found.error), (frozenset(), ""))

    def test_refused(self) -> None:
        """A server that does not serve the name is no answer."""
        found = self.resolve(lambda data: [answered(data, code=dns.EREFUSED)])
        self.assertEqual(found.error, "it answers with REFUSED")

    def test_others(self) -> None:
        """What is no answer to the question is passed over: garbage, another id, another name, a question."""

        def reply(data: bytes) -> list[bytes]:
            other = dns.Message()
            other.fromStr(data)
            forged = answered(data, "203.0.113.1", id=other.id ^ 1)
            other.fromStr(answered(data, "203.0.113.2"))
            other.queries[0].name = dns.Name(b"other.example")
            return [b"", b"\xff" * 30, forged, data, other.toStr(), answered(data, "192.0.2.1")]

        self.assertEqual(self.resolve(reply).addresses, {"192.0.2.1"})

    def test_lost(self) -> None:
        """A lost datagram is sent again."""
        heard: list[bytes] = []

        def reply(data: bytes) -> list[bytes]:
            heard.append(data)
            return [answered(data, "192.0.2.1")] if len(heard) > 1 else []

        self.assertEqual(self.resolve(reply).addresses, {"192.0.2.1"})
        self.assertEqual(len(heard), 2)

    def test_truncated(self) -> None:
        """What does not fit comes by TCP."""

        def serve(connection: socket.socket) -> None:
            length = int.from_bytes(connection.recv(2), "big")
            answer = answered(connection.recv(length), "192.0.2.1", "192.0.2.2")
            message = len(answer).to_bytes(2, "big") + answer
            connection.sendall(message[:10])
            connection.sendall(message[10:])

        address = self.tcp(serve)
        self.udp(lambda data: [answered(data, trunc=1)], address.port)
        self.assertEqual(resolve(DnsProbe(address, HOST)).addresses, {"192.0.2.1", "192.0.2.2"})

    def test_nobody(self) -> None:
        """Where nobody listens that is said at once."""
        self.assertEqual(resolve(DnsProbe(self.nobody(socket.SOCK_DGRAM), HOST)).error, "connection refused")


class CertificateTests(ProbeCase):
    def certify(self, *names: str, days: float = 60) -> Certified:
        """What is seen of a server with a self-signed certificate for *names*."""
        now = time.time()
        pair = write_pair(Path(self.mktemp()), "turn", *names, start=now - 90 * DAY, end=now + days * DAY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        self.wanted: list[str | None] = []
        context.sni_callback = lambda sock, name, context: self.wanted.append(name)

        def serve(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)

        return certify(CertificateProbe(self.tcp(serve), HOST))

    def test_self_signed(self) -> None:
        """The certificate is read although nobody trusts it, and is that for the name."""
        found = self.certify(HOST)
        assert found.certificate is not None
        self.assertEqual((found.certificate.names, found.self_signed, found.error), ((HOST,), True, ""))
        self.assertIn("self-signed", found.distrust)
        self.assertLess(abs(found.certificate.not_after - time.time() - 60 * DAY), 60)
        self.assertEqual(set(self.wanted), {HOST})

    def test_expired(self) -> None:
        """One that has expired is read too."""
        found = self.certify("other.example", days=-1)
        assert found.certificate is not None
        self.assertLess(found.certificate.not_after, time.time())
        self.assertFalse(found.certificate.covers(HOST))

    def test_no_tls(self) -> None:
        """What speaks no TLS, hangs up or is not there is an error."""
        for serve in (lambda connection: connection.sendall(b"SSH-2.0-x\r\n" * 9), lambda connection: None):
            found = certify(CertificateProbe(self.tcp(serve), HOST))
            self.assertIsNone(found.certificate)
            self.assertTrue(found.error)
        self.assertEqual(certify(CertificateProbe(self.nobody(), HOST)).error, "connection refused")


class ReachTests(ProbeCase):
    def test_stun(self) -> None:
        """A Binding response to our request is an answer; anything else is not."""

        def reply(data: bytes) -> list[bytes]:
            request = stun.parse(data)
            mapped = [(stun.XOR_MAPPED_ADDRESS, ("127.0.0.1", 1))]
            other = stun.build(stun.Method.BINDING, stun.Class.SUCCESS, bytes(12), mapped)
            good = stun.build(stun.Method.BINDING, stun.Class.SUCCESS, request.transaction_id, mapped)
            heard.append(request.transaction_id)
            return [b"x", data, other, good] if len(heard) > 1 else [b"x", data, other]

        heard: list[bytes] = []
        self.assertEqual(reach(ReachProbe(self.udp(reply), "udp")).error, "")
        self.assertEqual(len(heard), 2)

    def test_nobody(self) -> None:
        """Where nobody listens that is said at once."""
        for proto, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
            self.assertEqual(reach(ReachProbe(self.nobody(kind), proto)).error, "connection refused")

    def test_tcp(self) -> None:
        """A connection is enough."""
        self.assertEqual(reach(ReachProbe(self.tcp(lambda connection: None), "tcp")).error, "")


class LookTests(ProbeCase):
    def test_all(self) -> None:
        """Every probe has its own kind of sight, in its place."""
        probes = [
            ReachProbe(self.nobody(), "tcp"),
            DnsProbe(self.nobody(socket.SOCK_DGRAM), HOST),
            CertificateProbe(self.nobody(), HOST),
        ]
        seen = look(probes, lambda done, total: None)
        self.assertEqual([each.probe for each in seen], probes)
        self.assertEqual([type(each) for each in seen], [Reached, Resolved, Certified])
        self.assertEqual({each.error for each in seen}, {"connection refused"})
