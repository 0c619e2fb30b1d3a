"""HTTP endpoints: from their descriptions to bound ports, each failure being one line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

from orama.errors import StartError

#: What stands behind the address of the room page: the room that everybody meets in first.
PAGE = "/?room=lobby&join=1"


def server_endpoints(reactor: Any, descriptions: Iterable[str]) -> dict[str, IStreamServerEndpoint]:
    """The endpoint of each of *descriptions*.

    :raises StartError: one is no endpoint, or names a file that cannot be used.
    """
    endpoints = {}
    for description in descriptions:
        try:
            endpoints[description] = serverFromString(reactor, description)
        except OSError as error:
            raise StartError(f"--http {description}: {error.filename}: {error.strerror}") from None
        except Exception as error:  # Twisted's parsers and OpenSSL raise whatever they like
            why = str(error) or type(error).__name__
            raise StartError(f"--http {description}: is no endpoint: {why}") from None
    return endpoints


async def listen(description: str, endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> IListeningPort:
    """Bind *endpoint*.

    :raises StartError: its port is taken, or not ours.
    """
    try:
        port: IListeningPort = await endpoint.listen(factory)
    except CannotListenError as error:
        raise StartError(f"--http {description}: {busy(error)}") from None
    return port


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
