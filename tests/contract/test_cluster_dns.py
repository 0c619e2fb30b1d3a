"""Contract, section 6: the names of a cluster as a resolver sees them, and what an ACME client plants among them."""

from __future__ import annotations

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

from twisted.names import dns
from twisted.trial.unittest import SkipTest

from tests.contract.cluster import BASE, DISABLE, HEARTBEAT, INTERNAL, SLACK, ClusterTestCase, Node, until
from tests.contract.rest import Answer

PRESENT, CLEANUP = "/v1/internal/acme/present", "/v1/internal/acme/cleanup"


class NameTests(ClusterTestCase):
    def test_addresses(self) -> None:
        """``ns-NAME`` has all gateways, ``turn.ns-NAME`` the TURN nodes: public addresses, TTL 60, over UDP and TCP."""
        gateways = sorted((node.public, 60) for node in self.nodes)
        relaying = sorted((node.public, 60) for node in self.cluster.turns(self.cluster.key))
        for node in self.nodes:
            for tcp in (False, True):
                self.assertEqual(node.resolve("ns-default", tcp=tcp), gateways)
                self.assertEqual(node.resolve("turn.ns-default", tcp=tcp), relaying)
            self.assertEqual(node.resolve("turn.ns-default", dns.AAAA), [])
            for name in ("turn.ns-nobody", "ns-nobody", "turn.default", "x.turn.ns-default"):
                self.assertIsNone(node.resolve(name), name)

    def test_domain(self) -> None:
        """Every node names the same name servers for the domain, and each of these has the address of a node."""
        found = [node.resolve("", dns.NS) for node in self.nodes]
        self.assertEqual(found[0], found[1])
        self.assertEqual(found[0], found[2])
        names = [name for name, _ in found[0] or ()]
        self.assertEqual(len(names), 3)
        addresses = [ip for name in names for ip in self.nodes[0].names(name.removesuffix(f".{BASE}"))]
        self.assertEqual(sorted(addresses), sorted(node.public for node in self.nodes))

    def test_put_back(self) -> None:
        """Records that somebody has deleted from the database come back by themselves."""
        database = self.cluster.database
        if database is None:
            raise SkipTest("there is no rqlited: etc/lab/build makes it")
        statement = "SELECT fqdn, value FROM dns_records WHERE namespace = 'default' ORDER BY 1, 2"
        before = self.cluster.rows(statement)
        self.assertEqual(len(before), 5)
        database.execute("DELETE FROM dns_records WHERE namespace = 'default'")
        until("they are back", lambda: self.cluster.rows(statement) == before, 5 * HEARTBEAT + SLACK)
        for node in self.nodes:
            until(
                f"{node.public} has them",
                lambda node=node: len(node.names("turn.ns-default")) == 2,
                2 * HEARTBEAT + SLACK,
            )  # type: ignore[misc]
            until(
                f"{node.public} has them", lambda node=node: len(node.names("ns-default")) == 3, 2 * HEARTBEAT + SLACK
            )  # type: ignore[misc]

    def test_gone_when_disabled(self) -> None:
        """A TURN host has its name from ``enable`` to ``disable``, give or take two heartbeats, on every node."""
        name, key = self.namespace()
        for node in self.nodes:
            until("it has a name", lambda node=node: len(node.names(f"turn.ns-{name}")) == 2, 2 * HEARTBEAT + SLACK)  # type: ignore[misc]
        self.assertEqual(self.nodes[1].ask("POST", DISABLE, key).status, 200)
        for node in self.nodes:
            until("the name is gone", lambda node=node: node.resolve(f"turn.ns-{name}") is None, 2 * HEARTBEAT + SLACK)  # type: ignore[misc]


class ChallengeTests(ClusterTestCase):
    """``httpreq`` as lego speaks it."""

    FQDN = f"_acme-challenge.turn.ns-default.{BASE}."
    NAME = "_acme-challenge.turn.ns-default"

    def post(self, node: Node, path: str, fqdn: str, value: str, password: str | None = None) -> Answer:
        if password is None:
            password = (node.data / "acme.password").read_text().strip()
        credentials = b64encode(f"orama:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}"} if password else {}
        return node.inside("POST", path, headers, {"fqdn": fqdn, "value": value})

    def values(self, node: Node) -> list[str]:
        return [value for value, _ in node.resolve(self.NAME, dns.TXT) or ()]

    def test_life(self) -> None:
        """What is presented to one node is served by all when the answer comes, and goes again, one value at a time."""
        node = self.nodes[1]
        first, second = "A" * 43, "B" * 43
        with ThreadPoolExecutor() as threads:
            answers = threads.map(lambda value: self.post(node, PRESENT, self.FQDN, value), (first, second))
        self.assertEqual([answer.status for answer in answers], [200, 200])
        for each in self.nodes:
            self.assertEqual(self.values(each), [first, second])
        self.assertEqual(self.post(node, CLEANUP, self.FQDN, first).status, 200)
        for each in self.nodes:
            until("one is left", lambda each=each: self.values(each) == [second], 3 * HEARTBEAT + SLACK)  # type: ignore[misc]
        self.assertEqual(self.post(node, CLEANUP, self.FQDN, second).status, 200)
        for each in self.nodes:
            until("none is left", lambda each=each: self.values(each) == [], 3 * HEARTBEAT + SLACK)  # type: ignore[misc]
        self.assertEqual(self.post(node, CLEANUP, self.FQDN, second).status, 200)

    def test_refused(self) -> None:
        """401 without the password of this node; a name that is no challenge of the domain is refused."""
        first, second = self.nodes[:2]
        others = (second.data / "acme.password").read_text().strip()
        self.assertNotEqual(others, (first.data / "acme.password").read_text().strip())
        for path in (PRESENT, CLEANUP):
            for password in ("", "wrong", others):
                answer = self.post(first, path, self.FQDN, "C" * 43, password)
                self.assertEqual(answer.status, 401, path)
                self.assertRegex(answer.headers["WWW-Authenticate"], "^Basic ")
        names = f"turn.ns-default.{BASE}.", "_acme-challenge.example.org.", f"_acme-challenge.x{BASE}.", "", "."
        for fqdn in names:
            self.assertEqual(self.post(first, PRESENT, fqdn, "C" * 43).status, 400, fqdn)
        for value in ("", 'a"b', "x" * 256):
            self.assertEqual(self.post(first, PRESENT, self.FQDN, value).status, 400, value)
        self.assertEqual(self.values(first), [])

    def test_not_in_public(self) -> None:
        """On the public address there is no such thing, even with the password."""
        node = self.nodes[0]
        password = (node.data / "acme.password").read_text().strip()
        credentials = b64encode(f"orama:{password}".encode()).decode()
        for path in (PRESENT, CLEANUP):
            connection = HTTPConnection(node.authority, timeout=10)
            self.addCleanup(connection.close)
            connection.request("POST", path, b"{}", {"Authorization": f"Basic {credentials}"})
            self.assertEqual(connection.getresponse().status, 404)
            with self.assertRaises(OSError):
                HTTPConnection(node.public, INTERNAL, timeout=10).request("POST", path, b"{}")
