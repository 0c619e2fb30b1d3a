"""The checks of each namespace: what is wanted of it against what is seen, on every node and from outside.

Nothing that is wanted is ever skipped for being down. A node that says nothing fails what it may have to do.
"""

from __future__ import annotations

from collections.abc import Iterator

from orama.cli.environments import Address
from orama.cli.findings import Cluster, Finding, Severity, Sight, Status, same_ip
from orama.cli.reports import NodeReport
from orama.cli.seen import CertificateProbe, Certified, DnsProbe, Probe, Reached, ReachProbe, Resolved
from orama.net.certificate import day

ROLES = ("sfu", "turn")
_NAMES = {"sfu": "the SFU", "turn": "TURN"}
#: Listeners that clients of TURN come to: the name in a report, and the protocol.
_LISTENERS = (("turn", "udp"), ("turn", "tcp"), ("turns", "tcp"))
_NOT_LOOKED = "nobody has looked"


def probes(cluster: Cluster, namespace: str) -> Iterator[Probe]:
    """What has to be looked at for :func:`check_namespace`."""
    holders = cluster.holders(namespace, "turn")
    if holders:
        yield from _dns_probes(cluster, namespace)
    for report, _ in holders:
        if (certificate := _certificate_probe(cluster, namespace, report)) is not None:
            yield certificate
        for probe in _reach_probes(report).values():
            if probe is not None:
                yield probe


def check_namespace(cluster: Cluster, namespace: str, sight: Sight) -> Iterator[Finding]:
    """The findings of *namespace*; none where nothing is wanted and nothing runs."""
    yield from _agreement(cluster, namespace)
    yield from _leftovers(cluster, namespace)
    for role in ROLES:
        yield from _up(cluster, namespace, role)
        yield from _coverage(cluster, namespace, role)
    yield from _troubles(cluster, namespace)
    yield from _secret(cluster, namespace)
    holders = cluster.holders(namespace, "turn")
    if holders:
        yield from _dns(cluster, namespace, sight)
    for report, _ in holders:
        yield _certificate(cluster, namespace, report, sight)
        yield _ports(namespace, report, sight)


# -- what nodes say ---------------------------------------------------------------------------------


def _wanted(cluster: Cluster, namespace: str, role: str) -> int:
    """On how many nodes *role* shall run."""
    said = [served.wanted(role) for _, served in cluster.serving(namespace) if served.enabled]
    return max(said, default=0)


def _up(cluster: Cluster, namespace: str, role: str) -> Iterator[Finding]:
    """Each node that shall have *role*: does it run?"""
    about = f"ns.{namespace}.{role}_up"
    holders = cluster.holders(namespace, role)
    for report, served in holders:
        if served.up(role):
            text = f"{_NAMES[role]} runs"
            yield Finding(about, Status.PASS, Severity.HIGH, text, "", report.node_id, namespace)
        else:
            text = f"{_NAMES[role]} does not run" + (f": {served.error}" if served.error else "")
            hint = f"On that node: journalctl -u orama-webrtc -u orama-namespace-{role}@{namespace}"
            yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, report.node_id, namespace)
    for node in _unknown(cluster, namespace, role):
        text = f"{_NAMES[role]} shall run there, and the node does not answer"
        hint = "Bring the node back, or remove it: orama node remove"
        yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, node, namespace)


def _unknown(cluster: Cluster, namespace: str, role: str) -> Iterator[str]:
    """The nodes that have *role* and say nothing; when nobody says who has it, all that say nothing and may."""
    told = {report.node_id for report in cluster.reports}
    named = {node for _, served in cluster.serving(namespace) if served.enabled for node in served.nodes(role)}
    if named:
        yield from sorted(named - told)
    elif len(cluster.holders(namespace, role)) < _wanted(cluster, namespace, role):
        yield from (answer.node for answer in cluster.silent)


def _coverage(cluster: Cluster, namespace: str, role: str) -> Iterator[Finding]:
    """Does *role* run on as many nodes as it shall?"""
    wanted = _wanted(cluster, namespace, role)
    if wanted <= 0:
        return
    seen = len({report.node_id for report, served in cluster.holders(namespace, role) if served.up(role)})
    about, text = f"ns.{namespace}.{role}_coverage", f"{_NAMES[role]} runs on {seen} of {wanted} nodes"
    if seen >= wanted:
        yield Finding(about, Status.PASS, Severity.HIGH, text, namespace=namespace)
    else:
        hint = "See which nodes are down or draining: orama node list"
        yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, namespace=namespace)


