"""The listening sockets of TURN: the same addresses for each worker, clients that stay with theirs, all or nothing."""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack

from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.fronts import Front, bind, listening_hosts

#: So many that one of two workers gets none of them once in 10^18.
CLIENTS = 60


class FrontsTests(SynchronousTestCase):
    def fronts(self, workers: int, *ports: int, public_ip: str = "127.0.0.1") -> list[Front]:
        fronts = bind(public_ip, *(ports or (0, 0)), workers)
        for front in fronts:
            self.addCleanup(front.close)
        return fronts

    def test_same_ports(self) -> None:
        """All workers have the same ports, UDP and TCP one and TLS another; every address of this host has them."""
        one, two = self.fronts(2, public_ip="203.0.113.1")
        self.assertEqual(one.ports, two.ports)
        udp, tcp, tls = one.ports
        self.assertEqual(udp, tcp)
        self.assertNotEqual(tcp, tls)
        self.assertEqual({each.getsockname()[1] for each in (*one, *two)}, {udp, tls})
        self.assertEqual([len(one.udp), len(one.tcp), len(one.tls)], [len(listening_hosts("203.0.113.1"))] * 3)

    def test_packets_are_spread(self) -> None:
        """Every worker gets some of the clients, and all packets of one client go to the same worker."""
        one, two = self.fronts(2)
        clients = [self.client() for _ in range(CLIENTS)]
        for _ in range(3):
            for client in clients:
                client.sendto(b"x", ("127.0.0.1", one.ports[0]))
        first, second = packets(one.udp[0]), packets(two.udp[0])
        self.assertEqual(len(first) + len(second), 3 * CLIENTS)
        self.assertTrue(first and second)
        self.assertEqual(set(first) & set(second), set())

    def test_connections_are_spread(self) -> None:
        """Every worker gets some of the connections, of TCP and of TLS."""
        one, two = self.fronts(2)
        for port, ours, theirs in ((one.ports[1], one.tcp[0], two.tcp[0]), (one.ports[2], one.tls[0], two.tls[0])):
            with ExitStack() as opened:
                for _ in range(CLIENTS):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                self.assertEqual(accepted([ours, theirs], CLIENTS), {ours, theirs})

    def test_place_is_kept(self) -> None:
        """While a worker's sockets are held by whoever bound them, clients stay where they are, though it is gone."""
        one, two = self.fronts(2)
        clients = [self.client() for _ in range(CLIENTS)]
        their = Front.of_descriptors([os.dup(each.fileno()) for each in two])
        self.assertEqual(their.ports, two.ports)
        for client in clients:
            client.sendto(b"x", ("127.0.0.1", one.ports[0]))
        before = packets(their.udp[0])
        their.close()
        for client in clients:
            client.sendto(b"x", ("127.0.0.1", one.ports[0]))
        self.assertEqual(sorted(packets(two.udp[0])), sorted(before))

    def test_bound_alone(self) -> None:
        """Whoever has a port already keeps it to himself, another node with workers as well; then nothing is bound."""
        (one, _) = self.fronts(2)
        _, tcp, tls = one.ports
        for ports in ((tcp, 0), (0, tls)):
            for workers in (1, 2):
                self.assertRaises(CannotListenError, bind, "127.0.0.1", *ports, workers)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as taken:
                taken.bind(("127.0.0.1", 0))
                if kind == socket.SOCK_STREAM:
                    taken.listen()
                port = taken.getsockname()[1]
                before = descriptors()
                self.assertRaises(CannotListenError, bind, "127.0.0.1", port, 0, 2)
                self.assertEqual(descriptors(), before)
        for each in one:
            each.close()

    def test_alone(self) -> None:
        """A server that has no workers shares its port with nobody, whoever asks for it."""
        (front,) = self.fronts(1)
        for kind, port in ((socket.SOCK_DGRAM, front.ports[0]), (socket.SOCK_STREAM, front.ports[1])):
            with socket.socket(socket.AF_INET, kind) as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self.assertRaises(OSError, other.bind, ("127.0.0.1", port))

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.bind(("127.0.0.1", 0))
        return client


def packets(server: socket.socket) -> list[tuple[str, int]]:
    """Where each packet that waits is from. Loopback delivers before ``sendto`` returns."""
    sources = []
    while True:
        try:
            sources.append(server.recvfrom(16)[1])
        except BlockingIOError:
            return sources


def accepted(servers: list[socket.socket], count: int) -> set[socket.socket]:
    """Accept *count* connections; which of the servers there was one on."""
    busy = set()
    for _ in range(count):
        ready = select.select(servers, [], [], 5)[0]
        ready[0].accept()[0].close()
        busy.add(ready[0])
    return busy


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
