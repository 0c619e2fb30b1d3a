"""The header of the PROXY protocol."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from orama.net.proxy import MAX_BINARY, MAX_LINE, Header, Proxies, ProxyError, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PORTS = st.integers(1, 65535)
#: What would be somebody else's in disguise is looked at by itself.
IPV6 = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None)


def binary(content: bytes = b"", command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(content)) + content


def ipv4(source: str = "203.0.113.9", port: int = 40000, tlvs: bytes = b"") -> bytes:
    addresses = IPv4Address(source).packed + IPv4Address("192.0.2.1").packed
    return binary(addresses + struct.pack("!HH", port, 3478) + tlvs)


def ipv6(source: str, port: int = 40000, tlvs: bytes = b"") -> bytes:
    addresses = IPv6Address(source).packed + IPv6Address("2001:db8::1").packed
    return binary(addresses + struct.pack("!HH", port, 3478) + tlvs, family=0x21)


class HeaderTests(SynchronousTestCase):
    def refused(self, data: bytes) -> None:
        self.assertRaises(ProxyError, read_header, data)

    def whole(self, data: bytes, source: tuple[str, int] | None) -> None:
        """*data* is a header that says *source*, with anything behind it, and no part of it is one or is refused."""
        for length in range(len(data)):
            self.assertIsNone(read_header(data[:length]), data[:length])
        for more in (b"", b"\x00\x01", data):
            self.assertEqual(read_header(bytearray(data + more)), Header(source, len(data)))

    @given(st.ip_addresses(v=4), PORTS, st.binary(max_size=80))
    def test_ipv4(self, ip: IPv4Address, port: int, tlvs: bytes) -> None:
        """Both versions give the client's IPv4 address and port; TLVs are skipped."""
        self.whole(ipv4(str(ip), port, tlvs), (str(ip), port))
        self.whole(b"PROXY TCP4 %b 192.0.2.1 %d 3478\r\n" % (str(ip).encode(), port), (str(ip), port))

    @given(IPV6, PORTS, st.binary(max_size=80))
    def test_ipv6(self, ip: IPv6Address, port: int, tlvs: bytes) -> None:
        """Likewise for IPv6, in the one spelling that the rest compares."""
        self.whole(ipv6(str(ip), port, tlvs), (str(ip), port))
        for text in (str(ip), ip.exploded.upper()):
            self.whole(b"PROXY TCP6 %b 2001:db8::1 %d 3478\r\n" % (text.encode(), port), (str(ip), port))

    def test_mapped(self) -> None:
        """An IPv4 client behind a proxy that was reached over IPv6 is an IPv4 client."""
        self.whole(ipv6("::ffff:203.0.113.9"), ("203.0.113.9", 40000))
        self.whole(b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 40000 3478\r\n", ("203.0.113.9", 40000))

    def test_nobody_behind(self) -> None:
        """Health checks (LOCAL), UNKNOWN, unspecified families and Unix sockets stand for the connection itself."""
        for data in (
            binary(command=0x20, family=0),
            binary(bytes(12), command=0x20),
            binary(b"\x03\0\4abcd", command=0x20, family=0xFF),
            binary(family=0),
            binary(b"\x04\0\1\0", family=0),
            binary(bytes(216), family=0x31),
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ffff::1 ffff::2 1 2 and more\r\n",
        ):
            self.whole(data, None)

    def test_refused(self) -> None:
        """What is no header is refused: other protocols, other versions, addresses and ports in other spellings."""
        for data in (
            b"\0\1\0\0\x21\x12\xa4\x42",
            b"\x16\3\1\2\0\1",
            b"GET / HTTP/1.1\r\n",
            b"PROXY\r\n",
            b"proxy TCP4",
            b"PROXY TCP4 203.0.113.9 192.0.2.1 40000\r\n",
            b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 3478 1\r\n",
            b"PROXY TCP4  203.0.113.9 192.0.2.1 40000 3478\r\n",
            b"PROXY UDP4 203.0.113.9 192.0.2.1 40000 3478\r\n",
            b"PROXY TCP4 ::1 ::1 40000 3478\r\n",
            b"PROXY TCP6 203.0.113.9 192.0.2.1 40000 3478\r\n",
            b"PROXY TCP6 fe80::1%eth0 fe80::2 40000 3478\r\n",
            b"PROXY TCP4 203.0.113.09 192.0.2.1 40000 3478\r\n",
            b"PROXY TCP4 localhost 192.0.2.1 40000 3478\r\n",
            *(
                b"PROXY TCP4 203.0.113.9 192.0.2.1 %b 3478\r\n" % port
                for port in (b"0", b"65536", b"+1", b"007", b"1_0")
            ),
            b"PROXY TCP4 203.0.113.9 192.0.2.1 \xd9\xa3 3478\r\n",
            b"PROXY UNKNOWN\n" + bytes(MAX_LINE),
            ipv4(port=0),
            binary(bytes(12), command=0x11),
            binary(bytes(12), command=0x22),
            binary(bytes(12), family=0x13),
            binary(bytes(12), family=0x41),
            binary(bytes(11), family=0x11),
            binary(bytes(35), family=0x21),
        ):
            self.refused(data)

    def test_bounds(self) -> None:
        """A header that is too long is refused as soon as it says so, however little of it has come."""
        self.refused(binary(bytes(MAX_BINARY))[:16])
        self.assertIsNotNone(read_header(ipv4(tlvs=bytes(MAX_BINARY - 28))))
        self.refused(b"PROXY UNKNOWN" + b" " * MAX_LINE)
        longest = b"PROXY UNKNOWN" + b" " * (MAX_LINE - 15) + b"\r\n"
        self.assertEqual(read_header(longest), Header(None, MAX_LINE))

    @given(
        st.one_of(
            st.binary(max_size=300),
            st.binary(max_size=300).map(lambda data: SIGNATURE + data),
            st.binary(max_size=100).map(lambda data: b"PROXY " + data),
        )
    )
    @example(b"PROXY TCP4 \xff\r\n")
    def test_total(self, data: bytes) -> None:
        """Any bytes are a header, the beginning of one, or an error; what is refused is refused with more behind it."""
        try:
            header = read_header(data)
        except ProxyError:
            self.refused(data + b"\r\n" + bytes(MAX_BINARY))
        else:
            self.assertTrue(header is None or 0 < header.length <= len(data))

    @given(st.ip_addresses(), PORTS)
    def test_as_twisted(self, ip: IPv4Address | IPv6Address, port: int) -> None:
        """Twisted's parsers read the same address from what is a header for both."""
        two, one = (ipv4, "TCP4 %s 192.0.2.1") if ip.version == 4 else (ipv6, "TCP6 %s 2001:db8::1")
        for theirs, data in (
            (V2Parser.parse(two(str(ip), port)).source, two(str(ip), port)),
            (
                V1Parser.parse(f"PROXY {one % ip} {port} 3478".encode()).source,
                f"PROXY {one % ip} {port} 3478\r\n".encode(),
            ),
        ):
            ours = read_header(data)
            assert ours is not None and ours.source is not None
            their_ip = type(ip)(theirs.host)
            plain = getattr(their_ip, "ipv4_mapped", None) or their_ip
            self.assertEqual(ours.source, (str(plain), theirs.port))


class ProxiesTests(SynchronousTestCase):
    def test_networks(self) -> None:
        """A connection comes from a proxy when its address lies in one of the networks; without any, none does."""
        proxies = Proxies(["10.0.0.0/8", "fd00::/8"])
        self.assertIn("10.1.2.3", proxies)
        self.assertIn("::ffff:10.1.2.3", proxies)
        self.assertIn("fd00::1", proxies)
        for ip in ("11.0.0.1", "127.0.0.1", "::1", "fc00::1"):
            self.assertNotIn(ip, proxies)
        self.assertNotIn("10.1.2.3", Proxies())
