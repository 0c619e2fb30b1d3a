"""Relays as a way inside: peers on loopback, in private networks and behind disguised addresses."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SkipTest

from tests.attacks.probe import Probe
from tests.attacks.stage import AttackTestCase, address, has_ipv6, numbered, opened, wide
from tests.contract import turn
from tests.contract.stage import directory
from tests.contract.turn import Address
from tests.node import NodeProcess


class PeerTestCase(AttackTestCase):
    def assertShut(self, *hosts: str, client: Probe | None = None) -> None:
        """CreatePermission and ChannelBind are 403, and what is sent there is dropped."""
        client = client or self.allocated()
        for host in hosts:
            self.assertEqual(client.permit(host), 403, host)
            self.assertEqual(client.bind((host, 5000)), 403, host)
            client.indicate((host, 5000), b"x")
        self.silent(client)

    def assertHearsNothing(self, *peers: socket.socket) -> None:
        for peer in peers:
            peer.settimeout(turn.SILENCE)
            with self.assertRaises(TimeoutError):
                peer.recv(100)


class InwardTests(PeerTestCase):
    """Where nothing is allowed, and where everything is: what is inside stays shut in both."""

    def assertShut(self, *hosts: str, client: Probe | None = None) -> None:
        super().assertShut(*hosts, client=client)
        self.node = wide()
        four = self.allocated()
        super().assertShut(*(host for host in hosts if ":" not in host), client=four)
        # This is what would have been the answer.
        self.assertEqual(four.permit("9.9.9.9"), 0)
        if has_ipv6():
            six = self.allocated((turn.REQUESTED_FAMILY, b"\2\0\0\0"))
            super().assertShut(*hosts, client=six)
            self.assertEqual(six.permit("2620:fe::fe"), 0)

    def test_loopback_is_refused(self) -> None:
        """CVE-2018-4058 (coturn before 4.5.0.9 relayed to loopback): every address of it is 403, at both its ends."""
        self.assertShut("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1")

    def test_send_to_loopback_is_dropped(self) -> None:
        """CVE-2018-4058: neither a Send indication nor ChannelData gets to a listener there, whatever came before."""
        client = self.allocated()
        peers = [self.bound(host) for host in ("127.0.0.1", "127.255.255.254")]
        for peer in peers:
            to: Address = peer.getsockname()
            client.permit(to[0])
            client.bind(to)
            client.indicate(to, b"inside")
            client.channel_data(b"inside")
        self.silent(client)
        self.assertHearsNothing(*peers)

    def test_zero_is_refused(self) -> None:
        """CVE-2020-26262 (coturn before 4.5.2): 0.0.0.0/8 and :: are this host too, and 403."""
        self.assertShut("0.0.0.0", "0.1.2.3", "0.255.255.255", "::", "::1")

    def test_mapped_addresses_are_refused(self) -> None:
        """CVE-2026-27624, GHSA-j8mm-mpf8-gvjg (coturn before 4.9.0): ::ffff:a.b.c.d is judged as what it means."""
        self.assertShut("::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.0.0.1", "::ffff:192.168.1.1")

    def test_every_mapped_loopback_is_refused(self) -> None:
        """coturn b057acbe (4.13.0): a fix that looked at the last byte let ::ffff:127.0.0.2 through."""
        self.assertShut("::ffff:127.0.0.1", "::ffff:127.0.0.2", "::ffff:127.1.2.3", "::ffff:127.255.255.255")

    def test_disguises_are_refused(self) -> None:
        """coturn #1945 (4.13.1), RFC 6156, 9.1: IPv4-compatible, 6to4, NAT64 and Teredo spell loopback; 403."""
        self.assertShut(
            "::127.0.0.1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::7f00:1",
            "2001:0:7f00:1::",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
        )

    def test_link_local_is_refused(self) -> None:
        """coturn #1947 (4.13.1): clouds' metadata, link-local, unique-local, site-local and multicast are 403."""
        self.assertShut(
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "febf::1",
            "fc00::1",
            "fd00::1",
            "fd00:ec2::254",
            "fec0::1",
            "ff02::1",
        )

    def test_private_networks_are_refused(self) -> None:
        """Slack's relay, 2020 (rtcsec): private and carrier-grade NAT addresses are 403 unless configured."""
        self.assertShut(
            "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.255"
        )

    def test_special_networks_are_refused(self) -> None:
        """The same for what IANA keeps for other ends: benchmarks, documentation, multicast, class E, broadcast."""
        self.assertShut(
            "192.0.0.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1",
            "255.255.255.255",
        )  # fmt: skip

    def test_the_internet_is_refused(self) -> None:
        """Default deny: an address that nobody opened is 403 as well, of whatever sort it is."""
        super().assertShut("8.8.8.8", "1.1.1.1", "203.0.113.9")

    def test_one_bad_peer_spoils_the_request(self) -> None:
        """RFC 8656, 10.2: a CreatePermission with one forbidden peer installs none of its permissions."""
        self.node = opened()
        client = self.allocated()
        peer = self.bound("127.0.0.1")
        self.assertEqual(client.permit("127.0.0.1", "169.254.169.254"), 403)
        client.indicate(peer.getsockname(), b"x")
        self.silent(client)
        self.assertHearsNothing(peer)


