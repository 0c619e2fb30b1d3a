"""TURN server, fabric and rooms in this process, without HTTP: what a client needs to have a call, and no more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, SfuSettings, TurnSettings
from orama.sfu.events import Event
from orama.sfu.peer import Peer
from orama.sfu.rooms import Rooms
from orama.turn import credentials
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.turn.workers import Workers

HOST = "127.0.0.1"
EVERYTHING = frozenset({"publish", "subscribe", "data"})


class House:
    """One namespace, ``default``, on loopback.

    :param directory: for the certificate of the TLS listener.
    :param media: ports of the SFU; the first that is free is taken.
    :param workers: processes that serve TURN.
    """

    def __init__(
        self,
        directory: Path,
        media: tuple[int, int] = (13600, 13619),
        relays: tuple[int, int] = (49152, 49951),
        sfu: SfuSettings | None = None,
        workers: int = 1,
    ) -> None:
        turn = TurnSettings(workers=workers)
        self.settings = evolve(Settings(), turn_port=0, turns_port=0, sfu=sfu or SfuSettings(), turn=turn)
        self.fabric = Fabric(reactor)
        self.tenants = Tenants(HOST)
        self.certificates = ServerCertificates(directory, [HOST, "localhost"], reactor)
        service = TurnService if workers == 1 else Workers
        self.turn = service(reactor, self.settings, self.tenants, self.fabric, self.certificates)
        self.rooms = Rooms(reactor, self.settings, self.fabric)
        self.secret = "c2VjcmV0IG9mIHRoZSBob3VzZQ=="
        others = [] if workers == 1 else [(HOST, *relays)]
        port = self.rooms.start_namespace("default", media, relays, others)
        self.media_address = (HOST, port)
        self.tenants.put(Tenant("default", (self.secret,), relays, ((HOST, port, port),)))
        self.turn.startService()

    def ice_servers(self, transport: str, ttl: int = 600) -> list[dict[str, Any]]:
        """What a client is given, for one transport: ``udp``, ``tcp`` or ``tls``."""
        fresh = credentials.issue(self.secret, "default", ttl, time.time())
        plain = self.turn.tcp_port if transport == "tcp" else self.turn.udp_port
        host = "localhost" if transport == "tls" else HOST
        uri = credentials.uris(host, plain, self.turn.tls_port)[("udp", "tcp", "tls").index(transport)]
        return [{"urls": uri, "username": fresh.username, "credential": fresh.password}]

    def join(
        self,
        room_id: str,
        send: Callable[[Event], None],
        permissions: frozenset[str] = EVERYTHING,
        owner: bool = False,
    ) -> Peer:
        return self.rooms.join(
            "default", room_id, user_id="user", metadata={}, permissions=permissions, owner=owner, send=send
        )

    def stop(self) -> Deferred[Any]:
        """Give every port back. Fires when nothing is left."""
        return self.rooms.stop().addCallback(lambda _: self.turn.stopService())
