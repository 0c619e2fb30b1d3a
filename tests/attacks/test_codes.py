"""What RFC 8656 and RFC 6062 refuse, and with which code; whose request it is comes before what it asks for."""

from __future__ import annotations

import os
import struct

from tests.attacks import probe
from tests.attacks.stage import AttackTestCase, opened
from tests.contract import turn
from tests.contract.commands import OTHER
from tests.contract.turn import Message
from tests.node import NodeProcess

EVEN, EVEN_AND_NEXT = (turn.EVEN_PORT, b"\0"), (turn.EVEN_PORT, b"\x80")
V4, V6 = b"\1\0\0\0", b"\2\0\0\0"


class CodeTestCase(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return opened()


class AllocateTests(CodeTestCase):
    """RFC 8656, 7.2."""

    def assertRefused(self, code: int, *attributes: tuple[int, bytes]) -> Message:
        """Allocate with these alone has this code, and leaves no allocation."""
        client = self.client()
        answer = client.request(turn.ALLOCATE, attributes)
        self.assertEqual(answer.code, code)
        self.assertEqual(client.code(turn.REFRESH), 437)
        return answer

    def test_without_transport(self) -> None:
        """RFC 8656, 7.2, step 3: without REQUESTED-TRANSPORT, or with one that is no byte of it, 400."""
        self.assertRefused(400)
        self.assertRefused(400, (turn.REQUESTED_TRANSPORT, b""))
        self.assertRefused(400, (turn.REQUESTED_TRANSPORT, b"\x11"))

    def test_unknown_transport(self) -> None:
        """RFC 8656, 7.2, step 3 (coturn 4.6.1 said 400): a protocol that is not relayed is 442."""
        for protocol in (0, 1, 50, 99, 132, 255):
            self.assertRefused(442, (turn.REQUESTED_TRANSPORT, bytes((protocol, 0, 0, 0))))

    def test_tcp_over_udp(self) -> None:
        """RFC 6062, 5.1: a TCP relay is not for a client that came over UDP: 400, or 442 where there are none."""
        client = self.client()
        self.assertIn(client.code(turn.ALLOCATE, (turn.REQUESTED_TRANSPORT, probe.TCP)), (400, 442))

    def test_bad_family(self) -> None:
        """RFC 8656, 7.2, step 7: a family that nobody knows is 440."""
        for family in (0, 3, 255):
            self.assertRefused(440, UDP, (turn.REQUESTED_FAMILY, bytes((family, 0, 0, 0))))

    def test_family_that_is_not_there(self) -> None:
        """RFC 8656, 7.2, step 7: nor is there an IPv6 relay where only IPv4 ones are: 440."""
        self.assertRefused(440, UDP, (turn.REQUESTED_FAMILY, V6))

    def test_contradictions(self) -> None:
        """RFC 8656, 7.2, steps 5, 6, 9 and 10: what excludes each other is 400."""
        token = probe.RESERVATION_TOKEN, bytes(8)
        for pair in (
            (token, EVEN),
            (token, EVEN_AND_NEXT),
            (token, (turn.REQUESTED_FAMILY, V4)),
            (token, (probe.ADDITIONAL_FAMILY, V6)),
            ((turn.REQUESTED_FAMILY, V4), (probe.ADDITIONAL_FAMILY, V6)),
            ((probe.ADDITIONAL_FAMILY, V6), EVEN_AND_NEXT),
            ((probe.ADDITIONAL_FAMILY, V4),),
        ):
            self.assertRefused(400, UDP, *pair)

    def test_token_of_nobody(self) -> None:
        """RFC 8656, 7.2, step 5 (coturn 4.6.1 said 404): a token that was not given out is 508."""
        for token in (bytes(8), b"\xff" * 8, os.urandom(8)):
            self.assertRefused(508, UDP, (probe.RESERVATION_TOKEN, token))
        self.assertRefused(400, UDP, (probe.RESERVATION_TOKEN, b"short"))

    def test_token_of_another_namespace(self) -> None:
        """A token is good in the namespace that got it, and once."""
        token = self.client().allocate(EVEN_AND_NEXT).attributes[probe.RESERVATION_TOKEN]
        thief = self.client(namespace=OTHER)
        self.assertEqual(thief.allocate((probe.RESERVATION_TOKEN, token)).code, 508)
        self.assertEqual(self.client().allocate((probe.RESERVATION_TOKEN, token)).code, 0)
        self.assertEqual(self.client().allocate((probe.RESERVATION_TOKEN, token)).code, 508)

    def test_second_allocation(self) -> None:
        """RFC 8656, 7.2, step 2: a second Allocate on a five-tuple is 437, and the first allocation stands."""
        client = self.allocated()
        self.assertEqual(client.allocate().code, 437)
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_retransmission(self) -> None:
        """RFC 8656, 7.2: the same Allocate again gets the same relay; another user's with its id does not."""
        client = self.client().known()
        request = client.signed(turn.ALLOCATE, [UDP])
        answers = [client.answer(request) for _ in range(10)]
        self.assertEqual(len({answer.address(turn.XOR_RELAYED_ADDRESS) for answer in answers if answer}), 1)
        stranger, mine = self.client(), (client.username, client.password)
        client.username, client.password = stranger.username, stranger.password
        self.assertIn(client.forged(turn.ALLOCATE, [UDP], transaction=request[8:20]), (437, 441))
        client.username, client.password = mine

    def test_unknown_attribute(self) -> None:
        """RFC 8489, 6.3.1: attributes that need comprehension and get none are 420, and named."""
        answer = self.assertRefused(420, UDP, (0x7FFE, b""), (0x001B, bytes(4)), (0x7FFE, b"x"), (0x8FFF, b"optional"))
        self.assertEqual(answer.attributes[turn.UNKNOWN_ATTRIBUTES], struct.pack("!HH", 0x7FFE, 0x001B))


class AllocatedTests(CodeTestCase):
    def test_nothing_without_an_allocation(self) -> None:
        """RFC 8656, 8.2, 10.2, 12.2: Refresh, CreatePermission and ChannelBind without one are 437."""
        client = self.client()
        self.assertEqual(client.code(turn.REFRESH), 437)
        self.assertEqual(client.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 437)
        self.assertEqual(client.permit("127.0.0.9"), 437)
        self.assertEqual(client.bind(("127.0.0.9", 5000)), 437)

    def test_peer_of_the_other_family(self) -> None:
        """RFC 8656, 10.2 and 12.2: an IPv6 peer for an IPv4 relay is 443."""
        client = self.allocated()
        self.assertEqual(client.permit("2600::1"), 443)
        self.assertEqual(client.bind(("2600::1", 5000)), 443)
        self.assertEqual(client.permit("127.0.0.9", "2600::1"), 443)

    def test_refresh_of_the_other_family(self) -> None:
        """RFC 8656, 8.2: a Refresh for a family that the allocation does not have is 443."""
        client = self.allocated()
        self.assertEqual(client.code(turn.REFRESH, (turn.REQUESTED_FAMILY, V6)), 443)
        self.assertEqual(client.code(turn.REFRESH, (turn.REQUESTED_FAMILY, V4)), 0)

    def test_permission_without_a_peer(self) -> None:
        """RFC 8656, 10.2: CreatePermission without XOR-PEER-ADDRESS, or with one that is none, is 400."""
        client = self.allocated()
        self.assertEqual(client.code(turn.CREATE_PERMISSION), 400)
        for odd in (b"", bytes(4), bytes(8), b"\0\3" + bytes(6), b"\0\1" + bytes(18), b"\0\2" + bytes(6)):
            self.assertEqual(client.code(turn.CREATE_PERMISSION, (turn.XOR_PEER_ADDRESS, odd)), 400, odd)

    def test_channel_numbers(self) -> None:
        """RFC 8656, 12.2: what is no channel is 400. RFC 5766 had them up to 0x7FFF, which docs/turn.rst keeps."""
        client = self.allocated()
        for number in (0, 1, 0x3FFF, 0x8000, 0xFFFF):
            self.assertEqual(client.bind(("127.0.0.9", 5000), number), 400, hex(number))
        for number in (0x4000, 0x4FFF):
            self.assertEqual(client.bind(("127.0.0.9", number), number), 0, hex(number))

    def test_incomplete_channel(self) -> None:
        """RFC 8656, 12.2: ChannelBind without a number or without a peer is 400."""
        client = self.allocated()
        transaction = os.urandom(12)
        number, [peer] = (turn.CHANNEL_NUMBER, b"\x40\0\0\0"), client.peer(("127.0.0.9", 1), transaction=transaction)
        self.assertEqual(client.code(turn.CHANNEL_BIND, number), 400)
        self.assertEqual(client.code(turn.CHANNEL_BIND, peer, transaction=transaction), 400)

    def test_rebinding(self) -> None:
        """RFC 8656, 12.2: a channel is not bound to a second peer, nor a peer to a second channel: 400."""
        client = self.allocated()
        self.assertEqual(client.bind(("127.0.0.9", 5000), 0x4000), 0)
        self.assertEqual(client.bind(("127.0.0.9", 5001), 0x4000), 400)
        self.assertEqual(client.bind(("127.0.0.9", 5000), 0x4001), 400)
        self.assertEqual(client.bind(("127.0.0.9", 5001), 0x4001), 0)
        self.assertEqual(client.bind(("127.0.0.9", 5000), 0x4001), 400)
        self.assertEqual(client.bind(("127.0.0.9", 5000), 0x4000), 0)


class ConnectTests(CodeTestCase):
    """pion 7a0272f (2026-01-06): Connect and ConnectionBind went by without the right credentials."""

    def test_unsigned(self) -> None:
        """pion 7a0272f: nobody connects or binds a connection without credentials: 401, with an allocation or not."""
        for transport in ("udp", "tcp", "tls"):
            client = self.allocated(transport=transport)
            fresh = self.client(transport)
            for each in (client, fresh):
                self.assertIn(each.ask(probe.CONNECT, (turn.XOR_PEER_ADDRESS, bytes(8))).code, (400, 401), transport)
                self.assertIn(each.ask(probe.CONNECTION_BIND, BIND).code, (400, 401), transport)

    def test_over_udp(self) -> None:
        """RFC 6062, 4.3 and 5.4: there is nothing to connect or bind over UDP: 400, or 437 without an allocation."""
        for client in (self.client(), self.allocated()):
            self.assertIn(client.connect(("127.0.0.9", 5000)), (400, 403, 437))
            self.assertIn(client.code(probe.CONNECTION_BIND, BIND), (400, 437))

    def test_relay_of_udp_connects_nobody(self) -> None:
        """RFC 6062, 5.2: a Connect on an allocation that relays UDP is 400, and no connection comes of it."""
        with self.listening() as peer:
            client = self.allocated(transport="tcp")
            self.assertIn(client.connect(peer.getsockname()), (400, 403, 437))
            with self.assertRaises(TimeoutError):
                peer.accept()


UDP = (turn.REQUESTED_TRANSPORT, turn.UDP)
BIND = (probe.CONNECTION_ID, b"\0\0\0\1")
