"""From what the nodes say and what is seen of them to findings: pure, so that every history can be tried on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from orama.cli import namespace_checks, node_checks
from orama.cli.findings import Cluster, Finding, Sight, Status
from orama.cli.seen import Probe, Seen


def planned(cluster: Cluster, namespace: str | None = None) -> tuple[Probe, ...]:
    """What has to be looked at, each thing once; for one *namespace* or for all."""
    wanted = cluster.namespaces if namespace is None else [namespace]
    return tuple(dict.fromkeys(probe for name in wanted for probe in namespace_checks.probes(cluster, name)))


def inspect(cluster: Cluster, seen: Iterable[Seen], namespace: str | None = None) -> tuple[Finding, ...]:
    """All findings, nodes before namespaces.

    :param seen: what came of what was :func:`planned`.
    :param namespace: this one alone, and whether the nodes answer at all.
    """
    sight: Sight = {each.probe: each for each in seen}
    nodes = tuple(node_checks.check_nodes(cluster))
    if namespace is not None:
        nodes = tuple(finding for finding in nodes if finding.id.endswith(".reachable"))
    names = cluster.namespaces if namespace is None else [namespace]
    return (*nodes, *(finding for name in names for finding in namespace_checks.check_namespace(cluster, name, sight)))


def selected(findings: Iterable[Finding], only: Sequence[str]) -> tuple[Finding, ...]:
    """Those whose id one of the patterns in *only* matches; all without a pattern."""
    return tuple(each for each in findings if not only or any(fnmatchcase(each.id, pattern) for pattern in only))


def failed(findings: Iterable[Finding]) -> int:
    """How many failed."""
    return sum(each.status is Status.FAIL for each in findings)
