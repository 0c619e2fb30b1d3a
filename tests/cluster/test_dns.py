"""The DNS server: what it serves while the database comes and goes, and what clients may take up."""

from __future__ import annotations

import random
import struct
from typing import Any

from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.names import dns
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.dns import DnsService, listening, stored_records
from orama.cluster.dns_listeners import BURST, CONNECTIONS, CONNECTIONS_EACH, IDLE, LONGEST_QUERY
from orama.cluster.zone import DnsRecord
from orama.errors import StartError, Unavailable
from orama.settings import ClusterSettings, DnsSettings, Settings
from orama.store.tables import dns_records
from tests.cluster.test_answering import ask
from tests.cluster.test_zone import BASE, NODES, RECORDS, Node
from tests.store.databases import DatabaseCase, OnPostgres, OnRqlite, OnSQLite

SETTINGS = Settings(base_domain=BASE, cluster=ClusterSettings(heartbeat=1.0), dns=DnsSettings(listen="127.0.0.1:0"))
TURN = f"turn.ns-a.{BASE}"


@define(eq=False)
class MemoryPort:
    """A port that is no socket."""

    reactor: MemoryReactor
    number: int
    protocol: Any
    sent: list[tuple[bytes, Any]] = field(factory=list)

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", "127.0.0.1", self.number)

    def write(self, datagram: bytes, address: Any) -> None:
        if address[1] == 0:
            raise OSError(22, "Invalid argument")
        self.sent.append((datagram, address))

    def stopListening(self) -> Deferred[None]:
        self.reactor.ports.remove(self)
        return succeed(None)


class MemoryReactor(Clock):
    """A clock that listens on ports that other programs may have; ``ports`` has UDP first, then TCP."""

    def __init__(self) -> None:
        super().__init__()
        self.advance(1_800_000_000)
        self.ports: list[MemoryPort] = []
        self.taken: set[tuple[str, int]] = set()
        self.next = 1000

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 0) -> MemoryPort:
        found = self._listen("udp", port, protocol)
        # As Twisted has it, which lets go of a protocol only some time after its port was closed.
        assert protocol.transport is None, "this protocol has had a port already"
        protocol.transport = found
        return found

    def listenTCP(self, port: int, factory: Any, interface: str = "") -> MemoryPort:
        return self._listen("tcp", port, factory)

    def _listen(self, proto: str, port: int, protocol: Any) -> MemoryPort:
        self.next += 0 if port else 1
        number = port or self.next
        if (proto, number) in self.taken:
            raise CannotListenError("127.0.0.1", number, OSError(98, "Address already in use"))
        found = MemoryPort(self, number, protocol)
        self.ports.insert(0 if proto == "udp" else len(self.ports), found)
        return found


class ServiceCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.records: list[DnsRecord] = list(RECORDS)
        self.nodes: list[Node] = list(NODES)
        self.dead: set[str] = set()
        #: What the database answers with: None at once, else when it fires.
        self.reads: list[Deferred[None]] = []
        self.slow = False
        self.away: Exception | None = None

    async def read(self) -> list[DnsRecord]:
        if self.slow:
            self.reads.append(Deferred())
            await self.reads[-1]
        if self.away is not None:
            raise self.away
        return list(self.records)

    def serve(self, settings: Settings = SETTINGS) -> DnsService:
        self.service = DnsService(
            self.reactor,
            settings,
            self.read,
            lambda: self.nodes,
            lambda node: node not in self.dead,
            random.Random(1),
        )
        self.service.startService()
        self.addCleanup(self.service.stopService)
        return self.service

    def ask(self, *arguments: Any, source: tuple[str, int] = ("192.0.2.1", 5353), **fields: Any) -> dns.Message | None:
        udp = self.reactor.ports[0]
        udp.sent.clear()
        udp.protocol.datagramReceived(ask(*arguments, **fields), source)
        if not udp.sent:
            return None
        answer = dns.Message()
        ((raw, address),) = udp.sent
        self.assertEqual(address, source)
        answer.fromStr(raw)
        return answer

    def addresses(self, name: str = TURN) -> list[str]:
        answer = self.ask(name)
        assert answer is not None
        return sorted(record.payload.dottedQuad() for record in answer.answers)

    def serial(self) -> int:
        serial = self.service.report()["serial"]
        assert isinstance(serial, int)
        return serial


