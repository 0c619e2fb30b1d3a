"""RFC 8656, 9 and 10: permissions, and CreatePermission."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.world import PEER, World, code

#: Another port of the peer, and another peer.
BESIDE = (PEER[0], PEER[1] + 1)
OTHER = ("198.51.100.8", 4000)


class PermissionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate((stun.LIFETIME, 3600))

    def goes(self, peer: tuple[str, int] = PEER) -> bool:
        """Whether a Send indication reaches *peer*."""
        self.client.send(peer, b"x")
        opened = self.world.opened.get(self.client.relay)
        return opened is not None and opened[0].packets() == [b"x"]

    def comes(self, source: tuple[str, int] = PEER) -> bool:
        """Whether what *source* sends reaches the client."""
        self.client.link.packets()
        self.world.opened[self.client.relay][1]([memoryview(b"x")], source)
        return len(self.client.link.packets()) == 1

    def test_9_lifetime(self) -> None:
        """A permission lasts for 300 s, to the second, in both directions."""
        self.client.permit(PEER)
        self.world.clock.advance(299)
        self.assertEqual((self.goes(), self.comes()), (True, True))
        self.world.clock.advance(1)
        self.assertEqual((self.goes(), self.comes()), (False, False))

    def test_9_created_and_refreshed_by_either(self) -> None:
        """CreatePermission and ChannelBind install and refresh the same permission, freely mixed."""
        for request in (
            lambda: self.client.permit(PEER),
            lambda: self.client.bind(0x4000, PEER),
            lambda: self.client.permit(BESIDE),
            lambda: self.client.bind(0x4000, PEER),
        ):
            self.assertEqual(code(request()), 0)
            self.world.clock.advance(299)
            self.assertTrue(self.goes())
        self.world.clock.advance(1)
        self.assertFalse(self.goes())

    def test_9_data_does_not_refresh(self) -> None:
        """Data in either direction leaves the time of a permission as it is."""
        self.client.permit(PEER)
        for _ in range(2):
            self.world.clock.advance(149)
            self.goes()
            self.comes()
        self.world.clock.advance(2)
        self.assertEqual((self.goes(), self.comes()), (False, False))

    def test_9_address_only(self) -> None:
        """A permission is an IP's: every port of it may send, no other address may, and that is silent."""
        self.client.permit(PEER)
        self.assertTrue(self.comes(BESIDE))
        self.assertFalse(self.comes(OTHER))
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_permission"], 1)

    def test_9_of_one_allocation(self) -> None:
        """The permissions of one allocation are nothing to another one of the same user."""
        self.client.permit(PEER)
        other = self.world.client(port=2)
        other.allocate()
        other.send(PEER, b"x")
        self.assertNotIn(other.relay, self.world.opened)

    def test_10_2_without_a_peer(self) -> None:
        """CreatePermission without XOR-PEER-ADDRESS is 400, and so is one of which any is invalid."""
        self.assertEqual(code(self.client.permit()), 400)
        broken = stun.Attribute(stun.XOR_PEER_ADDRESS.type, "BROKEN", stun.DATA.format)
        for value in (b"", b"\0\1\0", b"\0\3" + bytes(6), b"\0\1" + bytes(18), b"\0\2" + bytes(6)):
            rows = [(stun.XOR_PEER_ADDRESS, PEER), (broken, value)]
            self.assertEqual(code(self.client.ask(Method.CREATE_PERMISSION, *rows)), 400, value)
            self.assertEqual(code(self.client.ask(Method.CREATE_PERMISSION, *rows[::-1])), 400, value)
        self.assertFalse(self.goes())

    def test_10_2_several(self) -> None:
        """Each of several peers gets its permission; the port is ignored, 0 too."""
        self.assertEqual(code(self.client.permit((PEER[0], 0), OTHER)), 0)
        self.assertEqual((self.goes(), self.goes(OTHER)), (True, True))

    def test_10_2_family(self) -> None:
        """A peer of a family that the allocation has no relay of is 443."""
        self.assertEqual(code(self.client.permit(("2001:db8::1", 1))), 443)
        self.assertEqual(code(self.client.permit(PEER, ("2001:db8::1", 1))), 443)
        self.assertFalse(self.goes())

    def test_10_2_forbidden(self) -> None:
        """A peer that the rules shut is 403, and none of its companions is permitted."""
        self.assertEqual(code(self.client.permit(PEER, ("127.0.0.1", 1))), 403)
        self.assertFalse(self.goes())

    def test_10_2_capacity(self) -> None:
        """508 above 256 permissions, and then none of the request's is installed."""
        peers = [(f"198.51.100.{number}", 1) for number in range(256)]
        self.assertEqual(code(self.client.permit(*peers)), 0)
        self.assertEqual(code(self.client.permit(("10.0.0.2", 1))), 508)
        self.assertEqual(code(self.client.permit(*peers[:3])), 0, "what is there is refreshed")

    def test_10_2_success(self) -> None:
        """The success has no attribute but the integrity."""
        answer = self.client.permit(PEER)
        self.assertEqual((answer.cls, list(answer.attributes)), (Class.SUCCESS, [stun.MESSAGE_INTEGRITY.type]))
