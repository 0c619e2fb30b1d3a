"""Whether a request comes from this very machine, or for the node's internal address: asked before something is told.

A proxy in front of us makes every request look local, so one that carries a forwarding header is not.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from twisted.web.server import Request

from orama.rest.json_resource import header

_FORWARDING = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
)


def forwarded(request: Request) -> bool:
    """Has a proxy passed *request* on?"""
    return any(request.requestHeaders.hasHeader(name) for name in _FORWARDING)


def on_internal_address(request: Request, internal_ip: str) -> bool:
    """Did *request* come in directly, on the internal address?"""
    return not forwarded(request) and _same(getattr(request.getHost(), "host", ""), internal_ip)


def local(request: Request) -> bool:
    """Is *request* from a program on this machine, and meant for it?

    The peer alone would not do: a page that rebinds its name to 127.0.0.1 reaches us from a local browser,
    but with its own name in ``Host`` and ``Origin``.
    """
    if forwarded(request) or not _loopback(getattr(request.client, "host", "")):
        return False
    host = header(request, "host") or ""
    if not _loopback_name(host):
        return False
    origin = header(request, "origin")
    scheme = "https" if request.isSecure() else "http"
    return origin is None or origin.lower() == f"{scheme}://{host}".lower()


def _loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or _loopback(name)


def _loopback(text: str) -> bool:
    try:
        ip = ip_address(text)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def _same(one: str, other: str) -> bool:
    try:
        first, second = ip_address(one), ip_address(other)
    except ValueError:
        return False
    return (getattr(first, "ipv4_mapped", None) or first) == second
