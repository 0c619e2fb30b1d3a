"""What a namespace and a user may have, as their clients see it."""

from __future__ import annotations

from ipaddress import ip_network

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.settings import NamespaceTurnSettings, TurnSettings
from orama.wire import stun
from tests.turn.world import MYAPP, PEER, SFU, Client, World, code

MEGABYTE = 10**6


class AllocationTests(SynchronousTestCase):
    def test_exactly(self) -> None:
        """One more than the limit is 486, whatever differs: port, address, expiry, link; the neighbours have theirs."""
        world = World(allocations_per_user=4, allocations_per_namespace=6)
        anns = [
            world.client(port=1000 + number, ip=f"203.0.113.{number % 3}", user="ann", ttl=60 * (number + 1))
            for number in range(5)
        ]
        self.assertEqual([code(client.allocate()) for client in anns], [0, 0, 0, 0, 486])
        others = [world.client(port=2000 + number, user=f"u{number}") for number in range(3)]
        self.assertEqual([code(client.allocate()) for client in others], [0, 0, 486])
        elsewhere = [world.client(port=3000 + number, namespace="other", user="ann") for number in range(5)]
        self.assertEqual([code(client.allocate()) for client in elsewhere], [0, 0, 0, 0, 486])

    def test_expiry_brings_nothing(self) -> None:
        """New credentials are the same user: what is held under the old ones counts, and is refreshed by the new."""
        world = World(allocations_per_user=1)
        old = world.client(user="ann", ttl=60)
        old.allocate()
        world.clock.advance(61)
        new = world.client(port=40001, user="ann")
        self.assertEqual(code(new.allocate()), 486)
        old.credentials = new.credentials
        self.assertEqual(code(old.refresh()), 0)

    def test_slot_comes_back(self) -> None:
        """However an allocation ends, and also when none was made, the slot is free again."""
        world = World(allocations_per_user=1, allocations_per_namespace=1)

        def again(port: int) -> Client:
            client = world.client(port=port, user="ann")
            self.assertEqual(code(client.allocate()), 0, port)
            return client

        again(1).refresh((stun.LIFETIME, 0))
        again(2)
        world.clock.advance(601)
        world.server.tick()
        client = again(3)
        world.server.disconnected(client.link, client.address)
        world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50000)))
        neighbour = world.sfu(("10.0.0.1", 50000))
        self.assertEqual(code(world.client(port=4, user="ann").allocate()), 508)
        self.assertEqual(neighbour, [])
        world.fabric.detach(("10.0.0.1", 50000))
        again(5)
        world.tenants.remove("myapp")
        world.tenants.put(MYAPP)
        again(6)

    def test_kept_ports(self) -> None:
        """A user keeps no more ports by EVEN-PORT than he may have allocations, however often he gives these back."""
        world = World(allocations_per_user=3, allocations_per_namespace=8)
        world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50009)))
        ann = world.client(port=1, user="ann")
        answers = []
        for _ in range(6):
            answer = ann.allocate((stun.EVEN_PORT, True))
            answers.append(code(answer))
            ann.refresh((stun.LIFETIME, 0))
        self.assertEqual(answers, [0, 0, 0, 486, 486, 486])
        self.assertEqual(code(ann.allocate()), 0, "without a second port there is no limit but the usual one")
        ann.refresh((stun.LIFETIME, 0))
        bob = world.client(port=2, user="bob")
        token = bob.allocate((stun.EVEN_PORT, True)).get(stun.RESERVATION_TOKEN)
        self.assertEqual(code(world.client(port=3, user="bob").allocate((stun.RESERVATION_TOKEN, token))), 0)
        world.clock.advance(31)
        world.server.tick()
        self.assertEqual(code(ann.allocate((stun.EVEN_PORT, True))), 0)

    def test_of_one_namespace(self) -> None:
        """A namespace with a limit of its own has that one."""
        world = World(allocations_per_user=1, namespaces={"other": NamespaceTurnSettings(allocations_per_user=2)})
        for namespace, answers in (("myapp", [0, 486, 486]), ("other", [0, 0, 486])):
            clients = [world.client(port=number + 1, namespace=namespace, user="ann") for number in range(3)]
            self.assertEqual([code(client.allocate()) for client in clients], answers)

    def test_changed_while_it_runs(self) -> None:
        """A lower limit ends nobody, and holds for who comes; a higher one lets him in."""
        world = World(allocations_per_user=2)
        first, second, third = (world.client(port=number, user="ann") for number in (1, 2, 3))
        first.allocate()
        second.allocate()
        world.server.configure(TurnSettings(allocations_per_user=1))
        self.assertEqual(code(first.refresh()), 0)
        second.refresh((stun.LIFETIME, 0))
        self.assertEqual(code(third.allocate()), 486)
        world.server.configure(TurnSettings(allocations_per_user=2))
        self.assertEqual(code(third.allocate()), 0)


