"""The registry of tenants."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.tenants import Tenants
from tests.turn.world import INTERNAL_IP, MYAPP, OTHER, PEER, World


class TenantsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tenants = Tenants(INTERNAL_IP)
        self.tenants.put(MYAPP)
        self.tenants.put(OTHER)

    def test_get(self) -> None:
        """Tenants are found by namespace, until they are removed; removing twice is nothing."""
        self.assertIs(self.tenants.get("myapp"), MYAPP)
        self.tenants.remove("myapp")
        self.tenants.remove("myapp")
        self.assertIsNone(self.tenants.get("myapp"))
        self.assertEqual(list(self.tenants), [OTHER])

    def test_owner_of(self) -> None:
        """A relay address belongs to the namespace whose block its port is in, and to nobody outside of the blocks."""
        for port, owner in (
            (49999, None),
            (50000, "myapp"),
            (50799, "myapp"),
            (50800, "other"),
            (51599, "other"),
            (51600, None),
            (0, None),
        ):
            self.assertEqual(self.tenants.owner_of((INTERNAL_IP, port)), owner, port)
        self.assertIsNone(self.tenants.owner_of(("10.0.0.9", 50000)))

    def test_owner_without_relay_ip(self) -> None:
        """A registry that does not know the relay IP goes by the port."""
        tenants = Tenants()
        self.assertIsNone(tenants.owner_of(("10.0.0.9", 50000)))
        tenants.put(MYAPP)
        self.assertEqual(tenants.owner_of(("10.0.0.9", 50000)), "myapp")

    def test_media_owner_of(self) -> None:
        """An SFU address belongs to the namespace whose media block it is in."""
        self.assertEqual(self.tenants.media_owner_of((INTERNAL_IP, 20499)), "myapp")
        self.assertEqual(self.tenants.media_owner_of((INTERNAL_IP, 20500)), "other")
        self.assertIsNone(self.tenants.media_owner_of(("10.0.0.2", 20500)))

    def test_watch(self) -> None:
        """Watchers hear of each put and each remove that changed something, until they stop."""
        heard: list[str] = []
        self.tenants.watch(heard.append)
        self.tenants.put(evolve(MYAPP, secrets=("new",)))
        self.tenants.remove("other")
        self.tenants.remove("nobody")
        self.tenants.unwatch(heard.append)
        self.tenants.put(OTHER)
        self.assertEqual(heard, ["myapp", "other"])

    def test_secrets_are_not_shown(self) -> None:
        """A tenant's representation keeps its secrets to itself."""
        self.assertNotIn("north", repr(MYAPP))

    def test_the_same(self) -> None:
        """Who watches hears of what has changed, and of nothing when a tenant is put as it is."""
        heard: list[str] = []
        self.tenants.watch(heard.append)
        self.tenants.put(evolve(MYAPP))
        self.assertEqual(heard, [])
        self.tenants.put(evolve(MYAPP, secrets=("other",)))
        self.assertEqual(heard, ["myapp"])

    def test_figures(self) -> None:
        """A namespace that is gone has no figures any more: there are as many as there are namespaces."""
        world = World()
        client = world.client()
        client.allocate()
        client.bind(0x4000, PEER)
        client.data(0x4000, b"12345")
        self.assertEqual(world.figures()["orama_turn_bytes_total", "myapp", "up"], 5)
        world.tenants.remove("myapp")
        self.assertEqual({key[1] for key in world.figures() if key[0] == "orama_turn_bytes_total"}, {"other"})

    def test_neighbours(self) -> None:
        """What a namespace may reach, and its secrets, let nobody else's allocations be judged anew; its ports do."""
        world = World()
        client = world.client()
        client.allocate()
        client.permit(PEER)
        client.send(PEER, b"known from now on")
        (allocation,) = world.server._allocations
        self.assertEqual(allocation._reachable, {PEER})
        world.tenants.put(evolve(OTHER, secrets=("newer",), denied_peers=MYAPP.allowed_peers))
        self.assertEqual(allocation._reachable, {PEER})
        world.tenants.put(evolve(OTHER, relay_ports=(53000, 53799)))
        self.assertEqual(allocation._reachable, set())
