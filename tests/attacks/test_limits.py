"""Quotas and tables: filled by one, they hold for that one alone, and what is given back is free again."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack

from tests.attacks import probe
from tests.attacks.probe import Probe
from tests.attacks.stage import (
    ALLOCATIONS_OF_NAMESPACE,
    ALLOCATIONS_OF_USER,
    BLOCK,
    OPENED,
    AttackTestCase,
    guarded,
    narrow,
    opened,
)
from tests.contract import turn
from tests.contract.commands import OTHER
from tests.node import NodeProcess

EVEN, EVEN_AND_NEXT = (turn.EVEN_PORT, b"\0"), (turn.EVEN_PORT, b"\x80")
GONE = (turn.LIFETIME, bytes(4))
#: RFC 8656 names no number; docs/turn.rst does.
PERMISSIONS = CHANNELS = 256
#: etc/orama.toml.
FIRST_RELAY, ALLOCATIONS_BY_DEFAULT = 49152, 32


class PortTests(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return opened()

    def test_even_ports_come_back(self) -> None:
        """coturn 4adbd82e (4.17.0; 4.6.1 fails 70 of 120): EVEN-PORT without reservation takes one port."""
        client = self.client()
        for number in range(120):
            answer = client.allocate(EVEN)
            self.assertEqual(answer.code, 0, number)
            self.assertEqual(answer.address(turn.XOR_RELAYED_ADDRESS)[1] % 2, 0)
            self.assertEqual(client.code(turn.REFRESH, GONE), 0)

    def test_every_even_port_is_given(self) -> None:
        """coturn 4adbd82e: eight even ports are eight allocations; then 508, then odd ones, then 508; all come back."""
        for _ in range(2):
            clients = [self.client() for _ in range(16)]
            codes = [client.allocate(EVEN).code for client in clients[:9]]
            self.assertEqual(codes, [0] * 8 + [508])
            codes = [client.allocate().code for client in clients[8:]]
            self.assertEqual(codes, [0] * 8)
            self.assertEqual(self.client().allocate().code, 508)
            for client in clients:
                self.assertEqual(client.code(turn.REFRESH, GONE), 0)

    def test_ports_that_somebody_has(self) -> None:
        """livekit #4744, coturn #1568: where the kernel gives no port it is 508, and no place is lost."""
        client = self.allocated()
        first = (self.relayed[1] - FIRST_RELAY) // BLOCK * BLOCK + FIRST_RELAY
        client.release()
        with ExitStack() as taken:
            for port in range(first, first + BLOCK):
                taken.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind((OPENED, port))
            user = f"{int(time.time()) + 600}:default:{os.urandom(4).hex()}"
            for _ in range(ALLOCATIONS_BY_DEFAULT + 8):
                client = self.client(username=user)
                if client.allocate().code == 0:  # the port is asked for when there is a peer outside
                    self.assertEqual(client.permit("127.0.0.9"), 508)
                client.release()
        client = self.client(username=user)
        self.assertEqual(client.allocate().code, 0)
        self.assertEqual(client.permit("127.0.0.9"), 0)

    def test_streams_that_go_give_their_port_back(self) -> None:
        """coturn a97f1924, 3c5b2615: allocating and hanging up in a loop holds neither port nor quota."""
        for number in range(60):
            client = self.client(("tcp", "tls")[number % 2])
            self.assertEqual(client.allocate().code, 0, number)
            client.socket.close()


