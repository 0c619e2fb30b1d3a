"""Who is served: one :class:`Tenant` per namespace, with its secrets, its relay ports and what its relays may reach.

The registry is the only thing that the rest of the process changes while the server runs; the server
watches it, so that the allocations of a removed tenant end and those of a changed one are judged anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TypeAlias

from attrs import field, frozen

from orama.net.fabric import Address

Network: TypeAlias = IPv4Network | IPv6Network


@frozen
class Shut:
    """What is served beside media, on this host and around it: no business of a relay."""

    #: Addresses of this host; those of loopback are, too.
    hosts: tuple[str, ...] = ()
    #: First and last ports there.
    ports: tuple[tuple[int, int], ...] = ()
    #: Addresses and ports on other hosts.
    places: tuple[Address, ...] = ()

    def has(self, peer: Address) -> bool:
        ip, port = peer
        if not any(first <= port <= last for first, last in self.ports):
            return peer in self.places
        return ip in self.hosts or ip_address(ip).is_loopback or peer in self.places


@frozen
class Tenant:
    """One namespace, as the TURN server sees it."""

    namespace: str
    #: Texts, the current one first; all of them verify.
    secrets: tuple[str, ...] = field(repr=False)
    #: First and last port of its relays on this host.
    relay_ports: tuple[int, int]
    #: Where its SFUs listen: IP, first and last port.
    sfu_media: tuple[tuple[str, int, int], ...] = ()
    #: Networks that its relays may reach besides.
    allowed_peers: tuple[Network, ...] = ()
    #: Networks that they may not reach, whatever else is said.
    denied_peers: tuple[Network, ...] = ()
    shut: Shut = Shut()


class Tenants:
    """The tenants by namespace.

    :param relay_ips: where this process's relays are; without one :meth:`owner_of` goes by the port alone.
    """

    def __init__(self, *relay_ips: str) -> None:
        self._relay_ips = {str(ip_address(ip)) for ip in relay_ips if ip}
        self._tenants: dict[str, Tenant] = {}
        self._firsts: list[int] = []
        self._blocks: list[tuple[int, str]] = []
        self._watchers: list[Callable[[str], None]] = []

    def put(self, tenant: Tenant) -> None:
        """Add a tenant, or replace the one of that namespace; nothing happens when it is the same."""
        if self._tenants.get(tenant.namespace) == tenant:
            return
        self._tenants[tenant.namespace] = tenant
        self._changed(tenant.namespace)

    def remove(self, namespace: str) -> None:
        """Serve *namespace* no more; nothing happens when it is not there."""
        if self._tenants.pop(namespace, None) is not None:
            self._changed(namespace)

    def get(self, namespace: str) -> Tenant | None:
        return self._tenants.get(namespace)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(tuple(self._tenants.values()))

    def __len__(self) -> int:
        return len(self._tenants)

    def owner_of(self, address: Address) -> str | None:
        """The namespace in whose relay block *address* is."""
        host, port = address
        if self._relay_ips and host not in self._relay_ips:
            return None
        at = bisect_right(self._firsts, port) - 1
        if at < 0:
            return None
        last, namespace = self._blocks[at]
        return namespace if port <= last else None

    def media_owner_of(self, address: Address) -> str | None:
        """The namespace one of whose SFU media blocks *address* is in."""
        host, port = address
        for tenant in self._tenants.values():
            for ip, first, last in tenant.sfu_media:
                if first <= port <= last and ip == host:
                    return tenant.namespace
        return None

    def watch(self, changed: Callable[[str], None]) -> None:
        """Call *changed* with the namespace after each put and remove."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[str], None]) -> None:
        self._watchers.remove(changed)

    def _changed(self, namespace: str) -> None:
        ordered = sorted((tenant.relay_ports, tenant.namespace) for tenant in self._tenants.values())
        self._firsts = [first for (first, _), _ in ordered]
        self._blocks = [(last, owner) for (_, last), owner in ordered]
        for changed in tuple(self._watchers):
            changed(namespace)
