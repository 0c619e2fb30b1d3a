"""Whom a relay may reach."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.peers import SPECIAL, Peers, canonical, read_network
from orama.turn.tenants import Shut, Tenants
from tests.turn.world import INTERNAL_IP, MYAPP, OTHER, OTHER_RELAY, OTHER_SFU, PEER, SFU

#: Addresses that point inside, and other spellings of them.
INWARD = (
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.9.9.9",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.1.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:127.0.0.2",
    "::ffff:0.0.0.0",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fe80::1",
    "fc00::1",
    "fd00::1",
    "fdff:ffff:ffff:ffff::1",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
)


class PeersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tenants = Tenants()
        self.tenants.put(MYAPP)
        self.tenants.put(OTHER)
        self.peers = Peers(self.tenants, INTERNAL_IP, [(INTERNAL_IP, 3478)])

    def test_default_deny(self) -> None:
        """Without a rule only the namespace's own SFU addresses are open, and their media ports alone."""
        bare = evolve(MYAPP, allowed_peers=())
        self.assertTrue(self.peers.may_reach_ip(bare, INTERNAL_IP))
        self.assertTrue(self.peers.may_reach(bare, SFU))
        self.assertTrue(self.peers.may_reach(bare, ("10.0.0.2", 20499)))
        for port in (0, 1, 22, 5432, 19999, 20500, 50000, 65535):
            self.assertFalse(self.peers.may_reach(bare, (INTERNAL_IP, port)), port)
        for ip in (*INWARD, "8.8.8.8", "2606:4700::1111", "10.0.0.3"):
            self.assertFalse(self.peers.may_reach_ip(bare, ip), ip)

    def test_any_address_is_denied(self) -> None:
        """No address at all, in either family, opens without a rule."""
        bare = evolve(MYAPP, allowed_peers=(), sfu_media=())

        @given(st.ip_addresses().map(str), st.integers(0, 65535))
        def denied(ip: str, port: int) -> None:
            self.assertFalse(self.peers.may_reach_ip(bare, ip))
            self.assertFalse(self.peers.may_reach(bare, (ip, port)))

        denied()

    def test_allowed_network(self) -> None:
        """A network of the configuration opens its addresses, with every port but 0."""
        self.assertTrue(self.peers.may_reach(MYAPP, PEER))
        self.assertFalse(self.peers.may_reach(MYAPP, (PEER[0], 0)))
        self.assertFalse(self.peers.may_reach(MYAPP, ("198.51.101.7", 4000)))

    def test_wide_network_keeps_the_inside_shut(self) -> None:
        """A network opens a special range only by lying inside it: 0.0.0.0/0 and ::/0 open the public addresses."""
        wide = evolve(MYAPP, allowed_peers=(ip_network("0.0.0.0/0"), ip_network("::/0")), sfu_media=())
        for ip in INWARD:
            self.assertFalse(self.peers.may_reach_ip(wide, ip), ip)
        self.assertTrue(self.peers.may_reach_ip(wide, "8.8.8.8"))
        self.assertTrue(self.peers.may_reach_ip(wide, "2606:4700::1111"))

    def test_named_range_opens(self) -> None:
        """127.0.0.0/8 opens loopback, in its plain spelling only."""
        local = evolve(MYAPP, allowed_peers=(ip_network("127.0.0.0/8"),))
        self.assertTrue(self.peers.may_reach_ip(local, "127.0.0.1"))
        for spelling in ("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::1"):
            self.assertFalse(self.peers.may_reach_ip(local, spelling), spelling)

    def test_range_off_a_byte_boundary(self) -> None:
        """Ranges compare as numbers: an inner address with a larger byte is still inside, the next one is not."""
        odd = evolve(MYAPP, allowed_peers=(ip_network("2606:4700:8000::/33"),))
        self.assertTrue(self.peers.may_reach_ip(odd, "2606:4700:80ff:1::"))
        self.assertTrue(self.peers.may_reach_ip(odd, "2606:4700:ffff:ffff::"))
        self.assertFalse(self.peers.may_reach_ip(odd, "2606:4700:7fff::"))

    def test_neighbours(self) -> None:
        """SFU and relay ports of another namespace and our listeners stay shut even in an allowed network."""
        for peer in (OTHER_SFU, OTHER_RELAY, (INTERNAL_IP, 3478)):
            self.assertTrue(self.peers.may_reach_ip(MYAPP, peer[0]))
            self.assertFalse(self.peers.may_reach(MYAPP, peer), peer)
        self.assertTrue(self.peers.may_reach(MYAPP, (INTERNAL_IP, 50001)), "its own relays are no neighbour's")
        self.assertTrue(self.peers.may_reach(MYAPP, (INTERNAL_IP, 9)), "what is nobody's is open")

    def test_inward(self) -> None:
        """What points inside is known as that in every spelling; public and documentation addresses are not."""
        for ip in INWARD:
            self.assertTrue(self.peers.is_inward(ip), ip)
        for ip in ("8.8.8.8", "2606:4700::1111", "2001:db8::1", "198.51.100.7"):
            self.assertFalse(self.peers.is_inward(ip), ip)

    def test_canonical(self) -> None:
        """Every way to spell an IPv4 address in IPv6 gives the IPv4 address."""
        for spelling in (
            "::ffff:192.0.2.33",
            "::192.0.2.33",
            "64:ff9b::192.0.2.33",
            "64:ff9b:1::192.0.2.33",
            "2002:c000:221::",
            "2001:0:4136:e378:8000:63bf:3fff:fdde",
        ):
            self.assertEqual(canonical(ip_address(spelling)), ip_address("192.0.2.33"), spelling)
        for itself in ("::", "::1", "2606:4700::1", "192.0.2.33"):
            self.assertEqual(canonical(ip_address(itself)), ip_address(itself))

    @given(st.ip_addresses(v=4))
    def test_special_ranges(self, ip: object) -> None:
        """What Python's own registry calls private or multicast is special for us too."""
        address = ip_address(str(ip))
        if (address.is_private or address.is_multicast) and not address.is_global:
            self.assertTrue(any(address in network for network in SPECIAL), ip)

    def test_denied(self) -> None:
        """What is denied stays shut, whichever rule opens it: by configuration, or as an SFU of one's own."""
        denied = (ip_network("198.51.100.0/25"), ip_network("10.0.0.1/32"), ip_network("2001:db8:8000::/33"))
        tenant = evolve(
            MYAPP,
            allowed_peers=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32"), ip_network("192.0.2.1/32")),
            denied_peers=denied,
        )
        self.tenants.put(tenant)
        for ip, reached in (
            ("198.51.100.127", False),
            ("198.51.100.128", True),
            ("2001:db8:7fff:ffff::1", True),
            ("2001:db8:8000::1", False),
            ("2001:db8:ffff:1:2:3:4:5", False),
            ("192.0.2.1", True),
            (SFU[0], False),
        ):
            self.assertEqual(self.peers.may_reach_ip(tenant, ip), reached, ip)
            self.assertEqual(self.peers.may_reach(tenant, (ip, 20000)), reached, ip)

    def test_denied_in_disguise(self) -> None:
        """No spelling of a denied address gets around the rule, and a rule may spell its network as mapped."""
        tenant = evolve(
            MYAPP, allowed_peers=(ip_network("0.0.0.0/0"), ip_network("::/0")), denied_peers=(ip_network("8.0.0.0/8"),)
        )
        for ip in ("8.8.8.8", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"):
            self.assertFalse(self.peers.may_reach_ip(tenant, ip), ip)
        self.assertTrue(self.peers.may_reach_ip(tenant, "9.9.9.9"))
        self.assertEqual(read_network("::ffff:8.0.0.0/104"), ip_network("8.0.0.0/8"))
        self.assertEqual(read_network("2001:db8::/32"), ip_network("2001:db8::/32"))

    def test_shut(self) -> None:
        """What the node serves and uses stays shut, whatever is allowed; other ports of the same hosts do not."""
        shut = Shut(("198.51.100.7",), ((6001, 6002),), (("198.51.100.8", 5432),))
        tenant = evolve(MYAPP, allowed_peers=(ip_network("198.51.100.0/24"), ip_network("127.0.0.0/8")), shut=shut)
        for peer, reached in (
            (("198.51.100.7", 6001), False),
            (("127.0.0.1", 6002), False),
            (("127.8.8.8", 6002), False),
            (("198.51.100.8", 5432), False),
            (("198.51.100.7", 6003), True),
            (("198.51.100.8", 6001), True),
            (("127.0.0.1", 5432), True),
        ):
            self.assertEqual(self.peers.may_reach(tenant, peer), reached, peer)
            self.assertTrue(self.peers.may_reach_ip(tenant, peer[0]))
