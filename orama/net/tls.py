"""TLS for listeners: the certificate chosen by name at each handshake, from files that may change.

TLS 1.2 and up (RFC 8446, RFC 9325). A name has the certificate that was added for it, or for the
wildcard above it; every other client, and one that names nobody, gets the default: files from the
configuration, or a self-signed certificate kept in a directory. A file that has changed is read before
the next handshake; connections that stand are not touched, and files that cannot be used change nothing.

There are two ways in: :meth:`ServerCertificates.context_factory` for Twisted's TLS, which is pyOpenSSL's, and
:meth:`ServerCertificates.ssl_context` with :meth:`ServerCertificates.refusal` for the standard library's. Protocols
(RFC 7301), versions, ciphers and certificates are the same on both.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from attrs import define, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from orama.errors import ConfigurationError
from orama.net.certificate import Certificate
from orama.net.hello import ClientHello

#: The AEAD suites with forward secrecy of RFC 9325, 4.2; TLS 1.3 has its own list.
CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:"
    b"ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
)
SELF_SIGNED_LIFETIME = timedelta(days=365)
#: A self-signed certificate that ends sooner than this is made anew.
SELF_SIGNED_MARGIN = timedelta(days=30)
#: Seconds between two looks at how long the self-signed certificate lasts.
SELF_SIGNED_LOOK = 3600.0
#: Seconds that the key for session tickets stays, and connections that may share it: who gets hold of it reads what
#: was said by TLS 1.2 under its tickets (RFC 5077, 5.5). OpenSSL makes one for each context, and never another.
TICKET_KEY_LIFETIME = 3600.0
TICKET_KEY_CONNECTIONS = 4096

_log = Logger()
#: What tells that a file is another one: inode, size and time of change.
_Stamp = tuple[int, int, int]


@define(eq=False)
class _Entry:
    """One certificate: its files, how they looked when they were read, and what was made of them."""

    certificate: Path
    private_key: Path
    stamps: tuple[_Stamp | None, _Stamp | None]
    context: SSL.Context
    #: The same for the standard library's ssl.
    standard: ssl.SSLContext

    def certificate_served(self) -> Certificate:
        """What the context has, whatever has become of the files since."""
        leaf = SSL.Connection(self.context, None).get_certificate(as_cryptography=True)
        assert leaf is not None
        return Certificate.of(leaf)


@define(eq=False)
class _Front:
    """What connections of the standard library's way begin with."""

    context: ssl.SSLContext
    made: float
    connections: int = 0


@frozen
class Served:
    """What a client gets that asks for a name."""

    certificate: Certificate
    #: The PEM file that it was read from.
    file: Path
    #: "named" for one that was added, else "file" or "self-signed" for the default.
    origin: str