class TableTests(AttackTestCase):
    """coturn eda6358d, #2017, #1932: one allocation's permissions filled the memory of all."""

    def attacked(self) -> NodeProcess:
        return opened()

    def test_permissions_are_bounded(self) -> None:
        """coturn #1932: of 600 permissions the first 256 are good, the others 508, and the neighbour has room."""
        client, neighbour = self.allocated(), self.allocated()
        codes = [client.permit(f"127.1.{number >> 8}.{number & 255}") for number in range(600)]
        self.assertEqual(codes, [0] * PERMISSIONS + [508] * (600 - PERMISSIONS))
        self.assertEqual(client.permit("127.1.0.0"), 0)
        self.assertEqual(neighbour.permit("127.9.9.9"), 0)

    def test_permissions_of_one_request_are_bounded(self) -> None:
        """coturn #1932: nor do they come all in one CreatePermission; RFC 8656, 10.2: then none of them is there."""
        client = self.allocated()
        self.assertEqual(client.permit(*(f"127.1.{number >> 8}.{number & 255}" for number in range(600))), 508)
        peer = self.bound("127.1.0.1")
        peer.sendto(b"x", self.relayed)
        self.silent(client)
        self.assertEqual(client.permit(*(f"127.1.0.{number}" for number in range(PERMISSIONS))), 0)

    def test_channels_are_bounded(self) -> None:
        """coturn eda6358d: of 300 channels the first 256 are good, and another allocation has its own."""
        client, neighbour = self.allocated(), self.allocated()
        codes = [client.bind(("127.0.0.9", 5000 + number), 0x4000 + number) for number in range(300)]
        self.assertEqual(codes, [0] * CHANNELS + [508] * (300 - CHANNELS))
        self.assertEqual(neighbour.bind(("127.0.0.9", 5000), 0x4F00), 0)

    def test_many_peers_cost_no_memory(self) -> None:
        """coturn #2017: 5,000 peer ports behind one permission are relayed without a growing table."""
        client = self.allocated()
        self.assertEqual(client.permit("127.0.0.9"), 0)
        grown = 0
        for _ in range(2):
            before = probe.memory(self.node.process.pid)
            for number in range(5000):
                client.indicate(("127.0.0.9", 10000 + number), b"x")
                if number % 50 == 0:
                    self.assertEqual(client.code(turn.REFRESH), 0)
            self.assertEqual(client.code(turn.REFRESH), 0)
            grown = probe.memory(self.node.process.pid) - before
        self.assertLess(grown, 1 << 19)


