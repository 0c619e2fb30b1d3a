"""The checks of each node: does it answer, is it ready, and does it agree with the others on time and version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orama.cli.asking import Answer
from orama.cli.findings import Cluster, Finding, Severity, Status
from orama.cli.reports import NodeReport

#: Seconds that a clock may be off ours. Signed requests are refused beyond thirty.
SKEW_WARN, SKEW_FAIL = 2.0, 10.0
_CLOCK_HINT = "Let chrony or systemd-timesyncd set the clocks; nodes refuse requests that are 30 s off."


def check_nodes(cluster: Cluster) -> Iterator[Finding]:
    """The findings of every node, reachable or not."""
    usual = _usual_version(cluster.reports)
    yield from _twice(cluster)
    for answer in cluster.answers:
        yield _reachable(answer)
        if answer.skew is not None:
            yield _clock(answer.node, answer.skew)
        if answer.report is not None:
            yield from _node(answer.report, usual)


def _reachable(answer: Answer) -> Finding:
    about = f"node.{answer.node}.reachable"
    if answer.report is not None:
        return Finding(about, Status.PASS, Severity.CRITICAL, f"answers at {answer.address}")
    return Finding(
        about,
        Status.FAIL,
        Severity.CRITICAL,
        f"{answer.address}: {answer.error}",
        "Is orama-webrtc running there, can this machine reach its internal address, and is the cluster key the same?",
    )


def _clock(node: str, skew: float) -> Finding:
    about, off = f"node.{node}.clock", abs(skew)
    if off <= SKEW_WARN:
        return Finding(about, Status.PASS, Severity.MEDIUM, f"within {SKEW_WARN:.0f} s of the clock here")
    status = Status.FAIL if off > SKEW_FAIL else Status.WARN
    side = "ahead of" if skew > 0 else "behind"
    return Finding(about, status, Severity.MEDIUM, f"{off:.1f} s {side} the clock here", _CLOCK_HINT)


def _node(report: NodeReport, usual: str) -> Iterator[Finding]:
    """What a node that answers says of itself."""
    node = f"node.{report.node_id}"
    if not report.active:
        hint = f"orama node activate {report.node_id} puts it back into service."
        yield Finding(f"{node}.ready", Status.WARN, Severity.HIGH, f"is {report.state}", hint)
    elif report.ready:
        hint = "It comes up by itself when what it waits for is there: see its log."
        yield Finding(f"{node}.ready", Status.FAIL, Severity.HIGH, report.ready, hint)
    else:
        yield Finding(f"{node}.ready", Status.PASS, Severity.HIGH, "takes calls")
    if report.version == usual:
        yield Finding(f"{node}.version", Status.PASS, Severity.LOW, report.version)
    else:
        hint = "Finish the upgrade: all nodes run one version."
        text = f"{report.version}, and most run {usual}"
        yield Finding(f"{node}.version", Status.WARN, Severity.LOW, text, hint)
    yield from _prerequisites(report)
    yield from _surroundings(report)


def _prerequisites(report: NodeReport) -> Iterator[Finding]:
    for each in report.prerequisites:
        about = f"node.{report.node_id}.prerequisite.{each.name}"
        detail = each.detail or ("is there" if each.ok else "is not there")
        if each.ok:
            yield Finding(about, Status.PASS, Severity.CRITICAL, detail)
        else:
            status = Status.FAIL if each.required else Status.WARN
            hint = f"Start {each.name}, or correct where the configuration says it is."
            yield Finding(about, status, Severity.CRITICAL, detail, hint)


def _surroundings(report: NodeReport) -> Iterator[Finding]:
    """DNS server and firewall."""
    node = f"node.{report.node_id}"
    if report.dns_error:
        hint = "See [dns] in its configuration, and who else has the port: ss -lnup sport = :53"
        yield Finding(f"{node}.dns", Status.FAIL, Severity.HIGH, report.dns_error, hint)
    elif report.dns_listening:
        yield Finding(f"{node}.dns", Status.PASS, Severity.HIGH, f"serves {report.zone or 'no zone'}")
    states = {"failed": Status.FAIL, "unavailable": Status.WARN}
    if report.firewall_state:
        status = states.get(report.firewall_state, Status.PASS)
        text = report.firewall_detail or report.firewall_state
        hint = "" if status is Status.PASS else "Open 3478/udp, 3478/tcp and 5349/tcp there, or let the node do it."
        yield Finding(f"{node}.firewall", status, Severity.MEDIUM, text, hint)


def _twice(cluster: Cluster) -> Iterator[Finding]:
    """A copied data directory makes two machines one node."""
    for node, count in Counter(report.node_id for report in cluster.reports).items():
        if count > 1:
            where = ", ".join(answer.address for answer in cluster.answers if answer.node == node)
            yield Finding(
                f"node.{node}.unique",
                Status.FAIL,
                Severity.CRITICAL,
                f"answers at {where}",
                "Name each node once; a node that was made by copying another needs a data directory of its own.",
            )


def _usual_version(reports: tuple[NodeReport, ...]) -> str:
    """The version that most nodes run; of several, the last in order."""
    counted = Counter(report.version for report in reports)
    return max(counted, key=lambda version: (counted[version], version), default="")
