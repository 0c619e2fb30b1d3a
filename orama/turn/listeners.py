"""The sockets of the TURN server: UDP, TCP and TLS on fixed ports, shared by all namespaces.

Binds every address unless the public IP is a loopback address, and that one alone then. Everything
decided about a packet is decided in ``server``.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Burst, Fabric, Receiver
from orama.net.icmp import relay_socket, udp_socket
from orama.net.poll import Poll
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.peers import Peers
from orama.turn.server import Server
from orama.turn.sessions import Selection, Session
from orama.turn.stream import StreamClients
from orama.turn.tenants import Tenants

#: Connections that may wait to be accepted.
BACKLOG = 511
#: Times to look for a port that is free for both UDP and TCP, where any will do.
ATTEMPTS = 20
#: Seconds between looks for what has expired.
TICK = 1.0
#: Allocations that are looked at before packets get their turn again, about a millisecond.
SESSIONS_AT_A_TIME = 128

_log = Logger()


class TurnService(Service):
    """The TURN server of one process.

    :param reactor: with descriptors, TCP and time.
    :param fabric: where relays and the SFU of this process meet.
    :param poll: where the sockets are, beside those of an SFU in this process.
    """

    name = "turn"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        tenants: Tenants,
        fabric: Fabric,
        certificates: ServerCertificates,
        poll: Poll | None = None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._fabric = fabric
        self._poll = Poll(reactor, fabric, settings.turn.coalescing) if poll is None else poll
        self._certificates = certificates
        relay_ip = str(ipaddress.ip_address(settings.relay_ip))
        self._peers = Peers(tenants, relay_ip)
        self._server = Server(
            clock=reactor,
            random=random.SystemRandom(),
            settings=settings.turn,
            realm=settings.realm,
            relay_ip=relay_ip,
            tenants=tenants,
            peers=self._peers,
            fabric=fabric,
            open_socket=self._open_relay,
        )
        self._clients = StreamClients(reactor, self._server, fabric)
        self._sockets: list[BurstSocket] = []
        self._ports: list[IListeningPort] = []
        self._tick = LoopingCall(self._look)
        self._tick.clock = reactor
        #: The actual ports.
        self.udp_port = settings.turn_port
        self.tcp_port = settings.turn_port
        self.tls_port = settings.turns_port

    def startService(self) -> None:
        """Bind everything or nothing.

        :raises CannotListenError: a port is taken.
        """
        for attempt in range(ATTEMPTS, 0, -1):
            try:
                self._listen()
                break
            except CannotListenError:
                self._close()
                if self._settings.turn_port or attempt == 1:
                    raise
        ips = {self._settings.public_ip, self._settings.internal_ip, self._settings.relay_ip}
        self._peers.listeners = frozenset(
            (ip, port) for ip in ips for port in (self.udp_port, self.tcp_port, self.tls_port)
        )
        self._tick.start(TICK, now=False).addErrback(
            lambda failure: _log.failure("the TURN server's clock stopped", failure)
        )
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """End every allocation and give every port back."""
        super().stopService()
        if self._tick.running:
            self._tick.stop()
        self._server.stop()
        return gatherResults([*self._close(), self._clients.stop()])

    async def sessions(self, selection: Selection) -> list[Session]:
        """The allocations that an operator means. It takes its time, so that packets go on meanwhile."""
        found: list[Session] = []
        for count, session in enumerate(self._server.sessions(selection), 1):
            found.append(session)
            if count % SESSIONS_AT_A_TIME == 0:
                await deferLater(self._reactor, 0)
        return found

    async def disconnect(self, selection: Selection) -> int:
        """End the allocations that an operator means, and the streams of their clients; gives how many there were."""
        return self._server.disconnect(selection)

    def configure(self, settings: TurnSettings) -> None:
        """Take over what may change while the server runs."""
        self._server.configure(settings)

    def drain(self) -> None:
        """Make no new allocations; the ones that are there go on."""
        self._server.drain()

    def undrain(self) -> None:
        """Make allocations again."""
        self._server.undrain()

    def drain_tenant(self, namespace: str) -> None:
        """Make no new allocations for *namespace*: who asks gets 508, the ones that are there go on."""
        self._server.drain_tenant(namespace)

    def undrain_tenant(self, namespace: str) -> None:
        """Make allocations for *namespace* again."""
        self._server.undrain_tenant(namespace)

    def allocations(self, namespace: str | None = None) -> int:
        """How many there are, of all or of one namespace."""
        return len(self._server) if namespace is None else self._server.allocations_of(namespace)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of every figure, for Prometheus."""
        yield from self._server.samples()
        yield "orama_turn_stream_clients", {}, len(self._clients)
        lost = sum(each.counters.dropped for each in self._sockets)
        yield "orama_turn_dropped_total", {"reason": "socket_full"}, lost

    def _listen(self) -> None:
        """Bind UDP, TCP and TLS; port 0 becomes one that is free, the same for UDP and TCP."""
        tls = _Tls(self._certificates.context_factory(), False, self._clients, clock=self._reactor)
        tls.noisy = False
        self.udp_port, self.tls_port = self._settings.turn_port, self._settings.turns_port
        for host in listening_hosts(self._settings.public_ip):
            self.udp_port = self._listen_udp((host, self.udp_port))
            self.tcp_port = self._listen_tcp((host, self.udp_port), self._clients)
            self.tls_port = self._listen_tcp((host, self.tls_port), tls)

    def _look(self) -> None:
        self._server.tick()
        self._clients.tick()

    def _open_relay(self, address: Address, received: Receiver) -> BurstSocket:
        relay = BurstSocket(self._poll, received, offload=self._settings.turn.offload, make_socket=relay_socket)
        relay.listen(address)
        return relay

    def _listen_udp(self, address: Address) -> int:
        front = BurstSocket(self._poll, _nobody, offload=self._settings.turn.offload, make_socket=udp_socket)
        front.received = partial(self._server.received, front)
        front.listen(address)
        self._sockets.append(front)
        return front.address[1]

    def _listen_tcp(self, address: Address, factory: IProtocolFactory) -> int:
        # Twisted leaves IPV6_V6ONLY to the system, and "::" would then collide with "0.0.0.0".
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            try:
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.setblocking(False)
                listening.bind(address)
                listening.listen(BACKLOG)
            except OSError as error:
                raise CannotListenError(host, port, error) from error
            self._ports.append(self._reactor.adoptStreamPort(listening.fileno(), family, factory))
            return int(listening.getsockname()[1])

    def _close(self) -> list[Deferred[Any]]:
        for front in self._sockets:
            front.close()
        closing = [port.stopListening() for port in self._ports]
        self._sockets, self._ports = [], []
        return [each for each in closing if each is not None]


class _Tls(TLSMemoryBIOFactory):
    """TLS that writes a record when it is told to, where Twisted's default joins small writes."""

    protocol = TLSMemoryBIOProtocol


def _nobody(packets: Burst, source: Address) -> None:
    """Takes what comes before there is somebody to take it."""


def listening_hosts(public_ip: str) -> list[str]:
    """What to bind so that clients reach us at *public_ip*."""
    if ipaddress.ip_address(public_ip).is_loopback:
        return [public_ip]
    return ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
