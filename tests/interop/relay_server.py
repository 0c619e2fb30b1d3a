"""A TURN server in this process, for clients that others wrote, and peers on loopback for its relays to reach."""

from __future__ import annotations

import os
import socket
import time
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from orama.net.fabric import Address, Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn import credentials
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants

HOST = "127.0.0.1"
NAMESPACE = "myapp"
#: Text that is the key, as coturn's ``static-auth-secret`` has it.
SECRET = "bm9ydGg="
#: Of this process, so that those of others do not have its ports.
RELAY_IP = str(IPv4Address(0x7F400000 | os.getpid() & 0x3FFFFF))
#: Above what Linux gives to who asks for any port: the clients are on this machine too.
RELAY_PORTS = (62000, 65535)
_LOOPBACK = tuple(ip_network(text) for text in ("127.0.0.0/8", "::1/128"))
#: A public IP that is no loopback address, so that every address is bound.
_ANYWHERE = "192.0.2.1"


@implementer(ILogObserver)
class RelayServer:
    """One namespace, whose relays may reach loopback.

    :param directory: for the certificate of the TLS listener.
    :param settings: of ``[turn]``.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        tenants = Tenants()
        tenants.put(Tenant(NAMESPACE, (SECRET,), RELAY_PORTS, allowed_peers=_LOOPBACK))
        certificates = ServerCertificates(directory, [HOST], reactor)
        turn = TurnSettings(relay_ip=RELAY_IP, **settings)
        chosen = evolve(Settings(), turn_port=0, turns_port=0, public_ip=_ANYWHERE, turn=turn)
        self.service = TurnService(reactor, chosen, tenants, Fabric(reactor), certificates)
        #: Why allocations have ended, in order.
        self.ended: list[str] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def start(self) -> RelayServer:
        self.service.startService()
        globalLogPublisher.addObserver(self)
        return self

    def stop(self) -> Deferred[Any]:
        globalLogPublisher.removeObserver(self)
        return self.service.stopService()

    def port(self, transport: str) -> int:
        """Of the listener for ``udp``, ``tcp`` or ``tls``."""
        port: int = getattr(self.service, f"{transport}_port")
        return port

    def credentials(self) -> credentials.Credentials:
        return credentials.issue(SECRET, NAMESPACE, 600, time.time())

    def when_ended(self, count: int) -> Deferred[None]:
        """Fires when so many allocations have ended."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((count, waiting))
        self._tell()
        return waiting

    def figures(self) -> dict[tuple[str, ...], float]:
        """The samples by name and label values."""
        return {(name, *labels.values()): value for name, labels, value in self.service.samples()}

    def __call__(self, event: LogEvent) -> None:
        # Each of them is one line in the log.
        if event.get("log_namespace") == "orama.turn.allocations" and "reason" in event:
            self.ended.append(event["reason"])
            reactor.callLater(0, self._tell)  # type: ignore[attr-defined]

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for count, fired in waiting:
            if len(self.ended) >= count:
                fired.callback(None)
            else:
                self._waiting.append((count, fired))


class EchoPeer(DatagramProtocol):
    """Sends everything back; "from elsewhere" goes back from another port.

    :ivar received: how many datagrams have come.
    """

    def __init__(self) -> None:
        self.received = 0
        self._other = DatagramProtocol()

    def start(self) -> EchoPeer:
        self._ports = [reactor.listenUDP(0, each, interface=HOST) for each in (self, self._other)]  # type: ignore[attr-defined]
        return self

    @property
    def address(self) -> Address:
        return HOST, self._ports[0].getHost().port

    @property
    def elsewhere(self) -> Address:
        return HOST, self._ports[1].getHost().port

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received += 1
        by = self._other if datagram == b"from elsewhere" else self
        assert by.transport is not None
        by.transport.write(datagram, addr)

    def stop(self) -> Deferred[Any]:
        return gatherResults([maybeDeferred(each.stopListening) for each in self._ports])


class EchoStream(Protocol):
    """Sends everything back."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


def has_ipv6() -> bool:
    """Whether there is ::1 on this machine."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
