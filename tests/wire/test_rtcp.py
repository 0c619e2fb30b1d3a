"""RTCP packets (RFC 3550, 4585, 5104, 5506) and transport-wide feedback."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import rtcp, transport_cc
from orama.wire.transport_cc import MAX_STATUSES, TransportFeedback, TransportFeedbackError

word = st.integers(0, 0xFFFFFFFF)
blocks = st.lists(
    st.builds(
        rtcp.ReportBlock,
        ssrc=word,
        fraction_lost=st.integers(0, 255),
        packets_lost=st.integers(-0x800000, 0x7FFFFF),
        highest_sequence=word,
        jitter=word,
        last_report=word,
        delay=word,
    ),
    max_size=31,
).map(tuple)
sender_reports = st.builds(rtcp.SenderReport, word, st.integers(0, (1 << 64) - 1), word, word, word, blocks)
receiver_reports = st.builds(rtcp.ReceiverReport, word, blocks)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
descriptions = st.builds(rtcp.SourceDescription, st.lists(st.tuples(word, names), max_size=5).map(tuple))
goodbyes = st.builds(rtcp.Goodbye, st.lists(word, max_size=31).map(tuple))
losses = st.builds(rtcp.PictureLoss, word, word)
intra_requests = st.builds(
    rtcp.FullIntraRequest, word, st.lists(st.tuples(word, st.integers(0, 255)), max_size=9).map(tuple)
)
estimates = st.builds(
    rtcp.ReceiverEstimate,
    word,
    st.builds(lambda mantissa, exponent: mantissa << exponent, st.integers(0, 0x3FFFF), st.integers(0, 20)),
    st.lists(word, max_size=9).map(tuple),
)
deltas = st.none() | st.integers(0, 255) | st.integers(-32768, 32767)
feedbacks = st.builds(
    TransportFeedback,
    word,
    word,
    st.integers(0, 0xFFFF),
    st.integers(-0x800000, 0x7FFFFF),
    st.integers(0, 255),
    st.lists(st.tuples(deltas, st.integers(1, 40)), min_size=1, max_size=20).map(
        lambda runs: tuple(delta for delta, count in runs for _ in range(count))
    ),
)
packets = st.one_of(
    sender_reports, receiver_reports, descriptions, goodbyes, losses, intra_requests, estimates, feedbacks
)


class RoundTripTests(SynchronousTestCase):
    @given(st.lists(packets, min_size=1, max_size=4))
    def test_compound(self, made: list[rtcp.RtcpPacket]) -> None:
        """Every compound reads back as it was written; padding is only allowed in its last packet."""
        made = [each for each in made[:-1] if not isinstance(each, TransportFeedback)] + made[-1:]
        self.assertEqual(rtcp.parse(rtcp.serialize(made)), tuple(made))

    @given(st.integers(0, 0xFFFF), st.sets(st.integers(0, 300), min_size=1, max_size=80), word, word)
    def test_nack(self, start: int, offsets: set[int], sender: int, media: int) -> None:
        """Any set of numbers near each other, also across the wrap, is asked for once each."""
        numbers = tuple((start + offset) & 0xFFFF for offset in sorted(offsets))
        (parsed,) = rtcp.parse(rtcp.Nack(sender, media, numbers).serialize())
        self.assertEqual(parsed, rtcp.Nack(sender, media, numbers))

    def test_unknown(self) -> None:
        """A well-formed packet that nobody here reads is kept as it is."""
        for made in (rtcp.Unknown(207, 0, b"abcd"), rtcp.Unknown(205, 9, bytes(8)), rtcp.Unknown(206, 15, bytes(12))):
            self.assertEqual(rtcp.parse(made.serialize()), (made,))


class KnownBytesTests(SynchronousTestCase):
    def test_sender_report(self) -> None:
        """RFC 3550, 6.4.1."""
        data = bytes.fromhex("80c80006 00000001 0000000200000003 00000004 00000005 00000006".replace(" ", ""))
        self.assertEqual(rtcp.parse(data), (rtcp.SenderReport(1, 2 << 32 | 3, 4, 5, 6),))

    def test_loss_is_signed(self) -> None:
        """The cumulative number lost may be negative; what does not fit is limited (RFC 3550, A.3)."""
        block = rtcp.ReportBlock(1, packets_lost=-1)
        (report,) = rtcp.parse(rtcp.ReceiverReport(9, (block,)).serialize())
        self.assertEqual(report, rtcp.ReceiverReport(9, (block,)))
        (report,) = rtcp.parse(rtcp.ReceiverReport(9, (rtcp.ReportBlock(1, packets_lost=1 << 30),)).serialize())
        assert isinstance(report, rtcp.ReceiverReport)
        self.assertEqual(report.blocks[0].packets_lost, 0x7FFFFF)

    def test_nack(self) -> None:
        """One word names seventeen packets (RFC 4585, 6.2.1)."""
        data = rtcp.Nack(1, 2, (100, 101, 116, 117)).serialize()
        self.assertEqual(data.hex(), "81cd000400000001000000020064800100750000")

    def test_picture_loss(self) -> None:
        """RFC 4585, 6.3.1."""
        self.assertEqual(rtcp.PictureLoss(1, 2).serialize().hex(), "81ce00020000000100000002")

    def test_full_intra_request(self) -> None:
        """RFC 5104, 4.3.1."""
        data = rtcp.FullIntraRequest(1, ((2, 7),)).serialize()
        self.assertEqual(data.hex(), "84ce000400000001000000000000000207000000")

    def test_estimate(self) -> None:
        """REMB counts in powers of two, rounding down."""
        data = rtcp.ReceiverEstimate(1, 1_000_001, (2,)).serialize()
        self.assertEqual(data.hex(), "8fce00050000000100000000" + b"REMB".hex() + "010bd09000000002")
        (parsed,) = rtcp.parse(data)
        self.assertEqual(parsed, rtcp.ReceiverEstimate(1, 1_000_000, (2,)))

    def test_names_end_in_zeros(self) -> None:
        """Each chunk of a source description ends with at least one zero, on a word (RFC 3550, 6.5)."""
        for length in range(1, 9):
            data = rtcp.SourceDescription(((7, "x" * length), (8, "y"))).serialize()
            self.assertEqual(len(data) % 4, 0)
            self.assertEqual(rtcp.parse(data), (rtcp.SourceDescription(((7, "x" * length), (8, "y"))),))

    def test_many_blocks(self) -> None:
        """Thirty-one blocks fit into a report; more take several."""
        made = rtcp.reports(1, [rtcp.ReportBlock(each) for each in range(40)])
        self.assertEqual([len(each.blocks) for each in made], [31, 9])
        self.assertEqual([len(each.blocks) for each in rtcp.reports(1, [])], [0])


class MalformedTests(SynchronousTestCase):
    def test_refused(self) -> None:
        """Each malformed packet is the one typed error."""
        for text in (
            "",
            "80c8",
            "80c80001",
            "40c9000100000001",
            "81c9000100000001",
            "81c80006" + "00" * 24,
            "82cb000100000001",
            "81ca000100000001",
            "81ca00020000000101ff6161",
            "81cd000100000001",
            "81cd000300000001000000020064000080c8",
            "84ce0003000000010000000000000002",
            "8fce0004000000010000000052454d4202000000",
            "a0c9000100000000",
            "a0c9000100000005",
            "a0c900010000000180c9000100000001",
            "8fcd0004" + "00" * 16,
            "8fcd00050000000100000002000100010000000060010000",
            "8fcd00050000000100000002000100010000000000000000",
            "8fcd000500000001000000020001ffff000000005fff0000",
        ):
            self.assertRaises(rtcp.RtcpError, rtcp.parse, bytes.fromhex(text))

    def test_too_many(self) -> None:
        """A datagram full of the smallest packets is refused, not read."""
        self.assertEqual(len(rtcp.parse(b"\x80\xcb\0\0" * rtcp.MAX_PACKETS)), rtcp.MAX_PACKETS)
        self.assertRaises(rtcp.RtcpError, rtcp.parse, b"\x80\xcb\0\0" * (rtcp.MAX_PACKETS + 1))


class TransportFeedbackTests(SynchronousTestCase):
    def test_known_bytes(self) -> None:
        """Small and large deltas, a loss, one 2-bit vector, and padding that the RTCP header declares."""
        made = TransportFeedback(1, 2, 0xFFFE, 3, 4, (8, None, -4, 1000))
        data = made.serialize()
        self.assertEqual(data.hex(), "afcd00060000000100000002fffe000400000304d28008fffc03e801")
        self.assertEqual(rtcp.parse(data), (made,))

    def test_unread(self) -> None:
        """Who does not want it gets it as it came."""
        data = TransportFeedback(1, 2, 0xFFFE, 3, 4, (8, None, 1000)).serialize()
        (unread,) = rtcp.parse(data, transport_wide=False)
        assert isinstance(unread, rtcp.Unknown)
        self.assertEqual((unread.kind, unread.count), (rtcp.RTPFB, rtcp.TRANSPORT_CC))
        self.assertEqual(TransportFeedback.parse(unread.body), TransportFeedback.parse(data[4:]))

    def test_one_bit_vector(self) -> None:
        """The one-bit vectors that other implementations send are read too."""
        data = bytes.fromhex("8fcd000500000001000000020001000300000000a8000102")
        (parsed,) = rtcp.parse(data)
        assert isinstance(parsed, TransportFeedback)
        self.assertEqual(parsed.deltas, (1, None, 2))

    def test_bounds(self) -> None:
        """Nothing, too much, or a delta of more than 8 s is refused on the way out."""
        for deltas in ((), (None,) * (MAX_STATUSES + 1), (32768,), (-32769,)):
            self.assertRaises(TransportFeedbackError, TransportFeedback(1, 2, 3, 4, 5, deltas).serialize)

    def test_long_runs_are_short(self) -> None:
        """Thousands of equal statuses take a few bytes (draft-holmer, 3.1.3)."""
        made = TransportFeedback(1, 2, 0, 0, 0, (None,) * (MAX_STATUSES - 1) + (5,))
        self.assertLess(len(made.serialize()), 40)
        self.assertEqual(rtcp.parse(made.serialize()), (made,))

    def test_constants(self) -> None:
        """250 µs and 64 ms."""
        self.assertEqual(transport_cc.TICK * transport_cc.TICKS_PER_REFERENCE, 0.064)
