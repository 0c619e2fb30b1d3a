"""RFC 8656, 18 and 19: how the attributes are written, and which error each code is for."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Attribute, Class, Method
from tests.turn.world import PEER, World, code

UDP = (stun.REQUESTED_TRANSPORT, 17)
TRANSACTION = bytes(range(12))


class AttributeTests(SynchronousTestCase):
    """18: each attribute, bytes on the wire."""

    def check(self, attribute: Attribute[Any], value: Any, written: str) -> None:
        """*value* is written as *written* says (type, length, value, padding), and read back from it."""
        raw = stun.build(Method.ALLOCATE, Class.REQUEST, TRANSACTION, [(attribute, value)])
        self.assertEqual(raw[20:].hex(" ", 4), written)
        self.assertEqual(stun.parse(raw).get(attribute), value)

    def read(self, attribute: Attribute[Any], value: str) -> Any:
        """What is read from the bytes of a value."""
        return attribute.format.unpack(bytes.fromhex(value), TRANSACTION)

    def test_18_1_channel_number(self) -> None:
        """Two bytes of number and two reserved ones, zero on the way out and ignored on the way in."""
        self.check(stun.CHANNEL_NUMBER, 0x4ABC, "000c0004 4abc0000")
        self.assertEqual(self.read(stun.CHANNEL_NUMBER, "4abcffff"), 0x4ABC)

    def test_18_2_lifetime(self) -> None:
        """32 bits of seconds."""
        self.check(stun.LIFETIME, 0xFFFFFFFE, "000d0004 fffffffe")

    def test_18_3_xor_peer_address(self) -> None:
        """As XOR-MAPPED-ADDRESS of RFC 8489: port and IP under cookie and transaction; the first byte is ignored."""
        self.check(stun.XOR_PEER_ADDRESS, ("192.0.2.1", 32853), "00120008 0001a147 e112a643")
        # 2001:0db8::1 under the cookie and the transaction 00 to 0b.
        self.check(
            stun.XOR_PEER_ADDRESS, ("2001:db8::1", 32853), "00120014 0002a147 0113a9fa 00010203 04050607 08090a0a"
        )
        self.assertEqual(self.read(stun.XOR_PEER_ADDRESS, "ff01a147e112a643"), ("192.0.2.1", 32853))

    def test_18_4_data(self) -> None:
        """The application's bytes, padded with zeros; none at all is fine."""
        self.check(stun.DATA, b"12345", "00130005 31323334 35000000")
        self.check(stun.DATA, b"", "00130000")

    def test_18_5_xor_relayed_address(self) -> None:
        """As XOR-MAPPED-ADDRESS."""
        self.check(stun.XOR_RELAYED_ADDRESS, ("192.0.2.1", 32853), "00160008 0001a147 e112a643")

    def test_18_6_requested_address_family(self) -> None:
        """One byte of family and three reserved ones, ignored on the way in."""
        self.check(stun.REQUESTED_ADDRESS_FAMILY, 2, "00170004 02000000")
        self.assertEqual(self.read(stun.REQUESTED_ADDRESS_FAMILY, "01ffffff"), 1)

    def test_18_7_even_port(self) -> None:
        """One byte whose first bit is R and whose rest is ignored, and padding."""
        self.check(stun.EVEN_PORT, True, "00180001 80000000")
        self.check(stun.EVEN_PORT, False, "00180001 00000000")
        self.assertEqual([self.read(stun.EVEN_PORT, each) for each in ("ff", "7f")], [True, False])

    def test_18_8_requested_transport(self) -> None:
        """One byte of protocol and three that are ignored on the way in."""
        self.check(stun.REQUESTED_TRANSPORT, 17, "00190004 11000000")
        self.assertEqual(self.read(stun.REQUESTED_TRANSPORT, "11ffffff"), 17)

    def test_18_9_dont_fragment(self) -> None:
        """No value; with one it is malformed."""
        self.check(stun.DONT_FRAGMENT, True, "001a0000")
        self.assertRaises(stun.StunError, self.read, stun.DONT_FRAGMENT, "00")

    def test_18_10_reservation_token(self) -> None:
        """Eight bytes, no more and no fewer."""
        self.check(stun.RESERVATION_TOKEN, b"8 bytes.", "00220008 38206279 7465732e")
        for value in ("00" * 7, "00" * 9):
            self.assertRaises(stun.StunError, self.read, stun.RESERVATION_TOKEN, value)

    def test_18_11_additional_address_family(self) -> None:
        """As REQUESTED-ADDRESS-FAMILY, and comprehension-optional."""
        self.check(stun.ADDITIONAL_ADDRESS_FAMILY, 2, "80000004 02000000")

    def test_18_12_address_error_code(self) -> None:
        """Family, reserved bits, class and number of the error; a reason may follow."""
        self.check(stun.ADDRESS_ERROR_CODE, (2, 440), "80010004 02000428")
        self.check(stun.ADDRESS_ERROR_CODE, (1, 508), "80010004 01000508")
        self.assertEqual(self.read(stun.ADDRESS_ERROR_CODE, "02fffc28" + b"why".hex()), (2, 440))


class ErrorTests(SynchronousTestCase):
    """19: each code, from a request that earns it."""

    def setUp(self) -> None:
        self.world = World(allocations_per_user=1)
        self.client = self.world.client(user="ann")

    def ask(self, *rows: Any, **who: Any) -> int:
        return code(self.world.client(**{"port": 41000, **who}).ask(Method.ALLOCATE, *rows))

    def test_19_403(self) -> None:
        """Forbidden: valid, but against the rules."""
        self.client.allocate()
        self.assertEqual(code(self.client.permit(("127.0.0.1", 80))), 403)
        self.assertEqual(code(self.client.bind(0x4000, ("169.254.169.254", 80))), 403)

    def test_19_437(self) -> None:
        """Allocation mismatch: none where one is needed, or one where none may be."""
        self.assertEqual(code(self.client.refresh()), 437)
        self.client.allocate()
        self.assertEqual(code(self.client.allocate()), 437)

    def test_19_440(self) -> None:
        """Address family not supported."""
        self.assertEqual(self.ask(UDP, (stun.REQUESTED_ADDRESS_FAMILY, 2)), 440)

    def test_19_441(self) -> None:
        """Wrong credentials: good ones, but not those that made the allocation."""
        self.client.allocate()
        other = self.world.client(namespace="other")
        other.link = self.client.link
        self.assertEqual(code(other.refresh()), 441)

    def test_19_442(self) -> None:
        """Unsupported transport protocol, between server and peer."""
        self.assertEqual(self.ask((stun.REQUESTED_TRANSPORT, 132)), 442)

    def test_19_443(self) -> None:
        """Peer address family mismatch."""
        self.client.allocate()
        self.assertEqual(code(self.client.permit(("2606:4700::1", 80))), 443)

    def test_19_486(self) -> None:
        """Allocation quota reached."""
        self.client.allocate()
        self.assertEqual(self.ask(UDP, user="ann"), 486)

    def test_19_508(self) -> None:
        """Insufficient capacity: no such port, no such reservation."""
        self.assertEqual(self.ask(UDP, (stun.RESERVATION_TOKEN, bytes(8))), 508)

    def test_19_codes_are_counted(self) -> None:
        """Each error is counted by its code."""
        self.client.refresh()
        self.client.permit(PEER)
        self.assertEqual(self.world.figures()["orama_turn_refused_total", "437"], 2)
