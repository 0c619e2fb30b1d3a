"""Who has which address in the lab. Documentation prefixes (RFC 5737): nothing of it can be anybody's."""

from __future__ import annotations

NODES = (1, 2, 3)
CLIENTS = (1, 2)
#: The cluster's domain.
DOMAIN = "rtc.example"
PUBLIC = "198.51.100"
MESH = "10.7.0"
HOMES = "203.0.113"
#: The last byte of the router, in each of the two networks that it joins.
ROUTER = 254


def public(node: int) -> str:
    """Where the Internet reaches a node."""
    return f"{PUBLIC}.{node}"


def mesh(node: int) -> str:
    """Where the other nodes do: WireGuard."""
    return f"{MESH}.{node}"


def home(client: int) -> str:
    """Where a client lives."""
    return f"{HOMES}.{10 + client}"


def site(node: int) -> str:
    """The name of a node's gateway."""
    return f"n{node}.{DOMAIN}"


def hosts() -> str:
    """/etc/hosts for everybody: what a registrar's own zone would say of the gateways, and the CA."""
    lines = ["127.0.0.1 localhost", f"{PUBLIC}.{ROUTER} acme.{DOMAIN}"]
    lines += [f"{public(node)} {site(node)}" for node in NODES]
    return "\n".join(lines) + "\n"


def resolvers() -> str:
    """/etc/resolv.conf for everybody: the cluster's own servers stand in for the resolvers that would ask them."""
    return "".join(f"nameserver {public(node)}\n" for node in NODES) + "options timeout:1 attempts:2\n"
