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
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from orama.net.burst import BurstSocket
from orama.net.fabric import Address, Burst, Fabric, Receiver
from orama.net.icmp import relay_socket
from orama.net.poll import Poll
from orama.net.proxy import Proxies
from orama.net.stream import Listener, Stream
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.alternates import Alternates
from orama.turn.fronts import Front, bind
from orama.turn.peers import Peers
from orama.turn.server import Server
from orama.turn.sessions import Selection, Session
from orama.turn.shared import Crew
from orama.turn.stream import StreamClients
from orama.turn.tcp import KernelTcp
from orama.turn.tenants import Tenants
from orama.turn.workers_passing import Passing

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
    :param front: listening sockets that are bound already; closed with the service.
    :param crew: what is in common with other workers that have such sockets.
    :param all_issued_here: all credentials for this server are issued by this process, which tells :meth:`learn`.
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
        *,
        front: Front | None = None,
        crew: Crew | None = None,
        all_issued_here: bool = False,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._fabric = fabric
        self._poll = Poll(reactor, fabric, settings.turn.coalescing) if poll is None else poll
        self._certificates = certificates
        relay_ip = str(ipaddress.ip_address(settings.relay_ip))
        self._peers = Peers(tenants, relay_ip, relay_ip6=settings.turn.relay_ip6)
        self._server = Server(
            clock=reactor,
            random=random.SystemRandom(),
            settings=settings.turn,
            realm=settings.realm,
            relay_ip=relay_ip,
            relay_ip6=settings.turn.relay_ip6,
            tenants=tenants,
            peers=self._peers,
            fabric=fabric,
            open_socket=self._open_relay,
            tcp=KernelTcp(self._poll),
            crew=crew,
            all_issued_here=all_issued_here,
        )
        self._clients = StreamClients(reactor, self._server, fabric)
        self._sockets: list[BurstSocket] = []
        self._ports: list[Listener] = []
        self._front = front
        self._proxies = Proxies(settings.turn.proxy_protocol_from)
        self._crew = crew
        self._passing: Passing | None = None
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
        settings = self._settings
        front, self._front = self._front, None
        if front is None:
            (front,) = bind(settings.public_ip, settings.turn_port, settings.turns_port)
        self.udp_port, self.tcp_port, self.tls_port = front.ports
        self._listen(front)
        settings = self._settings
        ips = {settings.public_ip, settings.internal_ip, settings.relay_ip, settings.turn.relay_ip6} - {""}
        self._peers.listeners = frozenset(
            (ip, port) for ip in ips for port in (self.udp_port, self.tcp_port, self.tls_port)
        )
        self._tick.start(TICK, now=False).addErrback(
            lambda failure: _log.failure("the TURN server's clock stopped", failure)
        )
        super().startService()

    async def ready(self) -> None:
        """Wait until it serves: as soon as it is started."""

    def stopService(self) -> Deferred[Any]:
        """End every allocation and give every port back."""
        super().stopService()
        if self._tick.running:
            self._tick.stop()
        stopping = [] if self._passing is None else [self._passing.stop()]
        self._server.stop()
        for front in self._sockets:
            front.close()
        for port in self._ports:
            port.close()
        self._sockets, self._ports = [], []
        return gatherResults([*stopping, self._clients.stop()])

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
        self._proxies = Proxies(settings.proxy_protocol_from)

    def redirect(self, alternates: Alternates) -> None:
        """Send clients to *alternates* while draining, instead of to the servers of the configuration."""
        self._server.redirect(alternates)

    def learn(self, username: str) -> None:
        """Know the name of credentials that were issued, so that a client may hide it (RFC 8489, 14.4)."""
        self._server.learn(username)

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

    def _listen(self, front: Front) -> None:
        offload = self._settings.turn.offload
        for each in front.udp:
            self._sockets.append(udp := BurstSocket(self._poll, _nobody, offload=offload))
            udp.received = partial(self._server.received, udp)
            udp.adopt(each)
        if self._crew is not None:
            self._passing = Passing(
                self._crew, self._poll, self._reactor, self._server, self._clients, self._sockets, self._server.drops
            )
            self._clients.pass_on = self._passing.pass_on
            for number, udp in enumerate(self._sockets):
                udp.received = self._passing.receiver(number)
        for listening, accepted in ((front.tcp, self._tcp), (front.tls, self._tls)):
            for each in listening:
                self._ports.append(port := Listener(self._poll, accepted))
                port.adopt(each)

    def _tcp(self, connection: socket.socket, source: Address) -> None:
        self._stream(connection, source, "tcp", None)

    def _tls(self, connection: socket.socket, source: Address) -> None:
        self._stream(connection, source, "tls", self._certificates)

    def _stream(
        self, connection: socket.socket, source: Address, transport: str, certificates: ServerCertificates | None
    ) -> None:
        proxied = source[0] in self._proxies
        client = self._clients.arrive(source, transport, proxied=proxied)
        client.begin(Stream(self._poll, connection, client, certificates, client.identified if proxied else None))

    def _look(self) -> None:
        self._server.tick()
        self._clients.tick()
        if self._passing is not None:
            self._passing.tick()
        for each in self._ports:
            each.resume()

    def _open_relay(self, address: Address, received: Receiver) -> BurstSocket:
        relay = BurstSocket(self._poll, received, offload=self._settings.turn.offload, make_socket=relay_socket)
        relay.listen(address)
        return relay


def _nobody(packets: Burst, source: Address) -> None:
    """Takes what comes before there is somebody to take it."""