class BandwidthTests(SynchronousTestCase):
    def allocated(self, world: World, port: int, user: str = "ann") -> Client:
        client = world.client(port=port, user=user)
        self.assertEqual(code(client.allocate()), 0)
        self.assertEqual(code(client.bind(0x4000, PEER)), 0)
        return client

    def up(self, world: World, client: Client, count: int) -> int:
        """How many of *count* packets of 1,000 bytes get from the client to the peer."""
        link, _ = world.opened[client.relay]
        link.packets()
        for _ in range(count):
            client.data(0x4000, bytes(1000))
        return len(link.packets())

    def down(self, world: World, client: Client, count: int) -> int:
        """How many get from the peer to the client."""
        _, receive = world.opened[client.relay]
        client.link.packets()
        for _ in range(count):
            receive((bytes(1000),), PEER)
        return len(client.link.packets())

    def test_both_directions(self) -> None:
        """What goes up and what comes down is taken from the same bytes; a second later there are new ones."""
        world = World(bandwidth_per_user=MEGABYTE)
        client = self.allocated(world, 1)
        up = self.up(world, client, 800)
        down = self.down(world, client, 5000)
        self.assertEqual(up, 800)
        self.assertTrue(200 <= down < 1300, down)
        self.assertEqual(self.up(world, client, 10), 0)
        self.assertGreater(world.figures()["orama_turn_dropped_total", "bandwidth"], 3000)
        world.clock.advance(3)
        self.assertEqual(self.up(world, client, 10), 10)

    def test_all_of_a_user(self) -> None:
        """Several allocations of a user have together what one has; another user has his own."""
        world = World(bandwidth_per_user=MEGABYTE)
        anns = [self.allocated(world, port) for port in (1, 2, 3)]
        bob = self.allocated(world, 4, "bob")
        self.assertLess(sum(self.up(world, client, 5000) for client in anns), 2100)
        self.assertGreaterEqual(self.up(world, bob, 5000), 1000)

    def test_flood_and_call(self) -> None:
        """A user who floods takes nothing from another's call in the same namespace, in either direction."""
        world = World(bandwidth_per_namespace=MEGABYTE)
        flood, call = self.allocated(world, 1, "ann"), self.allocated(world, 2, "bob")
        passed = 0
        for _ in range(100):
            passed += self.up(world, flood, 100)
            self.assertEqual((self.up(world, call, 1), self.down(world, call, 1)), (1, 1))
            world.clock.advance(0.02)
        self.assertLess(passed, 4100)

    def test_changed_while_it_runs(self) -> None:
        """A limit that comes or goes holds for the allocations that are there."""
        world = World()
        client = self.allocated(world, 1)
        self.assertEqual(self.up(world, client, 3000), 3000)
        world.server.configure(TurnSettings(bandwidth_per_user=MEGABYTE))
        self.assertLess(self.up(world, client, 3000), 2100)
        world.server.configure(TurnSettings())
        self.assertEqual(self.up(world, client, 3000), 3000)


class DeniedTests(SynchronousTestCase):
    def test_denied_while_it_runs(self) -> None:
        """What becomes denied is shut for who has permission and channel, both ways, and stays so for new ones."""
        world = World()
        client = world.client()
        client.allocate()
        client.bind(0x4000, PEER)
        client.bind(0x4001, SFU)
        link, receive = world.opened[client.relay]
        world.tenants.put(evolve(MYAPP, denied_peers=(ip_network("198.51.100.0/25"),)))
        client.data(0x4000, b"up")
        client.send(PEER, b"up")
        receive((b"down",), PEER)
        self.assertEqual((link.sent, client.link.sent), ([], []))
        self.assertEqual((code(client.permit(PEER)), code(client.bind(0x4000, PEER))), (403, 403))
        self.assertEqual(code(client.permit(("198.51.100.200", 1))), 0)
        self.assertEqual(code(client.bind(0x4001, SFU)), 0)
