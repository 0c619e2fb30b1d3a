"""RFC 8656, 5 to 7, as the server speaks it: general behaviour, allocations, and how one is created."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import pairwise

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import channeldata, stun
from orama.wire.stun import Class, Family, Message, Method
from tests.turn.world import INTERNAL_IP, MYAPP, PEER, SFU, Client, World, code

UDP = (stun.REQUESTED_TRANSPORT, 17)
RELAY_IP6 = "2001:db8:1::1"
BOTH = (stun.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
PEER6 = ("2001:db8:2::7", 4000)


def relays(answer: Message) -> list[str]:
    """The IPs of the relayed addresses."""
    return [ip for ip, _ in answer.all(stun.XOR_RELAYED_ADDRESS)]


class GeneralTests(SynchronousTestCase):
    """5: what holds for every message."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client(user="ann")

    def test_5_authentication_is_required(self) -> None:
        """No method of TURN does anything for who has not authenticated."""
        for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
            self.assertEqual(code(self.client.ask(method, UDP, signed=False)), 401)
        self.assertEqual(len(self.world.server), 0)

    def test_5_same_username(self) -> None:
        """441 for every request but Allocate on somebody else's five-tuple, and it changes nothing."""
        self.client.allocate()
        other = self.world.client(user="bob")
        other.link = self.client.link
        for answer in (other.refresh((stun.LIFETIME, 0)), other.permit(PEER), other.bind(0x4000, PEER)):
            self.assertEqual(code(answer), 441)
        self.client.send(PEER, b"x")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_permission"], 1)
        self.assertEqual(code(self.client.refresh()), 0)

    def test_5_no_allocation(self) -> None:
        """Without an allocation a request but Allocate is 437; an indication and ChannelData are ignored."""
        for answer in (self.client.refresh(), self.client.permit(PEER), self.client.bind(0x4000, PEER)):
            self.assertEqual(code(answer), 437)
        self.assertEqual(self.client.send(PEER, b"x") + self.client.data(0x4000, b"x"), [])

    def test_5_nonce_expires_hourly(self) -> None:
        """A nonce is good for no longer than an hour."""
        self.client.allocate()
        for _ in range(7):
            self.world.clock.advance(500)
            self.assertEqual(code(self.client.refresh()), 0)
        self.world.clock.advance(101)
        self.assertEqual(code(self.client.refresh()), 438)

    def test_5_quotas(self) -> None:
        """486 above a user's number of allocations; application data above its bandwidth is discarded."""
        world = World(allocations_per_user=1, bandwidth_per_user=1000)
        client = world.client(user="ann")
        client.allocate()
        self.assertEqual(code(world.client(port=2, user="ann").allocate()), 486)
        client.bind(0x4000, PEER)
        for _ in range(200):
            client.data(0x4000, bytes(1000))
        sent = sum(len(packets) for packets, _ in world.opened[client.relay][0].sent)
        self.assertLess(sent, 100)
        self.assertGreater(world.figures()["orama_turn_dropped_total", "bandwidth"], 100)

    def test_6_relayed_address_is_unique(self) -> None:
        """No two allocations have one relayed address, of either family."""
        world = World(relay_ip6=RELAY_IP6, allocations_per_user=0, unauthenticated_rate=0)
        found = [
            address
            for number in range(100)
            for address in world.client(port=1000 + number).allocate(BOTH).all(stun.XOR_RELAYED_ADDRESS)
        ]
        self.assertEqual((len(found), len(set(found))), (200, 200))

    def test_6_no_password_is_kept(self) -> None:
        """An allocation holds the key, not the password; neither shows in its text."""
        self.client.allocate()
        (allocation,) = self.world.server._allocations
        held = [getattr(allocation, name.alias, None) for name in allocation.__attrs_attrs__]
        self.assertNotIn(self.client.credentials.password, map(str, held))
        self.assertNotIn(self.client.key.hex(), repr(allocation))
        self.assertNotIn(repr(self.client.key), repr(allocation))


