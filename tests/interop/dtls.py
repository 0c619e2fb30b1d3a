"""A DTLS client by pyOpenSSL, datagram by datagram (RFC 6347), for whoever brings the way to the server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL

_HEADER = 13


class DtlsClient:
    """One handshake with a fresh certificate.

    :ivar fingerprint: of the certificate, as ``a=fingerprint:sha-256`` has it.
    """

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        dated = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        certificate = dated.sign(key, SHA256())
        self.fingerprint = certificate.fingerprint(SHA256()).hex(":").upper()
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        context.set_tlsext_use_srtp(b"SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80")
        self._connection = SSL.Connection(context)
        self._connection.set_connect_state()
        self._connection.set_ciphertext_mtu(1200)

    def hello(self) -> list[bytes]:
        """The first flight."""
        self._step()
        return self._datagrams()

    def handshake(self, send: Callable[[bytes], None], receive: Callable[[], bytes | None]) -> bool:
        """Whether it came to its end, *receive* giving None when there is silence."""
        for datagram in self.hello():
            send(datagram)
        while not self._step():
            for datagram in self._datagrams():
                send(datagram)
            answer = receive()
            if answer is None:
                return False
            if 19 < answer[0] < 64:
                self._connection.bio_write(answer)
        for datagram in self._datagrams():
            send(datagram)
        return True

    def export(self, length: int) -> bytes:
        """Keying material for SRTP (RFC 5764, 4.2)."""
        return self._connection.export_keying_material(b"EXTRACTOR-dtls_srtp", length)

    def sealed(self, data: bytes) -> list[bytes]:
        """*data* on its way to the other end."""
        self._connection.send(data)
        return self._datagrams()

    def _step(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def _datagrams(self) -> list[bytes]:
        """What waits to be sent, a record a datagram."""
        try:
            data = self._connection.bio_read(65536)
        except SSL.WantReadError:
            return []
        records = []
        while data:
            length = _HEADER + int.from_bytes(data[11:13], "big")
            records.append(data[:length])
            data = data[length:]
        return records
