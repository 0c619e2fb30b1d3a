"""What a node serves and uses beside media: places that no relay may reach, whatever else its namespace is allowed.

A relay is inside the network that it stands in. Whoever may reach all of 127.0.0.0/8 or of a mesh by it, for the sake
of some peers there, is not to reach the node's own HTTP, its database or another node's management by the same way.
Hosts that a configuration names by a name are not looked up: ``turn.denied_peers`` is for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from orama.net.fabric import Address
from orama.settings import Settings
from orama.store import rqlite
from orama.turn.tenants import Shut

#: Where databases answer that are named without a port.
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_SITE_PORTS = {"http": 80, "https": 443}


def shut_places(settings: Settings, ports: Iterable[int]) -> Shut:
    """:param ports: those that this node listens on, beside TURN and signalling; 0 is none."""
    hosts = {settings.public_ip, settings.internal_ip, settings.relay_ip, settings.turn.relay_ip6} - {""}
    own = {(port, port) for port in (*ports, settings.turn_port, settings.turns_port) if port}
    places: set[Address] = set()
    for host, port in _used(settings):
        try:
            ip = ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            continue
        if ip.is_loopback or str(ip) in hosts:
            own.add((port, port))
        else:
            places.add((str(ip), port))
    return Shut(tuple(sorted(hosts)), (*sorted(own), settings.signaling.ports), tuple(sorted(places)))


def _used(settings: Settings) -> Iterator[tuple[str, int]]:
    """Host and port of what the configuration has this node use."""
    if settings.database:
        url = rqlite.parse(settings.database)
        port = url.port or _DATABASE_PORTS.get(url.get_backend_name(), 0)
        if url.get_backend_name() == rqlite.BACKEND:
            yield from ((address.host, address.port) for address in rqlite.addresses(url))
        elif url.host and port:
            yield url.host, port
    for site in (settings.cluster.rqlite, settings.cluster.gateway):
        parts = urlsplit(site)
        if parts.hostname:
            yield parts.hostname, parts.port or _SITE_PORTS[parts.scheme]
    if settings.cluster.olric:
        host, _, number = settings.cluster.olric.rpartition("@")[2].rpartition(":")
        yield host.strip("[]"), int(number)
