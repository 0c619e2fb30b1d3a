"""A million inputs for the parsers in every run, the same in each; what coverage has found is among them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.mutation import inputs
from tests.fuzz.targets import TARGETS

#: Of each target's mutations.
SEED = 20261122
#: Inputs in all, at the least.
TOTAL = 1_000_000


class ParserTests(SynchronousTestCase):
    def fuzz(self, name: str, least: float) -> None:
        """Try the target with all of its inputs, of which it has to take the share *least*."""
        target = TARGETS[name]
        tried = taken = 0
        for data in inputs(target.seeds, SEED, target.count, target.repair):
            try:
                taken += target.run(data)
            except Exception as error:
                self.fail(f"{name}: {error!r} with input {tried} of seed {SEED}, {data.hex()}")
            tried += 1
        self.assertEqual(tried, target.count)
        self.assertGreater(taken, tried * least, "the inputs have to reach what lies behind the first check")

    def test_stun(self) -> None:
        """STUN is read as a second reader reads it, or is one error."""
        self.fuzz("stun", 0.1)

    def test_indications(self) -> None:
        """The short way for Send indications never differs from the general codec."""
        self.fuzz("indications", 0.1)

    def test_channeldata(self) -> None:
        """ChannelData is a number and a payload that lies within its datagram, or one error."""
        self.fuzz("channeldata", 0.3)

    def test_proxy(self) -> None:
        """A PROXY header is taken when it is whole, with an address, or is one error as soon as it cannot be one."""
        self.fuzz("proxy", 0.03)

    def test_hello(self) -> None:
        """A ClientHello is the same however it is cut and whatever follows it."""
        self.fuzz("hello", 0.2)

    def test_framing(self) -> None:
        """A stream falls into the same messages however it arrives."""
        self.fuzz("framing", 0.1)

    def test_username(self) -> None:
        """User names are taken in their one form only."""
        self.fuzz("username", 0.1)

    def test_nonce(self) -> None:
        """No nonce is good but the one that was issued."""
        self.fuzz("nonce", 0)

    def test_ticket(self) -> None:
        """No mobility ticket is good but one that was written."""
        self.fuzz("ticket", 0)

    def test_dns(self) -> None:
        """DNS queries are read as Twisted Names reads them, or are one error."""
        self.fuzz("dns", 0.05)

    def test_rtp(self) -> None:
        """RTP is read and written again, or is one error; keyframes are looked for in anything."""
        self.fuzz("rtp", 0.4)

    def test_red(self) -> None:
        """Redundant audio is blocks or one error."""
        self.fuzz("red", 0.1)

    def test_payload(self) -> None:
        """Payload descriptors of VP8 and VP9 lie within their payload and are renumbered in place, or are one error."""
        self.fuzz("payload", 0.5)

    def test_descriptor(self) -> None:
        """Dependency descriptors are read and written again, or are one error."""
        self.fuzz("descriptor", 0.2)

    def test_rtcp(self) -> None:
        """RTCP is read into bounded values, or is one error."""
        self.fuzz("rtcp", 0.3)

    def test_feedback(self) -> None:
        """Whatever is said of whatever left, the books of what is under way stay sound."""
        self.fuzz("feedback", 0.2)

    def test_sctp(self) -> None:
        """What comes on an association of data channels leaves it within its bounds, or is one error."""
        self.fuzz("sctp", 0.2)

    def test_sdp(self) -> None:
        """Descriptions are read, with every attribute in them, or are one error."""
        self.fuzz("sdp", 0.15)

    def test_stream(self) -> None:
        """A client's stream does the same in one piece and in many."""
        self.fuzz("stream", 0.2)

    def test_session(self) -> None:
        """Sessions of signed requests with any attributes get nothing from a TURN server that they should not."""
        self.fuzz("session", 0.2)

    def test_messages(self) -> None:
        """Frames of signalling are a message or one error with its code."""
        self.fuzz("messages", 0.01)

    def test_how_many(self) -> None:
        """Every target is tried here, and there are a million inputs in all."""
        self.assertEqual(
            {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")} - OTHERS, {*TARGETS}
        )
        self.assertGreaterEqual(sum(target.count for target in TARGETS.values()), TOTAL)

    @settings(max_examples=1000, deadline=None, database=None, derandomize=True)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes at all, which Hypothesis chooses without knowing a format."""
        for target in TARGETS.values():
            target.run(data)


#: Tests that are named after no target.
OTHERS = {"how_many", "any_bytes"}