class QuotaTests(AttackTestCase):
    """livekit #4744, resiprocate #484, coturn #243: who counts as one, and what is given back."""

    def attacked(self) -> NodeProcess:
        return narrow()

    def known(self, user: str, number: int = 0, namespace: str = "default") -> Probe:
        """A new five-tuple of *user*, from an address of its own, with an expiry of its own."""
        name = f"{int(time.time()) + 60 + number}:{namespace}" + (f":{user}" if user else "")
        return self.client(username=name, namespace=namespace, source=f"127.60.{os.urandom(1)[0]}.{1 + number}")

    def test_user(self) -> None:
        """livekit #4744: exactly so many allocations, whatever five-tuple and expiry; a release makes room for one."""
        clients = [self.known("ann", number) for number in range(ALLOCATIONS_OF_USER + 3)]
        codes = [client.allocate().code for client in clients]
        self.assertEqual(codes, [0] * ALLOCATIONS_OF_USER + [486] * 3)
        self.assertEqual(self.known("bob").allocate().code, 0)
        clients[0].release()
        self.assertEqual([client.allocate().code for client in clients[-2:]], [0, 486])

    def test_namespace(self) -> None:
        """resiprocate #484: exactly so many for a namespace, by users or without; another namespace has its own."""
        users = [f"user{number}" for number in range(ALLOCATIONS_OF_NAMESPACE + 2)]
        codes = [self.known(user, number).allocate().code for number, user in enumerate(users)]
        self.assertEqual(codes, [0] * ALLOCATIONS_OF_NAMESPACE + [486] * 2)
        self.assertEqual(self.known("").allocate().code, 486)
        self.assertEqual(self.known("ann", namespace=OTHER).allocate().code, 0)

    def test_at_once(self) -> None:
        """livekit #4744: the same for Allocates that are all on their way before the first is answered."""
        clients = [self.known("ann", number).known() for number in range(ALLOCATIONS_OF_USER + 6)]
        requests = [client.signed(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)]) for client in clients]
        for client, request in zip(clients, requests, strict=True):
            client.send(request)
        answers = [client.receive() for client in clients]
        codes = sorted(turn.parse(answer).code for answer in answers if answer)
        self.assertEqual(codes, [0] * ALLOCATIONS_OF_USER + [486] * 6)

    def test_reserved_ports_count(self) -> None:
        """coturn 4adbd82e, turned around: ports that are reserved and left are the user's own ones."""
        eve = self.known("eve", namespace=OTHER)
        codes = []
        for _ in range(6):
            codes.append(eve.allocate(EVEN_AND_NEXT).code)
            eve.code(turn.REFRESH, GONE)
        self.assertLessEqual(codes.count(0), ALLOCATIONS_OF_USER)
        self.assertEqual(codes[-1], 486)
        self.assertEqual(self.known("bob", namespace=OTHER).allocate().code, 0)

    def test_retransmission_counts_once(self) -> None:
        """coturn #243: an Allocate that comes five times is one allocation."""
        client = self.known("ann").known()
        request = client.signed(turn.ALLOCATE, [(turn.REQUESTED_TRANSPORT, turn.UDP)])
        for _ in range(5):
            answer = client.answer(request)
            assert answer is not None
            self.assertEqual(answer.code, 0)
        codes = [self.known("ann", number).allocate().code for number in range(1, ALLOCATIONS_OF_USER + 1)]
        self.assertEqual(codes, [0] * (ALLOCATIONS_OF_USER - 1) + [486])

    def test_what_failed_holds_nothing(self) -> None:
        """livekit #4744: an Allocate that is refused for another reason, 442, 440, 508 or 400, takes no place."""
        client = self.known("ann")
        udp = (turn.REQUESTED_TRANSPORT, turn.UDP)
        for code, given in (
            (442, [(turn.REQUESTED_TRANSPORT, b"\x63\0\0\0")]),
            (440, [udp, (turn.REQUESTED_FAMILY, b"\2\0\0\0")]),
            (508, [udp, (probe.RESERVATION_TOKEN, bytes(8))]),
            (400, [udp, (probe.RESERVATION_TOKEN, bytes(8)), EVEN]),
            (420, [udp, (0x7FFF, b"")]),
        ):
            for _ in range(ALLOCATIONS_OF_NAMESPACE + 1):
                self.assertEqual(client.code(turn.ALLOCATE, *given), code)
        codes = [self.known("ann", number).allocate().code for number in range(ALLOCATIONS_OF_USER + 1)]
        self.assertEqual(codes, [0] * ALLOCATIONS_OF_USER + [486])

    def test_streams_that_go_give_their_place_back(self) -> None:
        """coturn 3c5b2615 (4.17.0): hanging up without a release, over TCP and TLS, holds no place of the quota."""
        for number in range(2 * ALLOCATIONS_OF_USER + 2):
            client = self.client(
                ("tcp", "tls")[number % 2], username=f"{int(time.time()) + 60}:default:ann", source="127.61.0.1"
            )
            while (code := client.allocate().code) == 486:  # the one before is not gone yet
                time.sleep(0.01)
            self.assertEqual(code, 0, number)
            client.socket.close()


class TenantTests(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return guarded()

    def test_allocation_of_another_namespace(self) -> None:
        """RFC 8656, 5: on a five-tuple of one namespace the other's credentials are 441, whatever they ask for."""
        client = self.allocated()
        mine = client.username, client.password
        for namespace in (OTHER, "default"):
            thief = self.client(namespace=namespace)
            client.username, client.password = thief.username, thief.password
            self.assertEqual(client.code(turn.REFRESH, GONE), 441)
            self.assertEqual(client.code(turn.REFRESH), 441)
            self.assertEqual(client.permit(self.relayed[0]), 441)
            self.assertEqual(client.bind((self.relayed[0], 20000)), 441)
            self.assertEqual(client.allocate().code, 437)
        client.username, client.password = mine
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_expiry_is_no_other_user(self) -> None:
        """RFC 8656, 5: newer credentials of the same user go on with the allocation; it is the name that counts."""
        user = os.urandom(4).hex()
        client = self.allocated(username=f"{int(time.time()) + 60}:default:{user}")
        newer = self.client(username=f"{int(time.time()) + 120}:default:{user}")
        client.username, client.password = newer.username, newer.password
        self.assertEqual(client.code(turn.REFRESH), 0)
