"""What the zone of the base domain answers, without bytes or sockets."""

from __future__ import annotations

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.zone import Answer, DnsRecord, Resource, Soa, Zone, is_name, make_zone, next_serial
from orama.wire.dns import Rcode, Type

BASE = "lab.example"


@frozen
class Node:
    node_id: str
    public_ip: str


NODES = (Node("one", "203.0.113.1"), Node("two", "203.0.113.2"), Node("three", "2001:db8::3"))
RECORDS = (
    DnsRecord("turn.ns-a.lab.example", "A", "203.0.113.1", 60, "a", "one"),
    DnsRecord("turn.ns-a.lab.example", "A", "203.0.113.2", 60, "a", "two"),
    DnsRecord("turn.ns-a.lab.example", "AAAA", "2001:DB8:0::3", 60, "a", "three"),
    DnsRecord("www.lab.example", "A", "198.51.100.9", 300),
    DnsRecord("_acme-challenge.turn.ns-a.lab.example", "TXT", "first", 60, created_at=1_800_000_000),
    DnsRecord("_acme-challenge.turn.ns-a.lab.example", "TXT", "second", 60, created_at=1_800_000_000),
)


def everybody(node_id: str) -> bool:
    return True


class ZoneCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.dead: set[str] = set()
        self.zone = make_zone(BASE, RECORDS, NODES, 7)

    def ask(self, name: str, kind: int = Type.A, zone: Zone | None = None) -> Answer:
        return (zone or self.zone).answer(name, kind, lambda node: node not in self.dead)

    def values(self, name: str, kind: int = Type.A, zone: Zone | None = None) -> list[str | Soa]:
        answer = self.ask(name, kind, zone)
        self.assertEqual(answer.rcode, Rcode.NOERROR)
        return [record.value for record in answer.answers]