class AllocateTests(SynchronousTestCase):
    """7.2, step by step."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def codes(self, *rows: object, world: World | None = None) -> int:
        client = (world or self.world).client(port=41000)
        return code(client.ask(Method.ALLOCATE, *rows))

    def test_7_2_step_2_five_tuple(self) -> None:
        """437 for a second Allocate on a five-tuple, unless it is the first one again."""
        first = self.client.allocate(transaction_id=b"a" * 12)
        self.assertEqual(self.client.allocate(transaction_id=b"a" * 12).raw, first.raw)
        self.assertEqual(code(self.client.allocate(transaction_id=b"b" * 12)), 437)

    def test_7_2_step_2_before_all_others(self) -> None:
        """The five-tuple is looked at before the attributes: 437, not 400 or 442."""
        self.client.allocate()
        self.assertEqual(code(self.client.ask(Method.ALLOCATE)), 437)
        self.assertEqual(code(self.client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 99))), 437)

    def test_7_2_step_3_transport(self) -> None:
        """REQUESTED-TRANSPORT: missing 400, malformed 400, anything but UDP 442."""
        broken = stun.Attribute(stun.REQUESTED_TRANSPORT.type, "BROKEN", stun.DATA.format)
        self.assertEqual(self.codes(), 400)
        self.assertEqual(self.codes((broken, b"\x11")), 400)
        for protocol in (0, 1, 6, 58, 132, 255):
            self.assertEqual(self.codes((stun.REQUESTED_TRANSPORT, protocol)), 442, protocol)

    def test_7_2_step_4_dont_fragment(self) -> None:
        """DONT-FRAGMENT is supported, so it is no unknown attribute."""
        self.assertEqual(self.codes(UDP, (stun.DONT_FRAGMENT, True)), 0)

    def test_7_2_step_5_reservation_token(self) -> None:
        """RESERVATION-TOKEN with EVEN-PORT or a family is 400; one that is not valid is 508."""
        token = (stun.RESERVATION_TOKEN, b"8 bytes.")
        for row in ((stun.EVEN_PORT, False), (stun.EVEN_PORT, True), (stun.REQUESTED_ADDRESS_FAMILY, 1), BOTH):
            self.assertEqual(self.codes(UDP, token, row), 400, row)
        self.assertEqual(self.codes(UDP, token), 508)

    def test_7_2_step_6_both_families(self) -> None:
        """REQUESTED-ADDRESS-FAMILY and ADDITIONAL-ADDRESS-FAMILY together are 400."""
        self.assertEqual(self.codes(UDP, (stun.REQUESTED_ADDRESS_FAMILY, 1), BOTH), 400)

    def test_7_2_step_7_family(self) -> None:
        """A family that we have no relays of is 440; without a name IPv4 is given where there is any."""
        for family in (0, 2, 3, 255):
            self.assertEqual(self.codes(UDP, (stun.REQUESTED_ADDRESS_FAMILY, family)), 440, family)
        self.assertEqual(self.codes(UDP, (stun.REQUESTED_ADDRESS_FAMILY, 1), world=World(relay_ip=RELAY_IP6)), 440)
        world = World(relay_ip6=RELAY_IP6)
        self.assertEqual(relays(world.client().allocate()), [INTERNAL_IP])
        answer = world.client(port=2).allocate((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
        self.assertEqual(relays(answer), [RELAY_IP6])

    def test_7_2_step_8_even_port_and_second_family(self) -> None:
        """EVEN-PORT with R and ADDITIONAL-ADDRESS-FAMILY is 400; without R both ports are even."""
        world = World(relay_ip6=RELAY_IP6)
        self.assertEqual(self.codes(UDP, BOTH, (stun.EVEN_PORT, True), world=world), 400)
        answer = world.client().allocate(BOTH, (stun.EVEN_PORT, False))
        self.assertEqual([port % 2 for _, port in answer.all(stun.XOR_RELAYED_ADDRESS)], [0, 0])

    def test_7_2_step_8_no_port(self) -> None:
        """508 where no port is as it was asked for."""
        world = World()
        world.tenants.put(evolve(MYAPP, relay_ports=(50001, 50001)))
        self.assertEqual(self.codes(UDP, (stun.EVEN_PORT, False), world=world), 508)
        self.assertEqual(self.codes(UDP, (stun.EVEN_PORT, True), world=world), 508)
        self.assertEqual(self.codes(UDP, world=world), 0)

    def test_7_2_step_9_ipv4_as_additional(self) -> None:
        """ADDITIONAL-ADDRESS-FAMILY may say IPv6 only: else 400."""
        for family in (0, 1, 3):
            self.assertEqual(self.codes(UDP, (stun.ADDITIONAL_ADDRESS_FAMILY, family)), 400, family)

    def test_7_2_step_9_dual(self) -> None:
        """One IPv4 and one IPv6 relayed address come in two XOR-RELAYED-ADDRESS, as one allocation of the quota."""
        world = World(relay_ip6=RELAY_IP6)
        answer = world.client().allocate(BOTH)
        self.assertEqual(relays(answer), [INTERNAL_IP, RELAY_IP6])
        self.assertNotIn(stun.ADDRESS_ERROR_CODE, answer)
        self.assertEqual(world.figures()["orama_turn_allocations", "myapp"], 1)

    def test_7_2_step_9_partial(self) -> None:
        """Where one family cannot be had the other one is given, with ADDRESS-ERROR-CODE: 440, or 508."""
        answer = self.client.allocate(BOTH)
        self.assertEqual((relays(answer), answer.get(stun.ADDRESS_ERROR_CODE)), ([INTERNAL_IP], (Family.IPV6, 440)))
        answer = World(relay_ip=RELAY_IP6).client().allocate(BOTH)
        self.assertEqual((relays(answer), answer.get(stun.ADDRESS_ERROR_CODE)), ([RELAY_IP6], (Family.IPV4, 440)))
        world = World(relay_ip6=RELAY_IP6)
        world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50000)))
        world.client().allocate((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
        answer = world.client(port=2).allocate(BOTH)
        self.assertEqual((relays(answer), answer.get(stun.ADDRESS_ERROR_CODE)), ([INTERNAL_IP], (Family.IPV6, 508)))
        self.assertEqual(code(world.client(port=3).allocate(BOTH)), 508)

    def test_7_2_step_9_by_the_numbers_of_the_draft(self) -> None:
        """Who writes the attribute as it was numbered in the drafts gets both families, or its error so numbered."""
        draft = (stun.DRAFT_ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
        self.assertEqual(relays(World(relay_ip6=RELAY_IP6).client().allocate(draft)), [INTERNAL_IP, RELAY_IP6])
        answer = self.client.allocate(draft)
        self.assertEqual(answer.get(stun.DRAFT_ADDRESS_ERROR_CODE), (Family.IPV6, 440))
        self.assertNotIn(stun.ADDRESS_ERROR_CODE, answer)

    def test_7_2_step_10_quota(self) -> None:
        """486 goes by the user name, not by the address."""
        world = World(allocations_per_user=2)
        for port in (1, 2):
            self.assertEqual(code(world.client(port=port, user="ann").allocate()), 0)
        self.assertEqual(code(world.client(ip="192.0.2.99", user="ann").allocate()), 486)
        self.assertEqual(code(world.client(port=3, user="bob").allocate()), 0)

    def test_7_2_success(self) -> None:
        """The answer has the relayed address, the lifetime and the mapped address, and no token unasked."""
        answer = self.client.allocate()
        self.assertEqual(answer.cls, Class.SUCCESS)
        self.assertEqual(relays(answer), [INTERNAL_IP])
        self.assertEqual((answer.get(stun.LIFETIME), answer.get(stun.XOR_MAPPED_ADDRESS)), (600, self.client.address))
        self.assertNotIn(stun.RESERVATION_TOKEN, answer)

    def test_7_2_lists_are_empty(self) -> None:
        """A new allocation has no permission and no channel."""
        self.client.allocate()
        self.world.sfu(SFU)
        self.client.send(SFU, b"x")
        self.client.data(0x4000, b"x")
        figures = self.world.figures()
        self.assertEqual(figures["orama_turn_dropped_total", "no_permission"], 1)
        self.assertEqual(figures["orama_turn_dropped_total", "no_channel"], 1)

    def test_7_2_even_port(self) -> None:
        """EVEN-PORT gives an even port, with or without R."""
        for number in range(40):
            client = self.world.client(port=1000 + number, namespace=("myapp", "other")[number % 2])
            client.allocate((stun.EVEN_PORT, number % 4 < 2))
            self.assertEqual(client.relay[1] % 2, 0)

    def test_7_2_reservation(self) -> None:
        """With R the next higher port is kept for 30 s for who shows the token, over any five-tuple."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50001)))
        token = self.client.allocate((stun.EVEN_PORT, True)).get(stun.RESERVATION_TOKEN)
        assert token is not None
        self.assertEqual(code(self.world.client(port=2).allocate()), 508)
        self.world.clock.advance(29)
        self.world.server.tick()
        second = self.world.client(port=3, ip="2001:db8::9")
        self.assertEqual(code(second.allocate((stun.RESERVATION_TOKEN, token))), 0)
        self.assertEqual(second.relay, (INTERNAL_IP, 50001))

    def test_7_2_reservation_expires(self) -> None:
        """A reservation that nobody claims is over after 30 s, and its port is free again."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50001)))
        token = self.client.allocate((stun.EVEN_PORT, True)).get(stun.RESERVATION_TOKEN)
        assert token is not None
        self.world.clock.advance(31)
        self.world.server.tick()
        self.assertEqual(code(self.world.client(port=2).allocate((stun.RESERVATION_TOKEN, token))), 508)
        self.assertEqual(code(self.world.client(port=3).allocate()), 0)

    def test_7_2_reservation_of_ipv6(self) -> None:
        """A pair of IPv6 ports is reserved and claimed as one of IPv4 is."""
        world = World(relay_ip6=RELAY_IP6)
        answer = world.client().allocate((stun.EVEN_PORT, True), (stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
        token, first = answer.get(stun.RESERVATION_TOKEN), answer.get(stun.XOR_RELAYED_ADDRESS)
        assert token is not None and first is not None
        second = world.client(port=2)
        second.allocate((stun.RESERVATION_TOKEN, token))
        self.assertEqual(second.relay, (first[0], first[1] + 1))

    def test_7_2_port_range(self) -> None:
        """Ports are of the namespace's block, which lies between 49152 and 65535, and hard to guess."""
        world = World(unauthenticated_rate=0, allocations_per_user=0, allocations_per_namespace=0)
        ports = []
        for number in range(300):
            client = world.client(port=1000 + number)
            client.allocate()
            ports.append(client.relay[1])
        self.assertTrue(all(49152 <= port <= 65535 for port in ports))
        self.assertTrue(all(50000 <= port <= 50799 for port in ports))
        steps = {second - first for first, second in pairwise(ports)}
        self.assertGreater(len(steps), 200)

    def test_7_2_lifetime(self) -> None:
        """A lifetime is what is asked for, but no less than 600 s and no more than the maximum of 3600 s."""
        for number, (asked, expected) in enumerate(
            ((None, 600), (0, 600), (1, 600), (599, 600), (601, 601), (3600, 3600), (3601, 3600), (0xFFFFFFFF, 3600))
        ):
            rows = [] if asked is None else [(stun.LIFETIME, asked)]
            answer = self.world.client(port=1000 + number).allocate(*rows)
            self.assertEqual(answer.get(stun.LIFETIME), expected, asked)

    def test_7_2_expiry(self) -> None:
        """An allocation that is not refreshed ends when its time is over, and data does not refresh it."""
        self.client.allocate()
        self.client.bind(0x4000, PEER)
        for _ in range(5):
            self.world.clock.advance(119)
            self.client.data(0x4000, b"x")
        self.world.clock.advance(5)
        self.assertEqual(code(self.client.permit(PEER)), 437)
        self.assertFalse(self.world.fabric.has(self.client.relay))


