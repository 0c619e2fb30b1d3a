"""Errors of ICMP and DF, over real loopback sockets."""

from __future__ import annotations

import errno
import socket
import struct

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.net import icmp
from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Fabric
from orama.net.icmp import IcmpError
from orama.net.poll import Poll
from tests.net.test_burst import HAS_IPV6, Sink

#: Where nobody listens, and the error that says so: port unreachable.
FAMILIES = [(socket.AF_INET, "127.0.0.1", (3, 3)), *([(socket.AF_INET6, "::1", (1, 4))] if HAS_IPV6 else [])]


def nowhere(family: int, ip: str) -> Address:
    """An address that nobody has bound."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        return ip, sock.getsockname()[1]


class ErrorTests(SynchronousTestCase):
    def bound(self, family: int, ip: str) -> socket.socket:
        sock = icmp.relay_socket(family, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind((ip, 0))
        return sock

    def test_port_unreachable(self) -> None:
        """An error is read once, with where the datagram was sent, its port too."""
        for family, ip, (kind, code) in FAMILIES:
            sock, target = self.bound(family, ip), nowhere(family, ip)
            sock.sendto(b"x", target)
            self.assertRaises(ConnectionRefusedError, sock.recv, 10)
            self.assertEqual(list(icmp.errors(sock)), [IcmpError(target, kind, code)])
            self.assertEqual(list(icmp.errors(sock)), [])

    def test_too_big(self) -> None:
        """What does not fit into our own link is an error with the MTU of that, 65,536 here."""
        for family, ip, _ in FAMILIES[1:]:  # a datagram of IPv4 always fits
            sock, target = self.bound(family, ip), nowhere(family, ip)
            with icmp.whole(sock):
                refused = self.assertRaises(OSError, sock.sendto, bytes(65500), target)
            self.assertEqual(refused.errno, errno.EMSGSIZE)
            self.assertEqual(list(icmp.errors(sock)), [IcmpError(target, *icmp.PACKET_TOO_BIG, 65536)])

    def test_df(self) -> None:
        """DF is off, on for what has to stay whole, and off again, also when that failed."""
        option = (socket.IPPROTO_IP, icmp.IP_MTU_DISCOVER)
        sock = self.bound(socket.AF_INET, "127.0.0.1")
        self.assertEqual(sock.getsockopt(*option), icmp.PMTUDISC_DONT)

        def fails() -> None:
            with icmp.whole(sock):
                self.assertEqual(sock.getsockopt(*option), icmp.PMTUDISC_DO)
                raise OSError

        self.assertRaises(OSError, fails)
        self.assertEqual(sock.getsockopt(*option), icmp.PMTUDISC_DONT)

    def test_types(self) -> None:
        """Only the types that a client is told of are given (RFC 8656, 11.5), with an MTU where there is one."""
        four, six = ("192.0.2.1", 1), ("2001:db8::1", 1)
        for to, origin, kind, code, number, info, expected in (
            (four, 2, 3, 1, errno.EHOSTUNREACH, 0, IcmpError(four, 3, 1)),
            (four, 2, 3, 4, errno.EMSGSIZE, 1400, IcmpError(four, 3, 4, 1400)),
            (four, 2, 11, 0, errno.EHOSTUNREACH, 7, IcmpError(four, 11, 0)),
            (four, 2, 4, 0, 0, 0, None),
            (four, 2, 5, 0, 0, 0, None),
            (four, 2, 12, 0, errno.EPROTO, 0, None),
            (six, 3, 1, 4, errno.ECONNREFUSED, 0, IcmpError(six, 1, 4)),
            (six, 3, 2, 0, errno.EMSGSIZE, 1280, IcmpError(six, 2, 0, 1280)),
            (six, 3, 3, 0, errno.EHOSTUNREACH, 0, IcmpError(six, 3, 0)),
            (six, 3, 4, 1, errno.EPROTO, 0, None),
            (four, 1, 0, 0, errno.EMSGSIZE, 1500, IcmpError(four, 3, 4, 1500)),
            (four, 4, 0, 0, 0, 0, None),
        ):
            value = struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0)
            self.assertEqual(icmp._read(value, to), expected)
        self.assertIsNone(icmp._read(b"short", four))


class BurstSocketTests(TestCase):
    """The burst socket of a relay."""

    def setUp(self) -> None:
        self.poll = Poll(reactor, Fabric(reactor))
        self.errors: list[IcmpError] = []

    def socket(self, received: Sink) -> BurstSocket:
        made = BurstSocket(self.poll, received, make_socket=icmp.relay_socket)
        self.addCleanup(made.close)
        made.listen(("127.0.0.1", 0))
        return made

    async def test_told(self) -> None:
        """Whoever the socket belongs to is told of an error once, and the reactor is not woken again for it."""
        told: Deferred[None] = Deferred()
        relay = self.socket(Sink())

        def unreachable(error: IcmpError) -> None:
            self.errors.append(error)
            told.callback(None)

        relay.unreachable = unreachable
        target = nowhere(socket.AF_INET, "127.0.0.1")
        relay.send([b"x"], target)
        await told
        looks: list[bool] = []
        failed = relay.failed
        relay.failed = lambda: (looks.append(True), failed())[1]  # type: ignore[method-assign]
        sink = Sink()
        other = self.socket(sink)
        for _ in range(3):  # three turns of the reactor
            relay.send([b"to the other"], other.address)
            await sink.wait(len(sink.packets) + 1)
        self.assertEqual((self.errors, looks), ([IcmpError(target, 3, 3)], []))

    async def test_others_lose_nothing(self) -> None:
        """The error about one peer does not cost the next datagram, which is for another one."""
        sink = Sink()
        relay, peer = self.socket(Sink()), self.socket(sink)
        target = nowhere(socket.AF_INET, "127.0.0.1")
        for number in range(20):
            relay.send([b"lost"], target)
            relay.send([b"%d" % number], peer.address)
        self.assertEqual(await sink.wait(20), [b"%d" % number for number in range(20)])
        self.assertEqual(relay.counters.dropped, 0)

    async def test_whole(self) -> None:
        """What has to stay whole and does is sent; DF is off again for the next one."""
        sink = Sink()
        relay, peer = self.socket(Sink()), self.socket(sink)
        relay.send_whole([b"whole"], peer.address)
        relay.send([b"any"], peer.address)
        self.assertEqual(await sink.wait(2), [b"whole", b"any"])