class AnswerTests(ZoneCase):
    def test_addresses(self) -> None:
        """A and AAAA records are answered with their TTL, each under its own type."""
        self.assertEqual(self.values("turn.ns-a.lab.example"), ["203.0.113.1", "203.0.113.2"])
        self.assertEqual(self.values("turn.ns-a.lab.example", Type.AAAA), ["2001:db8::3"])
        (record,) = self.ask("www.lab.example").answers
        self.assertEqual((record.ttl, record.name), (300, "www.lab.example"))

    def test_texts(self) -> None:
        """Several texts of one name are all answered."""
        self.assertEqual(self.values("_acme-challenge.turn.ns-a.lab.example", Type.TXT), ["first", "second"])

    def test_dead_node(self) -> None:
        """Addresses of a dead node are not given out; those of no node stay; the name stays too."""
        self.dead = {"one"}
        self.assertEqual(self.values("turn.ns-a.lab.example"), ["203.0.113.2"])
        self.assertEqual(self.values("www.lab.example"), ["198.51.100.9"])
        self.dead = {"one", "two", "three"}
        answer = self.ask("turn.ns-a.lab.example")
        self.assertEqual((answer.rcode, answer.answers), (Rcode.NOERROR, ()))
        self.assertEqual([record.type for record in answer.authority], [Type.SOA])

    def test_apex(self) -> None:
        """The apex has SOA, and an NS record a node, in their order, with their addresses beside them."""
        (soa,) = self.values(BASE, Type.SOA)
        self.assertEqual(soa, Soa("ns1.lab.example", "hostmaster.lab.example", 7))
        answer = self.ask(BASE, Type.NS)
        hosts = ["ns1.lab.example", "ns2.lab.example", "ns3.lab.example"]
        self.assertEqual([record.value for record in answer.answers], hosts)
        glue = [(record.name, record.type, record.value) for record in answer.additional]
        addresses = [("203.0.113.1", Type.A), ("203.0.113.2", Type.A), ("2001:db8::3", Type.AAAA)]
        self.assertEqual(glue, [(host, kind, ip) for host, (ip, kind) in zip(hosts, addresses, strict=True)])
        self.assertEqual(self.values("ns2.lab.example"), ["203.0.113.2"])

    def test_dead_server(self) -> None:
        """A dead node is no name server, and the others keep their names; when none lives all are named."""
        self.dead = {"one"}
        answer = self.ask(BASE, Type.NS)
        self.assertEqual([record.value for record in answer.answers], ["ns2.lab.example", "ns3.lab.example"])
        self.assertEqual([record.name for record in answer.additional], ["ns2.lab.example", "ns3.lab.example"])
        self.assertEqual(self.values(BASE, Type.SOA), [Soa("ns2.lab.example", "hostmaster.lab.example", 7)])
        self.dead = {"one", "two", "three"}
        answer = self.ask(BASE, Type.NS)
        self.assertEqual((len(answer.answers), len(answer.additional)), (3, 3))

    def test_denials(self) -> None:
        """What is not there is denied with the SOA record (RFC 2308): the name, or only the type."""
        soa = [Resource(BASE, Type.SOA, Soa("ns1.lab.example", "hostmaster.lab.example", 7))]
        self.assertEqual(self.ask("nobody.lab.example"), Answer(Rcode.NXDOMAIN, authority=soa))
        for name, kind in (
            ("turn.ns-a.lab.example", Type.TXT),
            (BASE, Type.A),
            ("ns-a.lab.example", Type.A),  # an empty non-terminal (RFC 8020)
            ("ns-a.lab.example", Type.ANY),
        ):
            with self.subTest(name, kind=kind):
                self.assertEqual(self.ask(name, kind), Answer(Rcode.NOERROR, authority=soa))

    def test_outside(self) -> None:
        """Names that are not ours are refused, also those that only end in the same letters."""
        for name in ("example", "", "lab.example.org", "xlab.example", "a\\046lab.example"):
            with self.subTest(name):
                self.assertEqual(self.ask(name), Answer(Rcode.REFUSED))

    def test_transfers(self) -> None:
        """Nobody gets the whole zone, and OPT is nothing that one asks for."""
        for kind in (Type.AXFR, Type.IXFR, Type.MAILA, Type.MAILB, Type.TSIG, Type.TKEY):
            self.assertEqual(self.ask(BASE, kind), Answer(Rcode.REFUSED))
        self.assertEqual(self.ask(BASE, Type.OPT), Answer(Rcode.FORMERR))

    def test_any(self) -> None:
        """ANY has one small answer (RFC 8482, 4.3)."""
        for name in (BASE, "turn.ns-a.lab.example"):
            answer = self.ask(name, Type.ANY)
            self.assertEqual([(each.type, each.value) for each in answer.answers], [(Type.HINFO, "RFC8482")])
            self.assertEqual(answer.additional, [])

    def test_authoritative(self) -> None:
        """Answers and denials are authoritative, refusals are not."""
        names = {"www.lab.example": True, "nobody.lab.example": True, BASE: True, "example.org": False}
        self.assertEqual({name: self.ask(name).authoritative for name in names}, names)


