"""DNS messages against the zone: bytes in, bytes out."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.answering import DATAGRAM, STREAM, Answering
from orama.cluster.zone import DnsRecord, Zone, make_zone
from orama.wire.dns import Rcode, Type
from tests.cluster.test_zone import BASE, NODES, RECORDS, everybody

LONG = [DnsRecord(f"long.{BASE}", "TXT", f"{number:0200}", 60) for number in range(8)]


def ask(
    name: str | bytes = f"www.{BASE}",
    kind: int = Type.A,
    cls: int = dns.IN,
    *,
    size: int | None = None,
    version: int = 0,
    dnssec: bool = False,
    **fields: Any,
) -> bytes:
    """A query; *size* is what EDNS says of the asker, None without EDNS."""
    message = dns.Message(0x1234, recDes=1)
    for field, value in fields.items():
        setattr(message, field, value)
    message.addQuery(name, kind, cls)
    if size is not None:
        message.additional.append(dns._OPTHeader(size, version=version, dnssecOK=dnssec))
    return message.toStr()


class AnsweringCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.zone: Zone | None = make_zone(BASE, [*RECORDS, *LONG], NODES, 7)
        self.answering = Answering(lambda: self.zone, everybody, random.Random(1))

    def respond(self, message: bytes, limit: int | None = None, *, brief: bool = False) -> dns._EDNSMessage:
        raw = self.answering.respond(message, limit, brief=brief)
        assert raw is not None
        self.raw = raw
        answer = dns._EDNSMessage()
        answer.fromStr(raw)
        return answer

    def texts(self, answer: dns._EDNSMessage) -> list[bytes]:
        return sorted(b"".join(record.payload.data) for record in answer.answers)


class AnsweringTests(AnsweringCase):
    def test_flags(self) -> None:
        """An answer is marked as one, is authoritative, recurses for nobody, and repeats id, question and RD."""
        answer = self.respond(ask())
        flags = (answer.answer, answer.auth, answer.recAv, answer.trunc, answer.authenticData, answer.checkingDisabled)
        self.assertEqual((answer.id, answer.rCode, flags), (0x1234, 0, (1, 1, 0, 0, 0, 0)))
        self.assertEqual(answer.recDes, 1)
        self.assertEqual(self.respond(ask(recDes=0)).recDes, 0)
        self.assertEqual(answer.queries, [dns.Query(b"www.lab.example", dns.A, dns.IN)])
        (record,) = answer.answers
        self.assertEqual((record.ttl, record.cls, record.payload), (300, dns.IN, dns.Record_A("198.51.100.9", 300)))
        self.assertIsNone(answer.ednsVersion)

    def test_every_type(self) -> None:
        """Each type of record is written as its own."""
        answers = {
            kind: [record.payload for record in self.respond(ask(name, kind)).answers]
            for name, kind in (
                (f"turn.ns-a.{BASE}", Type.AAAA),
                (f"_acme-challenge.turn.ns-a.{BASE}", Type.TXT),
                (BASE, Type.SOA),
                (BASE, Type.ANY),
            )
        }
        self.assertEqual(answers[Type.AAAA], [dns.Record_AAAA("2001:db8::3", 60)])
        self.assertEqual(sorted(text.data for text in answers[Type.TXT]), [[b"first"], [b"second"]])
        soa = dns.Record_SOA(b"ns1.lab.example", b"hostmaster.lab.example", 7, 3600, 600, 604800, 60, 60)
        self.assertEqual(answers[Type.SOA], [soa])
        self.assertEqual(answers[Type.ANY], [dns.Record_HINFO(b"RFC8482", b"", 60)])

    def test_case(self) -> None:
        """The letters of the question come back as they came, and answers and denials are spelled with them."""
        name = b"TuRn.nS-a.LaB.eXaMpLe"
        answer = self.respond(ask(name))
        self.assertEqual(answer.queries[0].name.name, name)
        self.assertEqual({record.name.name for record in answer.answers}, {name})
        self.assertEqual(len(self.raw), len(self.answering.respond(ask(name.lower())) or b""))
        denial = self.respond(ask(b"No.LaB.eXaMpLe"))
        self.assertEqual(denial.authority[0].name.name, b"LaB.eXaMpLe")

    def test_odd_labels(self) -> None:
        """A question with dots and zeros within labels comes back byte for byte, and is refused or denied."""
        for name, rcode in ((b"\x08a.lab\xff\0\xc0\x07example\0", 5), (b"\x05www.x\3lab\x07example\0", 3)):
            question = name + b"\0\1\0\1"
            raw = self.answering.respond(b"\x12\x34\0\0\0\1\0\0\0\0\0\0" + question)
            assert raw is not None
            self.assertEqual((raw[12 : 12 + len(question)], raw[3] & 15), (question, rcode))
        answer = dns.Message()
        answer.fromStr(raw)
        self.assertEqual(answer.authority[0].name.name, b"lab.example")

    def test_dotted_label_is_no_suffix(self) -> None:
        """A name in the answer does not refer to labels of the question that only look alike."""
        self.zone = make_zone(BASE, (), (), contact="a.b.lab.example")
        raw = self.answering.respond(b"\x12\x34\0\0\0\1\0\0\0\0\0\0\3a.b\3lab\7example\0\0\1\0\1")
        self.assertIn(b"\1a\1b\xc0", raw or b"")

    def test_long_text(self) -> None:
        """A text beyond 255 bytes is several strings of one record (RFC 1035, 3.3)."""
        self.zone = make_zone(BASE, [DnsRecord(f"x.{BASE}", "TXT", "x" * 500, 60), DnsRecord(BASE, "TXT", "", 60)], ())
        (record,) = self.respond(ask(f"x.{BASE}", Type.TXT, size=4096)).answers
        self.assertEqual([len(text) for text in record.payload.data], [255, 245])
        (record,) = self.respond(ask(BASE, Type.TXT)).answers
        self.assertEqual(record.payload.data, [b""])

    def test_shuffled(self) -> None:
        """The order of addresses is another one from time to time."""
        orders = {str([each.payload for each in self.respond(ask(f"turn.ns-a.{BASE}")).answers]) for _ in range(50)}
        self.assertEqual(len(orders), 2)

    def test_refusals(self) -> None:
        """Other classes, other zones and transfers are refused without AA."""
        for message in (
            ask("version.bind", Type.TXT, dns.CH),
            ask(cls=dns.ANY),
            ask("www.example.org"),
            ask(""),
            ask(BASE, Type.AXFR),
            ask(BASE, Type.IXFR),
        ):
            answer = self.respond(message)
            self.assertEqual((answer.rCode, answer.auth, answer.answers, answer.authority), (Rcode.REFUSED, 0, [], []))

    def test_denials(self) -> None:
        """A name and a type that are not there are denied with AA and the SOA record."""
        for message, rcode in ((ask(f"no.{BASE}"), 3), (ask(kind=Type.TXT), 0), (ask(f"ns-a.{BASE}"), 0)):
            answer = self.respond(message)
            self.assertEqual((answer.rCode, answer.auth, answer.answers), (rcode, 1, []))
            self.assertEqual([(each.type, each.ttl) for each in answer.authority], [(Type.SOA, 60)])

    def test_nothing_known(self) -> None:
        """SERVFAIL before the zone has been read, and nothing that a resolver would keep."""
        self.zone = None
        answer = self.respond(ask())
        self.assertEqual((answer.rCode, answer.auth), (Rcode.SERVFAIL, 0))

    def test_opcodes(self) -> None:
        """Anything but a query is not implemented; the answer is a head, marked as an answer."""
        for opcode in range(1, 16):
            answer = self.respond(ask(opCode=opcode))
            self.assertEqual((answer.answer, answer.opCode, answer.rCode, len(self.raw)), (1, opcode, 4, 12))

    def test_malformed(self) -> None:
        """What has an id but cannot be read is FORMERR, in twelve bytes; what has none, and answers, are dropped."""
        for message in (ask()[:-1], ask() + b"\0", ask()[:4] + b"\0\0" + ask()[6:12], ask(kind=Type.OPT)):
            answer = self.respond(message)
            self.assertEqual((answer.id, answer.answer, answer.rCode), (0x1234, 1, Rcode.FORMERR))
        self.assertIsNone(self.answering.respond(ask(answer=1)))
        self.assertIsNone(self.answering.respond(ask()[:11]))


class SizeTests(AnsweringCase):
    """How long an answer may be, and what happens to a longer one."""

    def test_edns(self) -> None:
        """An OPT record is answered with ours; DO comes back; without one there is none."""
        answer = self.respond(ask(size=4096, dnssec=True))
        self.assertEqual((answer.ednsVersion, answer.maxSize, answer.dnssecOK), (0, DATAGRAM, 1))
        self.assertFalse(self.respond(ask(size=4096)).dnssecOK)
        for message in (ask("example.org", size=512), ask(f"no.{BASE}", size=512)):
            self.assertEqual(self.respond(message).ednsVersion, 0)

    def test_version(self) -> None:
        """Another version of EDNS is BADVERS, with the one that we speak (RFC 6891, 6.1.3)."""
        answer = self.respond(ask(size=4096, version=1))
        self.assertEqual((answer.rCode, answer.ednsVersion, answer.answers), (Rcode.BADVERS, 0, []))

    def test_truncated(self) -> None:
        """What is too long for the asker's datagrams is empty with TC, and whole over TCP."""
        message = ask(f"long.{BASE}", Type.TXT)
        answer = self.respond(message)
        self.assertEqual((answer.trunc, answer.auth, answer.answers, answer.rCode), (1, 1, [], 0))
        self.assertEqual(answer.queries[0].name.name, f"long.{BASE}".encode())
        whole = self.respond(message, STREAM)
        self.assertEqual((whole.trunc, self.texts(whole)), (0, [row.value.encode() for row in LONG]))

    def test_advertised_size(self) -> None:
        """A datagram has what the asker takes, 512 bytes at least, 1232 at most."""
        self.zone = make_zone(BASE, LONG[:5], NODES)
        for size, truncated in ((4096, 0), (1232, 0), (1000, 1), (512, 1), (0, 1)):
            self.assertEqual(self.respond(ask(f"long.{BASE}", Type.TXT, size=size)).trunc, truncated, size)
        self.zone = make_zone(BASE, LONG, NODES)
        self.assertEqual(self.respond(ask(f"long.{BASE}", Type.TXT, size=65535)).trunc, 1)
        self.zone = make_zone(BASE, LONG[:2], NODES)
        self.assertEqual(self.respond(ask(f"long.{BASE}", Type.TXT, size=0)).trunc, 0)

    def test_glue_goes_first(self) -> None:
        """Addresses beside NS records are left out before an answer is truncated (RFC 2181, 9)."""
        nodes = [type(NODES[0])(str(number), f"203.0.113.{number}") for number in range(1, 20)]
        self.zone = make_zone(BASE, (), nodes)
        answer = self.respond(ask(BASE, Type.NS))
        self.assertEqual((answer.trunc, len(answer.answers), answer.additional), (0, 19, []))
        self.assertEqual(len(self.respond(ask(BASE, Type.NS, size=4096)).additional), 19)

    def test_brief(self) -> None:
        """A brief answer says TC and is no longer than its question, whatever that is."""
        for message in (
            ask(f"long.{BASE}", Type.TXT),
            ask(f"turn.ns-a.{BASE}", size=1232),
            ask(BASE, Type.NS, size=512, dnssec=True),
            ask(f"no.{BASE}"),
            ask("example.org"),
            ask()[:-1],
        ):
            answer = self.respond(message, brief=True)
            self.assertLessEqual(len(self.raw), len(message))
            self.assertEqual(answer.trunc, int(answer.rCode != Rcode.FORMERR))

    def test_no_amplification(self) -> None:
        """What a stranger gets for one datagram about names that always exist stays below 512 bytes."""
        for name in (BASE, f"turn.ns-a.{BASE}", f"ns1.{BASE}", f"no.{BASE}"):
            for kind in (Type.ANY, Type.NS, Type.SOA, Type.A, Type.TXT):
                self.assertLess(len(self.answering.respond(ask(name, kind, size=65535)) or b""), 512)


class GarbageTests(AnsweringCase):
    def check(self, message: bytes) -> None:
        raw = self.answering.respond(message)
        if raw is not None:
            self.assertEqual(raw[:2], message[:2])
            self.assertTrue(raw[2] & 0x80)
            self.assertLessEqual(len(raw), DATAGRAM)
            dns.Message().fromStr(raw)

    @given(st.binary(max_size=600))
    def test_garbage(self, message: bytes) -> None:
        """Any datagram is answered by an answer or by nothing."""
        self.check(message)

    @given(st.data())
    def test_bent(self, data: st.DataObject) -> None:
        """So is a right query with some bytes changed and an end cut off."""
        name = data.draw(st.sampled_from([f"turn.ns-a.{BASE}", BASE, f"long.{BASE}", "example.org"]))
        message = bytearray(ask(name, data.draw(st.sampled_from([1, 2, 6, 16, 28, 41, 255])), size=4096))
        for at, bits in data.draw(st.dictionaries(st.integers(0, len(message) - 1), st.integers(1, 255))).items():
            message[at] ^= bits
        self.check(bytes(message[: data.draw(st.integers(0, len(message)))] or message))
        self.check(bytes(message))
