"""What an operator sees of allocations and does to them, and the line that each leaves in the log."""

from __future__ import annotations

import io
import json
import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from orama.logs import observer
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings
from orama.turn.credentials import issue
from orama.turn.listeners import TurnService
from orama.turn.sessions import Selection, text
from orama.turn.tenants import Tenants
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.world import MYAPP, PEER, SFU, Client, MemoryLink, World, code

reactor: Any = _reactor

#: User names that somebody might choose to be noticed.
HOSTILE = (
    "ann\r\nallocation of root began",
    "nul\0bell\a",
    "{reason} {0} {log_time!r} {user.__class__}",
    "%s%n%x %(user)s",
    "😀𝔞",
    "\x1b[2J\x9b31m",
    "\u202egnp.exe\u2028\u0085x",
    '","level":"critical","x":"',
    "a" * 400,
)


class Stream(MemoryLink):
    """The link of a client that came over TCP."""

    transport = "tcp"


class SessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def allocated(self, port: int, **who: str) -> Client:
        client = self.world.client(port=port, **who)
        self.assertEqual(code(client.allocate()), 0)
        return client

    def seen(self, **selection: object) -> list[str]:
        """The clients of the sessions that are meant."""
        return [session.client for session in self.world.server.sessions(Selection(**selection))]  # type: ignore[arg-type]

    def test_session(self) -> None:
        """A session says who, from where, how, on which relay, how long, with how much, and what went each way."""
        client = self.allocated(1, user="ann")
        client.bind(0x4000, PEER)
        client.permit(SFU)
        client.data(0x4000, b"12345", b"678")
        self.world.opened[client.relay][1]((b"12",), PEER)
        self.world.clock.advance(30)
        (session,) = self.world.server.sessions(Selection())
        self.assertEqual(len(session.id), 12)
        self.assertEqual(
            {name: value for name, value in session.to_json().items() if name != "id"},
            {
                "namespace": "myapp",
                "user": "ann",
                "client": "203.0.113.9:1",
                "transport": "udp",
                "relays": (text(client.relay),),
                "age": 30.0,
                "expires_in": 570.0,
                "permissions": 2,
                "channels": 1,
                "bytes_up": 8,
                "packets_up": 2,
                "bytes_down": 2,
                "packets_down": 1,
            },
        )
        self.world.clock.advance(271)
        (session,) = self.world.server.sessions(Selection())
        self.assertEqual((session.permissions, session.channels), (0, 1), "a permission lasts 300 s")

    def test_selection(self) -> None:
        """Sessions are told apart by namespace, user, port of the relay and id, and by several of these at once."""
        ann = self.allocated(1, user="ann")
        self.allocated(2, user="bob")
        self.allocated(3, user="ann", namespace="other")
        self.assertEqual(self.seen(), ["203.0.113.9:1", "203.0.113.9:2", "203.0.113.9:3"])
        self.assertEqual(self.seen(namespace="myapp"), ["203.0.113.9:1", "203.0.113.9:2"])
        self.assertEqual(self.seen(user="ann"), ["203.0.113.9:1", "203.0.113.9:3"])
        self.assertEqual(self.seen(namespace="myapp", user="ann"), ["203.0.113.9:1"])
        self.assertEqual(self.seen(port=ann.relay[1]), ["203.0.113.9:1"])
        (first, _, _) = self.world.server.sessions(Selection())
        self.assertEqual(self.seen(id=first.id), ["203.0.113.9:1"])
        self.assertEqual(self.seen(id=first.id, user="bob"), [])
        self.assertEqual(len({session.id for session in self.world.server.sessions(Selection())}), 3)

    def test_disconnect(self) -> None:
        """Who is disconnected has no allocation (437), its relay and its quota are free, and others go on."""
        world = self.world = World(allocations_per_user=1)
        ann, bob = self.allocated(1, user="ann"), self.allocated(2, user="bob")
        ann.bind(0x4000, PEER)
        self.assertEqual(world.server.disconnect(Selection(namespace="myapp", user="ann")), 1)
        self.assertEqual([code(ann.refresh()), code(ann.bind(0x4000, PEER)), code(ann.permit(PEER))], [437] * 3)
        ann.data(0x4000, b"lost")
        self.assertTrue(world.opened[ann.relay][0].closed)
        self.assertFalse(world.fabric.has(ann.relay))
        self.assertEqual(code(bob.refresh()), 0)
        self.assertFalse(bob.link.closed, "a UDP socket is everybody's")
        self.assertEqual(world.server.disconnect(Selection(user="ann")), 0)
        self.assertEqual(code(ann.allocate()), 0)

    def test_disconnect_of_a_stream(self) -> None:
        """The connection of a client that came over TCP is closed with its allocation."""
        client = Client(self.world, ("203.0.113.9", 1), self.world.credentials(), Stream())
        client.allocate()
        (session,) = self.world.server.sessions(Selection())
        self.assertEqual(session.transport, "tcp")
        self.world.server.disconnect(Selection(id=session.id))
        self.assertTrue(client.link.closed)


