"""Certificates of a listener, by real TLS connections."""

from __future__ import annotations

import contextlib
import ssl
import stat
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from OpenSSL import SSL
from twisted.internet import protocol, reactor
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.errors import ConfigurationError
from orama.net.hello import ClientHello
from orama.net.tls import TICKET_KEY_CONNECTIONS, TICKET_KEY_LIFETIME, ServerCertificates

NOW = 1_800_000_000.0


def write_certificate(
    directory: Path, name: str, encryption: KeySerializationEncryption | None = None
) -> tuple[Path, Path]:
    """A self-signed pair for *name* in two files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.fromtimestamp(NOW, UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .sign(key, SHA256())
    )
    files = directory / f"{name}.crt", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    return files


class Server(Protocol):
    """One end of a handshake over memory."""

    def receive(self, data: bytes) -> bytes:
        """What goes back."""


class OpenSslServer:
    """What Twisted's TLS does with a connection."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self.connection = certificates.context_factory().serverConnectionForTLS(None)
        self.connection.set_accept_state()

    def receive(self, data: bytes) -> bytes:
        self.connection.bio_write(data)
        with contextlib.suppress(SSL.Error):
            self.connection.do_handshake()
            self.connection.recv(1)
        try:
            return self.connection.bio_read(1 << 16)
        except SSL.WantReadError:
            return b""


