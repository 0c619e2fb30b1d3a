"""The RTCP parser on 100,000 random, truncated and changed packets: values or ``RtcpError``, nothing else."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire.rtcp import RtcpError, parse, serialize
from tests.fuzz.test_rtp import CHANGES, EXAMPLES, changed
from tests.wire.test_rtcp import packets


class RtcpFuzzTests(SynchronousTestCase):
    def test_total(self) -> None:
        """Bad input never raises anything but the one error."""
        seen, read = [0], [0]

        @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
        @given(st.lists(packets, max_size=3).map(serialize) | st.binary(max_size=200), st.integers(0, 1 << 32))
        def run(base: bytes, seed: int) -> None:
            random = Random(seed)
            for number in range(CHANGES + 1):
                data = changed(base, random) if number else random.randbytes(random.randint(0, 64))
                seen[0] += 1
                try:
                    parse(data)
                    read[0] += 1
                except RtcpError:
                    pass

        run()
        self.assertGreaterEqual(seen[0], 100_000)
        self.assertGreater(read[0], 1000)
