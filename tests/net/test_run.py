"""Runs: packets of one size in one buffer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.net.run import Run


def cut(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


class RunTests(SynchronousTestCase):
    @given(st.binary(min_size=1, max_size=300), st.integers(1, 100))
    def test_is_the_sequence_of_its_packets(self, data: bytes, step: int) -> None:
        """A run is a sequence of the packets that it was cut into, by index, by slice and in order."""
        run, packets = Run.cut(memoryview(data), step), cut(data, step)
        self.assertEqual(list(map(bytes, run)), packets)
        self.assertEqual(len(run), len(packets))
        self.assertEqual([bytes(run[i]) for i in range(len(run))], packets)
        self.assertEqual(bytes(run[-1]), packets[-1])
        self.assertEqual(list(map(bytes, run[1:])), packets[1:])
        self.assertEqual(run.total, len(data))
        self.assertRaises(IndexError, run.__getitem__, len(packets))

    @given(st.binary(min_size=20, max_size=300), st.integers(8, 40), st.integers(0, 4), st.data())
    def test_parts_and_inner(self, data: bytes, step: int, skip: int, more: st.DataObject) -> None:
        """A part has those packets, and the inner run has them without their heads; they nest."""
        packets = cut(data, step)
        if len(packets[-1]) <= skip:
            packets.pop()
            data = data[: len(packets) * step]
        run = Run.cut(memoryview(data), step)
        start = more.draw(st.integers(0, len(packets) - 1))
        end = more.draw(st.integers(start + 1, len(packets)))
        part = run.part(start, end)
        self.assertEqual(list(map(bytes, part)), packets[start:end])
        inner = part.inner(skip, part.size - skip, part.last - skip)
        self.assertEqual(list(map(bytes, inner)), [packet[skip:] for packet in packets[start:end]])
        self.assertEqual(inner.total, sum(len(packet) - skip for packet in packets[start:end]))

    def test_alike(self) -> None:
        """All but the last begin with the same bytes, or not; a difference in any of them is seen."""
        data = b"abcd1234" * 5 + b"xbcd"
        for starts in (range(0, 44, 8), [0, 8, 16, 24, 32, 40]):
            self.assertTrue(Run(memoryview(data), starts, 8, 4).heads_alike())
            for at in range(40):
                other = bytearray(data)
                other[at] ^= 1
                self.assertEqual(Run(memoryview(other), starts, 8, 4).heads_alike(), at % 8 >= 4, at)

    def test_scattered(self) -> None:
        """Packets that lie apart are a run like any other."""
        run = Run(memoryview(b"--aaaa..bbbb--cc"), [2, 8, 14], 4, 2)
        self.assertEqual(list(map(bytes, run)), [b"aaaa", b"bbbb", b"cc"])
        self.assertEqual(list(map(bytes, run.inner(1, 2, 1))), [b"aa", b"bb", b"c"])
        self.assertEqual(list(map(bytes, run.part(0, 2))), [b"aaaa", b"bbbb"])
        self.assertEqual([bytes(run[i]) for i in (0, 1, 2, -1)], [b"aaaa", b"bbbb", b"cc", b"cc"])
        self.assertEqual(run.total, 10)