def _agreement(cluster: Cluster, namespace: str) -> Iterator[Finding]:
    """Do the nodes that know the namespace want the same of it?"""
    about = f"ns.{namespace}.agreement"
    said: dict[tuple[bool, int, int], list[str]] = {}
    for report, served in cluster.serving(namespace):
        said.setdefault((served.enabled, served.sfu_wanted, served.turn_wanted), []).append(report.node_id)
    if len(said) > 1:
        text = "; ".join(
            f"{', '.join(nodes)}: {f'{sfu} SFU, {turn} TURN' if enabled else 'not enabled'}"
            for (enabled, sfu, turn), nodes in said.items()
        )
        hint = "A node that has lost the database goes on with what it knew: see the prerequisites."
        yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, namespace=namespace)
    elif any(enabled for enabled, _, _ in said):
        yield Finding(about, Status.PASS, Severity.HIGH, "the nodes want the same", namespace=namespace)


def _leftovers(cluster: Cluster, namespace: str) -> Iterator[Finding]:
    """Does anything run that is not wanted?"""
    for report, served in cluster.serving(namespace):
        left = [_NAMES[role] for role in ROLES if served.up(role) and not (served.enabled and role in served.roles)]
        if left:
            text = f"{' and '.join(left)} runs, and is not wanted there"
            hint = "It goes when its last participants have gone; if it stays, see the log of the node."
            about = f"ns.{namespace}.leftover"
            yield Finding(about, Status.WARN, Severity.LOW, text, hint, report.node_id, namespace)


def _troubles(cluster: Cluster, namespace: str) -> Iterator[Finding]:
    """What a node could not do although its services run."""
    for report, served in cluster.serving(namespace):
        if served.error and all(served.up(role) for role in served.roles if role in ROLES):
            hint = "The node tries again by itself: see its log."
            about = f"ns.{namespace}.error"
            yield Finding(about, Status.WARN, Severity.MEDIUM, served.error, hint, report.node_id, namespace)


def _secret(cluster: Cluster, namespace: str) -> Iterator[Finding]:
    """Do all nodes have the same TURN secret?"""
    about = f"ns.{namespace}.secret"
    holders = cluster.holders(namespace, "turn")
    without = [report.node_id for report, served in holders if not served.secret]
    said: dict[str, list[str]] = {}
    for report, served in cluster.serving(namespace):
        if served.enabled and served.secret:
            said.setdefault(served.secret, []).append(report.node_id)
    hint = (
        "Credentials work on some nodes only. A node without the database keeps an old secret: see the prerequisites."
    )
    if without:
        text = f"{', '.join(without)} has none"
        yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, namespace=namespace)
    elif len(said) > 1:
        text = "; ".join(f"{', '.join(nodes)}: {secret}" for secret, nodes in said.items())
        yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, namespace=namespace)
    elif said:
        yield Finding(about, Status.PASS, Severity.HIGH, "in step on all nodes", namespace=namespace)


# -- what is seen from outside ----------------------------------------------------------------------


def _dns_probes(cluster: Cluster, namespace: str) -> tuple[DnsProbe, ...]:
    if not cluster.zone:
        return ()
    ipv6 = any(":" in report.public_ip for report in cluster.reports)
    return tuple(DnsProbe(server, f"turn.ns-{namespace}.{cluster.zone}", ipv6) for server in cluster.dns_servers)


def _dns(cluster: Cluster, namespace: str, sight: Sight) -> Iterator[Finding]:
    """Does every DNS server name the TURN nodes that are up, and no other?"""
    about, found = f"ns.{namespace}.dns", _dns_probes(cluster, namespace)
    if cluster.zone and not found:
        text = f"nobody is known to serve {cluster.zone}"
        hint = "Let the nodes serve it ([dns] listen), or name its servers in the environments file (dns)."
        yield Finding(about, Status.WARN, Severity.HIGH, text, hint, namespace=namespace)
    up = {same_ip(report.public_ip): report for report, served in cluster.holders(namespace, "turn") if served.turn_up}
    # A node that drains may be named still, or no more.
    needed = {ip for ip, report in up.items() if report.active}
    for probe in found:
        seen = sight.get(probe)
        wrong = []
        if not isinstance(seen, Resolved) or seen.error:
            wrong.append(seen.error if isinstance(seen, Resolved) else _NOT_LOOKED)
        else:
            named = set(map(same_ip, seen.addresses))
            if needed - named:
                wrong.append(f"does not name {', '.join(sorted(needed - named))}")
            if named - set(up):
                wrong.append(f"names {', '.join(sorted(named - set(up)))}, where no TURN is known to run")
        if wrong:
            hint = f"Compare: dig @{probe.server.host} -p {probe.server.port} {probe.host} A"
            text = f"{probe.server}: {'; '.join(wrong)}"
            yield Finding(about, Status.FAIL, Severity.HIGH, text, hint, namespace=namespace)
        else:
            text = f"{probe.server} names the {len(needed)} TURN nodes that are up"
            yield Finding(about, Status.PASS, Severity.HIGH, text, namespace=namespace)


