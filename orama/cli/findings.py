"""What an inspection says: one finding a check and place, and the cluster that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address

from attrs import frozen

from orama.cli.asking import Answer
from orama.cli.environments import DNS_PORT, Address
from orama.cli.reports import NodeReport, ServedNamespace
from orama.cli.seen import Probe, Seen


class Status(StrEnum):
    """How a check came out."""

    PASS = "pass"  # noqa: S105 (no password)
    WARN = "warn"
    FAIL = "fail"


class Severity(StrEnum):
    """What it would mean if the check failed."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@frozen
class Finding:
    """One check.

    :ivar id: stable name: ``node.{id}.…`` or ``ns.{namespace}.…``.
    :ivar node: where, when it is about one node of a namespace.
    :ivar hint: what to do, when it did not pass.
    """

    id: str
    status: Status
    severity: Severity
    message: str
    hint: str = ""
    node: str = ""
    namespace: str = ""


@frozen
class Cluster:
    """All that is known when the checks are made.

    :ivar servers: DNS servers that were named to us; none means those that the nodes say they are.
    :ivar now: Unix time.
    """

    answers: tuple[Answer, ...]
    now: float
    servers: tuple[Address, ...] = ()
    base_domain: str = ""

    @property
    def reports(self) -> tuple[NodeReport, ...]:
        return tuple(answer.report for answer in self.answers if answer.report is not None)

    @property
    def silent(self) -> tuple[Answer, ...]:
        """Who has not told anything."""
        return tuple(answer for answer in self.answers if answer.report is None)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All that any node has told of."""
        return tuple(sorted({each.name for report in self.reports for each in report.namespaces}))

    @property
    def zone(self) -> str:
        return self.base_domain or next((report.zone for report in self.reports if report.zone), "")

    @property
    def dns_servers(self) -> tuple[Address, ...]:
        if self.servers:
            return self.servers
        found = {
            Address(report.public_ip, report.port("dns", "udp") or DNS_PORT)
            for report in self.reports
            if report.dns_listening
        }
        return tuple(sorted(found, key=str))

    def serving(self, namespace: str) -> tuple[tuple[NodeReport, ServedNamespace], ...]:
        """What each node says of *namespace*, of those that say something."""
        found = ((report, report.namespace(namespace)) for report in self.reports)
        return tuple((report, served) for report, served in found if served is not None)

    def holders(self, namespace: str, role: str) -> tuple[tuple[NodeReport, ServedNamespace], ...]:
        """The nodes that shall have *role* in *namespace*."""
        return tuple(
            (report, served) for report, served in self.serving(namespace) if served.enabled and role in served.roles
        )

    def turn_host(self, namespace: str, report: NodeReport) -> str:
        """The name under which clients reach the TURN server of a node."""
        return f"turn.ns-{namespace}.{self.zone}" if self.zone else report.public_ip


#: What was seen by each probe.
Sight = Mapping[Probe, Seen]


def same_ip(text: str) -> str:
    """One spelling of an address."""
    try:
        return str(ip_address(text))
    except ValueError:
        return text
