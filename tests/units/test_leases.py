"""A TURN tenant is served while its unit holds the lease, and drains when it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks, WebRtcConfig
from orama.cluster.leases import TICK, Lease, Leases
from orama.errors import Conflict, NotFound
from orama.turn.tenants import Tenant, Tenants
from tests.units.test_runner import config

DEADLINE = 30.0


class Turn:
    """The TURN server, as far as leases ask it."""

    def __init__(self) -> None:
        self.draining: set[str] = set()
        self.held: dict[str, int] = {}

    def drain_tenant(self, namespace: str) -> None:
        self.draining.add(namespace)

    def undrain_tenant(self, namespace: str) -> None:
        self.draining.discard(namespace)

    def allocations(self, namespace: str | None = None) -> int:
        return self.held.get(namespace or "", 0)


def tenant(given: WebRtcConfig) -> Tenant:
    assert given.blocks.relay is not None
    return Tenant(given.namespace, given.turn_secrets, given.blocks.relay)


class LeaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tenants = Tenants()
        self.changes: list[str] = []
        self.tenants.watch(self.changes.append)
        self.turn = Turn()
        self.configs = {"demo": config(), "other": config("other")}
        self.publisher = LogPublisher()
        self.leases = Leases(self.clock, self.tenants, self.turn, self.config, tenant, self.publisher, lambda: DEADLINE)
        self.leases.startService()
        self.addCleanup(self.leases.stopService)

    async def config(self, namespace: str) -> WebRtcConfig:
        if namespace not in self.configs:
            raise NotFound("webrtc_not_enabled", "no")
        return self.configs[namespace]

    def attached(self, namespace: str = "demo") -> tuple[Lease, list[Mapping[str, Any]]]:
        said: list[Mapping[str, Any]] = []

        def say(message: Mapping[str, Any]) -> bool:
            said.append(message)
            return True

        return self.now(self.leases.attach(namespace, say)), said

    def now(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def events(self, said: list[Mapping[str, Any]]) -> list[str]:
        return [each["event"] for each in said]

    def test_held(self) -> None:
        """While the lease is held, the namespace is served."""
        _, said = self.attached()
        self.assertEqual(self.tenants.get("demo"), tenant(config()))
        self.assertEqual(said, [{"event": "registered", "text": "demo is relayed for on ports 49152 to 49951"}])
        self.assertTrue(self.leases.serves("demo"))

    def test_unwanted(self) -> None:
        """A namespace that is not relayed for here has no lease."""
        self.failureResultOf(Deferred.fromCoroutine(self.leases.attach("third", lambda _: True)), NotFound)
        self.assertEqual(len(self.tenants), 0)

    def test_moved(self) -> None:
        """Where the role is another node's by now nobody gets the lease, and whoever has it keeps what it has."""
        self.attached()
        self.configs["demo"] = config(blocks=Blocks())
        self.now(self.leases.refresh("demo"))
        self.assertEqual(self.tenants.get("demo"), tenant(config()))
        self.failureResultOf(Deferred.fromCoroutine(self.leases.attach("demo", lambda _: True)), NotFound)

    def test_drain(self) -> None:
        """A unit that stops lets nobody new in, waits for the last allocation, and then is told that it may go."""
        _, said = self.attached()
        self.turn.held["demo"] = 2
        self.leases.drain("demo")
        self.assertEqual((self.turn.draining, self.events(said)), ({"demo"}, ["registered", "draining"]))
        self.clock.advance(TICK)
        self.assertIsNotNone(self.tenants.get("demo"))
        self.turn.held["demo"] = 0
        self.clock.advance(TICK)
        self.assertIsNone(self.tenants.get("demo"))
        self.assertEqual(self.events(said), ["registered", "draining", "drained"])
        self.assertFalse(self.leases.serves("demo"))

    def test_deadline(self) -> None:
        """Allocations that stay end with their time."""
        self.attached()
        self.turn.held["demo"] = 1
        self.leases.drain("demo")
        self.clock.pump([TICK] * int(DEADLINE / TICK - 1))
        self.assertIsNotNone(self.tenants.get("demo"))
        self.clock.advance(TICK)
        self.assertIsNone(self.tenants.get("demo"))

    def test_killed(self) -> None:
        """A unit that dies drains, too; back in time, it finds its allocations as they were."""
        lease, _ = self.attached()
        self.turn.held["demo"] = 3
        self.leases.detach(lease)
        self.assertEqual(self.turn.draining, {"demo"})
        self.clock.advance(TICK)
        self.changes.clear()
        self.attached()
        self.assertEqual((self.turn.draining, self.changes), (set(), []))
        self.clock.pump([TICK] * 100)
        self.assertIsNotNone(self.tenants.get("demo"))

    def test_two(self) -> None:
        """The holder that came last counts; the end of the other changes nothing."""
        first, said = self.attached()
        self.attached()
        self.assertEqual(self.events(said), ["registered", "replaced"])
        self.leases.detach(first)
        self.assertEqual(self.turn.draining, set())

    def test_refresh(self) -> None:
        """Another secret is taken at once; a namespace without a holder is not served by a change."""
        self.attached()
        self.configs["demo"] = config(secret="other")
        self.now(self.leases.refresh("demo"))
        self.now(self.leases.refresh("other"))
        held = self.tenants.get("demo")
        assert held is not None
        self.assertEqual((held.secrets, self.tenants.get("other")), (("other",), None))

    def test_refresh_all(self) -> None:
        """When the node reads its configuration again, every namespace whose lease is held is looked at."""
        self.attached()
        self.configs["demo"] = config(secret="other")
        self.now(self.leases.refresh_all())
        held = self.tenants.get("demo")
        assert held is not None
        self.assertEqual(held.secrets, ("other",))
        del self.configs["demo"]
        self.now(self.leases.refresh_all())
        self.assertEqual(self.tenants.get("demo"), held)

    def test_log(self) -> None:
        """What TURN says about the namespace, and that alone, goes to its unit."""
        _, said = self.attached()
        turn = Logger(namespace="orama.turn.allocations", observer=self.publisher)
        turn.info("allocation of {namespace} ended: {bytes_up} bytes up", namespace="demo", bytes_up=7)
        turn.info("allocation of {namespace} ended", namespace="other")
        Logger(namespace="orama.sfu.room", observer=self.publisher).info("{namespace}", namespace="demo")
        turn.info("{n}", n=1)
        self.assertEqual(said[1:], [{"event": "log", "text": "allocation of demo ended: 7 bytes up"}])

    def test_stop(self) -> None:
        """When the node stops, every unit is told, and nothing is left."""
        _, said = self.attached()
        self.successResultOf(self.leases.stopService())
        self.assertEqual((self.events(said)[-1], len(self.tenants)), ("stopped", 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.leases.startService()

    def test_nobody(self) -> None:
        """A lease that nobody holds is not drained."""
        with self.assertRaises(Conflict):
            self.leases.drain("demo")
