"""What can be looked at from outside, and what is seen there: the values between the probes and the checks."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from orama.cli.environments import Address
from orama.net.certificate import Certificate


@frozen
class DnsProbe:
    """Which addresses *server* has for *host*; with *ipv6*, also AAAA."""

    server: Address
    host: str
    ipv6: bool = False


@frozen
class CertificateProbe:
    """Which certificate a client that wants *host* is shown at *address*."""

    address: Address
    host: str


@frozen
class ReachProbe:
    """Whether something answers at *address*: STUN over ``udp``, a connection over ``tcp``."""

    address: Address
    proto: str


@frozen
class Resolved:
    """``error`` says why there was no answer; a name that does not exist has no addresses."""

    probe: DnsProbe
    addresses: frozenset[str]
    error: str = ""


@frozen
class Certified:
    """``certificate`` is None when there was no handshake; then ``error`` says why.

    :ivar distrust: why a client on this machine would not trust it; empty when it would.
    """

    probe: CertificateProbe
    certificate: Certificate | None
    self_signed: bool = False
    distrust: str = ""
    error: str = ""


@frozen
class Reached:
    """``error`` says why not; empty when something answers."""

    probe: ReachProbe
    error: str = ""


Probe: TypeAlias = DnsProbe | CertificateProbe | ReachProbe
Seen: TypeAlias = Resolved | Certified | Reached
