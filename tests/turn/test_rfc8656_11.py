"""RFC 8656, 11: the Send and Data methods, and what ICMP has to say."""

from __future__ import annotations

from ipaddress import ip_network

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Address
from orama.net.icmp import IcmpError
from orama.wire import stun
from orama.wire.stun import Attribute, Class, Family, Message, Method
from tests.turn.world import MYAPP, PEER, SFU, World, code

OTHER = ("198.51.100.8", 4000)
PEER6 = ("2001:db8:2::7", 4000)


class RelayTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(relay_ip6="2001:db8:1::1")
        opened = (*MYAPP.allowed_peers, ip_network("2001:db8:2::/64"))
        self.world.tenants.put(evolve(MYAPP, allowed_peers=opened))
        self.client = self.world.client()
        answer = self.client.allocate((stun.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        self.four, self.six = answer.all(stun.XOR_RELAYED_ADDRESS)
        self.client.permit(PEER, PEER6)

    def sent(self, relay: Address | None = None) -> list[tuple[list[bytes], Address]]:
        link = self.world.opened[relay or self.four][0]
        sent = list(link.sent)
        link.sent.clear()
        return sent

    def indicate(self, *rows: tuple[Attribute[object], object]) -> list[bytes]:
        """Give a Send indication of exactly *rows*."""
        return self.client.give(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, rows))

    def comes(self, source: Address, *payloads: bytes) -> list[Message]:
        """What the client gets for what *source* sends."""
        self.client.link.packets()
        relay = self.six if ":" in source[0] else self.four
        self.world.opened[relay][1]([memoryview(payload) for payload in payloads], source)
        return [stun.parse(packet) for packet in self.client.link.packets()]


class SendTests(RelayTestCase):
    def test_11_2_both_attributes(self) -> None:
        """A Send indication without peer, without data or with an invalid one is discarded."""
        peer, data = (stun.XOR_PEER_ADDRESS, PEER), (stun.DATA, b"x")
        broken = (Attribute(stun.XOR_PEER_ADDRESS.type, "BROKEN", stun.DATA.format), b"\0\1")
        for rows in ((peer,), (data,), (broken, data), ()):
            self.assertEqual(self.indicate(*rows), [])
        self.assertEqual(self.sent(), [])
        self.indicate(data, peer)
        self.assertEqual(self.sent(), [([b"x"], PEER)])

    def test_11_2_no_data(self) -> None:
        """DATA may have zero bytes: an empty datagram leaves."""
        self.client.send(PEER, b"")
        self.assertEqual(self.sent(), [([b""], PEER)])

    def test_11_2_permission(self) -> None:
        """Without a permission for the peer's IP it is discarded, and none comes of it."""
        self.client.send(OTHER, b"x")
        self.client.send(OTHER, b"x")
        self.assertEqual(self.sent(), [])

    def test_11_2_peer_that_is_shut(self) -> None:
        """A port that the rules shut is discarded in silence, though the IP is permitted."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        self.world.sfu(SFU)
        self.client.permit(SFU)
        self.assertEqual(self.client.send((SFU[0], 22), b"x"), [])
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "forbidden_peer"], 1)

    def test_11_2_source_and_destination(self) -> None:
        """The datagram leaves from the relayed address of the peer's family, for the peer, with the data alone."""
        for peer, relay in ((PEER, self.four), (PEER6, self.six)):
            for size in (1, 2, 3, 4, 1200):
                self.client.send(peer, b"d" * size)
                self.assertEqual(self.sent(relay), [([b"d" * size], peer)])

    def test_11_2_dont_fragment(self) -> None:
        """DONT-FRAGMENT has the datagram sent whole; without it, it may be fragmented."""
        link = self.world.opened[self.four][0]
        self.indicate((stun.XOR_PEER_ADDRESS, PEER), (stun.DONT_FRAGMENT, True), (stun.DATA, b"whole"))
        self.client.send(PEER, b"any")
        self.assertEqual((link.whole, [packets for packets, _ in self.sent()]), ([b"whole"], [[b"whole"], [b"any"]]))

    def test_11_2_dont_fragment_in_a_burst(self) -> None:
        """In a burst it holds for the one indication that has it."""
        link = self.world.opened[self.four][0]
        peer = (stun.XOR_PEER_ADDRESS, PEER)
        plain = [stun.build(Method.SEND, Class.INDICATION, b"t" * 12, [peer, (stun.DATA, b"%d" % n)]) for n in range(3)]
        rows = [(stun.DONT_FRAGMENT, True), peer, (stun.DATA, b"whole")]
        marked = stun.build(Method.SEND, Class.INDICATION, b"t" * 12, rows)
        self.client.give(*plain[:2], marked, plain[2])
        self.assertEqual(link.whole, [b"whole"])
        self.assertEqual(b"".join(b"".join(packets) for packets, _ in self.sent()), b"01whole2")


class DataTests(RelayTestCase):
    def test_11_3_data_indication(self) -> None:
        """What a permitted peer sends comes as a Data indication with its address and exactly its bytes."""
        for source in (PEER, PEER6):
            for payload in (b"", b"1", b"12", b"123", b"1234", b"x" * 1200):
                (message,) = self.comes(source, payload)
                self.assertEqual((message.method, message.cls), (Method.DATA, Class.INDICATION))
                self.assertEqual(message.get(stun.XOR_PEER_ADDRESS), source)
                self.assertEqual(message.get(stun.DATA), payload)
                self.assertEqual((message.unknown, message.malformed), ((), ()))

    def test_11_3_largest(self) -> None:
        """The largest datagram that UDP has makes a Data indication that can be read, over either family."""
        for source, size in ((PEER, 65507), (PEER6, 65487)):
            (message,) = self.comes(source, bytes(size))
            self.assertEqual(len(message.get(stun.DATA) or b""), size)

    def test_11_3_transactions(self) -> None:
        """Each indication has a transaction of its own."""
        found = {message.transaction_id for message in self.comes(PEER, *[b"x"] * 50)}
        self.assertEqual(len(found), 50)

    def test_11_3_channel(self) -> None:
        """Where a channel is bound there is no Data indication, but ChannelData."""
        self.client.bind(0x4000, PEER)
        self.client.link.packets()
        self.world.opened[self.four][1]([memoryview(b"x")], PEER)
        self.assertEqual(self.client.link.packets(), [b"\x40\x00\x00\x01x"])

    def test_11_3_without_permission(self) -> None:
        """What another address sends is discarded."""
        self.assertEqual(self.comes(OTHER, b"x"), [])


class IcmpTests(RelayTestCase):
    def told(self, error: IcmpError) -> list[Message]:
        """What the client gets when the kernel reports *error* on the relay's socket."""
        self.client.link.packets()
        unreachable = self.world.opened[self.six if ":" in error.to[0] else self.four][0].unreachable
        assert unreachable is not None
        unreachable(error)
        return [stun.parse(packet) for packet in self.client.link.packets()]

    def test_11_5_data_indication(self) -> None:
        """An ICMP error comes as a Data indication with the peer, its port too, and ICMP in the place of DATA."""
        for to, kind, number in ((PEER, 3, 3), (PEER6, 1, 4), (PEER, 11, 0)):
            (message,) = self.told(IcmpError(to, kind, number))
            self.assertEqual((message.method, message.cls), (Method.DATA, Class.INDICATION))
            self.assertEqual(message.get(stun.XOR_PEER_ADDRESS), to)
            self.assertEqual(message.get(stun.ICMP), (kind, number, 0))
            self.assertNotIn(stun.DATA, message)

    def test_11_5_mtu(self) -> None:
        """18.13: where the datagram was too big the error data is the MTU of the next hop."""
        for to, kind, number in ((PEER, 3, 4), (PEER6, 2, 0)):
            (message,) = self.told(IcmpError(to, kind, number, 1280))
            self.assertEqual(message.get(stun.ICMP), (kind, number, 1280))

    def test_11_5_permission(self) -> None:
        """The permission is that of the address which the datagram was for; without one nothing is told."""
        self.assertEqual(self.told(IcmpError(OTHER, 3, 3)), [])
        self.world.clock.advance(300)
        self.assertEqual(self.told(IcmpError(PEER, 3, 3)), [])

    def test_11_5_other_port(self) -> None:
        """Only addresses are compared, not ports; one that is not known is 0."""
        for port in (9, 0):
            (message,) = self.told(IcmpError((PEER[0], port), 3, 3))
            self.assertEqual(message.get(stun.XOR_PEER_ADDRESS), (PEER[0], port))

    def test_11_5_channel(self) -> None:
        """12.5: also where a channel is bound it comes as a Data indication."""
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)
        (message,) = self.told(IcmpError(PEER, 3, 3))
        self.assertEqual(message.method, Method.DATA)

    def test_18_13_layout(self) -> None:
        """The attribute has two bytes reserved, seven bits of type, nine of code and four bytes of data."""
        self.assertEqual(stun.ICMP.format.pack((3, 4, 1400), b"").hex(), "0000060400000578")
        self.assertEqual(stun.ICMP.format.unpack(bytes.fromhex("ffff060400000578"), b""), (3, 4, 1400))
