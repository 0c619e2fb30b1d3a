"""Clusters in memory: what three healthy nodes report, and what somebody sees who looks at them from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orama.cli.asking import Answer
from orama.cli.findings import Cluster
from orama.cli.reports import read_report
from orama.cli.seen import CertificateProbe, Certified, DnsProbe, Probe, Reached, Resolved, Seen
from orama.net.certificate import Certificate

NOW = 1_800_000_000.0
DAY = 86400.0
ZONE = "orama.example"
#: Node → public address. TURN runs on the first two.
NODES = {"n1": "198.51.100.1", "n2": "198.51.100.2", "n3": "198.51.100.3"}
TURN = ("n1", "n2")


def served(node: str, name: str = "alpha", **changes: Any) -> dict[str, Any]:
    """What *node* reports of a namespace that is as it should be, but for *changes*."""
    roles = ["sfu", "turn"] if node in TURN else ["sfu"]
    return {
        "namespace": name,
        "enabled": True,
        "roles": roles,
        "sfu_wanted": 3,
        "turn_wanted": 2,
        "sfu_up": True,
        "turn_up": "turn" in roles,
        "rooms": 1,
        "participants": 2,
        "allocations": 4,
        "error": None,
        "secret": "0123abcd",
        "ports": {"signaling": 30000, "media": [20000, 20499], "relay": [49152, 49951]},
        **changes,
    }


def report(node: str, *namespaces: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a healthy *node* reports, with *changes* to what it says of itself; ``alpha`` without *namespaces*."""
    number = list(NODES).index(node) + 1
    return {
        "node": {
            "node_id": node,
            "version": "1.0",
            "state": "active",
            "ready": "",
            "public_ip": NODES[node],
            "internal_ip": f"10.0.0.{number}",
            "now": NOW,
            "uptime": 60.0,
            "started_at": "2026-11-22T00:00:00Z",
            **changes,
        },
        "capacity": {"cpus": 2, "load": 0.1, "memory_mb": 4096, "memory_free_mb": 2048, "namespaces": 1, "streams": 2},
        "prerequisites": [
            {"name": "rqlite", "ok": True, "required": True, "detail": "leader 10.0.0.1:4002"},
            {"name": "olric", "ok": True, "required": False, "detail": "not configured"},
        ],
        "namespaces": list(namespaces) or [served(node)],
        "certificates": [],
        "dns": {"listening": True, "zone": ZONE, "serial": 7, "records": 9, "error": None},
        "firewall": {"state": "active", "detail": "4 rules", "rules": []},
        "runner": "inline",
        "listeners": [
            {"name": "turn", "proto": "udp", "port": 3478},
            {"name": "turn", "proto": "tcp", "port": 3478},
            {"name": "turns", "proto": "tcp", "port": 5349},
            {"name": "dns", "proto": "udp", "port": 53},
            {"name": "dns", "proto": "tcp", "port": 53},
        ],
    }


def answer(value: dict[str, Any], skew: float = 0.0) -> Answer:
    read = read_report(value)
    return Answer(read.node_id, f"{read.internal_ip}:6002", read, value, skew=skew)


def silent(node: str) -> Answer:
    """A node that does not answer."""
    return Answer(f"{node}:6002", f"{node}:6002", None, error="connection refused")


def cluster(*answers: Answer) -> Cluster:
    """Three healthy nodes, without *answers*."""
    return Cluster(answers or tuple(answer(report(node)) for node in NODES), NOW)


def certificate(host: str, days: float = 60, names: Iterable[str] | None = None) -> Certificate:
    """One for ninety days, of which *days* are left."""
    return Certificate(tuple([host] if names is None else names), NOW + (days - 90) * DAY, NOW + days * DAY)


def healthy(probes: Iterable[Probe], turn: Iterable[str] = TURN) -> dict[Probe, Seen]:
    """What is seen where everything is as it should be, with TURN on the nodes *turn*."""
    return {probe: _seen(probe, frozenset(NODES[node] for node in turn)) for probe in probes}


def _seen(probe: Probe, addresses: frozenset[str]) -> Seen:
    if isinstance(probe, DnsProbe):
        return Resolved(probe, addresses)
    if isinstance(probe, CertificateProbe):
        return Certified(probe, certificate(probe.host))
    return Reached(probe)