class ServiceTests(TestCase):
    """A server with real sockets."""

    timeout = 120

    def allocated(self, service: TurnService, tls: bool) -> tuple[socket.socket, tuple[str, int]]:
        """A connection with an allocation, and its own address."""
        plain = socket.create_connection(("127.0.0.1", service.tls_port if tls else service.tcp_port), 5)
        own = plain.getsockname()[:2]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_socket(plain) if tls else plain
        wanted = [(stun.REQUESTED_TRANSPORT, 17)]
        client.sendall(stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, wanted))
        asked = stun.parse(client.recv(2048))
        credentials = issue(MYAPP.secrets[0], "myapp", 600, reactor.seconds(), "ann")
        realm = asked.get(stun.REALM) or ""
        wanted += [(stun.USERNAME, credentials.username), (stun.REALM, realm), (stun.NONCE, asked.get(stun.NONCE))]
        key = stun.long_term_key(credentials.username, realm, credentials.password)
        client.sendall(stun.build(Method.ALLOCATE, Class.REQUEST, b"u" * 12, wanted, key=key))
        self.assertEqual(stun.parse(client.recv(2048)).cls, Class.SUCCESS)
        return client, own

    async def test_connections(self) -> None:
        """Sessions over TCP and TLS say so, and their connections end when they are disconnected."""
        tenants = Tenants()
        tenants.put(MYAPP)
        certificates = ServerCertificates(Path(self.mktemp()), ["127.0.0.1"], reactor)
        settings = Settings(turn_port=0, turns_port=0)
        service = TurnService(reactor, settings, tenants, Fabric(reactor), certificates)
        service.startService()
        self.addCleanup(service.stopService)
        for tls, transport in ((False, "tcp"), (True, "tls")):
            client, own = await deferToThread(self.allocated, service, tls)
            self.addCleanup(client.close)
            [session] = await service.sessions(Selection(user="ann"))
            self.assertEqual((session.client, session.transport), (text(own), transport))
            self.assertEqual(await service.disconnect(Selection(id=session.id)), 1)
            try:
                left = await deferToThread(client.recv, 1)
            except OSError:  # reset
                left = b""
            self.assertEqual(left, b"")
            self.assertEqual(await service.sessions(Selection()), [])


class LogTests(SynchronousTestCase):
    """The end of an allocation, as the log has it."""

    def logged(self, log_format: str, user: str) -> str:
        """What is written while *user* has an allocation."""
        world, stream = World(), io.StringIO()
        write = observer(log_format, stream)

        def note(event: LogEvent) -> None:
            write(event)

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        client = world.client(user=user)
        self.assertEqual(code(client.allocate()), 0)
        client.bind(0x4000, PEER)
        client.data(0x4000, b"12345")
        world.clock.advance(2)
        client.refresh((stun.LIFETIME, 0))
        globalLogPublisher.removeObserver(note)
        return stream.getvalue()

    def test_fields(self) -> None:
        """One line has who, from where, how, on which relay, why, how long, and bytes and packets both ways."""
        line = json.loads(self.logged("json", "ann"))
        self.assertTrue(line["relays"].startswith("10.0.0.1:50"))
        fields = {
            "event_namespace": "myapp",
            "user": "ann",
            "client": "203.0.113.9:40000",
            "transport": "udp",
            "reason": "released",
            "seconds": 2.0,
            "bytes_up": 5,
            "packets_up": 1,
            "bytes_down": 0,
            "packets_down": 0,
        }
        self.assertEqual({name: line[name] for name in fields}, fields)

    def test_hostile_names(self) -> None:
        """Whatever a user is called, there is one line, without control characters, and the name is whole in JSON."""
        for user in HOSTILE:
            text_log = self.logged("text", user)
            self.assertEqual(len(text_log.splitlines()), 1, user)
            self.assertTrue(text_log.rstrip("\n").isprintable(), user)
            self.assertIn("ended (released)", text_log)
            json_log = self.logged("json", user)
            self.assertEqual(len(json_log.splitlines()), 1, user)
            self.assertTrue(json_log.rstrip("\n").isascii())
            line = json.loads(json_log)
            self.assertEqual((line["user"], line["level"]), (user, "info"))
