"""The DNS server of a node: sockets, and the zone as the database had it at the last heartbeat.

When the database does not answer, what was last read is served on, and nobody is judged dead by the silence. A node
that has read nothing yet answers SERVFAIL. There are no transfers, updates or recursion here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from random import Random
from typing import Any

from sqlalchemy import select
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.cluster.acme import is_forgotten
from orama.cluster.answering import Answering
from orama.cluster.dns_listeners import LONGEST_QUERY, Datagrams, Streams
from orama.cluster.zone import DnsRecord, Zone, ZoneNode, make_zone, next_serial
from orama.errors import OramaError, StartError
from orama.settings import Settings
from orama.store.database import Database
from orama.store.tables import dns_records

#: Heartbeats without a good read after which what we have counts as old: before silence makes a node dead.
OLD = 1.1
#: Times to look for a port that is free for both UDP and TCP, where any will do.
ATTEMPTS = 20

_log = Logger()


async def stored_records(database: Database) -> list[DnsRecord]:
    """The rows of ``dns_records``."""
    c = dns_records.c
    columns = (c.fqdn, c.type, c.value, c.ttl, c.namespace, c.node_id, c.created_at)
    every = select(*columns).order_by(c.fqdn, c.type, c.value)
    rows = await database.read(lambda connection: connection.execute(every).all())
    return [DnsRecord(*row) for row in rows]


class DnsService(Service):
    """Does nothing where ``dns.listen`` is empty.

    :param read: the rows as they are now; may fail.
    :param nodes: those known, in the order of their numbers.
    :param alive: whether one is, now.
    """

    name = "dns"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        read: Callable[[], Awaitable[Iterable[DnsRecord]]],
        nodes: Callable[[], Sequence[ZoneNode]],
        alive: Callable[[str], bool],
        random: Random,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._read = read
        self._nodes = nodes
        self._judge = alive
        self._answering = Answering(lambda: self.zone, self.alive, random)
        #: As last read; None before that.
        self.zone: Zone | None = None
        #: The actual port, of UDP and TCP.
        self.port = 0
        self._content: object = None
        self._dead: frozenset[str] = frozenset()
        self._good_at = 0.0
        self._error: str | None = None
        self._reading: Deferred[None] | None = None
        self._again = False
        self._waiting: list[Deferred[None]] = []
        self._ports: list[IListeningPort] = []
        self._datagrams = Datagrams(self._answering, reactor)
        self._streams = Streams(self._answering, reactor)
        self._beat = LoopingCall(self.poke)
        self._beat.clock = reactor

    # -- start and stop ------------------------------------------------------------------------

    def startService(self) -> None:
        """Bind both sockets or none.

        :raises StartError: ``dns.listen`` cannot be used, or there is no base domain.
        """
        if self._settings.dns.listen:
            host, port = listening(self._settings.dns.listen)
            if not self._settings.base_domain:
                raise StartError("dns.listen: there is nothing to serve without base_domain")
            self._listen(host, port)
            self._beat.start(self._settings.cluster.heartbeat).addErrback(
                lambda failure: _log.failure("the DNS server reads no more", failure)
            )
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """Give the sockets back; nothing is read after this."""
        super().stopService()
        if self._beat.running:
            self._beat.stop()
        self._again = False
        if self._reading is not None:
            self._reading.cancel()
        return DeferredList([*self._close(), self._streams.stop()])

    def _listen(self, host: str, port: int) -> None:
        for attempt in range(ATTEMPTS, 0, -1):
            try:
                # TCP first: a protocol for datagrams that has had a port takes no other (twisted.internet.protocol).
                streams = self._reactor.listenTCP(port, self._streams, interface=host)
                self._ports.append(streams)
                self.port = streams.getHost().port
                datagrams = self._reactor.listenUDP(self.port, self._datagrams, host, maxPacketSize=LONGEST_QUERY)
                self._ports.append(datagrams)
                return
            except CannotListenError as error:
                self._close()
                if port or attempt == 1:
                    why = getattr(error.socketError, "strerror", None) or error.socketError
                    raise StartError(f"dns.listen {self._settings.dns.listen}: {why}") from None

    def _close(self) -> list[Deferred[Any]]:
        ports, self._ports = self._ports, []
        return [maybeDeferred(port.stopListening) for port in ports]

    # -- what is served ------------------------------------------------------------------------

    def poke(self) -> None:
        """Read the database now: something has changed, or a heartbeat has passed."""
        if not self._ports:
            return
        if self._reading is not None:
            self._again = True
            return
        self._again = False
        self._reading = Deferred.fromCoroutine(self._refresh())
        self._reading.addErrback(_failed)
        self._reading.addBoth(self._finished)

    async def refresh(self) -> None:
        """Read the database now, and return when what is served is no older than this call, or cannot be newer."""
        self.poke()
        if self._reading is not None:
            read: Deferred[None] = Deferred()
            self._waiting.append(read)
            await read

    def alive(self, node_id: str) -> bool:
        """Whether the addresses of a node are given out: by what was true at the last good read, if that is old."""
        age = self._reactor.seconds() - self._good_at
        if self._error is not None or age > OLD * self._settings.cluster.heartbeat:
            return node_id not in self._dead
        return self._judge(node_id)

    def _finished(self, _: object) -> None:
        self._reading = None
        if self._again:
            self.poke()
            return
        waiting, self._waiting = self._waiting, []
        for read in waiting:
            read.callback(None)

    async def _refresh(self) -> None:
        try:
            records = tuple(await self._read())
        except OramaError as error:
            if self._error is None:
                _log.warn("DNS goes on with what it knows: {why}", why=error.message)
            self._error = error.message
            return
        if self._error is not None:
            _log.info("DNS reads its records again")
        self._error = None
        nodes = tuple(self._nodes())
        self._good_at = now = self._reactor.seconds()
        records = tuple(record for record in records if not is_forgotten(record, now))
        self._dead = frozenset(node.node_id for node in nodes if not self._judge(node.node_id))
        shown = [(record.fqdn, record.type, record.value, record.ttl, record.node_id) for record in records]
        content = sorted(shown, key=str), [(node.node_id, node.public_ip) for node in nodes], self._dead
        if content != self._content:
            self._content = content
            self._renew(records, nodes)

    def _renew(self, records: Iterable[DnsRecord], nodes: Sequence[ZoneNode]) -> None:
        old, settings = self.zone, self._settings
        self.zone = make_zone(
            settings.base_domain,
            records,
            nodes,
            next_serial(old.serial if old else 0, self._reactor.seconds()),
            nameservers=settings.dns.nameservers,
            contact=settings.dns.contact,
        )
        for row in set(self.zone.rejected) - set(old.rejected if old else ()):
            _log.warn("a DNS record is not served: {row}", row=row)

    # -- what it tells ---------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """For the report of the node."""
        zone = self.zone
        rejected = "; ".join(zone.rejected) if zone else ""
        return {
            "listening": bool(self._ports),
            "zone": self._settings.base_domain,
            "serial": zone.serial if zone else 0,
            "records": sum(map(len, zone.names.values())) if zone else 0,
            "error": self._error or rejected or None,
        }

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of every figure, for Prometheus."""
        for proto, counts in (("udp", self._datagrams.counts), ("tcp", self._streams.counts)):
            for outcome in ("answered", "dropped", "brief"):
                yield "orama_dns_queries_total", {"proto": proto, "outcome": outcome}, counts[outcome]
        yield "orama_dns_connections", {}, len(self._streams.open)


def listening(text: str) -> tuple[str, int]:
    """Host and port of ``dns.listen``.

    :raises StartError: they are none.
    """
    host, _, port = text.rpartition(":")
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise StartError(f"dns.listen: {text!r} is no address and port, like 203.0.113.1:53 or [::]:53") from None
    return address, int(port)


def _failed(failure: Failure) -> None:
    """Reading failed for no reason of the database's."""
    if failure.check(CancelledError) is None:
        _log.failure("the DNS records could not be read", failure)
