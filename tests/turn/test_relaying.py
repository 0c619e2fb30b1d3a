"""What passes between client and peer: ChannelData, Send and Data, through the fabric and the kernel's sockets."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Address, Buffer
from orama.wire import channeldata, stun
from orama.wire.stun import Class, Method
from tests.turn.world import FAR_SFU, MYAPP, OTHER_SFU, PEER, SFU, World, code


class RelayingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate()

    def drops(self, reason: str) -> float:
        return self.world.figures().get(("orama_turn_dropped_total", reason), 0)

    def from_kernel(self, source: Address, *payloads: bytes) -> list[bytes]:
        """What the client gets when *source* sends to the open relay port."""
        self.client.link.packets()
        _, received = self.world.opened[self.client.relay]
        received([memoryview(payload) for payload in payloads], source)
        return self.client.link.packets()

    def to_kernel(self) -> list[tuple[list[bytes], Address]]:
        link, _ = self.world.opened[self.client.relay]
        sent = list(link.sent)
        link.sent.clear()
        return sent

    def test_channel_to_peer(self) -> None:
        """A burst of one channel leaves as one burst, without headers, in order."""
        self.client.bind(0x4000, PEER)
        payloads = [bytes([number]) * 1200 for number in range(9)] + [b"short"]
        self.assertEqual(self.client.data(0x4000, *payloads), [])
        self.assertEqual(self.to_kernel(), [(payloads, PEER)])

    def test_channel_from_peer(self) -> None:
        """What the peer sends reaches the client as ChannelData, a burst as a burst, unpadded over UDP."""
        self.client.bind(0x4ABC, PEER)
        payloads = [b"x" * 1200, b"y" * 1200, b"zzz", b""]
        packets = self.from_kernel(PEER, *payloads)
        self.assertEqual([channeldata.unpack(packet) for packet in packets], [(0x4ABC, each) for each in payloads])
        self.assertEqual([len(packet) for packet in packets], [1204, 1204, 7, 4])

    def test_through_the_fabric(self) -> None:
        """Client and SFU of one process meet in memory, both ways, and nothing opens in the kernel."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        sfu = self.world.sfu(SFU)
        self.client.bind(0x4000, SFU)
        self.client.data(0x4000, b"up", b"up too")
        self.assertEqual(sfu, [([b"up", b"up too"], self.client.relay)])
        self.client.link.packets()
        self.assertTrue(self.world.fabric.deliver([b"down", b"down too"], SFU, self.client.relay))
        packets = self.client.link.packets()
        self.assertEqual([channeldata.unpack(each)[1] for each in packets], [b"down", b"down too"])
        self.assertEqual(self.world.opened, {})

    def test_padded(self) -> None:
        """ChannelData may be padded over UDP; the padding is not relayed (RFC 8656, 12.5)."""
        self.client.bind(0x4000, PEER)
        self.client.give(channeldata.pack(0x4000, b"abc", padded=True), channeldata.pack(0x4000, b"abcde", padded=True))
        self.assertEqual(self.to_kernel(), [([b"abc", b"abcde"], PEER)])

    def test_mixed_burst(self) -> None:
        """A burst of several channels, requests and junk is taken apart in order; only the junk is lost."""
        other = (PEER[0], 4001)
        self.client.bind(0x4000, PEER)
        self.client.bind(0x4001, other)
        answers = self.client.give(
            channeldata.pack(0x4000, b"1"),
            channeldata.pack(0x4000, b"2"),
            channeldata.pack(0x4001, b"3"),
            b"\x40\x00",
            stun.build(Method.BINDING, Class.REQUEST, b"t" * 12),
            b"\x40\x00\x00\xff" + b"overrun",
            channeldata.pack(0x4000, b"4"),
            channeldata.pack(0x4002, b"nobody's"),
            b"",
            channeldata.pack(0x4001, b"5"),
        )
        self.assertEqual(len(answers), 1)
        self.assertEqual(self.to_kernel(), [([b"1", b"2"], PEER), ([b"3"], other), ([b"4"], PEER), ([b"5"], other)])
        self.assertEqual((self.drops("malformed"), self.drops("no_channel")), (3, 1))

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=30),
                st.binary(max_size=30).map(lambda payload: channeldata.pack(0x4000, payload)),
                st.binary(max_size=30).map(lambda payload: channeldata.pack(0x4001, payload, padded=True)),
                st.binary(max_size=30).map(lambda tail: b"\x40\x00" + tail),
            ),
            max_size=12,
        )
    )
    def test_any_burst(self, packets: list[bytes]) -> None:
        """Of any burst exactly the well-formed ChannelData of bound channels is relayed, in order by channel."""
        world = World()
        client = world.client()
        client.allocate()
        other = (PEER[0], 4001)
        client.bind(0x4000, PEER)
        client.bind(0x4001, other)
        client.give(*packets)
        expected: dict[int, list[bytes]] = {0x4000: [], 0x4001: []}
        for packet in packets:
            try:
                number, payload = channeldata.unpack(packet)
            except channeldata.FrameError:
                continue
            if number in expected:
                expected[number].append(bytes(payload))
        link, _ = world.opened[client.relay]
        for number, peer in ((0x4000, PEER), (0x4001, other)):
            found = [payload for burst, to in link.sent if to == peer for payload in burst]
            self.assertEqual(found, expected[number])

    def test_send(self) -> None:
        """A Send indication to a permitted peer leaves without an answer."""
        self.client.permit(PEER)
        self.assertEqual(self.client.send(PEER, b"hello"), [])
        self.assertEqual(self.client.send((PEER[0], 9), b""), [])
        self.assertEqual(self.to_kernel(), [([b"hello"], PEER), ([b""], (PEER[0], 9))])

    def test_send_burst(self) -> None:
        """Send indications of one read for one peer leave as one burst, in order."""
        self.client.permit(PEER)
        other = (PEER[0], 9)
        indications = [
            stun.build(
                Method.SEND,
                Class.INDICATION,
                bytes([n] * 12),
                [(stun.XOR_PEER_ADDRESS, peer), (stun.DATA, bytes([n] * n))],
            )
            for n, peer in ((100, PEER), (101, PEER), (3, other), (7, PEER))
        ]
        self.client.give(*indications)
        self.assertEqual(
            self.to_kernel(),
            [([bytes([100] * 100), bytes([101] * 101)], PEER), ([bytes([3] * 3)], other), ([bytes([7] * 7)], PEER)],
        )

    def test_ipv6_peers(self) -> None:
        """Over an IPv6 relay Send and Data carry IPv6 peers."""
        self.world = World(relay_ip="2001:4860::1")
        peer = ("2606:4700::1111", 4000)
        self.world.tenants.put(evolve(MYAPP, allowed_peers=(ip_network("2606:4700::/32"),)))
        self.client = self.world.client()
        self.client.allocate()
        self.client.permit(peer)
        self.client.send(peer, b"hello")
        self.assertEqual(self.to_kernel(), [([b"hello"], peer)])
        (packet,) = self.from_kernel(peer, b"hi")
        message = stun.parse(packet)
        self.assertEqual((message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)), (peer, b"hi"))

    def test_send_dont_fragment(self) -> None:
        """DONT-FRAGMENT in a Send indication is understood."""
        self.client.permit(PEER)
        self.client.give(
            stun.build(
                Method.SEND,
                Class.INDICATION,
                b"t" * 12,
                [(stun.XOR_PEER_ADDRESS, PEER), (stun.DONT_FRAGMENT, True), (stun.DATA, b"x")],
            )
        )
        self.assertEqual(self.to_kernel(), [([b"x"], PEER)])

    def test_send_refused(self) -> None:
        """Send without permission, to a port that is shut, without data or with unknown attributes: dropped."""
        self.client.permit(PEER)
        self.client.send(("198.51.100.8", 1), b"x")
        self.assertEqual(self.drops("no_permission"), 1)
        self.client.send((PEER[0], 0), b"x")
        self.assertEqual(self.drops("forbidden_peer"), 1)
        unknown = stun.Attribute(0x7ABC, "NEW", stun.DATA.format)
        for attributes in (
            [(stun.XOR_PEER_ADDRESS, PEER)],
            [(stun.DATA, b"x")],
            [(stun.XOR_PEER_ADDRESS, PEER), (stun.DATA, b"x"), (unknown, b"")],
        ):
            self.client.give(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, attributes))
        self.assertEqual(self.drops("malformed"), 3)
        self.assertEqual(self.to_kernel(), [])

    def test_send_to_two_peers(self) -> None:
        """Of two XOR-PEER-ADDRESS in a Send the first counts."""
        self.client.permit(PEER)
        second = (PEER[0], 4001)
        self.client.give(
            stun.build(
                Method.SEND,
                Class.INDICATION,
                b"t" * 12,
                [(stun.XOR_PEER_ADDRESS, PEER), (stun.XOR_PEER_ADDRESS, second), (stun.DATA, b"x")],
            )
        )
        self.assertEqual(self.to_kernel(), [([b"x"], PEER)])

    def test_send_opens_the_port(self) -> None:
        """A permission for the SFU's IP keeps the port shut; sending to an SFU port elsewhere opens it."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        self.world.sfu(SFU)
        self.client.permit(SFU)
        self.assertEqual(self.world.opened, {})
        worker = (SFU[0], SFU[1] + 1)
        self.client.send(worker, b"x")
        self.assertEqual(self.to_kernel(), [([b"x"], worker)])

    def test_send_with_the_port_busy(self) -> None:
        """When the port cannot be opened the packet is lost and counted; the server goes on."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        self.world.sfu(SFU)
        self.client.permit(SFU)
        self.world.busy = lambda address: True
        self.client.send((SFU[0], SFU[1] + 1), b"x")
        self.assertEqual(self.drops("no_relay_port"), 1)
        self.assertEqual(code(self.client.refresh()), 0)

    def test_data_indication(self) -> None:
        """From a permitted IP without a channel, each packet comes as a Data indication with its source."""
        self.client.permit(PEER)
        other = (PEER[0], 9)
        packets = self.from_kernel(other, b"one", b"three")
        messages = [stun.parse(packet) for packet in packets]
        self.assertEqual({(each.method, each.cls) for each in messages}, {(Method.DATA, Class.INDICATION)})
        self.assertEqual([each.get(stun.DATA) for each in messages], [b"one", b"three"])
        self.assertEqual({each.get(stun.XOR_PEER_ADDRESS) for each in messages}, {other})
        self.assertEqual(len({each.transaction_id for each in messages}), 2)

    def test_from_unpermitted(self) -> None:
        """Without a permission nothing comes in, and the client does not hear of it."""
        self.client.permit(PEER)
        self.assertEqual(self.from_kernel(("198.51.100.8", 4000), b"x", b"y"), [])
        self.assertEqual(self.drops("no_permission"), 2)

    def test_from_a_neighbour(self) -> None:
        """The SFU of another namespace cannot send in, though its IP has a permission."""
        self.client.permit(SFU)
        self.assertTrue(self.world.fabric.deliver([b"x"], OTHER_SFU, self.client.relay))
        self.assertEqual(self.client.link.packets(), [])
        self.assertEqual(self.drops("forbidden_peer"), 1)

    def test_between_namespaces(self) -> None:
        """Nothing passes from a relay of one namespace to a relay or SFU of another, by any way in."""
        other = self.world.client(port=2, namespace="other")
        other.allocate()
        theirs = self.world.sfu(OTHER_SFU)
        self.client.permit(other.relay)
        other.permit(OTHER_SFU)
        for target in (other.relay, OTHER_SFU):
            self.assertEqual(code(self.client.bind(0x4000, target)), 403)
            self.client.send(target, b"knock")
        self.assertEqual((other.link.packets(), theirs), ([], []))

    def test_between_relays_of_a_namespace(self) -> None:
        """Two clients of a namespace may meet relay to relay where the configuration opens the relay IP."""
        second = self.world.client(port=2)
        second.allocate()
        self.client.bind(0x4000, second.relay)
        second.bind(0x4000, self.client.relay)
        second.link.packets()
        self.client.data(0x4000, b"hello")
        self.assertEqual([channeldata.unpack(each)[1] for each in second.link.packets()], [b"hello"])

    def test_permission_expires(self) -> None:
        """A permission lasts 300 s; traffic does not refresh it, CreatePermission and ChannelBind do."""
        self.client.permit(PEER)
        self.world.clock.advance(299)
        self.client.send(PEER, b"1")
        self.assertEqual(len(self.from_kernel(PEER, b"1")), 1)
        self.world.clock.advance(1)
        self.client.send(PEER, b"2")
        self.assertEqual(self.from_kernel(PEER, b"2"), [])
        self.client.permit(PEER)
        self.client.send(PEER, b"3")
        self.assertEqual([packets for packets, _ in self.to_kernel()], [[b"1"], [b"3"]])
        self.world.clock.advance(299)
        self.client.bind(0x4000, PEER)
        self.world.clock.advance(299)
        self.client.refresh()
        self.assertEqual(len(self.from_kernel(PEER, b"4")), 1)

    def test_channel_expires(self) -> None:
        """A channel lasts 600 s and its permission 300; then its number is free for another peer."""
        self.client.allocate()
        self.client.refresh((stun.LIFETIME, 3600))
        self.client.bind(0x4000, PEER)
        self.world.clock.advance(300)
        self.assertEqual(self.from_kernel(PEER, b"x"), [], "the permission is over")
        self.client.data(0x4000, b"still")
        self.client.permit(PEER)
        self.world.clock.advance(299)
        self.assertEqual(channeldata.unpack(self.from_kernel(PEER, b"x")[0]), (0x4000, b"x"))
        self.client.permit(PEER)
        self.world.clock.advance(1)
        self.client.data(0x4000, b"late")
        self.assertEqual([packets for packets, _ in self.to_kernel()], [[b"still"]])
        self.assertEqual(self.drops("no_channel"), 1)
        self.assertEqual(stun.parse(self.from_kernel(PEER, b"x")[0]).method, Method.DATA)
        self.assertEqual(code(self.client.bind(0x4000, (PEER[0], 1))), 0)

    def test_expired_allocation(self) -> None:
        """Nothing passes an allocation that has expired, before the server has looked."""
        self.client.bind(0x4000, PEER)
        self.world.clock.advance(600)
        self.client.data(0x4000, b"x")
        self.assertEqual(self.to_kernel(), [])
        self.assertTrue(self.world.opened[self.client.relay][0].closed)

    def test_far_sfu(self) -> None:
        """An SFU of the namespace on another node is reached over the kernel."""
        self.client.bind(0x4000, FAR_SFU)
        self.client.data(0x4000, b"x")
        self.assertEqual(self.to_kernel(), [([b"x"], FAR_SFU)])

    def test_bandwidth(self) -> None:
        """Above a user's bandwidth packets are lost in both directions, and the next second brings more."""
        self.world = World(bandwidth_per_user=100_000)
        self.client = self.world.client(user="ann")
        self.client.allocate()
        self.client.bind(0x4000, PEER)
        for _ in range(300):
            self.client.data(0x4000, bytes(1000))
        passed = sum(len(packets) for packets, _ in self.to_kernel())
        self.assertTrue(100 <= passed <= 101, passed)
        self.assertEqual(self.drops("bandwidth"), 300 - passed)
        self.assertEqual(self.from_kernel(PEER, b"x"), [])
        self.world.clock.advance(0.5)
        self.assertEqual(len(self.from_kernel(PEER, b"x")), 1)

    def test_reentry(self) -> None:
        """A peer in this process may answer while it is being sent to."""
        relay = self.client.relay
        self.world.fabric.attach(SFU, lambda packets, source: self.echo(relay, list(map(bytes, packets))))
        self.client.bind(0x4000, SFU)
        answers = self.client.data(0x4000, b"ping", b"pong")
        self.assertEqual([channeldata.unpack(each)[1] for each in answers], [b"ping", b"pong"])

    def echo(self, relay: Address, packets: list[bytes]) -> None:
        self.world.fabric.deliver(packets, SFU, relay)

    def test_many_short_runs(self) -> None:
        """A burst in which every packet is for another channel or peer than the one before takes linear time."""
        other = (PEER[0], PEER[1] + 1)
        self.client.bind(0x4000, PEER)
        self.client.bind(0x4001, other)
        channels = [channeldata.pack(0x4000 + number % 2, b"x") for number in range(1000)]
        sends = [
            stun.build(
                Method.SEND,
                Class.INDICATION,
                bytes(12),
                [(stun.XOR_PEER_ADDRESS, (PEER, other)[number % 2]), (stun.DATA, b"y")],
            )
            for number in range(1000)
        ]
        for packets in (channels, sends):
            burst = Counted(packets)
            self.world.server.received(self.client.link, burst, self.client.address)
            self.assertEqual(len(self.to_kernel()), 1000)
            self.assertLessEqual(burst.looks, 4 * 1000)


class Counted(Sequence[Buffer]):
    """Packets that count how many of them have been given."""

    def __init__(self, packets: list[bytes]) -> None:
        self._packets = packets
        self.looks = 0

    def __len__(self) -> int:
        return len(self._packets)

    def __getitem__(self, index: Any) -> Any:
        found = self._packets[index]
        self.looks += len(found) if isinstance(index, slice) else 1
        return found