class OwnServiceTests(PeerTestCase):
    def attacked(self) -> NodeProcess:
        return opened()

    def test_own_listeners_are_refused(self) -> None:
        """coturn #1946: where loopback is open, our own TURN listeners stay shut: 403, and Send is dropped."""
        client = self.allocated()
        for transport in ("udp", "tcp", "tls"):
            listener = address(self.node, transport)
            self.assertEqual(client.bind(listener), 403, transport)
        self.assertEqual(client.permit("127.0.0.1"), 0)
        client.indicate(address(self.node), turn.build(turn.BINDING))
        self.silent(client)

    def test_what_is_open_does_not_open_the_rest(self) -> None:
        """coturn #1946, and the metadata address with it: a network that is opened opens itself alone."""
        self.assertShut(
            "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "128.0.0.1", "126.255.255.255"
        )


class NetworkTests(PeerTestCase):
    """What is configured is read as networks, once, at the start."""

    def attacked(self) -> NodeProcess:
        if not has_ipv6():
            raise SkipTest("no IPv6 here")
        return numbered()

    def test_networks_that_end_inside_a_byte(self) -> None:
        """coturn 6c13608c (4.16.0): ranges of IPv6 were compared byte by byte. A network is a range of numbers."""
        client = self.allocated()
        for host, code in (
            ("2600:1230::", 0),
            ("2600:1237:ffff::ff", 0),
            ("2600:1234:5678:9abc:def0:1234:5678:9abc", 0),
            ("2600:1238::", 403),
            ("2600:122f:ffff:ffff:ffff:ffff:ffff:ffff", 403),
            ("2600:1234:7fff:ffff::", 0),
            ("2600:1234:8000::", 403),
            ("2600:1234:9234:5678:ffff:ffff:ffff:ffff", 403),
            ("2600:1234:9fff:ffff:ffff:ffff:ffff:ffff", 403),
            ("2600:1234:a000::", 0),
            ("2600:2000:0:7f7f:ffff::", 0),
            ("2600:2000:0:7f80::", 403),
            ("2600:2000:0:7eff:ffff::", 403),
        ):
            self.assertEqual(client.permit(host), code, host)
        self.assertShut("::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", client=client)

    def test_denied_networks(self) -> None:
        """coturn 6c13608c: what is denied is so inside of what is allowed, up to its last address and no further."""
        self.node = opened()
        self.assertShut("127.66.0.0", "127.66.0.1", "127.67.255.255")
        self.assertEqual(self.allocated().permit("127.65.255.255", "127.68.0.0"), 0)

    def test_garbage_stops_the_start(self) -> None:
        """coturn #1872: an entry that is no network ends the start with a line that names it; it is not skipped."""
        for entry in ("10.0.0.0/33", "10.0.0.0-10.255.255.255"):
            for key in ("allowed_peers", "denied_peers"):
                node = NodeProcess(directory(), config=f'[turn]\n{key} = ["127.0.0.0/8", "{entry}"]\n')
                node.launch()
                self.assertEqual(node.wait(), 1)
                [line] = node.errors.splitlines()
                self.assertIn(entry, line)
                self.assertIn(key, line)
