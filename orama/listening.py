"""HTTP endpoints: from their descriptions to bound ports, each failure being one line.

``ssl:`` endpoints are ours where they name no more than port, interface, key and certificate: then a changed
certificate is served at the next handshake, which Twisted's own would not do.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

from orama.errors import OramaError, StartError
from orama.net.tls import ServerCertificates

#: What stands behind the address of the room page: the room that everybody meets in first.
PAGE = "/?room=lobby&join=1"
#: How Twisted writes endpoints: parts between colons, and a backslash before what is meant as it stands.
_UNESCAPED_COLON = re.compile(r"(?<!\\):")
_ESCAPE = re.compile(r"\\(.)")


def server_endpoints(reactor: Any, descriptions: Iterable[str]) -> dict[str, IStreamServerEndpoint]:
    """The endpoint of each of *descriptions*.

    :raises StartError: one is no endpoint, or names a file that cannot be used.
    """
    endpoints = {}
    for description in descriptions:
        try:
            endpoints[description] = _ssl_endpoint(reactor, description) or serverFromString(reactor, description)
        except OSError as error:
            raise StartError(f"--http {description}: {error.filename}: {error.strerror}") from None
        except OramaError as error:
            raise StartError(f"--http {description}: {error.message}") from None
        except Exception as error:  # Twisted's parsers and OpenSSL raise whatever they like
            why = str(error) or type(error).__name__
            raise StartError(f"--http {description}: is no endpoint: {why}") from None
    return endpoints


def _ssl_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint | None:
    """The endpoint of an ``ssl:`` description that says nothing unusual; None otherwise."""
    kind, *parts = _UNESCAPED_COLON.split(description)
    values: dict[str, str] = {}
    for position, part in enumerate(parts):
        name, separator, value = part.partition("=")
        if not separator:
            name, value = "" if position else "port", part
        values[name] = _ESCAPE.sub(r"\1", value)
    if kind != "ssl" or "port" not in values or not values.keys() <= {"port", "interface", "privateKey", "certKey"}:
        return None
    key = values.get("privateKey", "server.pem")
    certificates = ServerCertificates(Path(key).parent, (), reactor, values.get("certKey", key), key)
    interface = values.get("interface", "")
    return SSL4ServerEndpoint(reactor, int(values["port"]), certificates.context_factory(), interface=interface)


async def listen(description: str, endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> IListeningPort:
    """Bind *endpoint*.

    :raises StartError: its port is taken, or not ours.
    """
    try:
        port: IListeningPort = await endpoint.listen(factory)
    except CannotListenError as error:
        raise StartError(f"--http {description}: {busy(error)}") from None
    return port


def require_local(option: str, ip: str) -> None:
    """Make sure that *ip*, which *option* gave, can be bound at all.

    :raises StartError: it is none of this machine's.
    """
    family = socket.AF_INET6 if ip_address(ip).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError as error:
            raise StartError(f"{option} {ip}: {error.strerror}") from None


def busy(error: CannotListenError) -> str:
    """What *error* says, in a few words."""
    cause = error.socketError
    number = getattr(cause, "errno", None)
    why = os.strerror(number) if isinstance(number, int) and number > 0 else str(cause)
    return f"{_authority(error.interface or 'every address', error.port)}: {why}"


def page_url(description: str, port: IListeningPort, public_ip: str) -> str:
    """The address of the room page on *port*."""
    scheme = "https" if description.startswith(("ssl:", "tls:")) else "http"
    address = port.getHost()
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return description
    host = public_ip if ip_address(address.host).is_unspecified else address.host
    return f"{scheme}://{_authority(host, address.port)}{PAGE}"


def _authority(host: str, port: object) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
