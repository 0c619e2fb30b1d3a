"""Redundant audio as bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire.red import MAX_BLOCKS, Block, RedError, parse, renumber, serialize

copies = st.lists(
    st.builds(Block, st.integers(0, 127), st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=MAX_BLOCKS - 1
)
primaries = st.builds(Block, st.integers(0, 127), st.just(0), st.binary(max_size=60))


class RedTests(SynchronousTestCase):
    def test_chromium(self) -> None:
        """A payload as Chromium writes it: the frame before, 960 units earlier, and the frame."""
        payload = bytes.fromhex("ef0f0003" + "6f" + "aabbcc" + "ddeeff00")
        self.assertEqual(parse(payload), (Block(111, 960, b"\xaa\xbb\xcc"), Block(111, 0, b"\xdd\xee\xff\x00")))
        self.assertEqual(serialize(parse(payload)), payload)

    def test_primary_alone(self) -> None:
        """The first packet of all has no copy."""
        self.assertEqual(parse(b"\x6fabc"), (Block(111, 0, b"abc"),))

    @given(copies, primaries)
    def test_round_trip(self, before: list[Block], primary: Block) -> None:
        """What is written is read again, and numbers change alone."""
        blocks = (*before, primary)
        payload = serialize(blocks)
        self.assertEqual(parse(payload), blocks)
        other = tuple(
            Block(7 if each.payload_type == 111 else each.payload_type, each.offset, each.data) for each in blocks
        )
        self.assertEqual(parse(renumber(payload, {111: 7})), other)

    @given(st.binary(max_size=80))
    def test_any_bytes(self, payload: bytes) -> None:
        """Any bytes are blocks or one error, and no byte is in two blocks."""
        try:
            blocks = parse(payload)
        except RedError:
            return
        self.assertLessEqual(sum(len(each.data) for each in blocks) + 4 * len(blocks) - 3, len(payload))
        self.assertEqual(serialize(blocks), payload)

    def test_malformed(self) -> None:
        """Nothing, headers without an end, a block that is longer than the packet, headers without number."""
        for payload in (b"", b"\xef", b"\xef\x0f\x00\x03", b"\xef\x0f\x00\x03\x6fab", b"\xef\0\0\0" * 40 + b"\x6f"):
            self.assertRaises(RedError, parse, payload)
        for payload in (b"", b"\xef\x0f\x00\x03", b"\xef\0\0\0" * 40 + b"\x6f"):
            self.assertRaises(RedError, renumber, payload, {})

    def test_out_of_range(self) -> None:
        """What the fields cannot hold is refused."""
        for blocks in (
            (),
            (Block(128, 0, b""),),
            (Block(111, 0x4000, b""), Block(111, 0, b"")),
            (Block(111, 1, bytes(1024)), Block(111, 0, b"")),
            (Block(111, 5, b""),),
        ):
            self.assertRaises(RedError, serialize, blocks)
