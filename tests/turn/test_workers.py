"""TURN by several processes: real ones, on real sockets, whose clients are spread over them by the kernel."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.sessions import Selection
from orama.turn.tenants import Tenant, Tenants
from orama.turn.workers import Workers, worker_count
from orama.turn.workers_process import GRACE
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.net.test_tls import write_certificate
from tests.turn.plain_client import Client

TENANT = Tenant("myapp", ("north",), (13000, 13799), allowed_peers=(ip_network("127.0.0.0/8"),))
#: Where relays are, so that their ports are nobody else's on this machine.
RELAY_IP = "127.83.0.1"
#: So many that one of two workers gets none of them once in 500,000 times.
CLIENTS = 20

#: A node that does nothing but have workers, and says which processes they are.
NODE = """
import sys
from pathlib import Path
from orama import reactors
reactors.ensure()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.tenants import Tenants
from orama.turn.workers import Workers

async def main():
    settings = Settings(turn_port=0, turns_port=0, turn=TurnSettings(workers=3))
    certificates = ServerCertificates(Path(sys.argv[1]), ["127.0.0.1"], reactor)
    service = Workers(reactor, settings, Tenants(), Fabric(reactor), certificates)
    service.startService()
    await service.ready()
    print(*(worker.pid for worker in service.workers), flush=True)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
reactor.run()
"""


class WorkersTestCase(TestCase):
    timeout = 240

    async def started(self, *, workers: int = 2, **turn: Any) -> Workers:
        self.tenants = Tenants()
        self.tenants.put(TENANT)
        self.directory = Path(self.mktemp())
        self.certificates = ServerCertificates(self.directory, ["127.0.0.1"], reactor)
        settings = Settings(turn_port=0, turns_port=0, turn=TurnSettings(workers=workers, relay_ip=RELAY_IP, **turn))
        service = Workers(reactor, settings, self.tenants, Fabric(reactor), self.certificates)
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        await service.ready()
        return service

    def clients(self, service: Workers, count: int = CLIENTS, **who: str) -> list[Client]:
        clients = [Client(service.udp_port, **who) for _ in range(count)]
        for client in clients:
            self.addCleanup(client.close)
        return clients

    @contextmanager
    def log(self) -> Iterator[list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        try:
            yield events
        finally:
            globalLogPublisher.removeObserver(events.append)


async def each(clients: list[Client], ask: Callable[[Client], int]) -> list[int]:
    """What the clients get, one after the other."""
    answers: list[int] = await deferToThread(lambda: [ask(client) for client in clients])
    return answers


async def until(clients: list[Client], ask: Callable[[Client], int], wanted: int) -> None:
    """Every client gets what is wanted, by and by: what the node says reaches the workers in its time."""

    def insist() -> None:
        for client in clients:
            while ask(client) != wanted:
                pass

    await deferToThread(insist)


async def gone(pid: int) -> None:
    """The process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await deferToThread(select.select, [descriptor], [], [])
    finally:
        os.close(descriptor)


