"""RTP parsers on 100,000 random, truncated and changed packets: a value or ``RtpError``, nothing else."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import video
from orama.wire.rtp import Layouts, RtpError, elements, header_length, parse
from tests.wire.test_rtp import packets

EXAMPLES, CHANGES = 500, 200


def changed(data: bytes, random: Random) -> bytes:
    """Cut, with some bytes overwritten."""
    made = bytearray(data[: random.randint(0, len(data))] if random.random() < 0.5 else data)
    for _ in range(random.randint(0, 3)):
        if made:
            made[random.randrange(min(len(made), 40))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return bytes(made)


class RtpFuzzTests(SynchronousTestCase):
    def test_total(self) -> None:
        """Bad input never raises anything but the one error, and what parses can be written again."""
        seen, read, layouts = [0], [0], Layouts()

        def one(data: bytes) -> None:
            seen[0] += 1
            try:
                packet = parse(data)
                read[0] += 1
                header = data[: header_length(data)]
                self.assertEqual(layouts.elements(header), elements(header))
                for detect in (video.vp8, video.vp9, video.h264, video.av1):
                    detect(packet.payload)
            except RtpError:
                return
            again = parse(packet.serialize())
            self.assertEqual(again.payload, packet.payload)

        @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
        @given(packets.map(lambda packet: packet.serialize()) | st.binary(max_size=200), st.integers(0, 1 << 32))
        def run(base: bytes, seed: int) -> None:
            random = Random(seed)
            for _ in range(CHANGES):
                one(changed(base, random))
            one(random.randbytes(random.randint(0, 64)))

        run()
        self.assertGreaterEqual(seen[0], 100_000)
        self.assertGreater(read[0], 1000)
