"""The PROXY protocol, versions 1 and 2: who is behind the proxy that a connection comes from.

Source: "The PROXY protocol" (doc/proxy-protocol.txt of HAProxy), 2.1 and 2.2. :func:`read_header` is a pure function
of the bytes so far; whether a connection begins with a header at all is decided by where it comes from
(:class:`Proxies`), never by what is in it. TLVs are skipped. Twisted's parsers are not used: they take a header only
when its first bytes come in one piece, at any length up to 64 KiB, and any text of version 1 for an address.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from attrs import frozen

from orama.net.fabric import Address

#: Section 2.1: the longest line of version 1, with its CRLF.
MAX_LINE = 107
#: The longest header of version 2 with all its TLVs; senders should stay below 536 bytes (section 2.2).
MAX_BINARY = 2048
_LINE_START = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = len(_SIGNATURE) + 4
_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = 0, 1, 2, 3
#: Bytes of the addresses and ports of a family.
_LENGTHS = {_UNSPECIFIED: 0, _IPV4: 12, _IPV6: 36, _UNIX: 216}
#: Unspecified, stream, datagram.
_PROTOCOLS = 3


class ProxyError(ValueError):
    """What a connection begins with is no header; it has to be closed."""


@frozen
class Header:
    """A whole header.

    :ivar source: the client behind the proxy; None when the connection is the proxy's own (a health check) or of a
        family that has no address of ours.
    :ivar length: bytes that it takes; what follows is the client's.
    """

    source: Address | None
    length: int


class Proxies:
    """Where connections come from that begin with a header.

    :param networks: CIDRs.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(map(ip_network, networks))

    def __contains__(self, ip: str) -> bool:
        if not self._networks:
            return False
        address = _plain(ip_address(ip))
        return any(address in network for network in self._networks)


def read_header(data: bytes | bytearray) -> Header | None:
    """The header that *data*, all bytes of a connection so far, begins with; None while it is incomplete.

    At most ``MAX_BINARY`` bytes are incomplete. Who waits for more must bound the time.

    :raises ProxyError: this is no header, which is said at the first byte that cannot be one's.
    """
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _read_binary(data) if len(data) >= _FIXED else None
    if data[: len(_LINE_START)] == _LINE_START[: len(data)]:
        return _read_line(data)
    raise ProxyError("neither version 1 nor 2")


def _read_line(data: bytes | bytearray) -> Header | None:
    """Section 2.1."""
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise ProxyError("the line does not end")
        return None
    try:
        _, protocol, *rest = data[:end].decode("ascii").split(" ")
    except ValueError:
        raise ProxyError("no line of version 1") from None
    if protocol == "UNKNOWN":
        return Header(None, end + 2)
    if protocol not in ("TCP4", "TCP6") or len(rest) != 4:
        raise ProxyError("no line of version 1")
    kind = IPv4Address if protocol == "TCP4" else IPv6Address
    try:
        source, _ = (kind(ip) for ip in rest[:2])
    except ValueError:
        raise ProxyError(f"no addresses of {protocol}") from None
    port, _ = (_port(text) for text in rest[2:])
    return Header(_address(source, port), end + 2)


def _read_binary(data: bytes | bytearray) -> Header | None:
    """Section 2.2; there are at least ``_FIXED`` bytes."""
    version, command = divmod(data[12], 16)
    family, protocol = divmod(data[13], 16)
    end = _FIXED + int.from_bytes(data[14:16], "big")
    if version != _VERSION or command not in (_LOCAL, _PROXY):
        raise ProxyError("neither LOCAL nor PROXY of version 2")
    if end > MAX_BINARY:
        raise ProxyError("the header is too long")
    if command == _PROXY:
        if family not in _LENGTHS or protocol >= _PROTOCOLS:
            raise ProxyError("an unknown family or protocol")
        if end - _FIXED < _LENGTHS[family] and protocol:
            raise ProxyError("the addresses are cut short")
    if len(data) < end:
        return None
    # "The receiver must accept" LOCAL, UNSPEC and AF_UNIX, and use the real address of the connection.
    if command == _LOCAL or not protocol or family not in (_IPV4, _IPV6):
        return Header(None, end)
    if family == _IPV4:
        return Header(_address(IPv4Address(bytes(data[16:20])), int.from_bytes(data[24:26], "big")), end)
    return Header(_address(IPv6Address(bytes(data[16:32])), int.from_bytes(data[48:50], "big")), end)


def _port(text: str) -> int:
    """Decimal, without sign and leading zeros."""
    if not text.isdecimal() or len(text) > 5 or str(int(text)) != text or int(text) > 0xFFFF:
        raise ProxyError("no port")
    return int(text)


def _address(ip: IPv4Address | IPv6Address, port: int) -> Address:
    if not port or (isinstance(ip, IPv6Address) and ip.scope_id):
        raise ProxyError("nobody's address")
    return str(_plain(ip)), port


def _plain(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Proxies write an IPv4 client as ``::ffff:192.0.2.1`` when they were reached over IPv6."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
