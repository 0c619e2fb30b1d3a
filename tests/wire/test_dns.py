"""DNS queries as bytes."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from orama.wire.dns import Edns, FormatError, Head, Query, Type, read_head, read_query

OPT = bytes.fromhex("00 0029 04d0 00008000 0000")


def message(
    name: bytes = b"turn.lab.example", kind: int = Type.A, cls: int = dns.IN, tail: bytes = b"", *, more: int = 0
) -> bytes:
    """A query, *tail* being *more* additional records."""
    query = dns.Message(0x1234, recDes=1)
    query.addQuery(name, kind, cls)
    raw = query.toStr()
    return raw[:10] + more.to_bytes(2, "big") + raw[12:] + tail


def read(raw: bytes) -> Query:
    head = read_head(raw)
    assert head is not None
    return read_query(head, raw)


class QueryTests(SynchronousTestCase):
    def test_query(self) -> None:
        """A query is read with the case of its name."""
        query = read(message(b"TURN.lab.Example", Type.TXT))
        self.assertEqual(query.head, Head(0x1234, 0, True))
        self.assertEqual((query.name, query.labels), ("TURN.lab.Example", (b"TURN", b"lab", b"Example")))
        self.assertEqual((query.type, query.cls, query.edns), (Type.TXT, dns.IN, None))

    def test_root(self) -> None:
        """The root has no labels."""
        self.assertEqual((read(message(b"")).labels, read(message(b"")).name), ((), ""))

    def test_dot_in_a_label(self) -> None:
        """A dot within a label, and every other unusual byte, is told from a dot between labels."""
        raw = b"\x12\x34\0\0\0\1\0\0\0\0\0\0" + b"\x08a.lab\xff\x00\\\x07example\0" + b"\0\1\0\1"
        self.assertEqual(read(raw).name, "a\\046lab\\255\\000\\092.example")

    def test_answers(self) -> None:
        """Answers, and what is too short to be anything, have no head."""
        answer = bytearray(message())
        answer[2] |= 0x80
        self.assertIsNone(read_head(bytes(answer)))
        self.assertIsNone(read_head(message()[:11]))

    def test_edns(self) -> None:
        """Size, version and the DNSSEC bit of an OPT record are read, wherever among the additional records it is."""
        self.assertEqual(read(message(tail=OPT, more=1)).edns, Edns(0, 1232, True))
        other = dns.RRHeader(b"", dns.TSIG, 255, 0, dns.UnknownRecord(b"x" * 40))
        other.type = other.payload.TYPE = 250
        raw = dns.Message(maxSize=0)
        raw.additional = [other]
        self.assertEqual(read(message(tail=raw.toStr()[12:] + OPT, more=2)).edns, Edns(0, 1232, True))
        version = bytes.fromhex("00 0029 0200 00010000 0004 000a0000")
        self.assertEqual(read(message(tail=version, more=1)).edns, Edns(1, 512, False))

    def test_malformed(self) -> None:
        """No question or several, compressed and overlong names, and whatever is cut off or too much, is malformed."""
        question = message()[12:]
        head = b"\x12\x34\0\0\0\1\0\0\0\0\0\0"
        name = b"\x3f" + b"a" * 63
        cases = {
            "no question": message()[:4] + b"\0\0" + message()[6:12],
            "two questions": message()[:4] + b"\0\2" + message()[6:] + question,
            "stray bytes": message() + b"\0",
            "cut off": message()[:-1],
            "cut name": message()[:20],
            "pointer": head + b"\xc0\x0c\0\1\0\1",
            "pointer behind a label": head + b"\1a\xc0\x0c\0\1\0\1",
            "long label": head + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
            "long name": head + name * 4 + b"\0\0\1\0\1",
            "record promised": message(more=1),
            "two OPT": message(tail=OPT + OPT, more=2),
            "OPT with a name": message(tail=b"\1a" + OPT, more=1),
            "OPT with a pointer": message(tail=b"\xc0\x0c" + OPT[1:], more=1),
            "OPT cut off": message(tail=OPT[:-2] + b"\0\1", more=1),
            "option cut off": message(tail=OPT[:-2] + b"\0\5" + b"\0\1\0\2x", more=1),
        }
        for what, raw in cases.items():
            with self.subTest(what):
                self.assertRaises(FormatError, read, raw)
        self.assertEqual(len(read(head + name * 3 + b"\x3d" + b"a" * 61 + b"\0\0\1\0\1").labels), 4)

    @given(st.binary(max_size=300))
    @example(b"\0\0\0\0\0\1\0\0\0\0\xff\xff\0\0\1\0\1" + b"\0" * 11)
    def test_total(self, raw: bytes) -> None:
        """Any bytes give a query, or are none."""
        for each in (raw, b"\x12\x34\0\0\0\1\0\0\0\0\0\1" + raw):
            try:
                read_head(each) and read(each)
            except FormatError:
                pass

    @given(st.lists(st.binary(min_size=1, max_size=63), max_size=3), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
    def test_any_question(self, labels: list[bytes], kind: int, cls: int) -> None:
        """Any question that is one is read as it stands, and its text has as many dots as it has parts."""
        name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
        raw = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + name + kind.to_bytes(2, "big") + cls.to_bytes(2, "big")
        query = read(raw)
        self.assertEqual((query.labels, query.type, query.cls), (tuple(labels), kind, cls))
        self.assertEqual(query.name.count("."), max(0, len(labels) - 1))