class MakeZoneTests(ZoneCase):
    def test_rejected(self) -> None:
        """A row that cannot be served is named, and harms no other."""
        rows = [
            DnsRecord("www.example.org", "A", "198.51.100.9", 60),
            DnsRecord("*.lab.example", "A", "198.51.100.9", 60),
            DnsRecord("WWW.lab.example", "A", "198.51.100.9", 60),
            DnsRecord("x..lab.example", "A", "198.51.100.9", 60),
            DnsRecord("www.lab.example", "CNAME", "x.lab.example", 60),
            DnsRecord("www.lab.example", "A", "2001:db8::1", 60),
            DnsRecord("www.lab.example", "A", "300.0.0.1", 60),
            DnsRecord("www.lab.example", "A", "198.51.100.9", -1),
        ]
        zone = make_zone(BASE, [*rows, *RECORDS], NODES)
        self.assertEqual([text.split(":")[0] for text in zone.rejected], [f"{row.fqdn} {row.type}" for row in rows])
        self.assertEqual(zone.names, self.zone.names)

    def test_same_twice(self) -> None:
        """The same address twice is one record; different TTLs of one name and type become the lowest."""
        rows = [
            DnsRecord("x.lab.example", "AAAA", "2001:db8::1", 300),
            DnsRecord("x.lab.example", "AAAA", "2001:0db8::0001", 300),
            DnsRecord("x.lab.example", "AAAA", "2001:db8::2", 30),
            DnsRecord("x.lab.example", "TXT", "text", 90),
        ]
        zone = make_zone(BASE, rows, ())
        self.assertEqual([(each.value, each.ttl) for each in zone.names["x.lab.example"]][:2], [
            ("2001:db8::1", 30),
            ("2001:db8::2", 30),
        ])  # fmt: skip
        self.assertEqual(zone.names["x.lab.example"][2].ttl, 90)

    def test_named_servers(self) -> None:
        """Given name servers get the nodes' addresses in their turn where they are within the zone."""
        names = ("NS.example.org.", "a.lab.example", "b.lab.example")
        zone = make_zone(BASE, (), NODES[:2], nameservers=names, contact="Ops.example.org.")
        answer = self.ask(BASE, Type.NS, zone)
        hosts = ["ns.example.org", "a.lab.example", "b.lab.example"]
        self.assertEqual([each.value for each in answer.answers], hosts)
        self.assertEqual([each.value for each in answer.additional], ["203.0.113.1", "203.0.113.2"])
        (soa,) = self.values(BASE, Type.SOA, zone)
        self.assertEqual(soa, Soa("ns.example.org", "ops.example.org", 0))
        self.dead = {"one"}
        self.assertEqual(self.values(BASE, Type.NS, zone), ["ns.example.org", "b.lab.example"])

    def test_lame_server(self) -> None:
        """A name server within the zone that nobody stands for is not named, unless a row has its address."""
        row = DnsRecord("c.lab.example", "A", "198.51.100.9", 60)
        zone = make_zone(BASE, [row], NODES[:1], nameservers=[f"{x}.lab.example" for x in "abc"])
        self.assertEqual(self.values(BASE, Type.NS, zone), ["a.lab.example", "c.lab.example"])
        self.assertEqual(zone.rejected, ("b.lab.example NS: there is no node and no address for it",))

    def test_empty(self) -> None:
        """A zone without nodes and records has SOA and denials."""
        zone = make_zone("Lab.Example.", (), ())
        self.assertEqual(self.values(BASE, Type.SOA, zone), [Soa(BASE, "hostmaster.lab.example", 0)])
        self.assertEqual(self.values(BASE, Type.NS, zone), [])
        self.assertEqual(self.ask("www.lab.example", Type.A, zone).rcode, Rcode.NXDOMAIN)

    def test_bad_public_ip(self) -> None:
        """A node whose address is none is no reason to serve nothing."""
        zone = make_zone(BASE, RECORDS, [Node("bad", "nowhere"), *NODES])
        self.assertEqual(self.values(BASE, Type.NS, zone), [f"ns{number}.lab.example" for number in (2, 3, 4)])

    def test_names(self) -> None:
        """Names have labels of 63 letters, digits, hyphens and underscores, and 253 characters in all."""
        good = ("a", "_acme-challenge.ns-a.lab.example", "a" * 63 + ".b", ".".join(["a" * 62] * 4))
        bad = ("", ".", "a.", ".a", "-a.b", "a-.b", "A.b", "a b", "ä.b", "a" * 64, ".".join(["a" * 63] * 4), "a\n")
        self.assertEqual([name for name in good if not is_name(name)], [])
        self.assertEqual([name for name in bad if is_name(name)], [])

    @given(st.lists(st.tuples(st.text(max_size=30), st.sampled_from(["A", "TXT", "X"]), st.text(max_size=9))))
    def test_any_rows(self, rows: list[tuple[str, str, str]]) -> None:
        """No row keeps the others from being served."""
        zone = make_zone(BASE, [DnsRecord(*row, 60) for row in rows] + list(RECORDS), NODES)
        self.assertEqual(zone.answer("www.lab.example", Type.A, everybody).rcode, Rcode.NOERROR)


class SerialTests(SynchronousTestCase):
    @given(st.integers(1, 2**32 - 1), st.floats(0, 2**33))
    def test_grows(self, serial: int, now: float) -> None:
        """The next serial is after the last by the arithmetic of RFC 1982, whatever the clock does."""
        self.assertTrue(0 < (next_serial(serial, now) - serial) % 2**32 < 2**31)

    def test_time(self) -> None:
        """Serials follow the clock, and go on by one where it does not go on."""
        self.assertEqual(next_serial(0, 1_800_000_000.5), 1_800_000_000)
        self.assertEqual(next_serial(1_800_000_000, 1_800_000_000.9), 1_800_000_001)
        self.assertEqual(next_serial(1_800_000_001, 1_700_000_000), 1_800_000_002)
        self.assertEqual(next_serial(1_800_000_001, 1_800_000_007), 1_800_000_007)