class ServingTests(WorkersTestCase):
    async def test_clients_are_spread(self) -> None:
        """All clients are served, some by the node's process and some by another, each with a relay port of its own."""
        service = await self.started()
        clients = self.clients(service)
        self.assertEqual(await each(clients, Client.allocate), [0] * CLIENTS)
        self.assertEqual(await each(clients, Client.refresh), [0] * CLIENTS)
        self.assertEqual(len({client.relay for client in clients}), CLIENTS)
        self.assertEqual(
            (service.allocations(), service.allocations("myapp"), service.allocations("other")), (CLIENTS, CLIENTS, 0)
        )
        sessions = await service.sessions(Selection())
        self.assertEqual(
            {session.client for session in sessions},
            {"{}:{}".format(*client.socket.getsockname()) for client in clients},
        )
        own = await service.own.sessions(Selection())
        self.assertTrue(0 < len(own) < CLIENTS)
        figures = {(name, *labels.values()): value for name, labels, value in service.samples()}
        self.assertEqual(figures["orama_turn_allocations", "myapp"], CLIENTS)
        self.assertEqual(figures["orama_turn_workers",], 2)

    async def test_relay(self) -> None:
        """Packets pass both ways through every worker, to a peer and between the relays of two workers' clients."""
        service = await self.started()
        clients = self.clients(service)
        await each(clients, Client.allocate)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)

            def through(client: Client) -> int:
                permitted = client.signed(
                    Method.CREATE_PERMISSION,
                    (stun.XOR_PEER_ADDRESS, peer.getsockname()),
                    (stun.XOR_PEER_ADDRESS, (RELAY_IP, 1)),
                )
                assert permitted == 0
                sent = [(stun.XOR_PEER_ADDRESS, peer.getsockname()), (stun.DATA, b"ping")]
                client.socket.send(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, sent))
                data, relay = peer.recvfrom(100)
                assert (data, relay) == (b"ping", client.relay)
                peer.sendto(b"pong", relay)
                assert stun.parse(client.socket.recv(2048)).get(stun.DATA) == b"pong"
                return permitted

            self.assertEqual(await each(clients, through), [0] * CLIENTS)

            def between(client: Client) -> int:
                other = clients[clients.index(client) - 1]
                assert client.relay is not None and other.relay is not None
                sent = [(stun.XOR_PEER_ADDRESS, other.relay), (stun.DATA, b"hello")]
                client.socket.send(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, sent))
                return int(stun.parse(other.socket.recv(2048)).get(stun.DATA) != b"hello")

            self.assertEqual(await each(clients, between), [0] * CLIENTS)

    async def test_quota(self) -> None:
        """The quota of a user is what he has in all workers: one more is 486, in each of them."""
        service = await self.started(allocations_per_user=5, allocations_per_namespace=7)
        clients = self.clients(service, user="ann")
        codes = await each(clients, Client.allocate)
        self.assertEqual(sorted(codes), [0] * 5 + [486] * (CLIENTS - 5))
        codes = await each(self.clients(service, user="bob"), Client.allocate)
        self.assertEqual(sorted(codes), [0] * 2 + [486] * (CLIENTS - 2))

    async def test_nonces(self) -> None:
        """A nonce that one process gave out is good with the others: the same address comes to them over TCP."""
        # With a large answer, so that over UDP it offers what it does over TCP.
        service = await self.started(unauthenticated_amplification=10.0)

        def over_tcp(client: Client) -> int:
            with socket.socket() as stream:
                stream.settimeout(10)
                while True:
                    try:
                        stream.bind(client.socket.getsockname())
                        break
                    except OSError:  # that port is somebody's over TCP: take another one over UDP
                        client.close()
                        client.socket = Client(service.udp_port).socket
                client.challenge()
                stream.connect(("127.0.0.1", service.tcp_port))
                client.close()
                client.socket = stream
                return client.allocate()

        self.assertEqual(await each(self.clients(service), over_tcp), [0] * CLIENTS)

    async def test_all_ports(self) -> None:
        """A namespace gets every port of its block, whichever workers its clients come to, and then 508."""
        service = await self.started()
        self.tenants.put(evolve(TENANT, relay_ports=(13000, 13009)))
        clients = self.clients(service, CLIENTS)

        def allocate(client: Client) -> int:
            code = client.allocate()
            while code == 0 and client.relay is not None and client.relay[1] > 13009:  # it did not know yet
                client.signed(Method.REFRESH, (stun.LIFETIME, 0))
                code = client.allocate()
            return code

        self.assertEqual(sorted(await each(clients, allocate)), [0] * 10 + [508] * (CLIENTS - 10))

    async def test_streams(self) -> None:
        """TCP and TLS are served by all workers, with a certificate that is added while they run."""
        service = await self.started()
        self.certificates.add("turn.example", *write_certificate(self.directory, "turn.example"))
        binding = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)

        def served(port: int, name: str) -> str:
            with socket.create_connection(("127.0.0.1", port), 10) as plain:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                client = context.wrap_socket(plain, server_hostname=name) if name else plain
                with client:
                    client.sendall(binding)
                    assert stun.parse(client.recv(2048)).get(stun.XOR_MAPPED_ADDRESS) == client.getsockname()
                    return str(client.getpeercert(True)) if isinstance(client, ssl.SSLSocket) else ""

        certificate = self.certificates.served("turn.example")
        for _ in range(CLIENTS):
            await deferToThread(served, service.tcp_port, "")
        pem = certificate.file.read_text()
        wanted = str(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END") + 26]))

        def insist() -> None:
            for _ in range(CLIENTS):
                while served(service.tls_port, "turn.example") != wanted:
                    pass

        await deferToThread(insist)


class TellingTests(WorkersTestCase):
    async def test_tenants(self) -> None:
        """A namespace's other secret is good with all workers, and a namespace that is gone is nobody's."""
        service = await self.started()
        self.tenants.put(evolve(TENANT, secrets=("south",)))
        south = self.clients(service, secret="south")
        await until(south, Client.allocate, 0)
        self.assertEqual(await each(self.clients(service), Client.allocate), [401] * CLIENTS)
        self.tenants.remove("myapp")
        await until(south, Client.refresh, 401)
        self.assertEqual(service.allocations(), 0)

    async def test_drain(self) -> None:
        """No worker of a draining node makes an allocation; each does again when it does not drain any more."""
        service = await self.started()
        there = self.clients(service)
        await each(there, Client.allocate)
        new = self.clients(service)
        service.drain()
        await until(new, Client.attempt, 508)
        self.assertEqual(await each(there, Client.refresh), [0] * CLIENTS)
        service.undrain()
        await until(new, Client.attempt, 0)
        service.drain_tenant("myapp")
        await until(new, Client.attempt, 508)
        service.undrain_tenant("myapp")
        await until(new, Client.attempt, 0)

    async def test_alternates(self) -> None:
        """While the node drains every worker sends its clients to the servers that the node knows (300)."""
        service = await self.started()
        service.redirect(lambda namespace, family, transport: [("192.0.2.1", 3478)] if family == 1 else [])
        new = self.clients(service)
        service.drain()
        await until(new, Client.attempt, 300)
        service.undrain()
        await until(new, Client.attempt, 0)

    async def test_configure(self) -> None:
        """Limits that change while the node runs change in all workers."""
        service = await self.started(allocations_per_user=1)
        clients = self.clients(service, user="ann")
        self.assertEqual(sorted(await each(clients, Client.allocate)), [0] + [486] * (CLIENTS - 1))
        service.configure(TurnSettings(allocations_per_user=CLIENTS, relay_ip=RELAY_IP))
        refused = [client for client in clients if client.relay is None]
        await until(refused, Client.allocate, 0)

    async def test_disconnect(self) -> None:
        """The sessions that an operator means are ended, whichever worker has them."""
        service = await self.started()
        ann, bob = self.clients(service, user="ann"), self.clients(service, user="bob")
        await each([*ann, *bob], Client.allocate)
        self.assertEqual(await service.disconnect(Selection(namespace="myapp", user="ann")), CLIENTS)
        self.assertEqual(await each(ann, Client.refresh), [437] * CLIENTS)
        self.assertEqual(await each(bob, Client.refresh), [0] * CLIENTS)

    async def test_log(self) -> None:
        """What happens in a worker stands in the node's log as if it had happened there."""
        service = await self.started()
        clients = self.clients(service, user="ann")
        with self.log() as events:
            await each(clients, Client.allocate)
            await each(clients, lambda client: client.signed(Method.REFRESH, (stun.LIFETIME, 0)))
            await service.stopService()
        ends = [event for event in events if event.get("reason") == "released"]
        self.assertEqual(len(ends), CLIENTS)
        self.assertEqual(
            {(event["namespace"], event["user"], event["log_namespace"]) for event in ends},
            {("myapp", "ann", "orama.turn.allocations")},
        )
        self.assertEqual({event.get("worker") for event in ends}, {None, 1})


class LifeTests(WorkersTestCase):
    async def test_crash(self) -> None:
        """A worker that is killed is there again on the same sockets: its allocations are gone, and their quota and
        ports are free; those of the others stay, and nonces are good as before."""
        service = await self.started(allocations_per_namespace=CLIENTS)
        clients = self.clients(service)
        await each(clients, Client.allocate)
        kept = {session.client for session in await service.own.sessions(Selection())}
        lost = [client for client in clients if "{}:{}".format(*client.socket.getsockname()) not in kept]
        stay = [client for client in clients if client not in lost]
        (worker,) = service.workers
        before = worker.pid
        assert before is not None
        with self.log() as events:
            os.kill(before, signal.SIGKILL)
            await until(lost, Client.refresh, 437)
        self.assertNotEqual(worker.pid, before)
        (ended,) = [event for event in events if event.get("pause") is not None]
        self.assertIn("signal 9", str(ended["why"]))
        self.assertEqual(await each(stay, Client.refresh), [0] * len(stay))
        self.assertEqual(service.allocations(), len(stay))
        self.assertEqual(await each(lost, Client.allocate), [0] * len(lost))
        self.assertEqual(service.allocations(), CLIENTS)
        (more,) = self.clients(service, 1)
        self.assertEqual(await each([more], Client.allocate), [486])

    async def test_stop(self) -> None:
        """A stop ends every process and gives the ports back, in less than the time of a worker that hangs."""
        service = await self.started(workers=3)
        pids = [worker.pid for worker in service.workers]
        await each(self.clients(service), Client.allocate)
        began = reactor.seconds()
        await service.stopService()
        self.assertLess(reactor.seconds() - began, GRACE)
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)
        for kind, port in ((socket.SOCK_DGRAM, service.udp_port), (socket.SOCK_STREAM, service.tls_port)):
            with socket.socket(socket.AF_INET, kind) as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
                again.bind(("127.0.0.1", port))

    async def test_signals(self) -> None:
        """Signals that a terminal or systemd sends to all processes are the node's business."""
        service = await self.started()
        (worker,) = service.workers
        before = worker.pid
        assert before is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(before, number)
        self.assertEqual(await each(self.clients(service), Client.allocate), [0] * CLIENTS)
        self.assertEqual(worker.pid, before)

    async def test_node_is_killed(self) -> None:
        """The workers of a node that is gone end by themselves."""
        node = self.node()
        assert node.stdout is not None
        pids = [int(word) for word in (await deferToThread(node.stdout.readline)).split()]
        self.assertEqual(len(pids), 2)
        node.kill()
        for pid in pids:
            await gone(pid)

    def node(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", NODE, str(Path(self.mktemp()).absolute())]
        node = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        self.addCleanup(node.communicate)
        self.addCleanup(node.kill)
        return node

    def test_count(self) -> None:
        """0 is one worker for each core that this process may use."""
        for wanted, count in ((0, len(os.sched_getaffinity(0))), (1, 1), (5, 5)):
            self.assertEqual(worker_count(TurnSettings(workers=wanted)), count)
