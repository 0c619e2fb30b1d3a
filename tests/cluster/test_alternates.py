"""Where clients are sent while a node drains."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.alternates import ClusterAlternates
from orama.cluster.desired import TurnPlace
from orama.cluster.nodes import NodeRecord
from orama.net.fabric import Address
from orama.settings import Settings, TurnSettings
from orama.wire.stun import Family


def place(node_id: str, ip: str) -> TurnPlace:
    return TurnPlace(node_id, ip, "10.0.0.1", (50000, 50799), 3478, 5349)


def node(node_id: str) -> NodeRecord:
    return NodeRecord(node_id, "10.0.0.1", 6002, "192.0.2.1", "10.0.0.1", "", 3478, 5349, "1")


class AlternatesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.settings = Settings()
        self.active = ["me", "n1", "n2", "n4", "n6"]
        self.alternates = ClusterAlternates(
            lambda: self.settings, "me", self.places, lambda: map(node, self.active), random.Random(1)
        )

    def places(self, namespace: str) -> Iterable[TurnPlace]:
        if namespace != "a":
            return ()
        ips = {"me": "192.0.2.9", "n1": "192.0.2.1", "n2": "192.0.2.2", "n3": "192.0.2.3", "n6": "2001:db8::6"}
        return [place(node_id, ip) for node_id, ip in ips.items()]

    def asked(self, family: Family = Family.IPV4, transport: str = "udp", namespace: str = "a") -> Sequence[Address]:
        return sorted(self.alternates(namespace, family, transport))

    def test_others(self) -> None:
        """The nodes that relay for the namespace, live and take clients, but for oneself; each family by itself."""
        self.assertEqual(self.asked(), [("192.0.2.1", 3478), ("192.0.2.2", 3478)])
        self.assertEqual(self.asked(transport="tcp"), self.asked())
        self.assertEqual(self.asked(Family.IPV6), [("2001:db8::6", 3478)])
        self.assertEqual(self.asked(namespace="b"), [])
        self.active.remove("n1")
        self.assertEqual(self.asked(), [("192.0.2.2", 3478)])

    def test_tls(self) -> None:
        """Over TLS only where all nodes have certificates for the same name, and at the port for it."""
        self.assertEqual(self.asked(transport="tls"), [])
        self.settings = evolve(self.settings, base_domain="example.org")
        self.assertEqual(self.asked(transport="tls"), [("192.0.2.1", 5349), ("192.0.2.2", 5349)])

    def test_configured(self) -> None:
        """Those of the configuration come last, as it is now, and for every namespace."""
        turn = TurnSettings(alternate_servers=("198.51.100.1:3478", "[2001:db8::1]:3479"))
        self.settings = evolve(self.settings, turn=turn)
        self.assertEqual(self.alternates("a", Family.IPV4, "udp")[2:], [("198.51.100.1", 3478)])
        self.assertEqual(self.asked(Family.IPV6, namespace="b"), [("2001:db8::1", 3479)])

    def test_spread(self) -> None:
        """Not everybody is sent to the same node."""
        first = {self.alternates("a", Family.IPV4, "udp")[0] for _ in range(50)}
        self.assertEqual(len(first), 2)
