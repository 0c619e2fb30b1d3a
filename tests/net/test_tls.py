"""Certificates of a listener, by real TLS connections."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

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
from twisted.internet import reactor
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.errors import ConfigurationError
from orama.net.tls import ServerCertificates

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


def handshake(
    certificates: ServerCertificates, name: str | None = None, version: int | None = None
) -> tuple[x509.Certificate, str]:
    """The certificate and the TLS version that a client gets that asks for *name*; over memory, no socket."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    client = SSL.Connection(context, None)
    client.set_connect_state()
    if name is not None:
        client.set_tlsext_host_name(name.encode())
    server = certificates.context_factory().serverConnectionForTLS(None)
    server.set_accept_state()
    pending = [client, server]
    for _ in range(20):
        for here, there in ((client, server), (server, client)):
            try:
                here.do_handshake()
            except SSL.WantReadError:
                pass
            else:
                if here in pending:
                    pending.remove(here)
            try:
                there.bio_write(here.bio_read(65536))
            except SSL.WantReadError:
                pass
        if not pending:
            break
    found = client.get_peer_certificate(as_cryptography=True)
    assert found is not None
    return found, client.get_protocol_version_name()


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.clock = Clock()
        self.clock.advance(NOW)

    def certificates(self, *hosts: str) -> ServerCertificates:
        return ServerCertificates(self.directory / "tls", hosts or ("127.0.0.1", "turn.example"), self.clock)

    def configured(self, name: str = "default.example") -> ServerCertificates:
        files = write_certificate(self.directory, name)
        return ServerCertificates(self.directory / "tls", (), self.clock, str(files[0]), str(files[1]))

    def test_self_signed(self) -> None:
        """Without files there is a self-signed certificate with IPs and names; only we can read it."""
        certificates = self.certificates("127.0.0.1", "::1", "turn.example")
        found, version = handshake(certificates, "turn.example")
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
        first, _ = handshake(self.certificates())
        self.assertEqual(handshake(self.certificates())[0], first)
        other, _ = handshake(self.certificates("127.0.0.1", "other.example"))
        self.assertNotEqual(other, first)
        self.clock.advance(timedelta(days=340).total_seconds())
        self.assertNotEqual(handshake(self.certificates("127.0.0.1", "other.example"))[0], other)

    def test_cover(self) -> None:
        """A running node's self-signed certificate takes new names at the next handshake; given files stay."""
        certificates = self.certificates("127.0.0.1")
        handshake(certificates)
        certificates.cover(("127.0.0.1", "turn.ns-a.example"))
        found, _ = handshake(certificates, "turn.ns-a.example")
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["turn.ns-a.example"])
        configured = self.configured()
        before, _ = handshake(configured)
        configured.cover(("other.example",))
        self.assertEqual(handshake(configured)[0], before)

    def test_cover_without_a_disk(self) -> None:
        """When no new certificate can be written the old one is served on, and the next attempt counts."""
        certificates = self.certificates("127.0.0.1")
        before, _ = handshake(certificates)
        blocking = self.directory / "tls" / "self-signed.key.new"
        blocking.mkdir()
        self.assertRaises(OSError, certificates.cover, ("127.0.0.1", "turn.ns-a.example"))
        self.assertEqual(handshake(certificates)[0], before)
        blocking.rmdir()
        certificates.cover(("127.0.0.1", "turn.ns-a.example"))
        self.assertNotEqual(handshake(certificates)[0], before)

    def test_served(self) -> None:
        """What is served under a name can be asked for, and is what is in memory, whatever the files have become."""
        certificates = self.certificates("127.0.0.1", "turn.example")
        for name, origin in (("turn.example", "self-signed"), ("x.wild.example", "named")):
            if origin == "named":
                certificates.add("*.wild.example", *write_certificate(self.directory, "wild"))
            served = certificates.served(name)
            self.assertEqual(served.origin, origin)
            found, _ = handshake(certificates, name)
            self.assertEqual(served.certificate.not_after, found.not_valid_after_utc.timestamp())
        self.assertEqual(certificates.served("turn.example").certificate.names, ("turn.example", "127.0.0.1"))
        before = certificates.served("x.wild.example")
        before.file.write_text("rubbish")
        self.assertEqual(certificates.served("x.wild.example"), before)
        self.assertEqual(self.configured().served("turn.example").origin, "file")

    def test_self_signed_is_renewed(self) -> None:
        """A node that runs for a year serves a self-signed certificate that is good."""
        certificates = self.certificates()
        first, _ = handshake(certificates)
        self.clock.advance(timedelta(days=340).total_seconds())
        second, _ = handshake(certificates)
        self.assertNotEqual(first, second)
        self.assertGreater(second.not_valid_after_utc, datetime.fromtimestamp(self.clock.seconds(), UTC))

    def test_self_signed_broken(self) -> None:
        """Rubbish in the place of the certificate is replaced."""
        (self.directory / "tls").mkdir()
        (self.directory / "tls" / "self-signed.crt").write_text("rubbish")
        (self.directory / "tls" / "self-signed.key").write_text("rubbish")
        self.assertEqual(common_name(handshake(self.certificates())[0]), "127.0.0.1")

    def test_choice_by_name(self) -> None:
        """SNI chooses: the exact name, the wildcard one level up, and the default for all else and for none."""
        certificates = self.configured()
        certificates.add("turn.ns-a.example", *write_certificate(self.directory, "a"))
        certificates.add("*.example", *write_certificate(self.directory, "wild"))
        chosen = {
            name: common_name(handshake(certificates, name)[0])
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
        self.assertEqual(common_name(handshake(certificates, "turn.ns-a.example")[0]), "default.example")

    def test_changed_file(self) -> None:
        """A changed file is served at the next handshake, the default's and a named one's."""
        certificates = self.configured("one")
        certificates.add("named.example", *write_certificate(self.directory, "two"))
        first = handshake(certificates)[0]
        for target, source in (("one", "three"), ("two", "four")):
            new = write_certificate(self.directory, source)
            for file, suffix in zip(new, ("crt", "key"), strict=True):
                file.replace(self.directory / f"{target}.{suffix}")
        self.assertEqual(common_name(handshake(certificates)[0]), "three")
        self.assertEqual(common_name(handshake(certificates, "named.example")[0]), "four")
        self.assertEqual(common_name(first), "one")
        self.assertFalse(certificates.reload_if_changed())

    def test_half_changed(self) -> None:
        """While only one file of a pair is new, or a file is missing or rubbish, the old pair is served."""
        certificates = self.configured("one")
        new = write_certificate(self.directory, "two")
        new[0].replace(self.directory / "one.crt")
        self.assertEqual(common_name(handshake(certificates)[0]), "one")
        (self.directory / "one.crt").rename(self.directory / "away.crt")
        self.assertEqual(common_name(handshake(certificates)[0]), "one")
        (self.directory / "one.crt").write_text("rubbish")
        self.assertEqual(common_name(handshake(certificates)[0]), "one")
        (self.directory / "away.crt").replace(self.directory / "one.crt")
        new[1].replace(self.directory / "one.key")
        self.assertEqual(common_name(handshake(certificates)[0]), "two")

    def test_connection_outlives_change(self) -> None:
        """A handshake that has begun ends with the certificate that it began with."""
        certificates = self.configured("one")
        connection = certificates.context_factory().serverConnectionForTLS(None)
        before = connection.get_context()
        for file, suffix in zip(write_certificate(self.directory, "two"), ("crt", "key"), strict=True):
            file.replace(self.directory / f"one.{suffix}")
        self.assertTrue(certificates.reload_if_changed())
        self.assertIs(connection.get_context(), before)

    def test_old_versions(self) -> None:
        """TLS 1.1 and before are refused, 1.2 is served."""
        certificates = self.configured()
        self.assertEqual(handshake(certificates, version=SSL.TLS1_2_VERSION)[1], "TLSv1.2")
        for version in (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION):
            self.assertRaises(SSL.Error, handshake, certificates, None, version)

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
            self.assertEqual(common_name(handshake(certificates, name)[0]), "default.example")


class Hello(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"hello")  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


class ListenerTests(TestCase):
    """The context factory under Twisted's own TLS."""

    timeout = 20

    async def test_listener(self) -> None:
        """A real client gets the certificate of the name that it asks for, over a real socket."""
        import socket
        import ssl

        directory = Path(self.mktemp())
        certificates = ServerCertificates(directory, ("127.0.0.1",), reactor)
        certificates.add("named.example", *write_certificate(directory, "named"))
        endpoint = SSL4ServerEndpoint(reactor, 0, certificates.context_factory(), interface="127.0.0.1")
        port = await endpoint.listen(Factory.forProtocol(Hello))
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
