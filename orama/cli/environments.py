"""The environments file: which nodes a cluster has, and what proves that we may ask them.

One TOML table an environment::

    [devnet]
    nodes = ["10.0.0.1:6002", "10.0.0.2:6002", "10.0.0.3:6002"]
    key = "/var/lib/orama/cluster.key"
    dns = ["198.51.100.1:53"]                # without it: the nodes that say they serve DNS
    base_domain = "orama-devnet.network"     # without it: the one that the nodes name

Relative paths start at the file. What is wrong is one line that names the file, the table and the key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from attrs import frozen

from orama.cli.control import Failed

#: Where the file is looked for when nobody says.
PLACES = (Path("~/.config/orama/environments.toml"), Path("/etc/orama/environments.toml"))
#: The node-to-node port, and that of DNS, where an address has none.
NODE_PORT = 6002
DNS_PORT = 53
_KEYS = ("nodes", "key", "dns", "base_domain")


@frozen
class Address:
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, port: int) -> Address:
        """``host``, ``host:port``, an IPv6 address, or that in brackets with a port.

        :param port: the one that is meant when there is none.
        :raises ValueError: it is none of these.
        """
        host, given = text, ""
        if text.startswith("["):
            host, closed, given = text[1:].partition("]")
            if not closed or not isinstance(ip_address(host), IPv6Address) or (given and given[0] != ":"):
                raise ValueError(f"{text!r} is no address")
            given = given[1:]
        elif text.count(":") == 1:
            host, _, given = text.partition(":")
            given = given or "none"
        elif ":" in text:
            ip_address(text)
        if given:
            if not given.isascii() or not given.isdigit() or not 0 < int(given) < 65536:
                raise ValueError(f"{text!r} has no port from 1 to 65535")
            port = int(given)
        if not host or not host.isascii() or not host.isprintable() or " " in host or "/" in host:
            raise ValueError(f"{text!r} is no address")
        return cls(host, port)


@frozen
class Environment:
    """One cluster: ``key`` is the file with the cluster key; no ``dns`` and no ``base_domain`` mean what nodes say."""

    name: str
    nodes: tuple[Address, ...]
    key: Path
    dns: tuple[Address, ...] = ()
    base_domain: str = ""


def load(name: str, file: Path | None = None) -> Environment:
    """The environment *name*.

    :param file: the first that is there of :data:`PLACES` without it.
    :raises Failed: there is no such file or environment, or something in it cannot be used.
    """
    places = [place.expanduser() for place in ([file] if file is not None else PLACES)]
    found = next((place for place in places if place.exists()), places[0])
    try:
        tables = tomllib.loads(found.read_text())
    except FileNotFoundError:
        raise Failed(
            "no_environments", f"there is no environments file: {' or '.join(map(str, places))}, or --environments FILE"
        ) from None
    except OSError as error:
        raise Failed("no_environments", f"{found}: {error.strerror}") from None
    except ValueError as error:
        raise Failed("bad_environments", f"{found}: {error}") from None
    table = tables.get(name)
    if not isinstance(table, dict):
        known = ", ".join(sorted(each for each, value in tables.items() if isinstance(value, dict))) or "none"
        raise Failed("unknown_environment", f"{found}: there is no environment {name!r}; there is: {known}")
    try:
        return _environment(name, table, found.parent)
    except ValueError as error:
        raise Failed("bad_environments", f"{found}: {name}.{error}") from None


def _environment(name: str, table: Mapping[str, Any], directory: Path) -> Environment:
    """:raises ValueError: the text begins with the key that is wrong."""
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise ValueError(f"{key}: unknown" + (f"; did you mean {near[0]}?" if near else ""))
    nodes, dns = _addresses(table, "nodes", NODE_PORT), _addresses(table, "dns", DNS_PORT)
    if not nodes:
        raise ValueError("nodes: must name at least one node")
    file = table.get("key")
    if not isinstance(file, str) or not file:
        raise ValueError("key: must be the path of the cluster key")
    base_domain = table.get("base_domain", "")
    if not isinstance(base_domain, str):
        raise ValueError("base_domain: must be a text")
    return Environment(name, nodes, directory / Path(file).expanduser(), dns, base_domain.strip(".").lower())


def _addresses(table: Mapping[str, Any], key: str, port: int) -> tuple[Address, ...]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key}: must be a list of texts")
    try:
        found = tuple(Address.parse(value, port) for value in values)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if len(set(found)) != len(found):
        raise ValueError(f"{key}: the same twice")
    return found