class StandardServer:
    """What is to be done with a connection by the standard library."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self.certificates = certificates
        self.hello = ClientHello()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.connection = certificates.ssl_context().wrap_bio(self.incoming, self.outgoing, server_side=True)

    def receive(self, data: bytes) -> bytes:
        if not self.hello.done:
            self.hello.feed(data)
            if self.hello.done and (alert := self.certificates.refusal(self.hello)):
                return alert
        self.incoming.write(data)
        with contextlib.suppress(ssl.SSLError):
            self.connection.do_handshake()
            self.connection.read(1)
        return self.outgoing.read()


def meet(
    server: Server,
    name: bytes | None = None,
    version: int | None = None,
    protocols: Sequence[bytes] = (),
    context: SSL.Context | None = None,
) -> SSL.Connection:
    """The client, after a handshake in which it asked for *name* with *protocols*.

    :raises SSL.Error: it was refused.
    """
    context = context or SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if protocols:
        context.set_alpn_protos(list(protocols))
    client = SSL.Connection(context, None)
    client.set_connect_state()
    if name is not None:
        client.set_tlsext_host_name(name)
    for _ in range(10):
        try:
            client.do_handshake()
        except SSL.WantReadError:
            client.bio_write(server.receive(client.bio_read(1 << 16)))
        else:
            break
    with contextlib.suppress(SSL.WantReadError):  # the last flight
        server.receive(client.bio_read(1 << 16))
    return client


def certificate_of(client: SSL.Connection) -> x509.Certificate:
    found = client.get_peer_certificate(as_cryptography=True)
    assert found is not None
    return found


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def handshake(
    certificates: ServerCertificates, name: str | None = None, version: int | None = None
) -> tuple[x509.Certificate, str]:
    """The certificate and the TLS version that a client gets that asks for *name*; over memory, no socket."""
    client = meet(OpenSslServer(certificates), name.encode() if name else None, version)
    return certificate_of(client), client.get_protocol_version_name()


class CertificateTests(SynchronousTestCase):
    """Of Twisted's way."""

    server: ClassVar[Callable[[ServerCertificates], Server]] = OpenSslServer

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.clock = Clock()
        self.clock.advance(NOW)

    def handshake(
        self, certificates: ServerCertificates, name: str | None = None, version: int | None = None
    ) -> tuple[x509.Certificate, str]:
        client = meet(type(self).server(certificates), name.encode() if name else None, version)
        return certificate_of(client), client.get_protocol_version_name()

    def certificates(self, *hosts: str) -> ServerCertificates:
        return ServerCertificates(self.directory / "tls", hosts or ("127.0.0.1", "turn.example"), self.clock)

    def configured(self, name: str = "default.example") -> ServerCertificates:
        files = write_certificate(self.directory, name)
        return ServerCertificates(self.directory / "tls", (), self.clock, str(files[0]), str(files[1]))

    def test_self_signed(self) -> None:
        """Without files there is a self-signed certificate with IPs and names; only we can read it."""
        certificates = self.certificates("127.0.0.1", "::1", "turn.example")
        found, version = self.handshake(certificates, "turn.example")
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.IPAddress), [ip_address("127.0.0.1"), ip_address("::1")])
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["turn.example"])
        self.assertEqual(common_name(found), "127.0.0.1")
        self.assertEqual(version, "TLSv1.3")
        for name in ("self-signed.crt", "self-signed.key"):
            self.assertEqual(stat.S_IMODE((self.directory / "tls" / name).stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE((self.directory / "tls").stat().st_mode), 0o700)

    def test_self_signed_stays(self) -> None:
        """A second start finds the certificate again; other hosts or an end that is near make a new one."""
        first, _ = self.handshake(self.certificates())
        self.assertEqual(self.handshake(self.certificates())[0], first)
        other, _ = self.handshake(self.certificates("127.0.0.1", "other.example"))
        self.assertNotEqual(other, first)
        self.clock.advance(timedelta(days=340).total_seconds())
        self.assertNotEqual(self.handshake(self.certificates("127.0.0.1", "other.example"))[0], other)

    def test_cover(self) -> None:
        """A running node's self-signed certificate takes new names at the next handshake; given files stay."""
        certificates = self.certificates("127.0.0.1")
        self.handshake(certificates)
        certificates.cover(("127.0.0.1", "turn.ns-a.example"))
        found, _ = self.handshake(certificates, "turn.ns-a.example")
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["turn.ns-a.example"])
        configured = self.configured()
        before, _ = self.handshake(configured)
        configured.cover(("other.example",))
        self.assertEqual(self.handshake(configured)[0], before)

    def test_cover_without_a_disk(self) -> None:
        """When no new certificate can be written the old one is served on, and the next attempt counts."""
        certificates = self.certificates("127.0.0.1")
        before, _ = self.handshake(certificates)
        blocking = self.directory / "tls" / "self-signed.key.new"
        blocking.mkdir()
        self.assertRaises(OSError, certificates.cover, ("127.0.0.1", "turn.ns-a.example"))
        self.assertEqual(self.handshake(certificates)[0], before)
        blocking.rmdir()
        certificates.cover(("127.0.0.1", "turn.ns-a.example"))
        self.assertNotEqual(self.handshake(certificates)[0], before)

    def test_served(self) -> None:
        """What is served under a name can be asked for, and is what is in memory, whatever the files have become."""
        certificates = self.certificates("127.0.0.1", "turn.example")
        for name, origin in (("turn.example", "self-signed"), ("x.wild.example", "named")):
            if origin == "named":
                certificates.add("*.wild.example", *write_certificate(self.directory, "wild"))
            served = certificates.served(name)
            self.assertEqual(served.origin, origin)
            found, _ = self.handshake(certificates, name)
            self.assertEqual(served.certificate.not_after, found.not_valid_after_utc.timestamp())
        self.assertEqual(certificates.served("turn.example").certificate.names, ("turn.example", "127.0.0.1"))
        before = certificates.served("x.wild.example")
        before.file.write_text("rubbish")
        self.assertEqual(certificates.served("x.wild.example"), before)
        self.assertEqual(self.configured().served("turn.example").origin, "file")

    def test_files(self) -> None:
        """Another listener can be given the same files, and told of every change of which there are."""
        certificates, told = self.certificates(), list[list[str]]()
        certificates.changed.append(lambda: told.append(list(certificates.files())))
        files = write_certificate(self.directory, "turn.example")
        certificates.add("turn.example", *files)
        self.assertEqual(certificates.files()["turn.example"], tuple(map(str, files)))
        other = ServerCertificates(Path(), (), self.clock, *certificates.files()[""])
        self.assertEqual(self.handshake(other)[0], self.handshake(certificates)[0])
        certificates.remove("turn.example")
        self.assertEqual(told, [["", "turn.example"], [""]])

    def test_self_signed_is_renewed(self) -> None:
        """A node that runs for a year serves a self-signed certificate that is good."""
        certificates = self.certificates()
        first, _ = self.handshake(certificates)
        self.clock.advance(timedelta(days=340).total_seconds())
        second, _ = self.handshake(certificates)
        self.assertNotEqual(first, second)
        self.assertGreater(second.not_valid_after_utc, datetime.fromtimestamp(self.clock.seconds(), UTC))

    def test_self_signed_broken(self) -> None:
        """Rubbish in the place of the certificate is replaced."""
        (self.directory / "tls").mkdir()
        (self.directory / "tls" / "self-signed.crt").write_text("rubbish")
        (self.directory / "tls" / "self-signed.key").write_text("rubbish")
        self.assertEqual(common_name(self.handshake(self.certificates())[0]), "127.0.0.1")

    def test_choice_by_name(self) -> None:
        """SNI chooses: the exact name, the wildcard one level up, and the default for all else and for none."""
        certificates = self.configured()
        certificates.add("turn.ns-a.example", *write_certificate(self.directory, "a"))
        certificates.add("*.example", *write_certificate(self.directory, "wild"))
        chosen = {
            name: common_name(self.handshake(certificates, name)[0])
            for name in ("turn.ns-a.example", "TURN.ns-A.example", "b.example", "x.y.example", "example", None)
        }
        self.assertEqual(
            chosen,
            {
                "turn.ns-a.example": "a",
                "TURN.ns-A.example": "a",
                "b.example": "wild",
                "x.y.example": "default.example",
                "example": "default.example",
                None: "default.example",
            },
        )
        self.assertEqual(certificates.names(), ["*.example", "turn.ns-a.example"])
        certificates.remove("turn.ns-a.example")
        certificates.remove("turn.ns-a.example")
        self.assertEqual(common_name(self.handshake(certificates, "turn.ns-a.example")[0]), "default.example")

    def test_changed_file(self) -> None:
        """A changed file is served at the next handshake, the default's and a named one's."""
        certificates = self.configured("one")
        certificates.add("named.example", *write_certificate(self.directory, "two"))
        first = self.handshake(certificates)[0]
        for target, source in (("one", "three"), ("two", "four")):
            new = write_certificate(self.directory, source)
            for file, suffix in zip(new, ("crt", "key"), strict=True):
                file.replace(self.directory / f"{target}.{suffix}")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "three")
        self.assertEqual(common_name(self.handshake(certificates, "named.example")[0]), "four")
        self.assertEqual(common_name(first), "one")
        self.assertFalse(certificates.reload_if_changed())

    def test_half_changed(self) -> None:
        """While only one file of a pair is new, or a file is missing or rubbish, the old pair is served."""
        certificates = self.configured("one")
        new = write_certificate(self.directory, "two")
        new[0].replace(self.directory / "one.crt")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "one")
        (self.directory / "one.crt").rename(self.directory / "away.crt")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "one")
        (self.directory / "one.crt").write_text("rubbish")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "one")
        (self.directory / "away.crt").replace(self.directory / "one.crt")
        new[1].replace(self.directory / "one.key")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "two")

    def test_connection_outlives_change(self) -> None:
        """A handshake that has begun ends with the certificate that it began with."""
        certificates = self.configured("one")
        server = type(self).server(certificates)
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        client.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        client.bio_write(server.receive(client.bio_read(1 << 16)))
        for file, suffix in zip(write_certificate(self.directory, "two"), ("crt", "key"), strict=True):
            file.replace(self.directory / f"one.{suffix}")
        self.assertTrue(certificates.reload_if_changed())
        client.do_handshake()
        self.assertEqual(common_name(certificate_of(client)), "one")
        self.assertEqual(common_name(self.handshake(certificates)[0]), "two")

    def test_old_versions(self) -> None:
        """TLS 1.1 and before are refused, 1.2 is served."""
        certificates = self.configured()
        self.assertEqual(self.handshake(certificates, version=SSL.TLS1_2_VERSION)[1], "TLSv1.2")
        for version in (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION):
            self.assertRaises(SSL.Error, self.handshake, certificates, None, version)

    def test_bad_files(self) -> None:
        """Files that cannot be used name themselves in one line, at the start and when added."""
        good = write_certificate(self.directory, "good")
        other = write_certificate(self.directory, "other")
        locked = write_certificate(self.directory, "locked", BestAvailableEncryption(b"secret"))
        rubbish = self.directory / "rubbish"
        rubbish.write_text("rubbish")
        missing = self.directory / "missing"
        certificates = self.certificates()
        for pair, culprit in (
            ((missing, good[1]), missing),
            ((good[0], missing), missing),
            ((rubbish, good[1]), rubbish),
            ((good[0], rubbish), rubbish),
            ((good[0], other[1]), other[1]),
            (locked, locked[1]),
            ((self.directory, good[1]), self.directory),
        ):
            for attempt in (
                lambda pair=pair: certificates.add("x.example", *pair),
                lambda pair=pair: ServerCertificates(self.directory, (), self.clock, str(pair[0]), str(pair[1])),
            ):
                error = self.assertRaises(ConfigurationError, attempt)
                self.assertIn(str(culprit), error.message)
                self.assertNotIn("\n", error.message)
        self.assertEqual(certificates.names(), [])

    def test_strange_names(self) -> None:
        """A client may ask for any bytes as a name: it gets the default."""
        certificates = self.configured()
        for name in ("." * 200, "*", "a" * 255, "\x7f\x01"):
            self.assertEqual(common_name(self.handshake(certificates, name)[0]), "default.example")

    def spoken(self, *protocols: str) -> ServerCertificates:
        return ServerCertificates(self.directory / "tls", ("127.0.0.1",), self.clock, protocols=protocols)

    def test_protocols(self) -> None:
        """The first of our protocols that a client offers is taken; a client that offers none is served."""
        certificates = self.spoken("stun.turn", "stun.nat-discovery")
        for offered, taken in (
            ([b"stun.turn"], b"stun.turn"),
            ([b"stun.nat-discovery"], b"stun.nat-discovery"),
            ([b"http/1.1", b"stun.nat-discovery", b"stun.turn"], b"stun.turn"),
            ([], b""),
        ):
            client = meet(type(self).server(certificates), b"a.example", protocols=offered)
            self.assertEqual(client.get_alpn_proto_negotiated(), taken)

    def test_foreign_protocols(self) -> None:
        """A client all of whose protocols are foreign is told so in an alert (RFC 7301, 3.2)."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            server = type(self).server(self.spoken("stun.turn"))
            error = self.assertRaises(SSL.Error, meet, server, None, version, [b"h2", b"http/1.1"])
            self.assertIn("no application protocol", str(error))

    def test_no_protocols_of_ours(self) -> None:
        """Where the listener names no protocols, what a client offers does not matter."""
        client = meet(type(self).server(self.spoken()), None, protocols=[b"h2"])
        self.assertEqual(client.get_alpn_proto_negotiated(), b"")

    def test_protocols_by_name(self) -> None:
        """The certificate of a name speaks the same protocols as the default."""
        certificates = self.spoken("stun.turn")
        certificates.add("a.example", *write_certificate(self.directory, "a"))
        client = meet(type(self).server(certificates), b"a.example", protocols=[b"stun.turn"])
        self.assertEqual(client.get_alpn_proto_negotiated(), b"stun.turn")
        self.assertEqual(common_name(certificate_of(client)), "a")
        server = type(self).server(certificates)
        self.assertRaises(SSL.Error, meet, server, b"a.example", protocols=[b"h2"])

    def test_weak_ciphers(self) -> None:
        """Nothing without forward secrecy and authenticated encryption is spoken (RFC 9325, 4.2)."""
        for cipher in (b"AES128-GCM-SHA256", b"ECDHE-ECDSA-AES128-SHA", b"aNULL"):
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            context.set_cipher_list(cipher + b":@SECLEVEL=0")
            self.assertRaises(SSL.Error, meet, type(self).server(self.spoken()), context=context)

    def test_no_renegotiation(self) -> None:
        """Whoever asks for a second handshake on a connection of TLS 1.2 gets none."""
        server = type(self).server(self.spoken())
        client = meet(server, version=SSL.TLS1_2_VERSION)
        client.renegotiate()
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        answer = server.receive(client.bio_read(1 << 16))
        client.bio_write(answer)
        error = self.assertRaises(SSL.Error, client.do_handshake)
        self.assertIn("no renegotiation", str(error))


class StandardCertificateTests(CertificateTests):
    """Of the standard library's way."""

    server = StandardServer

    def test_bytes_for_a_name(self) -> None:
        """A name that is not ASCII is refused by an alert; nothing is written to stderr."""
        error = self.assertRaises(SSL.Error, meet, StandardServer(self.spoken()), b"\xff\xfe\n")
        self.assertIn("unrecognized name", str(error))

    def test_only_the_wanted_is_read(self) -> None:
        """A handshake looks at the files of the certificate that it serves, however many others there are."""
        certificates = self.configured("one")
        certificates.add("a.example", *write_certificate(self.directory, "a"))
        for file, suffix in zip(write_certificate(self.directory, "two"), ("crt", "key"), strict=True):
            file.replace(self.directory / f"one.{suffix}")
        self.assertEqual(common_name(self.handshake(certificates, "a.example")[0]), "a")
        self.assertTrue(certificates.reload_if_changed(), "the default had not been looked at")

    def test_ticket_keys(self) -> None:
        """A context, with its ticket key, is for an hour and for a number of connections."""
        certificates = self.configured()
        first = certificates.ssl_context()
        self.assertIs(certificates.ssl_context(), first)
        self.clock.advance(TICKET_KEY_LIFETIME)
        second = certificates.ssl_context()
        self.assertIsNot(second, first)
        for _ in range(TICKET_KEY_CONNECTIONS - 1):
            self.assertIs(certificates.ssl_context(), second)
        self.assertIsNot(certificates.ssl_context(), second)

    def test_tickets(self) -> None:
        """A client gets one ticket, and comes back with it under every name; the next hour it is worth nothing."""
        certificates = self.configured()
        certificates.add("a.example", *write_certificate(self.directory, "a"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def visit(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
            server = StandardServer(certificates)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = context.wrap_bio(incoming, outgoing, server_hostname="a.example", session=session)
            for _ in range(3):
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                incoming.write(server.receive(outgoing.read()))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.read(1)
            return bool(client.session_reused), client.session

        reused, session = visit(None)
        self.assertFalse(reused)
        reused, session = visit(session)
        self.assertTrue(reused)
        self.clock.advance(TICKET_KEY_LIFETIME)
        self.assertFalse(visit(session)[0])


class Hello(protocol.Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"hello")  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


class ListenerTests(TestCase):
    """The context factory under Twisted's own TLS."""

    timeout = 120

    async def test_listener(self) -> None:
        """A real client gets the certificate of the name that it asks for, over a real socket."""
        import socket

        directory = Path(self.mktemp())
        certificates = ServerCertificates(directory, ("127.0.0.1",), reactor)
        certificates.add("named.example", *write_certificate(directory, "named"))
        endpoint = SSL4ServerEndpoint(reactor, 0, certificates.context_factory(), interface="127.0.0.1")
        port = await endpoint.listen(protocol.Factory.forProtocol(Hello))
        self.addCleanup(port.stopListening)

        def fetch(name: str) -> tuple[bytes, bytes]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", port.getHost().port), 10) as raw,
                context.wrap_socket(raw, server_hostname=name) as connection,
            ):
                return connection.recv(100), connection.getpeercert(True) or b""

        for name, expected in (("named.example", "named"), ("other.example", "127.0.0.1")):
            data, certificate = await deferToThread(fetch, name)
            self.assertEqual(data, b"hello")
            self.assertEqual(common_name(x509.load_der_x509_certificate(certificate)), expected)
