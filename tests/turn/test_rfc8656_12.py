"""RFC 8656, 12: channels."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from orama.wire import channeldata, stun
from orama.wire.stun import Method
from tests.turn.world import PEER, World, code

BESIDE = (PEER[0], PEER[1] + 1)


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate((stun.LIFETIME, 3600))

    def sent(self) -> list[tuple[list[bytes], tuple[str, int]]]:
        opened = self.world.opened.get(self.client.relay)
        if opened is None:
            return []
        sent = list(opened[0].sent)
        opened[0].sent.clear()
        return sent

    def comes(self, source: tuple[str, int], payload: bytes = b"x") -> list[bytes]:
        self.client.link.packets()
        self.world.opened[self.client.relay][1]([memoryview(payload)], source)
        return self.client.link.packets()

    def test_12_2_both_attributes(self) -> None:
        """ChannelBind without CHANNEL-NUMBER or without XOR-PEER-ADDRESS is 400."""
        self.assertEqual(code(self.client.ask(Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, 0x4000))), 400)
        self.assertEqual(code(self.client.ask(Method.CHANNEL_BIND, (stun.XOR_PEER_ADDRESS, PEER))), 400)

    def test_12_2_range(self) -> None:
        """Numbers under 0x4000 and from 0x8000 on are 400; those of RFC 5766 behind 0x4FFF are still taken."""
        for number in (0, 1, 0x3FFF, 0x8000, 0xFFFF):
            self.assertEqual(code(self.client.bind(number, PEER)), 400, hex(number))
        for port, number in enumerate((0x4000, 0x4FFF, 0x5000, 0x7FFF), 1):
            self.assertEqual(code(self.client.bind(number, (PEER[0], port))), 0, hex(number))

    def test_12_2_bound_otherwise(self) -> None:
        """A number of another peer and a peer of another number are 400, and what was bound stands."""
        self.client.bind(0x4000, PEER)
        self.assertEqual(code(self.client.bind(0x4000, BESIDE)), 400)
        self.assertEqual(code(self.client.bind(0x4001, PEER)), 400)
        self.client.data(0x4000, b"x")
        self.client.data(0x4001, b"y")
        self.assertEqual(self.sent(), [([b"x"], PEER)])

    def test_12_2_family(self) -> None:
        """A peer of a family that the allocation does not have is 443."""
        self.assertEqual(code(self.client.bind(0x4000, ("2001:db8::1", 1))), 443)

    def test_12_2_forbidden(self) -> None:
        """A peer that is shut, by its address or by its port, is 403."""
        self.assertEqual(code(self.client.bind(0x4000, ("8.8.8.8", 53))), 403)
        self.assertEqual(code(self.client.bind(0x4000, (PEER[0], 0))), 403)

    def test_12_2_capacity(self) -> None:
        """508 above 256 channels; those that are there are refreshed."""
        for port in range(1, 257):
            self.client.bind(0x4000 + port, (PEER[0], port))
        self.assertEqual(code(self.client.bind(0x4400, (PEER[0], 300))), 508)
        self.assertEqual(code(self.client.bind(0x4001, (PEER[0], 1))), 0)

    def test_12_lifetime(self) -> None:
        """A channel lasts for 600 s, whatever passes, and is refreshed by binding it again; a permission for 300 s."""
        self.client.bind(0x4000, PEER)
        self.world.clock.advance(299)
        self.assertEqual(self.comes(PEER), [b"\x40\0\0\1x"])
        self.world.clock.advance(1)
        self.assertEqual(self.comes(PEER), [], "the channel is there, the permission is not")
        self.client.permit(PEER)
        self.assertEqual(self.comes(PEER), [b"\x40\0\0\1x"], "12.5: as ChannelData, since it is bound")
        self.world.clock.advance(299)
        self.client.data(0x4000, b"x")
        self.assertEqual(self.sent(), [([b"x"], PEER)])
        self.world.clock.advance(1)
        self.client.data(0x4000, b"x")
        self.assertEqual(self.sent(), [], "12.6: unbound, and data has refreshed nothing")
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)
        self.world.clock.advance(500)
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)
        self.world.clock.advance(500)
        self.client.data(0x4000, b"x")
        self.assertEqual(self.sent(), [([b"x"], PEER)])

    def test_12_expired_channel_is_free(self) -> None:
        """An expired number may stand for another peer, and an expired peer have another number."""
        self.client.bind(0x4000, PEER)
        self.world.clock.advance(600)
        self.assertEqual(code(self.client.bind(0x4000, BESIDE)), 0)
        self.assertEqual(code(self.client.bind(0x4001, PEER)), 0)

    def test_12_of_one_allocation(self) -> None:
        """Two allocations may use one number for two peers, and two numbers for one peer."""
        other = self.world.client(port=2)
        other.allocate()
        answers = [self.client.bind(0x4000, PEER), other.bind(0x4000, BESIDE), other.bind(0x4001, PEER)]
        self.assertEqual(list(map(code, answers)), [0, 0, 0])

    def test_12_ends_with_the_allocation(self) -> None:
        """With the allocation its channels are gone: a new one on the same five-tuple has none."""
        self.client.bind(0x4000, PEER)
        self.client.refresh((stun.LIFETIME, 0))
        self.client.allocate()
        self.client.data(0x4000, b"x")
        self.assertEqual(self.sent(), [])

    def test_12_5_mixed(self) -> None:
        """A client may mix ChannelData and Send for a peer; from the server it gets ChannelData."""
        self.client.bind(0x4000, PEER)
        self.client.data(0x4000, b"1")
        self.client.send(PEER, b"2")
        self.client.data(0x4000, b"3")
        self.assertEqual([packets for packets, _ in self.sent()], [[b"1"], [b"2"], [b"3"]])

    def test_12_5_padding(self) -> None:
        """Over UDP ChannelData leaves without padding, and comes with or without."""
        self.client.bind(0x4000, PEER)
        self.client.give(channeldata.pack(0x4000, b"abc", padded=True), channeldata.pack(0x4000, b"abc"))
        self.assertEqual(b"".join(b"".join(packets) for packets, _ in self.sent()), b"abcabc")
        self.assertEqual(self.comes(PEER, b"abc"), [b"\x40\0\0\3abc"])

    def test_12_6_reserved(self) -> None:
        """First bytes from 0x80 on, and numbers that nobody bound, are discarded in silence."""
        self.client.bind(0x4000, PEER)
        for number in (0x4001, 0x5000, 0x7FFF, 0x8000, 0xFFFF):
            self.assertEqual(self.client.give(struct.pack("!HH", number, 1) + b"x"), [])
        self.assertEqual(self.sent(), [])

    def test_12_6_too_short(self) -> None:
        """ChannelData that says more than the datagram holds is discarded."""
        self.client.bind(0x4000, PEER)
        self.client.give(struct.pack("!HH", 0x4000, 5) + b"four")
        self.client.give(struct.pack("!HH", 0x4000, 4)[:3])
        self.assertEqual(self.sent(), [])

    def test_12_6_empty(self) -> None:
        """ChannelData of length 0 makes an empty datagram, and an empty datagram ChannelData of length 0."""
        self.client.bind(0x4000, PEER)
        self.client.data(0x4000, b"")
        self.assertEqual(self.sent(), [([b""], PEER)])
        self.assertEqual(self.comes(PEER, b""), [b"\x40\0\0\0"])