class RedirectTests(SynchronousTestCase):
    """7.2, step 11, and RFC 8489, 10: 300 (Try Alternate) while the server drains."""

    SERVERS = ("192.0.2.7:3478", "[2001:db8::7]:3478", "192.0.2.8:3478")

    def drained(self, *servers: str) -> World:
        world = World(alternate_servers=servers)
        world.server.drain()
        return world

    def test_7_2_step_11_own_family_first(self) -> None:
        """300 names servers of the client's own family first and then of the other one, signed."""
        world = self.drained(*self.SERVERS)
        four, six = [("192.0.2.7", 3478), ("192.0.2.8", 3478)], [("2001:db8::7", 3478)]
        for ip, expected in (("203.0.113.9", four + six), ("2001:db8::9", six + four)):
            client = world.client(ip=ip)
            answer = client.allocate()
            self.assertEqual((code(answer), answer.all(stun.ALTERNATE_SERVER)), (300, expected))
            self.assertTrue(answer.verify(client.key))

    def test_7_2_step_11_only_after_authentication(self) -> None:
        """14.8: a stranger is never sent elsewhere: 401."""
        client = self.drained(*self.SERVERS).client()
        self.assertEqual(code(client.ask(Method.ALLOCATE, UDP, signed=False)), 401)

    def test_7_2_step_11_none_of_the_family(self) -> None:
        """508 where there is no server of the client's family, or none over its transport."""
        world = self.drained(self.SERVERS[1])
        self.assertEqual(code(world.client().allocate()), 508)
        world = self.drained(*self.SERVERS)
        client = world.client()
        client.link.transport = "tls"
        self.assertEqual(code(client.allocate()), 508)

    def test_7_2_step_11_allocations_go_on(self) -> None:
        """What is there when the drain begins is refreshed; only new allocations are sent away."""
        world = World(alternate_servers=self.SERVERS)
        client = world.client()
        client.allocate()
        world.server.drain()
        self.assertEqual([code(client.refresh()), code(client.permit(PEER))], [0, 0])

    def test_7_2_step_11_of_one_namespace(self) -> None:
        """A namespace that drains is sent to the servers that serve it; the other one is served here."""
        world = World()
        asked = []

        def alternates(namespace: str, family: Family, transport: str) -> list[tuple[str, int]]:
            asked.append((namespace, family, transport))
            return [("192.0.2.9", 1)] if family == Family.IPV4 else []

        world.server.redirect(alternates)
        world.server.drain_tenant("myapp")
        answer = world.client().allocate()
        self.assertEqual((code(answer), answer.all(stun.ALTERNATE_SERVER)), (300, [("192.0.2.9", 1)]))
        self.assertEqual(asked, [("myapp", Family.IPV4, "udp"), ("myapp", Family.IPV6, "udp")])
        self.assertEqual(code(world.client(port=2, namespace="other").allocate()), 0)


