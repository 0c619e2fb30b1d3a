"""Random and bent datagrams into a media port: nothing raises, nothing is kept, nothing is answered."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Fabric
from orama.sfu.ice import IceAgent, MediaPort
from tests.sfu.test_ice import FAR, MEDIA, RELAY, RULE, MemorySocket, check

COUNT = 100_000


class MediaPortFuzz(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.fabric = Fabric(self.clock)
        self.socket = MemorySocket()
        self.port = MediaPort("default", self.fabric, self.socket, RULE)
        self.agent = IceAgent(self.clock, random.Random(1))
        self.port.add(self.agent)
        self.heard = 0
        self.answers = 0
        self.agent.on_media = lambda packets: self.hear(len(packets))
        self.agent.on_dtls = lambda datagram: self.hear(1)
        self.fabric.attach(RELAY, lambda packets, source: self.answer(len(packets)))

    def hear(self, count: int) -> None:
        self.heard += count

    def answer(self, count: int) -> None:
        self.answers += count

    def assert_untouched(self) -> None:
        self.assertEqual((self.heard, self.answers, self.socket.sent), (0, 0, []))
        self.assertEqual(self.agent.addresses(), [])
        self.assertIsNone(self.agent.selected)

    def test_random(self) -> None:
        """10⁵ datagrams, random or cut from a right check with bytes changed, by both ways and from anywhere."""
        generator = random.Random(20260)
        good = check(self.agent, nominate=True)
        sources = [RELAY, FAR, ("192.0.2.9", 5), ("::1", 50000)]
        for i in range(COUNT // 4):
            burst = []
            for _ in range(4):
                if generator.getrandbits(1):
                    bent = bytearray(good)
                    for _ in range(generator.randrange(1, 4)):
                        bent[generator.randrange(len(bent))] ^= generator.randrange(1, 256)
                    burst.append(bytes(bent[: generator.randrange(len(bent) + 1)] if i % 2 else bent))
                else:
                    burst.append(generator.randbytes(generator.randrange(80)))
            if i % 3:
                self.fabric.deliver(burst, sources[i % 4], MEDIA)
            else:
                self.socket.received(burst, sources[i % 4])
        self.assert_untouched()
        self.assertEqual(sum(self.port.counters.dropped.values()), COUNT)
        self.assertLess(len(self.port.counters.dropped), 12)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
    def test_any_burst(self, burst: list[bytes], fabric: bool) -> None:
        """Any burst from a relay that proved nothing is dropped packet by packet."""
        before = sum(self.port.counters.dropped.values())
        if fabric:
            self.fabric.deliver(burst, RELAY, MEDIA)
        else:
            self.socket.received(burst, FAR)
        self.assert_untouched()
        self.assertEqual(sum(self.port.counters.dropped.values()), before + len(burst))

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.binary(max_size=200), max_size=8))
    def test_any_burst_of_a_client(self, burst: list[bytes]) -> None:
        """From a client's own address every packet is heard, or dropped and counted; none is lost between."""
        self.fabric.deliver([check(self.agent)], RELAY, MEDIA)
        before = sum(self.port.counters.dropped.values()) + self.heard
        self.fabric.deliver(burst, RELAY, MEDIA)
        self.assertEqual(sum(self.port.counters.dropped.values()) + self.heard, before + len(burst))
