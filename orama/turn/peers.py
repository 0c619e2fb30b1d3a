"""Whom a relay may exchange packets with (RFC 8656, 9.2 leaves it to us): nobody, unless a rule says so.

Two rules open an address: it is an SFU media address of the relay's own namespace, or it lies in one of
the tenant's ``allowed_peers``. A network there opens a range that is never public (loopback, private,
link-local, …) only by lying inside that range: ``127.0.0.0/8`` opens loopback, ``0.0.0.0/0`` does not. The
SFUs and relays of other namespaces, our own listeners and what else this node serves and uses (``Shut``) stay
shut in any case, and so does what lies in one of the tenant's ``denied_peers``, whichever rule opens it. A
permission names an IP alone, so the port is judged where it becomes known: at ChannelBind, at Send, and for
what comes in.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from orama.net.fabric import Address
from orama.turn.tenants import Network, Tenant, Tenants

IP: TypeAlias = IPv4Address | IPv6Address

#: Ranges that are no business of a relay: IANA's special-purpose registries (RFC 6890), multicast, class E.
SPECIAL: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2001:db8::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
#: Of these, what a probe for the inside of a network would name; documentation addresses are not.
_HARMLESS = frozenset(
    ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_COMPATIBLE = ip_network("::/96")
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


def canonical(ip: IP) -> IP:
    """The IPv4 address that *ip* spells in one of IPv6's ways; *ip* itself when it spells none."""
    if isinstance(ip, IPv4Address):
        return ip
    low = IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip in _MAPPED or any(ip in network for network in _NAT64):
        return low
    if ip in _COMPATIBLE and int(ip) > 1:  # "::" and "::1" are themselves
        return low
    if ip.sixtofour is not None:  # RFC 3056
        return ip.sixtofour
    if ip.teredo is not None:  # RFC 4380: the client's address, obfuscated
        return ip.teredo[1]
    return ip


def read_network(text: str) -> Network:
    """The network of a configuration, in IPv4 where it spells an IPv4 network as ``::ffff:192.0.2.0/120``.

    :raises ValueError: it is none.
    """
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - _MAPPED.prefixlen))
    return found


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[IP, bool]:
    """The canonical address and whether *text* spelled it plainly."""
    ip = ip_address(text)
    plain = canonical(ip)
    return plain, plain == ip


@lru_cache(maxsize=4096)
def _opens(allowed: tuple[Network, ...], text: str) -> bool:
    """Whether one of *allowed* opens the address: lies inside each special range that has it."""
    address, plain = _read(text)
    if not plain:  # nobody honest writes an IPv4 peer as 64:ff9b::7f00:1
        return False
    special = [network for network in SPECIAL if address in network]
    return any(address in network and all(_inside(network, each) for each in special) for network in allowed)


@lru_cache(maxsize=4096)
def _holds(denied: tuple[Network, ...], text: str) -> bool:
    """Whether the address is in one of *denied*, in whichever spelling."""
    address, _ = _read(text)
    return any(address in network for network in denied)


class Peers:
    """The rules, for every tenant.

    :param relay_ip: where the relays of this process are; :param relay_ip6: and where more of them are.
    :param listeners: our own TURN listeners, which no relay may talk to.
    """

    def __init__(
        self, tenants: Tenants, relay_ip: str, listeners: Collection[Address] = (), relay_ip6: str = ""
    ) -> None:
        self._tenants = tenants
        self._relay_ips = frozenset({relay_ip, relay_ip6})
        self.listeners = frozenset(listeners)

    def may_reach_ip(self, tenant: Tenant, ip: str) -> bool:
        """Whether a permission for *ip* may be made (a port of it may still be refused)."""
        opened = self.is_media_ip(tenant, ip) or self.is_allowed_ip(tenant, ip)
        return opened and not self._is_denied(tenant, ip)

    def may_reach(self, tenant: Tenant, peer: Address) -> bool:
        """Whether packets may pass between a relay of *tenant* and *peer*."""
        ip, port = peer
        if not port or self._is_denied(tenant, ip):
            return False
        for media_ip, first, last in tenant.sfu_media:
            if first <= port <= last and media_ip == ip:
                return True
        return self.is_allowed_ip(tenant, ip) and not self._is_somebody_elses(tenant, peer)

    def is_media_ip(self, tenant: Tenant, ip: str) -> bool:
        """Whether an SFU of *tenant* has its media on *ip*."""
        return any(ip == media_ip for media_ip, _, _ in tenant.sfu_media)

    def is_allowed_ip(self, tenant: Tenant, ip: str) -> bool:
        """Whether the tenant's ``allowed_peers`` open *ip*."""
        return bool(tenant.allowed_peers) and _opens(tenant.allowed_peers, ip)

    def is_inward(self, ip: str) -> bool:
        """Whether *ip* points inside: loopback, private, link-local and the like, in any spelling."""
        address, plain = _read(ip)
        return not plain or any(address in network for network in SPECIAL if network not in _HARMLESS)

    def _is_denied(self, tenant: Tenant, ip: str) -> bool:
        return bool(tenant.denied_peers) and _holds(tenant.denied_peers, ip)

    def _is_somebody_elses(self, tenant: Tenant, peer: Address) -> bool:
        if peer in self.listeners or tenant.shut.has(peer):
            return True
        owner = self._tenants.media_owner_of(peer)
        if owner is None and peer[0] in self._relay_ips:
            owner = self._tenants.owner_of(peer)
        return owner is not None and owner != tenant.namespace


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
