"""RFC 8656, 8: refreshing an allocation, whole or by family, and giving it back."""

from __future__ import annotations

from ipaddress import ip_network

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Family
from tests.turn.world import MYAPP, PEER, World, code

RELAY_IP6 = "2001:db8:1::1"
BOTH = (stun.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
PEER6 = ("2001:db8:2::7", 4000)


class RefreshTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate()

    def test_8_2_lifetime(self) -> None:
        """The time to expiry becomes what is asked for, within 600 s and the maximum, and is answered."""
        for asked, expected in ((None, 600), (1, 600), (700, 700), (9999, 3600)):
            rows = [] if asked is None else [(stun.LIFETIME, asked)]
            self.assertEqual(self.client.refresh(*rows).get(stun.LIFETIME), expected)
        self.world.clock.advance(3599)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 1)

    def test_8_2_zero_deletes(self) -> None:
        """Lifetime 0 ends it at once with success; again it is 437, which a client takes for success (8.3)."""
        answer = self.client.refresh((stun.LIFETIME, 0), transaction_id=b"d" * 12)
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 0))
        self.assertFalse(self.world.fabric.has(self.client.relay))
        self.assertEqual(code(self.client.refresh((stun.LIFETIME, 0), transaction_id=b"d" * 12)), 437)

    def test_8_2_family_mismatch(self) -> None:
        """443 for a family that the allocation does not have; its own does as none does."""
        self.assertEqual(code(self.client.refresh((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6))), 443)
        answer = self.client.refresh((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV4), (stun.LIFETIME, 900))
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 900))

    def test_8_2_mismatch_deletes_nothing(self) -> None:
        """443 under lifetime 0 leaves it as it is."""
        self.assertEqual(code(self.client.refresh((stun.REQUESTED_ADDRESS_FAMILY, 2), (stun.LIFETIME, 0))), 443)
        self.assertEqual(len(self.world.server), 1)

    def test_8_2_permissions_are_not_refreshed(self) -> None:
        """A Refresh refreshes neither permissions nor channels."""
        self.client.bind(0x4000, PEER)
        for _ in range(3):
            self.world.clock.advance(200)
            self.client.refresh()
        self.client.data(0x4000, b"x")
        self.client.send(PEER, b"x")
        figures = self.world.figures()
        self.assertEqual(figures["orama_turn_dropped_total", "no_permission"], 1)
        self.assertEqual(figures["orama_turn_dropped_total", "no_channel"], 1)


class DualTests(SynchronousTestCase):
    """8.1: one family of two."""

    def setUp(self) -> None:
        self.world = World(relay_ip6=RELAY_IP6)
        opened = (*MYAPP.allowed_peers, ip_network("2001:db8:2::/64"))
        self.world.tenants.put(evolve(MYAPP, allowed_peers=opened))
        self.client = self.world.client()
        self.four, self.six = self.client.allocate(BOTH).all(stun.XOR_RELAYED_ADDRESS)
        self.client.bind(0x4000, PEER)
        self.client.bind(0x4001, PEER6)

    def refresh(self, family: Family | None, lifetime: int) -> int:
        rows = [] if family is None else [(stun.REQUESTED_ADDRESS_FAMILY, family)]
        return code(self.client.refresh((stun.LIFETIME, lifetime), *rows))

    def has(self) -> tuple[bool, bool]:
        """Whether each relayed address is still there."""
        return self.world.fabric.has(self.four), self.world.fabric.has(self.six)

    def test_8_1_without_a_family(self) -> None:
        """A Refresh without a family is for both."""
        self.assertEqual(self.refresh(None, 2000), 0)
        self.world.clock.advance(1999)
        self.world.server.tick()
        self.assertEqual(self.has(), (True, True))
        self.assertEqual(self.refresh(None, 0), 0)
        self.assertEqual(self.has(), (False, False))

    def test_8_1_one_is_refreshed(self) -> None:
        """A Refresh of one family leaves the other one its own time, at which it goes alone."""
        self.assertEqual(self.refresh(Family.IPV6, 2000), 0)
        self.world.clock.advance(600)
        self.world.server.tick()
        self.assertEqual(self.has(), (False, True))
        self.assertEqual(self.refresh(Family.IPV4, 600), 443)
        self.assertEqual(self.refresh(Family.IPV6, 600), 0)

    def test_8_1_one_is_deleted(self) -> None:
        """Deleting one family ends its permissions and channels and none of the other's; the last one ends all."""
        for family, gone, stays in ((Family.IPV4, PEER, PEER6), (Family.IPV6, PEER6, PEER)):
            with self.subTest(family):
                self.setUp()
                self.assertEqual(self.refresh(family, 0), 0)
                self.assertEqual(self.has(), (family != Family.IPV4, family != Family.IPV6))
                relay = self.six if family == Family.IPV4 else self.four
                self.client.send(gone, b"lost")
                self.client.send(stays, b"sent")
                self.client.data(0x4000, b"4")
                self.client.data(0x4001, b"6")
                expected = [b"sent", b"6" if family == Family.IPV4 else b"4"]
                self.assertEqual(self.world.opened[relay][0].packets(), expected)
                self.assertEqual(code(self.client.permit(gone)), 443)
                self.assertEqual(self.refresh(family, 0), 443)
                self.assertEqual(len(self.world.server), 1)
                self.assertEqual(self.refresh(None, 0), 0)
                self.assertEqual(len(self.world.server), 0)

    def test_8_1_port_of_the_deleted_one_is_free(self) -> None:
        """The port of the deleted family is given to the next one that asks."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(self.six[1], self.six[1]), allowed_peers=()))
        self.assertEqual(len(self.world.server), int(self.four[1] == self.six[1]))
        for port in range(1, 4):
            client = self.world.client(port=port)
            client.allocate((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
            self.assertEqual(client.relay, (RELAY_IP6, self.six[1]))
            client.refresh((stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6), (stun.LIFETIME, 0))