class ServerCertificates:
    """All certificates of a listener.

    :param directory: where the self-signed certificate is kept (``self-signed.crt`` and ``.key``, both 0600).
    :param hosts: IPs and names for the self-signed certificate, the first is its subject. When they
        change it is made anew.
    :param certificate: PEM file with the chain of the default certificate; empty for the self-signed one.
    :param protocols: those that the listener speaks (RFC 7301): the first of them that a client offers is taken, a
        client that offers only others is refused, and one that offers none is served. Without any, ALPN is ignored.
    :raises ConfigurationError: the files of the default certificate cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        hosts: Iterable[str],
        clock: IReactorTime,
        certificate: str = "",
        private_key: str = "",
        *,
        protocols: Sequence[str] = (),
    ) -> None:
        self.protocols = tuple(protocols)
        #: Called after each change of which files there are.
        self.changed: list[Callable[[], None]] = []
        self._directory = directory
        self._hosts = _distinct(hosts)
        self._clock = clock
        self._self_signed = not certificate
        self._looked = 0.0
        if certificate:
            files = Path(certificate), Path(private_key or certificate)
        else:
            files = directory / "self-signed.crt", directory / "self-signed.key"
            self._keep_self_signed(*files)
        self._default = self._load(*files)
        self._by_name: dict[str, _Entry] = {}
        self._front = self._new_front()

    def add(self, name: str, certificate: str | Path, private_key: str | Path) -> None:
        """Serve *name* (or ``*.parent`` for all names directly below) with these files from now on.

        :raises ConfigurationError: they cannot be used.
        """
        self._by_name[_normal(name)] = self._load(Path(certificate), Path(private_key))
        self._tell()

    def remove(self, name: str) -> None:
        """Serve *name* with the default again; nothing happens when it was not there."""
        self._by_name.pop(_normal(name), None)
        self._tell()

    def files(self) -> dict[str, tuple[str, str]]:
        """Certificate and private key of each name; those of the empty name are the default's."""
        entries = {"": self._default, **self._by_name}
        return {name: (str(entry.certificate), str(entry.private_key)) for name, entry in entries.items()}

    def _tell(self) -> None:
        for changed in tuple(self.changed):
            changed()

    def names(self) -> list[str]:
        return sorted(self._by_name)

    def served(self, name: str) -> Served:
        """What is served to a client that asks for *name*."""
        entry = self._entry(name)
        if entry is not None:
            return Served(entry.certificate_served(), entry.certificate, "named")
        origin = "self-signed" if self._self_signed else "file"
        return Served(self._default.certificate_served(), self._default.certificate, origin)

    def cover(self, hosts: Iterable[str]) -> None:
        """Let the self-signed certificate be for *hosts*; nothing happens where files were given.

        :raises OSError: a new one cannot be written; the old one is served on.
        """
        before, self._hosts = self._hosts, _distinct(hosts)
        if self._self_signed and self._hosts != before:
            try:
                self._keep_self_signed(self._default.certificate, self._default.private_key)
            except OSError:
                self._hosts = before
                raise
            self.reload_if_changed()

    def reload_if_changed(self) -> bool:
        """Read what has changed on disk; True when something new is served. Bad files change nothing."""
        changed = False
        self._renew_self_signed()
        for entry in (self._default, *self._by_name.values()):
            changed = self._reload(entry) or changed
        return changed

    def _renew_self_signed(self) -> None:
        if self._self_signed and self._clock.seconds() - self._looked > SELF_SIGNED_LOOK:
            try:
                self._keep_self_signed(self._default.certificate, self._default.private_key)
            except OSError as error:
                _log.error("certificate kept as it was: {error}", error=str(error))

    def _reload(self, entry: _Entry) -> bool:
        """Read *entry*'s files when they have changed; True when something new is served."""
        stamps = _stamp(entry.certificate), _stamp(entry.private_key)
        if stamps == entry.stamps:
            return False
        entry.stamps = stamps
        try:
            entry.context, entry.standard = self._read(entry.certificate, entry.private_key)
        except ConfigurationError as error:
            _log.error("certificate kept as it was: {error}", error=error.message)
            return False
        _log.info("certificate {file} read again", file=str(entry.certificate))
        return True

    def context_factory(self) -> ConnectionCreator:
        """What ``reactor.listenSSL`` and ``SSL4ServerEndpoint`` take for a context factory."""
        return ConnectionCreator(self)

    def ssl_context(self) -> ssl.SSLContext:
        """What the next connection is wrapped with, by the standard library; to be asked for anew for each.

        It has no certificate: each handshake gets the one of the name that its client wants, from files that are
        read again when they have changed.
        """
        now = self._clock.seconds()
        if self._front.connections >= TICKET_KEY_CONNECTIONS or not 0 <= now - self._front.made < TICKET_KEY_LIFETIME:
            self._front = self._new_front()
        self._front.connections += 1
        return self._front.context

    def refusal(self, hello: ClientHello) -> bytes:
        """The alert that a client is to get for its *hello* instead of an answer; empty when it is to be answered."""
        alert = hello.refusal(self.protocols)
        return b"" if alert is None else alert.record()

    def _new_front(self) -> _Front:
        context = _standard_context(self.protocols)
        context.sni_callback = self._wanted
        return _Front(context, self._clock.seconds())

    def _wanted(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        """A client of the standard library's way has said which name it wants, or that it wants none."""
        entry = (self._entry(name) if name else None) or self._default
        if entry is self._default:
            self._renew_self_signed()
        self._reload(entry)
        connection.context = entry.standard

    def choose(self, name: str | None) -> SSL.Context:
        """The context for the name that a client asked for."""
        entry = self._entry(name) if name else None
        return (entry or self._default).context

    def _entry(self, name: str) -> _Entry | None:
        normal = _normal(name)
        return self._by_name.get(normal) or self._by_name.get("*." + normal.partition(".")[2])

    def _named(self, connection: SSL.Connection) -> None:
        """A client has said which name it wants (RFC 6066, 3)."""
        name = connection.get_servername()
        if name:
            connection.set_context(self.choose(name.decode("ascii", "replace")))

    def _offered(self, _: SSL.Connection, offered: list[bytes]) -> bytes:
        """A client has said which protocols it speaks (RFC 7301, 3.2)."""
        for protocol in self.protocols:
            if protocol.encode() in offered:
                return protocol.encode()
        # pyOpenSSL goes on without a protocol when it is told that there is none; what is raised becomes the alert.
        raise SSL.Error([("orama", "alpn", "no application protocol")])

    def _read(self, certificate: Path, private_key: Path) -> tuple[SSL.Context, ssl.SSLContext]:
        context = _context(certificate, private_key)
        context.set_tlsext_servername_callback(self._named)
        if self.protocols:
            context.set_alpn_select_callback(self._offered)
        standard = _standard_context(self.protocols)
        try:
            standard.load_cert_chain(certificate, private_key, b"")
        except (OSError, ValueError) as error:  # it was good a moment ago
            raise ConfigurationError(f"{certificate}: {error}") from None
        return context, standard

    def _load(self, certificate: Path, private_key: Path) -> _Entry:
        stamps = _stamp(certificate), _stamp(private_key)
        return _Entry(certificate, private_key, stamps, *self._read(certificate, private_key))

    def _keep_self_signed(self, certificate: Path, private_key: Path) -> None:
        """Make the self-signed certificate unless there is one that will do."""
        self._looked = self._clock.seconds()
        now = datetime.fromtimestamp(self._clock.seconds(), UTC)
        try:
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            good = list(names) == _names(self._hosts) and found.not_valid_before_utc <= now
            if good and now + SELF_SIGNED_MARGIN < found.not_valid_after_utc and private_key.exists():
                return
        except (OSError, ValueError, x509.ExtensionNotFound):
            pass
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, (self._hosts or ("orama",))[0][:64])])
        builder = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + SELF_SIGNED_LIFETIME)
            .add_extension(x509.SubjectAlternativeName(_names(self._hosts)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(private_key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        _write(certificate, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


@implementer(IOpenSSLServerConnectionCreator)
class ConnectionCreator:
    """Makes the TLS connection of each client that comes in."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._certificates = certificates

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        self._certificates.reload_if_changed()
        return SSL.Connection(self._certificates.choose(None), None)


def _distinct(hosts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(host for host in hosts if host))


def _normal(name: str) -> str:
    return name.lower().rstrip(".")


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names or [x509.DNSName("localhost")]


def _stamp(file: Path) -> _Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _context(certificate: Path, private_key: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(CIPHERS)
    # Who comes back has a ticket; nothing is remembered here.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # A key with a passphrase is refused; OpenSSL would ask for it on the terminal.
    context.set_passwd_cb(lambda *_: b"")
    for file in (certificate, private_key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror}") from None
    try:
        context.use_certificate_chain_file(str(certificate))
    except SSL.Error:
        raise ConfigurationError(f"{certificate}: no PEM certificate that OpenSSL can use") from None
    try:
        context.use_privatekey_file(str(private_key))
        context.check_privatekey()
    except SSL.Error:
        raise ConfigurationError(f"{private_key}: no PEM private key for the certificate {certificate}") from None
    return context


def _standard_context(protocols: Sequence[str]) -> ssl.SSLContext:
    """Without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS.decode())
    context.num_tickets = 1
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def _write(file: Path, content: bytes) -> None:
    """Replace *file* in one step; nobody but us may read it."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    new.replace(file)