class DualTests(SynchronousTestCase):
    """6: an allocation of two relayed addresses carries both families."""

    def setUp(self) -> None:
        self.world = World(relay_ip6=RELAY_IP6)
        opened = (*MYAPP.allowed_peers, ip_network("2001:db8:2::/64"))
        self.world.tenants.put(evolve(MYAPP, allowed_peers=opened))
        self.client = self.world.client()
        answer = self.client.allocate(BOTH)
        self.four, self.six = answer.all(stun.XOR_RELAYED_ADDRESS)

    def sent(self, relay: tuple[str, int]) -> list[bytes]:
        return self.world.opened[relay][0].packets() if relay in self.world.opened else []

    def arrives(self, relay: tuple[str, int], source: tuple[str, int], payload: bytes) -> list[bytes]:
        self.client.link.packets()
        self.world.opened[relay][1]([memoryview(payload)], source)
        return self.client.link.packets()

    def test_6_each_family_by_its_own_relay(self) -> None:
        """Send and ChannelData leave from the relayed address of the peer's family, and come in at it."""
        self.assertEqual(code(self.client.permit(PEER, PEER6)), 0)
        self.client.send(PEER, b"four")
        self.client.send(PEER6, b"six")
        self.assertEqual((self.sent(self.four), self.sent(self.six)), ([b"four"], [b"six"]))
        self.assertEqual(code(self.client.bind(0x4001, PEER6)), 0)
        self.client.data(0x4001, b"channel")
        self.assertEqual((self.sent(self.four), self.sent(self.six)), ([], [b"channel"]))
        (packet,) = self.arrives(self.six, PEER6, b"down")
        self.assertEqual(channeldata.unpack(packet), (0x4001, b"down"))
        (packet,) = self.arrives(self.four, PEER, b"down")
        self.assertEqual(stun.parse(packet).get(stun.XOR_PEER_ADDRESS), PEER)

    def test_6_single_allocation_has_one_family(self) -> None:
        """Without the second family its peers are 443."""
        client: Client = self.world.client(port=2)
        client.allocate()
        self.assertEqual(code(client.permit(PEER6)), 443)

    def test_6_end_gives_both_back(self) -> None:
        """When it ends both relayed addresses are free."""
        self.client.permit(PEER, PEER6)
        self.client.refresh((stun.LIFETIME, 0))
        for relay in (self.four, self.six):
            self.assertFalse(self.world.fabric.has(relay))
            self.assertTrue(self.world.opened[relay][0].closed)
        self.assertEqual(len(self.world.server), 0)
