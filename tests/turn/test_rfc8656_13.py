"""RFC 8656, 13 to 15: the header fields of what leaves, which are the alternate behaviour of a server in user space."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from orama.net import icmp
from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Burst, Fabric
from orama.net.poll import Poll
from tests.net.test_burst import HAS_IPV6

#: Expedited forwarding, and ECT(0).
MARKED = 0xB8 | 2
#: Of ``linux/in.h`` and ``linux/in6.h``.
_IP_RECVTOS, _IP_RECVTTL = 13, 12
_IPV6_RECVTCLASS, _IPV6_RECVHOPLIMIT = 66, 51
_IPV6_TCLASS, _IPV6_HOPLIMIT = 67, 52


def default_ttl(family: int) -> int:
    """What the system gives outgoing packets."""
    ipv4, ipv6 = "/proc/sys/net/ipv4/ip_default_ttl", "/proc/sys/net/ipv6/conf/default/hop_limit"
    return int(Path(ipv6 if family == socket.AF_INET6 else ipv4).read_text())


class HeaderTests(TestCase):
    """A peer looks at the headers of what a relay, or the socket that clients talk to, passes on."""

    def peer(self, family: int, ip: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind((ip, 0))
        sock.settimeout(5)
        if family == socket.AF_INET6:
            for option, value in (
                (_IPV6_RECVTCLASS, 1),
                (_IPV6_RECVHOPLIMIT, 1),
                (_IPV6_TCLASS, MARKED),
                (socket.IPV6_UNICAST_HOPS, 33),
            ):
                sock.setsockopt(socket.IPPROTO_IPV6, option, value)
        else:
            for option, value in (
                (_IP_RECVTOS, 1),
                (_IP_RECVTTL, 1),
                (socket.IP_TOS, MARKED),
                (socket.IP_TTL, 33),
            ):
                sock.setsockopt(socket.IPPROTO_IP, option, value)
        return sock

    def relayed(self, family: int, ip: str, make: object) -> tuple[bytes, int, int]:
        """What a peer gets back that sends marked packets to a socket of *make*: payload, traffic class and TTL."""
        passed: list[Address] = []

        def received(packets: Burst, source: Address) -> None:
            passed.append(source)
            relay.send([bytes(packet) for packet in packets], source)

        relay = BurstSocket(Poll(reactor, Fabric(reactor)), received, make_socket=make)  # type: ignore[arg-type]
        self.addCleanup(relay.close)
        relay.listen((ip, 0))
        peer = self.peer(family, ip)
        peer.sendto(b"marked", relay.address)
        relay.read(True)
        payload, ancillary, _, _ = peer.recvmsg(100, 200)
        fields = {kind: int.from_bytes(value[:4].ljust(4, b"\0"), "little") for _, kind, value in ancillary}
        if family == socket.AF_INET6:
            return payload, fields[_IPV6_TCLASS], fields[_IPV6_HOPLIMIT]
        return payload, fields[socket.IP_TOS], fields[socket.IP_TTL]

    def check(self, family: int, ip: str) -> None:
        for make in (icmp.relay_socket, icmp.udp_socket):
            self.assertEqual(self.relayed(family, ip, make), (b"marked", 0, default_ttl(family)))

    def test_14_dscp_ecn_ttl(self) -> None:
        """14, 15: DSCP is best effort, ECN is Not-ECT and TTL the system's, whatever came in."""
        self.check(socket.AF_INET, "127.0.0.1")

    def test_13_traffic_class_hop_limit(self) -> None:
        """13.1, 13.2: traffic class and hop limit are the system's, whatever came in."""
        if HAS_IPV6:
            self.check(socket.AF_INET6, "::1")

    def test_14_fragmentation(self) -> None:
        """14, 15: DF is 0 on what passes, in both directions; what is too long for the link is fragmented."""
        for make in (icmp.relay_socket, icmp.udp_socket):
            with make(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                self.assertEqual(sock.getsockopt(socket.IPPROTO_IP, icmp.IP_MTU_DISCOVER), icmp.PMTUDISC_DONT)
            if HAS_IPV6:
                with make(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                    mode = sock.getsockopt(socket.IPPROTO_IPV6, icmp.IPV6_MTU_DISCOVER)
                    self.assertEqual(mode, icmp.PMTUDISC_DONT)