class RefreshTests(ServiceCase):
    """What is served when."""

    def test_heartbeat(self) -> None:
        """A change is served after the next heartbeat, or at once after a poke; the serial grows with it alone."""
        self.serve()
        serial = self.serial()
        self.assertEqual(serial, 1_800_000_000)
        self.records[0] = evolve(self.records[0], value="203.0.113.9")
        self.assertEqual(self.addresses(), ["203.0.113.1", "203.0.113.2"])
        self.reactor.advance(1)
        self.assertEqual(self.addresses(), ["203.0.113.2", "203.0.113.9"])
        self.assertEqual(self.serial(), serial + 1)
        del self.records[1]
        self.service.poke()
        self.assertEqual(self.addresses(), ["203.0.113.9"])
        self.assertEqual(self.serial(), serial + 2)
        self.reactor.pump([1] * 10)
        self.assertEqual(self.serial(), serial + 2)
        self.nodes.append(Node("four", "203.0.113.4"))
        self.reactor.advance(1)
        self.assertEqual(self.serial(), serial + 12)
        self.assertEqual(self.addresses(f"ns4.{BASE}"), ["203.0.113.4"])

    def test_order_of_rows(self) -> None:
        """The same rows in another order are no change."""
        self.serve()
        serial = self.serial()
        self.records.reverse()
        self.reactor.advance(1)
        self.assertEqual(self.serial(), serial)

    def test_dead_node(self) -> None:
        """A dead node's addresses are gone at once, without a read, and the serial grows at the next."""
        self.serve()
        serial = self.serial()
        self.dead.add("two")
        self.assertEqual(self.addresses(), ["203.0.113.1"])
        self.assertEqual(self.serial(), serial)
        self.reactor.advance(1)
        self.assertEqual(self.serial(), serial + 1)
        self.dead.clear()
        self.assertEqual(self.addresses(), ["203.0.113.1", "203.0.113.2"])

    def test_database_away(self) -> None:
        """With the database away everything is served on, and nobody is dead who lived; then it goes on."""
        self.serve()
        self.dead.add("one")
        self.reactor.advance(1)
        self.away = Unavailable("store_unavailable", "the database does not answer")
        self.reactor.advance(1)
        self.dead.update(("two", "three"))  # nobody has been heard of since
        self.assertEqual(self.addresses(), ["203.0.113.2"])
        self.reactor.advance(1)
        self.assertEqual(self.addresses(), ["203.0.113.2"])
        self.assertEqual(self.service.report()["error"], "the database does not answer")
        self.reactor.pump([1] * 100)
        self.assertEqual(self.addresses(), ["203.0.113.2"])
        self.away = None
        self.dead = {"two"}
        self.reactor.advance(1)
        self.assertEqual(self.addresses(), ["203.0.113.1"])
        self.assertIsNone(self.service.report()["error"])

    def test_database_hangs(self) -> None:
        """A read that does not come back is not waited for by answers, nor made again while it hangs."""
        self.serve()
        self.slow = True
        self.reactor.advance(1)
        self.reactor.advance(0.2)
        self.dead.add("two")
        self.assertEqual(self.addresses(), ["203.0.113.1", "203.0.113.2"])
        self.reactor.pump([1] * 10)
        self.assertEqual(self.addresses(), ["203.0.113.1", "203.0.113.2"])
        self.assertEqual(len(self.reads), 1)
        self.slow = False
        self.reads[0].callback(None)
        self.assertEqual(self.addresses(), ["203.0.113.1"])

    def test_poke_while_reading(self) -> None:
        """What changes while a read is under way is read after it, once."""
        self.serve()
        self.slow = True
        self.service.poke()
        for _ in range(5):
            self.service.poke()
        self.reads[0].callback(None)
        self.assertEqual(len(self.reads), 2)
        self.reads[1].callback(None)
        self.assertEqual(len(self.reads), 2)

    def test_refresh(self) -> None:
        """Who wants to know waits until what has been there when they asked is served, also beside a read before it."""
        service = self.serve()
        self.slow = True
        service.poke()
        self.records[:] = RECORDS[:1]
        done = Deferred.fromCoroutine(service.refresh())
        self.reads[0].callback(None)
        self.assertNoResult(done)
        self.reads[1].callback(None)
        self.successResultOf(done)
        self.slow, self.away = False, Unavailable("store_unavailable", "the database does not answer")
        self.successResultOf(Deferred.fromCoroutine(service.refresh()))
        self.away, self.slow = None, True
        stopped = Deferred.fromCoroutine(service.refresh())
        service.stopService()
        self.successResultOf(stopped)

    def test_nothing_known(self) -> None:
        """SERVFAIL until the database has answered for the first time."""
        self.away = Unavailable("store_unavailable", "the database does not answer")
        self.serve()
        answer = self.ask(TURN)
        assert answer is not None
        self.assertEqual(answer.rCode, dns.ESERVER)
        self.assertEqual(self.service.report()["serial"], 0)
        self.away = None
        self.reactor.advance(1)
        self.assertEqual(len(self.addresses()), 2)

    def test_broken_read(self) -> None:
        """Whatever else goes wrong while reading is logged, and the next heartbeat tries again."""
        self.serve()
        self.away = ValueError("broken")
        self.reactor.advance(1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(len(self.addresses()), 2)
        self.away = None
        self.records.clear()
        self.reactor.advance(1)
        self.assertEqual(self.addresses(), [])

    def test_old_challenge(self) -> None:
        """A challenge that nobody took away is not served after an hour, not even when it is still in the database."""
        now = self.reactor.seconds()
        name = f"_acme-challenge.{BASE}"
        self.records += [
            DnsRecord(name, "TXT", "old", 60, created_at=now - 3590),
            DnsRecord(name, "TXT", "new", 60, created_at=now),
            DnsRecord(f"www.{BASE}", "TXT", "kept", 60, created_at=0),
        ]
        self.serve()
        found = [self.ask(name, dns.TXT)]
        self.reactor.pump([1] * 11)
        found += [self.ask(name, dns.TXT), self.ask(f"www.{BASE}", dns.TXT)]
        self.assertEqual([len(answer.answers) for answer in found if answer], [2, 1, 1])

    def test_report(self) -> None:
        """The report names zone, serial, number of records, and the rows that cannot be served."""
        self.serve()
        report = {"listening": True, "zone": BASE, "serial": 1_800_000_000, "records": 9, "error": None}
        self.assertEqual(self.service.report(), report)
        self.records.append(DnsRecord("www.example.org", "A", "203.0.113.1", 60))
        self.reactor.advance(1)
        self.assertEqual(self.service.report()["error"], f"www.example.org A: is no name in {BASE}")

    def test_stop(self) -> None:
        """Stopping lets go of ports, reads and calls, whatever is under way."""
        self.serve()
        self.slow = True
        self.service.poke()
        self.service.poke()
        self.successResultOf(self.service.stopService())
        self.service.poke()
        self.assertTrue(self.reads[0].called)
        self.assertEqual((self.reactor.ports, self.reactor.getDelayedCalls(), len(self.reads)), ([], [], 1))
        self.assertFalse(self.service.report()["listening"])

    def test_off(self) -> None:
        """Without dns.listen there is no socket and nothing is read."""
        self.serve(Settings(base_domain=BASE))
        self.assertEqual((self.reactor.ports, self.reactor.getDelayedCalls()), ([], []))
        empty = {"listening": False, "zone": BASE, "serial": 0, "records": 0, "error": None}
        self.assertEqual(self.service.report(), empty)


class ListenTests(ServiceCase):
    def test_same_port(self) -> None:
        """Any port is the same one for UDP and TCP, which neither of other programs has."""
        self.reactor.taken = {("udp", 1001), ("tcp", 1002)}
        self.serve()
        self.assertEqual((self.service.port, [port.number for port in self.reactor.ports]), (1003, [1003, 1003]))

    def test_taken(self) -> None:
        """A port that is taken stops the start, in one line, and leaves nothing."""
        self.reactor.taken = {("tcp", 53)}
        error = self.assertRaises(StartError, self.serve, evolve(SETTINGS, dns=DnsSettings(listen="127.0.0.1:53")))
        self.assertEqual(error.message, "dns.listen 127.0.0.1:53: Address already in use")
        self.assertEqual((self.reactor.ports, self.reactor.getDelayedCalls()), ([], []))

    def test_no_base_domain(self) -> None:
        """There is no DNS without a base domain."""
        error = self.assertRaises(StartError, self.serve, evolve(SETTINGS, base_domain=""))
        self.assertEqual(error.message, "dns.listen: there is nothing to serve without base_domain")

    def test_listening(self) -> None:
        """Address and port, in brackets for IPv6; anything else is said to be none."""
        self.assertEqual(listening("0.0.0.0:53"), ("0.0.0.0", 53))
        self.assertEqual(listening("[2001:DB8::1]:5300"), ("2001:db8::1", 5300))
        for text in ("53", "localhost:53", "0.0.0.0", "0.0.0.0:dns", "0.0.0.0:65536", "0.0.0.0:-1", ":53"):
            error = self.assertRaises(StartError, listening, text)
            self.assertIn(repr(text), error.message)


class DatagramTests(ServiceCase):
    def test_rate(self) -> None:
        """Who asks too often over UDP is sent to TCP by answers no longer than the questions; others are not."""
        self.serve()
        answers = [self.ask(TURN) for _ in range(BURST + 3)]
        self.assertEqual([answer.trunc for answer in answers if answer], [0] * BURST + [1] * 3)
        self.assertEqual(len(self.addresses()), 0)
        answer = self.ask(TURN, source=("192.0.2.2", 5353))
        self.assertEqual(answer and len(answer.answers), 2)
        self.reactor.advance(1)
        self.assertEqual(len(self.addresses()), 2)
        samples = {labels.get("outcome"): value for _, labels, value in list(self.service.samples())[:3]}
        self.assertEqual(samples, {"answered": BURST + 2, "dropped": 0, "brief": 4})

    def test_mapped(self) -> None:
        """IPv4 clients of an IPv6 socket are counted one by one."""
        self.serve()
        for _ in range(BURST + 1):
            self.ask(TURN, source=("::ffff:192.0.2.1", 5353))
        answer = self.ask(TURN, source=("::ffff:192.0.2.2", 5353))
        self.assertEqual(answer and answer.trunc, 0)

    def test_no_way_back(self) -> None:
        """A datagram from where nothing can be sent to is dropped."""
        self.serve()
        self.assertIsNone(self.ask(TURN, source=("192.0.2.1", 0)))
        self.assertEqual(len(self.addresses()), 2)

    @given(st.binary(max_size=200))
    @settings(max_examples=200)
    def test_garbage(self, datagram: bytes) -> None:
        """No datagram raises, and none that is an answer is answered."""
        if not hasattr(self, "service"):
            self.serve()
        udp = self.reactor.ports[0]
        udp.sent.clear()
        udp.protocol.datagramReceived(datagram, ("192.0.2.7", 5353))
        self.assertTrue(not udp.sent or (len(datagram) >= 12 and not datagram[2] & 0x80))


class MemoryConnection(StringTransport):
    """A connection that ends, soon, when it is aborted."""

    def __init__(self, stream: Any, clock: Clock) -> None:
        super().__init__()
        self.stream = stream
        self.clock = clock
        self.aborted = False

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.clock.callLater(0, self.stream.connectionLost, Failure(ConnectionDone()))


class StreamTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.serve()

    def connect(self, host: str = "192.0.2.1") -> MemoryConnection:
        stream = self.reactor.ports[1].protocol.buildProtocol(IPv4Address("TCP", host, 4000))
        connection = MemoryConnection(stream, self.reactor)
        if stream is not None:
            stream.makeConnection(connection)
        return connection

    def answers(self, connection: MemoryConnection) -> list[dns.Message]:
        found, data = [], connection.value()
        connection.clear()
        while data:
            (length,) = struct.unpack("!H", data[:2])
            found.append(dns.Message())
            found[-1].fromStr(data[2 : 2 + length])
            data = data[2 + length :]
        return found

    def framed(self, message: bytes) -> bytes:
        return struct.pack("!H", len(message)) + message

    def test_pieces(self) -> None:
        """Queries are answered in order, however they are cut or joined."""
        connection = self.connect()
        both = self.framed(ask(TURN, id=1)) + self.framed(ask(f"no.{BASE}", id=2))
        for byte in both:
            connection.stream.dataReceived(bytes((byte,)))
        connection.stream.dataReceived(both * 2)
        self.assertEqual([(answer.id, answer.rCode) for answer in self.answers(connection)], [(1, 0), (2, 3)] * 3)
        self.assertFalse(connection.aborted)

    def test_idle(self) -> None:
        """A connection without a whole query for too long is closed, also when bytes drip in."""
        connection = self.connect()
        self.reactor.advance(IDLE - 1)
        connection.stream.dataReceived(self.framed(ask(TURN)))
        self.reactor.advance(IDLE - 1)
        self.assertFalse(connection.aborted)
        connection.stream.dataReceived(b"\0")
        self.reactor.advance(1)
        self.assertTrue(connection.aborted)
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)  # the heartbeat

    def test_garbage(self) -> None:
        """Who sends what is no query, or a longer one than there is, is cut off; later bytes are not looked at."""
        for garbage in (self.framed(b"short"), self.framed(ask(answer=1)), struct.pack("!H", LONGEST_QUERY + 1)):
            connection = self.connect()
            connection.stream.dataReceived(garbage + self.framed(ask(TURN)))
            self.assertEqual((connection.aborted, connection.value()), (True, b""))

    def test_unread_answers(self) -> None:
        """Who does not read the answers is not read from, and idle."""
        connection = self.connect()
        connection.stream.dataReceived(self.framed(ask(TURN)))
        connection.producer.pauseProducing()
        connection.clear()
        self.assertEqual(connection.producerState, "paused")
        connection.stream.dataReceived(self.framed(ask(TURN)) * 3)
        self.assertEqual(connection.value(), b"")
        connection.producer.resumeProducing()
        self.assertEqual(len(self.answers(connection)), 3)
        connection.producer.pauseProducing()
        self.reactor.advance(IDLE)
        self.assertTrue(connection.aborted)
        self.reactor.advance(0)

    def test_connections(self) -> None:
        """One address has a bounded number of connections; with too many in all, the quietest goes."""
        ours = [self.connect() for _ in range(CONNECTIONS_EACH)]
        self.assertIsNone(self.connect().stream)
        others = [self.connect(f"198.51.100.{number}") for number in range(CONNECTIONS - CONNECTIONS_EACH)]
        ours[0].stream.dataReceived(self.framed(ask(TURN)))
        more = [self.connect(f"203.0.113.{number}") for number in range(2)]
        closed = [connection for connection in ours + others + more if connection.aborted]
        self.assertEqual(closed, ours[1:3])
        ours[3].abortConnection()
        self.reactor.advance(0)
        self.assertIsNotNone(self.connect().stream)

    def test_stop(self) -> None:
        """Stopping closes connections, and takes no new ones."""
        connections = [self.connect() for _ in range(3)]
        factory = self.reactor.ports[1].protocol
        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.assertEqual([connection.aborted for connection in connections], [True] * 3)
        self.assertIsNone(factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000)))
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class StoredTests(DatabaseCase):
    async def test_stored_records(self) -> None:
        """The rows of the database, as they stand there."""
        self.assertEqual(await stored_records(self.database), [])
        rows = sorted(RECORDS, key=lambda row: (row.fqdn, row.type, row.value))
        for row in rows:
            values = {name: getattr(row, name) for name in row.__slots__ if not name.startswith("_")}
            await self.database.write(dns_records.insert().values(**values))
        self.assertEqual(await stored_records(self.database), rows)


class OnSQLiteTests(OnSQLite, StoredTests):
    pass


class OnPostgresTests(OnPostgres, StoredTests):
    pass


class OnRqliteTests(OnRqlite, StoredTests):
    pass


del StoredTests
