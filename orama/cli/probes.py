"""Looking at a cluster from outside, as its clients do: DNS, TLS on the TURN port, STUN, and open ports.

Each probe is bounded in time and gives back what it saw, or why it saw nothing; it never raises. What that means is
for :mod:`orama.cli.inspection`.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from twisted.names import dns

from orama.cli.asking import Progress, in_threads, limited, reason
from orama.cli.environments import Address
from orama.cli.seen import (
    CertificateProbe,
    Certified,
    DnsProbe,
    Probe,
    Reached,
    ReachProbe,
    Resolved,
    Seen,
)
from orama.net.certificate import Certificate
from orama.wire import stun

#: Seconds for one probe.
TIMEOUT = 5.0
#: Seconds after which a datagram is sent again.
RESEND = (0.5, 1.0, 1.5, 2.0)
_DATAGRAM = 4096


def look(probes: Sequence[Probe], progress: Progress) -> tuple[Seen, ...]:
    """What is seen by each of *probes*, all at once."""
    return in_threads(_look, probes, progress)


def _look(probe: Probe) -> Seen:
    if isinstance(probe, DnsProbe):
        return resolve(probe)
    if isinstance(probe, CertificateProbe):
        return certify(probe)
    return reach(probe)


# -- DNS --------------------------------------------------------------------------------------------


def resolve(probe: DnsProbe) -> Resolved:
    """The addresses that one server has for a host; a name that it denies has none."""
    addresses: set[str] = set()
    try:
        for kind in (dns.A, dns.AAAA) if probe.ipv6 else (dns.A,):
            addresses |= _resolve(probe.server, probe.host, kind)
    except (OSError, ValueError, EOFError) as error:
        return Resolved(probe, frozenset(), reason(error))
    return Resolved(probe, frozenset(addresses))


def _resolve(server: Address, host: str, kind: int) -> set[str]:
    """:raises ValueError: the server does not answer the question."""
    question = dns.Message(id=secrets.randbelow(1 << 16), recDes=0)
    question.addQuery(host.encode("ascii"), kind)
    asked = question.toStr()
    answer = dns.Message()

    def fits(data: bytes) -> bool:
        nonlocal answer
        answer = dns.Message()
        with suppress(Exception):  # any bytes may come, and the parser is not total
            answer.fromStr(data)
            return bool(answer.answer) and answer.id == question.id and answer.queries == question.queries
        return False

    with _udp(server) as sock:
        _exchange(sock, asked, fits)
    if answer.trunc:
        with socket.create_connection((server.host, server.port), TIMEOUT) as sock, limited(sock, TIMEOUT):
            sock.sendall(len(asked).to_bytes(2, "big") + asked)
            length = int.from_bytes(_exactly(sock, 2), "big")
            if not fits(_exactly(sock, length)):
                raise ValueError("its answer over TCP is none to the question")
    if answer.rCode == dns.ENAME:
        return set()
    if answer.rCode != dns.OK:
        raise ValueError(f"it answers with {_RCODES.get(answer.rCode, answer.rCode)}")
    return {_address(record.payload) for record in answer.answers if record.type == kind}


def _address(record: Any) -> str:
    return str(ip_address(record.address))


_RCODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP", dns.EREFUSED: "REFUSED"}


# -- TLS --------------------------------------------------------------------------------------------


def certify(probe: CertificateProbe) -> Certified:
    """The certificate that a client of the host is shown, and why it would not trust it."""
    trusting, careless = ssl.create_default_context(), ssl.create_default_context()
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    distrust = ""
    try:
        try:
            leaf = _leaf(probe, trusting)
        except ssl.SSLCertVerificationError as error:
            distrust = error.verify_message
            leaf = _leaf(probe, careless)
        certificate = x509.load_der_x509_certificate(leaf)
        made = Certificate.of(certificate)
    except (OSError, ValueError) as error:
        return Certified(probe, None, error=reason(error))
    return Certified(probe, made, certificate.issuer == certificate.subject, distrust)


def _leaf(probe: CertificateProbe, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((probe.address.host, probe.address.port), TIMEOUT) as sock,
        limited(sock, TIMEOUT),
        context.wrap_socket(sock, server_hostname=probe.host) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


# -- ports ------------------------------------------------------------------------------------------


def reach(probe: ReachProbe) -> Reached:
    """Whether something answers there: STUN over UDP (RFC 8489, 6.2.1), a connection over TCP."""
    try:
        if probe.proto == "udp":
            with _udp(probe.address) as sock:
                _bind(sock)
        else:
            socket.create_connection((probe.address.host, probe.address.port), TIMEOUT).close()
    except OSError as error:
        return Reached(probe, reason(error))
    return Reached(probe)


def _bind(sock: socket.socket) -> None:
    transaction = secrets.token_bytes(12)

    def fits(data: bytes) -> bool:
        try:
            message = stun.parse(data)
        except stun.StunError:
            return False
        return message.transaction_id == transaction and message.cls is stun.Class.SUCCESS

    _exchange(sock, stun.build(stun.Method.BINDING, stun.Class.REQUEST, transaction), fits)


def _udp(address: Address) -> socket.socket:
    """A socket that hears this address alone."""
    family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _exchange(sock: socket.socket, question: bytes, fits: Callable[[bytes], bool]) -> None:
    """Send *question* until an answer fits.

    :raises OSError: none does in time.
    """
    for wait in RESEND:
        sock.send(question)
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data = sock.recv(_DATAGRAM)
            except TimeoutError:
                break
            if fits(data):
                return
    raise TimeoutError


def _exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = sock.recv(count - len(found))
        if not data:
            raise ValueError("it hung up")
        found += data
    return found