def _certificate_probe(cluster: Cluster, namespace: str, report: NodeReport) -> CertificateProbe | None:
    port = report.port("turns", "tcp")
    if port is None:
        return None
    return CertificateProbe(Address(report.public_ip, port), cluster.turn_host(namespace, report))


def _certificate(cluster: Cluster, namespace: str, report: NodeReport, sight: Sight) -> Finding:
    """Is a client of TURN over TLS shown a certificate that it can take, for some weeks to come?"""
    probe = _certificate_probe(cluster, namespace, report)
    seen = None if probe is None else sight.get(probe)
    host, now = cluster.turn_host(namespace, report), cluster.now
    status, hint = Status.FAIL, "See docs/certificates.rst, and what the node says of the host."
    if probe is None:
        text = "TURN over TLS does not listen"
    elif not isinstance(seen, Certified):
        text = _NOT_LOOKED
    elif seen.certificate is None:
        text = f"no TLS at {probe.address}: {seen.error}"
    elif unfit := seen.certificate.unfit(host, now):
        text = f"the certificate at {probe.address} {unfit}"
    else:
        left = f"{max(0, int((seen.certificate.not_after - now) // 86400))} days left"
        status = Status.WARN
        if seen.self_signed:
            text = f"self-signed, {left}"
            hint = "Browsers refuse it: let Caddy get one, or put one into certificates.directory."
        elif seen.certificate.ends_soon(now):
            text = f"{left}, until {day(seen.certificate.not_after)}"
            hint = "It should have been renewed by now: see the log of Caddy, or of whoever renews it."
        elif seen.distrust:
            text, hint = (
                f"not trusted on this machine: {seen.distrust}; {left}",
                "Is its issuer one that browsers trust?",
            )
        else:
            status, text, hint = Status.PASS, left, ""
    source = next((each for each in report.certificates if each.host.lower() == host.lower()), None)
    if status is not Status.PASS and source is not None and source.error:
        text += f" ({source.source}: {source.error})"
    return Finding(f"ns.{namespace}.certificate", status, Severity.HIGH, text, hint, report.node_id, namespace)


def _reach_probes(report: NodeReport) -> dict[str, ReachProbe | None]:
    """By what a person calls it; None where the node says that it does not listen."""
    found: dict[str, ReachProbe | None] = {}
    for name, proto in _LISTENERS:
        port = report.port(name, proto)
        label = f"{name}/{proto}" if port is None else f"{port}/{proto}"
        found[label] = None if port is None else ReachProbe(Address(report.public_ip, port), proto)
    return found


def _ports(namespace: str, report: NodeReport, sight: Sight) -> Finding:
    """Do the ports of TURN answer at the public address?"""
    wrong, looked = [], _reach_probes(report)
    for label, probe in looked.items():
        seen = None if probe is None else sight.get(probe)
        if probe is None:
            wrong.append(f"{label} does not listen")
        elif not isinstance(seen, Reached) or seen.error:
            wrong.append(f"{label}: {seen.error if isinstance(seen, Reached) else _NOT_LOOKED}")
    about = f"ns.{namespace}.ports"
    if wrong:
        text = f"{report.public_ip}: {'; '.join(wrong)}"
        hint = "Is the port open in the firewall of the node, and in that of its provider?"
        return Finding(about, Status.FAIL, Severity.HIGH, text, hint, report.node_id, namespace)
    text = f"{report.public_ip}: {', '.join(looked)} answer"
    return Finding(about, Status.PASS, Severity.HIGH, text, "", report.node_id, namespace)
